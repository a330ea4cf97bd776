"""Windows that slide over the spatial axes: their padding, and the poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Windows, torch's pool, ``ceil_mode``, and whether torch's own padding can do it.

    Where it can't, the windows' ``after`` is set so that they end where the last window does.
    """
    w = windows(node, node.attribute("kernel_shape"))
    call, ceil = pools.get(len(w.kernel)), bool(node.attribute("ceil_mode", 0))
    if call is None:
        node.refuse(f"it has {len(w.kernel)} spatial axes")
    if w.even and all(p <= k // 2 for p, k in zip(w.before, w.kernel, strict=True)):
        return w, call, ceil, True
    after = []
    for i, size in enumerate(node.shape(0)[2:]):
        reach = (w.kernel[i] - 1) * w.dilations[i] + 1
        steps = (size + w.before[i] + w.after[i] - reach) / w.strides[i]
        last = math.ceil(steps) if ceil else math.floor(steps)
        # A window that would start in the padding behind is left out.
        last -= last * w.strides[i] >= size + w.before[i]
        after.append(last * w.strides[i] + reach - size - w.before[i])
    return replace(w, after=after), call, ceil, False


def max_pool(node: Node) -> Lowered:
    """Padding that torch's pool can't do is laid out with the least value before it."""
    if len([o for o in node.outputs if o]) > 1:
        node.refuse("its indices are used")
    w, call, ceil, own = _pool(node, MAX_POOLS)
    if own:
        return (lambda x: call(x, w.kernel, w.strides, w.before, w.dilations, ceil)), [node.name(0)]
    pads, dtype = flat_pads(w.before, w.after), node.dtype(0)
    least = float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min

    def run(x: Tensor) -> Any:
        return call(functional.pad(x, pads, value=least), w.kernel, w.strides, 0, w.dilations)

    return run, [node.name(0)]


def average_pool(node: Node) -> Lowered:
    """Padding that torch's pool can't do is corrected by the share of counted elements in each window."""
    w, call, ceil, own = _pool(node, AVG_POOLS)
    if any(d != 1 for d in w.dilations):
        node.refuse(f"its dilations are {w.dilations}")
    counted = bool(node.attribute("count_include_pad", 0))
    if own:
        return (lambda x: call(x, w.kernel, w.strides, w.before, ceil, counted)), [node.name(0)]
    pads = flat_pads(w.before, w.after)
    ones = torch.ones(1, 1, *node.shape(0)[2:], dtype=node.dtype(0))
    if counted:  # the given padding counts, what the last window reaches beyond it does not
        given = windows(node, w.kernel)
        ones = functional.pad(ones, flat_pads(given.before, given.after), value=1.0)
        excess = [made - asked for made, asked in zip(w.after, given.after, strict=True)]
        ones = functional.pad(ones, flat_pads([0] * len(excess), excess))
    else:
        ones = functional.pad(ones, pads)
    share = call(ones, w.kernel, w.strides)
    if bool((share == 1).all()):
        return (lambda x: call(functional.pad(x, pads), w.kernel, w.strides)), [node.name(0)]
    names = [node.name(0), node.keep(share.numpy())]
    return (lambda x, s: call(functional.pad(x, pads), w.kernel, w.strides) / s), names


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
