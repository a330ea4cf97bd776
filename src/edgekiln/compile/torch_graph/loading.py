"""From the file to the module: constants folded, branches chosen, loops unrolled, each node translated."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch._subclasses.fake_tensor import FakeTensorMode

from edgekiln.compile.torch_graph.node import CURE, DOING, DTYPES, Array, Call, Node, Values
from edgekiln.compile.torch_graph.patterns import join
from edgekiln.compile.torch_graph.table import OPS
from edgekiln.errors import ConversionFailed

MOST_TURNS = 256
RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
RESULTS_OF_VALUES = {"ConstantOfShape", "Range", "NonZero", "NonMaxSuppression", "Unique"}
_TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True)
class Step:
    """One translated node. ``operands`` and ``results`` name values; None is an input left out."""

    node: str
    call: Call
    operands: tuple[str | None, ...]
    results: tuple[str, ...]


class Translated(torch.nn.Module):
    """The graph. ``forward`` takes tensors in the order of ``inputs``; one output, or a tuple of them.

    Float constants are parameters (``requires_grad`` is off), the others buffers.
    """

    def __init__(self, steps: Sequence[Step], inputs: list[str], outputs: list[str], values: Values) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = tuple(steps), inputs, outputs
        used = {n for s in steps for n in s.operands if n in values.constants}
        used |= {n for n in outputs if n in values.constants}
        self._attributes: dict[str, str] = {}
        for number, name in enumerate(n for n in values.constants if n in used):
            tensor = torch.from_numpy(np.array(values.constants[name]))
            attribute = f"c{number}_{re.sub('[^0-9A-Za-z_]', '_', name)}"
            self._attributes[name] = attribute
            if tensor.is_floating_point():
                self.register_parameter(attribute, torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(attribute, tensor)
        last = {name: place for place, s in enumerate(steps) for name in s.operands if name}
        kept = set(outputs)
        self._dead = [[n for n, at in last.items() if at == i and n not in kept] for i in range(len(steps))]

    def forward(self, *given: torch.Tensor) -> Any:
        """The graph's outputs; values are let go after their last use."""
        values = dict(zip(self.inputs, given, strict=True))
        constants = {name: getattr(self, attribute) for name, attribute in self._attributes.items()}

        def value(name: str | None) -> torch.Tensor | None:
            return None if name is None else values[name] if name in values else constants[name]

        for step, dead in zip(self.steps, self._dead, strict=True):
            done = step.call(*(value(n) for n in step.operands))
            values.update(zip(step.results, done if isinstance(done, tuple) else (done,), strict=False))
            for name in dead:
                values.pop(name, None)
        # An output that is an input or a constant is copied: exporters want outputs of their own.
        made = {name for s in self.steps for name in s.results}
        found = [values[n] if n in made else value(n).clone() for n in self.outputs]  # type: ignore[union-attr]
        return found[0] if len(found) == 1 else tuple(found)


def load(path: Path) -> Translated:
    """The graph of the ONNX file ``path`` (float32, static shapes, default domain) as a module in
    evaluation mode; torch.export takes it.

    Raises ConversionFailed that names the operator and the node for what has no translation, and for
    shapes or branches that depend on the inputs.
    """
    model = onnx.load(path)
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    loader = Loader(opset)
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    for value in inputs:
        loader.trace_input(value)
    join(model.graph)
    loader.add(model.graph)
    outputs = [o.name for o in model.graph.output]
    for name in outputs:
        if name not in loader.values.constants and name not in loader.values.traced:
            raise ConversionFailed(
                DOING, name, "no node makes this output", "Check the graph with onnx.checker"
            )
    return Translated(loader.steps, [i.name for i in inputs], outputs, loader.values).eval()


