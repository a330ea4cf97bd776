"""Task accuracy of a classifier, and what an artifact lost against the float model on the same samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.prove.statistics import Interval, paired_difference, wilson
from edgekiln.records import Evidence, How, Record, Scalar

MOST_SAMPLES_ADVISED = 10_000_000


def rows(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Scores as (rows, classes): the last axis that is not of length 1 holds the classes.

    Takes (C,), (N, C) and the (N, C, 1, 1) of networks that end in a pooling.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim > 2 and table.shape[2:] == (1,) * (table.ndim - 2):
        table = table.reshape(table.shape[:2])
    return table.reshape(-1, table.shape[-1]) if table.ndim else table.reshape(1, 1)


def probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    """(rows, classes) of probabilities, from a softmax's output as it is, or from logits by a softmax."""
    table = rows(scores)
    sums = table.sum(axis=1)
    if bool(np.all(table >= -1e-3)) and bool(np.all(np.abs(sums - 1) < 1e-2)):
        return table
    shifted = np.exp(table - table.max(axis=1, keepdims=True))
    softmax: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return softmax


def top_class(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The class of each row, shape (rows,); of equal scores the lowest index."""
    best: NDArray[np.int64] = np.argmax(rows(scores), axis=1).astype(np.int64)
    return best


def rank(scores: NDArray[Any], label: int) -> int:
    """How many classes come before ``label`` in one sample's scores; equal scores go by index.

    0 is a top-1 hit. A row with NaN ranks the label last: a broken output is never a hit. Raises
    BadInput where the label is not a class of the model.
    """
    row = rows(scores).reshape(-1)
    if not 0 <= label < row.size:
        raise BadInput(
            "scoring the sample with label",
            label,
            f"the model has classes 0 to {row.size - 1}",
            "Correct the label, or give the labels file whose order the model was trained with",
        )
    if bool(np.isnan(row).any()):
        return row.size
    return int((row > row[label]).sum() + (row[:label] == row[label]).sum())


class Tally:
    """Hits of one model over labelled samples, fed one at a time; keeps two bits a sample."""

    def __init__(self) -> None:
        self.top1: list[bool] = []
        self.top5: list[bool] = []
        self.classes = 0

    def add(self, scores: NDArray[Any], label: int) -> None:
        place = rank(scores, label)
        self.classes = int(rows(scores).size)
        self.top1.append(place < 1)
        self.top5.append(place < 5)

    def part(self, indices: Collection[int]) -> Tally:
        """The tally of the samples at ``indices`` alone, in their order."""
        part = Tally()
        part.classes = self.classes
        part.top1 = [hit for i, hit in enumerate(self.top1) if i in indices]
        part.top5 = [hit for i, hit in enumerate(self.top5) if i in indices]
        return part


class Drop(Record, frozen=True, kw_only=True):
    """Float top-1 minus the artifact's, on the same ``n`` samples; positive is a loss.

    ``lost`` samples were right only in the float model, ``gained`` only in the artifact.
    """

    value: float
    interval: Interval
    n: int
    lost: int
    gained: int


def accuracy_drop(reference: Sequence[bool], candidate: Sequence[bool]) -> Drop:
    """Paired drop with Newcombe's 95 % interval (see ``statistics.paired_difference``).

    Raises BadInput where the two were not fed the same number of samples, or none.
    """
    if len(reference) != len(candidate) or not reference:
        raise BadInput(
            "comparing accuracy over",
            f"{len(reference)} and {len(candidate)} samples",
            "both models must have seen the same samples, at least one",
            "Evaluate both on the same labelled data set",
        )
    both, lost, gained, neither = _table(reference, candidate)
    n = len(reference)
    interval = paired_difference(both, lost, gained, neither)
    return Drop(value=(lost - gained) / n, interval=interval, n=n, lost=lost, gained=gained)


def _table(reference: Sequence[bool], candidate: Sequence[bool]) -> tuple[int, int, int, int]:
    first, second = np.asarray(reference, bool), np.asarray(candidate, bool)
    cells = (first & second, first & ~second, ~first & second, ~first & ~second)
    both, lost, gained, neither = (int(cell.sum()) for cell in cells)
    return both, lost, gained, neither


def bound_warning(reference: Sequence[bool], candidate: Sequence[bool], bound: float) -> str | None:
    """A sentence where the samples are too few to judge a bound on the drop, else None.

    Too few means that half the width of the interval exceeds the bound: the figure may meet the bound
    and the truth break it, or the other way round. The advised number assumes the same shares.
    """
    drop = accuracy_drop(reference, candidate)
    if _half_width(drop.interval) <= bound:
        return None
    low, high = drop.interval
    advised = _samples_for(_table(reference, candidate), bound)
    return (
        f"{drop.n} labelled samples can't support a bound of {bound:g} on the accuracy drop: measured "
        f"{drop.value:.3g}, 95 % interval {low:.3g} to {high:.3g}; {advised}"
    )


def _half_width(interval: Interval) -> float:
    return (interval[1] - interval[0]) / 2


def _samples_for(table: tuple[int, int, int, int], bound: float) -> str:
    n = sum(table)
    enough = n
    while enough < MOST_SAMPLES_ADVISED:
        enough = int(enough * 1.1) + 1
        if _half_width(paired_difference(*(cell * enough / n for cell in table))) <= bound:
            digits = 10 ** max(0, len(str(enough)) - 2)
            return f"about {-(-enough // digits) * digits} would"
    return "no practical number would"


def accuracy_evidence(
    tally: Tally,
    reference: Tally | None,
    how: How,
    where: str,
    when: str,
    environment: dict[str, Scalar],
) -> tuple[Evidence, ...]:
    """``top1``, ``top5`` and, against the float model's tally, ``accuracy_drop``; unit ``fraction``.

    Without labelled samples each is null with its reason.
    """
    n = len(tally.top1)

    def figure(what: str, value: float | None, interval: Interval | None, reason: str) -> Evidence:
        return Evidence(
            what=what,
            unit="fraction",
            value=value,
            how=None if value is None else how,
            where=where,
            when=when,
            n=n,
            interval=interval,
            environment=environment,
            reason=reason,
        )

    unlabelled = "" if n else "no labelled sample was given"
    few = f"the model has only {tally.classes} classes" if n and tally.classes <= 5 else ""
    found = []
    for what, hits, missing in (("top1", tally.top1, unlabelled), ("top5", tally.top5, unlabelled or few)):
        share = None if missing else sum(hits) / n
        found.append(figure(what, share, None if missing else wilson(sum(hits), n), missing))
    if reference is None or not n:
        reason = unlabelled or "the float model was not evaluated"
        return (*found, figure("accuracy_drop", None, None, reason))
    drop = accuracy_drop(reference.top1, tally.top1)
    return (*found, figure("accuracy_drop", drop.value, drop.interval, ""))
