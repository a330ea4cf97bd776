"""The rules of allocation, on maps of all kinds and on grids of 1 to 4 levels that need not be square."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekiln.arrcoc.allocate import BUCKETS, BudgetTooSmall, Mode, allocate, bucket_of, padded
from edgekiln.arrcoc.quadtree import COMPACT, Allocation, Grid, boxes, detail, uniform
from edgekiln.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
GRIDS = st.builds(Grid, rows=st.integers(1, 4), cols=st.integers(1, 4), levels=st.integers(1, 4))
MODES = st.sampled_from(["quadtree", "windows"])
PEAKS = st.sampled_from([0.0, 0.25, 0.5, 255 / 256])
Map = NDArray[np.float32]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Grid, Map, int]:
    """A grid, a relevance map with many equal values or none, and a total up to more than everything."""
    grid = draw(GRIDS)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["uneven", "steps", "uneven steps", "sparse", "noise", "tiny", "flat"]))
    if kind.startswith("uneven"):
        # Regions of very different worth: splits of one stand between the openings of others.
        noise = random.random(grid.finest) if kind == "uneven" else random.integers(0, 3, grid.finest) / 2
        side = 1 << (grid.levels - 1)
        strength = random.integers(0, 5, (grid.rows, grid.cols)) / 4
        relevance = noise * strength.repeat(side, axis=0).repeat(side, axis=1) ** 2
    elif kind == "steps":
        relevance = random.integers(0, 3, grid.finest) / 2
    elif kind == "sparse":
        relevance = random.random(grid.finest) * (random.random(grid.finest) < 0.1)
    elif kind == "noise":
        relevance = random.random(grid.finest) ** draw(st.sampled_from([1, 8]))
    elif kind == "tiny":
        relevance = random.integers(0, 4, grid.finest) * 2.0**-30
    else:
        relevance = np.full(grid.finest, draw(st.sampled_from([0.0, 0.3, 1.0])))
    everything = grid.regions * (1 + grid.region_cells)
    total = grid.regions + draw(st.integers(0, everything - grid.regions + 5))
    return grid, relevance.astype(np.float32), total


def within(found: Allocation, row: int, col: int) -> int:
    """Tokens of the region at ``row``, ``col``, its own among them."""
    level, y, x = found.tokens.T
    return int(((y >> level == row) & (x >> level == col)).sum())


def region(relevance: NDArray[Any], grid: Grid, row: int, col: int) -> NDArray[Any]:
    side = 1 << (grid.levels - 1)
    return relevance[row * side : (row + 1) * side, col * side : (col + 1) * side]


# ---------------------------------------------------------------- the total


@settings(deadline=None, max_examples=100)
@given(scenes(), MODES, PEAKS)
def test_the_total_is_never_exceeded_and_no_possible_split_is_left(
    scene: tuple[Grid, Map, int], mode: Mode, peak: float
) -> None:
    grid, relevance, total = scene
    found = allocate(relevance, total, grid, mode=mode, peak=peak)
    assert len(found) <= total
    level = found.tokens[:, 0]
    opened = sum(within(found, r, c) > 1 for r, c in itertools.product(range(grid.rows), range(grid.cols)))
    costs = [grid.region_cells if mode == "windows" else 4] * (opened < grid.regions and grid.levels > 1)
    costs += [3] * (mode == "quadtree" and bool(((level > 0) & (level < grid.levels - 1)).any()))
    assert all(len(found) + cost > total for cost in costs)


@settings(deadline=None)
@given(scenes(), MODES)
def test_a_total_beyond_everything_gives_everything(scene: tuple[Grid, Map, int], mode: Mode) -> None:
    grid, relevance, _ = scene
    found = allocate(relevance, 10**9, grid, mode=mode)
    finest = uniform(grid, grid.levels - 1)
    assert len(found) == grid.regions + (len(finest) if grid.levels > 1 else 0)
    assert (detail(found) == grid.levels - 1).all()


@pytest.mark.parametrize(("regions", "bucket"), zip((0, 1, 2, 4, 8, 16), BUCKETS, strict=True))
def test_the_buckets_hold_so_many_regions_whole(regions: int, bucket: int) -> None:
    relevance = np.random.default_rng(1).random(COMPACT.finest)
    found = allocate(relevance, bucket, mode="windows")
    assert len(found) == bucket
    assert (detail(found) == 2).sum() == 16 * regions
    assert (detail(found) == 0).sum() == 784 - 16 * regions


def test_a_total_below_the_coarsest_level_tells_the_least_that_would_do() -> None:
    with pytest.raises(BudgetTooSmall, match="at least 49 tokens") as caught:
        allocate(np.zeros(COMPACT.finest), 48)
    assert caught.value.least == 49
    assert isinstance(caught.value, BadInput)
    assert len(allocate(np.zeros(COMPACT.finest), caught.value.least)) == 49


def splits(found: Allocation) -> set[tuple[int, int, int]]:
    """The nodes that gave way to finer ones."""
    levels, grid = detail(found), found.grid
    sides = [(level, 1 << (grid.levels - 1 - level), grid.shape(level)) for level in range(grid.levels - 1)]
    return {
        (level, row, col)
        for level, side, (rows, cols) in sides
        for row, col in itertools.product(range(rows), range(cols))
        if levels[row * side : (row + 1) * side, col * side : (col + 1) * side].max() > level
    }


@settings(deadline=None)
@given(scenes(), MODES, st.integers(1, 20))
def test_a_larger_total_keeps_all_splits_but_the_one_that_took_the_last_tokens(
    scene: tuple[Grid, Map, int], mode: Mode, more: int
) -> None:
    grid, relevance, total = scene
    smaller, larger = (splits(allocate(relevance, t, grid, mode=mode)) for t in (total, total + more))
    assert len(smaller - larger) <= (mode == "quadtree")


# ---------------------------------------------------------------- the shape


@settings(deadline=None, max_examples=100)
@given(scenes(), MODES, PEAKS)
def test_every_region_keeps_its_token_and_its_leaves_partition_it(
    scene: tuple[Grid, Map, int], mode: Mode, peak: float
) -> None:
    grid, relevance, total = scene
    found = allocate(relevance, total, grid, mode=mode, peak=peak)
    tokens = found.tokens
    assert (tokens[: grid.regions] == uniform(grid, 0).tokens).all()
    assert tokens.dtype == np.int32
    order = np.lexsort((tokens[:, 2], tokens[:, 1], tokens[:, 0]))
    assert (order == np.arange(len(tokens))).all(), "not in the canonical order"
    assert len(np.unique(tokens, axis=0)) == len(tokens)
    finer = tokens[grid.regions :]
    cover = np.zeros(grid.finest, int)
    for top, left, bottom, right in boxes(finer, grid) // 16:
        cover[top:bottom, left:right] += 1
    for row, col in itertools.product(range(grid.rows), range(grid.cols)):
        here = region(cover, grid, row, col)
        assert (here == here[0, 0]).all()
        assert here[0, 0] in (0, 1)
        assert (here[0, 0] == 1) == (within(found, row, col) > 1)


@settings(deadline=None)
@given(scenes())
def test_a_region_refined_in_windows_is_refined_whole(scene: tuple[Grid, Map, int]) -> None:
    grid, relevance, total = scene
    found = detail(allocate(relevance, total, grid, mode="windows"))
    assert set(np.unique(found)) <= {0, grid.levels - 1}


# ---------------------------------------------------------------- relevance


@settings(deadline=None, max_examples=100)
@given(scenes(), MODES, PEAKS, st.data())
def test_to_raise_one_cell_never_coarsens_it_nor_its_region(
    scene: tuple[Grid, Map, int], mode: Mode, peak: float, data: st.DataObject
) -> None:
    grid, relevance, total = scene
    row = data.draw(st.integers(0, grid.finest[0] - 1))
    col = data.draw(st.integers(0, grid.finest[1] - 1))
    raised = relevance.copy()
    step = data.draw(st.sampled_from([2.0**-30, 0.01, 0.5, 1.0]))
    raised[row, col] = min(1.0, raised[row, col] + step)
    before = allocate(relevance, total, grid, mode=mode, peak=peak)
    after = allocate(raised, total, grid, mode=mode, peak=peak)
    assert detail(after)[row, col] >= detail(before)[row, col]
    up = grid.levels - 1
    assert within(after, row >> up, col >> up) >= within(before, row >> up, col >> up)


@settings(deadline=None, max_examples=100)
@given(scenes(), MODES, PEAKS, st.data())
def test_a_region_that_dominates_another_is_refined_wherever_that_one_is(
    scene: tuple[Grid, Map, int], mode: Mode, peak: float, data: st.DataObject
) -> None:
    grid, relevance, total = scene
    assume(grid.regions > 1)
    first, second = (
        divmod(place, grid.cols)
        for place in data.draw(
            st.lists(st.integers(0, grid.regions - 1), min_size=2, max_size=2, unique=True)
        )
    )
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lower, upper = region(relevance, grid, *first), region(relevance, grid, *second)
    lower *= 0.5
    more = random.random(lower.shape) < data.draw(st.sampled_from([0.0, 0.2, 1.0]))
    more[tuple(random.integers(0, len(lower), 2))] = True
    upper[:] = lower + more * data.draw(st.sampled_from([2.0**-24, 0.1, 0.5]))
    found = detail(allocate(relevance, total, grid, mode=mode, peak=peak))
    assert (region(found, grid, *second) >= region(found, grid, *first)).all()


@settings(deadline=None, max_examples=100)
@given(scenes(), PEAKS, st.data())
def test_the_same_holds_between_the_quarters_of_a_region(
    scene: tuple[Grid, Map, int], peak: float, data: st.DataObject
) -> None:
    grid, relevance, total = scene
    assume(grid.levels > 2)
    half = 1 << (grid.levels - 2)
    first, second = data.draw(st.permutations([(0, 0), (0, half), (half, 0), (half, half)]))[:2]
    lower = relevance[first[0] : first[0] + half, first[1] : first[1] + half]
    upper = relevance[second[0] : second[0] + half, second[1] : second[1] + half]
    upper[:] = np.minimum(1, lower + 0.1 * np.random.default_rng(total).integers(0, 2, lower.shape))
    assume((upper > lower).any())
    found = detail(allocate(relevance, total, grid, peak=peak))
    ours = found[second[0] : second[0] + half, second[1] : second[1] + half]
    assert (ours >= found[first[0] : first[0] + half, first[1] : first[1] + half]).all()


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_equal_relevance_is_given_from_the_upper_left_on(level: float) -> None:
    flat = np.full(COMPACT.finest, level)
    whole = detail(allocate(flat, 81, mode="windows"))
    assert (whole[:4, :8] == 2).all()
    assert (whole == 2).sum() == 32
    by_splits = detail(allocate(flat, 81))
    assert (by_splits[:4] == 1).all()
    assert (by_splits[4:8, :4] == 1).all()
    assert (by_splits == 1).sum() == 8 * 16


def test_the_most_relevant_places_are_the_finest() -> None:
    relevance = np.full(COMPACT.finest, 0.01)
    relevance[13, 6] = relevance[2, 21] = 0.9
    found = detail(allocate(relevance, 63))
    assert found[13, 6] == found[2, 21] == 2
    assert (found == 2).sum() == 8, "one leaf of each of the two regions is split, and nothing else"


def test_tokens_that_the_next_region_cannot_use_go_to_the_best_split() -> None:
    grid = Grid(rows=1, cols=2, levels=3)
    relevance = np.zeros(grid.finest)
    relevance[:, :4] = 0.5
    relevance[:2, 2:4] = 0.6
    relevance[:, 4:] = 0.4
    found = allocate(relevance, 2 + 4 + 3, grid)
    assert len(found) == 9
    assert (detail(found)[:2, 2:4] == 2).all()


def test_a_share_of_the_peak_prefers_what_is_small_and_distinct() -> None:
    relevance = np.zeros(COMPACT.finest)
    relevance[:4, :4] = 0.1
    relevance[26, 26] = 1.0
    assert (detail(allocate(relevance, 53, peak=0))[:4, :4] == 1).all()
    assert (detail(allocate(relevance, 53))[24:, 24:] == 1).all()


def test_what_is_finer_than_the_fixed_point_is_a_tie() -> None:
    relevance = np.full(COMPACT.finest, 0.0)
    relevance[27, 27] = 2.0**-31
    assert (detail(allocate(relevance, 53))[:4, :4] == 1).all()
    relevance[27, 27] = 2.0**-30
    assert (detail(allocate(relevance, 53))[24:, 24:] == 1).all()


# ---------------------------------------------------------------- the same again


@settings(deadline=None, max_examples=300)
@given(scenes(), MODES, PEAKS)
def test_the_rule_written_with_a_heap_gives_the_same(
    scene: tuple[Grid, Map, int], mode: Mode, peak: float
) -> None:
    grid, relevance, total = scene
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        reference = importlib.import_module("arrcoc.allocation").reference
    ours = allocate(relevance, total, grid, mode=mode, peak=peak)
    assert ours == reference(relevance, total, grid, mode=mode, peak=peak)


@settings(deadline=None)
@given(scenes(), MODES)
def test_the_same_map_gives_the_same_whatever_its_type_and_layout(
    scene: tuple[Grid, Map, int], mode: Mode
) -> None:
    grid, relevance, total = scene
    once = allocate(relevance, total, grid, mode=mode)
    for other in (relevance.astype(np.float64), np.asfortranarray(relevance), relevance.tolist()):
        assert allocate(other, total, grid, mode=mode) == once


def test_a_map_is_not_written_to() -> None:
    relevance = np.random.default_rng(0).random(COMPACT.finest, dtype=np.float32)
    relevance.flags.writeable = False
    allocate(relevance, 81)


def test_whole_numbers_of_0_and_1_are_a_map_as_well() -> None:
    relevance = np.zeros(COMPACT.finest, bool)
    relevance[27, 27] = True
    assert allocate(relevance, 65) == allocate(relevance.astype(np.float32), 65)
    assert allocate(relevance.astype(np.float16), 65) == allocate(relevance.astype(np.uint8), 65)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-6, 1.0001, 255.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_map_with_a_value_that_is_no_relevance_is_refused(value: float, dtype: type[Any]) -> None:
    relevance = np.zeros(COMPACT.finest, dtype)
    relevance[3, 3] = value
    with pytest.raises(BadInput, match=r"finite values in 0\.\.1"):
        allocate(relevance, 81)


@pytest.mark.parametrize(
    "relevance",
    [
        np.zeros((28, 27)),
        np.zeros((1, 28, 28)),
        np.zeros((0, 0)),
        np.zeros((28, 28), complex),
        np.full((28, 28), "high"),
        np.full((28, 28), None),
        0.5,
    ],
    ids=["narrow", "batch", "empty", "complex", "words", "nothing", "scalar"],
)
def test_what_is_no_map_of_the_finest_level_is_refused(relevance: Any) -> None:
    with pytest.raises(BadInput, match=r"\(28, 28\)"):
        allocate(relevance, 81)


@pytest.mark.parametrize("total", [81.0, "81", None])
def test_a_total_that_is_no_whole_number_is_refused(total: Any) -> None:
    with pytest.raises(BadInput, match="whole number"):
        allocate(np.zeros(COMPACT.finest), total)


@pytest.mark.parametrize("peak", [-0.1, 1.0, 0.9999, 2.0, np.nan])
def test_a_share_that_leaves_nothing_to_the_sum_is_refused(peak: float) -> None:
    with pytest.raises(BadInput, match="peak"):
        allocate(np.zeros(COMPACT.finest), 81, peak=peak)


def test_another_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="'quadtree' or 'windows'"):
        allocate(np.zeros(COMPACT.finest), 81, mode="whole")  # type: ignore[arg-type]


# ---------------------------------------------------------------- static shapes


@settings(deadline=None)
@given(scenes(), st.integers(0, 20))
def test_padding_keeps_the_tokens_and_masks_the_rest(scene: tuple[Grid, Map, int], more: int) -> None:
    grid, relevance, total = scene
    found = allocate(relevance, total, grid)
    tokens, mask = padded(found, len(found) + more)
    assert tokens.shape == (len(found) + more, 3)
    assert mask.sum() == len(found)
    assert (tokens[mask] == found.tokens).all()
    assert (tokens[~mask] == found.tokens[0]).all(), "padding stays within the picture"


def test_a_bucket_that_is_too_small_is_refused() -> None:
    with pytest.raises(BadInput, match="bucket of 49"):
        padded(uniform(COMPACT, 0), 48)


@pytest.mark.parametrize(("count", "bucket"), [(1, 49), (49, 49), (50, 65), (66, 81), (113, 113), (114, 177)])
def test_the_least_bucket_that_holds_the_tokens_is_taken(count: int, bucket: int) -> None:
    assert bucket_of(count) == bucket


@pytest.mark.parametrize("buckets", [(), (49, 65)])
def test_tokens_that_no_bucket_holds_are_refused(buckets: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="66 tokens"):
        bucket_of(66, buckets)


def test_the_benchmark_runs_and_prints_a_whole_table(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/arrcoc/allocation.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "28 x 28 finest" in line]
    assert len(rows) == 2
    assert done.stdout.count(" ± ") == 4 * 3 * 5
    assert all(row.count(" ms (IQR") == 3 for row in rows)
    assert done.stdout.count(" ms (IQR") == 3 * 2 + 4
    assert (tmp_path / "arrcoc-allocation.json").is_file()
