"""TensorRT: a strongly typed ONNX graph, a build plan and the builder that the device runs.

Engines fit one TensorRT version and one kind of GPU, so none is shipped. The graph is judged here by rules
and by TensorRT-RTX's real parser and builder; its arithmetic is proved by ONNX Runtime, emulated.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import files
from edgekiln.compile.precision import holds, to_bf16, to_fp16
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets.trt_check import check
from edgekiln.compile.targets.trt_plan import make_plan
from edgekiln.compile.targets.trt_rules import grouped, violations
from edgekiln.devices import Device
from edgekiln.engines import build_engine
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact, Check, Scalar

if TYPE_CHECKING:
    from onnx import ModelProto

_ORIN = "SM87"
"""Compute capability of every Jetson Orin (NVIDIA, CUDA GPU compute capability table)."""
_CHECKED_AS = "SM86"
"""TensorRT-RTX builds ahead of time for SM75, 80, 86, 89, 120 and 121: 86 is Ampere too, nearest to Orin."""


def convert(order: Conversion, into: Path) -> Artifact:
    """Write model.onnx, plan.json and build_engine.py into ``into``, judged by TensorRT-RTX.

    The variant is float32 or Q/DQ ONNX; for the recipes fp16 and bf16 a float32 graph is converted.
    Raises ConversionFailed for each broken rule, and with the parser's own message where it rejects.
    """
    import onnx
    import onnxruntime

    variant, device = order.variant, order.device
    path = order.graph("converting for TensorRT")
    recipe = variant.recipe.name
    model = onnx.load(path)
    arithmetic = recipe if recipe in {"fp16", "bf16"} else None
    typed = _typed(model, arithmetic)
    broken = violations(typed)
    if broken:
        cure = "Quantise in TensorRT's dialect: symmetric int8, float biases"
        raise ConversionFailed("checking TensorRT's rules for", variant.path, grouped(broken), cure)
    plan = make_plan(typed, device, recipe, _fixed(order))
    files.write_bytes(into / build_engine.MODEL, typed.SerializeToString(deterministic=True))
    files.write_json(into / build_engine.PLAN, plan)
    files.write_bytes(into / "build_engine.py", Path(build_engine.__file__).read_bytes())
    built, placement = check(into, _CHECKED_AS, _remark(device))
    checks = (
        Check(
            name="tensorrt-rules", passed=True, detail="opset, quantisation forms, types, scales, zero points"
        ),
        Check(name="precision", passed=True, detail=_precision(recipe, plan.tf32)),
        built,
    )
    tools = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    if checks[-1].passed:
        tools["tensorrt-rtx"] = importlib.metadata.version("tensorrt-rtx")
    options: dict[str, Scalar] = {"plan": build_engine.PLAN, "tf32": plan.tf32}
    if arithmetic is not None:
        options["arithmetic"] = arithmetic
    return Artifact(
        id=f"{device.name}.tensorrt.{recipe}",
        target="tensorrt",
        recipe=recipe,
        engine="tensorrt",
        proof_engine="onnxruntime",
        entry=build_engine.MODEL,
        files=files.entries(into),
        options=options,
        tools=tools,
        precisions=variant.precisions,
        passes=variant.passes,
        checks=checks,
        placement=(placement,),
    )


def _fixed(order: Conversion) -> list[dict[str, dict[int, int]]]:
    """Height and width of each size asked for, as axes of the picture input; empty for a single size."""
    if not order.sizes:
        return []
    name, first = order.spatial()
    return [{name: {first: height, first + 1: width}} for height, width in order.sizes]


def _precision(recipe: str, tf32: bool) -> str:
    """The rule by which TensorRT chooses no type: what the graph says is what is computed."""
    types = {"fp16": "float16", "bf16": "bfloat16 (operators that have none stay float32)"}
    stated = types.get(recipe, "int8 where Q/DQ pairs stand, else float32" if "8" in recipe else "float32")
    rounded = "may round to TF32" if tf32 else "is never rounded to TF32"
    return f"strongly typed: {stated}; inputs and outputs are float32, and float32 {rounded}"


def _typed(model: ModelProto, arithmetic: str | None) -> ModelProto:
    if arithmetic is None or holds(model, arithmetic):
        return model
    return to_fp16(model) if arithmetic == "fp16" else to_bf16(model)


def _remark(device: Device) -> str:
    if "orin" in device.name:
        return f"Orin is {_ORIN}, its engine is built on the device"
    return f"the engine is built on {device.title}, whose GPU may differ"
