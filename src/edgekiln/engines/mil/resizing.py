"""Resizing and resampling of the last two axes.

Grids of sample points follow the formulas in coremltools' documentation of ``resize_bilinear``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.engines.mil.moves import bounded
from edgekiln.engines.mil.values import Function, flag, integer, ints, number


def grid(mode: str, size: int, count: int) -> Tensor:
    """``count`` sample points over an axis of length ``size``, in (float64) places of elements."""
    i = torch.arange(count, dtype=torch.float64)
    if mode in {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"}:
        if count == 1:
            return torch.tensor([(size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0], dtype=torch.float64)
        points = i * (size - 1) / (count - 1)
    elif mode == "DEFAULT":
        points = i * size / count
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / count - 0.5
    else:
        raise ValueError(f"sampling_mode {mode} is unknown")
    return points.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Linear interpolation along one axis."""
    low = points.floor().to(torch.int64).clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if d == axis % x.dim() else 1 for d in range(x.dim())]
    share = (points - low).to(torch.float32).reshape(shape)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _bilinear(x: Tensor, mode: str, height: int, width: int) -> Tensor:
    bounded([*x.shape[:-2], height, width])
    x = x if height == x.shape[-2] else _linear(x, x.dim() - 2, grid(mode, x.shape[-2], height))
    return x if width == x.shape[-1] else _linear(x, x.dim() - 1, grid(mode, x.shape[-1], width))


def _nearest(x: Tensor, axis: int, count: int) -> Tensor:
    """Element ``floor(i * size / count)``, in whole numbers."""
    index = torch.arange(count) * x.shape[axis] // count
    return x.index_select(axis, index)


def _scaled(x: Tensor, height: Tensor | None, width: Tensor | None) -> tuple[int, int]:
    """Floor of length times factor, in float32 as coremltools' shape inference has it."""
    factors = (torch.tensor(1.0) if f is None else f.float() for f in (height, width))
    tall, wide = (int(torch.floor(n * f)) for n, f in zip(x.shape[-2:], factors, strict=True))
    return tall, wide


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None
) -> Tensor:
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    bounded([*x.shape[:-2], height, width])
    return _nearest(_nearest(x, x.dim() - 2, height), x.dim() - 1, width)


def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    height, width = integer(target_size_height), integer(target_size_width)
    bounded([*x.shape[:-2], height, width])
    return _nearest(_nearest(x, x.dim() - 2, height), x.dim() - 1, width)


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | None = None,
    scale_factor_width: Tensor | None = None,
    align_corners: Tensor | None = None,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """Scales are computed anew from the sizes, as MIL says."""
    corners = flag(align_corners, True)
    centres = flag(half_pixel_centers, not corners)
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if centres else "DEFAULT"
    return _bilinear(x, mode, *_scaled(x, scale_factor_height, scale_factor_width))


def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor | None = None,
    target_size_width: Tensor | None = None,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    return _bilinear(x, sampling_mode, integer(target_size_height, 1), integer(target_size_width, 1))


