"""Which frame and quadtree a picture gets, and which of its squares become tokens under a hard total."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.allocate import allocate
from edgekiln.arrcoc.quadtree import MOST_LEVELS, Grid, Tokens
from edgekiln.arrcoc.qwen.limits import Limits
from edgekiln.arrcoc.qwen.patches import PatchRules, frame_size
from edgekiln.arrcoc.qwen.positions import Cells, in_order
from edgekiln.arrcoc.qwen.relevance import Map
from edgekiln.errors import BadInput
from edgekiln.records import Record

ROOM = 2
"""A grid is taken if the total is at least so many times its regions: else too little is left for detail."""


class Plan(Record, frozen=True, kw_only=True):
    """``size`` is the frame's (height, width) in pixels, ``grid`` lies over it with tokens as its finest
    cells; ``standard`` is how many tokens Qwen3-VL itself would make of the picture."""

    size: tuple[int, int]
    grid: Grid
    standard: int


def plan(height: int, width: int, rules: PatchRules, allowed: Limits) -> Plan:
    """The frame and grid for a picture of ``height`` x ``width`` pixels.

    Where the total is enough for all of Qwen3-VL's own tokens the grid is those, of one level. Else it has
    the fewest levels whose regions leave room for detail; where four levels have too many regions, the frame
    becomes smaller. Raises BudgetTooSmall or LatencyTooShort where not even the smallest frame fits.
    """
    whole = _grid(size := frame_size(height, width, rules), rules, 1)
    if allowed.before(whole) >= whole.regions:
        return Plan(size=size, grid=whole, standard=whole.regions)
    last = whole
    for size, grid in _grids(height, width, rules, allowed):
        last = grid
        if allowed.before(grid) >= ROOM * grid.regions:
            return Plan(size=size, grid=grid, standard=whole.regions)
    if allowed.before(last) < last.regions:
        raise allowed.refused(last)
    return Plan(size=size, grid=last, standard=whole.regions)


def _grids(
    height: int, width: int, rules: PatchRules, allowed: Limits
) -> Iterator[tuple[tuple[int, int], Grid]]:
    """Frames and their grids, each of fewer regions than the one before."""
    for levels in range(2, MOST_LEVELS + 1):
        try:
            size = frame_size(height, width, rules, levels)
        except BadInput:
            return  # more levels need more pixels than the model takes
        yield size, (grid := _grid(size, rules, levels))
    while grid.regions > 1:
        room = allowed.before(grid) // ROOM or grid.regions // 2
        most = min(room, grid.regions - 1) * (size[0] // grid.rows) ** 2
        smaller = msgspec.structs.replace(rules, most_pixels=most, least_pixels=min(most, rules.least_pixels))
        try:
            size = frame_size(height, width, smaller, MOST_LEVELS)
        except BadInput:
            return  # one row of regions
        yield size, (grid := _grid(size, rules, MOST_LEVELS))


def _grid(size: tuple[int, int], rules: PatchRules, levels: int) -> Grid:
    unit = rules.token_pixels * 2 ** (levels - 1)
    return Grid(rows=size[0] // unit, cols=size[1] // unit, levels=levels)


def chosen(relevance: Map, total: int, grid: Grid) -> Cells:
    """At most ``total`` tokens that cover the picture once, finer where ``relevance`` (``grid.finest``) is
    high; int32 (n, 3) in reading order.

    ``allocate`` counts a refined region's own token, which is left out here, so it is asked for the largest
    allocation whose leaves fit. Raises BudgetTooSmall where the coarsest level does not.
    """
    low, high = total, grid.regions * (1 + grid.region_cells)
    best = leaves(allocate(relevance, low, grid).tokens, grid)
    while low < high:  # leaves never become fewer with a larger total
        middle = (low + high + 1) // 2
        found = leaves(allocate(relevance, middle, grid).tokens, grid)
        if len(found) <= total:
            low, best = middle, found
        else:
            high = middle - 1
    return best


def leaves(tokens: Tokens, grid: Grid) -> Cells:
    """Those of ``tokens`` (n, 3) that no other lies in, in reading order.

    An allocation keeps the token of a region that it refines. A pretrained encoder has never seen a place
    twice, so it gets the finest token of each place alone.
    """
    split: NDArray[np.bool_] = np.zeros(grid.finest, bool)
    kept = []
    for level in range(grid.levels - 1, -1, -1):
        here = tokens[tokens[:, 0] == level]
        kept.append(here[~split[here[:, 1], here[:, 2]]])
        if level:
            split[here[:, 1], here[:, 2]] = True
            rows, cols = grid.shape(level - 1)
            split = np.logical_or.reduce(split.reshape(rows, 2, cols, 2), axis=(1, 3))
    return in_order(np.concatenate(kept), grid.levels)
