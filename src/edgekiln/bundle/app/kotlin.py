"""Kotlin for Android: ONNX Runtime (with QNN where the artifact is for Hexagon), LiteRT or ExecuTorch."""

from __future__ import annotations

from typing import Any

from edgekiln.bundle.app.content import App, facts
from edgekiln.bundle.app.formulas import rendered
from edgekiln.bundle.app.writing import fill

ENGINES = {
    "onnxruntime": ("ONNX Runtime", "com.microsoft.onnxruntime:onnxruntime-android", "onnxruntime"),
    "qnn": ("ONNX Runtime with QNN", "com.microsoft.onnxruntime:onnxruntime-android-qnn", "onnxruntime"),
    "litert": ("LiteRT", "com.google.ai.edge.litert:litert", "litert"),
    "executorch": ("ExecuTorch", "org.pytorch:executorch-android", "executorch"),
}
"""By engine: its title, its Maven coordinates, and the template of Model.kt."""

_PROVIDER = (
    "backend_type",
    "htp_performance_mode",
    "htp_graph_finalization_optimization_mode",
    "soc_model",
    "htp_arch",
    "offload_graph_io_quantization",
)
"""Options that belong to the QNN provider (QNN-ExecutionProvider.md of onnxruntime)."""


def render(app: App) -> dict[str, str]:
    """Model.kt, Tensor.kt, Bundle.kt, SelfTest.kt, README.md; Picture.kt and Preprocess.kt where the model
    takes pictures."""
    title, coordinates, flavour = ENGINES[app.artifact.engine]
    values = facts(app)
    spec, options = values["spec"], app.artifact.options
    nhwc = [name for name in _inputs(values) if options.get(f"layout.{name}") == "NHWC"]
    narrow = [name for name in _inputs(values) if f"dtype.{name}" in options]
    layout = "" if spec is None else "NHWC" if _inputs(values)[0] in nhwc else spec.layout
    values |= {
        "engine_title": title,
        "coordinates": coordinates,
        "provider": {n: str(options[n]) for n in _PROVIDER if n in options and app.artifact.engine == "qnn"},
        "cpu_fallback": bool(options.get("cpu_fallback", False)),
        "nhwc": nhwc,
        "narrow": narrow,
        "layout": layout,
        "file_shape": _file_shape(values, layout),
        "f": {} if spec is None else rendered(spec, "kotlin"),
    }
    files = {
        "Model.kt": f"model_{flavour}.kt.j2",
        "Tensor.kt": "Tensor.kt.j2",
        "Bundle.kt": "Bundle.kt.j2",
        "SelfTest.kt": "SelfTest.kt.j2",
        "README.md": "README.md.j2",
    }
    if spec is not None:
        files |= {"Picture.kt": "Picture.kt.j2", "Preprocess.kt": "Preprocess.kt.j2"}
    return {path: fill("kotlin", template, **values) for path, template in files.items()}


def _inputs(values: dict[str, Any]) -> list[str]:
    return [tensor.name for tensor in values["inputs"]]


def _file_shape(values: dict[str, Any], layout: str) -> tuple[int, ...]:
    """The picture's shape as the file takes it, which may be NHWC where the model's own is NCHW."""
    spec = values["spec"]
    if spec is None or layout == spec.layout:
        return tuple(values["shape"])
    n, channels, height, width = values["shape"]
    return (n, height, width, channels)
