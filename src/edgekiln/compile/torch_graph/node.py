"""One ONNX node as an operator's translation sees it: attributes, known constants, shapes of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgekiln.errors import ConversionFailed

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[..., Any]
Lowered: TypeAlias = tuple[Call, Sequence[str | None]]
"""What a translation gives: a function of tensors, and the names of the values it is called with."""

DOING = "translating to PyTorch"
CURE = "Use a target that takes ONNX graphs (onnxruntime, openvino), or change the model at that node"

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


@dataclass
class Values:
    """All values of a graph that are known so far.

    ``constants`` are known when the graph is loaded; ``traced`` holds a fake tensor (shape and dtype) for
    each value that depends on the inputs. ``kept`` are constants that a translation made for itself.
    """

    constants: dict[str, Array] = field(default_factory=dict)
    traced: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: int = 0

    def keep(self, array: Array) -> str:
        """Add a constant; its name."""
        name = f"kept.{self.kept}"
        self.kept += 1
        self.constants[name] = array
        return name


class Node:
    """A node with its inputs: ``names`` has None where an optional input is left out."""

    def __init__(self, proto: onnx.NodeProto, opset: int, values: Values) -> None:
        self.proto, self.opset, self.values = proto, opset, values
        self.names: list[str | None] = [name or None for name in proto.input]
        self.outputs = list(proto.output)
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value; text as str."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        return index < len(self.names) and self.names[index] is not None

    def name(self, index: int) -> str | None:
        return self.names[index] if index < len(self.names) else None

    def constant(self, index: int) -> Array | None:
        """The value of an input where it is known when the graph is loaded."""
        return self.values.constants.get(self.name(index) or "")

    def needed(self, index: int, what: str) -> Array:
        """As ``constant``, refused where it depends on the graph's inputs."""
        found = self.constant(index)
        if found is None:
            self.refuse(f"{what} depends on the graph's inputs")
        return found

    def ints(self, index: int, attribute: str, what: str) -> list[int] | None:
        """A list of integers that is an input in newer opsets and an attribute in older ones."""
        if self.has(index):
            return [int(i) for i in self.needed(index, what).reshape(-1)]
        given = self.attribute(attribute)
        return None if given is None else [int(i) for i in given]

    def shape(self, index: int) -> tuple[int, ...]:
        name = self.names[index] or ""
        known = self.values.constants.get(name)
        return tuple(known.shape) if known is not None else tuple(self.values.traced[name].shape)

    def rank(self, index: int) -> int:
        return len(self.shape(index))

    def dtype(self, index: int) -> torch.dtype:
        name = self.names[index] or ""
        known = self.values.constants.get(name)
        if known is None:
            return self.values.traced[name].dtype
        kind = onnx.helper.np_dtype_to_tensor_dtype(known.dtype)
        if kind not in DTYPES:
            self.refuse(f"an input is {onnx.TensorProto.DataType.Name(kind)}")
        return DTYPES[kind]

    def axis(self, value: int, rank: int | None = None) -> int:
        """An axis counted from the front. Refused where it is out of range."""
        size = self.rank(0) if rank is None else rank
        if not -size <= value < max(size, 1):
            self.refuse(f"axis {value} is outside a tensor of {size} dimensions")
        return int(value) % max(size, 1)

    def scalar(self, index: int, other: int) -> float | None:
        """A float constant of one element as a Python number, if broadcasting with ``other`` keeps its
        shape. Integers stay tensors: ExecuTorch's quantiser makes floats of numbers."""
        found = self.constant(index)
        if found is None or found.size != 1 or found.ndim > self.rank(other) or found.dtype.kind != "f":
            return None
        value = float(found.reshape(-1)[0])
        return value if np.isfinite(value) else None

    def keep(self, array: Array) -> str:
        return self.values.keep(np.ascontiguousarray(array))

    def refuse(self, why: str) -> NoReturn:
        label = f"'{self.proto.name}'" if self.proto.name else f"that makes '{self.outputs[0]}'"
        which = f"{self.proto.op_type} {label}"
        # A row of the report shows the reason alone: it names the operator too.
        raise ConversionFailed(DOING, which, f"{which}: {why}", CURE)


Translate: TypeAlias = Callable[[Node], Lowered]
