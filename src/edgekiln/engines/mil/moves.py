"""Ops that move elements without computing: shape, slice, join, pad, order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.engines.mil.values import MAX_ELEMENTS, Function, flag, flags, integer, ints


def bounded(shape: list[int]) -> list[int]:
    """``shape``, unless it asks for more elements than any real model: then a ValueError."""
    if any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape} is beyond all reason")
    return shape


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """A 0 keeps the length of that axis where the ranks agree; one -1 takes what is left."""
    dims = ints(shape)
    if len(dims) == x.dim():
        dims = [x.shape[i] if n == 0 else n for i, n in enumerate(dims)]
    return x.reshape(dims)


def reshape_like(x: Tensor, ref_tensors: list[Tensor], begins: Any, ends: Any, end_masks: Any) -> Tensor:
    """Each triple (begin, end, end_mask) names the axes of a reference tensor whose lengths come next."""
    shape: list[int] = []
    for ref, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        stop = ref.dim() if flag(open_end) else integer(end)
        shape.extend(ref.shape[integer(begin) : stop])
    return x.reshape(shape)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Axes of length 1 at ``axes``, which count in the result."""
    rank = x.dim() + axes.numel()
    for axis in sorted(a % rank for a in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of length 1: those named, or all."""
    if axes is None:
        return x.squeeze()
    chosen = [a % x.dim() for a in ints(axes)]
    if any(x.shape[a] != 1 for a in chosen):
        raise ValueError(f"axes {chosen} of shape {list(x.shape)} are not all of length 1")
    return x.squeeze(chosen)


def flatten2d(x: Tensor, axis: Tensor | None = None) -> Tensor:
    at = integer(axis, 1)
    at = at + x.dim() if at < 0 else at
    return x.reshape(math.prod(x.shape[:at]), -1)


def _range(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[list[Tensor], list[int]]:
    """The indices taken along each axis (those of a Python slice), and the axes to drop."""
    rank = x.dim()
    starts, stops, steps = ints(begin), ints(end), ints(stride, [1] * rank)
    no_start, no_stop, drop = (flags(mask, rank) for mask in masks)
    taken = []
    for axis in range(rank):
        length = x.shape[axis]
        if drop[axis]:
            first = starts[axis] + length if starts[axis] < 0 else starts[axis]
            if not 0 <= first < length:
                raise ValueError(f"index {starts[axis]} into axis {axis} of length {length}")
            taken.append(torch.tensor([first]))
            continue
        start = None if no_start[axis] else starts[axis]
        stop = None if no_stop[axis] else stops[axis]
        chosen = range(length)[slice(start, stop, steps[axis])]
        taken.append(torch.arange(chosen.start, chosen.stop, chosen.step)[: len(chosen)])
    return taken, [axis for axis in range(rank) if drop[axis]]


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """A Python slice per axis; ``squeeze_mask`` takes one element and drops its axis."""
    taken, dropped = _range(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    for axis, index in enumerate(taken):
        if index.numel() != x.shape[axis] or (index.numel() > 1 and int(index[0]) > int(index[1])):
            x = x.index_select(axis, index)
    return x.squeeze(dropped) if dropped else x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """``x`` with the slice replaced. The update must have the slice's own shape: nothing is broadcast."""
    taken, dropped = _range(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    shape = [index.numel() for index in taken]
    if list(update.shape) != [n for axis, n in enumerate(shape) if axis not in dropped]:
        raise ValueError(f"an update of shape {list(update.shape)} for a slice of shape {shape}")
    result = x.clone()
    if 0 not in shape:
        grid = torch.meshgrid(*taken, indexing="ij")
        result[grid] = update.reshape(shape)
    return result


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """``size`` elements from ``begin`` per axis; -1 takes the rest."""
    for axis, (start, length) in enumerate(zip(ints(begin), ints(size), strict=True)):
        first = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def concat(values: list[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """Values of rank 0 count as vectors of one element, as coremltools writes them into shapes."""
    values = [v.reshape(1) if v.dim() == 0 else v for v in values]
    at = integer(axis)
    if flag(interleave):
        at %= values[0].dim()
        return torch.stack(values, dim=at + 1).flatten(at, at + 1)
    return torch.cat(values, dim=at)


def stack(values: list[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(values, dim=integer(axis))


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Parts of the given sizes, or ``num_splits`` equal ones."""
    at = integer(axis)
    if split_sizes is not None:
        return tuple(torch.split(x, ints(split_sizes), dim=at))
    parts = integer(num_splits)
    if parts < 1 or x.shape[at] % parts:
        raise ValueError(f"axis {at} of length {x.shape[at]} does not split into {parts} equal parts")
    return x.chunk(parts, dim=at)


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """The last ``len(pad) / 2`` axes grow. Reflecting leaves the edge out; replicating repeats it."""
    sides = ints(pad)
    first = x.dim() - len(sides) // 2
    if mode == "constant":
        flat = [n for i in reversed(range(0, len(sides), 2)) for n in sides[i : i + 2]]
        value = 0 if constant_val is None else constant_val.item()
        return functional.pad(x, flat, value=value) if flat else x
    for i in range(0, len(sides), 2):
        axis, length = first + i // 2, x.shape[first + i // 2]
        if mode == "reflect" and max(sides[i], sides[i + 1]) >= length:
            raise ValueError(f"reflecting {sides[i : i + 2]} elements of an axis of length {length}")
        index = torch.arange(-sides[i], length + sides[i + 1])
        if mode == "reflect":
            index = (length - 1) - ((length - 1) - index.abs()).abs() if length > 1 else index * 0
        elif mode == "replicate":
            index = index.clamp(0, length - 1)
        else:
            raise ValueError(f"pad has no mode {mode}")
        x = x.index_select(axis, index)
    return x


def tile(x: Tensor, reps: Tensor) -> Tensor:
    times = ints(reps)
    bounded([n * t for n, t in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(ints(perm))


def fill(shape: Tensor, value: Tensor | None = None) -> Tensor:
    dims = bounded(ints(shape))
    return torch.zeros(dims) if value is None else value.reshape([]).expand(dims)


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.zeros(ref_tensor.shape) if value is None else value.reshape([]).expand(ref_tensor.shape)


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    bounded([math.ceil(abs(float(end) - float(start)) / max(abs(float(step)), 1e-30))])
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def shape_of(x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape), dtype=torch.int32)


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(ints(axes, list(range(x.dim()))))


def reverse_sequence(
    x: Tensor, lengths: Tensor, seq_axis: Tensor | None = None, batch_axis: Tensor | None = None
) -> Tensor:
    """Reverse the first ``lengths[i]`` elements of item i of the batch."""
    along, over = integer(seq_axis), integer(batch_axis)
    parts = []
    for item, length in zip(x.unbind(over), ints(lengths), strict=True):
        axis = along - 1 if along % x.dim() > over % x.dim() else along
        head, tail = torch.split(item, [length, item.shape[axis] - length], dim=axis)
        parts.append(torch.cat([head.flip(axis), tail], dim=axis))
    return torch.stack(parts, dim=over)


def band_part(x: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
    """Zero all that lies more than ``lower`` below or ``upper`` above the diagonal; -1 keeps a side."""
    rows, columns = x.shape[-2:]
    m, n = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    below, above = integer(lower, -1), integer(upper, -1)
    keep = ((m - n <= below) | (below < 0)) & ((n - m <= above) | (above < 0))
    return torch.where(keep, x, torch.zeros_like(x))


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | None = None) -> Tensor:
    at = integer(axis) % x.dim()
    return x.unfold(at, integer(size), integer(stride, 1)).movedim(-1, at + 1)


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """Depth is (block row, block column, channel), as TensorFlow has it; ``pixel_shuffle`` is PyTorch's."""
    n, c, h, w = x.shape
    b = integer(block_size)
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b)


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = integer(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // b, w // b)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    return functional.pixel_shuffle(x, integer(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    return functional.pixel_unshuffle(x, integer(downscale_factor))


def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """Blocks of the padded picture become items of the batch, as TensorFlow orders them."""
    (top, bottom), (left, right) = paddings.tolist()
    x = functional.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    b0, b1 = ints(block_shape)
    return (
        x.reshape(n, c, h // b0, b0, w // b1, b1).permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // b0, w // b1)
    )


def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The inverse of ``space_to_batch``; ``crops`` cuts the edges."""
    (top, bottom), (left, right) = crops.tolist()
    b0, b1 = ints(block_shape)
    n, c, h, w = x.shape
    x = x.reshape(b0, b1, n // (b0 * b1), c, h, w).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(n // (b0 * b1), c, h * b0, w * b1)
    return x[:, :, top : h * b0 - bottom, left : w * b1 - right]


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


MOVES: dict[str, Function] = {
    "band_part": band_part,
    "batch_to_space": batch_to_space,
    "concat": concat,
    "crop": crop,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "fill": fill,
    "fill_like": fill_like,
    "flatten2d": flatten2d,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "shape": shape_of,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
}
OPS: dict[str, Function] = {**MOVES, "range_1d": range_1d}
