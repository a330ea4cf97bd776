"""Resize: one matrix per axis says what ONNX means; torch's own interpolation where it means the same.

The rules are those of the Resize operator in the ONNX specification (opset 11 to 19). Each axis is
resized by a matrix [out, in] that holds the weight of each input element. Where F.interpolate has the
same matrices it is used; else nearest picks by index, and the others multiply with the matrix.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.layout import pick
from edgekiln.compile.torch_graph.node import Lowered, Node, Translate

Matrix = NDArray[np.float64]
TORCH_MODES = {("nearest", 3): "nearest", ("nearest", 4): "nearest", ("linear", 3): "linear",
               ("linear", 4): "bilinear", ("cubic", 4): "bicubic"}  # fmt: skip


def resize(node: Node) -> Lowered:
    mode = node.attribute("mode", "nearest")
    shape = node.shape(0)
    scales, sizes, axes = _extent(node)
    matrices = {
        axis: _matrix(node, mode, shape[axis], sizes[axis], scales[axis])
        for axis in axes
        if sizes[axis] != shape[axis] or scales[axis] != 1.0
    }
    matrices = {a: m for a, m in matrices.items() if not np.array_equal(m, np.eye(len(m)))}
    if not matrices:
        return (lambda x: x.clone()), [node.name(0)]
    own = _torch_own(mode, shape, sizes, matrices)
    if own is not None:
        return (lambda x: functional.interpolate(x, **own)), [node.name(0)]
    if mode == "nearest":
        return pick(node, {axis: m.argmax(1) for axis, m in matrices.items()})
    order = sorted(matrices)
    kept = [node.keep(matrices[a].astype(np.float32)) for a in order]
    return (lambda x, *m: _multiplied(x, dict(zip(order, m, strict=True)))), [node.name(0), *kept]


def _multiplied(x: Tensor, matrices: dict[int, Tensor]) -> Tensor:
    last = x.dim() - 1
    for axis, matrix in matrices.items():
        x = functional.linear(x.transpose(axis, last), matrix).transpose(axis, last)
    return x


def _extent(node: Node) -> tuple[list[float], list[int], list[int]]:
    """Scale and output size of every axis, and the axes that are named."""
    shape, rank = node.shape(0), node.rank(0)
    axes = [node.axis(a) for a in node.attribute("axes") or range(rank)]
    scales, sizes = [1.0] * rank, list(shape)
    asked = node.ints(3, "", "the size") if node.has(3) else None
    if asked:
        policy = node.attribute("keep_aspect_ratio_policy", "stretch")
        factors = [n / shape[a] for n, a in zip(asked, axes, strict=True)]
        if policy != "stretch":
            one = min(factors) if policy == "not_larger" else max(factors)
            factors = [one] * len(axes)
            asked = [math.floor(one * shape[a] + 0.5) for a in axes]
        for axis, size, factor in zip(axes, asked, factors, strict=True):
            sizes[axis], scales[axis] = size, factor
        return scales, sizes, axes
    given = node.needed(2, "the scale").reshape(-1)
    for axis, scale in zip(axes, given, strict=True):
        scales[axis] = float(scale)
        sizes[axis] = math.floor(shape[axis] * float(scale))
    return scales, sizes, axes


def _matrix(node: Node, mode: str, size: int, made: int, scale: float) -> Matrix:
    """[made, size]: the weight of each input element in each output element."""
    places = _coordinates(node, size, made, scale)
    taps = np.arange(size)
    if mode == "nearest":
        return (_nearest(node, places, size)[:, None] == taps).astype(np.float64)
    if mode not in {"linear", "cubic"}:
        node.refuse(f"its mode is '{mode}'")
    shrink = min(scale, 1.0) if node.attribute("antialias", 0) else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / shrink)
    base = np.floor(places)[:, None].astype(np.int64) + np.arange(-reach + 1, reach + 1)
    distance = np.abs(base - places[:, None]) * shrink
    weights = np.maximum(0.0, 1.0 - distance)
    if mode == "cubic":
        weights = _cubic(distance, node.attribute("cubic_coeff_a", -0.75))
    outside = (base < 0) | (base >= size)
    if node.attribute("exclude_outside", 0):
        weights = np.where(outside, 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    elif shrink < 1.0:
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((made, size))
    rows = np.broadcast_to(np.arange(made)[:, None], base.shape)
    np.add.at(matrix, (rows, base.clip(0, size - 1)), weights)
    return matrix


def _coordinates(node: Node, size: int, made: int, scale: float) -> Matrix:
    """Where each output element lies on the input axis."""
    x = np.arange(made, dtype=np.float64)
    mode = node.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        centre = size / 2 * (1 - made / (scale * size))
        return centre + (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if made > 1 else x * 0
    if mode == "align_corners":
        return x * (size - 1) / (made - 1) if made > 1 else x * 0
    if mode == "asymmetric":
        return x / scale
    node.refuse(f"its coordinate_transformation_mode is '{mode}'")


def _nearest(node: Node, places: Matrix, size: int) -> NDArray[np.int64]:
    mode = node.attribute("nearest_mode", "round_prefer_floor")
    rules: dict[str, Any] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    # Divided scales leave whole numbers a rounding error away from themselves.
    near = np.round(places * 2) / 2
    exact = np.where(np.abs(near - places) < 1e-6, near, places)
    picked: NDArray[np.int64] = rules[mode](exact).astype(np.int64).clip(0, size - 1)
    return picked


def _cubic(distance: Matrix, a: float) -> Matrix:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    kernel: Matrix = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return kernel


def _torch_own(
    mode: str, shape: tuple[int, ...], sizes: list[int], matrices: dict[int, Matrix]
) -> dict[str, Any] | None:
    """F.interpolate's arguments where it resizes each axis by the very same matrix."""
    name = TORCH_MODES.get((mode, len(shape)))
    if name is None or any(axis < 2 for axis in matrices):
        return None
    for corners in (None,) if mode == "nearest" else (False, True):
        same = all(
            np.allclose(_torch_matrix(name, shape[a], sizes[a], corners), matrices.get(a, np.eye(shape[a])), atol=1e-5)
            for a in range(2, len(shape))
        )  # fmt: skip
        if same:
            return {"size": sizes[2:], "mode": name, "align_corners": corners}
    return None


def _torch_matrix(name: str, size: int, made: int, corners: bool | None) -> NDArray[np.float32]:
    """[made, size]: what F.interpolate does along one axis, found by resizing the unit vectors."""
    flat = name == "linear"
    unit = torch.eye(size)
    given = unit.reshape(1, size, size) if flat else unit.reshape(1, size, size, 1)
    one = [made] if flat else [made, 1]
    done: Tensor = functional.interpolate(given, size=one, mode=name, align_corners=corners)
    return done.reshape(size, made).T.numpy()


OPS: dict[str, Translate] = {"Resize": resize}
