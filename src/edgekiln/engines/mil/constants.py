"""Compressed constants: the ``constexpr_`` ops of iOS 16 (parameters as attributes) and iOS 18 (as inputs).

The formulas are those of coremltools' documentation of each op. Dequantisation is done in float32 and
rounded once to the declared type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgekiln.engines.mil.values import Function, integer, unpacked


def _along(value: Tensor, rank: int, axis: int) -> Tensor:
    """A scalar or a vector along ``axis``, shaped to broadcast against ``rank`` dimensions."""
    if value.dim() == 0 or value.numel() == 1:
        return value.reshape([1] * rank)
    return value.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def _spread(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat each element over its block so that ``value`` has ``shape``. Raises ValueError if it can't."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have == 0 or want % have:
            raise ValueError(f"{have} blocks do not divide {want} elements along axis {axis}")
        if want != have:
            value = value.repeat_interleave(want // have, dim=axis)
    return value


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    rank, at = quantized_data.dim(), integer(axis)
    return _along(scale, rank, at) * (quantized_data.float() - _along(zero_point.float(), rank, at))


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """``scale * (data - offset)``, one scale and offset per block."""
    values = data.float()
    if offset is not None:
        values = values - _spread(offset.float(), tuple(data.shape))
    return _spread(scale.float(), tuple(data.shape)) * values


def lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None
) -> Tensor:
    """iOS 16: packed indices into one table, with ``shape``. iOS 18: indices in their own shape, a table per
    block (``lut`` has two more dimensions: entries and vector), vectors laid out along ``vector_axis``."""
    if shape is not None:
        dims = [int(n) for n in shape.tolist()]
        bits = int(math.log2(lut.numel()))
        index = torch.from_numpy(unpacked(indices.numpy(), bits, math.prod(dims)))
        return lut[index.long()].reshape(dims)
    entries, width = lut.shape[-2:]
    tables = _blocks(lut, tuple(indices.shape))
    if int(indices.max()) >= entries:
        raise ValueError(f"an index of {int(indices.max())} into a table of {entries}")
    chosen = torch.take_along_dim(
        tables, indices.long()[..., None, None].expand(*indices.shape, 1, width), -2
    )
    dense = chosen.squeeze(-2)
    if width == 1:
        return dense.squeeze(-1)
    axis = integer(vector_axis) % indices.dim()
    moved = dense.movedim(-1, axis + 1)
    return moved.flatten(axis, axis + 1)


def _blocks(lut: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The table that each index uses: the block's own, repeated (as a view where one table serves all)."""
    entries, width = lut.shape[-2:]
    if all(n == 1 for n in lut.shape[:-2]):
        return lut.expand(*shape, entries, width)
    return _spread(lut, (*shape, entries, width))


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """iOS 16: a packed mask with ``shape``. iOS 18: a mask in its own shape."""
    if shape is not None:
        dims = [int(n) for n in shape.tolist()]
        mask = torch.from_numpy(unpacked(mask.numpy(), 1, math.prod(dims))).reshape(dims)
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    if int(mask.count_nonzero()) != nonzero_data.numel():
        raise ValueError(f"{nonzero_data.numel()} values for {int(mask.count_nonzero())} places")
    dense[mask != 0] = nonzero_data
    return dense


def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values that the palette gives at its places."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    mask = indices_mask
    if vector_axis is not None and lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], dim=integer(vector_axis))
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def cast(source_val: Tensor, output_dtype: str) -> Tensor:
    del output_dtype  # the declared type of the result says the same
    return source_val


OPS: dict[str, Function] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_cast": cast,
}
