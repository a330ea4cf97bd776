"""Static INT8 in the Q/DQ dialect that each target is fast in and accepts.

The ranges are ours (see observers); placing the Q/DQ pairs is left to ONNX Runtime's quantiser, which
reads ranges from its calibration file. The dialects differ because the targets do: ONNX Runtime on a
CPU fuses u8 activations with s8 weights and an int32 bias; TensorRT takes symmetric s8 only and wants
the bias in float; Hexagon wants every operator quantised, activations in 8 or 16 unsigned bits, and no
scale per channel at a MatMul.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.compile.quantise.layers import LAYER_OPS
from edgekiln.compile.quantise.observers import Observation, Ranges, ranges
from edgekiln.compile.quantise.operators import typed
from edgekiln.errors import ConversionFailed
from edgekiln.records import Scalar


@dataclass(frozen=True)
class Dialect:
    """How Q/DQ is written. ``symmetric`` activations have zero point 0 and keep Relu and Clip nodes.

    ``hexagon`` quantises all operators, by ONNX Runtime's own configuration for its QNN provider, and is
    the one dialect that can hold activations in 16 bits.
    """

    name: str
    activations: str
    symmetric: bool
    int32_bias: bool
    reduce_range: bool = False
    hexagon: bool = False


DIALECTS = {
    "ort": Dialect("ort", activations="QUInt8", symmetric=False, int32_bias=True),
    # Without VNNI, VPMADDUBSW adds two u8*s8 products in 16 bits and saturates: 7-bit weights do not.
    "ort-7bit": Dialect(
        "ort-7bit", activations="QUInt8", symmetric=False, int32_bias=True, reduce_range=True
    ),
    # OpenVINO fuses ONNX Runtime's form as it is; the name tells whose speed a search goes by.
    "openvino-qdq": Dialect("openvino-qdq", activations="QUInt8", symmetric=False, int32_bias=True),
    "openvino-qdq-7bit": Dialect(
        "openvino-qdq-7bit", activations="QUInt8", symmetric=False, int32_bias=True, reduce_range=True
    ),
    # What other quantisers (LiteRT's, XNNPACK's) are given: a float graph, made ready for 8 unsigned bits.
    "float": Dialect("float", activations="QUInt8", symmetric=False, int32_bias=True),
    "tensorrt": Dialect("tensorrt", activations="QInt8", symmetric=True, int32_bias=False),
    "qnn": Dialect("qnn", activations="QUInt8", symmetric=False, int32_bias=True, hexagon=True),
}


def quantise_static(
    graph: Path,
    seen: dict[str, Observation],
    rule: str,
    params: dict[str, Scalar],
    dialect: Dialect,
    into: Path,
) -> Ranges:
    """Find the activations' ranges in what was ``seen`` and ``write_static``; returns the ranges."""
    held = ranges(seen, rule, dialect.symmetric, params)
    write_static(graph, held, params, dialect, into)
    return held


