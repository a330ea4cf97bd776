"""Watching a float graph: every sample runs once, every float activation is observed, little is held.

With all its activations as outputs a graph holds them all at once. Here it is cut into segments, in order:
each is a session of its own over its own nodes and weights, gives what it computes to the observers and only
what later segments need to the next. Nothing is computed twice, no weight is held twice, and what is held
beside the float model's own live tensors is one segment's activations.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.histogram import Observation
from edgekiln.compile.quantise.operators import missing_types
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed

LEAST_GROUP_BYTES = 4 << 20
_SMALL = 1024  # bytes of a constant that shapes may depend on
_CHANNELS_FIRST = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "PRelu"}
_CHANNELS_LAST = {"MatMul", "Gemm", "LayerNormalization"}


@dataclass(frozen=True)
class _Segment:
    """``nodes`` are places in the graph's list. ``inputs`` come from before, ``watched`` are the float
    activations that it computes, and ``kept`` those of its tensors that later segments need.
    """

    nodes: range
    inputs: tuple[str, ...]
    watched: tuple[str, ...]
    kept: tuple[str, ...]


def observe(
    graph: Path,
    samples: Iterable[Arrays],
    threads: int,
    group_bytes: int | None = None,
    channels: bool = True,
    start: int = 0,
    stride: int = 1,
) -> dict[str, Observation]:
    """Run ``samples`` through the ONNX graph and observe every float activation.

    Memory is the float run's plus ``group_bytes`` (None: as much as the float run's own live activations),
    whatever the number of samples. ``channels`` keeps extremes and sums per channel as well: axis 1 where a
    convolution makes or takes the tensor, the last where a matrix product does. ``samples`` may be every
    ``stride``-th of the whole from number ``start`` on: then the halves are counted as in the whole.

    Raises ConversionFailed where an activation is NaN or infinite, naming the tensor, the node that makes it
    and the sample.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is None:
        raise ConversionFailed("calibrating", graph.name, "there is no sample", "Give --data with pictures")
    watch = _Watch(graph, first, threads, group_bytes)
    seen = {n: Observation(axis=watch.axis(n) if channels else None) for n in watch.names}
    with ThreadPoolExecutor(threads) as pool:
        for number, sample in enumerate(chain([first], stream)):
            place = start + number * stride
            first = None
            for values in watch.run(sample):
                jobs = {n: pool.submit(seen[n].add, v, place) for n, v in values.items()}
                for name, job in jobs.items():
                    try:
                        job.result()
                    except ValueError as error:
                        raise watch.failure(name, str(error), place + 1) from error
                del values, jobs
    return {name: o for name, o in seen.items() if math.isfinite(o.lowest)}


