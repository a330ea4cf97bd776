"""Translations of layers: convolutions, products with weights, normalisations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.layout import flat_pads
from edgekiln.compile.torch_graph.node import Lowered, Node, Translate
from edgekiln.compile.torch_graph.windows import windows

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def convolution(node: Node) -> Lowered:
    """Equal padding on both sides goes into the convolution; uneven padding is a Pad before it."""
    w = windows(node, node.shape(1)[2:])
    group, call = node.attribute("group", 1), CONVOLUTIONS.get(len(w.kernel))
    if call is None:
        node.refuse(f"it has {len(w.kernel)} spatial axes")
    pads = flat_pads(w.before, w.after)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if w.even:
            return call(x, weight, bias, w.strides, w.before, w.dilations, group)  # type: ignore[operator]
        return call(functional.pad(x, pads), weight, bias, w.strides, 0, w.dilations, group)  # type: ignore[operator]

    return run, node.names


def transposed_convolution(node: Node) -> Lowered:
    """What is padded more on one side than on the other is cut off after."""
    kernel = node.shape(1)[2:]
    w = windows(node, kernel, padded=False)
    call, group = TRANSPOSED.get(len(kernel)), node.attribute("group", 1)
    if call is None:
        node.refuse(f"it has {len(kernel)} spatial axes")
    extra = list(node.attribute("output_padding") or [0] * len(kernel))
    sizes, mode = node.shape(0)[2:], node.attribute("auto_pad", "NOTSET")
    before, after = list(w.before), list(w.after)
    asked = node.attribute("output_shape")
    if mode.startswith("SAME") and asked is None:
        asked = [n * s for n, s in zip(sizes, w.strides, strict=True)]
    for i, size in enumerate(asked[-len(kernel) :] if asked else []):
        reach = (kernel[i] - 1) * w.dilations[i] + 1
        total = w.strides[i] * (sizes[i] - 1) + extra[i] + reach - size
        if total < 0:
            extra[i], total = extra[i] - total, 0
        half = total // 2
        before[i], after[i] = (half, total - half) if mode == "SAME_UPPER" else (total - half, half)
    if any(e >= max(s, d) and e for e, s, d in zip(extra, w.strides, w.dilations, strict=True)):
        node.refuse(f"its output_padding {extra} reaches a whole stride")
    shared = [min(b, a) for b, a in zip(before, after, strict=True)]
    cuts = flat_pads(
        [s - b for s, b in zip(shared, before, strict=True)],
        [s - a for s, a in zip(shared, after, strict=True)],
    )

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = call(x, weight, bias, w.strides, shared, extra, group, w.dilations)  # type: ignore[operator]
        return functional.pad(y, cuts) if any(cuts) else y

    return run, node.names


def gemm(node: Node) -> Lowered:
    """A constant second factor is a linear layer; alpha and beta are multiplied into its weights."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    turn_a, turn_b = node.attribute("transA", 0), node.attribute("transB", 0)
    weight, bias = node.constant(1), node.constant(2)
    plain = bias is None or (bias.size == bias.shape[-1:][0] if bias.ndim else False)
    if weight is not None and plain and (bias is not None) == node.has(2) and not turn_a:
        matrix = np.asarray((weight if turn_b else weight.T) * np.asarray(alpha, weight.dtype))
        names: list[str | None] = [node.name(0), node.keep(matrix)]
        if bias is not None:
            row = np.broadcast_to(bias.reshape(-1), (matrix.shape[0],))
            names.append(node.keep(row * np.asarray(beta, row.dtype)))
        return functional.linear, names

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = torch.matmul(a.T if turn_a else a, b.T if turn_b else b)
        y = y if alpha == 1.0 else y * alpha
        return y if c is None else y + (c if beta == 1.0 else c * beta)

    return run, node.names


def matmul(node: Node) -> Lowered:
    weight = node.constant(1)
    if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f":
        return functional.linear, [node.name(0), node.keep(weight.T)]
    return torch.matmul, node.names


def batch_norm(node: Node) -> Lowered:
    if node.attribute("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        node.refuse("it is in training mode")
    eps = node.attribute("epsilon", 1e-5)
    return (
        lambda x, scale, bias, mean, var: functional.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)
    ), node.names


def instance_norm(node: Node) -> Lowered:
    eps = node.attribute("epsilon", 1e-5)
    return (lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=eps)), node.names


def group_norm(node: Node) -> Lowered:
    """Before opset 21 scale and bias are one per group; torch wants one per channel."""
    groups, eps = node.attribute("num_groups"), node.attribute("epsilon", 1e-5)
    channels = node.shape(0)[1]
    repeat = channels // node.shape(1)[0]

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if repeat > 1:
            scale, bias = scale.repeat_interleave(repeat), bias.repeat_interleave(repeat)
        return functional.group_norm(x, groups, scale, bias, eps)

    return run, node.names


def layer_norm(node: Node) -> Lowered:
    axis, eps = node.axis(node.attribute("axis", -1)), node.attribute("epsilon", 1e-5)
    shape = node.shape(0)[axis:]
    axes = list(range(axis, node.rank(0)))
    told = len([o for o in node.outputs if o]) > 1

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        scale = scale if scale.shape == shape else scale.expand(shape)
        bias = bias if bias is None or bias.shape == shape else bias.expand(shape)
        y = functional.layer_norm(x, shape, scale, bias, eps)
        if not told:
            return y
        mean = torch.mean(x, axes, True)
        return y, mean, torch.rsqrt(torch.mean((x - mean) ** 2, axes, True) + eps)

    return run, node.names


def rms_norm(node: Node) -> Lowered:
    axis, eps = node.axis(node.attribute("axis", -1)), node.attribute("epsilon", 1e-5)
    axes = list(range(axis, node.rank(0)))
    return (lambda x, scale: x * torch.rsqrt(torch.mean(x * x, axes, True) + eps) * scale), node.names


def response_norm(node: Node) -> Lowered:
    size, bias = node.attribute("size"), node.attribute("bias", 1.0)
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    if size % 2 == 0:
        node.refuse(f"its size {size} is even, which torch centres elsewhere")
    return (lambda x: functional.local_response_norm(x, size, alpha, beta, bias)), [node.name(0)]


def length_norm(node: Node) -> Lowered:
    """LpNormalization; a length of zero gives zeros."""
    axis, p = node.axis(node.attribute("axis", -1)), node.attribute("p", 2)

    def run(x: Tensor) -> Tensor:
        length = torch.sum(torch.abs(x), axis, True) if p == 1 else torch.sqrt(torch.sum(x * x, axis, True))
        return torch.where(length == 0, torch.zeros_like(x), x / length)

    return run, [node.name(0)]


def mean_variance_norm(node: Node) -> Lowered:
    axes = [node.axis(a) for a in node.attribute("axes", [0, 2, 3])]

    def run(x: Tensor) -> Tensor:
        centred = x - torch.mean(x, axes, True)
        return centred / (torch.sqrt(torch.mean(centred * centred, axes, True)) + 1e-9)

    return run, [node.name(0)]


def grid_sample(node: Node) -> Lowered:
    mode = node.attribute("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding, corners = node.attribute("padding_mode", "zeros"), bool(node.attribute("align_corners", 0))
    return (lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)), node.names


OPS: dict[str, Translate] = {
    "BatchNormalization": batch_norm,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "GridSample": grid_sample,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": response_norm,
    "LayerNormalization": layer_norm,
    "LpNormalization": length_norm,
    "MatMul": matmul,
    "MeanVarianceNormalization": mean_variance_norm,
    "RMSNormalization": rms_norm,
}
