"""Patches of mixed detail: the picture's pyramid, the patch of each token, and the way back to a picture."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.quadtree import PATCH, Grid, Tokens
from edgekiln.errors import BadInput

DOING = "gathering patches of"
_Pixel = TypeVar("_Pixel", np.uint8, np.float32)


def resized(picture: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """``picture``, uint8 (H, W, 3), at the size of ``grid.canvas``; the aspect is not kept.

    The mean over the area of each pixel (antialiased) where it shrinks along both axes, else bilinear.
    Raises BadInput for anything that is not such a picture.
    """
    from PIL import Image

    _check(picture, None)
    if picture.dtype != np.uint8:
        raise BadInput("resizing", "a picture", f"it is {picture.dtype}", "Give uint8")
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
    whole = picture.dtype == np.uint8
    levels: list[NDArray[Any]] = [picture]
    sums: NDArray[Any] = picture
    for step in range(1, grid.levels):
        if whole:
            # 255 * 4^3 fits into 16 bits, so the sums of all the levels that a grid may have are exact.
            sums = _fourfold(sums, np.uint16)
            levels.append(((sums + (1 << (2 * step - 1))) >> (2 * step)).astype(np.uint8))
        else:
            sums = _fourfold(sums, np.float32) * np.float32(0.25)
            levels.append(sums)
    return tuple(levels[::-1])


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


# ---------------------------------------------------------------- parts


def _fourfold(picture: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Sums of 2 x 2 pixels: (H, W, 3) to (H / 2, W / 2, 3)."""
    rows = np.add(picture[0::2], picture[1::2], dtype=dtype)
    both: NDArray[Any] = rows[:, 0::2] + rows[:, 1::2]
    return both


def _tiles(picture: NDArray[_Pixel], side: int = PATCH) -> NDArray[_Pixel]:
    """A view of (H, W, 3) as squares: (rows, cols, 3, side, side)."""
    height, width = picture.shape[:2]
    cut = picture.reshape(height // side, side, width // side, side, 3)
    return cut.transpose(0, 2, 4, 1, 3)


def _check(picture: object, grid: Grid | None) -> None:
    cure = "Give (height, width, 3) RGB of uint8 or float32"
    if not isinstance(picture, np.ndarray) or picture.dtype not in (np.uint8, np.float32):
        told = f"{picture.dtype}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise BadInput(DOING, "a picture", f"it is {told}", cure)
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise BadInput(DOING, "a picture", f"its shape is {picture.shape}", cure)
    if grid is not None and picture.shape[:2] != grid.canvas:
        height, width = grid.canvas
        why = f"it has {picture.shape[0]} x {picture.shape[1]} pixels, the grid lies over {height} x {width}"
        raise BadInput(DOING, "a picture", why, "Bring it to that size first (`resized`)")
