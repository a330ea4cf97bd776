"""The thirteen channels of the texture array: their order, definitions and fixed ranges.

Every value of a channel depends on its own picture only, on at most a 5x5 neighbourhood of the reduced
picture, and on constants; no channel is scaled by an extreme or a mean of the picture or of a batch. So the
same region gives the same numbers wherever it is seen, but for the three channels that say where.

All channels are computed from the reduced picture: uint8 RGB of the asked size (``reduction``). ``luma`` is
its grey value in whole numbers, ``(9798 R + 19235 G + 3735 B + 16384) >> 15`` (ITU-R BT.601-7, 2.5.1, in
15-bit fixed point; what OpenCV's RGB2GRAY computes), 0..255.

Borders: outside the reduced picture its nearest edge pixel goes on (replicate), for every window.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekiln.records import Record


class Channel(Record, frozen=True, kw_only=True):
    """One plane of the texture array. ``low`` and ``high`` bound every value for every picture, inclusive."""

    name: str
    low: float
    high: float
    meaning: str


CHANNELS: tuple[Channel, ...] = (
    Channel(name="R", low=0, high=1, meaning="red / 255, as coded (sRGB)"),
    Channel(name="G", low=0, high=1, meaning="green / 255, as coded"),
    Channel(name="B", low=0, high=1, meaning="blue / 255, as coded"),
    Channel(name="L", low=0, high=1, meaning="CIE L* / 100"),
    Channel(name="a", low=0, high=1, meaning="(CIE a* + 128) / 255: 0.502 is neutral, more is redder"),
    Channel(name="b", low=0, high=1, meaning="(CIE b* + 128) / 255: 0.502 is neutral, more is yellower"),
    Channel(name="gx", low=-1, high=1, meaning="Sobel of luma along x / 1020: positive where brighter right"),
    Channel(name="gy", low=-1, high=1, meaning="Sobel of luma along y / 1020: positive where brighter below"),
    Channel(name="|g|", low=0, high=math.sqrt(1.25), meaning="sqrt(gx^2 + gy^2)"),
    Channel(name="y", low=-1, high=1, meaning="centre of the pixel, -1 the upper edge, 1 the lower"),
    Channel(name="x", low=-1, high=1, meaning="centre of the pixel, -1 the left edge, 1 the right"),
    Channel(name="eccentricity", low=0, high=1, meaning="sqrt((y^2 + x^2) / 2): distance from the centre"),
    Channel(name="deviation", low=0, high=0.5, meaning="standard deviation of luma / 255 over 5x5 pixels"),
)
"""In the order of the planes. The bound of ``|g|``: a convex function has its maximum in a corner of its
domain, and of all 3x3 squares of 0 and 255 the most is gx = 1, gy = 1/2."""

COUNT = len(CHANNELS)
NAMES = tuple(channel.name for channel in CHANNELS)
R, G, B, L, A, B_STAR, GX, GY, MAGNITUDE, Y, X, ECCENTRICITY, DEVIATION = range(COUNT)
POSITIONS = slice(Y, ECCENTRICITY + 1)
"""The three planes that depend on the size only."""
COLOURED = B_STAR + 1
"""The first channels, red to b: what the learned scorers see of the array beside the positions."""

TOLERANCES: dict[str, tuple[float, ...]] = {
    "numpy": (*[1e-6] * 3, *[2e-6] * 3, *[1e-6] * 7),
    "torch": (*[1e-6] * 3, *[2e-5] * 3, *[1e-6] * 7),
    "onnx": (*[1e-6] * 3, *[2e-5] * 3, *[1e-6] * 7),
    "opencv": (*[1e-6] * 3, 0.008, 0.010, 0.010, *[1e-6] * 6, 2e-4),
}
"""How far each implementation is at most from the definition, channel by channel, for one reduced picture.
OpenCV's L, a and b come from a table over 6 bits of red, 8 of green and 6 of blue, in whole 255ths.

Where the picture is reduced first, implementations may round a mean that lies between two whole numbers to
either: one level, 1 / 255, in R, G and B of some pixels, and what follows from it in the others."""

LUMA = (9798, 19235, 3735)
LUMA_SCALE = 2**15
SOBEL_FULL = 1020
"""Largest response of the 3x3 Sobel operator [1 2 1] x [-1 0 1] to luma of 0..255."""
WINDOW = 5
"""Side of the square in which the deviation is taken, in pixels of the reduced picture."""

# sRGB to CIE XYZ, IEC 61966-2-1:1999, each row divided by its component of the white point D65
# (0.95047, 1, 1.08883), so that white gives 1, 1, 1 up to rounding.
XYZ_OF_RGB: NDArray[np.float64] = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
XYZ_OF_RGB /= XYZ_OF_RGB.sum(axis=1, keepdims=True)
LINEAR_BELOW = 216 / 24389  # (6/29)^3, CIE 15:2004, 8.2.1
SLOPE = 841 / 108
OFFSET = 4 / 29
# From f(X), f(Y), f(Z) to the channels L, a, b in their ranges.
LAB_OF_F: NDArray[np.float64] = np.array([[0, 1.16, 0], [500, -500, 0], [0, 200, -200]])
LAB_OF_F[1:] /= 255
LAB_BIAS = (-0.16, 128 / 255, 128 / 255)


def linear(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light of a coded sRGB value, both 0..1 (IEC 61966-2-1:1999)."""
    high = ((coded + 0.055) / 1.055) ** 2.4
    return np.where(coded <= 0.04045, coded / 12.92, high)


def lab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE L*, a*, b* (D65) of uint8 sRGB, (..., 3) to (..., 3), in double precision: the definition that the
    implementations are held to. L* is 0..100; of sRGB a* is -86.2..98.3 and b* is -107.9..94.5."""
    light = linear(np.arange(256) / 255)[rgb]
    xyz = light @ XYZ_OF_RGB.T
    f = np.where(xyz > LINEAR_BELOW, np.cbrt(xyz), SLOPE * xyz + OFFSET)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def positions(height: int, width: int) -> NDArray[np.float32]:
    """The planes y, x and eccentricity: float32 (3, height, width)."""
    y = (2 * np.arange(height) + 1) / height - 1
    x = (2 * np.arange(width) + 1) / width - 1
    planes = np.empty((3, height, width), np.float32)
    planes[0] = y[:, None]
    planes[1] = x[None, :]
    planes[2] = np.sqrt((y[:, None] ** 2 + x[None, :] ** 2) / 2)
    return planes


def coverage(length: int, cells: int) -> NDArray[np.float64]:
    """The area reduction along one axis: (cells, length) weights whose rows sum to 1.

    Cell i covers the pixels from ``i * length / cells`` to ``(i + 1) * length / cells``, a pixel that it cuts
    by the part inside. One rule for every ratio: where ``cells`` is larger than ``length`` a cell lies inside
    one pixel or between two neighbours, so that a picture of one pixel gives that pixel everywhere.
    """
    edges = np.arange(cells + 1) * length / cells
    pixels = np.arange(length)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(inside, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
