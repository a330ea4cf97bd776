"""Patches and their size as transformers' own processor makes them, which needs no torchvision in its Pillow
form; and the pictures that it was never meant for."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from edgekiln.arrcoc.qwen import patches
from edgekiln.arrcoc.qwen.patches import PatchRules
from edgekiln.errors import BadInput
from fakes import tiny_qwen

RULES = PatchRules()


@functools.cache
def processor() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    told = {k: v for k, v in tiny_qwen.PREPROCESSOR.items() if not k.endswith(("_type", "_class"))}
    return Qwen2VLImageProcessorPil(**told)


@pytest.mark.parametrize(
    ("name", "cut"),
    [("astronaut", (448, 448)), ("coffee", (400, 600)), ("rocket", (37, 301)), ("chelsea", (300, 451))],
)
def test_patches_are_those_of_the_real_processor(name: str, cut: tuple[int, int]) -> None:
    picture = getattr(data, name)()[: cut[0], : cut[1]]
    size = patches.frame_size(*picture.shape[:2], RULES)
    found, grid = patches.picture_patches(patches.resized(picture, size, RULES), RULES)
    theirs = processor()(picture, return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [list(grid)]
    assert found.dtype == np.float32
    assert found.shape == theirs["pixel_values"].shape
    np.testing.assert_allclose(found, theirs["pixel_values"], atol=5e-7)


@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    most=st.sampled_from([16_777_216, 1_000_000, 65_536]),
)
@settings(deadline=None, max_examples=200)
def test_a_frame_of_one_level_has_the_processors_size(height: int, width: int, most: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rules = PatchRules(most_pixels=most)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(BadInput, match="200 to 1"):
            patches.frame_size(height, width, rules)
        return
    theirs = smart_resize(height, width, 32, rules.least_pixels, rules.most_pixels)
    if min(theirs) > 0:  # theirs has no side of at least one token
        assert patches.frame_size(height, width, rules) == theirs


@given(height=st.integers(1, 10_000), width=st.integers(1, 10_000), levels=st.integers(1, 4))
@settings(deadline=None)
def test_a_frame_is_whole_tokens_of_the_coarsest_level_within_the_bounds(
    height: int, width: int, levels: int
) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    tall, wide = patches.frame_size(height, width, RULES, levels)
    unit = 32 * 2 ** (levels - 1)
    assert tall % unit == wide % unit == 0
    assert min(tall, wide) >= unit
    assert tall * wide <= RULES.most_pixels


def test_a_model_that_takes_too_few_pixels_for_the_levels_is_told() -> None:
    with pytest.raises(BadInput, match="fewer levels"):
        patches.frame_size(500, 500, PatchRules(least_pixels=1, most_pixels=32 * 32), levels=3)


def test_scale_mean_and_deviation_are_each_colours_own() -> None:
    rules = PatchRules(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    found = patches.normalised(np.full((1, 3), 255, np.uint8), rules)
    np.testing.assert_allclose(found[0], [1.8, 3.2, 0.35], rtol=1e-6)
