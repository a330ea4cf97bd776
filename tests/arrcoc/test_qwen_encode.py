"""Route C: mixed detail inside the encoder, and the encoder as ONNX."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen import encode, patches, positions
from edgekiln.arrcoc.qwen.plan import leaves
from edgekiln.errors import BadInput
from fakes import tiny_qwen

RULES = patches.PatchRules()
FRAME = patches.resized(data.astronaut(), (256, 256), RULES)
"""8x8 finest tokens, 4x4 at the coarser of two levels, 2x2 at the coarsest of three."""
SIDE = math.isqrt(tiny_qwen.config().vision_config.num_position_embeddings)


def mixed() -> positions.Cells:
    """19 tokens: one quarter of the picture's regions of 2x2 finest tokens is refined."""
    cells = [(0, r, c) for r in range(4) for c in range(4)]
    cells += [(1, i, j) for i in (4, 5) for j in (2, 3)]
    return leaves(np.array(cells, np.int32), Grid(rows=4, cols=4, levels=2))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_finest_token_is_the_standard_encoder(levels: int) -> None:
    import torch

    model = tiny_qwen.model()
    pixels, grid = patches.picture_patches(FRAME, RULES)
    with torch.inference_mode():
        standard = model.model.visual(torch.from_numpy(pixels), grid_thw=torch.tensor([grid]))
    cells = positions.all_cells(8, 8, levels - 1)
    found = encode.encoded(model, encode.gather(encode.pyramid(FRAME, levels), cells, RULES, SIDE))
    assert torch.equal(found.tokens, standard.pooler_output)
    for ours, theirs in zip(found.deepstack, standard.deepstack_features, strict=True):
        assert torch.equal(ours, theirs)


def test_every_coarse_token_is_the_standard_encoder_of_the_halved_picture_at_its_own_places() -> None:
    half = encode.pyramid(FRAME, 2)[0]
    gathered = encode.gather(encode.pyramid(FRAME, 2), positions.all_cells(4, 4, 0), RULES, SIDE)
    expected, grid = patches.picture_patches(half, RULES)  # type: ignore[arg-type]
    assert np.array_equal(gathered.pixels, expected)
    assert grid == (1, 8, 8)
    assert (gathered.rows, gathered.cols) == (16, 16)
    assert gathered.centres[:4].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]


def test_fewer_tokens_take_fewer_patches_and_give_as_many_features() -> None:
    gathered = encode.gather(encode.pyramid(FRAME, 2), mixed(), RULES, SIDE)
    found = encode.encoded(tiny_qwen.model(), gathered)
    assert len(gathered.pixels) == 4 * 19
    assert found.tokens.shape == (19, 64)
    assert [layer.shape for layer in found.deepstack] == [(19, 64)] * 2
    assert np.isfinite(found.tokens.numpy()).all()


def test_where_a_token_lies_matters_to_the_encoder() -> None:
    import msgspec

    gathered = encode.gather(encode.pyramid(FRAME, 2), mixed(), RULES, SIDE)
    model = tiny_qwen.model()
    there = encode.encoded(model, gathered).tokens
    moved = msgspec.structs.replace(gathered, centres=gathered.centres[::-1].copy())
    assert (there - encode.encoded(model, moved).tokens).abs().max() > 0.01
    other = msgspec.structs.replace(gathered, indices=gathered.indices[::-1].copy())
    assert (there - encode.encoded(model, other).tokens).abs().max() > 0.01


def test_the_exported_encoder_agrees_for_any_allocation_of_its_size(tmp_path: Path) -> None:
    import onnxruntime

    model = tiny_qwen.model(blocks=2)
    encode.export_encoder(model, 76, tmp_path / "encoder")
    session = onnxruntime.InferenceSession(
        tmp_path / "encoder" / encode.ENTRY, providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape == [76, 1536]
    other = patches.resized(np.ascontiguousarray(data.coffee()[::-1, :400]), (256, 256), RULES)
    for frame, cells in ((FRAME, mixed()), (other, positions.all_cells(8, 8, 1)[7:26])):
        gathered = encode.gather(encode.pyramid(frame, 2), cells, RULES, SIDE)
        tokens, *deepstack = session.run(None, {name: getattr(gathered, name) for name in encode.INPUTS})
        expected = encode.encoded(model, gathered)
        np.testing.assert_allclose(tokens, expected.tokens, atol=1e-4)
        for ours, theirs in zip(deepstack, expected.deepstack, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_half_a_token_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="4 patches"):
        encode.export_encoder(tiny_qwen.model(), 78, tmp_path / "encoder")
