"""ONNX Runtime: the variant's graph as it is, or in the mobile format for phones, proved to open.

A phone gets ``model.ort``, the configurations of a build reduced to it, and ``providers.json``. An Apple
computer gets ``providers.json`` too; on the others ONNX Runtime's own package has the CPU alone.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekiln import files
from edgekiln.compile.targets import Conversion, ort_mobile
from edgekiln.compile.targets.ort_placement import rows
from edgekiln.compile.targets.ort_providers import FILE, Providers, available, ranked
from edgekiln.devices import Device
from edgekiln.engines.onnxruntime import open as open_session
from edgekiln.errors import ConversionFailed, NotRunnableHere
from edgekiln.records import Artifact, Check, Scalar

if TYPE_CHECKING:
    from onnx import ModelProto

ENTRY = "model.onnx"


def convert(order: Conversion, into: Path) -> Artifact:
    """Write the variant into ``into`` and open it once.

    The graph must be one file. Raises ConversionFailed when ONNX Runtime refuses it.
    """
    import onnx
    import onnxruntime

    variant, device = order.variant, order.device
    doing = "converting for ONNX Runtime"
    path = order.graph(doing)
    recipe = variant.recipe.name
    try:
        model = onnx.load(path)
        shipped, checks = _mobile(path, model, into) if device.kind == "phone" else (None, ())
    except Exception as error:
        why = str(error).strip().splitlines()[-1]
        cure = "Choose another recipe, or report the graph"
        raise ConversionFailed(doing, variant.path, why, cure) from error
    entry = ENTRY if shipped is None else ort_mobile.ENTRY
    if shipped is None:
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
        entry=entry,
        files=files.entries(into),
        options=options,
        tools={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        precisions=variant.precisions,
        passes=variant.passes,
        checks=(
            Check(name="loads", passed=True, detail=_loaded(device, onnxruntime.__version__)),
            *checks,
        ),
    )
    try:
        open_session(artifact, into, 1).close()
    except NotRunnableHere as error:
        cure = "Choose another recipe, or report the graph"
        raise ConversionFailed(doing, variant.path, error.why, cure) from error
    return _placed(order, artifact, into, shipped)


def _placed(order: Conversion, artifact: Artifact, into: Path, shipped: ModelProto | None) -> Artifact:
    """The artifact with its placement rows, and providers.json where there is a choice."""
    found = available(order.device, flexible=bool(order.sizes))
    handed = ort_mobile.handed(order.graph("placing"))
    graph, plain = (handed, None) if shipped is None else (shipped, handed)
    placement = rows(order.device, found, into / artifact.entry, graph, plain)
    options = artifact.options
    if len(found) > 1:
        files.write_json(into / FILE, Providers(entry=artifact.entry, ranked=ranked(found, placement)))
        options = options | {"providers": FILE}
    return msgspec.structs.replace(artifact, placement=placement, options=options, files=files.entries(into))


def _mobile(path: Path, model: ModelProto, into: Path) -> tuple[ModelProto | None, tuple[Check, ...]]:
    """Write the mobile files and give the graph in model.ort; None where it would hold what is this
    machine's and not the phone's, which the check then says."""
    made = ort_mobile.optimised(path)
    leaked = ort_mobile.leaks(model, made)
    if leaked:
        why = f"optimised here, on {platform.machine()}, model.ort would hold {leaked}"
        detail = f"{why}: {ENTRY} is shipped instead, for ONNX Runtime's full package"
        return None, (Check(name="ort-format", passed=None, detail=detail),)
    ort_mobile.write(path, into)
    detail = (
        f"{ort_mobile.ENTRY} holds the optimisations for arm64, none of them tied to {platform.machine()}; "
        f"build ONNX Runtime with --include_ops_by_config {ort_mobile.OPERATORS} for a reduced one, or "
        f"{ort_mobile.TYPES} --enable_reduced_operator_type_support for the least"
    )
    return made, (Check(name="ort-format", passed=True, detail=detail),)


def _loaded(device: Device, version: str) -> str:
    here = platform.machine()
    same = {"x86_64": "x86_64", "arm64": "aarch64", "wasm32": ""}[device.arch] == here
    return f"ONNX Runtime {version} opens it on {here}" + ("" if same else f"; not tried on {device.arch}")
