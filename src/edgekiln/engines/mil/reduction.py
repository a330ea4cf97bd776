"""Reductions, normalisations, matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.engines.mil.values import Function, flag, integer, ints, number


def _product(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((d % x.dim() for d in dim), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def _mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(dim=dim, keepdim=keepdim)


_REDUCE: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, d, k: x.abs().sum(dim=d, keepdim=k),
    "reduce_l2_norm": lambda x, d, k: (x * x).sum(dim=d, keepdim=k).sqrt(),
    "reduce_log_sum": lambda x, d, k: x.sum(dim=d, keepdim=k).log(),
    "reduce_log_sum_exp": lambda x, d, k: torch.logsumexp(x, dim=d, keepdim=k),
    "reduce_max": lambda x, d, k: x.amax(dim=d, keepdim=k),
    "reduce_mean": _mean,
    "reduce_min": lambda x, d, k: x.amin(dim=d, keepdim=k),
    "reduce_prod": _product,
    "reduce_sum": lambda x, d, k: x.sum(dim=d, keepdim=k),
    "reduce_sum_square": lambda x, d, k: (x * x).sum(dim=d, keepdim=k),
}


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        """Without ``axes`` every axis is reduced; an empty list reduces none."""
        dims = ints(axes, list(range(x.dim())))
        return function(x, dims, flag(keep_dims)) if dims else function(x.unsqueeze(0), [0], False)

    return reduce


def reduce_argmax(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    return _first(x, x.amax(dim=integer(axis, -1), keepdim=True), integer(axis, -1), flag(keep_dims))


def reduce_argmin(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    return _first(x, x.amin(dim=integer(axis, -1), keepdim=True), integer(axis, -1), flag(keep_dims))


def _first(x: Tensor, wanted: Tensor, axis: int, keep: bool) -> Tensor:
    """Place of the first element that equals ``wanted``: torch's own argmax may give any of them."""
    return (x == wanted).to(torch.uint8).argmax(dim=axis, keepdim=keep)


# ---------------------------------------------------------------- normalisation


def _channels(value: Tensor | None, x: Tensor, default: float) -> Tensor:
    if value is None:
        return torch.tensor(default)
    return value.reshape([1, -1] + [1] * (x.dim() - 2))


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    spread = torch.sqrt(_channels(variance, x, 1.0) + number(epsilon, 1e-5))
    centred = (x - _channels(mean, x, 0.0)) / spread
    return centred * _channels(gamma, x, 1.0) + _channels(beta, x, 0.0)


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | None = None
) -> Tensor:
    """Normalise each channel of each item over its spatial axes."""
    over = list(range(2, x.dim()))
    mean, variance = x.mean(dim=over, keepdim=True), x.var(dim=over, correction=0, keepdim=True)
    centred = (x - mean) / torch.sqrt(variance + number(epsilon, 1e-5))
    return centred * _channels(gamma, x, 1.0) + _channels(beta, x, 0.0)


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """``gamma`` and ``beta`` have the lengths of the normalised axes."""
    over = sorted(a % x.dim() for a in ints(axes, list(range(x.dim()))))
    shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
    mean, variance = x.mean(dim=over, keepdim=True), x.var(dim=over, correction=0, keepdim=True)
    result = (x - mean) / torch.sqrt(variance + number(epsilon, 1e-5))
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """Over the last three axes together."""
    return x / torch.sqrt((x * x).sum(dim=(-3, -2, -1), keepdim=True) + number(epsilon, 1e-6))


def local_response_norm(
    x: Tensor,
    size: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    k: Tensor | None = None,
) -> Tensor:
    return functional.local_response_norm(
        x, integer(size), number(alpha, 1e-4), number(beta, 0.75), number(k, 1.0)
    )


# ---------------------------------------------------------------- products


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def matmul(
    x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None
) -> Tensor:
    left = x.transpose(-1, -2) if flag(transpose_x) and x.dim() > 1 else x
    right = y.transpose(-1, -2) if flag(transpose_y) and y.dim() > 1 else y
    return torch.matmul(left, right)


def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Where a boolean mask is False an element takes no part; a float mask is added to the scores."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    return torch.softmax(scores, dim=-1) @ value


OPS: dict[str, Function] = {
    **{name: _reduction(function) for name, function in _REDUCE.items()},
    "batch_norm": batch_norm,
    "einsum": einsum,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "local_response_norm": local_response_norm,
    "matmul": matmul,
    "reduce_argmax": reduce_argmax,
    "reduce_argmin": reduce_argmin,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
