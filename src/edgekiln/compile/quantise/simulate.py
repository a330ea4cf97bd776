"""The quantised model as a float graph: what its integers will compute, to be looked into and changed.

Every quantised activation passes a QuantizeLinear and a DequantizeLinear, and weights hold the values of
their integers. With ONNX Runtime's fusions off, this computes in float what an integer kernel computes up to
its last rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.layers import layers
from edgekiln.compile.quantise.observers import Ranges
from edgekiln.compile.quantise.rounding import nearest

FAKE = "_edgekiln_fake"
_FUSED = frozenset({"Relu", "Clip"})
HANDED_ON = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
"""Operators whose output holds nothing but values of their input: it lies on the input's grid already."""


def quantised_activations(
    model: Any, ranges: Ranges, keep_float: Collection[str] = (), only: Collection[str] | None = None
) -> tuple[str, ...]:
    """The tensors that an integer graph holds in 8 bits, in graph order.

    Those with a range that some node which stays quantised reads or writes; what a Conv, Gemm or Add hands
    only to a Relu or Clip is fused into that and never stored, and outputs of the graph are given in float.
    ``keep_float`` names nodes that stay float: a tensor between two such nodes stays float too. Where
    ``only`` names the nodes that are quantised, what they read is held in 8 bits and all else in float.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {out: node for node in model.graph.node for out in node.output}
    outputs = {o.name for o in model.graph.output}
    names = [i.name for i in model.graph.input] + [o for n in model.graph.node for o in n.output]
    held = []
    for name in names:
        users = readers.get(name, [])
        if name not in ranges or name in outputs:
            continue
        if only is not None:
            if any(n.name in only and n.name not in keep_float and n.input[0] == name for n in users):
                held.append(name)
            continue
        if name in makers and makers[name].op_type in HANDED_ON and makers[name].input[0] in ranges:
            continue
        around = [*users, *([makers[name]] if name in makers else [])]
        fused = name in makers and users and all(u.op_type in _FUSED for u in users)
        if not all(n.name in keep_float for n in around) and (not fused or makers[name].op_type in _FUSED):
            held.append(name)
    return tuple(held)


def held_source(model: Any, name: str, held: Collection[str]) -> str | None:
    """The held tensor whose values ``name`` has: itself, or what it was handed on from; None where there is
    none."""
    makers = {out: node for node in model.graph.node for out in node.output}
    while name not in held:
        maker = makers.get(name)
        if maker is None or maker.op_type not in HANDED_ON:
            return None
        name = maker.input[0]
    return name


def grid(low: float, high: float, symmetric: bool, bits: int = 8) -> tuple[np.float32, int, int, int]:
    """(scale, zero point, least, greatest) of the unsigned (or symmetric signed) grid over a range.

    As ONNX Runtime's quantiser lays it: zero is exact, signed grids are -127..127.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        most = 2 ** (bits - 1) - 1
        reach = max(-low, high)
        return np.float32(reach / most if reach > 0 else 1.0), 0, -most, most
    steps = 2**bits - 1
    scale = np.float32((high - low) / steps)
    if not scale > 0:
        return np.float32(1.0), 0, 0, steps
    return scale, int(np.clip(np.rint(-low / scale), 0, steps)), 0, steps


SWITCH = "edgekiln_switch_"


