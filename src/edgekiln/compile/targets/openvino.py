"""OpenVINO: the intermediate representation (IR), ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed, MissingExtra
from edgekiln.records import Artifact, Scalar, Variant

ENTRY = "model.xml"


def convert(variant: Variant, variant_folder: Path, device: Device, into: Path) -> Artifact:
    """The IR of an ``.onnx`` variant, or the IR that NNCF made, into ``into``.

    Recipe fp16 stores the weights in float16 (OpenVINO computes in the precision of the option all the
    same); bf16 is the float32 IR with ``INFERENCE_PRECISION_HINT`` bf16. Raises MissingExtra, and
    ConversionFailed with OpenVINO's message.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("converting for OpenVINO", variant.path, "openvino") from error
    path = files.inside(variant_folder, variant.path, "converting for OpenVINO")
    recipe = variant.recipe.name
    try:
        # Not convert_model: it reports its use over the network unless the user once refused.
        model = openvino.Core().read_model(path)
        if path.suffix == ".xml":
            # As NNCF's file is: folding what was read back would turn its int8 weights into float32.
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        else:
            xml, weights = serialise(model, compress_to_fp16=recipe == "fp16")
    except RuntimeError as error:
        why, cure = str(error).strip(), "Choose another recipe or target, or change the model at that node"
        raise ConversionFailed("converting for OpenVINO", variant.path, why, cure) from error
    files.write_bytes(into / ENTRY, xml)
    files.write_bytes(into / Path(ENTRY).with_suffix(".bin"), weights)
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
        tools={"openvino": openvino.__version__},
        precisions=variant.precisions,
        passes=variant.passes,
    )


def serialise(model: Any, compress_to_fp16: bool) -> tuple[bytes, bytes]:
    """An ``openvino.Model`` as (xml, bin), the same bytes for the same model in every process and folder.

    Constants are folded. What differs from run to run is taken out: the names that OpenVINO gives to
    unnamed nodes carry a counter of the process and are numbered anew; run-time information holds paths
    and versions and is dropped, except ``runtime_options``, which a plugin reads. Changes ``model``.
    Raises RuntimeError as OpenVINO does.
    """
    import openvino
    from openvino.passes import ConstantFolding, Manager

    name_unnamed(model)  # before folding, which hands names down to the constants
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    name_unnamed(model)
    model.set_friendly_name("model")
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


def name_unnamed(model: Any) -> None:
    """Give each node that has only OpenVINO's own name one made of its type and its place in the graph."""
    ops = model.get_ordered_ops()
    unnamed = [(i, op) for i, op in enumerate(ops) if op.get_friendly_name() == op.get_name()]
    given = {op.get_friendly_name() for op in ops} - {op.get_name() for _, op in unnamed}
    for number, op in unnamed:
        name = f"{op.get_type_name()}/{number}"
        while name in given:
            name += "+"
        op.set_friendly_name(name)
