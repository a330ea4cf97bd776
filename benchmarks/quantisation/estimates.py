"""What few samples tell of an artifact's agreement and loss of top-1: by a count, by margins.

The artifacts are those that the contenders made. Of the evaluation samples some are drawn, many times, and
what they tell is held against the count on all the others, which that draw left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.prove.accuracy import rank, top_class
from edgekiln.prove.flips import LabelMargin, kept, label_margin, label_move, leads, moves
from edgekiln.records import Artifact
from measuring.table import Table
from quantisation import scenes

DRAWS = 200
SHARE = 4
"""One sample in so many is drawn."""
COLUMNS = (
    "model",
    "contender",
    "figure",
    "all samples",
    "drawn",
    "count off by",
    "estimate off by",
    "its bias",
)
Values = NDArray[np.float64]
Draw = NDArray[np.intp]


@dataclass(frozen=True)
class Watched:
    """An artifact on the evaluation samples, a value each; the last three only of those with labels."""

    leads: Values
    moves: Values
    same: Values
    margins: tuple[LabelMargin, ...]
    label_moves: Values
    lost: Values


@dataclass(frozen=True)
class Error:
    """``truth`` on all samples; root mean squares of what a draw of ``drawn`` says less what the others
    show.
    """

    truth: float
    drawn: int
    counted: float
    estimated: float
    bias: float


def table(work: Path, threads: int) -> Table:
    """Two rows per artifact of a classifier that lies below ``work``; those that change no value left out."""
    rows = []
    for name in scenes.PANEL:
        folder = work / "scenes" / name
        if not (folder / "scene.json").is_file() or scenes.load(folder).judge != "classes":
            continue
        for made in sorted((work / "artifacts" / name).glob("*/artifact.json")):
            found = watched(folder, made.parent, threads)
            if found.moves.any():
                rows += [(name, made.parent.name, *_cells("agreement", agreement(found)))]
                rows += (
                    [(name, made.parent.name, *_cells("top-1 lost", drop(found)))] if found.margins else []
                )
    note = (
        f"One evaluation sample in {SHARE} is drawn, {DRAWS} times. 'Off by' is the root mean square of what "
        "the drawn ones tell less the count on all the others, in points; these are few too, so that no "
        "method reaches zero. 'Bias' is the mean of the estimates less the count on all samples, which "
        "chance moves as well."
    )
    return Table(title="What few samples tell", columns=COLUMNS, rows=tuple(rows), note=note)


def _cells(figure: str, one: Error) -> tuple[str, ...]:
    points = [f"{100 * x:.1f}" for x in (one.truth, one.counted, one.estimated)]
    return (figure, f"{points[0]}%", str(one.drawn), points[1], points[2], f"{100 * one.bias:+.1f}")


def watched(folder: Path, into: Path, threads: int) -> Watched:
    """Run the float graph and the artifact in ``into`` over ``folder/evaluation``."""
    artifact = msgspec.json.decode((into / "artifact.json").read_bytes(), type=Artifact)
    labels = scenes.load(folder).labels
    reference = open_engine("onnxruntime", float_artifact("graph.onnx", "float"), folder, threads)
    candidate = open_engine(artifact.engine, artifact, into, threads)
    rows, labelled = [], []
    for place, sample in enumerate(scenes.arrays(folder / "evaluation")):
        a, b = (np.asarray(next(iter(run(sample).values()))) for run in (reference, candidate))
        rows.append((leads(a), moves(a, b), top_class(a) == top_class(b)))
        label = labels[place] if labels else None
        if label is not None:
            margin = label_margin(a, label, rank(a, label) < 1)
            labelled.append((margin, label_move(margin, b), margin.right - float(rank(b, label) < 1)))
    reference.close()
    candidate.close()
    held, moved, same = (np.concatenate(part) for part in zip(*rows, strict=True))
    margins = tuple(m for m, *_ in labelled)
    rest = (np.array([row[k] for row in labelled], float) for k in (1, 2))
    return Watched(held, moved, same.astype(float), margins, *rest)


def agreement(found: Watched) -> Error:
    """The share of decisions that stay."""
    return error(found.same, lambda some: kept(found.leads[some], found.moves[some]))


def drop(found: Watched) -> Error:
    """The loss of top-1 on the labelled samples."""
    held = np.stack([m.leads for m in found.margins])
    right = np.array([m.right for m in found.margins], float)
    return error(
        found.lost, lambda some: float(right[some].mean()) - kept(held[some], found.label_moves[some])
    )


def error(values: Values, estimate: Callable[[Draw], float]) -> Error:
    """What draws tell of the mean of ``values``: their own mean, and ``estimate`` of their places."""
    random: Any = np.random.default_rng(0)
    drawn = len(values) // SHARE
    counted, estimated, told = [], [], []
    for _ in range(DRAWS):
        order = random.permutation(len(values))
        some, others = order[:drawn], order[drawn:]
        truth = values[others].mean()
        counted.append(values[some].mean() - truth)
        told.append(estimate(some))
        estimated.append(told[-1] - truth)
    bias = float(np.mean(told) - values.mean())
    return Error(float(values.mean()), drawn, _rms(counted), _rms(estimated), bias)


def _rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
