"""The inside of a ``.tflite``: the model's own tensor names, picture inputs as NHWC, what its operators are.

Reads and writes the flatbuffer through ai-edge-litert's own classes for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekiln.engines.litert import DTYPE, LAYOUT, SIGNATURE
from edgekiln.errors import ConversionFailed
from edgekiln.model.signature import image_layout
from edgekiln.records import Model, Scalar, Signature, TensorSpec

_HEAVY = {
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "CONV_3D",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
}
_GIBIBYTES_2 = 2 << 30


def nchw_pictures(model: Model, signature: Signature) -> tuple[str, ...]:
    """The inputs that the file takes as NHWC instead: the only input, where it is an NCHW picture.

    Camera frames and bitmaps of a phone are NHWC, and so is LiteRT inside. With several inputs nothing tells
    a picture of one channel from a mask, so all stay as they are.
    """
    if len(signature.inputs) != 1:
        return ()
    only = signature.inputs[0]
    layout = model.preprocess.layout if model.preprocess is not None else image_layout(only)
    return (only.name,) if layout == "NCHW" and image_layout(only) == "NCHW" else ()


def nhwc_pictures(model: Model, signature: Signature) -> tuple[str, ...]:
    """The only input, where the model's own preprocessing gives an NHWC picture."""
    asked = model.preprocess is not None and model.preprocess.layout == "NHWC" and len(signature.inputs) == 1
    return (signature.inputs[0].name,) if asked else ()


def channels_last(module: Any, signature: Signature, nhwc: Sequence[str]) -> Any:
    """``module`` with the inputs ``nhwc`` taken as NHWC. The converter cancels the transposes out."""
    import litert_torch

    places = [i for i, spec in enumerate(signature.inputs) if spec.name in nhwc]
    return litert_torch.to_channel_last_io(module, args=places).eval() if places else module


def load(content: bytes) -> Any:
    """The flatbuffer as a tree of objects (``schema_py_generated.ModelT``), buffers resolved."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(content)


def dump(tree: Any) -> bytes:
    """The tree as a ``.tflite``. Raises ConversionFailed beyond 2 GiB, which a flatbuffer can't hold."""
    from ai_edge_litert.tools import flatbuffer_utils

    held = [b for b in tree.buffers if b.data is not None]
    if sum(len(b.data) for b in held) >= _GIBIBYTES_2:
        cure = "Use a quantised recipe, or another target"
        raise ConversionFailed("writing the .tflite of", SIGNATURE, "its weights exceed 2 GiB", cure)
    for buffer in held:
        if not isinstance(buffer.data, np.ndarray):  # those are written byte by byte, in Python
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree))


def rename(tree: Any, signature: Signature) -> None:
    """Put the model's own names into the signature and onto its tensors: ``args_0`` becomes ``image``.

    The converter numbers inputs and outputs by place. The tensors between them bear the names of its torch
    modules, hundreds of letters that say nothing of the model: they become ``t/5`` by their place.
    Raises ConversionFailed where an input or output is missing.
    """
    if len(tree.signatureDefs or []) != 1:
        why = f"the converter wrote {len(tree.signatureDefs or [])} signatures"
        raise ConversionFailed("naming the tensors of", SIGNATURE, why, "Report this model to edgekiln")
    definition = tree.signatureDefs[0]
    tensors = tree.subgraphs[definition.subgraphIndex].tensors
    named: set[int] = set()
    own = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    for graph in tree.subgraphs:
        for place, tensor in enumerate(graph.tensors):
            tensor.name = f"t/{place}"
            while tensor.name in own:
                tensor.name += "+"
    kinds = (
        ("args_", definition.inputs, signature.inputs),
        ("output_", definition.outputs, signature.outputs),
    )
    for prefix, maps, specs in kinds:
        if {_text(m.name) for m in maps} != {f"{prefix}{i}" for i in range(len(specs))}:
            why = f"it has {sorted(_text(m.name) for m in maps)} for {[s.name for s in specs]}"
            cure = "Export the model without inputs that nothing uses and outputs that are constants"
            raise ConversionFailed("naming the tensors of", SIGNATURE, why, cure)
        for entry in maps:
            name = specs[int(_text(entry.name).removeprefix(prefix))].name
            entry.name = name
            if entry.tensorIndex not in named:
                tensors[entry.tensorIndex].name = name
                named.add(entry.tensorIndex)


def signature_of(tree: Any) -> Signature:
    """The file's own inputs and outputs (names of the signature, order of the subgraph)."""
    definition = tree.signatureDefs[0]
    graph = tree.subgraphs[definition.subgraphIndex]

    def specs(maps: Any, order: Any) -> tuple[TensorSpec, ...]:
        names = {int(m.tensorIndex): _text(m.name) for m in maps}
        found = []
        for index in order:
            tensor = graph.tensors[int(index)]
            shape = tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()
            name = names.get(int(index), _text(tensor.name))
            found.append(TensorSpec(name=name, dtype=_dtype(tensor.type), shape=shape))
        return tuple(found)

    return Signature(
        inputs=specs(definition.inputs, graph.inputs), outputs=specs(definition.outputs, graph.outputs)
    )


def options(own: Signature, held: Signature, nhwc: Sequence[str]) -> dict[str, Scalar]:
    """What the engine must know to take and give the model's ``own`` tensors where the file has others."""
    found: dict[str, Scalar] = {LAYOUT + name: "NHWC" for name in nhwc}
    for ours, theirs in ((own.inputs, held.inputs), (own.outputs, held.outputs)):
        dtypes = {spec.name: spec.dtype for spec in theirs}
        found |= {DTYPE + s.name: s.dtype for s in ours if dtypes.get(s.name, s.dtype) != s.dtype}
    return found


def add_buffer(tree: Any, name: str, data: bytes) -> None:
    """A metadata entry ``name`` with its own buffer, in place of one that was there."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [m for m in tree.metadata or [] if _text(m.name) != name] + [entry]


def operators(tree: Any) -> Counter[str]:
    """Operators of all subgraphs by type."""
    return Counter(_type(tree, op) for graph in tree.subgraphs for op in graph.operators or [])


def precisions(tree: Any) -> dict[str, int]:
    """Heavy operators (convolutions, products, LSTMs) by the arithmetic they run in.

    Weights that are dequantised first leave the arithmetic float; float activations with integer weights
    are quantised while it runs, so they count by their weights.
    """
    from ai_edge_litert.schema_py_generated import TensorType

    names = {TensorType.INT8: "int8", TensorType.INT16: "a16w8", TensorType.FLOAT16: "fp16"}
    count: Counter[str] = Counter()
    for graph in tree.subgraphs:
        for op in graph.operators or []:
            if _type(tree, op) not in _HEAVY:
                continue
            data, weights = (graph.tensors[int(t)].type for t in op.inputs[:2])
            if data == TensorType.FLOAT32 and weights == TensorType.INT4:
                count["int4"] += 1
            elif data == TensorType.FLOAT32 and weights == TensorType.INT8:
                count["int8"] += 1
            else:
                count[names.get(data, "fp32")] += 1
    return dict(sorted(count.items()))


def _type(tree: Any, op: Any) -> str:
    from ai_edge_litert.tools import flatbuffer_utils

    return str(flatbuffer_utils.opcode_to_name(tree, op.opcodeIndex))


def _dtype(kind: int) -> str:
    """The NumPy name of a TensorType."""
    from ai_edge_litert.tools import flatbuffer_utils

    return str(flatbuffer_utils.type_to_name(kind)).lower()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
