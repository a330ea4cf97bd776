"""Channels of one tensor brought to like ranges, by scales that cancel between producers and consumers.

An 8-bit tensor has one scale; a channel that is a hundred times smaller than its neighbours keeps one or two
of its 256 steps. Multiplying channel c by s_c where it is made and dividing the weights that read it by s_c
leaves the function as it is. Sources: Nagel et al. 2019, "Data-free quantization through weight equalization
and bias correction" (cross-layer equalisation); Xiao et al. 2023, "SmoothQuant" (activations against
weights, alpha).

Tensors whose channels are tied (through Relu, pooling, a residual Add) share one vector of scales, so a whole
residual stream is scaled at once. Through ReLU6 only channels that never reach the clip are enlarged, as far
as the clip leaves room: the bound is part of the function, and stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.layers import Layer, layers
from edgekiln.compile.quantise.simulate import part, session
from edgekiln.engines import Arrays

Vector = NDArray[np.float64]

TIED = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Dropout",
    }
)
HEADROOM = 4.0
"""How far below the clip an enlarged channel stays on the data: the field may go further than the sample."""
MOST = 32.0
"""No channel is scaled by more, or by less than its reciprocal."""
MOST_CLIPPED = 4.0
"""No channel that passes a clip is enlarged by more: a rare large value would be cut."""


@dataclass
class Stream:
    """Tensors that share one vector of channel scales. ``ceiling`` is the least clip that they pass (or inf).

    ``readers`` and ``writers`` are layers, ``vectors`` the constants per channel that are made larger with
    it: scale and bias of a LayerNormalization, a Mul's or Add's constant. ``fused`` are the tensors that go
    into a Relu or Clip alone: they are never stored, and what they reach below zero is nobody's concern.
    """

    channels: int
    tensors: list[str] = field(default_factory=list)
    writers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    ceiling: float = np.inf
    fused: set[str] = field(default_factory=set)


def streams(model: Any) -> tuple[Stream, ...]:
    """The sets of tied tensors of ``model`` that can be scaled, in graph order.

    A stream that reaches an operator which is not homogeneous per channel (a Sigmoid, a Softmax, a Reshape,
    an input or output of the graph) has none.
    """
    return _Tying(model).result()


class _Tying:
    """Union of tensors by the operators between them."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.constants = {i.name: i for i in model.graph.initializer}
        self.array = numpy_helper.to_array
        self.by_node = {layer.node: layer for layer in layers(model)}
        self.parent: dict[str, str] = {}
        self.barred: set[str] = set()
        self.channels: dict[str, int] = {}
        self.ceilings: dict[str, float] = {}
        self.vectors: dict[str, list[str]] = {}
        self.uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1

    def root(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def tie(self, *names: str) -> None:
        first = self.root(names[0])
        for other in names[1:]:
            self.parent[self.root(other)] = first

    def result(self) -> tuple[Stream, ...]:
        graph = self.model.graph
        self.barred |= {i.name for i in graph.input} | {o.name for o in graph.output}
        for node in graph.node:
            self._see(node)
        barred = {self.root(name) for name in self.barred}
        fused = _fused(graph)
        found: dict[str, Stream] = {}
        for name in self.parent:
            root = self.root(name)
            sizes = {self.channels[n] for n in self.parent if self.root(n) == root and n in self.channels}
            if root not in barred and len(sizes) == 1:
                stream = found.setdefault(root, Stream(channels=sizes.pop()))
                stream.tensors.append(name)
                if name in fused:
                    stream.fused.add(name)
                stream.vectors += self.vectors.get(name, [])
                stream.ceiling = min(stream.ceiling, self.ceilings.get(name, np.inf))
        for layer in self.by_node.values():
            out, into = found.get(self.root(layer.output)), found.get(self.root(layer.input))
            if out is not None:
                out.writers.append(layer)
            if into is not None:
                into.readers.append(layer)
        return tuple(s for s in found.values() if s.readers and (s.writers or s.vectors))

    def _see(self, node: Any) -> None:
        """What ``node`` does to the scales of its inputs and outputs."""
        outputs = [o for o in node.output if o]
        moving = [i for i in node.input if i and i not in self.constants]
        layer = self.by_node.get(node.name)
        if layer is not None:
            self._layer(layer)
        elif len(moving) == 1 and len(outputs) == 1 and self._ties(node):
            self.tie(moving[0], outputs[0])
        elif node.op_type == "Clip" and len(moving) == 1 and self._clips_at_zero(node):
            self.tie(moving[0], outputs[0])
            self.ceilings[outputs[0]] = self._ceiling(node)
        elif node.op_type == "Add" and len(moving) == 2:
            self.tie(*moving, outputs[0])
        elif node.op_type in {"Add", "Mul"} and len(moving) == 1 and (vector := self._vector(node)):
            self._constant(node, moving[0], outputs[0], vector)
        elif node.op_type == "LayerNormalization" and self._own(node.input[1:3]):
            self.barred.add(node.input[0])
            self.root(outputs[0])
            self.channels[outputs[0]] = int(np.prod(self.constants[node.input[1]].dims))
            self.vectors.setdefault(outputs[0], []).extend(n for n in node.input[1:3] if n)
        else:
            self.barred |= {*moving, *outputs}

    def _ties(self, node: Any) -> bool:
        """Whether ``node`` hands each channel on as it is, up to a positive factor."""
        return node.op_type in TIED or (node.op_type == "Flatten" and self._after_global_pool(node.input[0]))

    def _layer(self, layer: Layer) -> None:
        rows = self.constants[layer.weight].dims
        self.root(layer.input)
        self.root(layer.output)
        if layer.op != "Conv":
            out = rows[0] if layer.transposed else rows[1]
            self.channels[layer.input] = int(rows[1] if layer.transposed else rows[0])
        else:
            out = rows[0]
            self.channels[layer.input] = int(rows[1]) * layer.groups
            if 1 < layer.groups < int(rows[0]):
                self.barred |= {layer.input, layer.output}  # grouped, but not depthwise: rare, left alone
        self.channels[layer.output] = int(out)

    def _constant(self, node: Any, moving: str, out: str, vector: str) -> None:
        """x + v scales with v; v * x can be scaled by v alone, whatever x is."""
        if node.op_type == "Add":
            self.tie(moving, out)
        else:
            self.barred.add(moving)
            self.root(out)
        self.channels[out] = int(np.prod(self.constants[vector].dims))
        self.vectors.setdefault(out, []).append(vector)

    def _vector(self, node: Any) -> str:
        """The constant of ``node`` if it is a vector along the last axis that nobody else reads."""
        name = next((n for n in node.input if n in self.constants), "")
        dims = list(self.constants[name].dims) if name else []
        wide = len(dims) >= 1 and dims[-1] > 1 and int(np.prod(dims)) == dims[-1]
        return name if wide and self._own([name]) else ""

    def _own(self, names: Iterable[str]) -> bool:
        return all(n in self.constants and self.uses.get(n) == 1 for n in names if n)

    def _after_global_pool(self, name: str) -> bool:
        maker = next((n for n in self.model.graph.node if name in n.output), None)
        return maker is not None and maker.op_type in {"GlobalAveragePool", "GlobalMaxPool"}

    def _clips_at_zero(self, node: Any) -> bool:
        low = node.input[1] if len(node.input) > 1 else ""
        return bool(low) and low in self.constants and float(self.array(self.constants[low])) == 0.0

    def _ceiling(self, node: Any) -> float:
        high = node.input[2] if len(node.input) > 2 else ""
        return float(self.array(self.constants[high])) if high in self.constants else np.inf


def _fused(graph: Any) -> set[str]:
    """Tensors that only a Relu or a Clip reads."""
    kinds: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            kinds.setdefault(name, set()).add(node.op_type)
    return {name for name, ops in kinds.items() if ops <= {"Relu", "Clip"}}


# ---------------------------------------------------------------- what the channels reach


def channel_reach(
    model: Any, found: Iterable[Stream], samples: Iterable[Arrays], threads: int
) -> dict[str, Vector]:
    """The largest magnitude of each channel of each stream's tensors, shape (channels,), over ``samples``."""
    axis = {name: _axis(s) for s in found for name in s.tensors if name not in s.fused}
    names = list(axis)
    sizes = {name: s.channels for s in found for name in s.tensors}
    reach = {name: np.zeros(sizes[name]) for name in names}
    if not names:
        return reach
    runner = session(part(model, names), threads)
    wanted = {i.name for i in runner.get_inputs()}
    for sample in samples:
        values = runner.run(names, {k: v for k, v in sample.items() if k in wanted})
        for name, value in zip(names, values, strict=True):
            if value.ndim <= abs(axis[name]) - (axis[name] < 0) or value.shape[axis[name]] != sizes[name]:
                continue
            moved = np.moveaxis(np.abs(value), axis[name], -1).reshape(-1, sizes[name])
            np.maximum(reach[name], moved.max(0), out=reach[name])
    return reach


def _axis(stream: Stream) -> int:
    around = [*stream.writers, *stream.readers]
    return 1 if any(layer.op == "Conv" for layer in around) else -1


# ---------------------------------------------------------------- scales


def scales(
    stream: Stream, reach: Mapping[str, Vector], weights: Mapping[str, NDArray[Any]], alpha: float
) -> Vector:
    """The scale of each channel: channels are enlarged where their reach is small, shape (channels,).

    ``alpha`` weighs activations against the columns of the weights that read them: 0.5 shares the burden, 1
    levels the activations whatever it does to the weights. Where only depthwise layers read, it is 1: their
    channels have scales of their own and lose nothing.
    """
    seen = np.max([reach[name] for name in stream.tensors if name in reach], axis=0)
    largest = seen.max()
    if largest <= 0:
        return np.ones(stream.channels)
    a = np.maximum(seen / largest, 1e-6)
    columns = [_columns(layer, weights[layer.weight]) for layer in stream.readers if not layer.depthwise]
    if columns:
        b = np.max([c / max(c.max(), 1e-12) for c in columns], axis=0)
        s = np.maximum(b, 1e-6) ** (1 - alpha) / a**alpha
        s /= np.exp(np.log(s).mean())
    else:
        s = 1 / a
    if np.isfinite(stream.ceiling):
        room = stream.ceiling / np.maximum(seen * HEADROOM, 1e-9)
        if not columns:
            s = room
        s = np.clip(s, 1.0, np.clip(room, 1.0, MOST_CLIPPED))
    # dead channels are left as they are: nothing is known of them
    s = np.where(seen > largest * 1e-6, s, 1.0)
    return np.clip(s, 1 / MOST, MOST)


def _columns(layer: Layer, weight: NDArray[Any]) -> Vector:
    """The largest weight that reads each input channel, shape (channels,)."""
    size = np.abs(weight.astype(np.float64))
    if layer.op == "Conv":
        return np.asarray(size.max(axis=(0, *range(2, size.ndim))))
    return np.asarray(size.max(axis=0 if layer.transposed else 1))


def equalised(model: Any, samples: Iterable[Arrays], threads: int, alpha: float = 0.5) -> tuple[Any, str]:
    """A copy of ``model`` with its streams' channels levelled, and a note of what was done."""
    import onnx
    from onnx import numpy_helper

    from edgekiln.compile.quantise.simulate import with_weights

    found = streams(model)
    reach = channel_reach(model, found, samples, threads)
    held = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    largest, count = 1.0, 0
    for stream in found:
        s = scales(stream, reach, held, alpha)
        if np.allclose(s, 1):
            continue
        count += 1
        largest = max(largest, float(s.max()), float(1 / s.min()))
        for layer in stream.writers:
            held[layer.weight] = _rows_scaled(layer, held[layer.weight], s)
            if layer.bias:
                held[layer.bias] = (held[layer.bias] * s).astype(np.float32)
        for layer in stream.readers:
            held[layer.weight] = _columns_scaled(layer, held[layer.weight], 1 / s)
        for name in stream.vectors:
            held[name] = (held[name] * s).astype(np.float32)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    with_weights(made, {i.name: held[i.name] for i in model.graph.initializer})
    note = f"{count} of {len(found)} streams of tied channels levelled, by factors up to {largest:.3g}"
    return made, note if found else "no channels that could be levelled"


def _rows_scaled(layer: Layer, weight: NDArray[Any], s: Vector) -> NDArray[Any]:
    shape = [1] * weight.ndim
    shape[0 if layer.op == "Conv" or layer.transposed else 1] = -1
    return np.asarray(weight * s.reshape(shape), np.float32)


def _columns_scaled(layer: Layer, weight: NDArray[Any], s: Vector) -> NDArray[Any]:
    shape = [1] * weight.ndim
    if layer.op == "Conv":
        shape[0 if layer.depthwise else 1] = -1
    else:
        shape[1 if layer.transposed else 0] = -1
    return np.asarray(weight * s.reshape(shape), np.float32)
