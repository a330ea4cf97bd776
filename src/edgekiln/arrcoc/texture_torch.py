"""The texture array of a batch of pictures in torch, on whatever device the batch lies.

The definitions of ``channels`` in float32, in which all whole numbers that occur are exact; nothing is shared
across the batch. It is plain torch, a few dozen kernels on a GPU: one fused kernel near memory bandwidth, and
the scorers on streams of their own, are missing, because no machine with a GPU was there to build and measure
them on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekiln.arrcoc import channels as c
from edgekiln.arrcoc.texture import cached_positions, check_size
from edgekiln.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor


def texture(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """The channels of ``pictures``, uint8 (n, H, W, 3) RGB, at ``size`` (h, w): float32 (n, 13, h, w).

    On the device of ``pictures``; the reduction is that of ``texture.reduction``. Raises BadInput for other
    pictures or another size, MissingExtra without torch.
    """
    try:
        import torch
        from torch.nn import functional
    except ImportError as error:
        raise MissingExtra("computing", "texture arrays of a batch", "torch") from error
    check_size(size)
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
        why = f"the batch is {pictures.dtype} {tuple(pictures.shape)}"
        raise BadInput("computing", "texture arrays", why, "Give (n, H, W, 3) RGB of uint8, no side 0.")
    rgb = _reduction(pictures.permute(0, 3, 1, 2).float(), size)
    luma = torch.floor(_mixed(rgb, np.array([c.LUMA]) / c.LUMA_SCALE, (0.5,)))
    near = functional.pad(luma, (1, 1, 1, 1), mode="replicate")
    down = near[:, :, :-2] + 2 * near[:, :, 1:-1] + near[:, :, 2:]
    right = near[..., :-2] + 2 * near[..., 1:-1] + near[..., 2:]
    gx = (down[..., 2:] - down[..., :-2]) * (1 / c.SOBEL_FULL)
    gy = (right[:, :, 2:] - right[:, :, :-2]) * (1 / c.SOBEL_FULL)
    positions = torch.from_numpy(cached_positions(*size).copy()).to(rgb.device)
    parts = [
        rgb * (1 / 255),
        _lab(rgb * (1 / 255)),
        gx,
        gy,
        (gx * gx + gy * gy).sqrt(),
        positions.expand(len(rgb), *positions.shape),
        _deviation(luma),
    ]
    return torch.cat(parts, dim=1)


def _reduction(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``pixels`` float32 (n, 3, H, W), whole numbers, by area to (n, 3, h, w), rounded half up."""
    import torch

    height, width = pixels.shape[2:]
    if (height, width) == tuple(size):
        return pixels
    rows = torch.from_numpy(c.coverage(height, size[0])).to(pixels)
    columns = torch.from_numpy(c.coverage(width, size[1])).to(pixels)
    return torch.floor(rows @ pixels @ columns.T + 0.5).clamp(0, 255)


def _mixed(planes: Tensor, weights: np.ndarray, bias: tuple[float, ...]) -> Tensor:
    """``weights`` (m, k) times ``planes`` (n, k, h, w) plus ``bias``: (n, m, h, w), terms added in order."""
    import torch

    rows = []
    for row, start in zip(weights.tolist(), bias, strict=True):
        total = planes[:, 0] * row[0]
        for plane, weight in zip(planes.unbind(1)[1:], row[1:], strict=True):
            total = total + plane * weight
        rows.append(total + start)
    return torch.stack(rows, dim=1)


def _lab(coded: Tensor) -> Tensor:
    """L, a, b as channels 3 to 5 have them, of sRGB 0..1 (n, 3, h, w)."""
    import torch

    light = torch.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = _mixed(light, c.XYZ_OF_RGB, (0, 0, 0))
    f = torch.where(xyz > c.LINEAR_BELOW, xyz ** (1 / 3), c.SLOPE * xyz + c.OFFSET)
    return _mixed(f, c.LAB_OF_F, c.LAB_BIAS).clamp(0, 1)


def _deviation(luma: Tensor) -> Tensor:
    """Of luma (n, 1, h, w): ``sqrt(n sum(v^2) - sum(v)^2) / n`` with v = luma - 128, exact below the root."""
    from torch.nn import functional

    padded = functional.pad(luma - 128, (2, 2, 2, 2), mode="replicate")
    once, squared = _box(padded), _box(padded * padded)
    n = c.WINDOW**2
    return (n * squared - once * once).sqrt() * (1 / (n * 255))


def _box(v: Tensor) -> Tensor:
    """Sums over 5x5 where the square lies inside: (n, 1, h + 4, w + 4) to (n, 1, h, w)."""
    v = v[:, :, :-4] + v[:, :, 1:-3] + v[:, :, 2:-2] + v[:, :, 3:-1] + v[:, :, 4:]
    return v[..., :-4] + v[..., 1:-3] + v[..., 2:-2] + v[..., 3:-1] + v[..., 4:]
