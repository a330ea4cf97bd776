"""What the encoder is shown of a picture: whole at one density, or coarse with windows in full detail.

Batches in torch, for training and for exporting; ``mixed`` gathers the same for one picture on a device.
Pictures are float32 (B, 4, 448, 448) in 0..1: red, green, blue, relevance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.arrcoc.compact import MARGIN, PEAK

PATCH = 16
CELL = 4
"""Tokens on a side of a window, which is one cell of the coarsest level in full detail."""


def with_relevance(pictures: Tensor, relevance: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) and relevance (B, R, C) to (B, 4, H, W): a token's over its square."""
    channel = functional.interpolate(relevance[:, None], size=pictures.shape[2:], mode="nearest")
    return torch.cat([pictures, channel], 1)


def uniform(full: Tensor, side: int) -> Tensor:
    """All of the picture as side x side tokens: (B, 4, 16 side + 24, 16 side + 24), reduced by area."""
    return _framed(functional.adaptive_avg_pool2d(full, side * PATCH))


def windows(full: Tensor, cells: Tensor) -> Tensor:
    """The cells (B, K) of the coarsest level, counted row by row, in full detail: (B * K, 4, 88, 88)."""
    framed, size = _framed(full), CELL * PATCH
    across = full.shape[3] // size
    found = []
    for one, chosen in zip(framed, cells.tolist(), strict=True):
        for cell in chosen:
            top, left = cell // across * size, cell % across * size
            found.append(one[:, top : top + size + 2 * MARGIN, left : left + size + 2 * MARGIN])
    return torch.stack(found)


def uniform_positions(relevance: Tensor, side: int, level: float) -> Tensor:
    """(B, side * side, 4) for the tokens of ``uniform``: y, x in 0..1, level, greatest relevance."""
    batch = len(relevance)
    centre = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    here = functional.adaptive_max_pool2d(relevance[:, None], side).flatten(1)
    fixed = torch.stack([y.flatten(), x.flatten(), torch.full((side * side,), level)], -1)
    return torch.cat([fixed.expand(batch, -1, -1), here[..., None]], -1)


def window_positions(relevance: Tensor, cells: Tensor) -> Tensor:
    """(B, K * 16, 4) for the tokens of ``windows``."""
    _, rows, columns = relevance.shape
    row, column = _finest(cells, columns)
    level = torch.full(row.shape, 2.0)
    here = in_windows(relevance, cells)
    return torch.stack([(row + 0.5) / rows, (column + 0.5) / columns, level, here], -1)


def in_windows(grid: Tensor, cells: Tensor) -> Tensor:
    """What ``grid`` (B, R, C) holds at the tokens of ``windows``: (B, K * 16)."""
    row, column = _finest(cells, grid.shape[2])
    return grid.flatten(1).gather(1, row * grid.shape[2] + column)


def _finest(cells: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column (B, K * 16) in the finest grid of each token in ``cells`` (B, K)."""
    across = columns // CELL
    row = (cells // across * CELL)[..., None] + torch.arange(CELL).repeat_interleave(CELL)
    column = (cells % across * CELL)[..., None] + torch.arange(CELL).repeat(CELL)
    return row.flatten(1), column.flatten(1)


def cells_by_relevance(relevance: Tensor, count: int) -> Tensor:
    """The ``count`` cells of the coarsest level with the greatest relevance (B, count), ties by position: as
    ``allocate`` chooses windows with ``PEAK``, in floating point."""
    maps = relevance[:, None]
    worth = (1 - PEAK) * functional.avg_pool2d(maps, CELL) + PEAK * functional.max_pool2d(maps, CELL)
    return worth.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values


def _framed(pictures: Tensor) -> Tensor:
    return functional.pad(pictures, (MARGIN,) * 4, mode="replicate")
