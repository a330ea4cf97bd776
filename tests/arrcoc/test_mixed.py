"""Patches of mixed detail from real pictures, and the pictures that they give back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekiln.arrcoc.allocate import allocate, padded
from edgekiln.arrcoc.mixed import coarsest, gather, outlined, overlay, paint, positions, pyramid, resized
from edgekiln.arrcoc.quadtree import COMPACT, Allocation, Grid, boxes, detail, uniform
from edgekiln.errors import BadInput

GRIDS = st.builds(Grid, rows=st.integers(1, 3), cols=st.integers(1, 3), levels=st.integers(1, 4))


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    """A photograph at the compact canvas, 448 x 448."""
    from skimage import data

    return resized(data.astronaut(), COMPACT)


@pytest.fixture(scope="module")
def relevance() -> NDArray[np.float32]:
    y, x = np.mgrid[:28, :28]
    return np.exp(-((y - 6) ** 2 + (x - 12) ** 2) / 8).astype(np.float32)


def random_picture(grid: Grid, seed: int, dtype: type[Any]) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    if dtype is np.uint8:
        return random.integers(0, 256, (*grid.canvas, 3), np.uint8)
    return random.random((*grid.canvas, 3), np.float32)


def means(picture: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Means of squares of ``side`` pixels, in double precision."""
    height, width = picture.shape[:2]
    cut = picture.astype(np.float64).reshape(height // side, side, width // side, side, 3)
    return cut.mean(axis=(1, 3))


# ---------------------------------------------------------------- the pyramid


def test_each_level_is_the_exact_mean_of_the_picture_rounded_once(photo: NDArray[np.uint8]) -> None:
    levels = pyramid(photo, COMPACT)
    assert [level.shape for level in levels] == [(112, 112, 3), (224, 224, 3), (448, 448, 3)]
    for level, side in zip(levels, (4, 2, 1), strict=True):
        assert level.dtype == np.uint8
        assert (level == np.floor(means(photo, side) + 0.5)).all()


def test_four_levels_of_a_white_picture_stay_white() -> None:
    grid = Grid(rows=1, cols=2, levels=4)
    white = np.full((*grid.canvas, 3), 255, np.uint8)
    assert all((level == 255).all() for level in pyramid(white, grid))


def test_a_float_picture_stays_float_and_means_as_well(photo: NDArray[np.uint8]) -> None:
    levels = pyramid(photo.astype(np.float32) / 255, COMPACT)
    for level, side in zip(levels, (4, 2, 1), strict=True):
        assert level.dtype == np.float32
        assert np.allclose(level, means(photo, side) / 255, atol=1e-6)


def test_stripes_of_one_pixel_become_grey_and_not_other_stripes() -> None:
    stripes = np.zeros((*COMPACT.canvas, 3), np.float32)
    stripes[:, ::2] = 1
    assert all((level == 0.5).all() for level in pyramid(stripes, COMPACT)[:2])


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(0, 2**32 - 1), st.booleans())
def test_the_coarsest_level_alone_is_the_pyramids(grid: Grid, seed: int, mirrored: bool) -> None:
    picture = random_picture(grid, seed, np.uint8)
    picture = picture[:, ::-1] if mirrored else picture
    found = coarsest(picture, grid)
    assert found.dtype == np.uint8
    assert np.array_equal(found.transpose(1, 2, 0), pyramid(picture, grid)[0])


def test_the_coarsest_level_is_taken_of_whole_numbers_of_the_canvas_only(photo: NDArray[np.uint8]) -> None:
    for wrong in (photo.astype(np.float32), photo[:-1]):
        with pytest.raises(BadInput):
            coarsest(wrong, COMPACT)


