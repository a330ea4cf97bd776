"""Route C: tokens of mixed detail inside Qwen3-VL's encoder, so that what is left out costs nothing there.

A token is 2x2 patches cut from the picture at the token's level: the frame itself at the finest, its half at
the next. The ViT is told where each patch lies (``positions``), which it is not trained for between patches;
all patches attend to all. With every finest token this is the standard encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.qwen.patches import Floats, Frame, PatchRules, blocks_of, token_patches
from edgekiln.arrcoc.qwen.positions import Cells, patch_centres, table_taps, tensor
from edgekiln.arrcoc.qwen.reduce import Visual, visual_of
from edgekiln.errors import BadInput
from edgekiln.files import folder_aside
from edgekiln.records import Record

if TYPE_CHECKING:
    import torch


class Patches(Record, frozen=True, kw_only=True):
    """What the ViT takes for tokens of mixed detail; m is the count of patches, 4 a token.

    ``pixels`` float32 (m, 3*2*16*16), ``centres`` float32 (m, 2), ``indices`` int64 and ``weights`` float32
    (m, 4). ``rows`` and ``cols`` count the finest patches of the frame.
    """

    pixels: Any
    centres: Any
    indices: Any
    weights: Any
    rows: int
    cols: int


def pyramid(frame: Frame, levels: int) -> tuple[NDArray[np.float32], ...]:
    """The frame (H, W, 3) at each level, the coarsest first: each the mean over 2x2 pixels of the next."""
    found = [frame.astype(np.float32)]
    for _ in range(levels - 1):
        rows = found[0][0::2] + found[0][1::2]
        found.insert(0, (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25))
    return tuple(found)


def gather(
    pictures: Sequence[NDArray[np.float32]], cells: Cells, rules: PatchRules, table_side: int
) -> Patches:
    """The patches of ``cells`` from the levels of a picture, and where they lie.

    ``table_side`` is the side of the ViT's position table (``model.model.visual.num_grid_per_side``).
    """
    levels, token = len(pictures), rules.token_pixels
    blocks = np.empty((len(cells), token, token, 3), np.float32)
    for level, picture in enumerate(pictures):
        here = cells[:, 0] == level
        if here.any():
            blocks[here] = blocks_of(picture, rules)[cells[here, 1], cells[here, 2]]
    rows, cols = (side // rules.patch for side in pictures[-1].shape[:2])
    centres = patch_centres(cells, levels, rules.merge)
    indices, weights = table_taps(centres, rows, cols, table_side)
    pixels: Floats = token_patches(blocks, rules)
    return Patches(pixels=pixels, centres=centres, indices=indices, weights=weights, rows=rows, cols=cols)


def encoded(model: Any, patches: Patches) -> Visual:
    """The tokens that the encoder of ``model`` (a Qwen3VLForConditionalGeneration) makes of ``patches``."""
    import torch

    count = len(patches.pixels)
    with torch.inference_mode():
        output = model.model.visual(
            tensor(patches.pixels).to(model.device),
            grid_thw=torch.tensor([[1, patches.rows, patches.cols]], device=model.device),
            interp_indices=tensor(patches.indices).to(model.device),
            interp_weights=tensor(patches.weights).to(model.device),
            position_ids=tensor(patches.centres).to(model.device),
            cu_seqlens=torch.tensor([0, count], dtype=torch.int32, device=model.device),
        )
    return visual_of(output)


INPUTS = ("pixels", "indices", "weights", "centres")
ENTRY = "encoder.onnx"


def export_encoder(model: Any, count: int, folder: Path) -> None:
    """Write ``folder``/encoder.onnx, the encoder in float32 for ``count`` patches; ``folder`` must not exist.

    Inputs are INPUTS as in ``Patches``, outputs ``tokens`` and ``deepstack_0`` ... Where the patches lie is
    an input, so one file serves every allocation of that size. Beyond 2 GB the weights lie in files beside
    it. Raises BadInput for a count that is not whole tokens.
    """
    import torch

    visual = model.model.visual
    if count < 1 or count % visual.spatial_merge_unit:
        why = f"a token is {visual.spatial_merge_unit} patches"
        raise BadInput("exporting the encoder for", f"{count} patches", why, "Give whole tokens")
    if visual.dtype != torch.float32:
        visual = copy.deepcopy(visual).float()
    columns = 3 * visual.config.temporal_patch_size * visual.config.patch_size**2
    example = (
        torch.zeros(count, columns),
        torch.zeros(count, 4, dtype=torch.int64),
        torch.full((count, 4), 0.25),
        torch.zeros(count, 2),
    )
    stacked = [f"deepstack_{i}" for i in range(len(visual.deepstack_visual_indexes))]
    program = torch.onnx.export(
        _fixed(visual, count),
        example,
        input_names=list(INPUTS),
        output_names=["tokens", *stacked],
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # only the exporter of old returns none
    with folder_aside(folder) as aside:
        program.save(str(aside / ENTRY))


def _fixed(visual: torch.nn.Module, count: int) -> torch.nn.Module:
    """The encoder with the count of patches written into it, its inputs and outputs in plain tuples."""
    import torch

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = visual

        def forward(
            self, pixels: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, centres: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            output = self.visual(
                pixels,
                grid_thw=torch.tensor([[1, 2, count // 2]]),
                interp_indices=indices,
                interp_weights=weights,
                position_ids=centres,
                cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
            )
            return (output.pooler_output, *output.deepstack_features)

    return Fixed().eval()
