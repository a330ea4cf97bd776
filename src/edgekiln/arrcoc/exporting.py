"""The trained modules as ONNX files with static shapes, for ``compact`` and for ``edgekiln build``."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekiln import files
from edgekiln.arrcoc.channels import CHANNELS, COLOURED, positions
from edgekiln.arrcoc.compact import VERSION, Manifest
from edgekiln.arrcoc.information import DEVIATION, MOST, NOISE
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import FORBIDDEN, Scorer, mixed
from edgekiln.arrcoc.words import LENGTH

OPSET = 17
BUCKETS = (49, 65, 81, 113, 177)


TOKENS = "tokens"
"""The name inside ``look_<tokens>.onnx`` of what the encoder made, (1, N, D): a place to cut at."""


class Look(nn.Module):
    """Encoder and decoder at one bucket: pictures of 0 to 255 to logits (1, 10), and the tokens."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(
        self, coarse: Tensor, windows: Tensor, positions: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = self.reader.encoder(coarse.float() / 255)
        fine = self.reader.encoder(windows.float() / 255).reshape(1, -1, tokens.shape[2])
        both = torch.cat([tokens, fine], 1)
        held = torch.ones(both.shape[:2])
        return self.reader(both, positions, held, relevance, ids, mask), both


class Glance(nn.Module):
    """The same without a window, or at one density: ``coarse`` (1, 4, 16 n + 24, 16 n + 24)."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(
        self, coarse: Tensor, positions: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = self.reader.encoder(coarse.float() / 255)
        held = torch.ones(tokens.shape[:2])
        return self.reader(tokens, positions, held, relevance, ids, mask), tokens


class Propositional(nn.Module):
    """``information.information`` as a graph: texture (1, 13, 224, 224) to a map (1, 28, 28) in 0..1.

    The deviation is taken in units of the noise, so that float16 holds its square. Beside NumPy's it is off
    by at most 1e-5.
    """

    def forward(self, texture: Tensor) -> Tensor:
        spread = texture[:, DEVIATION : DEVIATION + 1] * (1 / NOISE)
        variance = nn.functional.avg_pool2d(spread * spread, texture.shape[2] // 28)
        scale = 1 / math.log1p((MOST / NOISE) ** 2)
        return ((variance + 1).log() * scale).clamp(max=1.0)[:, 0]


class Unified(nn.Module):
    """All three scorers and the balance from the texture array alone: what ``Scorer`` gives."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer, self.propositional = scorer, Propositional()

    def forward(self, texture: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.scorer(texture, self.propositional(texture), ids, mask)
        return found


class FromBytes(nn.Module):
    """The same from a texture array in 8 bits: whole numbers of 0 to 255 over each channel's fixed range."""

    low: Tensor
    step: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.unified = Unified(scorer)
        low, step = byte_ranges()
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("step", torch.from_numpy(step))

    def forward(self, texture: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.unified(texture.float() * self.step + self.low, ids, mask)
        return found


def byte_ranges() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(1, 13, 1, 1) each: a channel's value is ``byte * step + low``."""
    low = np.array([c.low for c in CHANNELS], np.float32).reshape(1, -1, 1, 1)
    high = np.array([c.high for c in CHANNELS], np.float32).reshape(1, -1, 1, 1)
    return low, (high - low) / np.float32(255)


class Balanced(nn.Module):
    """The balance by itself: three maps (1, 28, 28) and the question to the relevance and the weights."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.words, self.balance = scorer.words, scorer.balance

    def forward(
        self, information: Tensor, salience: Tensor, asked: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = self.balance(self.words(ids, mask), mask)
        return mixed(torch.stack([information, salience, asked], 1), weights), weights


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
    """Writes ``scorer.onnx``, the scorers by themselves, ``look_<tokens>.onnx`` for each bucket and
    ``compact.json`` into the folder ``into``. ``scorer.onnx`` takes the array's first ``COLOURED`` channels:
    to cut them out of it would cost the device a copy."""
    into.mkdir(parents=True, exist_ok=True)
    scored = {"coloured": _TEXTURE[:, :COLOURED], "information": _MAP, **_WORDS}
    _write(_over_whole_pictures(scorer), scored, ("relevance", "maps", "weights"), into / "scorer.onnx")
    for name in ("propositional", "perspectival", "participatory"):
        export_scorer(scorer, name, into / f"{name}.onnx")
    for bucket in buckets:
        export_look(reader, bucket, into / f"look_{bucket}.onnx")
    found = Manifest(version=VERSION, buckets=tuple(buckets), trained_by=trained_by, seed=seed)
    files.write_bytes(into / "compact.json", msgspec.json.format(msgspec.json.encode(found), indent=2))
    return found


_TEXTURE, _MAP = torch.zeros(1, 13, 224, 224), torch.zeros(1, 28, 28)
_WORDS = {"ids": torch.ones((1, LENGTH), dtype=torch.int64), "mask": torch.ones(1, LENGTH)}


def export_scorer(scorer: Scorer, name: str, path: Path) -> None:
    """One of the three by itself, from the texture array to a ``map``; ``balance``, from the three maps to
    ``relevance`` and ``weights``; ``unified``, from the texture array to what ``scorer.onnx`` gives; or
    ``unified-bytes``, the same from a texture array in 8 bits."""
    coded = torch.zeros(1, 13, 224, 224, dtype=torch.uint8)
    texture, asked = {"texture": _TEXTURE}, {"texture": _TEXTURE, **_WORDS}
    maps = dict.fromkeys(("propositional", "perspectival", "participatory"), _MAP)
    table: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]]] = {
        "propositional": lambda: (Propositional(), texture, ("map",)),
        "perspectival": lambda: (Salience(scorer), texture, ("map",)),
        "participatory": lambda: (Asked(scorer), asked, ("map",)),
        "balance": lambda: (Balanced(scorer), {**maps, **_WORDS}, ("relevance", "weights")),
        "unified": lambda: (Unified(scorer), asked, ("relevance", "maps", "weights")),
        "unified-bytes": lambda: (
            FromBytes(scorer),
            {"texture": coded, **_WORDS},
            ("relevance", "maps", "weights"),
        ),
    }
    scorer = _over_whole_pictures(scorer)
    module, given, outputs = table[name]()
    _write(module, given, outputs, path)


def _over_whole_pictures(scorer: Scorer) -> Scorer:
    """The same with the positions as a constant: they are those of every picture."""
    made = copy.deepcopy(scorer)
    height, width = _TEXTURE.shape[2:]
    means = nn.functional.avg_pool2d(torch.from_numpy(positions(height, width)), height // _MAP.shape[1])
    made.features.places = means[None]
    return made


def export_look(reader: Reader, bucket: int, path: Path, pictures: torch.dtype = torch.uint8) -> None:
    """The reader at ``bucket`` tokens, 49 and 16 for each window; ``pictures`` is the type of its whole
    numbers of 0 to 255 (Core ML takes no bytes)."""
    count = (bucket - 49) // 16
    given = {
        "coarse": torch.zeros((1, 4, 136, 136), dtype=pictures),
        "windows": torch.zeros((count, 4, 88, 88), dtype=pictures),
        "positions": torch.zeros(1, bucket, 4),
        "relevance": _MAP,
        **_WORDS,
    }
    if not count:
        del given["windows"]
    _write(Look(reader) if count else Glance(reader), given, ("logits",), path, inner=(TOKENS,))


def export_uniform(reader: Reader, side: int, path: Path) -> None:
    """The reader over ``side`` x ``side`` tokens of one density: what the benchmarks compare with."""
    given = {
        "coarse": torch.zeros((1, 4, 16 * side + 24, 16 * side + 24), dtype=torch.uint8),
        "positions": torch.zeros(1, side * side, 4),
        "relevance": _MAP,
        **_WORDS,
    }
    _write(Glance(reader), given, ("logits",), path, inner=(TOKENS,))


def _write(
    module: nn.Module,
    given: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    inner: Sequence[str] = (),
) -> None:
    """``module`` as an ONNX file of static shapes. ``inner`` names what it gives besides ``outputs``: these
    stay inside the graph, under that name."""
    import onnx

    with warnings.catch_warnings():
        # Shapes are meant to become constants.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")
        torch.onnx.export(
            module.eval(),
            tuple(given.values()),
            path,
            input_names=list(given),
            output_names=[*outputs, *inner],
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    for output in [o for o in model.graph.output if o.name in inner]:
        model.graph.output.remove(output)
    _ease_masks(model)
    files.write_bytes(path, model.SerializeToString(deterministic=True))


UNLIKELY = 32.0
"""What the files have for ``FORBIDDEN``, beside which 8 bits have nothing left for other scores: it leaves a
word that is none e^-32 of a like one's share."""


def _ease_masks(model: Any) -> None:
    from onnx import numpy_helper

    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.shape == () and value.dtype == np.float32 and value == FORBIDDEN:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(UNLIKELY, np.float32)))