def write_static(
    graph: Path,
    held: Ranges,
    params: dict[str, Scalar],
    dialect: Dialect,
    into: Path,
    keep_float: Collection[str] = (),
) -> None:
    """Write the Q/DQ form of ``graph`` to ``into``; ``held`` are the ranges of its activations.

    ``params`` may ask for ``activation_bits`` 16 (8 unless said) and for ``layers``: only products with
    constant weights are quantised then. Weights have 8 bits. ``keep_float`` names nodes that stay float.
    Raises ConversionFailed where the dialect has no such activations, or the quantiser refuses the graph or
    finds nothing to quantise.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod

    activations = _activations(graph, dialect, int(params.get("activation_bits", 8)))
    chosen = _Chosen(layers=bool(params.get("layers")), keep_float=frozenset(keep_float))
    with tempfile.TemporaryDirectory() as scratch, quiet():
        calibration = Path(scratch) / "ranges.json"
        _write_ranges(held, calibration)
        try:
            quantize_static(
                str(typed(graph, Path(scratch))),
                str(into),
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType[activations],
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=str(calibration),
                **(_hexagon(graph, activations) if dialect.hexagon else _general(graph, dialect, chosen)),
            )
            if not dialect.hexagon:
                _float_outputs(into)
        except Exception as error:
            raise ConversionFailed(
                "quantising",
                graph.name,
                f"ONNX Runtime's quantiser refused it: {type(error).__name__}: {str(error)[:300]}",
                "Use a float recipe for this model, or another target",
            ) from error
    if not {"int8", "a16w8"} & set(precisions(into)):
        raise ConversionFailed(
            "quantising", graph.name, "no operator of this graph can be quantised", "Use a float recipe"
        )


def _activations(graph: Path, dialect: Dialect, bits: int) -> str:
    """The quantiser's name of the activations' type. Raises ConversionFailed where the dialect has none."""
    if bits == 8:
        return dialect.activations
    if bits == 16 and dialect.hexagon:
        return "QUInt16"
    why = f"the dialect '{dialect.name}' has no activations of {bits} bits"
    raise ConversionFailed("quantising", graph.name, why, "Use a recipe of 8 bits, or the target qnn")


@dataclass(frozen=True)
class _Chosen:
    """Which nodes are quantised: all that the quantiser knows, or only ``layers``; ``keep_float`` never."""

    layers: bool
    keep_float: frozenset[str]


def _general(graph: Path, dialect: Dialect, chosen: _Chosen) -> dict[str, Any]:
    """What quantize_static is told for a CPU or for TensorRT."""
    from onnxruntime.quantization import QuantType

    excluded = set(chosen.keep_float) | set(_constant_arithmetic(graph) if dialect.symmetric else ())
    options: dict[str, Any] = {
        "ActivationSymmetric": dialect.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": dialect.int32_bias,
        "QDQKeepRemovableActivations": dialect.symmetric,
    }
    kinds = _quantised_ops(graph)
    if chosen.layers:
        kinds = [kind for kind in kinds if kind in LAYER_OPS]
        excluded |= _without_weights(graph)
        # Their readers compute in float: a grid of its own would only cost precision and a conversion.
        options["OpTypesToExcludeOutputQuantization"] = ["Gemm", "MatMul"]
    return {
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": dialect.reduce_range,
        "op_types_to_quantize": kinds,
        "nodes_to_exclude": sorted(excluded),
        "extra_options": options,
    }


def layer_nodes(graph: Path) -> frozenset[str]:
    """Names of the products with constant weights: what ``layers`` quantises."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    left = _without_weights(graph)
    return frozenset(n.name for n in model.graph.node if n.op_type in LAYER_OPS and n.name not in left)


def _without_weights(graph: Path) -> set[str]:
    """Names of the products whose second factor is no constant, such as attention's."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    held = {i.name for i in model.graph.initializer}
    return {n.name for n in model.graph.node if n.op_type in LAYER_OPS and n.input[1] not in held}


def _float_outputs(path: Path) -> None:
    """Take the Q/DQ pair off outputs that a matrix product makes: engines give it in float at no cost.

    A classifier's logits lie 35 dB above their own grid's error, more than most layers' (EfficientNet-Lite0).
    """
    import onnx

    model = onnx.load(path)
    makers = {out: node for node in model.graph.node for out in node.output}
    for output in model.graph.output:
        back = makers.get(output.name)
        to = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        made = makers.get(to.input[0]) if to is not None and to.op_type == "QuantizeLinear" else None
        readers = [n for n in model.graph.node if to is not None and to.input[0] in n.input]
        if made is None or made.op_type not in {"Gemm", "MatMul"} or len(readers) != 1:
            continue
        made.output[0] = output.name
        model.graph.node.remove(back)
        model.graph.node.remove(to)
    onnx.save(model, path)


_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


def _hexagon(graph: Path, activations: str) -> dict[str, Any]:
    """What quantize_static is told for Hexagon: ONNX Runtime's own configuration for its QNN provider.

    It fixes the output range of a 16-bit Sigmoid or Tanh, and writes 16-bit Q/DQ below opset 21 in the
    domain com.microsoft. Weights are u8 per tensor but for convolutions, s8 per channel: those of a Gemm
    per channel come out wrong in the HTP simulator under 16-bit activations (4 dB instead of 51).
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    model = onnx.load(graph)
    constants = {i.name for i in model.graph.initializer}
    kernels = {
        n.input[1]: [{"axis": _CHANNEL_AXIS[n.op_type], "quant_type": QuantType.QInt8, "symmetric": True}]
        for n in model.graph.node
        if n.op_type in _CHANNEL_AXIS and n.input[1] in constants
    }
    config = get_qnn_qdq_config(
        model,
        None,
        activation_type=QuantType[activations],
        weight_type=QuantType.QUInt8,
        init_overrides=kernels or None,
        add_qtype_converts=False,
    )
    return {
        "weight_type": QuantType.QUInt8,
        "per_channel": False,
        # A set's order is not the same in every process, and the quantiser's output follows it.
        "op_types_to_quantize": sorted(config.op_types_to_quantize),
        "extra_options": config.extra_options,
    }


