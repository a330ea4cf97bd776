"""Element types, and a protobuf value as a tensor, a string or a list.

fp16 and bf16 live in float32 tensors, rounded by ``rounded``; unsigned integers that torch handles badly
live in a wider signed type, and integers below a byte in a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekiln.engines.mil.package import Package, damaged
from edgekiln.errors import NotRunnableHere

Value: TypeAlias = Any
"""A Tensor, a string, a list of values or a dict: what a name in a program stands for."""

Function: TypeAlias = Callable[..., Value]
"""An op: MIL's parameters by name, to its result or a tuple of them."""

MAX_ELEMENTS = 1 << 31

_NAMES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""``MIL.proto``'s DataType numbers that this interpreter takes (bf16, fp8 and uint64 it does not)."""

TORCH = {
    "bool": torch.bool,
    "fp16": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "int4": torch.int8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint4": torch.uint8,
    "uint2": torch.uint8,
    "uint1": torch.uint8,
    "uint6": torch.uint8,
    "uint3": torch.uint8,
}
_NUMPY: dict[str, Any] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
}
_BITS = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}
_SIGNED_RANGES = {"uint16": 1 << 16, "uint32": 1 << 32}


@dataclass(frozen=True)
class Kind:
    """A tensor's declared type; None stands for a length that only the run decides.

    ``dtype`` is "list", "dict" or "state:..." for what is no tensor.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}{['?' if n is None else n for n in self.shape]}"


def kind(value_type: Any, package: str) -> Kind:
    """The declared type of a ``ValueType`` message; a state's is that of the tensor it holds."""
    which = value_type.WhichOneof("type")
    if which == "stateType":
        return kind(value_type.stateType.wrappedType, package)
    if which in {"listType", "dictionaryType", "tupleType"}:
        return Kind(which.removesuffix("Type"))
    if which != "tensorType":
        raise damaged(package, "a value has no type")
    tensor = value_type.tensorType
    if tensor.dataType not in _NAMES:
        why = f"it uses the element type {tensor.dataType} of MIL.proto"
        raise NotRunnableHere("interpreting", package, why, "Convert with another precision")
    shape = tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions
    )
    if math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
        raise damaged(package, f"a tensor of shape {shape} is beyond all reason")
    return Kind(_NAMES[tensor.dataType], shape)


def rounded(value: Tensor, dtype: str) -> Tensor:
    """``value`` as ``dtype`` holds it: fp16 rounds and overflows to infinity, integers wrap."""
    if dtype == "fp16":
        return value.to(torch.float16).to(torch.float32)
    if dtype in _SIGNED_RANGES:
        return torch.remainder(value.to(torch.int64), _SIGNED_RANGES[dtype]).to(TORCH[dtype])
    return value.to(TORCH[dtype])


def unpacked(data: NDArray[np.uint8], bits: int, count: int, signed: bool = False) -> NDArray[Any]:
    """``count`` integers of ``bits`` bits each, packed from the least significant bit of each byte on."""
    flat = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    values: NDArray[Any] = (flat << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values.astype(np.int16) - (1 << bits), values).astype(
            np.int8
        )
    return values


def tensor_of(array: NDArray[Any], dtype: str) -> Tensor:
    """An array as the tensor that holds ``dtype`` here (a copy: weight files are mapped read-only)."""
    wide = array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
    return torch.from_numpy(np.array(wide, copy=True)).to(TORCH[dtype])


def decode(value: Any, package: Package) -> Value:
    """A ``Value`` message as what it stands for. Raises BadInput where type and data disagree."""
    which = value.type.WhichOneof("type")
    if which == "listType":
        return [decode(v, package) for v in value.immediateValue.list.values]
    if which == "dictionaryType":
        pairs = value.immediateValue.dictionary.values
        return {decode(p.key, package): decode(p.value, package) for p in pairs}
    declared = kind(value.type, package.name)
    count = math.prod(n or 0 for n in declared.shape)
    if value.WhichOneof("value") == "blobFileValue":
        blob = value.blobFileValue
        return _from_bytes(package.blobs(blob.fileName, blob.offset), declared, count, package.name)
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field is None and count == 0:
        return torch.zeros([n or 0 for n in declared.shape], dtype=TORCH[declared.dtype])
    if field is None:
        raise damaged(package.name, f"a constant of type {declared} has no value")
    held = getattr(tensor, field).values
    if field == "strings":
        return str(held[0]) if declared.shape == () else [str(s) for s in held]
    if field == "bytes":
        return _from_bytes(np.frombuffer(held, np.uint8), declared, count, package.name)
    if len(held) != count:
        raise damaged(package.name, f"a constant of type {declared} has {len(held)} values")
    array = np.array(held, dtype=_NUMPY.get(declared.dtype, np.int64))
    return tensor_of(array, declared.dtype).reshape([n or 0 for n in declared.shape])


def _from_bytes(data: NDArray[np.uint8], declared: Kind, count: int, package: str) -> Tensor:
    bits = _BITS.get(declared.dtype)
    need = math.ceil(count * bits / 8) if bits else count * np.dtype(_NUMPY[declared.dtype]).itemsize
    if data.size < need or (bits is None and data.size != need):
        raise damaged(package, f"a constant of type {declared} needs {need} bytes and has {data.size}")
    array: NDArray[Any]
    if bits:
        array = unpacked(data[:need], bits, count, signed=declared.dtype == "int4")
    else:
        array = np.frombuffer(data.tobytes(), _NUMPY[declared.dtype])
    return tensor_of(array, declared.dtype).reshape([n or 0 for n in declared.shape])


# ---------------------------------------------------------------- parameters of an op


def ints(value: Tensor | None, default: list[int] | None = None) -> list[int]:
    """A vector parameter as plain integers."""
    if value is None:
        return list(default or ())
    return [int(v) for v in value.reshape(-1).tolist()]


def integer(value: Tensor | None, default: int = 0) -> int:
    return default if value is None else int(value.item())


def flag(value: Tensor | None, default: bool = False) -> bool:
    return default if value is None else bool(value.item())


def flags(value: Tensor | None, count: int) -> list[bool]:
    return [False] * count if value is None else [bool(v) for v in value.reshape(-1).tolist()]


def number(value: Tensor | None, default: float = 0.0) -> float:
    return default if value is None else float(value.item())
