"""Which regions of a picture are looked at closely: relevance and a total of tokens in, a quadtree out.

Splits are taken in the order of their worth until the next one does not fit. A node's worth is the relevance
in it, mixed of two: the sum over its finest cells (divided by the cells of a region), and with a share of
``PEAK`` the largest of them. The sum, read as a probability, is the chance that what is asked for lies there;
as a doubling of the resolution costs 4 tokens at the first level and 3 at the others, an order by it is about
that of the expected gain per token. The peak keeps what is small and distinct from drowning in weak noise
over many cells. Neither is ever larger in a child, so that no node is worth more than its parent.

What is guaranteed, and why:

- *Never over the total, always maximal*: what is taken is a prefix of the order, and if exactly the 3 tokens
  of a split are left where the next in order would open a region for 4, the first possible split for 3.
- *A cell that dominates is never behind*. If every cell of region (or sibling) C is at least as relevant as
  the cell of the same place in A, and one is more, each node of C stands before its counterpart in A: its
  worth is not smaller, and among equals the parents' decide, up to C's own, which is greater. So C is refined
  at every place where A is.
- *To raise a cell never coarsens it*. The nodes above the raised cell only move forward in the order, and
  none that stood behind one of them passes it: the leaf that holds the cell can't become coarser. All nodes
  of its region move forward against all others, and the region's k-th split costs the same whichever it is,
  so the region's number of tokens does not fall.

Relevance is compared in fixed point (2^-30), so that sums are exact and the same on every machine.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekiln.arrcoc.quadtree import COMPACT, SPLIT_COST, Allocation, Grid, Tokens, leaves, nodes
from edgekiln.errors import BadInput

Mode: TypeAlias = Literal["quadtree", "windows"]
BUCKETS = (49, 65, 81, 113, 177, 305)
"""Static shapes of the compact system in tokens: 49 regions and 0, 1, 2, 4, 8 or 16 of them whole."""
ONE = 1 << 30
SHARES = 256
PEAK = 0.25
"""The share of the peak. On simulated maps (benchmarks/arrcoc/allocation.py) it finds more than 0 does, far
more where the background is noisy, and a larger one gains little."""
_BEFORE_ALL = np.iinfo(np.int64).min
DOING = "allocating"


class BudgetTooSmall(BadInput):
    """Not even the coarsest level fits; ``least`` is the number of tokens that would do."""

    def __init__(self, total: int, grid: Grid) -> None:
        self.least = grid.regions
        super().__init__(
            DOING,
            f"{total} tokens",
            f"the coarsest level of {grid.rows} x {grid.cols} regions takes {self.least}",
            f"Give at least {self.least} tokens",
        )


class Padded(NamedTuple):
    """``tokens`` int32 (bucket, 3) and ``mask`` bool (bucket,), False where a row is padding."""

    tokens: Tokens
    mask: NDArray[np.bool_]


def allocate(
    relevance: ArrayLike, total: int, grid: Grid = COMPACT, *, mode: Mode = "quadtree", peak: float = PEAK
) -> Allocation:
    """At most ``total`` tokens on ``grid``, finer where ``relevance`` (``grid.finest``, in 0..1) is high.

    ``mode`` "quadtree" refines a region by single splits (+4, then +3 each); "windows" refines it whole to
    the finest level or not at all (+16 with 3 levels), those worth most first. ``peak`` in 0..1 (below 1, in
    steps of 1/256) is the share of a node's largest cell in its worth, against the sum. Ties go to the node
    whose parent is worth more, then to the coarser, the upper and the left one.

    Raises BudgetTooSmall (with ``least``) where the coarsest level does not fit; BadInput for a map of
    another shape or type, for NaN, infinity and values outside 0..1, and for another ``mode`` or ``peak``.
    """
    total = _whole(total)
    if total < grid.regions:
        raise BudgetTooSmall(total, grid)
    scores = _scores(_fixed_point(relevance, grid), grid, _shares(peak))
    room = total - grid.regions
    if mode == "quadtree":
        return leaves(grid, _splits(scores, room, grid))
    if mode == "windows":
        return leaves(grid, _windows(scores, room, grid))
    raise BadInput(DOING, f"in mode '{mode}'", "there is no such mode", "Give 'quadtree' or 'windows'")


def padded(allocation: Allocation, bucket: int) -> Padded:
    """``allocation`` in the static shape of ``bucket`` tokens. Padding repeats the first token, so that
    whoever gathers by it stays within the picture. Raises BadInput where ``bucket`` holds fewer."""
    n, bucket = len(allocation), _whole(bucket)
    if n > bucket:
        raise BadInput("padding", f"{n} tokens", f"they don't fit into {bucket}", f"Give a bucket of {n}")
    tokens = np.empty((bucket, 3), np.int32)
    tokens[:n] = allocation.tokens
    tokens[n:] = allocation.tokens[:1]
    return Padded(tokens, np.arange(bucket) < n)


def bucket_of(count: int, buckets: Sequence[int] = BUCKETS) -> int:
    """The least of ``buckets`` that holds ``count`` tokens. Raises BadInput where none does."""
    fits = [b for b in buckets if b >= count]
    if not fits:
        why = f"the largest of the buckets {', '.join(map(str, buckets)) or '(none)'} is smaller"
        raise BadInput("padding", f"{count} tokens", why, "Give a larger bucket, or allocate fewer tokens")
    return min(fits)


# ---------------------------------------------------------------- what a split is worth


def _fixed_point(relevance: ArrayLike, grid: Grid) -> NDArray[np.int64]:
    given = np.asarray(relevance)
    what = "a relevance map"
    if given.shape != grid.finest or given.dtype.kind not in "fiub":
        rows, cols = grid.finest
        cure = f"Give numbers of shape ({rows}, {cols}), the grid's finest level"
        raise BadInput(DOING, what, f"it is {given.dtype} {given.shape}", cure)
    if given.dtype not in (np.float32, np.float64):
        given = given.astype(np.float32)
    if not (given.min() >= 0 and given.max() <= 1):  # NaN is neither
        flaw = "NaN" if np.isnan(given).any() else f"values from {given.min():g} to {given.max():g}"
        raise BadInput(DOING, what, f"it has {flaw}", "Give finite values in 0..1")
    fixed: NDArray[np.int64] = np.multiply(given, given.dtype.type(ONE)).astype(np.int64)
    return fixed


def _scores(fixed: NDArray[np.int64], grid: Grid, peak: int) -> NDArray[np.int64]:
    """The worth of every node that can be split, in the order of ``nodes``, as an exact integer."""
    sums, peaks, found = fixed, fixed, []
    for _ in range(grid.levels - 1):
        sums = sums[0::2] + sums[1::2]
        sums = sums[:, 0::2] + sums[:, 1::2]
        score = sums
        if peak:
            peaks = np.maximum(peaks[0::2], peaks[1::2])
            peaks = np.maximum(peaks[:, 0::2], peaks[:, 1::2])
            score = (SHARES - peak) * sums + peak * grid.region_cells * peaks
        found.append(score.ravel())
    return np.concatenate(found[::-1]) if found else np.empty(0, np.int64)


def _shares(peak: float) -> int:
    shares = round(peak * SHARES) if 0 <= peak < 1 else SHARES
    if shares >= SHARES:
        raise BadInput(DOING, f"with peak {peak}", "it is not in 0..1, below 1", "Give a share such as 0.25")
    return shares


def _whole(count: int) -> int:
    try:
        return operator.index(count)
    except TypeError as error:
        why = f"a number of tokens is a whole number, not {type(count).__name__}"
        raise BadInput(DOING, f"{count!r} tokens", why, "Give an int") from error


# ---------------------------------------------------------------- which splits are taken


def _splits(scores: NDArray[np.int64], room: int, grid: Grid) -> NDArray[np.bool_]:
    """The splits that ``room`` tokens buy, bool (m,)."""
    tree = nodes(grid)
    split = np.zeros(len(scores), bool)
    if not len(scores):
        return split
    order = np.lexsort(_keys(scores, tree.parent, grid))
    spent = np.cumsum(tree.cost[order])
    count = int(np.searchsorted(spent, room, side="right"))
    split[order[:count]] = True
    left = room - (int(spent[count - 1]) if count else 0)
    if left >= SPLIT_COST and count < len(order):
        rest = order[count:]
        possible = rest[(rest >= grid.regions) & split[tree.parent[rest]]]
        split[possible[:1]] = True
    return split


def _keys(scores: NDArray[np.int64], parent: NDArray[np.intp], grid: Grid) -> tuple[NDArray[np.int64], ...]:
    """For ``np.lexsort``: the node's worth first, then its parent's, then the grandparent's.

    Where there is no such ancestor the key comes before all, so that of equals the coarser is first: no
    node stands before its parent.
    """
    key = -scores
    keys = [key]
    for _ in range(grid.levels - 2):
        key = key[parent[: len(scores)]]
        key[: grid.regions] = _BEFORE_ALL
        keys.append(key)
    return tuple(keys[::-1])


def _windows(scores: NDArray[np.int64], room: int, grid: Grid) -> NDArray[np.bool_]:
    """The same where regions are refined whole; bool (m,)."""
    if not len(scores):
        return np.zeros(0, bool)
    order = np.argsort(-scores[: grid.regions], kind="stable")
    chosen = np.zeros(grid.regions, bool)
    chosen[order[: room // grid.region_cells]] = True
    return chosen[nodes(grid).region]
