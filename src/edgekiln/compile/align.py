"""Channels padded to a multiple of 8 or 16, for vector and tensor units that work on so many at once.

A padded channel is computed and never used: the rows of the layer that makes it are zero, and so are the
columns of every layer that reads it. The function of the graph stays what it was. Tensors whose channels
are the same ones (through an activation, a sum, a depthwise layer, a pool) are padded together, or not at all
where one operator among them is not known to keep channels apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.records import Record

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

KEEP = frozenset(
    {
        "Abs", "AveragePool", "Clip", "Elu", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
        "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Neg", "Relu", "Sigmoid", "Tanh",
    }
)  # fmt: skip
"""One input, channels stay where they are, and zero gives something finite."""
BINARY = frozenset({"Add", "Sub", "Mul"})
MOST_MORE_WORK = 2.0
"""A group of channels is left alone where padding more than doubles it."""


class Aligned(Record, frozen=True, kw_only=True):
    """How many groups of channels there are, were padded, and could not be; ``widths`` maps old to new."""

    groups: int
    padded: int
    fixed: int
    widths: dict[int, int]

    def sentence(self, multiple: int) -> str:
        if not self.padded:
            left = f"; {self.fixed} of other widths can't be padded" if self.fixed else ""
            return f"nothing to pad to a multiple of {multiple} in {self.groups} groups of channels{left}"
        told = ", ".join(f"{a} to {b}" for a, b in sorted(self.widths.items()))
        return f"{self.padded} of {self.groups} groups of channels padded to a multiple of {multiple}: {told}"


def align(model: ModelProto, multiple: int) -> Aligned:
    """Pad the channels of ``model`` (float, shapes static beyond the batch) in place.

    Axis 1 of a tensor is its channels. Inputs and outputs of the graph stay as they are.
    """
    import onnx

    shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
    groups = _Groups(shaped)
    for node in model.graph.node:
        groups.visit(node)
    for value in (*model.graph.input, *model.graph.output):
        groups.fix(value.name)
    if any(a.g.node or a.graphs for node in model.graph.node for a in node.attribute):
        # A subgraph may read any tensor of the graph around it by name.
        for name in list(groups.parent):
            groups.fix(name)
    grow = groups.grown(multiple)
    for node in model.graph.node:
        _pad(node, groups, grow)
    if grow:
        _write(model, groups.constants)
    widths = {groups.width[root]: groups.width[root] + more for root, more in grow.items()}
    others = [r for r in groups.roots() if groups.width[r] % multiple and r not in grow]
    return Aligned(groups=len(groups.roots()), padded=len(grow), fixed=len(others), widths=widths)


class _Groups:
    """Which tensors share their channels: a forest of tensor names (union-find), and what can't be padded."""

    def __init__(self, shaped: ModelProto) -> None:
        from onnx import numpy_helper

        graph = shaped.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.shapes = {
            v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
            for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self.readers: dict[str, int] = {}
        for node in graph.node:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1
        for value in (
            *graph.input,
            *graph.output,
        ):  # constants that the caller sees are not this graph's alone
            self.readers[value.name] = self.readers.get(value.name, 0) + 1
        self.parent: dict[str, str] = {}
        self.width: dict[str, int] = {}
        self.fixed: set[str] = set()

    def channels(self, name: str) -> int | None:
        """Size of axis 1 of a computed tensor, where it is known."""
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) >= 2 else None

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def add(self, name: str) -> str:
        if name not in self.parent:
            self.parent[name] = name
            self.width[name] = self.channels(name) or 0
        return self.find(name)

    def join(self, one: str, other: str) -> None:
        """The same channels; where the widths differ (a broadcast) neither is padded."""
        a, b = self.add(one), self.add(other)
        if self.width[a] != self.width[b]:
            self.fixed |= {a, b}
        elif a != b:
            self.parent[b] = a
            if b in self.fixed:
                self.fixed.add(a)

    def fix(self, name: str) -> None:
        self.fixed.add(self.add(name))

    def roots(self) -> list[str]:
        return sorted({self.find(n) for n in self.parent if self.width[self.find(n)]})

    def grown(self, multiple: int) -> dict[str, int]:
        """Channels to add by group."""
        found = {}
        fixed = {self.find(n) for n in self.fixed}
        for root in self.roots():
            more = -self.width[root] % multiple
            if more and root not in fixed and self.width[root] + more <= MOST_MORE_WORK * self.width[root]:
                found[root] = more
        return found

    def visit(self, node: NodeProto) -> None:
        """Join what ``node`` keeps together, and fix what it is not known to keep apart."""
        data = [n for n in node.input if n and n not in self.constants]
        outputs = [n for n in node.output if n]
        for name in (*data, *outputs):
            self.add(name)
        if node.op_type == "Conv" and self._own(node, 1):
            if group_of(node) == 1:
                return None
            if group_of(node) == self.channels(node.input[0]) == self.channels(outputs[0]):
                return self.join(node.input[0], outputs[0])
        elif (node.op_type == "Gemm" and self._own(node, 1) and not attribute(node, "transA", 0)) or (
            node.op_type in BINARY and self._binary(node, data)
        ):
            return None
        elif node.op_type in KEEP and len(outputs) == 1 and len(data) == 1:
            return self.join(data[0], outputs[0])
        elif self._flattens(node):
            return self.join(node.input[0], outputs[0])
        for name in (*data, *outputs):
            self.fix(name)
        return None

    def _own(self, node: NodeProto, first: int) -> bool:
        """Whether the weights (and bias) from input ``first`` on are constants of this node alone."""
        return len(data := node.input[first:]) > 0 and all(
            n in self.constants and self.readers[n] == 1 for n in data if n
        )

    def _binary(self, node: NodeProto, data: list[str]) -> bool:
        """Two tensors of the same rank and channels, or one and a constant per channel or a scalar."""
        if len(data) == 2:
            ranks = {len(self.shapes.get(n, [])) for n in (*data, node.output[0])}
            if len(ranks) != 1 or 0 in ranks:
                return False
            self.join(data[0], data[1])
            self.join(data[0], node.output[0])
            return True
        constant = next((n for n in node.input if n in self.constants), None)
        if constant is None or len(data) != 1:
            return False
        rank, values = len(self.shapes.get(data[0], [])), self.constants[constant]
        own = values.ndim <= rank and (values.size == 1 or self.readers[constant] == 1)
        if not own or rank < 2 or not (values.size == 1 or values.ndim >= rank - 1):
            return False
        self.join(data[0], node.output[0])
        return True

    def _flattens(self, node: NodeProto) -> bool:
        """Flatten of [N, C, 1, ...]: channels stay axis 1."""
        shape = self.shapes.get(node.input[0], []) if node.input else []
        return (
            node.op_type == "Flatten"
            and attribute(node, "axis", 1) == 1
            and len(shape) >= 2
            and all(n == 1 for n in shape[2:])
        )