def fake_quantised(
    model: Any,
    activations: Iterable[str],
    ranges: Ranges,
    symmetric: bool,
    bits: int = 8,
    switches: bool = False,
) -> Any:
    """A copy of ``model`` whose ``activations`` are rounded to their grids, for all who read them.

    With ``switches`` each has a boolean input of the graph, named SWITCH and its place in ``activations``:
    only where that is true the rounded values are read, so that one session tries every choice.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    wanted = tuple(dict.fromkeys(activations))
    swapped = {name: name + FAKE for name in wanted}
    for node in made.graph.node:
        for place, name in enumerate(node.input):
            if name in swapped:
                node.input[place] = swapped[name]
    placed: dict[str, list[Any]] = {}
    for place, name in enumerate(wanted):
        scale, zero, _, _ = grid(*ranges[name], symmetric, bits)
        kind = {8: np.int8 if symmetric else np.uint8, 16: np.int16 if symmetric else np.uint16}[bits]
        made.graph.initializer.append(numpy_helper.from_array(np.array(scale), f"{name}{FAKE}_scale"))
        made.graph.initializer.append(numpy_helper.from_array(np.array(zero, kind), f"{name}{FAKE}_zero"))
        grid_names = [f"{name}{FAKE}_scale", f"{name}{FAKE}_zero"]
        domain = "" if bits == 8 else "com.microsoft"
        back = f"{name}{FAKE}_back" if switches else swapped[name]
        placed[name] = [
            helper.make_node("QuantizeLinear", [name, *grid_names], [f"{name}{FAKE}_int"], domain=domain),
            helper.make_node("DequantizeLinear", [f"{name}{FAKE}_int", *grid_names], [back], domain=domain),
        ]
        if switches:
            switch = f"{SWITCH}{place}"
            made.graph.input.append(helper.make_tensor_value_info(switch, onnx.TensorProto.BOOL, [1]))
            placed[name].append(helper.make_node("Where", [switch, back, name], [swapped[name]]))
    nodes = [extra for i in made.graph.input for extra in placed.get(i.name, ())]
    for node in made.graph.node:
        nodes.append(node)
        nodes += [extra for out in node.output for extra in placed.get(out, ())]
    _set_nodes(made, nodes)
    if bits != 8 and not any(o.domain == "com.microsoft" for o in made.opset_import):
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def part(model: Any, outputs: Iterable[str], given: Mapping[str, np.dtype[Any]] | None = None) -> Any:
    """A copy of ``model`` that computes ``outputs`` and nothing that they don't need.

    ``given`` are tensors that are handed in (name to type) instead of being computed. Weights that are not
    needed stay behind.
    """
    import onnx
    from onnx import helper

    known = dict(given or {})
    wanted = tuple(dict.fromkeys(outputs))
    needed, kept = set(wanted), []
    for node in reversed(model.graph.node):
        made_here = {o for o in node.output if o and o not in known}
        if needed & made_here:
            kept.append(node)
            needed |= set(node.input) | captured(node)
    made = onnx.ModelProto()
    made.ir_version = model.ir_version
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = model.graph.name
    made.graph.node.extend(reversed(kept))
    made.graph.input.extend(i for i in model.graph.input if i.name in needed and i.name not in known)
    for name in sorted(needed & set(known)):
        kind = helper.np_dtype_to_tensor_dtype(known[name])
        made.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    made.graph.initializer.extend(i for i in model.graph.initializer if i.name in needed)
    typed = {v.name: v for v in [*model.graph.value_info, *model.graph.output, *model.graph.input]}
    for name in wanted:
        out = onnx.ValueInfoProto(name=name)
        if name in typed:
            out.type.tensor_type.elem_type = typed[name].type.tensor_type.elem_type
        made.graph.output.append(out)
    return made


def captured(node: Any) -> set[str]:
    """Names that the bodies of an If, Loop or Scan read from around them (and their own: no harm)."""
    return {
        name
        for attribute in node.attribute
        if attribute.HasField("g")
        for inner in attribute.g.node
        for name in {*inner.input, *captured(inner)}
    }


def with_weights(model: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Put ``values`` in the place of initialisers, by name; a name that is not there is added."""
    from onnx import numpy_helper

    left = dict(values)
    for tensor in model.graph.initializer:
        if tensor.name in left:
            tensor.CopyFrom(numpy_helper.from_array(left.pop(tensor.name), tensor.name))
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in left.items())


def on_grids(model: Any, most: int, keep_float: Collection[str] = ()) -> Any:
    """A copy of ``model`` whose layers' weights are at the nearest step of their rows' grids.

    Weights that are on their grids already stay as they are; so do those of ``keep_float`` nodes.
    """
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    held = {i.name: i for i in model.graph.initializer}
    changed = {}
    for layer in layers(model):
        if layer.node not in keep_float:
            values = numpy_helper.to_array(held[layer.weight])
            changed[layer.weight] = layer.unmatrix(nearest(layer.matrix(values), most), values)
    with_weights(made, changed)
    return made


def session(model: Any, threads: int) -> Any:
    """Open ``model`` in ONNX Runtime without the fusions that would undo a fake quantisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _set_nodes(model: Any, nodes: Iterable[Any]) -> None:
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
