"""Route A: fewer visual tokens after Qwen3-VL's encoder.

The encoder sees the whole picture; the language model gets some of its tokens, or means of them over squares
of the picture. DeepStack's features, which the first layers of the language model add to the visual tokens,
are reduced in the same way: they are matched to tokens by their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekiln.arrcoc.qwen.positions import Cells, tensor
from edgekiln.errors import BadInput
from edgekiln.records import Record

if TYPE_CHECKING:
    import torch


class Visual(Record, frozen=True, kw_only=True):
    """What the language model gets of a picture: ``tokens`` (n, d), and ``deepstack``, the same for each of
    its first layers. ``Any`` because a record does not know torch."""

    tokens: Any
    deepstack: tuple[Any, ...]

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


def visual_of(output: Any) -> Visual:
    """The tokens in what ``model.model.visual(...)`` returns."""
    return Visual(tokens=output.pooler_output, deepstack=tuple(output.deepstack_features))


def pooled(visual: Visual, cells: Cells, rows: int, cols: int, levels: int) -> Visual:
    """One token for each cell: of the finest level the encoder's own, of a coarser one the mean over its
    square. ``visual`` holds the rows * cols finest tokens, row by row; rows and columns must be multiples of
    2^(levels - 1). Cells may leave places out, and may lie in one another."""
    if rows * cols != len(visual):
        why = f"{rows}x{cols} cells for {len(visual)} tokens"
        raise BadInput("pooling", "visual tokens", why, "Give the rows and columns of the finest level")
    return Visual(
        tokens=_pool(visual.tokens, cells, rows, cols, levels),
        deepstack=tuple(_pool(layer, cells, rows, cols, levels) for layer in visual.deepstack),
    )


def _pool(tokens: torch.Tensor, cells: Cells, rows: int, cols: int, levels: int) -> torch.Tensor:
    out = tokens.new_empty(len(cells), tokens.shape[-1])
    for level in sorted(set(cells[:, 0].tolist())):
        side = 2 ** (levels - 1 - level)
        grid = tokens.reshape(rows // side, side, cols // side, side, -1)
        here = cells[:, 0] == level
        means = grid if side == 1 else grid.mean(dim=(1, 3), keepdim=True)
        row, col = tensor(cells[here, 1]).long(), tensor(cells[here, 2]).long()
        out[tensor(here)] = means[row, 0, col, 0]
    return out


def encoder_outputs(visual: Visual) -> dict[str, Any]:
    """``mm_encoder_outputs`` of Qwen3-VL for a prompt with one picture."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=(visual.tokens,), deepstack_features=[(layer,) for layer in visual.deepstack]
    )
    return {"image": output}