def _pad(node: NodeProto, groups: _Groups, grow: dict[str, int]) -> None:
    """Zeros into the constants of ``node`` for the channels that its tensors gain."""
    constants = groups.constants
    into = grow.get(groups.find(node.output[0]), 0) if node.output else 0
    if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in constants:
        depthwise = group_of(node) != 1
        if depthwise and into:
            next(a for a in node.attribute if a.name == "group").i += into
        _widen(constants, node.input[1], 0, into)
        if not depthwise:
            _widen(constants, node.input[1], 1, grow.get(groups.find(node.input[0]), 0))
        if len(node.input) > 2 and node.input[2]:
            _widen(constants, node.input[2], 0, into)
    elif node.op_type == "Gemm" and node.input[1] in constants:
        rows = 0 if attribute(node, "transB", 0) else 1
        _widen(constants, node.input[1], rows, into)
        _widen(constants, node.input[1], 1 - rows, grow.get(groups.find(node.input[0]), 0))
        if len(node.input) > 2 and node.input[2] and constants[node.input[2]].shape[-1:] > (1,):
            _widen(constants, node.input[2], constants[node.input[2]].ndim - 1, into)
    elif node.op_type in BINARY and into:
        rank = len(groups.shapes[node.output[0]])
        for name in (n for n in node.input if n in constants):
            axis = constants[name].ndim - rank + 1
            if axis >= 0 and constants[name].shape[axis] > 1:
                _widen(constants, name, axis, into)


def _widen(constants: dict[str, Any], name: str, axis: int, more: int) -> None:
    if more:
        values = constants[name]
        constants[name] = np.pad(values, [(0, more if a == axis else 0) for a in range(values.ndim)])


def _write(model: ModelProto, constants: dict[str, Any]) -> None:
    """Constants back into the graph; shapes that were noted before are no longer true and go."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tuple(tensor.dims) != constants[tensor.name].shape:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    del model.graph.value_info[:]


def attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def group_of(node: NodeProto) -> int:
    return attribute(node, "group", 1)
