"""From a detector's raw outputs to boxes in the frame, by the declared layout of its head.

``yolo``     (1, 4 + C, N): centre, size in pixels, class scores, as Ultralytics exports it
``nanodet``  per stride scores (1, N, C) and distances (1, N, 4 * bins), or both in one
             (1, sum N, C + 4 * bins): each side's distance is the mean of its softmax over the bins, times
             the stride (Li et al., Generalized Focal Loss, NeurIPS 2020)
``boxes``    already decoded: (N, 6) of x1, y1, x2, y2, score, class; or (N, 4) with (N, C) scores; or (N, 4)
             with (N,) scores and (N,) classes. A leading axis of 1 is dropped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.job import MetricOrder
from edgekiln.records import Record

Found: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""(n, 4) x1, y1, x2, y2 in pixels of the frame, (n,) scores, (n,) classes."""
MOST_BEFORE_NMS = 2000


class Head(Record, frozen=True, kw_only=True):
    """How a detector's outputs are read. ``height`` and ``width`` are the frame's."""

    height: int
    width: int
    order: MetricOrder


def _bad(why: str) -> BadInput:
    cure = "Check [metric] decoder, outputs, bins and strides against the model's outputs"
    return BadInput("decoding the detections", "the outputs", why, cure)


def _best(boxes: NDArray[Any], scores: NDArray[Any], order: MetricOrder) -> Found:
    """Every (box, class) whose score reaches ``order.score``, from (n, 4) and (n, C)."""
    row, kind = np.nonzero(scores >= order.score)
    return boxes[row].astype(np.float64), scores[row, kind].astype(np.float64), kind.astype(np.int64)


def _yolo(outputs: Sequence[NDArray[Any]], head: Head) -> Found:
    values = np.asarray(outputs[0], np.float64)
    if len(outputs) != 1 or values.ndim != 3 or values.shape[1] < 5:
        shapes = [o.shape for o in outputs]
        raise _bad(f"'yolo' takes one output (1, 4 + classes, boxes), these are {shapes}")
    x, y, w, h = values[0, :4]
    return _best(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), values[0, 4:].T, head.order)


def _nanodet(outputs: Sequence[NDArray[Any]], head: Head) -> Found:
    order, columns = head.order, 4 * head.order.bins
    tables = [np.asarray(o, np.float64).reshape(-1, o.shape[-1]) for o in outputs]
    if len(tables) == 1:
        scores, sides = tables[0][:, :-columns], tables[0][:, -columns:]
    else:
        ordered = sorted(tables, key=lambda t: -len(t))
        wide = [t for t in ordered if t.shape[1] == columns]
        rest = [t for t in ordered if t.shape[1] != columns]
        if not wide or [len(t) for t in wide] != [len(t) for t in rest]:
            raise _bad(f"no pairs of scores and {columns} distances in {[t.shape for t in tables]}")
        scores, sides = np.concatenate(rest), np.concatenate(wide)
    centres, strides = _centres(head)
    if len(centres) != len(scores) or scores.shape[1] < 1:
        raise _bad(f"{len(scores)} cells, where strides {list(order.strides)} give {len(centres)}")
    if order.logits:
        scores = 1 / (1 + np.exp(-scores))
    spread = np.exp(sides - sides.max(axis=1, keepdims=True)).reshape(-1, 4, order.bins)
    reach = (spread / spread.sum(2, keepdims=True)) @ np.arange(order.bins) * strides[:, None]
    boxes = np.concatenate([centres - reach[:, :2], centres + reach[:, 2:]], 1)
    return _best(boxes, scores, order)


