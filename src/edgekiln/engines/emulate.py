"""Half-precision arithmetic on a machine without it: round where the device would round.

ONNX Runtime's CPU provider has few float16 and bfloat16 kernels. It runs such a node in float32 and
drops the casts between, so a value that overflows float16 on the device stays finite here. This module
rewrites a graph whose tensors are float16 or bfloat16 into a float32 graph with an explicit pair of
Casts after every operation that computes, which ONNX Runtime executes and does not remove.

The result rounds once per ONNX node and accumulates in float32 inside one. A GPU that fuses several
nodes into one kernel rounds less often, so the emulation errs on the careful side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.errors import ConversionFailed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ARITHMETIC = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}

# fmt: off
MOVES = frozenset((
    "Abs", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "Relu", "Reshape",
    "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where",
))
# fmt: on
"""Operators that give back values they were given (or a sign or zero): rounding them changes nothing."""


def halves() -> frozenset[int]:
    """The ONNX element types that are emulated."""
    from onnx import TensorProto

    return frozenset(TensorProto.DataType.Value(name) for name in ARITHMETIC.values())


def refuse_subgraphs(model: ModelProto, doing: str) -> None:
    """Raise ConversionFailed when a node carries a graph of its own (If, Loop, Scan)."""
    from onnx import AttributeProto

    for node in model.graph.node:
        if any(a.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS} for a in node.attribute):
            why = f"{node.op_type} holds a subgraph, whose precision this program does not change"
            raise ConversionFailed(doing, node.name or node.op_type, why, "Use the fp32 recipe, or unroll it")


def element_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor that ONNX can name. Raises ConversionFailed where it objects."""
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model).graph
    except shape_inference.InferenceError as error:
        cure = "Check the model with onnx.checker, and export it anew"
        raise ConversionFailed("inferring the types of", model.graph.name, str(error), cure) from error
    types = {i.name: int(i.data_type) for i in graph.initializer}
    for info in (*graph.input, *graph.output, *graph.value_info):
        types[info.name] = int(info.type.tensor_type.elem_type)
    return types


def emulate(model: ModelProto) -> ModelProto:
    """A float32 graph that computes what ``model`` computes in float16 or bfloat16.

    Inputs and outputs keep their names and types. A graph without half-precision tensors comes back equal
    in meaning. Raises ConversionFailed for subgraphs and for tensors whose type can't be inferred.
    """
    from onnx import ModelProto, checker, helper
    from onnx import TensorProto as Tensor

    refuse_subgraphs(model, "emulating half precision in")
    half = halves()
    types = element_types(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    _widen_constants(result, half)
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for info in model.graph.input:
        if types[info.name] in half:
            renamed[info.name] = f"{info.name}/float"
            nodes.append(helper.make_node("Cast", [info.name], [renamed[info.name]], to=Tensor.FLOAT))
    ends = {info.name: types[info.name] for info in model.graph.output if types[info.name] in half}
    renamed.update({name: f"{name}/float" for name in ends})
    for node in graph.node:
        inputs = [renamed.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
        nodes.extend(_rounded(node, types, half, renamed))
    nodes.extend(helper.make_node("Cast", [renamed[n]], [n], to=t) for n, t in ends.items())
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    checker.check_model(result)
    return result


def _widen_constants(model: ModelProto, half: frozenset[int]) -> None:
    """Half-precision initializers, Constants and fill values become float32, exactly."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    def widen(tensor: TensorProto) -> None:
        if tensor.data_type in half:
            wide = np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))

    for tensor in model.graph.initializer:
        widen(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if attribute.name in {"dtype", "output_dtype"} and attribute.i in half:
                attribute.i = TensorProto.FLOAT


def _rounded(
    node: NodeProto, types: dict[str, int], half: frozenset[int], renamed: dict[str, str]
) -> list[NodeProto]:
    """``node`` and, behind each output that is computed in half precision, a rounding pair of Casts."""
    from onnx import TensorProto, helper

    behind: list[NodeProto] = []
    for index, name in enumerate(node.output):
        if not name:
            continue
        if name not in types or types[name] == TensorProto.UNDEFINED:
            why = f"the element type of '{name}' can't be inferred"
            raise ConversionFailed(
                "emulating half precision in", node.op_type, why, "Name the op's types, or use fp32"
            )
        final = renamed.get(name, name)
        if types[name] in half and node.op_type not in MOVES | {"Constant", "ConstantOfShape"}:
            exact, low = f"{name}/exact", f"{name}/low"
            if node.op_type == "Cast":
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("to", types[name]))
                node.output[index] = low
            else:
                node.output[index] = exact
                behind.append(helper.make_node("Cast", [exact], [low], to=types[name]))
            behind.append(helper.make_node("Cast", [low], [final], to=TensorProto.FLOAT))
        else:
            node.output[index] = final
    return [node, *behind]
