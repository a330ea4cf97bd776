"""What encoder and scorer learn from first: crops around glyphs, so that no work is spent on what is empty.

For the encoder, tokens with a glyph in them, of 40x40 pixels each, at all densities that are read later, with
the relevance as the fourth channel, since only it tells which of two glyphs in sight is meant. A window has
sixteen tokens and a glyph in one or two of them. For the scorer, 4x4 cells of the texture array around glyphs
and, one in four, anywhere: a picture has 784 cells and glyphs in about eight of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.compact import MARGIN
from edgekiln.arrcoc.scenes.generate import Scene
from edgekiln.arrcoc.scenes.photographs import CANVAS
from edgekiln.arrcoc.scenes.questions import Box
from edgekiln.arrcoc.views import PATCH

SIDE = PATCH + 2 * MARGIN
BLOCK = 4
"""Cells of the texture array on a side of a crop for the scorer."""
FULL = (28,)
DENSITIES = (28, 28, 28, 28, 28, 14, 14, 9, 7)
"""Tokens on a side of the whole picture, each as often as it stands here. Nobody can read the coarsest."""


def tokens(
    made: Scene, count: int, random: np.random.Generator, densities: Sequence[int] = DENSITIES
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``count`` crops of a scene, glyph after glyph: uint8 (count, 4, 40, 40), and the digits (count,) on
    their middle squares."""
    crops = np.empty((count, 4, SIDE, SIDE), np.uint8)
    shown = [made.glyphs[i % len(made.glyphs)] for i in range(count)]
    for glyph, crop in zip(shown, crops, strict=True):
        density = densities[int(random.integers(len(densities)))]
        _cut(made, glyph.box, CANVAS / (density * PATCH), random, crop)
    return crops, np.array([g.digit for g in shown], np.int64)


def corners(made: Scene, count: int, grid: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Row and column in the finest grid of the first cell of ``count`` blocks of 4x4: three of four have a
    glyph in them, wherever in them."""
    found = []
    for index in range(count):
        y, x = random.integers(grid, size=2).tolist()
        if index % 4 < 3:
            centre = made.glyphs[index % len(made.glyphs)].centre
            y, x = (int(c * grid / CANVAS) for c in centre)
        off = random.integers(BLOCK, size=2).tolist()
        found.append((min(max(y - off[0], 0), grid - BLOCK), min(max(x - off[1], 0), grid - BLOCK)))
    return found


def _cut(made: Scene, box: Box, reduced: float, random: np.random.Generator, into: NDArray[np.uint8]) -> None:
    """A crop in whose middle square the middle of ``box`` lies, ``reduced`` times smaller than the scene."""
    square, margin = PATCH * reduced, MARGIN * reduced
    y = round((box[0] + box[2]) / 2 - random.random() * square)
    x = round((box[1] + box[3]) / 2 - random.random() * square)
    size = round(square + 2 * margin)
    rows = np.clip(np.arange(y - round(margin), y - round(margin) + size), 0, CANVAS - 1)
    columns = np.clip(np.arange(x - round(margin), x - round(margin) + size), 0, CANVAS - 1)
    part = np.empty((size, size, 4), np.uint8)
    part[..., :3] = made.picture[rows[:, None], columns]
    part[..., 3] = _relevance(box, y, x, size, round(margin), random)
    if size != SIDE:
        part = np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    into[:] = part.transpose(2, 0, 1)


def _relevance(
    box: Box, y: int, x: int, size: int, margin: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """As a scorer might give it, cell by cell from the middle square's corner: weaker, blurred, noisy or
    none at all."""
    across = (np.arange(size) - margin) // PATCH
    first = int(across[0])
    count = int(across[-1]) - first + 1
    shares = [
        _shares(start - corner, stop - corner, first, count)
        for start, stop, corner in ((box[0], box[2], y), (box[1], box[3], x))
    ]
    if random.random() < 0.5:
        shares = [np.convolve(s, (0.25, 0.5, 0.25), "same") * 1.5 for s in shares]
    strength = 0.0 if random.random() < 0.1 else 0.3 + 0.7 * random.random()
    cells = np.outer(shares[0], shares[1]).clip(0, 1) * strength
    cells = np.maximum(cells, random.random(cells.shape) * 0.05)
    index = across - first
    found: NDArray[np.uint8] = np.rint(cells * 255).astype(np.uint8)[index[:, None], index]
    return found


def _shares(start: int, stop: int, first: int, count: int) -> NDArray[np.float64]:
    """The share of ``start`` to ``stop`` in each of ``count`` cells, of which number 0 begins at 0."""
    edges = (first + np.arange(count + 1)) * PATCH
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    found: NDArray[np.float64] = np.maximum(inside, 0) / (stop - start)
    return found
