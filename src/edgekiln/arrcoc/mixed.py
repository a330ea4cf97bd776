"""Patches of mixed detail: the picture's pyramid, the patch of each token, and the way back to a picture.

And what people look at: the relevance and the quadtree, drawn over the picture.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekiln.arrcoc.quadtree import PATCH, Allocation, Grid, Tokens, boxes
from edgekiln.errors import BadInput

DOING = "gathering patches of"
_Pixel = TypeVar("_Pixel", np.uint8, np.float32)


def resized(picture: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """``picture``, uint8 (H, W, 3), at the size of ``grid.canvas``; the aspect is not kept.

    The mean over the area of each pixel (antialiased) where it shrinks along both axes, else bilinear.
    Raises BadInput for anything that is not such a picture.
    """
    from PIL import Image

    _check(picture, None, (np.uint8,))
    height, width = grid.canvas
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = picture.shape[0] >= height and picture.shape[1] >= width
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def pyramid(picture: NDArray[_Pixel], grid: Grid) -> tuple[NDArray[_Pixel], ...]:
    """``picture``, (H, W, 3) of ``grid.canvas``, at each of the grid's levels, coarsest first.

    Each pixel is the mean of the picture's pixels that it covers, so nothing aliases. uint8 is summed exactly
    and rounded once, half up; float32 stays float32. Raises BadInput for another size, type or shape.
    """
    _check(picture, grid)
    height, width = grid.canvas
    finer_first: list[NDArray[Any]] = [
        np.empty((3, height >> step, width >> step), picture.dtype).transpose(1, 2, 0)
        for step in range(1, grid.levels)
    ]
    side = height // grid.rows  # a row of regions at a time: what is in between stays in the cache
    for top in range(0, height, side):
        part: NDArray[Any] = picture[top : top + side]
        for step, level in enumerate(finer_first, 1):
            here = level[top >> step : (top + side) >> step]
            if picture.dtype == np.uint8:
                # 255 * 4^3 fits into 16 bits: the sums are exact at all the levels that a grid may have.
                part = _fourfold(part, np.uint16)
                here[...] = (part + (1 << (2 * step - 1))) >> (2 * step)
            else:
                part = _fourfold(part, np.float32) * np.float32(0.25)
                here[...] = part
    return (*finer_first[::-1], picture)


def coarsest(picture: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """The coarsest level of ``pyramid`` alone, as planes: (3, h, w), the same whole numbers in a third of the
    time. ``picture`` is uint8 (H, W, 3) of ``grid.canvas``; raises BadInput for anything else."""
    _check(picture, grid, (np.uint8,))
    height, width = grid.canvas
    side = 1 << (grid.levels - 1)
    rows = picture.reshape(height // side, side, width * 3)
    sums = rows[:, 0].astype(np.uint16)
    for row in range(1, side):
        sums += rows[:, row]
    across = sums.reshape(-1, side * 3)  # of each square the columns' sums: red, green, blue, red ...
    planes = np.empty((3, len(across)), np.uint16)
    for channel, plane in enumerate(planes):
        plane[:] = across[:, channel]
        for column in range(channel + 3, side * 3, 3):
            plane += across[:, column]
    planes += (side * side) >> 1
    planes >>= 2 * (grid.levels - 1)
    return planes.astype(np.uint8).reshape(3, height // side, width // side)


def gather(levels: tuple[NDArray[_Pixel], ...], tokens: Tokens) -> NDArray[_Pixel]:
    """The patch of each of ``tokens`` (n, 3), from ``pyramid``'s levels: (n, 3, PATCH, PATCH), their type.

    Takes ``Allocation.tokens`` and the padded ones alike. The tokens have to be of the levels' grid.
    """
    patches = np.empty((len(tokens), 3, PATCH, PATCH), levels[0].dtype)
    for number, level in enumerate(levels):
        mine = np.flatnonzero(tokens[:, 0] == number)
        if len(mine):
            patches[mine] = _tiles(level)[tokens[mine, 1], tokens[mine, 2]]
    return patches


def positions(tokens: Tokens, grid: Grid) -> NDArray[np.float32]:
    """Where each of ``tokens`` (n, 3) lies: float32 (n, 3), centre y and centre x in 0..1 of the picture, and
    its level."""
    cells = np.array([grid.rows, grid.cols], np.float64) * 2.0 ** tokens[:, :1]
    centre = (tokens[:, 1:] + 0.5) / cells
    return np.concatenate([centre, tokens[:, :1]], axis=1).astype(np.float32)


def paint(patches: NDArray[_Pixel], tokens: Tokens, grid: Grid) -> NDArray[_Pixel]:
    """The picture that ``patches`` (n, 3, PATCH, PATCH) show: (H, W, 3) of ``grid.canvas``.

    Each patch is laid back at its place, its pixels repeated; finer ones lie over coarser ones. The inverse
    of ``gather``: taken from the painted picture, the patch of every token that no other covers is the same
    again. What no token covers is 0.
    """
    picture = np.zeros((*grid.canvas, 3), patches.dtype)
    for level in range(grid.levels):
        mine = np.flatnonzero(tokens[:, 0] == level)
        if len(mine):
            factor = 1 << (grid.levels - 1 - level)
            large = patches[mine].repeat(factor, axis=2).repeat(factor, axis=3)
            view = _tiles(picture, PATCH * factor)
            view[tokens[mine, 1], tokens[mine, 2]] = large
    return picture


# ---------------------------------------------------------------- for the eye


HEAT = ((24, 16, 84), (112, 30, 150), (214, 62, 108), (250, 146, 54), (253, 231, 120))
"""RGB of relevance 0, 0.25, 0.5, 0.75 and 1: lighter is more, also for those who can't tell hues apart."""
DIM, TINT = 0.45, 0.5
"""What is left of a picture's light where relevance is 0; the heat's share where it is 1."""
LINE = (0.16, 0.42, 0.8, 1.0)
"""How much of a line of each level is white."""


