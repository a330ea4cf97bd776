"""Top-1 and top-5 of a classifier behind the metrics' protocol; the scoring itself is ``prove.accuracy``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.job import MetricOrder
from edgekiln.prove.accuracy import rank, rows, top_class
from edgekiln.prove.metrics.score import Labelled
from edgekiln.records import Dataset, Model, Task


class Hits:
    """Shares of samples that are right, from (n, k) booleans of which the first column decides."""

    def __init__(self, table: NDArray[np.bool_], names: Sequence[str]) -> None:
        self.hits = table[:, 0]
        self.each = table.astype(np.float64)
        shares = table.mean(axis=0) if len(table) else ()
        self.figures = {name: float(share) for name, share in zip(names, shares, strict=False)}

    def at(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = counts @ self.hits.astype(np.float64) / counts.sum(axis=1)
        return found


class Classification:
    task: Task = "classification"
    title = "Top-1"
    likeness = "share of the float model's top classes"
    lower_is_better = False

    def decode(self, outputs: Arrays, inputs: Arrays) -> NDArray[np.float64]:
        """(C,) scores: the first output holds them."""
        return rows(np.asarray(next(iter(outputs.values())))).reshape(-1)

    def truth(self, decoded: NDArray[np.float64]) -> int:
        return int(top_class(decoded)[0])

    def row(self, decoded: NDArray[np.float64], truth: int) -> tuple[bool, bool]:
        place = rank(decoded, truth)
        return place < 1, place < 5

    def scores(self, rows: Sequence[Any]) -> Hits:
        return Hits(np.asarray(rows, bool).reshape(-1, 2), ("top1", "top5"))

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        return Labelled(truths=tuple(s.label for s in dataset.samples))


def make(order: MetricOrder, model: Model) -> Classification:
    """The metric of a classifier; it takes no options."""
    return Classification()
