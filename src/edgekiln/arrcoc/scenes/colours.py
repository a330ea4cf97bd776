"""The named colours of the digits, and what must lie behind a digit so that a person can read it.

Distances are CIE 1976 L*a*b* under D65 (CIE 15): a difference of 2.3 is just noticeable side by side; a small
figure needs many times that, and a difference of lightness above all, since the eye resolves hue coarsely.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 235, 40),
    "green": (25, 165, 45),
    "cyan": (20, 215, 225),
    "blue": (35, 60, 230),
    "purple": (135, 45, 185),
    "pink": (255, 125, 195),
}
JITTER = 14
"""Each channel of a glyph's colour lies within this of its name's, 0..255."""

LEAST_DIFFERENCE = 40.0
"""L*a*b* distance that at least ``LEAST_SHARE`` of the pixels behind a glyph have to its colour."""
LEAST_LIGHTNESS = 20.0
"""Difference in L* between a glyph's colour and the mean of the pixels behind it."""
LEAST_SHARE = 0.9

_LINEAR = np.where(
    (ramp := np.arange(256) / 255) <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_XYZ_OVER_WHITE = np.array(
    [
        [0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883],
    ],
    np.float32,
).T


def lab(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """sRGB uint8 (..., 3) to L* 0..100, a*, b* as float32 (..., 3)."""
    ratio = _LINEAR[rgb] @ _XYZ_OVER_WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + np.float32(16 / 116))
    made: NDArray[np.float32] = np.empty_like(f)
    made[..., 0] = 116 * f[..., 1] - 16
    made[..., 1] = 500 * (f[..., 0] - f[..., 1])
    made[..., 2] = 200 * (f[..., 1] - f[..., 2])
    return made


def contrast(glyph_lab: NDArray[np.float32], ground: NDArray[np.uint8]) -> tuple[float, float]:
    """What ``LEAST_DIFFERENCE`` and ``LEAST_LIGHTNESS`` bound, for pixels (height, width, 3) behind a glyph.

    First the distance that ``LEAST_SHARE`` of the pixels reach, then the difference of mean lightness.
    """
    away = lab(ground).reshape(-1, 3) - glyph_lab
    squares = np.einsum("ij,ij->i", away, away)
    skipped = int(len(squares) * (1 - LEAST_SHARE))
    return float(np.partition(squares, skipped)[skipped]) ** 0.5, abs(float(away[:, 0].mean()))


def readable(glyph_lab: NDArray[np.float32], ground: NDArray[np.uint8]) -> bool:
    """Whether a glyph of this colour may stand there."""
    difference, lightness = contrast(glyph_lab, ground)
    return difference >= LEAST_DIFFERENCE and lightness >= LEAST_LIGHTNESS
