"""From a picture to Qwen3-VL's patches, by NumPy and Pillow alone: neither torchvision nor its processor.

The processor's steps (transformers, ``models/qwen2_vl/image_processing_pil_qwen2_vl.py``, which Qwen3-VL
uses): resize so that both sides are whole numbers of tokens and the pixels lie between two bounds, scale,
normalise, cut. A still picture is repeated over the ``temporal_patch`` frames that a patch spans.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.records import Record

Frame: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Resampling: TypeAlias = Literal[0, 1, 2, 3, 4, 5]

MOST_ASPECT = 200
"""The processor's own bound on the longer side over the shorter."""


class PatchRules(Record, frozen=True, kw_only=True):
    """What ``preprocessor_config.json`` says. ``least_pixels`` and ``most_pixels`` bound the resized picture;
    pixels of 0..255 become ``(pixel * scale - mean) / std`` for each of R, G, B; ``resampling`` is Pillow's
    number (3 is bicubic). A token is ``merge`` x ``merge`` patches of ``patch`` x ``patch`` pixels."""

    patch: int = 16
    merge: int = 2
    temporal_patch: int = 2
    least_pixels: int = 65_536
    most_pixels: int = 16_777_216
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resampling: Resampling = 3

    @property
    def token_pixels(self) -> int:
        """Side of a token's square at its level, in pixels."""
        return self.patch * self.merge


def frame_size(height: int, width: int, rules: PatchRules, levels: int = 1) -> tuple[int, int]:
    """(height, width) in pixels to which a picture is resized, of about the same aspect.

    Both are multiples of a token at the coarsest of ``levels`` levels, at least one of them, and their
    product lies within the bounds of ``rules``. With one level this is the processor's own size. Raises
    BadInput for a picture longer than MOST_ASPECT times its width (or the reverse), and where no such size
    lies in the bounds.
    """
    if max(height, width) > MOST_ASPECT * min(height, width):
        why = f"{width}x{height} pixels are more than {MOST_ASPECT} to 1, the model's bound"
        raise BadInput("resizing", "the picture", why, "Cut the picture into pieces and ask about each")
    unit = rules.token_pixels * 2 ** (levels - 1)
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if tall * wide > rules.most_pixels:
        shrink = math.sqrt(height * width / rules.most_pixels)
        tall = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif tall * wide < rules.least_pixels:
        grow = math.sqrt(rules.least_pixels / (height * width))
        tall = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    tall, wide = max(unit, tall), max(unit, wide)
    if levels > 1 and tall * wide > rules.most_pixels:
        why = f"{levels} levels of detail need more than the {rules.most_pixels} pixels that the model takes"
        raise BadInput("resizing", "the picture", why, "Use fewer levels")
    return tall, wide


def resized(picture: Frame, size: tuple[int, int], rules: PatchRules) -> Frame:
    """``picture``, uint8 (H, W, 3), at ``size`` (height, width) by Pillow, antialiased where it shrinks."""
    from PIL import Image

    tall, wide = size
    image = Image.fromarray(picture).resize((wide, tall), Image.Resampling(rules.resampling))
    return np.asarray(image)


def normalised(pixels: NDArray[Any], rules: PatchRules) -> Floats:
    """Pixels (..., 3) of 0..255 as the model takes them, float32."""
    scaled = pixels.astype(np.float32) * np.float32(rules.scale)
    mean, std = np.array(rules.mean, np.float32), np.array(rules.std, np.float32)
    result: Floats = (scaled - mean) / std
    return result


def token_patches(blocks: NDArray[Any], rules: PatchRules) -> Floats:
    """``pixel_values`` of tokens given as squares of pixels: (n, token, token, 3) of 0..255 to
    float32 (n * merge^2, 3 * temporal_patch * patch^2).

    The patches of a token lie together, row by row; a patch is laid out colour, frame, row, column.
    """
    p, m, t = rules.patch, rules.merge, rules.temporal_patch
    n = len(blocks)
    parts = normalised(blocks, rules).reshape(n, m, p, m, p, 3)
    parts = parts.transpose(0, 1, 3, 5, 2, 4)  # token, patch row, patch column, colour, row, column
    frames = np.broadcast_to(parts[:, :, :, :, None], (n, m, m, 3, t, p, p))
    return np.ascontiguousarray(frames).reshape(n * m * m, 3 * t * p * p)


def blocks_of(level: NDArray[Any], rules: PatchRules) -> NDArray[Any]:
    """A picture (H, W, 3) whose sides are whole numbers of tokens, as (H/token, W/token, token, token, 3)."""
    token = rules.token_pixels
    rows, cols = level.shape[0] // token, level.shape[1] // token
    return level.reshape(rows, token, cols, token, 3).transpose(0, 2, 1, 3, 4)


def picture_patches(frame: Frame, rules: PatchRules) -> tuple[Floats, tuple[int, int, int]]:
    """What the processor gives for a resized frame: ``pixel_values`` and its row of ``image_grid_thw``.

    ``pixel_values`` is float32 (patches, 3 * temporal_patch * patch^2), its tokens row by row.
    """
    blocks = blocks_of(frame, rules)
    rows, cols = blocks.shape[:2]
    values = token_patches(blocks.reshape(-1, *blocks.shape[2:]), rules)
    return values, (1, rows * rules.merge, cols * rules.merge)