def prepared(graph: Path, dialect: Dialect, into: Path) -> Path:
    """The graph that ranges are found on and that is quantised: ``graph``, or what was written to ``into``.

    Hexagon's has Gelu as one operator, as ONNX Runtime's QNN guide asks before quantising: in pieces its Erf
    falls back to the CPU. That tool also takes composed operators (HardSwish) apart, whose inner tensors
    need ranges too. Raises ConversionFailed where it refuses the graph.
    """
    if not dialect.hexagon:
        return graph
    from onnxruntime.quantization.execution_providers.qnn import qnn_preprocess_model

    try:
        with quiet():
            return into if qnn_preprocess_model(graph, into) else graph
    except Exception as error:
        why = f"ONNX Runtime's QNN preparation refused it: {type(error).__name__}: {str(error)[:300]}"
        cure = "Use a float recipe for this model, or another target"
        raise ConversionFailed("preparing for Hexagon", graph.name, why, cure) from error


def quantise_dynamic(graph: Path, into: Path) -> None:
    """INT8 weights per channel for MatMul and Gemm; activations are quantised at run time.

    Convolutions stay float: their dynamic form (ConvInteger) is several times slower than float.
    Raises ConversionFailed where the graph has no MatMul or Gemm with constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        try:
            quantize_dynamic(
                str(graph),
                str(into),
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        except Exception as error:
            raise ConversionFailed(
                "quantising dynamically",
                graph.name,
                f"{type(error).__name__}: {str(error)[:300]}",
                "Use a static or a float recipe",
            ) from error
    if not precisions(into).get("int8"):
        raise ConversionFailed(
            "quantising dynamically",
            graph.name,
            "it has no MatMul or Gemm with constant weights",
            "Use a static recipe",
        )


def _write_ranges(held: Ranges, path: Path) -> None:
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, save_tensors_data

    data = {n: (np.array(low, np.float32), np.array(high, np.float32)) for n, (low, high) in held.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), path)


_FLOAT_OPS = {"BatchNormalization"}
"""What no engine computes in 8 bits: one that was not folded keeps its constants. Through a DequantizeLinear
they are no constants, and ONNX Runtime's exact way for a CPU without VNNI refuses the graph."""


def _quantised_ops(graph: Path) -> list[str]:
    """The op types of this graph that the quantiser knows, in a fixed order (a set's order is not)."""
    import onnx
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    present = {n.op_type for n in onnx.load(graph, load_external_data=False).graph.node}
    return sorted(present & (set(QDQRegistry) | set(QLinearOpsRegistry)) - _FLOAT_OPS)


_ARITHMETIC = {"Add", "Sub", "Mul", "Div"}


def _constant_arithmetic(graph: Path) -> list[str]:
    """Names of nodes such as a Mul by a constant. TensorRT's builder takes a quantised constant only as a
    weight of a convolution or a matrix product, and refuses the whole graph otherwise."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    floats = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    return sorted(
        n.name for n in model.graph.node if n.op_type in _ARITHMETIC and n.name and floats & set(n.input)
    )


_INTEGER_OPS = {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
_HEAVY_OPS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU"}


def precisions(graph: Path) -> dict[str, int]:
    """Heavy nodes (Conv, MatMul, Gemm, recurrent) by the arithmetic they run in."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    makers = {o: n for n in model.graph.node for o in n.output}
    types = {i.name: i.data_type for i in model.graph.initializer}
    count: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in _INTEGER_OPS:
            count["int8"] += 1
        elif node.op_type == "MatMulNBits":
            count[f"w{next(a.i for a in node.attribute if a.name == 'bits')}"] += 1
        elif node.op_type in _HEAVY_OPS:
            count[_arithmetic(node, makers, types)] += 1
    return dict(sorted(count.items()))


def _arithmetic(node: Any, makers: dict[str, Any], types: dict[str, int]) -> str:
    import onnx

    sources = [makers.get(i) for i in node.input[:2]]
    if all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
        wide = {onnx.TensorProto.UINT16, onnx.TensorProto.INT16}
        zero_points = [i for s in sources if s is not None for i in s.input[2:]]
        return "a16w8" if any(types.get(i) in wide for i in zero_points) else "int8"
    names: dict[int, str] = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    return next((names[types[i]] for i in node.input if types.get(i) in names), "fp32")


@contextmanager
def quiet() -> Iterator[None]:
    """The quantiser advises on the root logger to preprocess, which our graph room has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