# ---------------------------------------------------------------- the patches


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.float32]))
def test_each_patch_is_the_mean_of_what_its_token_covers(grid: Grid, seed: int, dtype: type[Any]) -> None:
    picture = random_picture(grid, seed, dtype)
    found = allocate(np.random.default_rng(seed).random(grid.finest) ** 4, grid.regions + 30, grid)
    patches = gather(pyramid(picture, grid), found.tokens)
    assert patches.shape == (len(found), 3, 16, 16)
    assert patches.dtype == dtype
    for patch, (top, left, bottom, right) in zip(patches, boxes(found.tokens, grid), strict=True):
        wanted = means(picture[top:bottom, left:right], (bottom - top) // 16).transpose(2, 0, 1)
        assert np.abs(patch - wanted).max() <= (0.5 if dtype is np.uint8 else 1e-6)


def test_padding_repeats_a_patch_and_changes_no_other(
    photo: NDArray[np.uint8], relevance: NDArray[np.float32]
) -> None:
    found = allocate(relevance, 80)
    tokens, mask = padded(found, 113)
    levels = pyramid(photo, COMPACT)
    patches = gather(levels, tokens)
    assert (patches[mask] == gather(levels, found.tokens)).all()
    assert (patches[~mask] == patches[0]).all()


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(0, 2**32 - 1))
def test_positions_are_the_centres_of_what_the_tokens_cover(grid: Grid, seed: int) -> None:
    found = allocate(np.random.default_rng(seed).random(grid.finest), grid.regions + 20, grid)
    where = positions(found.tokens, grid)
    height, width = grid.canvas
    box = boxes(found.tokens, grid)
    assert where.dtype == np.float32
    assert np.allclose(where[:, 0], (box[:, 0] + box[:, 2]) / 2 / height, atol=1e-7)
    assert np.allclose(where[:, 1], (box[:, 1] + box[:, 3]) / 2 / width, atol=1e-7)
    assert (where[:, 2] == found.tokens[:, 0]).all()


# ---------------------------------------------------------------- and back


@settings(deadline=None, max_examples=30)
@given(GRIDS, st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.float32]))
def test_painting_is_the_inverse_of_gathering(grid: Grid, seed: int, dtype: type[Any]) -> None:
    picture = random_picture(grid, seed, dtype)
    found = allocate(np.random.default_rng(seed).random(grid.finest) ** 4, grid.regions + 30, grid)
    patches = gather(pyramid(picture, grid), found.tokens)
    painted = paint(patches, found.tokens, grid)
    again = gather(pyramid(painted, grid), found.tokens)
    cells = boxes(found.tokens, grid) // 16
    shown = [
        bool((detail(found)[top:bottom, left:right] == level).all())
        for level, (top, left, bottom, right) in zip(found.tokens[:, 0], cells, strict=True)
    ]
    assert np.allclose(again[shown], patches[shown], rtol=0, atol=0 if dtype is np.uint8 else 1e-6)
    assert sum(shown) > 0


def test_all_of_the_finest_level_is_the_picture_itself(photo: NDArray[np.uint8]) -> None:
    every = uniform(COMPACT, 2).tokens
    assert (paint(gather(pyramid(photo, COMPACT), every), every, COMPACT) == photo).all()


def test_where_it_is_finer_the_painted_picture_is_nearer_to_the_real_one(
    photo: NDArray[np.uint8], relevance: NDArray[np.float32]
) -> None:
    found = allocate(relevance, 81, mode="windows")
    painted = paint(gather(pyramid(photo, COMPACT), found.tokens), found.tokens, COMPACT)
    fine = detail(found).repeat(16, axis=0).repeat(16, axis=1) == 2
    assert (painted[fine] == photo[fine]).all()
    assert (painted[~fine] != photo[~fine]).mean() > 0.5


def test_what_no_token_covers_is_black(photo: NDArray[np.uint8]) -> None:
    only = np.array([[2, 0, 0]], np.int32)
    painted = paint(gather(pyramid(photo, COMPACT), only), only, COMPACT)
    assert (painted[:16, :16] == photo[:16, :16]).all()
    assert painted[16:].sum() == painted[:16, 16:].sum() == 0


def test_81_tokens_of_a_smaller_picture() -> None:
    from skimage import data

    grid = Grid(rows=9, cols=9, levels=1)
    small = resized(data.coffee(), grid)
    tokens = uniform(grid, 0).tokens
    patches = gather(pyramid(small, grid), tokens)
    assert patches.shape == (81, 3, 16, 16)
    assert (paint(patches, tokens, grid) == small).all()


# ---------------------------------------------------------------- the size


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (448, 448), (1000, 700)])
def test_a_picture_of_any_size_is_brought_to_the_canvas(size: tuple[int, int]) -> None:
    assert resized(np.full((*size, 3), 77, np.uint8), COMPACT).shape == (448, 448, 3)
    assert (resized(np.full((*size, 3), 77, np.uint8), COMPACT) == 77).all()


