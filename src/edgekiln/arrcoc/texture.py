"""The texture array of one picture on the device: OpenCV where it is installed, else NumPy alone.

What the channels are, and their ranges, says ``channels``. First the picture is brought to the asked size by
area: each pixel of the result is the mean of what it covers, rounded to a whole number, one rule for every
ratio and for each axis. All channels follow from that reduced uint8 picture.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc import channels as c
from edgekiln.errors import BadInput, MissingExtra

Backend = Literal["opencv", "numpy"]
BAND_PIXELS = 2**16
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

    Written into ``out`` where that is given. ``backend`` is OpenCV where installed, else NumPy. Raises
    BadInput for another picture, size or buffer, MissingExtra where ``backend`` asks for OpenCV in vain.
    """
    _check_picture(picture)
    check_size(size)
    _check_buffer(out, size)
    planes = np.empty((c.COUNT, *size), np.float32) if out is None else out
    reduced = reduction(picture, size, backend=backend)
    planes[c.POSITIONS] = cached_positions(*size)
    if _use_opencv(backend):
        _by_opencv(reduced, planes, _scratch_of_this_thread(size))
    else:
        _by_numpy(reduced, planes)
    return planes


class TextureBuffer:
    """A texture array of one size that is filled anew for every picture, with all that filling it needs.

    The position planes are written once. ``planes`` is float32 (13, h, w), and what ``fill`` returns: copy
    what has to outlive the next picture. Not for two threads at once. Raises as ``texture`` does.
    """

    def __init__(self, size: tuple[int, int], *, backend: Backend | None = None) -> None:
        check_size(size)
        self.size = (size[0], size[1])
        self.backend = backend
        self.planes: NDArray[np.float32] = np.empty((c.COUNT, *self.size), np.float32)
        self.planes[c.POSITIONS] = cached_positions(*self.size)
        self._scratch = _Scratch(*self.size) if _use_opencv(backend) else None

    def fill(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The texture array of ``picture``, uint8 (H, W, 3) RGB of any size, in ``planes``."""
        _check_picture(picture)
        reduced = reduction(picture, self.size, backend=self.backend)
        if self._scratch is None:
            _by_numpy(reduced, self.planes)
        else:
            _by_opencv(reduced, self.planes, self._scratch)
        return self.planes


def reduction(
    picture: NDArray[np.uint8], size: tuple[int, int], *, backend: Backend | None = None
) -> NDArray[np.uint8]:
    """``picture`` (H, W, 3) at ``size`` (h, w) by area, rounded; itself where it has that size."""
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


def _check_picture(picture: Any) -> None:
    if not isinstance(picture, np.ndarray):
        raise _bad(f"the picture is a {type(picture).__name__}", "Read it with picture.load.")
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        why = f"the picture is {picture.dtype} {picture.shape}"
        raise _bad(why, "Give (H, W, 3) RGB of uint8, as picture.load does.")
    if 0 in picture.shape:
        raise _bad(f"the picture has no pixel: {picture.shape}", "Check where it comes from.")


def check_size(size: Any) -> None:
    """Raise BadInput unless ``size`` is (height, width), each 1 to ``MAX_SIDE``."""
    whole = all(isinstance(side, int | np.integer) for side in size)
    if len(size) != 2 or not whole or not all(0 < side <= MAX_SIDE for side in size):
        raise _bad(f"{size} is no size", f"Give a height and a width of 1 to {MAX_SIDE}.")


def _check_buffer(out: NDArray[Any] | None, size: tuple[int, int]) -> None:
    wanted = (c.COUNT, *size)
    if out is None or (out.dtype == np.float32 and out.shape == wanted and out.flags.c_contiguous):
        return
    raise _bad(f"the buffer is {out.dtype} {out.shape}", f"Give contiguous float32 of {wanted}.")


def _bad(why: str, cure: str) -> BadInput:
    return BadInput("computing", "the texture array", why, cure)


# ---------------------------------------------------------------- OpenCV


class _Scratch:
    """What ``_by_opencv`` writes on its way, for one size: allocated once, used for every picture.

    ``coded`` and ``slopes`` end with a row that holds the largest value which can occur. ``cv2.normalize``
    divides by the largest value it sees, and so by that constant: it is the one call of OpenCV's Python
    interface that converts whole numbers to scaled float32 in one pass, without a temporary array.
    What is read again at once is done in bands of ``BAND_PIXELS``, which stay in a core's own cache.
    """

    def __init__(self, height: int, width: int) -> None:
        self.coded = np.zeros((6 * height + 1, width), np.uint8)
        self.coded[-1] = 255
        self.slopes = np.zeros((2 * height + 1, width), np.int16)
        self.slopes[-1] = c.SOBEL_FULL
        self.luma = np.zeros((height, width), np.uint8)
        self.squares = np.zeros((height, width), np.uint16)
        self.means = np.zeros((height, width), np.float32)
        rows = min(height, max(1, BAND_PIXELS // width))
        self.bands = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
        packed, found = np.zeros((2, rows, width, 4), np.uint8)
        zeros, unused = np.zeros((2, rows, width), np.uint8)
        self.look_ups = []
        for band in self.bands:
            n = slice(band.stop - band.start)
            self.look_ups.append(
                _LookUp(
                    parts=[*(self.plane(channel)[band] for channel in (c.B, c.G, c.R)), zeros[n]],
                    packed=packed[n],
                    words=packed[n].view("<u2"),
                    indices=packed[n].view("<u4")[..., 0],
                    found_words=found[n].view("<u4")[..., 0],
                    found=found[n],
                    results=[*(self.plane(channel)[band] for channel in (c.L, c.A, c.B_STAR)), unused[n]],
                )
            )

    def plane(self, channel: int) -> NDArray[np.uint8]:
        height = len(self.luma)
        return self.coded[channel * height : (channel + 1) * height]


class _LookUp(NamedTuple):
    """The arrays of one band on its way from R, G, B to L, a, b: views, made once."""

    parts: list[NDArray[np.uint8]]
    packed: NDArray[np.uint8]
    words: NDArray[np.uint16]
    indices: NDArray[np.uint32]
    found_words: NDArray[np.uint32]
    found: NDArray[np.uint8]
    results: list[NDArray[np.uint8]]


_LATEST = threading.local()


def _scratch_of_this_thread(size: tuple[int, int]) -> _Scratch:
    """Kept from call to call: allocating it anew costs more than half of what the channels cost."""
    kept: _Scratch | None = getattr(_LATEST, "scratch", None)
    if kept is None or kept.luma.shape != tuple(size):
        kept = _LATEST.scratch = _Scratch(*size)
    return kept


def _by_opencv(reduced: NDArray[np.uint8], planes: NDArray[np.float32], scratch: _Scratch) -> None:
    """All planes but the positions. In whole numbers as far as they go; float32 where a plane is written."""
    import cv2

    height, width = reduced.shape[:2]
    rows = planes.reshape(-1, width)
    cv2.split(reduced, [scratch.plane(channel) for channel in (c.R, c.G, c.B)])
    for look_up in scratch.look_ups:
        _lab_by_table(look_up)
    # The extra row falls on the first row of gx, that of ``slopes`` on |g|: both are written after it.
    cv2.normalize(scratch.coded, rows[: 6 * height + 1], 1, 0, cv2.NORM_INF, cv2.CV_32F)

    luma, slopes, edge = scratch.luma, scratch.slopes, cv2.BORDER_REPLICATE
    cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY, dst=luma)
    cv2.spatialGradient(luma, slopes[:height], slopes[height:-1], 3, edge)
    first = c.GX * height
    cv2.normalize(slopes, rows[first : first + 2 * height + 1], 1, 0, cv2.NORM_INF, cv2.CV_32F)
    cv2.magnitude(planes[c.GX], planes[c.GY], planes[c.MAGNITUDE])

    # sqrt(mean(v^2) - mean(v)^2). Over an even area both are the same whole number: exactly 0. Elsewhere
    # their difference is at least 24 / 625, more than what rounding to float32 takes away: never negative.
    squares, means, deviation = scratch.squares, scratch.means, planes[c.DEVIATION]
    np.copyto(squares, luma)
    np.multiply(squares, squares, out=squares)
    window = (c.WINDOW, c.WINDOW)
    cv2.boxFilter(luma, cv2.CV_32F, window, means, borderType=edge)
    cv2.boxFilter(squares, cv2.CV_32F, window, deviation, borderType=edge)
    for band in scratch.bands:
        mean, result = means[band], deviation[band]
        np.multiply(mean, mean, out=mean)
        np.subtract(result, mean, out=result)
        cv2.sqrt(result, result)
        np.multiply(result, np.float32(1 / 255), out=result)


def _lab_by_table(band: _LookUp) -> None:
    """L, a and b by one look-up a pixel.

    A pixel's bytes B, G, R, 0 are two little-endian words; each shifted right by two they are B (6 bits) and
    G (8 bits), and R (6 bits), which read as one number are the index.
    """
    import cv2

    cv2.merge(band.parts, dst=band.packed)
    np.right_shift(band.words, 2, out=band.words)
    # Every index is inside; "wrap" is the mode that costs least.
    np.take(_lab_table(), band.indices, out=band.found_words, mode="wrap")
    cv2.split(band.found, band.results)


@functools.lru_cache(maxsize=1)
def _lab_table() -> NDArray[np.uint32]:
    """L, a, b and 0 as the bytes of a word at R >> 2 << 16 | G << 6 | B >> 2: (64 * 65536,), a quarter used.

    The middle of the cell of 4 x 1 x 4 colours, rounded. The other three quarters are never touched and so
    take no memory where the system gives pages on demand: 4 MiB.
    """
    table = np.zeros((64, 4, 256, 64, 4), np.uint8)
    middles = (4 * np.arange(64) + 1.5) / 255
    light, exact = c.linear(middles), c.linear(np.arange(256) / 255)
    from_red = c.XYZ_OF_RGB[:, 0, None] * light
    rest = c.XYZ_OF_RGB[:, 1, None, None] * exact[:, None] + c.XYZ_OF_RGB[:, 2, None, None] * light
    for row in range(64):
        xyz = (from_red[:, row, None, None] + rest).astype(np.float32)
        x, y, z = np.where(xyz > c.LINEAR_BELOW, np.cbrt(xyz), c.SLOPE * xyz + c.OFFSET)
        table[row, 0, :, :, 0] = (1.16 * y - 0.16) * 255 + 0.5
        table[row, 0, :, :, 1] = 500 * (x - y) + 128.5
        table[row, 0, :, :, 2] = 200 * (y - z) + 128.5
    return table.reshape(-1).view("<u4")


# ---------------------------------------------------------------- NumPy


def _by_numpy(reduced: NDArray[np.uint8], planes: NDArray[np.float32]) -> None:
    np.multiply(reduced.transpose(2, 0, 1), np.float32(1 / 255), out=planes[c.R : c.L])
    _lab(reduced, planes[c.L : c.GX])
    red, green, blue = (reduced[..., i].astype(np.int32) for i in range(3))
    weighted = c.LUMA[0] * red + c.LUMA[1] * green + c.LUMA[2] * blue
    luma = ((weighted + c.LUMA_SCALE // 2) // c.LUMA_SCALE).astype(np.int16)
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
