"""Multiply-accumulates and floating-point operations of one node, per ONNX operator.

A rule reads the shapes of a node's inputs and outputs. It raises Unknown rather than count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekiln.model.shapes import Known

if TYPE_CHECKING:
    from onnx import NodeProto

Shape = tuple[int, ...]
Work = tuple[int, int]
"""(multiply-accumulates, floating-point operations)."""


class Unknown(Exception):
    """A node that can't be counted; the text says why."""


class Operands:
    """Shapes and attributes of a node, asked for by rules."""

    def __init__(self, node: NodeProto, known: Known) -> None:
        self._node = node
        self._known = known

    def input(self, index: int) -> Shape:
        """Shape of input ``index``. Raises Unknown."""
        name = self._node.input[index] if index < len(self._node.input) else ""
        return self._shape(name, f"input {index}")

    def output(self, index: int = 0) -> Shape:
        """Shape of output ``index``. Raises Unknown."""
        name = self._node.output[index] if index < len(self._node.output) else ""
        return self._shape(name, f"output {index}")

    def any_output(self) -> Shape:
        """Shape of the first output that has a name: recurrent operators may leave some out."""
        names = [o for o in self._node.output if o]
        return self._shape(names[0] if names else "", "output")

    def has(self, index: int) -> bool:
        return index < len(self._node.input) and bool(self._node.input[index])

    def _shape(self, name: str, what: str) -> Shape:
        dims = self._known.fixed(name) if name else None
        if dims is None:
            open_dims = self._known.shape(name)
            shown = "unknown" if open_dims is None else "x".join(map(str, open_dims))
            raise Unknown(f"the shape of {what} '{name}' is {shown}")
        return dims

    def attribute(self, name: str, default: Any) -> Any:
        import onnx

        for attribute in self._node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default


def _macs(count: int) -> Work:
    return count, 2 * count


# ---------------------------------------------------------------- operators that multiply


def _conv(weight: int) -> Callable[[Operands], Work]:
    """Output elements x (input channels of a group x kernel); weight is [M, C/g, *kernel]."""

    def rule(of: Operands) -> Work:
        return _macs(math.prod(of.output()) * math.prod(of.input(weight)[1:]))

    return rule


def _conv_transpose(of: Operands) -> Work:
    """Every input element meets (output channels of a group x kernel); weight is [C, M/g, *kernel]."""
    return _macs(math.prod(of.input(0)) * math.prod(of.input(1)[1:]))


def _matmul(left: int) -> Callable[[Operands], Work]:
    """Batched product: output elements x the length of the shared axis, the left operand's last."""

    def rule(of: Operands) -> Work:
        shape = of.input(left)
        if not shape:
            raise Unknown("an operand is a scalar")
        return _macs(math.prod(of.output()) * shape[-1])

    return rule


def _gemm(of: Operands) -> Work:
    rows, columns = of.input(0)[-2:]
    shared = rows if of.attribute("transA", 0) else columns
    return _macs(math.prod(of.output()) * shared)


def _matmul_nbits(of: Operands) -> Work:
    return _macs(math.prod(of.input(0)) * int(of.attribute("N", 0)))


def _recurrent(gates: int) -> Callable[[Operands], Work]:
    """X [T, B, I], W [D, gates*H, I], R [D, gates*H, H]: two products per gate, step and direction."""

    def rule(of: Operands) -> Work:
        x, w, r = of.input(0), of.input(1), of.input(2)
        steps, batch, width = (x[1], x[0], x[2]) if of.attribute("layout", 0) else x
        macs = steps * batch * w[0] * w[1] * (width + r[2])
        # On top, each gate's activation and the products that form the new state.
        return macs, 2 * macs + steps * batch * w[0] * (w[1] + (gates + 1) * r[2])

    return rule


def _einsum(of: Operands) -> Work:
    """The product of the sizes of all letters, for two operands."""
    equation = of.attribute("equation", b"").decode().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "." in equation or len(terms) > 2:
        raise Unknown(f"Einsum '{equation}' has an ellipsis or more than two operands")
    sizes = {letter: size for i, t in enumerate(terms) for letter, size in zip(t, of.input(i), strict=True)}
    return _macs(math.prod(sizes.values()))


def _attention(of: Operands) -> Work:
    """ONNX Attention (operator set 23): Q K^T and its product with V; 4-D [B, heads, T, D] only."""
    q, k, v = of.input(0), of.input(1), of.input(2)
    if len(q) != 4:
        raise Unknown("Attention with packed heads is not counted")
    macs = q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
    return macs, 2 * macs + 5 * q[0] * q[1] * q[2] * k[2]


# ---------------------------------------------------------------- the others


