"""Who is timed: the compact system at each bucket, uniform densities, and pruning after the encoder.

Each is a function of a picture, uint8 (448, 448, 3), and a question, that does all the work of one answer in
ONNX Runtime. Pruning pays for the encoder over all 784 tokens; only the decoder gets fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arrcoc.showing.accuracies import ATTENTION, OURS, SIMILARITY, UNIFORM
from edgekiln.arrcoc import baselines, views
from edgekiln.arrcoc.compact import MARGIN, Compact
from edgekiln.arrcoc.exporting import OPSET, export, export_uniform
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.texture import reduction
from edgekiln.arrcoc.words import LENGTH
from edgekiln.arrcoc.words import tokens as numbers
from edgekiln.records import Record

SIDES = (7, 9, 14, 28)
PRUNED = (65, 81, 113)
LEVELS = {7: 0.0, 14: 1.0, 28: 2.0}
INFORMED = "uniform, told the relevance"
"""With the texture array and the scorer before it, as its accuracy was measured."""

Picture = NDArray[np.uint8]
Answer = Callable[[Picture, str], dict[str, float]]
"""Does the work of one answer; gives the milliseconds of its stages where it takes them apart."""


class Contender(Record, frozen=True, kw_only=True):
    name: str
    tokens: int
    answer: Answer


class Pruned(nn.Module):
    """The reader over all tokens of one density, of which the decoder gets ``total``."""

    def __init__(self, reader: Reader, total: int, how: Literal["attention", "similarity"]) -> None:
        super().__init__()
        self.reader, self.total, self.how = reader, total, how

    def forward(
        self, coarse: Tensor, positions: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        tokens = self.reader.encoder(coarse.float() / 255)
        if self.how == "attention":
            words = self.reader.words(ids, mask)
            # The exporter has no stable sort; ONNX's TopK takes the first of equals by its definition.
            most = baselines.received(self.reader, tokens, positions, words, mask).topk(self.total, dim=1)
            kept = most.indices.sort(1).values
        else:
            kept = baselines.by_difference(tokens, self.total)
        pick = kept[..., None]
        tokens = tokens.gather(1, pick.expand(-1, -1, tokens.shape[2]))
        positions = positions.gather(1, pick.expand(-1, -1, 4))
        held = torch.ones(tokens.shape[:2])
        found: Tensor = self.reader(tokens, positions, held, relevance, ids, mask)
        return found


def write_all(scorer: Scorer, reader: Reader, into: Path, seed: int) -> None:
    """Every file that the contenders open: the compact system's folder and the others beside it."""
    export(scorer, reader, into / "compact", "the benchmark's checkpoint", seed)
    for side in SIDES:
        export_uniform(reader, side, into / f"uniform_{side * side}.onnx")
    for total in PRUNED:
        for how in ("attention", "similarity"):
            _write(Pruned(reader, total, how), into / f"{how}_{total}.onnx")


def _write(module: nn.Module, path: Path) -> None:
    side = SIDES[-1]
    given = {
        "coarse": torch.zeros((1, 4, 16 * side + 2 * MARGIN, 16 * side + 2 * MARGIN), dtype=torch.uint8),
        "positions": torch.zeros(1, side * side, 4),
        "relevance": torch.zeros(1, 28, 28),
        "ids": torch.ones((1, LENGTH), dtype=torch.int64),
        "mask": torch.ones(1, LENGTH),
    }
    torch.onnx.export(
        module.eval(),
        tuple(given.values()),
        path,
        input_names=list(given),
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=False,
    )


def opened(folder: Path, threads: int) -> tuple[Contender, ...]:
    """All contenders over the files of ``write_all``, with ``threads`` threads each."""
    compact = Compact(folder / "compact", threads)
    found = [
        Contender(name=OURS, tokens=total, answer=_ours(compact, total)) for total in compact.manifest.buckets
    ]
    for side in SIDES:
        session = _session(folder / f"uniform_{side * side}.onnx", threads)
        plain, informed = _uniform(session, side, None), _uniform(session, side, compact)
        found += [
            Contender(name=UNIFORM, tokens=side * side, answer=plain),
            Contender(name=INFORMED, tokens=side * side, answer=informed),
        ]
    for name, how in ((ATTENTION, "attention"), (SIMILARITY, "similarity")):
        for total in PRUNED:
            session = _session(folder / f"{how}_{total}.onnx", threads)
            found.append(Contender(name=name, tokens=total, answer=_uniform(session, SIDES[-1], None)))
    return tuple(found)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the compact system has it
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _ours(compact: Compact, total: int) -> Answer:
    return lambda picture, question: compact.ask(picture, question, total).answered.stages_ms


def _uniform(session: Any, side: int, scored_by: Compact | None) -> Answer:
    """All of the picture at one density; without a scorer the relevance is 0 everywhere."""
    zeros = np.zeros((28, 28), np.float32)
    level = LEVELS.get(side, -1.0)
    blind = positions(zeros, side, level)  # the same for every picture: made once

    def answer(picture: Picture, question: str) -> dict[str, float]:
        relevance, where = zeros, blind
        if scored_by is not None:
            relevance = scored_by.relevance(picture, question)[0]
            where = positions(relevance, side, level)
        ids, mask = numbers(question)
        given = {
            "coarse": whole(picture, relevance if scored_by else None, side)[None],
            "positions": where,
            "relevance": relevance[None],
            "ids": ids[None],
            "mask": mask[None].astype(np.float32),
        }
        session.run(None, given)
        return {}

    return answer


def whole(picture: Picture, relevance: NDArray[np.float32] | None, side: int) -> Picture:
    """All of ``picture`` as ``side`` x ``side`` tokens, uint8 (4, 16 side + 24, 16 side + 24): by area, the
    edge's pixels repeated around it, the relevance (28, 28) as the fourth channel."""
    size = 16 * side
    found = np.zeros((4, size + 2 * MARGIN, size + 2 * MARGIN), np.uint8)
    inside = found[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    inside[:3] = reduction(picture, (size, size)).transpose(2, 0, 1)
    if relevance is not None:
        large = np.rint(np.clip(relevance, 0, 1) * 255).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        inside[3] = reduction(np.repeat(large[..., None], 3, 2), (size, size))[..., 0]
    found[:, :MARGIN] = found[:, MARGIN, None]
    found[:, -MARGIN:] = found[:, -MARGIN - 1, None]
    found[:, :, :MARGIN] = found[:, :, MARGIN, None]
    found[:, :, -MARGIN:] = found[:, :, -MARGIN - 1, None]
    return found


def positions(relevance: NDArray[np.float32], side: int, level: float) -> NDArray[np.float32]:
    """(1, side * side, 4) as the reader takes them."""
    found: NDArray[np.float32] = views.uniform_positions(
        torch.from_numpy(relevance)[None], side, level
    ).numpy()
    return found