class _Watch:
    """The sessions of one graph's segments."""

    def __init__(self, graph: Path, sample: Arrays, threads: int, group_bytes: int | None) -> None:
        self._graph = graph.name
        with tempfile.TemporaryDirectory() as scratch:
            model = _without_weights(graph, Path(scratch))
            self._cut(model, sample, threads, group_bytes, Path(scratch))

    def _cut(self, model: Any, sample: Arrays, threads: int, group_bytes: int | None, scratch: Path) -> None:
        import onnx

        sized = _sized(model, sample)
        sized.graph.value_info.extend(missing_types(_typed(model, sized), scratch))
        constant = {i.name for i in model.graph.initializer}  # older graphs list them as inputs too
        floats = [i for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
        self._inputs = [i.name for i in floats if i.name not in constant]
        self._feeds = {i.name for i in model.graph.input} - constant
        # Plain words of the nodes: a node itself would keep the whole model in memory.
        self._makers = {o: (n.name or o, n.op_type) for n in model.graph.node for o in n.output if o}
        self._takers: dict[str, list[str]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._takers.setdefault(name, []).append(node.op_type)
        self._ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in _infos(sized)}
        live = live_bytes(sized, self._inputs)
        bound = max(live, LEAST_GROUP_BYTES) if group_bytes is None else group_bytes
        types = {i.name: i.type.tensor_type.elem_type for i in _infos(sized)}
        segments = _segments(model, _float_sizes(sized), types, bound)
        self.names = [*self._inputs, *(n for s in segments for n in s.watched)]
        self._sessions = [(s, _session(model, s, types, threads, scratch, self._graph)) for s in segments]
        self._last_use = {n: k for k, s in enumerate(segments) for n in s.inputs}

    def run(self, sample: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
        """The inputs of one sample, then its activations, one segment in memory at a time."""
        yield {n: np.asarray(sample[n]) for n in self._inputs}
        held: dict[str, Any] = {n: sample[n] for n in self._feeds if n in sample}
        for number, (segment, session) in enumerate(self._sessions):
            wanted = [*segment.watched, *(n for n in segment.kept if n not in segment.watched)]
            found = dict(zip(wanted, session.run(wanted, {n: held[n] for n in segment.inputs}), strict=True))
            held |= {n: found[n] for n in segment.kept}
            for name in [n for n in held if self._last_use.get(n, -1) <= number]:
                del held[name]
            yield {n: found.pop(n) for n in segment.watched}

    def axis(self, name: str) -> int | None:
        """Where the channels of a tensor lie, by who takes it, else who makes it, else its rank."""
        if self._ranks.get(name, 0) < 2:
            return None
        for op in (*self._takers.get(name, ()), self._makers.get(name, ("", ""))[1]):
            if op in _CHANNELS_FIRST:
                return 1
            if op in _CHANNELS_LAST:
                return -1
        return 1 if self._ranks[name] in (4, 5) else -1

    def failure(self, name: str, what: str, sample: int) -> ConversionFailed:
        maker = self._makers.get(name)
        by = "" if maker is None else f" of node '{maker[0]}' ({maker[1]})"
        why = f"tensor '{name}'{by} holds {what} on sample {sample}"
        cure = "The float model itself overflows there: mend the model or its preprocessing"
        return ConversionFailed("calibrating", self._graph, why, cure)


def _without_weights(graph: Path, scratch: Path) -> Any:
    """The model with its large weights in a file in ``scratch``, from where sessions map them: held in Python
    they would be in memory several times while the sessions are made.
    """
    import onnx

    path = scratch / "graph.onnx"
    onnx.save(onnx.load(graph), path, save_as_external_data=True, location="weights", size_threshold=_SMALL)
    return onnx.load(path, load_external_data=False)


# ---------------------------------------------------------------- how large


def _sized(model: Any, sample: Arrays) -> Any:
    """A copy without large weights, its shapes inferred from the sample's: for sizes and types alone."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version)
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = "sized"
    made.graph.node.extend(model.graph.node)
    made.graph.output.extend(model.graph.output)
    small = [i for i in model.graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL]
    made.graph.initializer.extend(small)
    named = {i.name for i in model.graph.initializer}
    for info in model.graph.input:
        if info.name in sample:
            kind = info.type.tensor_type.elem_type
            shape = np.shape(sample[info.name])
            made.graph.input.append(onnx.helper.make_tensor_value_info(info.name, kind, shape))
        elif info.name not in named:
            made.graph.input.append(info)
    for held in model.graph.initializer:
        if held.data_location == onnx.TensorProto.EXTERNAL:
            info = onnx.helper.make_tensor_value_info(held.name, held.data_type, list(held.dims))
            made.graph.input.append(info)
    made = onnx.shape_inference.infer_shapes(made)
    # What can't be inferred (operators of other domains) may have been written down.
    known = {i.name for i in _infos(made)}
    made.graph.value_info.extend(i for i in model.graph.value_info if i.name not in known)
    return made


def _typed(model: Any, sized: Any) -> Any:
    """``model`` with the types that are known."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    made.graph.value_info.extend(sized.graph.value_info)
    return made


def _infos(model: Any) -> list[Any]:
    return [*model.graph.value_info, *model.graph.output, *model.graph.input]


def _float_sizes(model: Any) -> dict[str, int]:
    """Bytes of the float activations by name; an axis that stays symbolic counts as 1."""
    import onnx

    return {
        i.name: 4 * math.prod(max(d.dim_value, 1) for d in i.type.tensor_type.shape.dim)
        for i in _infos(model)
        if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }


def live_bytes(model: Any, inputs: Iterable[str]) -> int:
    """The most float activations (bytes), ``inputs`` included, that are alive at once when the nodes run in
    the graph's order.
    """
    sizes = _float_sizes(model)
    last = {name: k for k, node in enumerate(model.graph.node) for name in _taken(node)}
    freed = set(inputs)  # weights stay
    alive = peak = sum(sizes.get(n, 0) for n in inputs if n in last)
    for number, node in enumerate(model.graph.node):
        alive += sum(sizes.get(o, 0) for o in node.output)
        peak = max(peak, alive)
        alive -= sum(sizes.get(n, 0) for n in _taken(node) & freed if last[n] == number)
        freed |= set(node.output)
        alive -= sum(sizes.get(o, 0) for o in node.output if o not in last)
    return peak


def _taken(node: Any) -> set[str]:
    """The names that a node reads, those inside its branches and loops included."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for child in inner.node:
                found |= _taken(child)
    return found


# ---------------------------------------------------------------- segments


def _segments(model: Any, sizes: Mapping[str, int], types: Mapping[str, int], bound: int) -> list[_Segment]:
    """The graph's nodes in runs whose float activations are together at most ``bound`` bytes.

    A run ends only where all that crosses is a tensor of known type; one that gives nothing is left out.
    """
    nodes = model.graph.node
    constant = {i.name for i in model.graph.initializer}
    constant |= {o for n in nodes if n.op_type == "Constant" for o in n.output}
    last = {name: k for k, node in enumerate(nodes) for name in _taken(node)}
    cuts, held = [0], 0
    crossing: set[str] = set()
    for number, node in enumerate(nodes):
        size = sum(sizes.get(o, 0) for o in node.output)
        if number > cuts[-1] and held + size > bound and all(types.get(n) for n in crossing):
            cuts.append(number)
            held = 0
        held += size
        crossing |= {o for o in node.output if o in last and o not in constant}
        crossing = {n for n in crossing if last[n] > number}
    made = {i.name for i in model.graph.input} - constant
    found = []
    for start, stop in zip(cuts, [*cuts[1:], len(nodes)], strict=True):
        own = [o for k in range(start, stop) for o in nodes[k].output if o and o not in constant]
        taken = {n for k in range(start, stop) for n in _taken(nodes[k])}
        watched = tuple(n for n in own if n in sizes)
        kept = tuple(n for n in own if last.get(n, -1) >= stop)
        found.append(_Segment(range(start, stop), tuple(sorted(taken & made)), watched, kept))
        made |= set(own)
    return [s for s in found if s.watched or s.kept]


def _session(
    model: Any, segment: _Segment, types: Mapping[str, int], threads: int, scratch: Path, graph: str
) -> Any:
    """A session of one segment; its own weights alone are in it."""
    import onnx
    import onnxruntime as ort

    nodes = [model.graph.node[k] for k in segment.nodes]
    taken = {n for node in nodes for n in _taken(node)}
    inside = {o for n in nodes for o in n.output}

    def info(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, types[name], None)

    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "segment"
    part.graph.node.extend(
        n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in taken - inside
    )
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(i for i in model.graph.initializer if i.name in taken)
    part.graph.input.extend(info(n) for n in segment.inputs)
    part.graph.output.extend(info(n) for n in dict.fromkeys((*segment.watched, *segment.kept)))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    path = scratch / "segment.onnx"
    path.write_bytes(part.SerializeToString())
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base but this one
        why = _refusal(part, str(error).replace(str(path), graph))
        raise ConversionFailed("calibrating", graph, why, _REFUSED_CURE) from error


_REFUSED_CURE = (
    "Export the model at an operator set that ONNX Runtime knows, without operators of other domains, or use "
    "a float recipe on a target that has them"
)


def _refusal(part: Any, said: str) -> str:
    """ONNX Runtime's words, with the operator sets and the operators of other domains of what it refused."""
    sets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in part.opset_import)
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in part.graph.node if n.domain not in ("", "ai.onnx")})
    other = f"; of other domains: {', '.join(foreign)}" if foreign else ""
    return f"ONNX Runtime can't run it (operator sets {sets}{other}): {' '.join(said.split())[:300]}"
