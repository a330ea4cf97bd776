"""The shape and type of every value in a graph, once its inputs are fixed."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

KEEP_ELEMENTS = 1024
"""Initialisers up to this size keep their values: they may be shapes, axes or paddings."""

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

    ONNX's own inference with data propagation comes first. Where it leaves something open (shapes
    computed by longer chains of operators), ONNX Runtime's symbolic inference fills in the rest. What
    neither finds is missing or holds a string: callers have to report it.
    """
    import onnx

    bare = skeleton(proto)
    known = Known({}, {})
    for tensor in proto.graph.initializer:
        known.dims[tensor.name] = tuple(tensor.dims)
        known.dtypes[tensor.name] = tensor.data_type
    # A graph that contradicts itself ends the inference; what was found until then still counts.
    with contextlib.suppress(Exception):
        _collect(onnx.shape_inference.infer_shapes(bare, data_prop=True), known)
    values = [o for n in proto.graph.node for o in n.output if o]
    if all(known.fixed(v) is not None for v in values):
        return known
    symbolic = _symbolic(bare)
    if symbolic is not None:
        _collect(symbolic, known)
    return known


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
