"""The texture array of one picture on the device: OpenCV where it is installed, else NumPy alone.

What the channels are, and their ranges, says ``channels``. First the picture is brought to the asked size by
area: each pixel of the result is the mean of what it covers, rounded to a whole number, one rule for every
ratio and for each axis. All channels follow from that reduced uint8 picture.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc import channels as c
from edgekiln.errors import BadInput, MissingExtra

Backend = Literal["opencv", "numpy"]
MAX_SIDE = 8192
"""Longest side of a texture array: 13 float32 planes of that size squared are 3.5 GB."""


def texture(
    picture: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    out: NDArray[np.float32] | None = None,
    backend: Backend | None = None,
) -> NDArray[np.float32]:
    """The thirteen channels of ``picture``, uint8 (H, W, 3) RGB, at ``size`` (h, w): float32 (13, h, w).

    Written into ``out`` where that is given. ``backend`` is OpenCV where installed, else NumPy. Raises BadInput
    for another picture, size or buffer, MissingExtra where ``backend`` asks for OpenCV in vain.
    """
    _check(picture, size, out)
    planes = np.empty((c.COUNT, *size), np.float32) if out is None else out
    reduced = reduction(picture, size, backend=backend)
    planes[c.POSITIONS] = cached_positions(*size)
    (_by_opencv if _use_opencv(backend) else _by_numpy)(reduced, planes)
    return planes


def reduction(
    picture: NDArray[np.uint8], size: tuple[int, int], *, backend: Backend | None = None
) -> NDArray[np.uint8]:
    """``picture`` (H, W, 3) at ``size`` (h, w) by area, rounded; the picture itself where it has that size."""
    if picture.shape[:2] == tuple(size):
        return picture
    shrinks = picture.shape[0] >= size[0] and picture.shape[1] >= size[1]
    if shrinks and _use_opencv(backend):
        import cv2

        # OpenCV's area is this module's where both axes shrink; where one grows, it is something else.
        return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    rows, columns = _coverage(picture.shape[0], size[0]), _coverage(picture.shape[1], size[1])
    # (h, H) x (H, W, 3) -> (h, W, 3) -> (h, 3, W) x (W, w)
    high = np.tensordot(rows, picture.astype(np.float32), 1).transpose(0, 2, 1)
    mean = (high @ columns.T).transpose(0, 2, 1)
    return np.ascontiguousarray(np.floor(mean + np.float32(0.5)).clip(0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=8)
def cached_positions(height: int, width: int) -> NDArray[np.float32]:
    """``channels.positions``, computed once a size; not to be written to."""
    planes = c.positions(height, width)
    planes.flags.writeable = False
    return planes


@functools.lru_cache(maxsize=16)
def _coverage(length: int, cells: int) -> NDArray[np.float32]:
    return c.coverage(length, cells).astype(np.float32)


def _use_opencv(backend: Backend | None) -> bool:
    if backend == "numpy":
        return False
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        if backend == "opencv":
            raise MissingExtra("computing", "the texture array", "video") from error
        return False
    return True


def _check(picture: Any, size: tuple[int, int], out: Any) -> None:
    doing, subject = "computing the texture array of", "a picture"
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        told = (
            f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        )
        raise BadInput(doing, subject, f"it is {told}", "Give (H, W, 3) RGB of uint8, as picture.load does.")
    if 0 in picture.shape:
        raise BadInput(doing, subject, f"it has no pixel {picture.shape}", "Check where it comes from.")
    if len(size) != 2 or not all(0 < side <= MAX_SIDE for side in size):
        raise BadInput(doing, subject, f"{size} is no size", f"Give height and width of 1 to {MAX_SIDE}.")
    if out is not None and (
        out.dtype != np.float32 or out.shape != (c.COUNT, *size) or not out.flags.c_contiguous
    ):
        why = f"the buffer is {out.dtype} {out.shape}"
        raise BadInput(doing, subject, why, f"Give contiguous float32 {(c.COUNT, *size)}.")


# ---------------------------------------------------------------- OpenCV


def _by_opencv(reduced: NDArray[np.uint8], planes: NDArray[np.float32]) -> None:
    import cv2

    height, width = reduced.shape[:2]
    lab = cv2.cvtColor(reduced, cv2.COLOR_RGB2Lab)
    luma = cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY)
    np.multiply(reduced.transpose(2, 0, 1), np.float32(1 / 255), out=planes[c.R : c.L])
    np.multiply(lab.transpose(2, 0, 1), np.float32(1 / 255), out=planes[c.L : c.GX])
    gx, gy = cv2.spatialGradient(luma, borderType=cv2.BORDER_REPLICATE)
    np.multiply(gx, np.float32(1 / c.SOBEL_FULL), out=planes[c.GX])
    np.multiply(gy, np.float32(1 / c.SOBEL_FULL), out=planes[c.GY])
    cv2.magnitude(planes[c.GX], planes[c.GY], planes[c.MAGNITUDE])
    padded = cv2.copyMakeBorder(luma, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    planes[c.DEVIATION] = _deviation(padded)


# ---------------------------------------------------------------- NumPy


def _by_numpy(reduced: NDArray[np.uint8], planes: NDArray[np.float32]) -> None:
    np.multiply(reduced.transpose(2, 0, 1), np.float32(1 / 255), out=planes[c.R : c.L])
    _lab(reduced, planes[c.L : c.GX])
    red, green, blue = (reduced[..., i].astype(np.int32) for i in range(3))
    luma = ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).astype(np.int16)
    near = np.pad(luma, 1, mode="edge")
    down = near[:-2] + 2 * near[1:-1] + near[2:]
    right = near[:, :-2] + 2 * near[:, 1:-1] + near[:, 2:]
    np.multiply(down[:, 2:] - down[:, :-2], np.float32(1 / c.SOBEL_FULL), out=planes[c.GX])
    np.multiply(right[2:] - right[:-2], np.float32(1 / c.SOBEL_FULL), out=planes[c.GY])
    np.sqrt(planes[c.GX] ** 2 + planes[c.GY] ** 2, out=planes[c.MAGNITUDE])
    planes[c.DEVIATION] = _deviation(np.pad(luma, 2, mode="edge"))


def _lab(reduced: NDArray[np.uint8], planes: NDArray[np.float32]) -> None:
    light = _light()[reduced]
    xyz = light @ c.XYZ_OF_RGB.T.astype(np.float32)
    f = np.where(xyz > c.LINEAR_BELOW, np.cbrt(xyz), np.float32(c.SLOPE) * xyz + np.float32(c.OFFSET))
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    planes[0] = 1.16 * y - 0.16
    planes[1] = (500 * (x - y) + 128) / 255
    planes[2] = (200 * (y - z) + 128) / 255
    np.clip(planes, 0, 1, out=planes)


@functools.lru_cache(maxsize=1)
def _light() -> NDArray[np.float32]:
    return c.linear(np.arange(256) / 255).astype(np.float32)


def _deviation(padded: NDArray[Any]) -> NDArray[np.float32]:
    """Standard deviation of luma / 255 over 5x5, from luma (h + 4, w + 4): float32 (h, w).

    ``sqrt(n sum(v^2) - sum(v)^2) / n`` with v = luma - 128 in whole numbers: no difference of nearly equal
    floating-point numbers, so an even area has exactly 0.
    """
    v = padded.astype(np.int32) - 128
    once, squared = _box(v), _box(v * v)
    n = c.WINDOW**2
    return (np.sqrt((n * squared - once * once).astype(np.float32)) * np.float32(1 / (n * 255))).astype(
        np.float32
    )


def _box(v: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums over 5x5 where the square lies inside: (h + 4, w + 4) to (h, w)."""
    for _ in range(2):
        v = v[:-4] + v[1:-3] + v[2:-2] + v[3:-1] + v[4:]
        v = v.T
    return v
