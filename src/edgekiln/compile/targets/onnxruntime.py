"""ONNX Runtime: the variant's graph as it is, proved to load."""

from __future__ import annotations

import platform
from pathlib import Path

from edgekiln import files
from edgekiln.compile.targets import Conversion
from edgekiln.devices import Device
from edgekiln.engines.onnxruntime import open as open_session
from edgekiln.errors import ConversionFailed, NotRunnableHere
from edgekiln.records import Artifact, Check, Scalar

ENTRY = "model.onnx"


def convert(order: Conversion, into: Path) -> Artifact:
    """Copy the variant to ``into/model.onnx`` and open it once.

    The graph must be one file. Raises ConversionFailed when ONNX Runtime refuses it.
    """
    import onnx
    import onnxruntime

    variant, device = order.variant, order.device
    path = order.graph("converting for ONNX Runtime")
    recipe = variant.recipe.name
    files.write_bytes(into / ENTRY, path.read_bytes())
    options: dict[str, Scalar] = {"spinning": False}
    if recipe == "fp16" and device.arch == "arm64":
        # There ONNX Runtime has float16 kernels; an x86 CPU computes the same graph in float32.
        options["arithmetic"] = "fp16"
    artifact = Artifact(
        id=f"{device.name}.onnxruntime.{recipe}",
        target="onnxruntime",
        recipe=recipe,
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry=ENTRY,
        files=files.entries(into),
        options=options,
        tools={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        precisions=variant.precisions,
        passes=variant.passes,
        checks=(Check(name="loads", passed=True, detail=_loaded(device, onnxruntime.__version__)),),
    )
    try:
        open_session(artifact, into, 1).close()
    except NotRunnableHere as error:
        cure = "Choose another recipe, or report the graph"
        raise ConversionFailed("converting for ONNX Runtime", variant.path, error.why, cure) from error
    return artifact


def _loaded(device: Device, version: str) -> str:
    here = platform.machine()
    same = {"x86_64": "x86_64", "arm64": "aarch64", "wasm32": ""}[device.arch] == here
    return f"ONNX Runtime {version} opens it on {here}" + ("" if same else f"; not tried on {device.arch}")
