"""Ops that act on each element: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.engines.mil.values import TORCH, Function, Value, integer, number

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-(1 << 15), (1 << 15) - 1), "uint16": (0, 65535)}


def cast(x: Value, dtype: str) -> Value:
    """To an integer a number is cut towards zero. What lies outside the type is undefined in MIL: it
    saturates here, and NaN becomes 0."""
    if dtype == "bool":
        return x != 0
    if dtype in {"fp16", "fp32"}:
        return x.to(torch.float32)
    if x.is_floating_point():
        low, high = _RANGES.get(dtype, (-(1 << 31), (1 << 31) - 1))
        x = torch.nan_to_num(x.double(), nan=0.0, posinf=high, neginf=low).trunc().clamp(low, high)
    return x.to(TORCH[dtype])


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, alpha), beta)


def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return 1 / (x + number(epsilon, 1e-4))


def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.log(x + number(epsilon, 1e-45))


def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.rsqrt(x + number(epsilon, 1e-12))


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.maximum(x, alpha)


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.floor_divide(x, y)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Integers divide as Core ML's do, towards zero; the program never divides integers for a fraction."""
    if x.is_floating_point() or y.is_floating_point():
        return torch.true_divide(x, y)
    return torch.div(x, y, rounding_mode="trunc")


def power(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point() and bool((y < 0).any()):
        return torch.pow(x.double(), y)
    return torch.pow(x, y)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Exact, by tanh, or by a sigmoid of 1.702 x."""
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu has no mode {mode}")


def leaky_relu(x: Tensor, alpha: Tensor | None = None) -> Tensor:
    return torch.where(x >= 0, x, x * number(alpha, 0.01))


def elu(x: Tensor, alpha: Tensor | None = None) -> Tensor:
    return torch.where(x > 0, x, number(alpha, 1.0) * torch.expm1(x))


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.minimum(torch.where(x >= 0, x, x * alpha), beta)


def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor | None = None) -> Tensor:
    return x * alpha + number(beta)


def _channels(value: Tensor, x: Tensor) -> Tensor:
    """A vector over axis 1 of ``x``."""
    return value if value.dim() == 0 else value.reshape([1, -1] + [1] * (x.dim() - 2))


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * _channels(alpha, x))


def scaled_tanh(x: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    return number(alpha, 1.0) * torch.tanh(x * number(beta, 1.0))


def sigmoid_hard(x: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    return (x * number(alpha, 0.2) + number(beta, 0.5)).clamp(0, 1)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return _channels(alpha, x) * softplus(_channels(beta, x) * x)


def thresholded_relu(x: Tensor, alpha: Tensor | None = None) -> Tensor:
    return torch.where(x >= number(alpha, 1.0), x, torch.zeros_like(x))


def softmax(x: Tensor, axis: Tensor | None = None) -> Tensor:
    return torch.softmax(x, dim=integer(axis, -1))


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """``clip(round(input / scale) + zero_point)``, halves to even."""
    low, high = _RANGES[output_dtype]
    per = _per(scale, input, axis)
    shift = 0 if zero_point is None else _per(zero_point.float(), input, axis)
    return (torch.round(input / per) + shift).clamp(low, high).to(TORCH[output_dtype])


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    shift = 0 if zero_point is None else _per(zero_point.float(), input, axis)
    return (input.float() - shift) * _per(scale, input, axis)


def _per(value: Tensor, x: Tensor, axis: Tensor | None) -> Tensor:
    if value.dim() == 0 or axis is None:
        return value
    at = integer(axis) % x.dim()
    return value.reshape([-1 if d == at else 1 for d in range(x.dim())])


def _unary(function: Function) -> Function:
    """torch's own functions call their argument ``input``; MIL calls it ``x``."""
    return lambda x: function(x)


def _binary(function: Function) -> Function:
    return lambda x, y: function(x, y)


_UNARY: dict[str, Function] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": lambda x: torch.pow(2, x),
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": functional.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": softplus,
    "softsign": functional.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_BINARY: dict[str, Function] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": floor_div,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": power,
    "real_div": real_div,
    "sub": torch.sub,
}
OPS: dict[str, Function] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "cast": cast,
    "clamped_relu": clamped_relu,
    "clip": clip,
    "dequantize": dequantize,
    "elu": elu,
    "gelu": gelu,
    "inverse": inverse,
    "leaky_relu": leaky_relu,
    "linear_activation": linear_activation,
    "log": log,
    "prelu": prelu,
    "quantize": quantize,
    "rsqrt": rsqrt,
    "scaled_tanh": scaled_tanh,
    "select": select,
    "sigmoid_hard": sigmoid_hard,
    "softmax": softmax,
    "softplus_parametric": softplus_parametric,
    "threshold": threshold,
    "thresholded_relu": thresholded_relu,
}
