"""Crops around glyphs: what is in the middle, how much is reduced, and where the relevance points."""

from __future__ import annotations

import numpy as np
import pytest

from edgekiln.arrcoc import crops, training
from edgekiln.arrcoc.scenes.colours import COLOURS
from edgekiln.arrcoc.scenes.generate import background, scene


@pytest.fixture(scope="module")
def made():
    return scene("train", 4, 0, ("colour",))[0]


def test_each_crop_is_labelled_with_the_glyph_on_its_middle_square(made):
    """At full density a crop is a part of the picture: where from tells what lies in its middle."""
    seen, digits = crops.tokens(made, 24, np.random.default_rng(0), crops.FULL)
    assert digits.tolist() == [made.glyphs[i % len(made.glyphs)].digit for i in range(24)]
    framed = np.pad(made.picture, ((32, 32), (32, 32), (0, 0)), mode="edge").transpose(2, 0, 1)
    corners = set()
    for crop, digit in zip(seen, digits, strict=True):
        glyph = next(g for g in made.glyphs if g.digit == digit)
        centre_y, centre_x = glyph.centre
        near = [
            (y - centre_y, x - centre_x)
            for y in range(int(centre_y) - 18, int(centre_y) + 3)
            for x in range(int(centre_x) - 18, int(centre_x) + 3)
            if np.array_equal(framed[:, y + 20 : y + 60, x + 20 : x + 60], crop[:3])
        ]
        assert near, "the crop is no part of the picture"
        assert all(-17 <= y <= 1 and -17 <= x <= 1 for y, x in near)
        corners.update((round(y), round(x)) for y, x in near)
    assert len(corners) > 12  # the glyph is anywhere in the square, not always in its middle


@pytest.mark.parametrize("density", [14, 9, 7])
def test_a_coarser_crop_shows_more_of_the_picture_in_as_many_pixels(made, density):
    seen, _ = crops.tokens(made, 6, np.random.default_rng(0), (density,))
    ground = background(made.cut).reshape(-1, 3).astype(float)
    assert seen.shape == (6, 4, 40, 40)
    assert abs(seen[:, :3].mean() - ground.mean()) < 60
    whole, _ = crops.tokens(made, 6, np.random.default_rng(0), crops.FULL)
    glyph = seen[:, 3].max(initial=0)
    assert glyph > 0
    # The relevance covers 16 pixels of the picture: fewer of the crop's, the more it was reduced.
    strong = [(one[:, 3] > 0.5 * one[:, 3].max((1, 2), keepdims=True)).sum() for one in (seen, whole)]
    assert strong[0] < strong[1]


def test_the_relevance_is_strongest_on_the_glyph_or_nowhere(made):
    seen, _ = crops.tokens(made, 120, np.random.default_rng(1), crops.FULL)
    channel = seen[:, 3].astype(int)
    lit = channel.reshape(len(seen), -1).max(1) > 40
    assert 0.75 < lit.mean() < 1  # now and then there is none, so that it is no crutch
    middle, edge = channel[lit][:, 12:28, 12:28].max((1, 2)), channel[lit][:, :4, :4].max((1, 2))
    assert (middle >= edge).mean() > 0.9


def test_three_blocks_of_four_hold_a_glyph(made):
    corners = crops.corners(made, 400, training.GRID, np.random.default_rng(0))
    _, colours, _ = training.glyphs_of(made)
    held = [bool((colours[y : y + 4, x : x + 4] != training.NONE).any()) for y, x in corners]
    assert all(0 <= y <= 24 and 0 <= x <= 24 for y, x in corners)
    assert np.mean([h for i, h in enumerate(held) if i % 4 < 3]) == 1
    assert np.mean(held[3::4]) < 0.7
    assert len(set(corners)) > 60


def test_a_sample_of_crops_is_cut_out_of_its_own_scene():
    sample = training.Crops("train", 0, 8)[2]
    again = training.Crops("train", 0, 8, start=2)[0]
    assert all(np.array_equal(sample[name], again[name]) for name in sample)
    assert sample["texture"].shape == (8, 13, 32, 32)
    assert sample["colours"].shape == sample["glyphs"].shape == (8, 4, 4)
    named = sample["colours"] != training.NONE
    assert set(np.unique(sample["colours"][named])) <= set(range(len(COLOURS)))
    assert (sample["glyphs"][named] >= 0.2).all()
