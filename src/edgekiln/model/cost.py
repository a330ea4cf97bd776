"""What a graph costs to execute: operations, weights, activations. A count, not a time.

Conventions: one multiply-accumulate (MAC) is two floating-point operations (FLOPs); additions of a bias
are part of the MACs' operator and not counted; an element-wise operator is one FLOP per element of its
output, be it an addition or a tanh. The graph is counted as it is written, with two exceptions that every
engine makes: views (Reshape, Squeeze and the like) move nothing, and Q/DQ pairs are a type, not work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import BadInput
from edgekiln.model.arithmetic import FREE, VIEWS, Operands, Unknown, work
from edgekiln.model.lifetime import peak_bytes
from edgekiln.model.shapes import Known, infer
from edgekiln.model.signature import dynamic_axes, fix_shapes, set_input_shapes, signature
from edgekiln.records import Record

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MAX_NAMES = 50


class OpCost(Record, frozen=True, kw_only=True):
    """All nodes of one operator type."""

    op: str
    nodes: int
    macs: int
    flops: int


class Unresolved(Record, frozen=True, kw_only=True):
    """A node whose cost is not in the figures, and why."""

    node: str
    op: str
    reason: str


class Cost(Record, frozen=True, kw_only=True):
    """The cost of one inference at ``shapes``. Where ``unresolved_count`` is not 0, figures are lower bounds.

    ``weight_bytes`` is what the stored constants take, ``parameters`` their number of elements (numbers
    that stand for shapes, scales and zero points left out). ``activation_read_bytes`` and ``..written..``
    sum over nodes; ``peak_activation_bytes`` is the least memory that holds every activation alive at
    once, in the order of the graph, with element-wise operators working in place: an arena can't be
    smaller, a real one may be larger.
    """

    shapes: dict[str, tuple[int, ...]]
    nodes: int
    ops: tuple[OpCost, ...]
    parameters: int
    weight_bytes: int
    macs: int
    flops: int
    activation_read_bytes: int
    activation_written_bytes: int
    peak_activation_bytes: int
    unresolved_count: int
    unresolved: tuple[Unresolved, ...]


def cost(model: Path | ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Cost:
    """Count ``model`` at the input ``shapes`` (key "" is the only input).

    Dynamic first axes (the batch) default to 1; any other dynamic axis has to be given. Nodes that can't
    be counted (unknown shape, unknown operator, control flow) are listed in ``unresolved``. Raises
    BadInput for shapes that do not fit.
    """
    proto = prepared(model, shapes or {})
    known = infer(proto)
    fixed = constants(proto)
    sizes = _Sizes(proto, known, fixed)
    totals: dict[str, list[int]] = {}
    unresolved: list[Unresolved] = []
    for index, node in enumerate(proto.graph.node):
        if all(o in fixed for o in node.output if o):
            continue  # computed once, when the model is loaded
        total = totals.setdefault(node.op_type, [0, 0, 0])
        total[0] += 1
        try:
            macs, flops = work(node, Operands(node, known))
        except Unknown as unknown:
            name = node.name or f"{node.op_type} {index}"
            unresolved.append(Unresolved(node=name, op=node.op_type, reason=str(unknown)))
            continue
        total[1] += macs
        total[2] += flops
    ops = [OpCost(op=op, nodes=n, macs=m, flops=f) for op, (n, m, f) in totals.items()]
    parameters, weight_bytes = _weights(proto)
    read, written = sizes.traffic()
    return Cost(
        shapes={i.name: tuple(d for d in i.shape if isinstance(d, int)) for i in signature(proto).inputs},
        nodes=sum(o.nodes for o in ops),
        ops=tuple(sorted(ops, key=lambda o: (-o.flops, -o.nodes, o.op))),
        parameters=parameters,
        weight_bytes=weight_bytes,
        macs=sum(o.macs for o in ops),
        flops=sum(o.flops for o in ops),
        activation_read_bytes=read,
        activation_written_bytes=written,
        peak_activation_bytes=peak_bytes(sizes.steps(), sizes.bytes_of, sizes.outputs),
        unresolved_count=len(unresolved),
        unresolved=tuple(unresolved[:MAX_NAMES]),
    )


def peak_elements(proto: ModelProto, known: Known, fixed: set[str]) -> int:
    """As ``Cost.peak_activation_bytes``, in elements: what it is in bytes follows from the precision."""
    sizes = _Sizes(proto, known, fixed)

    def elements(name: str) -> int:
        dims = known.fixed(name)
        return 0 if name in fixed or dims is None else math.prod(dims)

    return peak_bytes(sizes.steps(), elements, sizes.outputs)


def prepared(model: Path | ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """A copy of the graph with fixed inputs and its local functions written out."""
    import onnx
    import onnx.inliner

    if isinstance(model, Path):
        proto = onnx.load(model, load_external_data=False)
    else:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    sig = fix_shapes(signature(proto), shapes)
    batches = {i.name: (1, *i.shape[1:]) for i in sig.inputs if i.shape and isinstance(i.shape[0], str)}
    whole = {n: tuple(d for d in s if isinstance(d, int)) for n, s in batches.items()}
    sig = fix_shapes(sig, {n: s for n, s in whole.items() if len(s) == len(batches[n])})
    if left := dynamic_axes(sig):
        cure = "Give a shape for it, for example --input-shape 1x3x640x640."
        raise BadInput(
            "counting the cost of", proto.graph.name or "the model", f"axis '{left[0]}' is open", cure
        )
    set_input_shapes(proto, sig)
    return proto


def constants(proto: ModelProto) -> set[str]:
    """Values that do not depend on an input: initialisers, Constants, and what follows from them alone."""
    found = {i.name for i in proto.graph.initializer} | {
        i.values.name for i in proto.graph.sparse_initializer
    }
    for node in proto.graph.node:
        random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        inner = any(a.HasField("g") or a.graphs for a in node.attribute)
        if not random and not inner and all(i in found for i in node.input if i):
            found.update(o for o in node.output if o)
    return found


def _weights(proto: ModelProto) -> tuple[int, int]:
    """(parameters, bytes) of the stored constants, each counted once."""
    from onnx import TensorProto

    tensors = {t.name: (tuple(t.dims), t.data_type) for t in proto.graph.initializer}
    scales: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = (tuple(attribute.t.dims), attribute.t.data_type)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scales.update(node.input[1:])
    shapes = {TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING}
    parameters = sum(math.prod(d) for n, (d, t) in tensors.items() if t not in shapes and n not in scales)
    return parameters, sum(_bytes(d, t) for d, t in tensors.values())


def _bytes(dims: tuple[int, ...], dtype: int) -> int:
    """Bytes of a tensor; 4-bit types are packed in pairs."""
    import onnx

    if dtype in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1):
        return math.ceil(math.prod(dims) / 2)
    if dtype in (0, onnx.TensorProto.STRING):
        return 0
    return math.prod(dims) * int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


class _Sizes:
    """Activations as memory: views and Q/DQ pairs share the memory of the value they stand for."""

    def __init__(self, proto: ModelProto, known: Known, constants: set[str]) -> None:
        self._graph = proto.graph
        self._known = known
        self._constants = constants
        self._same: dict[str, str] = {}
        uses: dict[str, int] = {}
        for node in proto.graph.node:
            for name in node.input:
                uses[name] = uses.get(name, 0) + 1
        for node in proto.graph.node:
            if node.op_type in VIEWS or node.op_type == "DequantizeLinear":
                self._same[node.output[0]] = node.input[0]
            elif node.op_type == "QuantizeLinear" and uses[node.input[0]] == 1:
                self._same[node.input[0]] = node.output[0]
        self.outputs = {self.root(o.name) for o in proto.graph.output}

    def root(self, name: str) -> str:
        seen: set[str] = set()
        while name in self._same and name not in seen:
            seen.add(name)
            name = self._same[name]
        return name

    def bytes_of(self, name: str) -> int:
        """Bytes of an activation; 0 for a constant, and for a value of unknown shape."""
        dims = self._known.fixed(name)
        if name in self._constants or dims is None:
            return 0
        return _bytes(dims, self._known.dtypes.get(name, 1))

    def _moves(self, node: NodeProto) -> tuple[list[str], list[str]]:
        """Roots that ``node`` reads and writes; nothing for a node that only renames."""
        ins = list(dict.fromkeys(self.root(i) for i in node.input if i and i not in self._constants))
        outs = list(dict.fromkeys(self.root(o) for o in node.output if o and o not in self._constants))
        if ins == outs or (node.op_type in VIEWS | {"DequantizeLinear"}):
            return [], []
        return ins, outs

    def steps(self) -> list[tuple[list[str], list[str], bool]]:
        """(read, written, may work in place) for every node, after one step that brings the inputs."""
        inputs = [i.name for i in self._graph.input if i.name not in self._constants]
        moves = [(*self._moves(n), n.op_type in FREE.in_place) for n in self._graph.node]
        return [([], inputs, False), *moves]

    def traffic(self) -> tuple[int, int]:
        """(bytes read, bytes written) of activations, summed over nodes."""
        moves = [self._moves(n) for n in self._graph.node if n.op_type not in FREE.looks]
        read = sum(self.bytes_of(i) for ins, _ in moves for i in ins)
        return read, sum(self.bytes_of(o) for _, outs in moves for o in outs)
