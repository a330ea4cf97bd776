"""The quadtree over a picture: its grid, its nodes, and which of them are tokens.

A token is a square of ``PATCH`` x ``PATCH`` pixels at its level of the picture's pyramid. Level 0 is the
coarsest; a node of level ``k`` has four children of level ``k + 1`` in its place. A *region* is a node of
level 0. Every region keeps its token; a region that is refined has, besides it, a partition into leaves of
finer levels. So to refine a region to level 1 costs 4 tokens, and to replace one leaf by its children 3.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.records import Record

PATCH = 16
MOST_LEVELS = 4
MOST_CELLS = 1 << 20
"""Cells of the finest level: 16,384 pixels square. Beyond it a grid is a mistake, not a picture."""
OPEN_COST, SPLIT_COST = 4, 3

Tokens = NDArray[np.int32]


class Grid(Record, frozen=True, kw_only=True):
    """``rows`` x ``cols`` regions at the coarsest of ``levels`` levels; each level doubles both.

    The default is the compact system's: a canvas of 448 x 448 pixels, 7 x 7, 14 x 14 and 28 x 28 cells.
    Raises BadInput for less than one row, column or level, or more than 4 levels or 2^20 finest cells.
    """

    rows: int = 7
    cols: int = 7
    levels: int = 3

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.levels) < 1 or self.levels > MOST_LEVELS:
            why = f"rows and columns begin at 1, levels are 1 to {MOST_LEVELS}"
            raise BadInput("making", self._words(), why, "Give a grid such as 7 x 7 with 3 levels")
        if self.rows * self.cols * self.region_cells > MOST_CELLS:
            why = f"its finest level has more than {MOST_CELLS} cells"
            raise BadInput("making", self._words(), why, "Give fewer rows, columns or levels")

    def _words(self) -> str:
        return f"a grid of {self.rows} x {self.cols} regions with {self.levels} levels"

    @property
    def regions(self) -> int:
        return self.rows * self.cols

    @property
    def region_cells(self) -> int:
        """Finest cells in one region."""
        return int(4 ** (self.levels - 1))

    @property
    def finest(self) -> tuple[int, int]:
        """Rows and columns of the finest level: the shape of a relevance map."""
        return self.shape(self.levels - 1)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width in pixels of the picture that the grid lies over."""
        rows, cols = self.finest
        return rows * PATCH, cols * PATCH

    def shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of cells at ``level``."""
        return self.rows << level, self.cols << level


COMPACT = Grid()


class Allocation:
    """Which nodes of a grid are tokens. ``tokens`` is int32 (n, 3): level, row, col within the level.

    Canonical order: by level, then row, then column; read-only. Two are equal if grid and tokens are.
    """

    __slots__ = ("grid", "tokens")

    def __init__(self, grid: Grid, tokens: Tokens) -> None:
        """``tokens`` has to be in canonical order and within ``grid``: see ``from_tokens`` for any others."""
        self.grid, self.tokens = grid, tokens
        tokens.flags.writeable = False

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Allocation):
            return NotImplemented
        return self.grid == other.grid and np.array_equal(self.tokens, other.tokens)

    def __hash__(self) -> int:
        return hash((self.grid, self.tokens.tobytes()))

    def __repr__(self) -> str:
        counts = np.bincount(self.tokens[:, 0], minlength=self.grid.levels)
        per_level = " + ".join(str(int(n)) for n in counts)
        return f"<Allocation of {len(self)} tokens by level {per_level}>"


class Nodes(NamedTuple):
    """Every node of a grid in canonical order, which is also breadth-first; n nodes, m of them not finest.

    ``tokens`` int32 (n, 3); ``parent`` intp (n,), a region's being itself; ``region`` intp (m,): the node of
    level 0 that a node lies in; ``cost`` int64 (m,): tokens that splitting the node adds.
    """

    tokens: Tokens
    parent: NDArray[np.intp]
    region: NDArray[np.intp]
    cost: NDArray[np.int64]


@functools.lru_cache(maxsize=32)
def nodes(grid: Grid) -> Nodes:
    """The nodes of ``grid``; the arrays are shared and read-only."""
    tokens, parents, start = [], [], 0
    for level in range(grid.levels):
        rows, cols = grid.shape(level)
        row, col = (a.ravel() for a in np.mgrid[:rows, :cols])
        tokens.append(np.stack([np.full_like(row, level), row, col], axis=1))
        if level == 0:
            parents.append(np.arange(rows * cols))
        else:
            parents.append(start + (row >> 1) * (cols >> 1) + (col >> 1))
            start += (rows >> 1) * (cols >> 1)
    parent = np.concatenate(parents).astype(np.intp)
    m = len(parent) - len(parents[-1])
    region = parent[:m]
    for _ in range(grid.levels - 2):
        region = parent[region]
    cost = np.full(m, SPLIT_COST, np.int64)
    cost[: grid.regions] = OPEN_COST
    found = Nodes(np.concatenate(tokens).astype(np.int32), parent, region.copy(), cost[:m])
    for array in found:
        array.flags.writeable = False
    return found


def leaves(grid: Grid, split: NDArray[np.bool_]) -> Allocation:
    """The tokens where the nodes that are True in ``split`` (m,) are replaced by their children.

    A node that is split needs its parent split as well; regions keep their token in any case.
    """
    tree = nodes(grid)
    kept = np.zeros(len(tree.parent), bool)
    kept[: len(split)] = split
    chosen = kept[tree.parent]
    chosen[kept] = False
    chosen[: grid.regions] = True
    return Allocation(grid, tree.tokens[chosen])


def uniform(grid: Grid, level: int) -> Allocation:
    """Every cell of one level and nothing else, without the regions' tokens where ``level`` is finer.

    49, 196 and 784 tokens on the compact grid; 81 tokens are ``uniform(Grid(rows=9, cols=9, levels=1), 0)``
    over a picture of 144 x 144 pixels. Raises BadInput for a level that the grid does not have.
    """
    if not 0 <= level < grid.levels:
        why = f"the grid has the levels 0 to {grid.levels - 1}"
        raise BadInput("taking every cell of", f"level {level}", why, "Give one of those")
    tokens = nodes(grid).tokens
    return Allocation(grid, tokens[tokens[:, 0] == level])


def from_tokens(grid: Grid, tokens: object) -> Allocation:
    """An allocation of tokens (n, 3) from elsewhere, in any order: level, row, col, each node once.

    Raises BadInput for another shape or type, a node outside the grid, or one that stands twice.
    """
    given = np.asarray(tokens)
    doing, cure = "reading", "Give rows of level, row, col as `Allocation.tokens` holds them"
    if given.ndim != 2 or given.shape[1] != 3 or given.dtype.kind not in "iu":
        raise BadInput(doing, "an allocation", f"it is {given.dtype} {given.shape}", cure)
    given = given.astype(np.int64)
    rows, cols = grid.rows << given[:, 0].clip(0, MOST_LEVELS), grid.cols << given[:, 0].clip(0, MOST_LEVELS)
    upper = np.stack([np.full_like(rows, grid.levels), rows, cols], axis=1)
    outside = ((given < 0) | (given >= upper)).any(axis=1)
    if outside.any():
        first = tuple(int(v) for v in given[int(np.argmax(outside))])
        raise BadInput(doing, f"the token {first}", f"it is outside {grid._words()}", cure)
    ordered = given[np.lexsort((given[:, 2], given[:, 1], given[:, 0]))]
    twice = (np.diff(ordered, axis=0) == 0).all(axis=1)
    if twice.any():
        first = tuple(int(v) for v in ordered[int(np.argmax(twice))])
        raise BadInput(doing, f"the token {first}", "it stands twice", cure)
    return Allocation(grid, ordered.astype(np.int32))


def boxes(tokens: Tokens, grid: Grid) -> NDArray[np.int32]:
    """Pixels of the canvas that each of ``tokens`` (n, 3) covers: int32 (n, 4), top, left, bottom, right."""
    side = PATCH << (grid.levels - 1 - tokens[:, :1])
    corner = tokens[:, 1:] * side
    return np.concatenate([corner, corner + side], axis=1)


def detail(allocation: Allocation) -> NDArray[np.int8]:
    """The finest level that covers each finest cell: int8, shape ``grid.finest``; -1 where no token does."""
    grid = allocation.grid
    found = np.full(grid.finest, -1, np.int8)
    cells = boxes(allocation.tokens, grid) // PATCH
    for level, (top, left, bottom, right) in zip(allocation.tokens[:, 0], cells, strict=True):
        part = found[top:bottom, left:right]
        np.maximum(part, level, out=part)
    return found
