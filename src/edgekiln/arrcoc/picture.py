"""A picture from a file or an array: uint8 (H, W, 3) RGB, whatever it was.

Greyscale is repeated, alpha is laid over white, 16 bits keep their high byte, EXIF orientation is applied, a
colour profile is ignored: the rules of ``model.preprocess.open_image``. Pictures larger than that function
takes are decoded here, smaller: a JPEG by its decoder, any other format in strips.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.model.preprocess import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, image_size, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DECODED_PIXELS = 2**27
"""Most pixels of a format without reduced decoding: 11,585 x 11,585, for a moment 512 MiB of RGBA."""
MAX_JPEG_PIXELS = 2 * MAX_PIXELS
"""Most pixels of a JPEG, whose decoder reduces on the way: where Pillow refuses to open any file."""
STRIP_PIXELS = 2**24


def load(source: Path | str | NDArray[Any]) -> NDArray[np.uint8]:
    """``source`` as uint8 (H, W, 3) RGB, contiguous.

    An array is (H, W), (H, W, 1), (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGBA of uint8 or
    uint16 (the high byte counts); a uint8 RGB array comes back as it is where it is contiguous. A file of
    more than ``MAX_PIXELS`` comes back reduced by a whole factor that brings it below. Raises BadInput for
    what is no picture, for floating-point pixels, and for a file or an array beyond the bounds above.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    path = Path(source)
    with warnings.catch_warnings():
        # Pillow warns of what is bounded here.
        warnings.simplefilter("ignore")
        height, width = image_size(path)
    if height * width <= MAX_PIXELS:
        return np.asarray(open_image(path))
    return _decode_smaller(path)


def _bad(subject: object, why: str, cure: str) -> BadInput:
    return BadInput("reading the picture", subject, why, cure)


# ---------------------------------------------------------------- arrays


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    told = f"{array.dtype} {array.shape}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        why = "it is not (H, W) or (H, W, channels) of 1 to 4 channels"
        raise _bad(f"an array {told}", why, "Transpose it to height, width, channels.")
    if array.dtype not in (np.uint8, np.uint16):
        why = f"its pixels are {array.dtype}, whose range nobody states"
        raise _bad(f"an array {told}", why, "Scale it to 0..255 and convert it to uint8.")
    if 0 in array.shape:
        raise _bad(f"an array {told}", "it has no pixel", "Check where it comes from.")
    pixels = array if array.ndim == 3 else array[:, :, None]
    if pixels.shape[0] * pixels.shape[1] > MAX_DECODED_PIXELS:
        why = f"it has more than {MAX_DECODED_PIXELS} pixels"
        raise _bad(f"an array {told}", why, "Scale it down before you use it.")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] in (2, 4):
        pixels = _over_white(pixels)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``pixels`` whose last channel is alpha (not premultiplied), over white, rounded half up."""
    colour, alpha = pixels[:, :, :-1].astype(np.uint32), pixels[:, :, -1:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


# ---------------------------------------------------------------- files too large to decode whole


def _decode_smaller(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _bad(path, f"the file is larger than {MAX_FILE_BYTES} bytes", "Save it smaller.")
        with warnings.catch_warnings():
            # Pillow's own bound on pixels is replaced by the one below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN]) as picture:
                return _reduced(picture, path)
    except BadInput:
        raise
    except Exception as error:  # a broken file makes decoders raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise _bad(path, why, "Remove the file or save it again.") from error


def _reduced(picture: Image, path: Path) -> NDArray[np.uint8]:
    width, height = picture.size
    most = MAX_JPEG_PIXELS if picture.format == "JPEG" else MAX_DECODED_PIXELS
    if width * height > most:
        why = f"it has {width} x {height} pixels, more than {most} for {picture.format}"
        raise _bad(path, why, "Scale it down before you use it.")
    factor = math.ceil(math.sqrt(width * height / MAX_PIXELS))
    turn = picture.getexif().get(0x0112, 1)
    if picture.format == "JPEG":
        picture.draft(None, (max(1, width // factor), max(1, height // factor)))
        if picture.size[0] * picture.size[1] > MAX_PIXELS:  # drafts halve: ask for the next one
            picture.draft(None, (max(1, width // (2 * factor)), max(1, height // (2 * factor))))
        factor = 1
    picture.load()
    rows = max(factor, STRIP_PIXELS // picture.size[0] // factor * factor)
    strips = []
    for top in range(0, picture.size[1], rows):
        strip = picture.crop((0, top, picture.size[0], min(top + rows, picture.size[1])))
        strips.append(np.asarray(_rgb(strip, path).reduce(factor)))
    return np.ascontiguousarray(turned(np.concatenate(strips), turn))


def _rgb(strip: Image, path: Path) -> Image:
    from PIL import Image

    if strip.mode == "F":
        raise _bad(path, "its pixels are floating-point numbers", "Save it with 8 bits a channel.")
    if strip.mode.startswith("I"):
        values = np.clip(np.asarray(strip).astype(np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if strip.has_transparency_data:
        over = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (255,) * 4), over).convert("RGB")
    return strip.convert("RGB")


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """``pixels`` (H, W, 3) as the EXIF tag Orientation (1 to 8; others mean 1) says they are to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
