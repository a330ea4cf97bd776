"""From a picture file to the input tensor: the one reference implementation.

Everything that prepares a picture, here or in the code of a bundle, has to give these numbers. All
geometry is in whole pixels, rounded half up; resampling is Pillow's (antialiased when it shrinks).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.model.signature import image_layout
from edgekiln.records import Preprocess, Record, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded: 256 MiB of RGB, the bound at which Pillow itself warns."""
MAX_FILE_BYTES = 512 * 2**20
MAX_SIDE = 16384
# A closed list: EPS would start Ghostscript, and rare decoders are rarely tested.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000")


class Normalisation(Record, frozen=True, kw_only=True):
    """``(pixel * scale - mean) / std``, per channel in ``colour`` order."""

    title: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colour: str = "RGB"


_DTYPES: dict[str, Literal["float32", "float16", "uint8"]] = {
    "float32": "float32",
    "float16": "float16",
    "uint8": "uint8",
}
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
COMMON: dict[str, Normalisation] = {
    "unit": Normalisation(title="x / 255", scale=1 / 255, mean=_ZERO, std=_ONE),
    "imagenet": Normalisation(
        title="torchvision's ImageNet mean and std",
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "tf": Normalisation(title="(x - 127.5) / 127.5", scale=1.0, mean=(127.5,) * 3, std=(127.5,) * 3),
    "efficientnet-lite": Normalisation(
        title="(x - 127) / 128", scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3
    ),
    "caffe": Normalisation(
        title="x - mean, BGR", scale=1.0, mean=(103.939, 116.779, 123.68), std=_ONE, colour="BGR"
    ),
    "raw": Normalisation(title="x, 0 to 255", scale=1.0, mean=_ZERO, std=_ONE),
}
"""Normalisations in common use, by name."""


# ---------------------------------------------------------------- reading a picture


def _bad_picture(path: Path, why: str, cure: str = "Remove the file or save it again.") -> BadInput:
    return BadInput("reading the picture", path, why, cure)


def open_image(path: Path) -> Image:
    """The picture in ``path`` as RGB, 8 bits a channel, turned as its EXIF orientation says.

    Transparent pixels lie on white; 16-bit grey keeps its high byte (as Pillow does for 16-bit colour);
    of an animation the first frame is taken; colour profiles are ignored. Raises BadInput for a file
    that is missing, no picture, truncated, floating-point or larger than MAX_PIXELS.
    """
    return _read(path, full=True)


def check_image(path: Path) -> None:
    """Raise BadInput if ``open_image`` would. Cheaper: a JPEG is decoded at an eighth of its size."""
    _read(path, full=False)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture once it is turned as its EXIF orientation says. Decodes nothing."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise _bad_picture(path, _reason(error)) from error
    return (width, height) if turned else (height, width)


def _formats() -> list[str]:
    """The formats of FORMATS that this build of Pillow reads; it raises KeyError for the others."""
    from PIL import Image

    Image.init()
    return [f for f in FORMATS if f in Image.OPEN]


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture in a known format"
    return " ".join(str(error).split()) or type(error).__name__


def _read(path: Path, *, full: bool) -> Image:
    from PIL import Image, ImageOps

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _bad_picture(path, f"the file is larger than {MAX_FILE_BYTES} bytes", "Save it smaller.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(path, formats=_formats()) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if not full:
                    picture.draft(None, (max(1, width // 8), max(1, height // 8)))
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture), path)
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = f"it has more than {MAX_PIXELS} pixels"
        raise _bad_picture(path, why, "Scale it down before you use it.") from error
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise _bad_picture(path, _reason(error)) from error


def _to_rgb(picture: Image, path: Path) -> Image:
    from PIL import Image

    if picture.mode == "F":
        why = "its pixels are floating-point numbers"
        raise _bad_picture(path, why, "Save it with 8 bits a channel, or give the tensor as .npy.")
    if picture.mode.startswith("I"):
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")


# ---------------------------------------------------------------- geometry


def _half_up(value: float) -> int:
    return math.floor(value + 0.5)


def crop_box(width: int, height: int, spec: Preprocess) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the crop in a picture of ``width`` x ``height``, in whole pixels.

    The largest centred rectangle of the frame's aspect that fits, times ``spec.crop``: its short side
    is then ``crop`` times the picture's wherever such a rectangle fits. Odd margins leave the smaller
    part at the left and at the top.
    """
    if width * spec.height <= height * spec.width:  # the picture is narrower than the frame
        wide, high = float(width), width * spec.height / spec.width
    else:
        wide, high = height * spec.width / spec.height, float(height)
    w = min(width, max(1, _half_up(wide * spec.crop)))
    h = min(height, max(1, _half_up(high * spec.crop)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def letterbox_box(width: int, height: int, spec: Preprocess) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) inside the frame that the whole picture is resized to."""
    ratio = min(spec.width / width, spec.height / height)
    w = min(spec.width, max(1, _half_up(width * ratio)))
    h = min(spec.height, max(1, _half_up(height * ratio)))
    left, top = (spec.width - w) // 2, (spec.height - h) // 2
    return left, top, left + w, top + h


def frame(spec: Preprocess, image: Image) -> Image:
    """``image`` brought to ``spec.width`` x ``spec.height`` with one resize. Mode RGB, or L for GRAY."""
    from PIL import Image

    picture = image.convert("L" if spec.colour == "GRAY" else "RGB")
    how = Image.Resampling[spec.interpolation.upper()]
    if spec.fit == "letterbox":
        left, top, right, bottom = letterbox_box(*picture.size, spec)
        out = Image.new(picture.mode, (spec.width, spec.height), (spec.pad,) * len(picture.getbands()))
        out.paste(picture.resize((right - left, bottom - top), how), (left, top))
        return out
    box = crop_box(*picture.size, spec) if spec.fit == "crop" else (0, 0, *picture.size)
    # Cropped first, so that no pixel outside the rectangle leaks in through the filter.
    return picture.crop(box).resize((spec.width, spec.height), how)


def unframe(boxes: NDArray[np.float64], spec: Preprocess, size: tuple[int, int]) -> NDArray[np.float64]:
    """(n, 4) corners x1, y1, x2, y2 in the frame's pixels as those of a picture of (height, width) ``size``.

    The inverse of ``frame``; what reaches past the picture is cut at its edge.
    """
    height, width = size
    inner = (0, 0, spec.width, spec.height)  # where in the frame the part ``outer`` of the picture lies
    outer = (0, 0, width, height)
    if spec.fit == "letterbox":
        inner = letterbox_box(width, height, spec)
    elif spec.fit == "crop":
        outer = crop_box(width, height, spec)
    found = np.empty_like(boxes, dtype=np.float64)
    for axis, most in ((0, width), (1, height)):
        ratio = (outer[axis + 2] - outer[axis]) / (inner[axis + 2] - inner[axis])
        moved = (boxes[:, axis::2] - inner[axis]) * ratio + outer[axis]
        found[:, axis::2] = np.clip(moved, 0, most)
    return found


def apply(spec: Preprocess, image: Image) -> NDArray[Any]:
    """The input tensor of ``image``: (1, C, H, W) or (1, H, W, C), C-contiguous, of ``spec.dtype``.

    ``image`` is RGB as from ``open_image``. GRAY is ITU-R 601 luma (Pillow's "L"). The arithmetic is
    float32, in the order ``(pixel * scale - mean) / std``; float16 rounds at the end.
    """
    pixels: NDArray[Any] = np.asarray(frame(spec, image))
    pixels = pixels[:, :, None] if spec.colour == "GRAY" else pixels
    if spec.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.dtype != "uint8":
        channels = pixels.shape[2]
        mean = np.asarray(spec.mean[:channels], dtype=np.float32)
        std = np.asarray(spec.std[:channels], dtype=np.float32)
        pixels = ((pixels.astype(np.float32) * np.float32(spec.scale) - mean) / std).astype(spec.dtype)
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None])


# ---------------------------------------------------------------- is a specification sound


def _wrong(spec: Preprocess) -> tuple[str, str] | None:
    """(why, cure) of the first thing in ``spec`` that can't be meant."""
    channels = 1 if spec.colour == "GRAY" else 3
    numbers = (spec.scale, spec.crop, *spec.mean, *spec.std)
    if not (0 < spec.width <= MAX_SIDE and 0 < spec.height <= MAX_SIDE):
        return f"{spec.width}x{spec.height} is no size", f"Give a width and height of 1 to {MAX_SIDE}."
    if not all(math.isfinite(n) for n in numbers):
        return "a number is not finite", "Give finite numbers for scale, crop, mean and std."
    if not 0 < spec.crop <= 1:
        return f"crop is {spec.crop}", "Give a share of the short side above 0 and up to 1."
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != channels and not (channels == 1 and len(set(values)) == 1):
            why = f"{name} has {len(values)} values for {channels} channels"
            return why, f"Give {channels} in {spec.colour} order."
    if any(s == 0 for s in spec.std) or spec.scale == 0:
        return "std or scale is 0", "Leave std at 1 where nothing is divided."
    if not 0 <= spec.pad <= 255:
        return f"pad is {spec.pad}", "Give a pixel value from 0 to 255."
    plain = spec.scale == 1 and not any(spec.mean) and all(s == 1 for s in spec.std)
    if spec.dtype == "uint8" and not plain:
        return "bytes can't be normalised", "With dtype uint8 set scale 1, mean 0 and std 1."
    return None


def check(spec: Preprocess, input_spec: TensorSpec) -> None:
    """Raise BadInput if ``spec`` can't be meant or its tensor does not fit ``input_spec``."""
    doing = "checking the preprocessing of"
    if wrong := _wrong(spec):
        raise BadInput(doing, input_spec.name, *wrong)
    channels = 1 if spec.colour == "GRAY" else 3
    size = (spec.height, spec.width)
    gives = (1, channels, *size) if spec.layout == "NCHW" else (1, *size, channels)
    fits = len(input_spec.shape) == 4 and all(
        isinstance(have, str) or have == want for have, want in zip(input_spec.shape, gives, strict=True)
    )
    if not fits:
        takes = "x".join(map(str, input_spec.shape))
        why = f"it gives {'x'.join(map(str, gives))} ({spec.layout}), the model takes {takes}"
        raise BadInput(doing, input_spec.name, why, "Set width, height, colour and layout to the model's.")
    if input_spec.dtype != spec.dtype:
        why = f"it gives {spec.dtype}, the model takes {input_spec.dtype}"
        raise BadInput(doing, input_spec.name, why, f"Set dtype to {input_spec.dtype}, if pictures fit it.")


def normalised(spec: Preprocess, name: str) -> Preprocess:
    """``spec`` with the normalisation ``COMMON[name]``; its geometry stays. BadInput for other names."""
    if name not in COMMON:
        raise BadInput("choosing a normalisation", name, "nobody knows it", did_you_mean(name, COMMON))
    common = COMMON[name]
    grey = spec.colour == "GRAY"
    return msgspec.structs.replace(
        spec,
        scale=common.scale,
        mean=(sum(common.mean) / 3,) if grey else common.mean,
        std=(sum(common.std) / 3,) if grey else common.std,
        colour=spec.colour if grey else common.colour,
    )


def default_for(input_spec: TensorSpec, size: tuple[int, int] | None = None) -> tuple[Preprocess, str]:
    """A preprocessing for a picture input when the user gave none, and the warning that has to be shown.

    ``size`` is (height, width) for an input whose height and width are dynamic. The choice is x / 255
    (raw bytes for a uint8 input), stretch, bilinear. Raises BadInput if the input takes no pictures.
    """
    layout = image_layout(input_spec)
    shape = "x".join(map(str, input_spec.shape))
    doing = "choosing a preprocessing for"
    if layout is None or input_spec.dtype not in _DTYPES:
        why = f"{input_spec.dtype} {shape} is not a picture of 1 or 3 channels"
        raise BadInput(doing, input_spec.name, why, "Give the inputs as .npz files.")
    channels, height, width = (
        input_spec.shape[1:] if layout == "NCHW" else (input_spec.shape[3], *input_spec.shape[1:3])
    )
    high, wide = size or (height, width)
    if isinstance(high, str) or isinstance(wide, str):
        why = f"its height and width are dynamic ({shape})"
        raise BadInput(doing, input_spec.name, why, "Give --input-shape, for example 1x3x640x640.")
    raw = input_spec.dtype == "uint8"
    spec = Preprocess(
        width=wide,
        height=high,
        colour="GRAY" if channels == 1 else "RGB",
        layout=layout,
        scale=1.0 if raw else 1 / 255,
        mean=(0.0,) * (1 if channels == 1 else 3),
        std=(1.0,) * (1 if channels == 1 else 3),
        dtype=_DTYPES[input_spec.dtype],
    )
    check(spec, input_spec)
    what = "bytes as they are" if raw else "x / 255"
    warning = (
        f"no preprocessing was given for '{input_spec.name}': assumed {spec.colour}, stretched to "
        f"{wide}x{high}, bilinear, {what}. A wrong normalisation costs accuracy; give [preprocess]."
    )
    return spec, warning
