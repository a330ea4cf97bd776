"""Ten photographs of odd sizes, written in the ten ways that upset preprocessing code.

Made from the pictures inside scikit-image's wheel, so nothing is fetched and nothing is kept here.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112


def _bundled(name: str) -> Image.Image:
    """A picture of the wheel, as RGB, read from its file: ``skimage.data`` would want to fetch some."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as picture:
        return picture.convert("RGB")


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _sixteen_bit(picture: Image.Image) -> NDArray[np.uint16]:
    """The same with low bytes of its own: a reader that scales instead of cutting gives other numbers."""
    values = np.asarray(picture, np.uint16)
    return values * 256 + np.roll(values, 5, axis=1)


def _alpha(picture: Image.Image) -> Image.Image:
    """Opaque in the middle, transparent at the rim, every value between on the way."""
    y, x = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    alpha = np.clip(1.4 - np.hypot(x, y), 0, 1) * 255
    out = picture.copy()
    out.putalpha(Image.fromarray(alpha.round().astype(np.uint8)))
    return out


def _nearest(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Some pixels of ``picture`` as they are: palettes, 16 bits and alphas stay what they were."""
    return picture.resize(size, Image.Resampling.NEAREST)


def photographs(folder: Path, shrink: int = 1) -> list[Path]:
    """Write them into ``folder``, which is made where it is missing. Each path names what is odd about it.

    ``shrink`` divides their sides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    astronaut, coffee, cat = (_bundled(f"{n}.png") for n in ("astronaut", "coffee", "chelsea"))
    rocket, hubble = _bundled("rocket.jpg"), _bundled("hubble_deep_field.jpg")
    jpeg = {"quality": 92, "subsampling": 0}
    colours = cat.resize((333, 221)).quantize(64)
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "odd-size.jpg": (coffee.crop((3, 5, 594, 392)), jpeg),
        "turned-right.jpg": (astronaut.crop((0, 0, 511, 383)), {**jpeg, "exif": _turned(6)}),
        "mirrored.png": (rocket.crop((7, 1, 636, 422)), {"exif": _turned(7)}),
        "grey.jpg": (_bundled("camera.png").convert("L").resize((401, 299)), {"quality": 92}),
        "grey-16-bit.png": (
            Image.fromarray(_sixteen_bit(_bundled("moon.png").convert("L").crop((0, 0, 509, 347)))),
            {},
        ),
        "alpha.png": (_alpha(cat.crop((0, 0, 449, 299))), {}),
        # The first half of the palette is transparent in part, each entry by an alpha of its own (tRNS).
        "palette.png": (colours, {"transparency": bytes([*range(0, 256, 8), *[255] * 32])}),
        "tiny.png": (astronaut.resize((7, 5)), {}),
        "panorama-upside-down.jpg": (hubble.resize((1201, 97)).convert("CMYK"), {**jpeg, "exif": _turned(3)}),
    }
    for name, (picture, options) in made.items():
        small = (max(picture.width // shrink, 5), max(picture.height // shrink, 4))
        (picture if shrink == 1 else _nearest(picture, small)).save(folder / name, **options)
    deep = folder / "colour-16-bit.png"
    write_colour_16_bit(deep, _sixteen_bit(coffee.resize((257 // shrink, 511 // shrink))))
    return [*(folder / name for name in made), deep]


def write_colour_16_bit(path: Path, pixels: NDArray[np.uint16]) -> None:
    """An RGB PNG of 16 bits a channel, shape (height, width, 3), which Pillow reads and can't write."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").tobytes()
    size = width * 6
    raw = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