def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` axes take the last lengths of ``shape``; 0 keeps an axis."""
    count = integer(resized_dims)
    wanted = ints(shape)[-count:] if count else []
    for offset, length in enumerate(wanted):
        axis = x.dim() - count + offset
        if length in {0, x.shape[axis]}:
            continue
        bounded([length])
        points = grid(sampling_mode, x.shape[axis], length)
        if interpolation_mode == "NEAREST_NEIGHBOR":
            plain = sampling_mode == "DEFAULT"
            x = _nearest(x, axis, length) if plain else x.index_select(axis, (points + 0.5).floor().long())
        else:
            x = _linear(x, axis, points)
    return x


def _unit(coordinates: Tensor, mode: str, corners: bool, height: int, width: int) -> Tensor:
    """Coordinates (x, y) as torch's grid_sample takes them: -1 to 1."""
    if mode == "normalized_minus_one_to_one":
        return coordinates
    if mode == "normalized_zero_to_one":
        return coordinates * 2 - 1
    size = torch.tensor([width, height], dtype=torch.float32)
    if corners:
        return coordinates * 2 / (size - 1).clamp(min=1) - 1
    return (coordinates * 2 + 1) / size - 1


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor | None = None,
    coordinates_mode: str = "unnormalized",
    align_corners: Tensor | None = None,
) -> Tensor:
    """``x`` (B, C, H, W) at ``coordinates`` (B, H2, W2, (x, y))."""
    corners = flag(align_corners)
    places = _unit(coordinates.float(), coordinates_mode, corners, x.shape[2], x.shape[3])
    pads = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
    if padding_mode not in pads:
        raise ValueError(f"padding_mode {padding_mode} is unknown")
    if padding_mode in {"reflection", "symmetric"} and corners != (padding_mode == "reflection"):
        raise ValueError(f"padding_mode {padding_mode} with align_corners {corners} is not interpreted")
    # Away from the picture grid_sample gives 0: what is sampled is the difference to the padding.
    value = number(padding_value) if padding_mode == "constant" else 0.0
    picked = functional.grid_sample(x - value, places, sampling_mode, pads[padding_mode], corners)
    return picked + value


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: Tensor,
    output_width: Tensor,
    sampling_mode: str = "bilinear",
    padding_mode: str = "constant",
    padding_value: Tensor | None = None,
    coordinates_mode: str = "normalized_minus_one_to_one",
    align_corners: Tensor | None = None,
) -> Tensor:
    """Sample at places moved by a 2x3 matrix per item."""
    size = [x.shape[0], x.shape[1], integer(output_height), integer(output_width)]
    bounded(size)
    matrix = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    corners = flag(align_corners, True)
    places = functional.affine_grid(matrix, size, corners)
    return resample(x, places, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    target_height: Tensor | None = None,
    target_width: Tensor | None = None,
    normalized_coordinates: Tensor | None = None,
    spatial_scale: Tensor | None = None,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
) -> Tensor:
    """iOS 17's form (``boxes`` and ``box_indices``), result (N, C, h, w), for boxes within the picture."""
    if boxes is None:
        raise ValueError("crop_resize of iOS 15 and 16 (the input 'roi') is not interpreted")
    if sampling_mode not in {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"}:
        raise ValueError(f"crop_resize with sampling_mode {sampling_mode} is not interpreted")
    height, width = integer(target_height, 1), integer(target_width, 1)
    images = list(range(boxes.shape[0])) if box_indices is None else ints(box_indices)
    corners = _corners(boxes.float(), box_coordinate_mode) * number(spatial_scale, 1.0)
    if flag(normalized_coordinates):
        h, w = x.shape[2] - 1, x.shape[3] - 1
        corners = corners * torch.tensor([h, w, h, w])
    parts = []
    for box, image in zip(corners.double(), images, strict=True):
        if bool((box < 0).any()) or float(box[2]) > x.shape[2] - 1 or float(box[3]) > x.shape[3] - 1:
            raise ValueError("crop_resize of a box that leaves the picture is not interpreted")
        rows = _between(box[0], box[2], height, sampling_mode)
        columns = _between(box[1], box[3], width, sampling_mode)
        parts.append(_linear(_linear(x[image], 1, rows), 2, columns))
    return torch.stack(parts)


def _corners(boxes: Tensor, mode: str) -> Tensor:
    """Boxes as (top, left, bottom, right)."""
    a, b, c, d = boxes.unbind(1)
    if mode == "CORNERS_HEIGHT_FIRST":
        return boxes
    if mode == "CORNERS_WIDTH_FIRST":
        return torch.stack([b, a, d, c], dim=1)
    if mode == "CENTER_SIZE_HEIGHT_FIRST":
        return torch.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], dim=1)
    if mode == "CENTER_SIZE_WIDTH_FIRST":
        return torch.stack([b - d / 2, a - c / 2, b + d / 2, a + c / 2], dim=1)
    raise ValueError(f"box_coordinate_mode {mode} is unknown")


def _between(low: Tensor, high: Tensor, count: int, mode: str) -> Tensor:
    if count == 1:
        return ((low + high) / 2 if mode == "ALIGN_CORNERS" else low).reshape(1)
    return low + torch.arange(count, dtype=torch.float64) * (high - low) / (count - 1)


OPS: dict[str, Function] = {
    "affine": affine,
    "crop_resize": crop_resize,
    "resample": resample,
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
