"""What a quantiser can't take: graphs that are quantised already, operators that it has no form for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.errors import ConversionFailed

_QUANTISED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "MatMulNBits",
        "MatMulBnb4",
        "GatherBlockQuantized",
        "QGemm",
        "QAttention",
        "FakeQuantize",
    }
)
_NO_ARITHMETIC = frozenset(
    {"Constant", "ConstantOfShape", "Shape", "Size", "Cast", "Range", "Identity", "If", "Loop", "Scan"}
)


def refuse_quantised(ops: Mapping[str, int], name: str) -> None:
    """Raise ConversionFailed where ``ops`` (operator types with their number) are of a quantised graph.

    Its weights lie on a grid already: a second one adds its own error to the first's, and the ranges of
    the float model are not to be had from it.
    """
    found = {op: n for op, n in ops.items() if op in _QUANTISED or op.startswith("QLinear")}
    if found:
        said = ", ".join(f"{op} {n}" for op, n in sorted(found.items()))
        why = f"its weights or activations are quantised already ({said})"
        cure = "Give the float model it was made from, or ship this one as it is with the recipe fp32"
        raise ConversionFailed("quantising", name, why, cure)


def unknown_operators(graph: Path) -> dict[str, int]:
    """Operators of ``graph`` that ONNX Runtime's quantiser has no quantised form for, with their number.

    They are computed in float, between those that are quantised. Operators of another domain than ONNX's own
    bear its name.
    """
    import onnx
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = set(QDQRegistry) | set(QLinearOpsRegistry) | _NO_ARITHMETIC
    nodes = onnx.load(graph, load_external_data=False).graph.node
    found = Counter(
        f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type
        for n in nodes
        if n.op_type not in known
    )
    return dict(sorted(found.items()))


def missing_types(model: Any, scratch: Path) -> list[Any]:
    """Value infos of tensors whose type ONNX can't infer: ONNX Runtime knows operators of its own domains.

    ``model`` has its shapes inferred; large weights may lie in files in ``scratch``. Empty where ONNX Runtime
    refuses the graph: whoever runs it is told why.
    """
    import onnx
    import onnxruntime as ort

    graph = model.graph
    known = {i.name for i in (*graph.value_info, *graph.output, *graph.input)}
    names = [o for n in graph.node if n.op_type != "Constant" for o in n.output if o and o not in known]
    if not names:
        return []
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    path = scratch / "types.onnx"
    path.write_bytes(probe.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        outputs = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).get_outputs()
    except Exception:  # ONNX Runtime's own classes share no base but this one
        return []
    found = {o.name: o for o in outputs}
    kinds = {n: _TYPES[found[n].type] for n in names if n in found and found[n].type in _TYPES}
    return [onnx.helper.make_tensor_value_info(n, k, found[n].shape) for n, k in kinds.items()]


def typed(graph: Path, scratch: Path) -> Path:
    """``graph``, or a copy in ``scratch`` that says the types which ONNX can't infer: a quantiser passes by
    what has none.
    """
    import onnx

    model = onnx.load(graph)
    if not any(n.domain not in ("", "ai.onnx") for n in model.graph.node):
        return graph
    missing = missing_types(onnx.shape_inference.infer_shapes(model), scratch)
    if not missing:
        return graph
    model.graph.value_info.extend(missing)
    onnx.save(model, scratch / "typed.onnx")
    return scratch / "typed.onnx"


_TYPES = {
    "tensor(float)": 1,
    "tensor(int32)": 6,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(float16)": 10,
}
"""ONNX Runtime's names of the types that activations have, and ONNX's numbers of them."""
