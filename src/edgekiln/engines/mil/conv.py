"""Convolutions and pooling over one, two or three spatial dimensions, layout (n, C, *D)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.engines.mil.values import Function, flag, integer, ints

_CONV: dict[int, Function] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_BACK: dict[int, Function] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX: dict[int, Function] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Function] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def paddings(
    kind: str, size: list[int], kernel: list[int], strides: list[int], pad: list[int]
) -> list[tuple[int, int]]:
    """(before, after) per spatial dimension; ``kernel`` is the kernel's extent, dilation included."""
    if kind == "valid":
        return [(0, 0)] * len(size)
    if kind == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(size))]
    if kind not in {"same", "same_lower"}:
        raise ValueError(f"pad_type {kind} is unknown")
    pairs = []
    for length, extent, stride in zip(size, kernel, strides, strict=True):
        total = max(0, (math.ceil(length / stride) - 1) * stride + extent - length)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if kind == "same" else (more, less))
    return pairs


def padded(x: Tensor, pairs: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last dimensions (negative numbers cut)."""
    flat = [n for pair in reversed(pairs) for n in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Convolution; uneven padding is applied beforehand."""
    rank = x.dim() - 2
    step, holes = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], holes, strict=True)]
    pairs = paddings(pad_type, list(x.shape[2:]), extent, step, ints(pad, [0] * 2 * rank))
    even = all(a == b for a, b in pairs)
    inside = [a for a, _ in pairs] if even else [0] * rank
    source = x if even else padded(x, pairs)
    result: Tensor = _CONV[rank](source, weight, bias, step, inside, holes, integer(groups, 1))
    return result


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """The whole transposed convolution, then the window that padding and ``output_shape`` leave.

    An ``output_shape`` beyond the whole is filled with the bias, as an output padding is.
    """
    rank = x.dim() - 2
    step, holes = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    whole = _BACK[rank](x, weight, None, step, 0, 0, integer(groups, 1), holes)
    sides = ints(pad, [0] * 2 * rank) if pad_type == "custom" else [0] * 2 * rank
    pairs = []
    for i in range(rank):
        size, before, after = whole.shape[2 + i], sides[2 * i], sides[2 * i + 1]
        if output_shape is not None:
            want = ints(output_shape)[2 + i]
        elif pad_type.startswith("same"):
            want = x.shape[2 + i] * step[i]
        else:
            want = size - before - after
        if pad_type.startswith("same"):
            cut = max(0, size - want)
            before = cut // 2 if pad_type == "same" else cut - cut // 2
        pairs.append((-before, want + before - size))
    result = padded(whole, pairs)
    return result if bias is None else result + bias.reshape([1, -1] + [1] * rank)


def _windows(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: Tensor | None,
) -> tuple[list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Kernel, strides, padding, and padding grown on the far side so that ceil_mode's windows fit."""
    rank = x.dim() - 2
    kernel, step = ints(kernel_sizes), ints(strides, [1] * rank)
    size = list(x.shape[2:])
    pairs = paddings(pad_type, size, kernel, step, ints(pad, [0] * 2 * rank))
    grown = list(pairs)
    if flag(ceil_mode):
        for i, (before, after) in enumerate(pairs):
            total = size[i] + before + after
            count = math.ceil((total - kernel[i]) / step[i]) + 1
            if (count - 1) * step[i] >= size[i] + before and before + after > 0:
                count -= 1
            grown[i] = (before, after + (count - 1) * step[i] + kernel[i] - total)
    return kernel, step, pairs, grown


def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    kernel, step, _, grown = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    result: Tensor = _MAX[len(kernel)](padded(x, grown, -math.inf), kernel, step)
    return result


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Sums divided by the number of elements that count: padding does unless it is excluded, what
    ceil_mode adds never does."""
    kernel, step, pairs, grown = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = _AVERAGE[len(kernel)]
    area = math.prod(kernel)
    ones = torch.ones([1, 1, *x.shape[2:]])
    extra = [(g[0] - p[0], g[1] - p[1]) for g, p in zip(grown, pairs, strict=True)]
    inner = padded(ones, pairs, 0.0 if flag(exclude_padding_from_average) else 1.0)
    counted = pool(padded(inner, extra), kernel, step) * area
    result: Tensor = pool(padded(x, grown), kernel, step) * area / counted.round()
    return result


def l2_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Square root of the sum of squares in each window."""
    kernel, step, _, grown = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = _AVERAGE[len(kernel)](padded(x * x, grown), kernel, step)
    return torch.sqrt(mean * math.prod(kernel))


OPS: dict[str, Function] = {
    "avg_pool": avg_pool,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "l2_pool": l2_pool,
    "max_pool": max_pool,
}