@contextlib.contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Torch logs a traceback for each operator that it refuses; the refusal itself says enough."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Loader:
    """What is known while a graph is read node by node."""

    def __init__(self, opset: int) -> None:
        self.opset, self.values, self.steps = opset, Values(), list[Step]()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._copies = 0

    def trace_input(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if None in shape or not kind.HasField("shape"):
            why = "its shape is not static"
            raise ConversionFailed(DOING, f"input '{value.name}'", why, "Fix the sizes of the inputs first")
        if kind.elem_type not in DTYPES:
            why = f"its type is {onnx.TensorProto.DataType.Name(kind.elem_type)}"
            raise ConversionFailed(DOING, f"input '{value.name}'", why, CURE)
        with self._mode:
            self.values.traced[value.name] = torch.empty(shape, dtype=DTYPES[kind.elem_type])  # type: ignore[arg-type]

    def add(self, graph: onnx.GraphProto) -> None:
        """All constants and nodes of a graph or of an inlined branch."""
        for tensor in graph.initializer:
            self.values.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
        if graph.sparse_initializer:
            raise ConversionFailed(DOING, graph.name, "it has sparse constants", CURE)
        for node in graph.node:
            self.add_node(node)

    def add_node(self, proto: onnx.NodeProto) -> None:
        node = Node(proto, self.opset, self.values)
        if proto.domain not in {"", "ai.onnx"}:
            node.refuse(f"its domain '{proto.domain}' is not ONNX's own")
        if proto.op_type in {"Shape", "Size", "EyeLike"} and proto.input[0] in self.values.traced:
            self._fold_shape(node)
        elif proto.op_type == "If":
            self._choose(node)
        elif proto.op_type == "Loop":
            self._unroll(node)
        elif proto.op_type in RESULTS_OF_VALUES and any(n in self.values.traced for n in proto.input):
            node.refuse("the shape of its result depends on the graph's inputs")
        elif proto.op_type in RANDOM:
            node.refuse("it draws random numbers")
        elif all(n is None or n in self.values.constants for n in node.names):
            self._fold(node)
        else:
            self._translate(node)

    def _fold(self, node: Node, inputs: dict[str, Array] | None = None) -> None:
        """Evaluate a node whose inputs are all constants, by ONNX's own reference."""
        known = inputs or {n: self.values.constants[n] for n in node.names if n}
        made = [onnx.helper.make_tensor_value_info(n, 0, None) for n in node.outputs if n]
        given = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in known.items()
        ]
        graph = onnx.helper.make_graph([node.proto], "folded", given, made)
        opsets = [onnx.helper.make_opsetid("", self.opset)]
        try:
            done = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, known)
        except Exception as error:  # the reference raises anything at all
            node.refuse(f"its constants could not be evaluated ({error})")
        for value, array in zip(made, done, strict=True):
            if not isinstance(array, np.ndarray | np.generic):
                node.refuse(f"it makes a {type(array).__name__}, not a tensor")
            self.values.constants[value.name] = np.asarray(array)

    def _fold_shape(self, node: Node) -> None:
        """Shape, Size and EyeLike ask for nothing but the shape, which is static."""
        fake = self.values.traced[node.proto.input[0]]
        kind = onnx.helper.tensor_dtype_to_np_dtype(next(k for k, v in DTYPES.items() if v == fake.dtype))
        blank = np.broadcast_to(np.zeros((), kind), tuple(fake.shape))
        self._fold(node, {node.proto.input[0]: blank})

    def _translate(self, node: Node) -> None:
        translate = OPS.get(node.proto.op_type)
        if translate is None:
            node.refuse("this operator has no translation")
        try:
            call, operands = translate(node)
            fakes = [self._fake(name) for name in operands]
            with self._mode, _quiet(_TORCH_LOG):
                done = call(*fakes)
        except ConversionFailed:
            raise
        except Exception as error:  # torch raises many kinds; each means that it does not take the node
            node.refuse(f"torch refuses it: {str(error).strip().splitlines()[0] if str(error) else error!r}")
        results = done if isinstance(done, tuple) else (done,)
        if len(results) < len([o for o in node.outputs if o]):
            node.refuse("not all of its outputs have a translation")
        self.values.traced.update((n, t) for n, t in zip(node.outputs, results, strict=False) if n)
        names = tuple(node.outputs) + ("",) * (len(results) - len(node.outputs))
        self.steps.append(Step(node.proto.name, call, tuple(operands), names))

    def _fake(self, name: str | None) -> torch.Tensor | None:
        if name is None or name in self.values.traced:
            return None if name is None else self.values.traced[name]
        with self._mode:
            array = self.values.constants[name]
            return torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype)

    def _choose(self, node: Node) -> None:
        """If: the branch that its constant condition takes."""
        taken = bool(node.needed(0, "which branch is taken").reshape(-1)[0])
        branch = node.attribute("then_branch" if taken else "else_branch")
        copy = self._copied(branch, {})
        self.add(copy)
        for name, output in zip(node.outputs, copy.output, strict=True):
            self._alias(name, output.name)

    def _unroll(self, node: Node) -> None:
        """Loop: as many copies of its body as it has turns, where that is known."""
        turns = int(node.needed(0, "how often it runs").reshape(-1)[0]) if node.has(0) else None
        go_on = not node.has(1) or bool(node.needed(1, "whether it runs").reshape(-1)[0])
        body: onnx.GraphProto = node.attribute("body")
        carried, turn = [n or "" for n in node.names[2:]], 0
        collected: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
        while go_on and (turns is None or turn < turns):
            if turn == MOST_TURNS:
                node.refuse(f"it runs more than {MOST_TURNS} times")
            counter = self.values.keep(np.asarray(turn, np.int64))
            condition = self.values.keep(np.asarray(True))
            bound = dict(zip((i.name for i in body.input), [counter, condition, *carried], strict=True))
            copy = self._copied(body, bound)
            self.add(copy)
            ends = [o.name for o in copy.output]
            if ends[0] not in self.values.constants:
                node.refuse("how often it runs depends on the graph's inputs")
            go_on, carried = bool(self.values.constants[ends[0]].reshape(-1)[0]), ends[1 : 1 + len(carried)]
            for rows, end in zip(collected, ends[1 + len(carried) :], strict=True):
                rows.append(end)
            turn += 1
        for name, end in zip(node.outputs, carried, strict=False):
            self._alias(name, end)
        for name, rows in zip(node.outputs[len(carried) :], collected, strict=False):
            if not rows:
                node.refuse("it collects the results of no turn")
            self._stack(node, rows, name)

    def _stack(self, node: Node, rows: list[str], name: str) -> None:
        lifted = []
        axes = self.values.keep(np.asarray([0], np.int64))
        for place, row in enumerate(rows):
            lifted.append(f"{name}/{place}")
            self.add_node(onnx.helper.make_node("Unsqueeze", [row, axes], [lifted[-1]], node.proto.name))
        self.add_node(onnx.helper.make_node("Concat", lifted, [name], node.proto.name, axis=0))

    def _alias(self, name: str, source: str) -> None:
        if name:
            self.add_node(onnx.helper.make_node("Identity", [source], [name]))

    def _copied(self, graph: onnx.GraphProto, bound: dict[str, str]) -> onnx.GraphProto:
        """A copy of a branch or body whose own names are used nowhere else."""
        self._copies += 1
        copy = onnx.GraphProto()
        copy.CopyFrom(graph)
        _rename(copy, f"{self._copies}/", bound)
        return copy


def _rename(graph: onnx.GraphProto, prefix: str, bound: dict[str, str]) -> None:
    """Put ``prefix`` before each name that ``graph`` defines; ``bound`` says what its inputs become."""
    names = dict(bound)
    own = [t.name for t in graph.initializer] + [o for n in graph.node for o in n.output if o]
    names.update({n: prefix + n for n in own})
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for output in graph.output:
        output.name = names.get(output.name, output.name)
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, prefix, {k: v for k, v in names.items()})
