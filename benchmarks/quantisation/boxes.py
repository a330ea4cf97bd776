"""From NanoDet's outputs to boxes, and how much of the float model's boxes another one finds.

Li et al., "Generalized Focal Loss" (2020): each side of a box is a distribution over distances in strides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIDES = (8, 16, 32)
LEAST_SCORE = 0.35
MOST_OVERLAP = 0.6
SAME_BOX = 0.5


@dataclass(frozen=True)
class Boxes:
    """``corners`` (n, 4) as left, top, right, bottom in pixels; ``scores`` and ``classes`` (n,)."""

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


def decode(outputs: Mapping[str, NDArray[Any]], size: int) -> Boxes:
    """NanoDet's six outputs, (1, cells, 80) of probabilities and (1, cells, 44) of sides, for a square
    picture of ``size`` pixels. Boxes of a class that overlap a better one of it are dropped."""
    corners, scores = [], []
    by_cells = {array.shape[1:]: np.asarray(array[0], np.float64) for array in outputs.values()}
    for stride in STRIDES:
        side = -(-size // stride)
        cells = side * side
        spread = by_cells[cells, 44].reshape(cells, 4, 11)
        weights = np.exp(spread - spread.max(axis=2, keepdims=True))
        reach = (weights / weights.sum(axis=2, keepdims=True)) @ np.arange(11) * stride
        ticks = (np.arange(side) + 0.5) * stride
        x, y = np.tile(ticks, side), np.repeat(ticks, side)
        corners.append(np.stack([x - reach[:, 0], y - reach[:, 1], x + reach[:, 2], y + reach[:, 3]], axis=1))
        scores.append(by_cells[cells, 80])
    return _kept(np.concatenate(corners), np.concatenate(scores))


def _kept(corners: NDArray[np.float64], scores: NDArray[np.float64]) -> Boxes:
    cells, classes = np.nonzero(scores >= LEAST_SCORE)
    found = Boxes(corners[cells], scores[cells, classes], classes.astype(np.int64))
    order = np.argsort(-found.scores, kind="stable")
    keep: list[int] = []
    for one in order:
        rivals = [other for other in keep if found.classes[other] == found.classes[one]]
        if not rivals or overlap(found.corners[one : one + 1], found.corners[rivals]).max() <= MOST_OVERLAP:
            keep.append(int(one))
    return Boxes(found.corners[keep], found.scores[keep], found.classes[keep])


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each of (n, 4) with each of (m, 4): (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inner
    return np.asarray(np.where(union > 0, inner / np.where(union > 0, union, 1), 0.0))


def matched(expected: Boxes, found: Boxes) -> int:
    """How many of ``found``, the surest first, are a box of ``expected``: same class, IoU of at least 0.5,
    each taken once."""
    if not len(expected.scores) or not len(found.scores):
        return 0
    shares = overlap(found.corners, expected.corners)
    shares[found.classes[:, None] != expected.classes[None]] = 0.0
    free, hits = np.ones(len(expected.scores), bool), 0
    for row in shares:
        best = int(np.argmax(np.where(free, row, 0.0)))
        if free[best] and row[best] >= SAME_BOX:
            free[best] = False
            hits += 1
    return hits