def overlay(
    picture: NDArray[np.uint8], allocation: Allocation, relevance: ArrayLike, *, scale: int = 2
) -> NDArray[np.uint8]:
    """What was looked at, drawn for people: uint8 (H * scale, W * scale, 3).

    ``picture`` is uint8 (H, W, 3) of the grid's canvas. Where ``relevance`` (``grid.finest``, in 0..1, a
    fixed scale) is low the picture is dimmed and grey, where it is high it glows and keeps its light and
    shade; the lines are the quadtree's, the finer the brighter.

    Raises BadInput for a picture or a map of another shape or type.
    """
    from PIL import Image

    grid = allocation.grid
    _check(picture, grid, (np.uint8,))
    given = np.asarray(relevance)
    if given.shape != grid.finest or given.dtype.kind not in "fiub" or not np.isfinite(given).all():
        cure = f"Give finite numbers of shape {grid.finest}"
        raise BadInput(
            "drawing", "a relevance map", f"it is {given.dtype} {given.shape}, or not finite", cure
        )
    height, width = (side * scale for side in grid.canvas)
    large = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    heat = Image.fromarray(given.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    share = np.asarray(heat, np.float32).clip(0, 1)[:, :, None]
    colour = np.asarray(large, np.float32)
    grey = colour @ np.array([[0.299], [0.587], [0.114]], np.float32)
    kept = np.sqrt(share)
    base = (grey + (colour - grey) * (0.3 + 0.7 * kept)) * (DIM + (1 - DIM) * kept)
    stops, steps = np.linspace(0, 1, len(HEAT)), np.linspace(0, 1, 256)
    table = np.stack([np.interp(steps, stops, c) for c in np.array(HEAT).T], axis=1).astype(np.float32)
    glow = table[(share[:, :, 0] * 255).round().astype(np.uint8)]
    mixed = base + (glow * (0.3 + grey / 255) - base) * TINT * share
    white = _lines(allocation, scale)[:, :, None]
    drawn: NDArray[np.uint8] = (mixed + (255 - mixed) * white).round().clip(0, 255).astype(np.uint8)
    return drawn


FAINT = 0.45
"""What is left of a line's white where the picture under it is what matters."""


def outlined(picture: NDArray[np.uint8], allocation: Allocation, *, scale: int = 2) -> NDArray[np.uint8]:
    """``picture``, uint8 (H, W, 3) of the grid's canvas, with the tokens' lines drawn faintly and a frame
    around each region that is refined: uint8 (H * scale, W * scale, 3). Its pixels are repeated, not
    smoothed: of ``paint``'s picture the steps are what there is to see.

    Raises BadInput for a picture of another shape or type.
    """
    grid = allocation.grid
    _check(picture, grid, (np.uint8,))
    white = _lines(allocation, scale) * np.float32(FAINT)
    fine = allocation.tokens[allocation.tokens[:, 0] > 0]
    side = (PATCH << (grid.levels - 1)) * scale
    for row, column in np.unique(fine[:, 1:] >> fine[:, :1], axis=0) * side:
        frame = white[row : row + side, column : column + side]
        for edge in (frame[:scale], frame[-scale:], frame[:, :scale], frame[:, -scale:]):
            edge[...] = 1
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1).astype(np.float32)
    drawn: NDArray[np.uint8] = (large + (255 - large) * white[:, :, None]).round().astype(np.uint8)
    return drawn


