"""What TensorRT's documentation rules out, found in the graph before its parser is asked.

Source: "Working with Quantized Types" and the operator notes of onnx-tensorrt: explicit quantisation is
symmetric (zero point 0), in int8, int4 or float8; scales are constants; activations of other
quantisation forms (QLinearConv, DynamicQuantizeLinear ...) are not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgekiln.compile.targets.trt_plan import opset_of, tensorrt_for
from edgekiln.engines.emulate import element_types

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, TensorProto

# fmt: off
_OTHER_FORMS = frozenset((
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
    "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat",
    "QLinearSigmoid", "QLinearLeakyRelu", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
    "MatMulNBits",
))
# fmt: on


class Violation(NamedTuple):
    """A broken rule, and the op and node that break it."""

    at: str
    rule: str


def grouped(found: tuple[Violation, ...]) -> str:
    """One sentence: each rule once, with the first node that breaks it and how many more do."""
    places: dict[str, list[str]] = {}
    for at, rule in found:
        places.setdefault(rule, []).append(at)
    more = {rule: f" (and {len(at) - 1} more)" if len(at) > 1 else "" for rule, at in places.items()}
    return "; ".join(f"{at[0]}{more[rule]}: {rule}" for rule, at in places.items())


def violations(model: ModelProto) -> tuple[Violation, ...]:
    """Each broken rule with the op and node it was found at; empty for a graph that keeps them all."""
    found = []
    opset = opset_of(model)
    if tensorrt_for(opset) is None:
        found.append(Violation(f"opset {opset}", "TensorRT 10 and 11 read opset 9 to 25"))
    types, constants = element_types(model), _constants(model)
    for node in model.graph.node:
        at = f"{node.op_type} '{node.name or node.output[0]}'"
        if node.op_type in _OTHER_FORMS:
            found.append(Violation(at, "TensorRT reads only QuantizeLinear and DequantizeLinear"))
        elif node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            if node.domain not in {"", "ai.onnx"}:
                found.append(Violation(at, f"in domain {node.domain}; TensorRT knows the ONNX one"))
            found.extend(Violation(at, rule) for rule in _pair_violations(node, types, constants))
    return tuple(found)


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """Tensors that are known before run time, by name."""
    known = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            known[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return known


def _pair_violations(node: NodeProto, types: dict[str, int], constants: dict[str, TensorProto]) -> list[str]:
    """What one QuantizeLinear or DequantizeLinear does that TensorRT doesn't."""
    import numpy as np
    from onnx import TensorProto as Tensor
    from onnx import numpy_helper

    def values(name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(constants[name]).astype(np.float64)

    found = []
    kind = types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0], Tensor.UNDEFINED)
    if kind == Tensor.INT32:
        found.append("the bias is quantised to int32; leave it in float (QuantizeBias=False)")
    elif kind not in {Tensor.INT8, Tensor.INT4, Tensor.FLOAT8E4M3FN, Tensor.FLOAT4E2M1}:
        found.append(f"quantises to {Tensor.DataType.Name(kind).lower()}; symmetric int8 is needed")
    if node.input[1] not in constants:
        found.append("the scale is computed at run time; it must be a constant")
    elif not np.all(np.isfinite(values(node.input[1])) & (values(node.input[1]) > 0)):
        found.append("a scale is not a positive finite number")
    zero = node.input[2] if len(node.input) > 2 else ""
    if zero and zero not in constants:
        found.append("the zero point is computed at run time; it must be the constant 0")
    elif zero and np.any(values(zero) != 0):
        found.append("the zero point is not 0; quantise symmetrically")
    return found
