"""The named colours of the digits, and what must lie behind a digit so that a person can read it.

Distances are CIE 1976 L*a*b* under D65 (CIE 15): a difference of 2.3 is just noticeable side by side; a small
figure needs many times that, and a difference of lightness above all, since the eye resolves hue coarsely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 235, 40),
    "green": (25, 165, 45),
    "cyan": (20, 215, 225),
    "blue": (30, 85, 235),
    "purple": (150, 45, 165),
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
_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], np.float32)


def lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB (..., 3) to L* 0..100, a*, b* as float32 (..., 3)."""
    ratio = _LINEAR.take(rgb.reshape(-1, 3)) @ _XYZ_OVER_WHITE
    f = np.cbrt(ratio)
    dark = ratio <= 0.008856
    if dark.any():
        f[dark] = 7.787 * ratio[dark] + 16 / 116
    made: NDArray[np.float32] = f @ _LAB
    made[:, 0] -= 16
    return made.reshape(rgb.shape)


def contrast(
    glyph_lab: NDArray[np.float32], grounds: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What ``LEAST_DIFFERENCE`` and ``LEAST_LIGHTNESS`` bound, for several places (n, height, width, 3).

    First the distance that ``LEAST_SHARE`` of the pixels reach, then the difference of mean lightness.
    """
    away = lab(grounds).reshape(len(grounds), -1, 3) - glyph_lab
    squares = np.einsum("nij,nij->ni", away, away)
    skipped = int(squares.shape[1] * (1 - LEAST_SHARE))
    squares.partition(skipped, axis=1)
    return np.sqrt(squares[:, skipped]), np.abs(away[..., 0].mean(axis=1))


def readable(glyph_lab: NDArray[np.float32], grounds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """At which of the places (n, height, width, 3) a glyph of this colour may stand: (n,)."""
    difference, lightness = contrast(glyph_lab, grounds)
    return (difference >= LEAST_DIFFERENCE) & (lightness >= LEAST_LIGHTNESS)
