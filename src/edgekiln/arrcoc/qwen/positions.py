"""Where tokens of any level lie: in the language model's m-RoPE, in the ViT's rotary embedding, and in the
ViT's learned position table.

All three count in units of the finest level. A token that covers s x s finest ones stands at their centre,
which lies halfway between two of them where s is even: Qwen3-VL's rotary embeddings take such positions as
they are. At the finest level every function here gives what transformers computes itself.

``cells`` is int32 (n, 3): level, row, column; level 0 is the coarsest of ``levels``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Cells: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


def spans(cells: Cells, levels: int) -> Ints:
    """How many finest tokens the side of each cell covers, int64 (n,)."""
    return np.left_shift(1, levels - 1 - cells[:, 0].astype(np.int64))


def in_order(cells: Cells, levels: int) -> Cells:
    """The cells by their upper left corners, row by row: the order in which the model reads a picture."""
    side = spans(cells, levels)
    return cells[np.lexsort((cells[:, 0], cells[:, 2] * side, cells[:, 1] * side))]


def all_cells(rows: int, cols: int, level: int) -> Cells:
    """Every cell of one level, (rows * cols, 3), row by row; ``rows`` and ``cols`` are that level's."""
    row, col = np.divmod(np.arange(rows * cols, dtype=np.int32), np.int32(cols))
    return np.stack([np.full_like(row, level), row, col], axis=1)


def token_centres(cells: Cells, levels: int) -> Floats:
    """Row and column of each token's centre, float32 (n, 2), where finest tokens stand at 0, 1, 2 ..."""
    side = spans(cells, levels)[:, None]
    centres: Floats = ((cells[:, 1:] * side) + (side - 1) / 2).astype(np.float32)
    return centres


def patch_centres(cells: Cells, levels: int, merge: int) -> Floats:
    """Row and column of each patch's centre, float32 (n * merge^2, 2), where finest patches stand at 0, 1
    ..."""
    within = np.stack(np.divmod(np.arange(merge * merge), merge), axis=1)
    side = spans(cells, levels)[:, None, None]
    first = cells[:, None, 1:] * merge + within[None]
    centres: Floats = (first * side + (side - 1) / 2).reshape(-1, 2).astype(np.float32)
    return centres


def table_taps(centres: Floats, rows: int, cols: int, side: int) -> tuple[Ints, Floats]:
    """Which rows of the ViT's ``side`` x ``side`` position table each patch mixes, and by which weights.

    Both (n, 4), bilinear with the corners aligned; ``rows`` and ``cols`` count the finest patches. As
    ``get_vision_interpolation_indices_and_weights`` of transformers, for positions between patches too.
    """
    index_y, weight_y = _axis(centres[:, 0], rows, side)
    index_x, weight_x = _axis(centres[:, 1], cols, side)
    indices = (index_y[:, :, None] * side + index_x[:, None, :]).reshape(-1, 4)
    weights: Floats = (weight_y[:, :, None] * weight_x[:, None, :]).reshape(-1, 4)
    return indices, weights


def _axis(at: Floats, size: int, side: int) -> tuple[Ints, Floats]:
    source = at * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(source)
    taps = np.clip(low.astype(np.int64)[:, None] + np.arange(2), 0, side - 1)
    share = source - low
    return taps, np.stack([1 - share, share], axis=1).astype(np.float32)


def prompt_positions(before: int, centres: Floats, rows: int, cols: int, after: int) -> Floats:
    """m-RoPE positions of a prompt with one picture in it: float32 (3, 1, before + n + after), the rows being
    time, height and width.

    ``before`` and ``after`` count the text tokens around the picture, ``rows`` and ``cols`` the finest visual
    tokens. The text after the picture starts where it would after all the finest tokens, so that leaving
    tokens out moves nothing else.
    """
    start = np.broadcast_to(np.arange(before, dtype=np.float32), (3, before))
    visual = np.full((3, len(centres)), before, np.float32)
    visual[1:] += centres.T
    resume = before + max(rows, cols)
    end = np.broadcast_to(np.arange(resume, resume + after, dtype=np.float32), (3, after))
    return np.concatenate([start, visual, end], axis=1)[:, None]


def tensor(array: NDArray[Any]) -> Any:
    """``array`` as a torch tensor of the same type, copied where it may not be written to."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
