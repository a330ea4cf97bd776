"""A camera's frame as an engine's input: the reference's numbers, written where the engine reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.records import Preprocess


def fill(spec: Preprocess, frame: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Write the input tensor of ``frame``, (height, width, 3) RGB of uint8, into ``out``.

    ``out`` is one picture of a batch: (C, H, W) or (H, W, C) as ``spec.layout`` says, of ``spec.dtype``. Bit
    for bit what ``model.preprocess.apply`` gives, without its copies. Raises BadInput for another frame.
    """
    from PIL import Image

    from edgekiln.model.preprocess import frame as framed

    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
        told = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise BadInput("preprocessing", "a frame", f"it is {told}", "Give (height, width, 3) RGB of uint8")
    if not all(frame.shape):
        raise BadInput("preprocessing", "a frame", f"it has no pixel {frame.shape}", "Check the source")
    pixels: NDArray[np.uint8] = np.asarray(framed(spec, Image.fromarray(frame)))
    pixels = pixels[:, :, None] if spec.colour == "GRAY" else pixels
    if spec.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    planes = out if spec.layout == "NCHW" else out.transpose(2, 0, 1)
    for channel, plane in enumerate(planes):
        _normalise(spec, pixels[:, :, channel], channel, plane)


def _normalise(spec: Preprocess, pixels: NDArray[np.uint8], channel: int, plane: NDArray[Any]) -> None:
    """``(pixels * scale - mean) / std`` in float32, in this order, rounded once at the end for float16."""
    if spec.dtype == "uint8":
        plane[...] = pixels
        return
    work = plane if spec.dtype == "float32" else np.empty(plane.shape, np.float32)
    np.multiply(pixels, np.float32(spec.scale), out=work, dtype=np.float32)
    np.subtract(work, np.float32(spec.mean[channel]), out=work)
    np.divide(work, np.float32(spec.std[channel]), out=work)
    if work is not plane:
        plane[...] = work
