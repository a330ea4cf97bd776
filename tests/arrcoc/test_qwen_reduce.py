"""Route A: tokens left out or pooled after the encoder, against the full sequence of a small random model."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen import patches, positions, reduce
from edgekiln.arrcoc.qwen.plan import leaves
from edgekiln.arrcoc.qwen.reduce import Visual
from edgekiln.errors import BadInput
from fakes import tiny_qwen

RULES = patches.PatchRules()
BEFORE, AFTER = [10, 11, 1], [2, 20, 21, 22]
FINEST = positions.all_cells(14, 14, 1)
KEPT = np.sort(np.random.default_rng(0).choice(196, 40, replace=False))


@functools.cache
def whole() -> Visual:
    """All 196 tokens of a photograph of 448 pixels square, by transformers' own way."""
    import torch

    frame = patches.resized(data.astronaut(), (448, 448), RULES)
    pixels, grid = patches.picture_patches(frame, RULES)
    with torch.inference_mode():
        found = tiny_qwen.model().model.get_image_features(torch.from_numpy(pixels), torch.tensor([grid]))
    return Visual(tokens=found.pooler_output[0], deepstack=tuple(f[0] for f in found.deepstack_features))


def prompt(count: int) -> Any:
    import torch

    return torch.tensor([[*BEFORE, *[tiny_qwen.IMAGE_TOKEN] * count, *AFTER]])


def places(cells: positions.Cells) -> Any:
    import torch

    centres = positions.token_centres(cells, 2)
    return torch.from_numpy(positions.prompt_positions(len(BEFORE), centres, 14, 14, len(AFTER)))


def logits(visual: Visual, position_ids: Any, mask: Any = None) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        answer = tiny_qwen.model()(
            input_ids=prompt(len(visual)),
            mm_encoder_outputs=reduce.encoder_outputs(visual),
            position_ids=position_ids,
            attention_mask=mask,
        )
    found: NDArray[np.float32] = answer.logits[0].numpy()
    return found


def full_but_masked() -> NDArray[np.float32]:
    """The full sequence with the other 156 tokens masked: the logits of the places that stay."""
    import torch

    mask = torch.zeros(1, 196 + 7, dtype=torch.long)
    stays = np.concatenate([np.arange(3), 3 + KEPT, np.arange(199, 203)])
    mask[0, stays] = 1
    found: NDArray[np.float32] = logits(whole(), places(FINEST), mask)[stays]
    return found


def test_40_of_196_tokens_equal_the_full_sequence_with_the_others_masked() -> None:
    few = reduce.pooled(whole(), FINEST[KEPT], 14, 14, 2)
    expected = full_but_masked()
    assert expected.std() > 1  # else a tolerance of 1e-5 would say nothing
    np.testing.assert_allclose(logits(few, places(FINEST[KEPT])), expected, atol=2e-5)


def test_without_explicit_positions_or_with_deepstack_of_other_tokens_it_differs() -> None:
    few, expected = reduce.pooled(whole(), FINEST[KEPT], 14, 14, 2), full_but_masked()
    assert np.abs(logits(few, None) - expected).max() > 0.1
    others = Visual(tokens=few.tokens, deepstack=tuple(layer[:40] for layer in whole().deepstack))
    assert np.abs(logits(others, places(FINEST[KEPT])) - expected).max() > 0.1


def test_all_tokens_with_explicit_positions_are_the_standard_way() -> None:
    import torch

    frame = patches.resized(data.astronaut(), (448, 448), RULES)
    pixels, grid = patches.picture_patches(frame, RULES)
    ids = prompt(196)
    with torch.inference_mode():
        standard = tiny_qwen.model()(
            input_ids=ids,
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=(ids == tiny_qwen.IMAGE_TOKEN).int(),
        )
    np.testing.assert_allclose(logits(whole(), places(FINEST)), standard.logits[0].numpy(), atol=1e-5)


def quadtree() -> positions.Cells:
    """58 tokens: 46 coarse ones, and three regions at the finest level."""
    cells = [(0, r, c) for r in range(7) for c in range(7)]
    for r, c in ((1, 1), (3, 4), (6, 6)):
        cells += [(1, 2 * r + i, 2 * c + j) for i in range(2) for j in range(2)]
    return leaves(np.array(cells, np.int32), Grid(levels=2))


def test_pooled_tokens_are_means_over_their_squares_in_deepstack_too() -> None:
    few = reduce.pooled(whole(), quadtree(), 14, 14, 2)
    assert len(few) == 58
    for found, full in ((few.tokens, whole().tokens), (few.deepstack[1], whole().deepstack[1])):
        grid = full.reshape(14, 14, -1)
        for token, (level, row, col) in zip(found, quadtree().tolist(), strict=True):
            square = (
                grid[row, col] if level else grid[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].mean((0, 1))
            )
            np.testing.assert_allclose(token, square, atol=1e-6)


def test_positions_between_two_tokens_are_accepted_and_matter() -> None:
    few = reduce.pooled(whole(), quadtree(), 14, 14, 2)
    there = places(quadtree())
    assert (there % 1 == 0.5).any()
    found = logits(few, there)
    assert np.isfinite(found).all()
    assert np.abs(found - logits(few, there.floor())).max() > 0.01


def test_generate_agrees_with_a_loop_of_single_steps() -> None:
    import torch

    model = tiny_qwen.model()
    few, there = reduce.pooled(whole(), quadtree(), 14, 14, 2), places(quadtree())
    ids = prompt(58)
    given = {"mm_encoder_outputs": reduce.encoder_outputs(few), "position_ids": there}
    with torch.inference_mode():
        generated = model.generate(ids, **given, max_new_tokens=8, do_sample=False, eos_token_id=None)
        steps = ids
        for _ in range(8):  # everything anew at each step, without a cache
            answer = model(input_ids=steps, use_cache=False, **given)
            steps = torch.cat([steps, answer.logits[:, -1:].argmax(-1)], dim=1)
            given["position_ids"] = torch.cat(
                [given["position_ids"], given["position_ids"][..., -1:] + 1], -1
            )
    assert generated.tolist() == steps.tolist()
    assert len(set(steps[0, -8:].tolist())) > 1


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(BadInput, match="13x14 cells for 196 tokens"):
        reduce.pooled(whole(), FINEST, 13, 14, 2)
