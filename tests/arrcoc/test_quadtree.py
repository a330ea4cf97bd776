"""The quadtree's grids, nodes and allocations: which cells they cover, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.arrcoc.quadtree import (
    COMPACT,
    Allocation,
    Grid,
    boxes,
    detail,
    from_tokens,
    leaves,
    nodes,
    uniform,
)
from edgekiln.errors import BadInput

GRIDS = st.builds(Grid, rows=st.integers(1, 6), cols=st.integers(1, 6), levels=st.integers(1, 4))


def test_the_compact_grid_is_7_14_and_28_cells_over_448_pixels() -> None:
    assert [COMPACT.shape(level) for level in range(3)] == [(7, 7), (14, 14), (28, 28)]
    assert (COMPACT.regions, COMPACT.region_cells, COMPACT.canvas) == (49, 16, (448, 448))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"cols": -1},
        {"levels": 0},
        {"levels": 5},
        {"rows": 1025, "cols": 1025, "levels": 1},
        {"rows": 200, "cols": 200, "levels": 4},
    ],
)
def test_a_grid_without_cells_or_with_far_too_many_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="grid of"):
        Grid(**wrong)


@given(GRIDS)
def test_each_node_lies_in_its_parent_and_its_region(grid: Grid) -> None:
    tree = nodes(grid)
    box = boxes(tree.tokens, grid)
    for outer in (box[tree.parent], box[tree.region]):
        inner = box[: len(outer)]
        assert (inner[:, :2] >= outer[:, :2]).all()
        assert (inner[:, 2:] <= outer[:, 2:]).all()
    deeper = tree.tokens[:, 0] > 0
    assert (tree.tokens[tree.parent, 0][deeper] == tree.tokens[deeper, 0] - 1).all()
    assert (tree.tokens[tree.region, 0] == 0).all()


@given(GRIDS)
def test_the_nodes_stand_in_the_canonical_order(grid: Grid) -> None:
    tokens = nodes(grid).tokens
    order = np.lexsort((tokens[:, 2], tokens[:, 1], tokens[:, 0]))
    assert (order == np.arange(len(tokens))).all()


def test_what_is_shared_cannot_be_written_to() -> None:
    for array in (*nodes(COMPACT), uniform(COMPACT, 1).tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_split_node_gives_way_to_its_children_and_a_region_stays() -> None:
    grid = Grid(rows=1, cols=2, levels=3)
    split = np.zeros(len(nodes(grid).cost), bool)
    split[1] = True  # the right region
    split[2 + 1 * 4 + 3] = True  # its lower right child
    got = leaves(grid, split).tokens.tolist()
    whole = [[0, 0, 0], [0, 0, 1]]
    halves = [[1, 0, 2], [1, 0, 3], [1, 1, 2]]
    quarters = [[2, 2, 6], [2, 2, 7], [2, 3, 6], [2, 3, 7]]
    assert got == whole + halves + quarters


@pytest.mark.parametrize(("level", "count"), [(0, 49), (1, 196), (2, 784)])
def test_a_uniform_allocation_covers_each_cell_once(level: int, count: int) -> None:
    every = uniform(COMPACT, level)
    assert len(every) == count
    assert (detail(every) == level).all()
    seen = np.zeros(COMPACT.canvas, int)
    for top, left, bottom, right in boxes(every.tokens, COMPACT):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


def test_81_uniform_tokens_lie_over_a_picture_of_144_pixels() -> None:
    grid = Grid(rows=9, cols=9, levels=1)
    assert len(uniform(grid, 0)) == 81
    assert grid.canvas == (144, 144)


@pytest.mark.parametrize("level", [-1, 3])
def test_a_level_that_the_grid_lacks_is_refused(level: int) -> None:
    with pytest.raises(BadInput, match="levels 0 to 2"):
        uniform(COMPACT, level)


def test_where_no_token_lies_there_is_no_detail() -> None:
    only = from_tokens(COMPACT, [[2, 27, 27]])
    found = detail(only)
    assert found[27, 27] == 2
    assert (np.delete(found.ravel(), 27 * 28 + 27) == -1).all()


@settings(deadline=None)
@given(GRIDS, st.integers(0, 2**32 - 1))
def test_tokens_in_any_order_are_read_into_the_canonical_one(grid: Grid, seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = nodes(grid).tokens
    some = tokens[np.sort(random.choice(len(tokens), random.integers(1, len(tokens) + 1), replace=False))]
    read = from_tokens(grid, random.permutation(some))
    assert (read.tokens == some).all()
    assert read == Allocation(grid, some.copy())
    assert hash(read) == hash(Allocation(grid, some.copy()))


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([[0, 7, 0]], "outside"),
        ([[0, 0, 7]], "outside"),
        ([[3, 0, 0]], "outside"),
        ([[99, 0, 0]], "outside"),
        ([[-1, 0, 0]], "outside"),
        ([[1, -1, 0]], "outside"),
        ([[1, 2, 3], [0, 0, 0], [1, 2, 3]], "twice"),
        ([[0.0, 0.0, 0.0]], "float64"),
        ([0, 0, 0], "it is int64"),
        ([[0, 0]], "it is int64"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens: object, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        from_tokens(COMPACT, tokens)


def test_allocations_over_other_grids_are_not_equal() -> None:
    other = Grid(rows=7, cols=7, levels=2)
    assert uniform(COMPACT, 0) != uniform(other, 0)
    assert uniform(COMPACT, 0) == uniform(COMPACT, 0)
    assert uniform(COMPACT, 0) != "an allocation"


def test_the_printed_form_counts_the_tokens_of_each_level() -> None:
    assert repr(uniform(COMPACT, 1)) == "<Allocation of 196 tokens by level 0 + 196 + 0>"
