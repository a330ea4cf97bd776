"""Ops that look up, scatter, sort and select by index.

From iOS 17 on MIL calls a negative index out of bounds, and what an index out of bounds reads undefined:
that is an error here (``strict``), because a program that relies on it may work on one device only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekiln.engines.mil.moves import bounded
from edgekiln.engines.mil.values import Function, flag, integer, number

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _places(indices: Tensor, length: int, strict: bool) -> Tensor:
    """Indices as int64 from 0 up. Raises ValueError for one that means nothing, or nothing defined."""
    index = indices.to(torch.int64)
    if index.numel():
        low, high = int(index.min()), int(index.max())
        if high >= length or low < (0 if strict else -length):
            wrong = low if low < (0 if strict else -length) else high
            raise ValueError(f"index {wrong} into a length of {length} is undefined in MIL")
    return torch.where(index < 0, index + length, index)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    """Shape: ``x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]``."""
    at, batch = integer(axis) % x.dim(), integer(batch_dims)
    index = _places(indices, x.shape[at], strict)
    if batch == 0:
        picked = x.index_select(at, index.reshape(-1))
        return picked.reshape([*x.shape[:at], *index.shape, *x.shape[at + 1 :]])
    lead = list(x.shape[:batch])
    flat_x = x.reshape([-1, *x.shape[batch:]])
    flat_i = index.reshape([-1, *index.shape[batch:]])
    parts = [
        a.index_select(at - batch, i.reshape(-1)).reshape(
            [*a.shape[: at - batch], *i.shape, *a.shape[at - batch + 1 :]]
        )
        for a, i in zip(flat_x, flat_i, strict=True)
    ]
    return torch.stack(parts).reshape([*lead, *parts[0].shape])


def gather_along_axis(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    at = integer(axis)
    return torch.take_along_dim(x, _places(indices, x.shape[at], strict), dim=at)


def _tuples(indices: Tensor, shape: list[int], strict: bool) -> tuple[Tensor, ...]:
    """The last axis of ``indices`` as one index per leading axis of ``shape``."""
    return tuple(_places(part, shape[i], strict) for i, part in enumerate(indices.unbind(-1)))


def gather_nd(
    x: Tensor,
    indices: Tensor,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    """The last axis of ``indices`` addresses leading axes of ``x``."""
    batch = integer(batch_dims)
    if batch == 0:
        return x[_tuples(indices, list(x.shape), strict)]
    lead = list(x.shape[:batch])
    flat_x = x.reshape([-1, *x.shape[batch:]])
    flat_i = indices.reshape([-1, *indices.shape[batch:]])
    parts = [a[_tuples(i, list(a.shape), strict)] for a, i in zip(flat_x, flat_i, strict=True)]
    return torch.stack(parts).reshape([*lead, *parts[0].shape])


def _combine(data: Tensor, where: tuple[Tensor, ...], updates: Tensor, mode: str) -> Tensor:
    """Write or accumulate ``updates`` at ``data[where]``, each in turn where an index comes twice."""
    result = data.clone()
    if mode == "update":
        result[where] = updates
        return result
    if mode == "add":
        return result.index_put_(where, updates, accumulate=True)
    if mode == "sub":
        return result.index_put_(where, -updates, accumulate=True)
    functions: dict[str, Function] = {
        "mul": torch.mul,
        "div": torch.div,
        "max": torch.maximum,
        "min": torch.minimum,
    }
    if mode not in functions:
        raise ValueError(f"scatter has no mode {mode}")
    rows = torch.stack([w.reshape(-1) for w in where], dim=-1)
    flat = updates.reshape([rows.shape[0], *data.shape[len(where) :]])
    for row, update in zip(rows.tolist(), flat, strict=True):
        result[tuple(row)] = functions[mode](result[tuple(row)], update)
    return result


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    """Slices of ``updates`` along ``axis`` into ``data`` at ``indices``."""
    at = integer(axis) % data.dim()
    index = _places(indices, data.shape[at], strict)
    moved = updates.movedim(list(range(at, at + index.dim())), list(range(index.dim())))
    return _combine(data.movedim(at, 0), (index,), moved, mode).movedim(0, at)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    """Each element of ``updates`` to its own place along ``axis``."""
    at = integer(axis) % data.dim()
    index = _places(indices, data.shape[at], strict)
    if mode == "update":
        return data.scatter(at, index, updates)
    if mode == "sub":
        return data.scatter_reduce(at, index, -updates, "sum")
    if mode == "div":
        return data.scatter_reduce(at, index, 1 / updates, "prod")
    if mode not in _REDUCE:
        raise ValueError(f"scatter_along_axis has no mode {mode}")
    return data.scatter_reduce(at, index, updates, _REDUCE[mode])


def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: Tensor | None = None,
    *,
    strict: bool,
) -> Tensor:
    return _combine(data, _tuples(indices, list(data.shape), strict), updates, mode)


def argsort(x: Tensor, axis: Tensor | None = None, ascending: Tensor | None = None) -> Tensor:
    return torch.argsort(x, dim=integer(axis, -1), descending=not flag(ascending), stable=True)


def topk(
    x: Tensor,
    k: Tensor | None = None,
    axis: Tensor | None = None,
    ascending: Tensor | None = None,
    sort: Tensor | None = None,
    return_indices: Tensor | None = None,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...] | Tensor:
    """Equal elements come in the order of their places. ``sort=False`` leaves the order open: sorted here."""
    at, count = integer(axis, -1), integer(k, 1)
    values, places = torch.sort(x, dim=at, descending=not flag(ascending), stable=True)
    count = x.shape[at] if count == -1 else count
    values, places = values.narrow(at, 0, count), places.narrow(at, 0, count)
    return (values, places) if flag(return_indices, True) else values


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | None = None,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """An index outside the vector gives a vector of ``off_value`` alone."""
    size = integer(one_hot_vector_size)
    bounded([*indices.shape, size])
    hot = indices[..., None] == torch.arange(size)
    at = integer(axis, -1)
    hot = hot.movedim(-1, at % (indices.dim() + 1))
    on = torch.tensor(1) if on_value is None else on_value
    off = torch.tensor(0) if off_value is None else off_value
    return torch.where(hot, on, off)


def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x)


def cumsum(
    x: Tensor, axis: Tensor | None = None, exclusive: Tensor | None = None, reverse: Tensor | None = None
) -> Tensor:
    """Running sums; ``exclusive`` leaves each element itself out."""
    at = integer(axis)
    source = x.flip(at) if flag(reverse) else x
    total = source.cumsum(at)
    if flag(exclusive):
        total = total - source
    return total.flip(at) if flag(reverse) else total


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box with many; corners (x0, y0, x1, y1)."""
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return shared / (area + (box[2:] - box[:2]).prod() - shared)


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    max_boxes: Tensor | None = None,
    per_class_suppression: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes by falling best score, each removing those that overlap it. Places beyond the number of boxes
    that survive hold zeros, and -1 as index (MIL leaves them open)."""
    images, _, classes = scores.shape
    limit = integer(max_boxes)
    out_boxes, out_scores = torch.zeros(images, limit, 4), torch.zeros(images, limit, classes)
    out_index = torch.full((images, limit), -1)
    counts = torch.zeros(images, dtype=torch.int64)
    for image in range(images):
        centre, size = boxes[image, :, :2], boxes[image, :, 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
        best, label = scores[image].max(dim=1)
        order = torch.argsort(best, descending=True, stable=True)
        order = order[best[order] >= number(score_threshold)]
        chosen: list[int] = []
        while order.numel() and len(chosen) < limit:
            first = order[0]
            chosen.append(int(first))
            rest = order[1:]
            away = _overlap(corners[first], corners[rest]) <= number(iou_threshold)
            if flag(per_class_suppression):
                away |= label[rest] != label[first]
            order = rest[away]
        out_boxes[image, : len(chosen)] = boxes[image, chosen]
        out_scores[image, : len(chosen)] = scores[image, chosen]
        out_index[image, : len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
        counts[image] = len(chosen)
    return out_boxes, out_scores, out_index, counts


STRICT: dict[str, Function] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
"""Ops whose meaning depends on the opset: they take ``strict``."""

OPS: dict[str, Function] = {
    "argsort": argsort,
    "cumsum": cumsum,
    "non_maximum_suppression": non_maximum_suppression,
    "non_zero": non_zero,
    "one_hot": one_hot,
    "topk": topk,
}
