"""Places of tokens and patches: transformers' own at the finest level, centres of squares at the others."""

from __future__ import annotations

import numpy as np
import pytest

from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen import positions
from edgekiln.arrcoc.qwen.plan import leaves

MIXED = np.array([[0, 0, 0], [1, 0, 2], [1, 0, 3], [1, 1, 2], [1, 1, 3], [0, 1, 0], [0, 1, 1]], np.int32)
"""A frame of 4x4 finest tokens, its upper right quarter at the finest of two levels."""


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (3, 7), (1, 1), (9, 1)])
def test_the_finest_level_lies_where_transformers_puts_it(rows: int, cols: int) -> None:
    import torch
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
    )

    grid = torch.tensor([[1, 2 * rows, 2 * cols]])
    cells = positions.all_cells(rows, cols, 0)
    centres = positions.patch_centres(cells, 1, 2)
    assert np.array_equal(centres, get_vision_position_ids(grid, 2).numpy())
    indices, weights = positions.table_taps(centres, 2 * rows, 2 * cols, 48)
    theirs = get_vision_interpolation_indices_and_weights(grid, 48, "bilinear", True, 2)
    assert np.array_equal(indices, theirs[0].numpy())
    assert np.array_equal(weights, theirs[1].numpy())


def test_coarser_tokens_stand_at_the_centre_of_what_they_cover() -> None:
    assert positions.token_centres(MIXED, 2)[:3].tolist() == [[0.5, 0.5], [0, 2], [0, 3]]
    # The patches of the coarse token cover two finest patches a side each.
    assert positions.patch_centres(MIXED, 2, 2)[:5].tolist() == [
        [0.5, 0.5],
        [0.5, 2.5],
        [2.5, 0.5],
        [2.5, 2.5],
        [0, 4],
    ]
    deepest = np.array([[0, 1, 0]], np.int32)
    assert positions.token_centres(deepest, 4).tolist() == [[11.5, 3.5]]


def test_weights_of_the_table_sum_to_one_between_patches_too() -> None:
    centres = positions.patch_centres(MIXED, 2, 2)
    indices, weights = positions.table_taps(centres, 8, 8, 16)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert indices.min() >= 0
    assert indices.max() < 256


def test_a_refined_place_keeps_its_finest_tokens_alone_in_reading_order() -> None:
    kept = np.concatenate([MIXED, [[0, 0, 1]]]).astype(np.int32)  # the region that was refined
    shuffled = kept[np.random.default_rng(1).permutation(len(kept))]
    assert leaves(shuffled, Grid(rows=2, cols=2, levels=2)).tolist() == [
        [0, 0, 0],
        [1, 0, 2],
        [1, 0, 3],
        [1, 1, 2],
        [1, 1, 3],
        [0, 1, 0],
        [0, 1, 1],
    ]


def test_text_after_the_picture_stands_where_it_does_after_all_its_tokens() -> None:
    """As in ``get_rope_index``: the picture takes as many positions as its longer side has tokens."""
    import torch

    from fakes import tiny_qwen

    cells = positions.all_cells(3, 5, 0)
    found = positions.prompt_positions(4, positions.token_centres(cells, 1), 3, 5, 6)
    kinds = torch.tensor([[0] * 4 + [1] * 15 + [0] * 6])
    model = tiny_qwen.model().model
    theirs, _ = model.get_rope_index(kinds, kinds, torch.tensor([[1, 6, 10]]))
    assert np.array_equal(found, theirs.numpy())
    fewer = positions.prompt_positions(4, positions.token_centres(cells[::3], 1), 3, 5, 6)
    assert np.array_equal(fewer[..., -6:], found[..., -6:])
    assert np.array_equal(fewer[..., 4:-6], found[..., 4:-6][..., ::3])
