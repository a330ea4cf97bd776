"""The layers of a graph that have weights: what their weights and inputs are, as matrices.

A convolution is a matrix product over patches (im2col): ``weights`` of shape (groups, rows, depth), the
input of one output position as a vector of ``depth`` values per group. Gemm and MatMul have one group. So
whatever is said of a matrix product (least squares, rounding, bias) holds for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYER_OPS = frozenset({"Conv", "Gemm", "MatMul"})

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layer:
    """A node with constant weights. ``bias`` is the initialiser's name, or "" where there is none; a
    MatMul's is what the Add behind it adds.

    ``input`` and ``output`` are the activations' names; ``weight`` the initialiser's.
    """

    node: str
    op: str
    input: str
    output: str
    weight: str
    bias: str
    groups: int
    transposed: bool
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    @property
    def depthwise(self) -> bool:
        return self.groups > 1

    def matrix(self, values: NDArray[Any]) -> NDArray[Any]:
        """The weight initialiser as (groups, rows, depth)."""
        if self.op == "Conv":
            return values.reshape(self.groups, values.shape[0] // self.groups, -1)
        return (values if self.transposed else values.T)[None]

    def unmatrix(self, matrix: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
        """What ``matrix`` made, back in the initialiser's own shape and type."""
        if self.op == "Conv":
            return np.ascontiguousarray(matrix.reshape(like.shape).astype(like.dtype))
        inner = matrix[0] if self.transposed else matrix[0].T
        return np.ascontiguousarray(inner.astype(like.dtype))

    def patches(self, x: NDArray[Any], most: int, seed: int = 0) -> NDArray[np.float32]:
        """At most ``most`` input vectors of one call's input ``x``, shape (groups, positions, depth).

        Positions are drawn without replacement by ``seed``: the same ones for the same shapes, so that the
        float model's and the quantised model's inputs can be paired.
        """
        if self.op != "Conv":
            flat = x.reshape(-1, x.shape[-1])
            return np.asarray(flat[_drawn(len(flat), most, seed)], np.float32)[None]
        spatial = len(self.kernel)
        ends = [(0, 0), (0, 0), *zip(self.pads[:spatial], self.pads[spatial:], strict=True)]
        padded = np.pad(x, ends) if any(self.pads) else x
        span = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        axes = tuple(range(2, 2 + spatial))
        windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=axes)
        steps = tuple(slice(None, None, s) for s in self.strides)
        taps = tuple(slice(None, None, d) for d in self.dilations)
        index: Any = (slice(None), slice(None), *steps, *taps)
        windows = windows[index]
        sizes = (windows.shape[0], *windows.shape[2 : 2 + spatial])
        batch, *place = np.unravel_index(_drawn(int(np.prod(sizes)), most, seed), sizes)
        # (positions, channels, *kernel); the advanced indices are apart, so numpy puts them first
        taken = windows[(batch, slice(None), *place)]
        count, channels = taken.shape[:2]
        grouped = taken.reshape(count, self.groups, (channels // self.groups) * int(np.prod(self.kernel)))
        return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)


def _drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def layers(model: Any, own_bias: bool = True) -> tuple[Layer, ...]:
    """The layers of ``model`` (an onnx ModelProto) in graph order.

    Left out is what can't be written as a product with its own constant weights: weights that several
    nodes share, a Gemm that transposes or scales its input, padding that only the runtime works out. So is a
    Gemm whose bias is shared or computed; with ``own_bias`` False it stays, as a layer without a bias, for
    those who change nothing but weights.
    """
    return tuple(_found(model, own_bias))


def _found(model: Any, own_bias: bool) -> Iterator[Layer]:
    import onnx

    held = {i.name: i for i in model.graph.initializer}
    uses: dict[str, int] = {}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type not in LAYER_OPS or len(node.input) < 2 or not node.name:
            continue
        weight = held.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or uses[weight.name] > 1:
            continue
        if node.input[0] in held:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in held else ""
        if len(node.input) > 2 and node.input[2] and (not bias or uses[bias] > 1):
            if own_bias:
                continue
            bias = ""
        if node.op_type == "MatMul":
            bias = _added(node.output[0], readers, held, uses)
        layer = _layer(node, weight, bias, attributes)
        if layer is not None:
            yield layer


def _added(output: str, readers: dict[str, list[Any]], held: dict[str, Any], uses: dict[str, int]) -> str:
    """The constant vector that the one reader of a MatMul adds to it: its bias, as exporters write it."""
    after = readers.get(output, [])
    if len(after) != 1 or after[0].op_type != "Add":
        return ""
    name = next((i for i in after[0].input if i in held), "")
    if not name or uses[name] > 1 or len(held[name].dims) != 1:
        return ""
    return name


def _layer(node: Any, weight: Any, bias: str, attributes: dict[str, Any]) -> Layer | None:
    common = {
        "node": node.name,
        "op": node.op_type,
        "input": node.input[0],
        "output": node.output[0],
        "weight": weight.name,
        "bias": bias,
    }
    if node.op_type == "Conv":
        kernel = tuple(weight.dims[2:])
        ones = (1,) * len(kernel)
        if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
            return None
        return Layer(
            **common,
            groups=int(attributes.get("group", 1)),
            transposed=False,
            kernel=kernel,
            strides=tuple(attributes.get("strides", ones)),
            dilations=tuple(attributes.get("dilations", ones)),
            pads=tuple(attributes.get("pads", (0,) * (2 * len(kernel)))),
        )
    if len(weight.dims) != 2:
        return None
    if node.op_type == "Gemm":
        plain = all(attributes.get(k, 1.0) == 1.0 for k in ("alpha", "beta"))
        if not plain or attributes.get("transA", 0):
            return None
        return Layer(**common, groups=1, transposed=bool(attributes.get("transB", 0)))
    return Layer(**common, groups=1, transposed=False)