def _per_output(flops: int) -> Callable[[Operands], Work]:
    return lambda of: (0, flops * math.prod(of.any_output()))


def _per_input(flops: int) -> Callable[[Operands], Work]:
    return lambda of: (0, flops * math.prod(of.input(0)))


def _variadic(of: Operands) -> Work:
    count = sum(of.has(i) for i in range(64))
    return 0, max(1, count - 1) * math.prod(of.output())


def _pool(of: Operands) -> Work:
    kernel = of.attribute("kernel_shape", None)
    if kernel is None:
        raise Unknown("it has no kernel_shape")
    return 0, math.prod(kernel) * math.prod(of.output())


def _resize(of: Operands) -> Work:
    """Two FLOPs per tap of each output element: 2 taps an axis for linear, 4 for cubic, none for nearest."""
    mode = of.attribute("mode", b"nearest").decode()
    taps = {"nearest": 0, "linear": 2, "cubic": 4}.get(mode, 0)
    scaled = sum(a != b for a, b in zip(of.input(0), of.output(), strict=False))
    return 0, 2 * taps**scaled * math.prod(of.output()) if taps and scaled else 0


def _grid_sample(of: Operands) -> Work:
    return 0, 8 * math.prod(of.output())


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _names(
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil
    Celu Clip Cos Cosh Div Elu Equal Erf Exp FastGelu Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    IsInf IsNaN LeakyRelu Less LessOrEqual Log Mish Mod Mul Neg Not Or PRelu Pow QuickGelu Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Swish Tan Tanh ThresholdedRelu Where
    Xor QLinearAdd QLinearMul QLinearSigmoid QLinearLeakyRelu BiasGelu"""
)
_REDUCE = _names(
    """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare GlobalAveragePool GlobalMaxPool QLinearGlobalAveragePool ArgMax ArgMin CumSum
    TopK NonZero"""
)
_MOVES = _names(
    """Cast CastLike Concat Constant ConstantOfShape DepthToSpace DequantizeLinear Dropout Expand EyeLike
    Flatten Gather GatherElements GatherND Identity OneHot Pad QLinearConcat QuantizeLinear Range Reshape
    ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile
    Transpose Trilu Unsqueeze"""
)
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"})


class _Free(NamedTuple):
    """``looks`` read shapes, not data; ``in_place`` may write over an input."""

    looks: frozenset[str]
    in_place: frozenset[str]


FREE = _Free(
    looks=frozenset({"Shape", "Size"}),
    in_place=_ELEMENTWISE | {"BatchNormalization", "Softmax", "LogSoftmax", "Sum", "Max", "Min", "Mean"},
)

_RULES: dict[str, Callable[[Operands], Work]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "MatMulIntegerToFloat": _matmul(0),
    "DynamicQuantizeMatMul": _matmul(0),
    "FusedMatMul": _matmul(0),
    "QLinearMatMul": _matmul(0),
    "MatMulNBits": _matmul_nbits,
    "Gemm": _gemm,
    "QGemm": _gemm,
    "FusedGemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "QLinearAveragePool": _pool,
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "Softmax": _per_output(5),
    "LogSoftmax": _per_output(5),
    "BatchNormalization": _per_output(2),
    "LayerNormalization": _per_output(8),
    "SimplifiedLayerNormalization": _per_output(6),
    "RMSNormalization": _per_output(6),
    "SkipLayerNormalization": _per_output(9),
    "SkipSimplifiedLayerNormalization": _per_output(7),
    "InstanceNormalization": _per_output(8),
    "GroupNormalization": _per_output(8),
    "LpNormalization": _per_output(3),
    "LRN": _per_output(8),
    "DynamicQuantizeLinear": _per_input(4),
    "Sum": _variadic,
    "Max": _variadic,
    "Min": _variadic,
    "Mean": _variadic,
    **{op: _per_output(1) for op in _ELEMENTWISE},
    **{op: _per_input(1) for op in _REDUCE},
    **{op: _per_output(0) for op in _MOVES},
}


def work(node: NodeProto, of: Operands) -> Work:
    """(MACs, FLOPs) of ``node``. Raises Unknown for an operator without a rule or an open shape."""
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        raise Unknown("control flow: what its branches do depends on data")
    contrib = node.domain == "com.microsoft" and node.op_type == "Attention"
    rule = None if contrib else _RULES.get(node.op_type)
    if rule is None:
        domain = f" of domain '{node.domain}'" if node.domain else ""
        raise Unknown(f"no rule for operator {node.op_type}{domain}")
    try:
        return rule(of)
    except (IndexError, ValueError, TypeError) as error:
        raise Unknown(f"its shapes are not those of {node.op_type}: {error}") from error
