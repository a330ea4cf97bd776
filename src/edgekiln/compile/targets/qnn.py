"""QNN: a Q/DQ (or float16) graph for Qualcomm's Hexagon NPU, and its context binary where the chip is known.

``model.onnx`` runs on every Snapdragon: the phone compiles it when it loads. ``model_ctx.onnx`` and its
binary are that graph compiled here, by Qualcomm's own compiler, for one chip: it loads faster and runs there
only. Both are judged by the HTP simulator, whose speed says nothing about the phone's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import files
from edgekiln.compile.precision import holds, to_fp16
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets.qnn_compile import CONTEXT, MODEL, Order, Verdict, ask
from edgekiln.devices import Device
from edgekiln.engines.qnn import PROVIDER
from edgekiln.errors import ConversionFailed, MissingExtra
from edgekiln.records import Artifact, Check, Placement, Scalar

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Soc:
    """A chip as the QNN provider knows it: part number, its number, and the version of its Hexagon."""

    part: str
    soc_model: int
    htp_arch: int
    source: str


_PARTS = "part to soc_model: SocModelFromName in soc_utils.cc of onnxruntime/onnxruntime-qnn"
_ARCHES = "part to HTP version: _soc_info_table in backends/qualcomm/serialization/qc_schema.py of ExecuTorch"
_NAMES = "name to part: generate_qnn_executorch_compiler_spec in utils/utils.py beside it"
_SOURCE = f"{_PARTS}; {_ARCHES}; {_NAMES}"

SOCS = {
    "Qualcomm Snapdragon 8 Gen 1": Soc("SM8450", 36, 69, _SOURCE),
    "Qualcomm Snapdragon 8+ Gen 1": Soc("SM8475", 42, 69, _SOURCE),
    "Qualcomm Snapdragon 8 Gen 2": Soc("SM8550", 43, 73, _SOURCE),
    "Qualcomm Snapdragon 8 Gen 3": Soc("SM8650", 57, 75, _SOURCE),
    "Qualcomm Snapdragon 8 Elite": Soc("SM8750", 69, 79, _SOURCE),
    "Qualcomm Snapdragon 8 Elite Gen 5": Soc("SM8850", 87, 81, _SOURCE),
}
"""Chips by the name that the device catalogue gives in its figure ``soc``. A test has the compiler make a
context for each part and finds both numbers in the binary."""


def soc(device: Device) -> Soc | None:
    figure = device.figures.get("soc")
    return None if figure is None else SOCS.get(str(figure.value))


def provider_options(chip: Soc | None) -> dict[str, Scalar]:
    """The provider's options for a chip. The graph's own input and output stay on the NPU too, so that
    nothing of it needs the CPU."""
    options: dict[str, Scalar] = {
        "backend_type": "htp",
        "htp_performance_mode": "burst",
        "htp_graph_finalization_optimization_mode": 3,
        "offload_graph_io_quantization": 0,
    }
    if chip is not None:
        options |= {"soc_model": chip.soc_model, "htp_arch": chip.htp_arch}
    return options


def convert(order: Conversion, into: Path) -> Artifact:
    """Write model.onnx, and model_ctx.onnx with its binary where the device's chip is in ``SOCS``.

    Raises MissingExtra without onnxruntime-qnn, ConversionFailed where the compiler refuses the graph or no
    operator of it runs on Hexagon.
    """
    import onnx
    import onnxruntime

    variant, device = order.variant, order.device
    doing = "converting for Hexagon"
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise MissingExtra(doing, variant.path, "qnn")
    recipe, chip = variant.recipe.name, soc(device)
    model = onnx.load(order.graph(doing))
    if recipe == "fp16" and chip is None:
        why = f"the chip of {device.title} is not known, and not every Hexagon computes in float16"
        raise ConversionFailed(doing, variant.path, why, "Use int8-static-minmax or a16w8-static-minmax")
    if recipe == "fp16" and not holds(model, "fp16"):
        model = to_fp16(model)
    files.write_bytes(into / MODEL, model.SerializeToString(deterministic=True))
    options = provider_options(chip)
    told = {name: str(value) for name, value in options.items()}
    verdict = ask(into, Order(provider=told, compile=chip is not None))
    if not verdict.taken or _idle(model, verdict):
        why = f"Hexagon takes none of its operators: {', '.join(verdict.fallback)}"
        raise ConversionFailed(doing, variant.path, why, "Use another target for this model")
    options["cpu_fallback"] = bool(verdict.fallback)
    if (into / CONTEXT).exists():
        options["context"] = CONTEXT
    return Artifact(
        id=f"{device.name}.qnn.{recipe}",
        target="qnn",
        recipe=recipe,
        engine="qnn",
        proof_engine="qnn",
        entry=MODEL,
        files=files.entries(into),
        options=options,
        tools={
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "onnxruntime-qnn": importlib.metadata.version("onnxruntime-qnn"),
        },
        precisions=variant.precisions,
        passes=variant.passes,
        checks=_checks(device, chip, verdict),
        placement=(placement(verdict, chip),),
    )


def _idle(model: ModelProto, verdict: Verdict) -> bool:
    """Whether Hexagon is left with what only carries values: casts between types, and Q/DQ."""
    carrying = {"Cast", "QuantizeLinear", "DequantizeLinear"}
    computing = Counter(n.op_type for n in model.graph.node if n.op_type not in carrying)
    return all(verdict.fallback.get(op, 0) >= count for op, count in computing.items())


def placement(verdict: Verdict, chip: Soc | None) -> Placement:
    """The row of the HTP simulator. Nodes are counted as ONNX Runtime hands them to the provider, after its
    own layout changes, Q/DQ included."""
    version = importlib.metadata.version("onnxruntime-qnn")
    target = "an unknown chip" if chip is None else f"{chip.part} (HTP v{chip.htp_arch})"
    detail = f"partitioned by onnxruntime-qnn {version} with its HTP simulator, for {target}"
    if verdict.quantisers:
        detail += f"; {verdict.quantisers} of the operators taken are Q/DQ"
    return Placement(
        provider=PROVIDER,
        how="emulated",
        operators=verdict.taken + sum(verdict.fallback.values()),
        taken=verdict.taken,
        partitions=verdict.partitions,
        fallback=verdict.fallback,
        detail=detail,
    )


def _checks(device: Device, chip: Soc | None, verdict: Verdict) -> tuple[Check, ...]:
    figure = device.figures.get("soc")
    stated = "no chip" if figure is None or figure.value is None else str(figure.value)
    if chip is None:
        why = f"the catalogue states {stated} for {device.title}, whose number no document was seen to give"
        detail = f"{why}: no context binary; the phone compiles {MODEL} when it loads"
        return (Check(name="context-binary", passed=None, detail=detail),)
    caveat = f" ({figure.source})" if figure is not None and figure.source else ""
    detail = (
        f"{CONTEXT} holds {MODEL} compiled for {stated} = {chip.part}, soc_model {chip.soc_model}, HTP "
        f"v{chip.htp_arch}; the provider wrote '{verdict.compiled_for}'. In the simulator its outputs "
        f"{'are' if verdict.same_outputs else 'are not'} those of {MODEL}, bit for bit, on one probe. "
        f"Use {MODEL} on a phone of this name with another chip{caveat}"
    )
    return (Check(name="context-binary", passed=verdict.same_outputs, detail=detail),)
