"""What the device cuts out of a picture, against the same made in torch for training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekiln.arrcoc import compact, views
from edgekiln.arrcoc.allocate import allocate
from edgekiln.arrcoc.quadtree import COMPACT, from_tokens
from edgekiln.arrcoc.scenes.generate import scene

CELLS = ((0, 0), (0, 6), (3, 3), (6, 0), (6, 6))


@pytest.fixture(scope="module")
def picture():
    return scene("validation", 3)[0].picture


@pytest.fixture(scope="module")
def relevance():
    return np.random.default_rng(4).random((28, 28), np.float32)


def whole(cells):
    """The allocation that refines ``cells`` of the coarsest level to the finest."""
    coarse = [(0, y, x) for y in range(7) for x in range(7)]
    fine = [(2, 4 * r + y, 4 * c + x) for r, c in cells for y in range(4) for x in range(4)]
    return from_tokens(COMPACT, np.array(coarse + fine))


@torch.no_grad()
def test_the_windows_are_those_of_the_training_at_corners_too(picture, relevance):
    found = compact.look_inputs(picture, relevance, whole(CELLS))
    level = torch.from_numpy(np.rint(relevance * 255) / 255).float()[None]
    whole_picture = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
    full = views.with_relevance(whole_picture, level)
    cells = torch.tensor([[7 * row + column for row, column in CELLS]])
    wanted = (views.windows(full, cells) * 255).round().numpy()
    assert found["windows"].dtype == np.uint8
    assert np.array_equal(found["windows"], wanted)


@torch.no_grad()
def test_the_coarse_view_is_that_of_the_training_but_for_rounding_to_whole_numbers(picture, relevance):
    found = compact.look_inputs(picture, relevance, whole(()))
    assert "windows" not in found
    level = torch.from_numpy(np.rint(relevance * 255) / 255).float()[None]
    whole_picture = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
    wanted = (views.uniform(views.with_relevance(whole_picture, level), 7) * 255).numpy()
    assert np.abs(found["coarse"].astype(np.float32) - wanted).max() <= 0.5 + 1e-3


@torch.no_grad()
def test_the_tokens_lie_where_the_training_says(picture, relevance):
    found = compact.look_inputs(picture, relevance, whole(CELLS))["positions"]
    one = torch.from_numpy(relevance)[None]
    cells = torch.tensor([[7 * row + column for row, column in CELLS]])
    wanted = torch.cat([views.uniform_positions(one, 7, 0.0), views.window_positions(one, cells)], 1)
    assert np.allclose(found, wanted.numpy(), atol=1e-7)


def test_regions_are_those_with_a_finer_token_of_any_level(relevance):
    assert compact.regions(whole(CELLS)) == sorted(CELLS)
    assert compact.regions(allocate(relevance, 49)) == []
    partly = from_tokens(COMPACT, np.array([(0, y, x) for y in range(7) for x in range(7)] + [(1, 5, 13)]))
    assert compact.regions(partly) == [(2, 6)]