def test_shrinking_takes_the_mean_over_the_area() -> None:
    stripes = np.zeros((896, 896, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (resized(stripes, COMPACT) == 100).all()


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        (np.zeros((448, 447, 3), np.uint8), "448 x 447 pixels"),
        (np.zeros((448, 448), np.uint8), "shape"),
        (np.zeros((448, 448, 4), np.uint8), "shape"),
        (np.zeros((0, 448, 3), np.uint8), "shape"),
        (np.zeros((448, 448, 3)), "float64"),
        ("photo.jpg", "str"),
    ],
)
def test_what_is_no_picture_of_the_canvas_is_refused(picture: Any, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        pyramid(picture, COMPACT)


def test_a_float_picture_is_not_resized() -> None:
    with pytest.raises(BadInput, match="uint8"):
        resized(np.zeros((9, 9, 3), np.float32), COMPACT)  # type: ignore[arg-type]


# ---------------------------------------------------------------- for the eye


def drawn_without_lines(photo: NDArray[np.uint8], relevance: NDArray[Any]) -> NDArray[np.int64]:
    """The pixels in the middle of the finest cells, where no line is: (28, 28, 3)."""
    drawing = overlay(photo, uniform(COMPACT, 0), relevance, scale=2)
    assert drawing.shape == (896, 896, 3)
    assert drawing.dtype == np.uint8
    return drawing[16::32, 16::32].astype(np.int64)


def test_relevance_is_drawn_on_a_fixed_scale(photo: NDArray[np.uint8]) -> None:
    low, high = (drawn_without_lines(photo, np.full((28, 28), value)) for value in (0.1, 0.9))
    assert high.sum() > 1.5 * low.sum(), "a flat map is not stretched to the same colours"


def test_what_is_relevant_glows_and_the_rest_is_grey() -> None:
    grey = np.full((448, 448, 3), (200, 60, 60), np.uint8)
    relevance = np.zeros((28, 28))
    relevance[14:] = 1
    drawn = drawn_without_lines(grey, relevance)
    assert drawn[20:].mean() > 1.5 * drawn[:8].mean()
    assert np.ptp(drawn[:8], axis=2).max() < np.ptp(drawn[20:], axis=2).min()


def test_the_lines_are_the_quadtree_and_finer_ones_are_brighter(relevance: NDArray[np.float32]) -> None:
    black = np.zeros((448, 448, 3), np.uint8)
    found = allocate(relevance, 81)
    drawing = overlay(black, found, np.zeros((28, 28)), scale=1)[:, :, 0].astype(int)
    levels = detail(found)
    inner = drawing.reshape(28, 16, 28, 16)[:, 1:-1, :, 1:-1]
    assert (inner == 0).sum() > 0.9 * inner.size
    finest = np.argwhere(levels == 2)[0]
    coarse = np.argwhere(levels == 0)[-1]
    line_of_finest = drawing[finest[0] * 16, finest[1] * 16 + 8]
    line_of_coarse = drawing[coarse[0] // 4 * 64, coarse[1] * 16 + 8]
    assert line_of_finest > 2 * line_of_coarse > 0


def test_a_frame_is_around_each_refined_region_and_the_picture_is_seen_in_it(
    photo: NDArray[np.uint8], relevance: NDArray[np.float32]
) -> None:
    found = allocate(relevance, 81, mode="windows")
    drawing = outlined(photo, found, scale=2)
    assert drawing.shape == (896, 896, 3)
    white = (drawing == 255).all(axis=2)
    assert [
        bool(white[row * 128, column * 128 : column * 128 + 128].all())
        for row in range(7)
        for column in range(7)
    ] == [
        bool((detail(found)[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] == 2).all())
        for row in range(7)
        for column in range(7)
    ]
    assert (drawing[17:31, 17:31] == photo.repeat(2, axis=0).repeat(2, axis=1)[17:31, 17:31]).all()
    with pytest.raises(BadInput, match="pixels"):
        outlined(photo[:-1], found)


def test_a_map_that_is_none_is_not_drawn(photo: NDArray[np.uint8]) -> None:
    for wrong in (np.zeros((7, 7)), np.full((28, 28), np.nan), np.full((28, 28), "x")):
        with pytest.raises(BadInput, match="relevance map"):
            overlay(photo, uniform(COMPACT, 0), wrong)


def test_an_allocation_can_be_drawn_on_any_grid() -> None:
    grid = Grid(rows=2, cols=5, levels=4)
    picture = random_picture(grid, 0, np.uint8)
    found: Allocation = allocate(np.random.default_rng(0).random(grid.finest), 60, grid)
    assert overlay(picture, found, np.zeros(grid.finest), scale=3).shape == (2 * 128 * 3, 5 * 128 * 3, 3)
