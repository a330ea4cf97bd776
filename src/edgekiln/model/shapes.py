"""The shape and type of every value in a graph, once its inputs are fixed."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto

KEEP_ELEMENTS = 1024
"""Initialisers up to this size keep their values: they may be shapes, axes or paddings."""

MAX_TURNS = 64
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# The size of the result is not bounded by the size of the inputs, so it has to be known beforehand.
_GROWS = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "OneHot", "Resize", "Pad"})

Dims = tuple[int | str, ...]


class Known(NamedTuple):
    """``dims`` and ``dtypes`` (ONNX element types) by value name. An unknown axis is a string."""

    dims: dict[str, Dims]
    dtypes: dict[str, int]

    def shape(self, name: str) -> Dims | None:
        return self.dims.get(name)

    def fixed(self, name: str) -> tuple[int, ...] | None:
        """The shape of ``name`` if every axis is a number."""
        dims = self.dims.get(name)
        if dims is None:
            return None
        numbers = tuple(d for d in dims if isinstance(d, int))
        return numbers if len(numbers) == len(dims) else None


def skeleton(proto: ModelProto) -> ModelProto:
    """``proto`` without the data of large initialisers, which become inputs: small, whatever the model."""
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    listed = {i.name for i in proto.graph.input}
    graph.input.extend(proto.graph.input)
    for tensor in proto.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= KEEP_ELEMENTS:
            graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in listed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.add().CopyFrom(value)
    return bare


def infer(proto: ModelProto) -> Known:
    """Shapes and types of all values of the main graph, from the shapes of its inputs.

    ONNX's own inference stops where a shape is computed by operators that it can't follow (Shape, Slice,
    Concat, Reshape). So it runs in turns with an evaluation of what depends on known shapes alone, until
    nothing new is found; ONNX Runtime's symbolic inference then fills in the shapes of its own
    operators. What none of them finds is missing or holds a string: callers have to report it.
    """
    bare = skeleton(proto)
    known = Known({}, {})
    for tensor in proto.graph.initializer:
        known.dims[tensor.name] = tuple(tensor.dims)
        known.dtypes[tensor.name] = tensor.data_type
    values = [o for n in proto.graph.node for o in n.output if o]
    folded: dict[str, NDArray[Any]] = {}
    for _ in range(MAX_TURNS):
        _standard(bare, known)
        if all(known.fixed(v) is not None for v in values) or not _fold(bare, known, folded):
            break
    if any(known.fixed(v) is None for v in values):
        symbolic = _symbolic(bare)
        if symbolic is not None:
            _collect(symbolic, known)
    return known


def _standard(bare: ModelProto, known: Known) -> None:
    import onnx

    # A graph that contradicts itself ends the inference; what was found until then still counts.
    with contextlib.suppress(Exception):
        _collect(onnx.shape_inference.infer_shapes(bare, data_prop=True), known)


def _fold(bare: ModelProto, known: Known, folded: dict[str, NDArray[Any]]) -> bool:
    """Turn small values that follow from known shapes into initialisers. False where nothing was new."""
    from onnx import numpy_helper

    for tensor in bare.graph.initializer:
        if tensor.name not in folded:
            folded[tensor.name] = numpy_helper.to_array(tensor)
    new: dict[str, NDArray[Any]] = {}
    kept = []
    for node in bare.graph.node:
        value = _value(node, known, folded, bare)
        if value is None:
            kept.append(node)
            continue
        folded[node.output[0]] = new[node.output[0]] = value
    del bare.graph.node[:]
    bare.graph.node.extend(kept)
    for name, value in new.items():
        bare.graph.initializer.add().CopyFrom(numpy_helper.from_array(value, name))
        known.dims[name] = tuple(value.shape)
        known.dtypes[name] = bare.graph.initializer[-1].data_type
    return bool(new)


def _value(
    node: NodeProto, known: Known, folded: dict[str, NDArray[Any]], bare: ModelProto
) -> NDArray[Any] | None:
    """The only output of ``node`` if it is small and follows from ``folded`` and known shapes."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    if len(node.output) != 1 or node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
        return None
    dims = known.fixed(node.output[0])
    if node.op_type in _GROWS if dims is None else math.prod(dims) > KEEP_ELEMENTS:
        return None
    if node.op_type == "Shape":
        whole = known.fixed(node.input[0])
        ends: dict[str, int] = {str(a.name): int(a.i) for a in node.attribute}
        return None if whole is None else np.array(whole, np.int64)[ends.get("start", 0) : ends.get("end")]
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if not all(i in folded for i in node.input if i):
        return None
    typed = onnx.helper.make_tensor_value_info
    inputs: list[str] = list(dict.fromkeys(str(i) for i in node.input if i))
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [typed(i, onnx.helper.np_dtype_to_tensor_dtype(folded[i].dtype), folded[i].shape) for i in inputs],
        [onnx.helper.make_empty_tensor_value_info(node.output[0])],
    )
    one = onnx.helper.make_model(graph, opset_imports=bare.opset_import, ir_version=bare.ir_version)
    try:
        evaluate: Any = ReferenceEvaluator(one).run
        value = np.asarray(evaluate(None, {name: folded[name] for name in inputs})[0])
    except Exception:  # no reference for this operator or type: the value stays unknown
        return None
    return value if value.size <= KEEP_ELEMENTS else None


def _symbolic(bare: ModelProto) -> ModelProto | None:
    """What ONNX Runtime's symbolic inference finds, be it incomplete; None where it refuses the graph.

    Its own entry point writes a file into the working folder when it stays incomplete, so its steps are
    taken one by one here.
    """
    import onnx
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    if not any(o.domain in ("", "ai.onnx") and o.version >= 7 for o in bare.opset_import):
        return None
    logging.getLogger("onnxruntime.tools.symbolic_shape_infer").setLevel(logging.CRITICAL)
    open_outputs = onnx.ModelProto()
    open_outputs.CopyFrom(bare)
    inference: Any = SymbolicShapeInference(2**31 - 1, True, False, 0)
    try:
        inference._preprocess(open_outputs)
        for _ in range(len(bare.graph.node) + 1):
            if not inference.run_:
                break
            inference._infer_impl()
    except Exception:  # one operator it can't follow; the values before it are known
        pass
    found: ModelProto = inference.out_mp_
    for name, value in getattr(inference, "known_vi_", {}).items():
        if name not in {v.name for v in found.graph.value_info}:
            found.graph.value_info.add().CopyFrom(value)
    return found


def _collect(inferred: ModelProto, known: Known) -> None:
    """Add what ``inferred`` says to ``known``; a number is never replaced by a name."""
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = _tensor(value.type)
        if tensor is None:
            continue
        if tensor.elem_type:
            known.dtypes.setdefault(value.name, tensor.elem_type)
        if not tensor.HasField("shape") or known.fixed(value.name) is not None:
            continue
        known.dims[value.name] = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
        )


def _tensor(kind: TypeProto) -> Any:
    return kind.tensor_type if kind.WhichOneof("value") == "tensor_type" else None