def _lines(allocation: Allocation, scale: int) -> NDArray[np.float32]:
    """How white the lines make each pixel of the drawing: 0..1, (H * scale, W * scale)."""
    grid = allocation.grid
    found = np.zeros([side * scale for side in grid.canvas], np.float32)
    for level, (top, left, bottom, right) in zip(
        allocation.tokens[:, 0], boxes(allocation.tokens, grid) * scale, strict=True
    ):
        for edge in (
            found[top, left:right],
            found[bottom - 1, left:right],
            found[top:bottom, left],
            found[top:bottom, right - 1],
        ):
            np.maximum(edge, LINE[level], out=edge)
    return found


# ---------------------------------------------------------------- parts


def _fourfold(picture: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Sums of 2 x 2 pixels: (H, W, 3) to (H / 2, W / 2, 3), a view of memory that holds planes."""
    rows = np.add(picture[0::2], picture[1::2], dtype=dtype)
    planes = np.empty((3, rows.shape[0], rows.shape[1] // 2), dtype)
    for channel, plane in enumerate(planes):  # NumPy is four times as slow along an axis of 3
        np.add(rows[:, 0::2, channel], rows[:, 1::2, channel], out=plane)
    return planes.transpose(1, 2, 0)


def _tiles(picture: NDArray[_Pixel], side: int = PATCH) -> NDArray[_Pixel]:
    """A view of (H, W, 3) as squares: (rows, cols, 3, side, side)."""
    height, width = picture.shape[:2]
    cut = picture.reshape(height // side, side, width // side, side, 3)
    return cut.transpose(0, 2, 4, 1, 3)


def _check(
    picture: object, grid: Grid | None, dtypes: tuple[type[np.generic], ...] = (np.uint8, np.float32)
) -> None:
    cure = f"Give (height, width, 3) RGB of {' or '.join(d.__name__ for d in dtypes)}"
    if not isinstance(picture, np.ndarray) or picture.dtype not in dtypes:
        told = f"{picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise BadInput(DOING, "a picture", f"it is {told}", cure)
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BadInput(DOING, "a picture", f"its shape is {picture.shape}", cure)
    if grid is not None and picture.shape[:2] != grid.canvas:
        height, width = grid.canvas
        why = f"it has {picture.shape[0]} x {picture.shape[1]} pixels, the grid lies over {height} x {width}"
        raise BadInput(DOING, "a picture", why, "Bring it to that size first (`resized`)")
