"""Windows that slide over the spatial axes: their padding, and the poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.layout import flat_pads
from edgekiln.compile.torch_graph.node import Lowered, Node, Translate

MAX_POOLS: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVG_POOLS: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class Windows:
    """One integer per spatial axis in each list; ``before`` and ``after`` are padding in elements."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def even(self) -> bool:
        return self.before == self.after


def windows(node: Node, kernel: Sequence[int], padded: bool = True) -> Windows:
    """The node's windows with ``auto_pad`` worked out (unless not ``padded``: ConvTranspose's differs)."""
    n = len(kernel)
    strides = list(node.attribute("strides") or [1] * n)
    dilations = list(node.attribute("dilations") or [1] * n)
    pads = list(node.attribute("pads") or [0] * 2 * n)
    mode = node.attribute("auto_pad", "NOTSET")
    before, after = pads[:n], pads[n:]
    if mode != "NOTSET":
        before, after = [0] * n, [0] * n
    if mode.startswith("SAME") and padded:
        for i, size in enumerate(node.shape(0)[2:]):
            reach = (kernel[i] - 1) * dilations[i] + 1
            total = max((math.ceil(size / strides[i]) - 1) * strides[i] + reach - size, 0)
            half = total // 2
            before[i], after[i] = (half, total - half) if mode == "SAME_UPPER" else (total - half, half)
    return Windows(list(kernel), strides, dilations, before, after)


def _pool(node: Node, pools: dict[int, Any]) -> tuple[Windows, Any, bool, bool]:
    """Windows, torch's pool, ``ceil_mode``, and whether torch's own padding can do it."""
    w = windows(node, node.attribute("kernel_shape"))
    call = pools.get(len(w.kernel))
    if call is None:
        node.refuse(f"it has {len(w.kernel)} spatial axes")
    own = w.even and all(p <= k // 2 for p, k in zip(w.before, w.kernel, strict=True))
    return w, call, bool(node.attribute("ceil_mode", 0)), own


def max_pool(node: Node) -> Lowered:
    """Padding that torch's pool can't do is laid out with the least value before it."""
    if len([o for o in node.outputs if o]) > 1:
        node.refuse("its indices are used")
    w, call, ceil, own = _pool(node, MAX_POOLS)
    pads, padding = flat_pads(w.before, w.after), w.before if own else 0

    def run(x: Tensor) -> Tensor:
        if not own:
            least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
            x = functional.pad(x, pads, value=least)
        return call(x, w.kernel, w.strides, padding, w.dilations, ceil)  # type: ignore[no-any-return]

    return run, [node.name(0)]


def average_pool(node: Node) -> Lowered:
    """Uneven padding that does not count is corrected by the share of real elements in each window."""
    w, call, ceil, own = _pool(node, AVG_POOLS)
    if any(d != 1 for d in w.dilations):
        node.refuse(f"its dilations are {w.dilations}")
    counted = bool(node.attribute("count_include_pad", 0))
    if own:
        return (lambda x: call(x, w.kernel, w.strides, w.before, ceil, counted)), [node.name(0)]
    pads = flat_pads(w.before, w.after)

    def pooled(x: Tensor) -> Tensor:
        return call(functional.pad(x, pads), w.kernel, w.strides, 0, ceil)  # type: ignore[no-any-return]

    if counted:
        return pooled, [node.name(0)]
    share = pooled(torch.ones(1, 1, *node.shape(0)[2:], dtype=node.dtype(0)))
    return (lambda x, s: pooled(x) / s), [node.name(0), node.keep(share.numpy())]


def global_average(node: Node) -> Lowered:
    """F.adaptive_avg_pool2d for pictures, which quantisers know; else a mean."""
    if node.rank(0) == 4:
        return (lambda x: functional.adaptive_avg_pool2d(x, 1)), [node.name(0)]
    axes = list(range(2, node.rank(0)))
    return (lambda x: torch.mean(x, axes, True)), [node.name(0)]


def global_max(node: Node) -> Lowered:
    axes = list(range(2, node.rank(0)))
    return (lambda x: torch.amax(x, axes, True)), [node.name(0)]


OPS: dict[str, Translate] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
    "MaxPool": max_pool,
}
