"""OpenVINO: the intermediate representation (IR), ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import importlib.metadata
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.compile.targets import Conversion
from edgekiln.errors import ConversionFailed, MissingExtra
from edgekiln.records import Artifact, Scalar

ENTRY = "model.xml"


def convert(order: Conversion, into: Path) -> Artifact:
    """The IR of an ``.onnx`` variant, or the IR that NNCF made, into ``into``.

    Recipe fp16 stores the weights in float16 (OpenVINO computes in the precision of the option all the
    same); bf16 is the float32 IR with ``INFERENCE_PRECISION_HINT`` bf16. Raises MissingExtra, and
    ConversionFailed with OpenVINO's message.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("converting for OpenVINO", order.variant.path, "openvino") from error
    variant, device = order.variant, order.device
    path = order.graph("converting for OpenVINO")
    recipe = variant.recipe.name
    try:
        if path.suffix == ".xml":
            # As NNCF's file is: folding what was read back would turn its int8 weights into float32.
            openvino.Core().read_model(path)
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        else:
            xml, weights = serialise(read(path), compress_to_fp16=recipe == "fp16")
    except RuntimeError as error:
        why, cure = str(error).strip(), "Choose another recipe or target, or change the model at that node"
        raise ConversionFailed("converting for OpenVINO", variant.path, why, cure) from error
    files.write_bytes(into / ENTRY, xml)
    files.write_bytes(into / Path(ENTRY).with_suffix(".bin"), weights)
    tools = {"openvino": openvino.__version__}
    if recipe.startswith("int8-nncf-"):
        tools["nncf"] = importlib.metadata.version("nncf")
    options: dict[str, Scalar] = {
        "INFERENCE_PRECISION_HINT": "bf16" if recipe == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    return Artifact(
        id=f"{device.name}.openvino.{recipe}",
        target="openvino",
        recipe=recipe,
        engine="openvino",
        proof_engine="openvino",
        entry=ENTRY,
        files=files.entries(into),
        options=options,
        tools=tools,
        precisions=variant.precisions,
        passes=variant.passes,
    )


def read(path: Path) -> Any:
    """An ONNX file as an ``openvino.Model``, with OpenVINO's common optimisations, the same in every run.

    These are what ``openvino.convert_model`` applies; that one is not used because it reports its use over
    the network unless the user once refused. Without them NNCF leaves depthwise convolutions in float32,
    as their weights stand behind a Reshape. Raises RuntimeError as OpenVINO does.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    model = openvino.Core().read_model(path)
    _name_unnamed(model)
    known = {op.get_friendly_name() for op in model.get_ops()}
    apply_moc_transformations(model, cf=True, smart_reshape=False)
    _name_unnamed(model, known)
    model.set_friendly_name("model")
    return model


def serialise(model: Any, compress_to_fp16: bool) -> tuple[bytes, bytes]:
    """An ``openvino.Model`` as (xml, bin), the same bytes for the same model in every process and folder.

    What differs from run to run is taken out: the names that OpenVINO gives to unnamed nodes carry a counter
    of the process and are numbered anew; run-time information holds paths and versions and is dropped,
    except ``runtime_options``, which a plugin reads. Raises RuntimeError as OpenVINO does.
    """
    import openvino

    _name_unnamed(model)
    with tempfile.TemporaryDirectory() as scratch:
        xml = Path(scratch) / ENTRY
        openvino.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        root = ElementTree.fromstring(xml.read_bytes())
        weights = xml.with_suffix(".bin").read_bytes()
    for info in root.findall("rt_info"):
        for child in list(info):
            if child.tag != "runtime_options":
                info.remove(child)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n", weights


def _name_unnamed(model: Any, known: set[str] | None = None) -> None:
    """Give each node that has only OpenVINO's own name one made of its type and its place in the graph.

    ``known`` are the names to keep; without it, all but those that OpenVINO made for the node itself.
    """
    ops = model.get_ordered_ops()
    if known is None:
        known = {op.get_friendly_name() for op in ops if op.get_friendly_name() != op.get_name()}
    for number, op in enumerate(ops):
        if op.get_friendly_name() not in known:
            name = f"{op.get_type_name()}/{number}"
            while name in known:
                name += "+"
            op.set_friendly_name(name)
