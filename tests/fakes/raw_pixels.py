"""Photographs as an app's own decoder hands them over: interleaved pixels, not yet turned, not yet RGB."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fakes.photographs import ORIENTATION


@dataclass(frozen=True)
class Raw:
    """``data`` holds rows of ``stride`` bytes, padded with bytes that must not be read as pixels."""

    data: bytes
    width: int
    height: int
    channels: int
    bits: int
    stride: int
    orientation: int
    bgr: bool


def raw(path: Path, padding: int = 0, bgr: bool = False) -> Raw:
    """1 channel of grey, 3 of colour, 4 with alpha; 16 bits where the file has them."""
    with Image.open(path) as picture:
        orientation = picture.getexif().get(ORIENTATION, 1)
        if picture.mode in ("P", "CMYK"):
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        pixels: NDArray[Any] = np.asarray(picture)
    if path.name == "colour-16-bit.png":
        pixels = _deep_colour(path)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if bgr and pixels.shape[2] >= 3:
        pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels * pixels.itemsize + padding), 0xA5, np.uint8)
    rows[:, : rows.shape[1] - padding] = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    stride = rows.shape[1] if padding else 0
    return Raw(rows.tobytes(), width, height, channels, 8 * pixels.itemsize, stride, orientation, bgr)


def _deep_colour(path: Path) -> NDArray[np.uint16]:
    """The pixels that ``photographs.write_colour_16_bit`` wrote: Pillow reads such a file as 8 bits."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8)
    return (
        rows.reshape(height, 1 + width * 6)[:, 1:]
        .copy()
        .view(">u2")
        .astype(np.uint16)
        .reshape(height, width, 3)
    )