def _centres(head: Head) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 2) centres x, y of all cells in pixels, and (n,) strides; the smallest stride first."""
    centres, strides = [], []
    for stride in sorted(head.order.strides):
        rows, columns = -(-head.height // stride), -(-head.width // stride)
        y, x = np.mgrid[:rows, :columns]
        centres.append((np.stack([x.ravel(), y.ravel()], 1) + head.order.offset) * stride)
        strides.append(np.full(rows * columns, float(stride)))
    return np.concatenate(centres), np.concatenate(strides)


def _boxes(outputs: Sequence[NDArray[Any]], head: Head) -> Found:
    tables = [np.asarray(o, np.float64) for o in outputs]
    tables = [
        t[0] if t.ndim > 1 and t.shape[0] == 1 and t.ndim > (i == 0) + 1 else t for i, t in enumerate(tables)
    ]
    scale = np.array([head.width, head.height] * 2, float) if head.order.normalised else np.ones(4)
    if len(tables) == 1 and tables[0].ndim == 2 and tables[0].shape[1] == 6:
        values = tables[0][tables[0][:, 4] >= head.order.score]
        return values[:, :4] * scale, values[:, 4], values[:, 5].round().astype(np.int64)
    shapes = [t.shape for t in tables]
    if len(tables) not in (2, 3) or tables[0].ndim != 2 or tables[0].shape[1] != 4:
        raise _bad(f"'boxes' takes (n, 6), or (n, 4) with scores and classes, the outputs are {shapes}")
    if len({len(t) for t in tables}) != 1:
        raise _bad(f"the outputs are not of one length: {shapes}")
    if len(tables) == 2:
        return _best(tables[0] * scale, tables[1].reshape(len(tables[0]), -1), head.order)
    scores, kinds = tables[1].reshape(-1), tables[2].reshape(-1)
    keep = scores >= head.order.score
    return tables[0][keep] * scale, scores[keep], kinds[keep].round().astype(np.int64)


DECODERS: dict[str, Callable[[Sequence[NDArray[Any]], Head], Found]] = {
    "yolo": _yolo,
    "nanodet": _nanodet,
    "boxes": _boxes,
}


def classes_of(order: MetricOrder, shapes: Sequence[tuple[int | str, ...]]) -> int | None:
    """How many classes a head of these output shapes tells apart; None where they don't say."""
    last = [s[-1] for s in shapes if s and isinstance(s[-1], int)]
    first = shapes[0] if shapes else ()
    if order.decoder == "yolo":
        return first[1] - 4 if len(first) == 3 and isinstance(first[1], int) else None
    if order.decoder == "nanodet":
        return (
            last[0] - 4 * order.bins
            if len(shapes) == 1 and last
            else next((n for n in last if n != 4 * order.bins), None)
        )
    return last[1] if len(shapes) == 2 and len(last) == 2 and last[1] > 1 else None


def detections(outputs: Sequence[NDArray[Any]], head: Head) -> Found:
    """Decoded, without empty boxes, after suppression per class, the ``order.most`` best by score."""
    order = head.order
    boxes, scores, kinds = DECODERS[str(order.decoder)](outputs, head)
    sound = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & np.isfinite(scores)
    boxes, scores, kinds = boxes[sound], scores[sound], kinds[sound]
    first = np.argsort(-scores, kind="stable")[:MOST_BEFORE_NMS]
    boxes, scores, kinds = boxes[first], scores[first], kinds[first]
    kept = suppressed(boxes, kinds, order.iou, order.most)
    return boxes[kept], scores[kept], kinds[kept]


def suppressed(
    boxes: NDArray[np.float64], kinds: NDArray[np.int64], iou: float, most: int
) -> NDArray[np.int64]:
    """The first ``most`` indices that greedy suppression keeps of (n, 4) boxes in falling order of score,
    class by class.
    """
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    area = (right - left) * (bottom - top)
    alive, kept = np.arange(len(boxes)), list[int]()
    while len(alive) and len(kept) < most:
        i, rest = int(alive[0]), alive[1:]
        kept.append(i)
        width = np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])
        height = np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])
        both = np.maximum(width, 0) * np.maximum(height, 0)
        share = both / (area[i] + area[rest] - both)
        alive = rest[(share <= iou) | (kinds[rest] != kinds[i])]
    return np.asarray(kept, np.int64)
