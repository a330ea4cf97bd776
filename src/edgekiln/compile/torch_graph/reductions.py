"""Translations of operators that reduce, sort or contract axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgekiln.compile.torch_graph.node import Lowered, Node, Translate

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def reduction(call: Reduce) -> Translate:
    def translate(node: Node) -> Lowered:
        axes = node.ints(1, "axes", "which axes it reduces")
        keep = bool(node.attribute("keepdims", 1))
        if not axes and node.attribute("noop_with_empty_axes", 0):
            if node.proto.op_type in {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"}:
                return (lambda x: x.clone()), [node.name(0)]
            return (lambda x: call(x.unsqueeze(0), [0], False)), [node.name(0)]
        chosen = [node.axis(a) for a in axes] if axes else list(range(node.rank(0)))
        if not chosen:  # a scalar
            return (lambda x: call(x.unsqueeze(0), [0], False)), [node.name(0)]
        dtype = node.dtype(0)
        if any(node.shape(0)[a] == 0 for a in chosen) and node.proto.op_type in {"ReduceMax", "ReduceMin"}:
            node.refuse("it reduces an axis without elements")
        if dtype.is_floating_point:
            return (lambda x: call(x, chosen, keep)), [node.name(0)]
        return (lambda x: call(x, chosen, keep).to(dtype)), [node.name(0)]

    return translate


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _greatest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.any(x, axes, keep) if x.dtype == torch.bool else torch.amax(x, axes, keep)


def _least(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.all(x, axes, keep) if x.dtype == torch.bool else torch.amin(x, axes, keep)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.to(torch.float32), axes, keep)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.mean(x if x.is_floating_point() else x.to(torch.float32), axes, keep)


def _root(x: Tensor) -> Tensor:
    return torch.sqrt(x if x.is_floating_point() else x.to(torch.float32))


def extreme(call: Callable[[Tensor, int, bool], Tensor]) -> Translate:
    """ArgMax and ArgMin; the last of equals is found from behind."""

    def translate(node: Node) -> Lowered:
        axis = node.axis(node.attribute("axis", 0))
        keep = bool(node.attribute("keepdims", 1))
        last = node.shape(0)[axis] - 1
        if node.attribute("select_last_index", 0):
            return (lambda x: last - call(x.flip(axis), axis, keep)), [node.name(0)]
        return (lambda x: call(x, axis, keep)), [node.name(0)]

    return translate


def top_k(node: Node) -> Lowered:
    """Where equal values stand at the limit, torch may take another of them than ONNX Runtime does."""
    k = int(node.needed(1, "k").reshape(-1)[0])
    axis = node.axis(node.attribute("axis", -1))
    largest, ordered = bool(node.attribute("largest", 1)), bool(node.attribute("sorted", 1))
    return (lambda x: tuple(torch.topk(x, k, axis, largest, ordered))), [node.name(0)]


def einsum(node: Node) -> Lowered:
    equation = node.attribute("equation").replace(" ", "")
    return (lambda *given: torch.einsum(equation, *given)), node.names


def cumulative_sum(node: Node) -> Lowered:
    axis = node.axis(int(node.needed(1, "the axis").reshape(-1)[0]))
    exclusive, backwards = node.attribute("exclusive", 0), node.attribute("reverse", 0)
    dtype = node.dtype(0)

    def run(x: Tensor) -> Tensor:
        x = x.flip(axis) if backwards else x
        total = torch.cumsum(x, axis, dtype=dtype)
        total = total - x if exclusive else total
        return total.flip(axis) if backwards else total

    return run, [node.name(0)]


def softmax(call: Callable[[Tensor, int], Tensor]) -> Translate:
    """Before opset 13 everything from ``axis`` on is one axis."""

    def translate(node: Node) -> Lowered:
        if node.opset >= 13:
            axis = node.axis(node.attribute("axis", -1))
            return (lambda x: call(x, axis)), [node.name(0)]
        axis, shape = node.axis(node.attribute("axis", 1)), node.shape(0)
        return (lambda x: call(x.flatten(axis), axis).reshape(shape)), [node.name(0)]

    return translate


def hardmax(x: Tensor, axis: int) -> Tensor:
    places = torch.arange(x.shape[axis]).reshape([-1] + [1] * (x.dim() - 1 - axis))
    return (torch.argmax(x, axis, True) == places).to(x.dtype)


OPS: dict[str, Translate] = {
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "CumSum": cumulative_sum,
    "Einsum": einsum,
    "Hardmax": softmax(hardmax),
    "LogSoftmax": softmax(torch.log_softmax),
    "ReduceL1": reduction(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": reduction(lambda x, axes, keep: _root(torch.sum(x * x, axes, keep))),
    "ReduceLogSum": reduction(lambda x, axes, keep: torch.log(torch.sum(x, axes, keep))),
    "ReduceLogSumExp": reduction(_log_sum_exp),
    "ReduceMax": reduction(_greatest),
    "ReduceMean": reduction(_mean),
    "ReduceMin": reduction(_least),
    "ReduceProd": reduction(_product),
    "ReduceSum": reduction(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "Softmax": softmax(torch.softmax),
    "TopK": top_k,
}
