"""Translations of operators that act on each element alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.node import DTYPES, Call, Lowered, Node, Translate
from edgekiln.compile.torch_graph.patterns import GAIN

SIXTH = 1 / 6


def unary(call: Call) -> Translate:
    return lambda node: (call, [node.name(0)])


def binary(call: Callable[[Any, Any], Any], commutes: bool = False) -> Translate:
    """An operator of two broadcast tensors; constants of one element become Python numbers."""

    def translate(node: Node) -> Lowered:
        a, b = node.name(0), node.name(1)
        right = node.scalar(1, 0)
        if right is not None:
            return (lambda x: call(x, right)), [a]
        left = node.scalar(0, 1)
        if commutes and left is not None:
            return (lambda x: call(x, left)), [b]
        return call, [a, b]

    return translate


def variadic(call: Callable[[Any, Any], Any], mean: bool = False) -> Translate:
    """Max, Min, Sum, Mean: any number of broadcast tensors."""

    def translate(node: Node) -> Lowered:
        count = len(node.names)

        def run(*given: Tensor) -> Tensor:
            total = functools.reduce(call, given)
            return total / count if mean else total

        return run, node.names

    return translate


def divide(node: Node) -> Lowered:
    """Integers are divided towards zero, as ONNX says."""
    if node.dtype(0).is_floating_point:
        return binary(operator.truediv)(node)
    return binary(lambda a, b: torch.div(a, b, rounding_mode="trunc"))(node)


def modulo(node: Node) -> Lowered:
    """The sign is the divisor's, or with ``fmod`` the dividend's."""
    return (torch.fmod if node.attribute("fmod", 0) else torch.remainder), node.names


def power(node: Node) -> Lowered:
    """The result has the type of the base."""
    dtype = node.dtype(0)
    exponent = node.scalar(1, 0)
    if dtype.is_floating_point and exponent == 2:
        return (lambda x: x * x), [node.name(0)]
    if dtype.is_floating_point and exponent == 0.5:
        return torch.sqrt, [node.name(0)]
    if dtype.is_floating_point and exponent is not None:
        return (lambda x: torch.pow(x, exponent)), [node.name(0)]
    return (lambda x, y: torch.pow(x, y).to(dtype)), node.names


def clip(node: Node) -> Lowered:
    """Constant bounds give clamp, and relu or relu6 where they are those."""
    if node.opset < 11:
        low, high = node.attribute("min"), node.attribute("max")
    else:
        if any(node.has(i) and node.constant(i) is None for i in (1, 2)):
            return _clip_traced, [node.name(i) for i in range(3)]
        bounds = [node.constant(i) for i in (1, 2)]
        low, high = (None if b is None else b.reshape(-1)[0].item() for b in bounds)
    floating = node.dtype(0).is_floating_point
    if low is None and high is None:
        return (lambda x: x.clone()), [node.name(0)]
    if floating and low == 0 and high is None:
        return functional.relu, [node.name(0)]
    if floating and low == 0 and high == 6:
        return functional.relu6, [node.name(0)]
    return (lambda x: torch.clamp(x, low, high)), [node.name(0)]


def _clip_traced(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def cast(node: Node) -> Lowered:
    to = node.attribute("to")
    if to not in DTYPES:
        node.refuse(f"it casts to {onnx.TensorProto.DataType.Name(to)}")
    dtype = DTYPES[to]
    if dtype == node.dtype(0):
        return (lambda x: x.clone()), [node.name(0)]
    return (lambda x: x.to(dtype)), [node.name(0)]


def cast_like(node: Node) -> Lowered:
    dtype = node.dtype(1)
    return (lambda x: x.to(dtype)), [node.name(0)]


def hard_sigmoid(node: Node) -> Lowered:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - SIXTH) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid, [node.name(0)]
    return (lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)), [node.name(0)]


def leaky_relu(node: Node) -> Lowered:
    slope = node.attribute("alpha", 0.01)
    return (lambda x: functional.leaky_relu(x, slope)), [node.name(0)]


def prelu(node: Node) -> Lowered:
    """One slope per channel is F.prelu; any other shape is written out."""
    slope, shape = node.constant(1), node.shape(0)
    if slope is not None and len(shape) > 1:
        channels = slope.shape[::-1][len(shape) - 2 : len(shape) - 1]
        if slope.size == 1 or (channels == (shape[1],) and slope.size == shape[1]):
            return functional.prelu, [node.name(0), node.keep(slope.reshape(-1))]
    return (lambda x, s: torch.where(x < 0, x * s, x)), node.names


def elu(node: Node) -> Lowered:
    alpha = node.attribute("alpha", 1.0)
    return (lambda x: functional.elu(x, alpha)), [node.name(0)]


def celu(node: Node) -> Lowered:
    alpha = node.attribute("alpha", 1.0)
    return (lambda x: functional.celu(x, alpha)), [node.name(0)]


def selu(node: Node) -> Lowered:
    alpha = node.attribute("alpha", 1.6732632423543772)
    gamma = node.attribute("gamma", 1.0507009873554805)
    return (lambda x: functional.elu(x, alpha) * gamma), [node.name(0)]


def thresholded_relu(node: Node) -> Lowered:
    alpha = node.attribute("alpha", 1.0)
    return (lambda x: torch.where(x > alpha, x, torch.zeros_like(x))), [node.name(0)]


def shrink(node: Node) -> Lowered:
    bias, lambd = node.attribute("bias", 0.0), node.attribute("lambd", 0.5)

    def run(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)

    return run, [node.name(0)]


def gelu(node: Node) -> Lowered:
    kind, gain = node.attribute("approximate", "none"), node.attribute(GAIN, 1.0)
    if gain != 1.0:
        return (lambda x: functional.gelu(x, approximate=kind) * gain), [node.name(0)]
    return (lambda x: functional.gelu(x, approximate=kind)), [node.name(0)]


def swish(node: Node) -> Lowered:
    alpha = node.attribute("alpha", 1.0)
    if alpha == 1.0:
        return functional.silu, [node.name(0)]
    return (lambda x: x * torch.sigmoid(x * alpha)), [node.name(0)]


def is_inf(node: Node) -> Lowered:
    above, below = node.attribute("detect_positive", 1), node.attribute("detect_negative", 1)
    if above and below:
        return torch.isinf, [node.name(0)]
    if not above and not below:
        return (lambda x: torch.zeros_like(x, dtype=torch.bool)), [node.name(0)]
    sign = float("inf") if above else float("-inf")
    return (lambda x: x == sign), [node.name(0)]


def bit_shift(node: Node) -> Lowered:
    left = node.attribute("direction") == "LEFT"
    return (torch.bitwise_left_shift if left else torch.bitwise_right_shift), node.names


def both(call: Call) -> Translate:
    return lambda node: (call, [node.name(0), node.name(1)])


OPS: dict[str, Translate] = {
    **{
        name: unary(call)
        for name, call in {
            "Abs": torch.abs,
            "Acos": torch.acos,
            "Acosh": torch.acosh,
            "Asin": torch.asin,
            "Asinh": torch.asinh,
            "Atan": torch.atan,
            "Atanh": torch.atanh,
            "BitwiseNot": torch.bitwise_not,
            "Ceil": torch.ceil,
            "Cos": torch.cos,
            "Cosh": torch.cosh,
            "Erf": torch.erf,
            "Exp": torch.exp,
            "Floor": torch.floor,
            "HardSwish": functional.hardswish,
            "IsNaN": torch.isnan,
            "Log": torch.log,
            "Mish": functional.mish,
            "Neg": torch.neg,
            "Not": torch.logical_not,
            "Reciprocal": torch.reciprocal,
            "Relu": functional.relu,
            "Round": torch.round,
            "Sigmoid": torch.sigmoid,
            "Sign": torch.sign,
            "Sin": torch.sin,
            "Sinh": torch.sinh,
            "Softplus": functional.softplus,
            "Softsign": functional.softsign,
            "Sqrt": torch.sqrt,
            "Tan": torch.tan,
            "Tanh": torch.tanh,
        }.items()
    },
    **{
        name: both(call)
        for name, call in {
            "And": torch.logical_and,
            "Or": torch.logical_or,
            "Xor": torch.logical_xor,
            "BitwiseAnd": torch.bitwise_and,
            "BitwiseOr": torch.bitwise_or,
            "BitwiseXor": torch.bitwise_xor,
        }.items()
    },
    "Add": binary(operator.add, commutes=True),
    "BitShift": bit_shift,
    "Cast": cast,
    "CastLike": cast_like,
    "Celu": celu,
    "Clip": clip,
    "Div": divide,
    "Elu": elu,
    "Equal": binary(operator.eq, commutes=True),
    "Gelu": gelu,
    "Greater": binary(operator.gt),
    "GreaterOrEqual": binary(operator.ge),
    "HardSigmoid": hard_sigmoid,
    "IsInf": is_inf,
    "LeakyRelu": leaky_relu,
    "Less": binary(operator.lt),
    "LessOrEqual": binary(operator.le),
    "Max": variadic(torch.maximum),
    "Mean": variadic(operator.add, mean=True),
    "Min": variadic(torch.minimum),
    "Mod": modulo,
    "Mul": binary(operator.mul, commutes=True),
    "PRelu": prelu,
    "Pow": power,
    "Selu": selu,
    "Shrink": shrink,
    "Sub": binary(operator.sub),
    "Sum": variadic(operator.add),
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Where": lambda node: (torch.where, node.names),
}
