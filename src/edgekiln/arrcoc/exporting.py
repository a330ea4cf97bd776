"""The trained modules as ONNX files with static shapes, for ``compact`` and for ``edgekiln build``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from edgekiln import files
from edgekiln.arrcoc.compact import VERSION, Manifest
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.words import LENGTH

OPSET = 17
BUCKETS = (49, 65, 81, 113, 177)


class Look(nn.Module):
    """Encoder and decoder at one bucket: uint8 pictures to logits (1, 10)."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(
        self, coarse: Tensor, windows: Tensor, positions: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        tokens = self.reader.encoder(coarse.float() / 255)
        fine = self.reader.encoder(windows.float() / 255).reshape(1, -1, tokens.shape[2])
        both = torch.cat([tokens, fine], 1)
        found: Tensor = self.reader(both, positions, torch.ones(both.shape[:2]), relevance, ids, mask)
        return found


class Glance(nn.Module):
    """The same without a window, or at one density: ``coarse`` (1, 4, 16 n + 24, 16 n + 24)."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(
        self, coarse: Tensor, positions: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        tokens = self.reader.encoder(coarse.float() / 255)
        held = torch.ones(tokens.shape[:2])
        found: Tensor = self.reader(tokens, positions, held, relevance, ids, mask)
        return found


class Salience(nn.Module):
    """The perspectival scorer by itself: texture to a map in 0..1."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, texture: Tensor) -> Tensor:
        found: Tensor = self.scorer.perspectival(self.scorer.features(texture)).sigmoid()
        return found


class Asked(nn.Module):
    """The participatory scorer by itself: texture, ids and mask to a map in 0..1."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, texture: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        features, words = self.scorer.features(texture), self.scorer.words(ids, mask)
        found: Tensor = self.scorer.participatory(features, words, mask).sigmoid()
        return found


def export(
    scorer: Scorer, reader: Reader, into: Path, trained_by: str, seed: int, buckets: Sequence[int] = BUCKETS
) -> Manifest:
    """Writes ``scorer.onnx``, ``perspectival.onnx``, ``participatory.onnx``, ``look_<tokens>.onnx`` for each
    bucket and ``compact.json`` into the folder ``into``."""
    into.mkdir(parents=True, exist_ok=True)
    ids, mask = torch.ones((1, LENGTH), dtype=torch.int64), torch.ones(1, LENGTH)
    words = {"ids": ids, "mask": mask}
    texture, relevance = torch.zeros(1, 13, 224, 224), torch.zeros(1, 28, 28)
    scored = {"texture": texture, "information": relevance, **words}
    _write(scorer, scored, ("relevance", "maps", "weights"), into / "scorer.onnx")
    _write(Salience(scorer), {"texture": texture}, ("map",), into / "perspectival.onnx")
    _write(Asked(scorer), {"texture": texture, **words}, ("map",), into / "participatory.onnx")
    for bucket in buckets:
        count = (bucket - 49) // 16
        given = {
            "coarse": torch.zeros((1, 4, 136, 136), dtype=torch.uint8),
            "windows": torch.zeros((count, 4, 88, 88), dtype=torch.uint8),
            "positions": torch.zeros(1, bucket, 4),
            "relevance": relevance,
            **words,
        }
        if not count:
            del given["windows"]
        module = Look(reader) if count else Glance(reader)
        _write(module, given, ("logits",), into / f"look_{bucket}.onnx")
    found = Manifest(version=VERSION, buckets=tuple(buckets), trained_by=trained_by, seed=seed)
    files.write_bytes(into / "compact.json", msgspec.json.format(msgspec.json.encode(found), indent=2))
    return found


def export_uniform(reader: Reader, side: int, path: Path) -> None:
    """The reader over ``side`` x ``side`` tokens of one density: what the benchmarks compare with."""
    given = {
        "coarse": torch.zeros((1, 4, 16 * side + 24, 16 * side + 24), dtype=torch.uint8),
        "positions": torch.zeros(1, side * side, 4),
        "relevance": torch.zeros(1, 28, 28),
        "ids": torch.ones((1, LENGTH), dtype=torch.int64),
        "mask": torch.ones(1, LENGTH),
    }
    _write(Glance(reader), given, ("logits",), path)


def _write(module: nn.Module, given: dict[str, Tensor], outputs: tuple[str, ...], path: Path) -> None:
    with warnings.catch_warnings():
        # Shapes are meant to become constants.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")
        torch.onnx.export(
            module.eval(),
            tuple(given.values()),
            path,
            input_names=list(given),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=False,
        )
