"""OpenVINO: the intermediate representation (IR), ``model.xml`` and ``model.bin``.

Precision rules: the arithmetic is the option's, f32 unless the recipe is bf16; recipe fp16 halves the stored
weights alone; int8 is what NNCF's FakeQuantize pairs say. What this machine's plugin makes of it is a check.
"""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.compile.targets import Conversion
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed, MissingExtra
from edgekiln.records import Artifact, Check, Placement, Recipe, Scalar

ENTRY = "model.xml"
PROVIDER = "OpenVINO CPU"
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Features of an x86-64 CPU that OpenVINO's bfloat16 needs; on Arm it has none (its page "CPU Device")."""
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_NO_OPERATORS = frozenset({"Constant", "Parameter", "Result"})
_NO_LAYERS = frozenset({"Const", "Input", "Output", "Reorder", "MemoryInput", "MemoryOutput"})


def convert(order: Conversion, into: Path) -> Artifact:
    """The IR of an ``.onnx`` variant, or the IR that NNCF made, into ``into``.

    Recipe fp16 stores the weights in float16 (OpenVINO computes in the precision of the option all the
    same); bf16 is the float32 IR with ``INFERENCE_PRECISION_HINT`` bf16. Where several sizes are asked for,
    height and width are ranges from the least to the greatest. Raises MissingExtra, and ConversionFailed
    with OpenVINO's message, or for a device that has no bfloat16 arithmetic.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("converting for OpenVINO", order.variant.path, "openvino") from error
    variant, device = order.variant, order.device
    path = order.graph("converting for OpenVINO")
    recipe = variant.recipe.name
    half = recipe == "bf16" or recipe.endswith("+bf16")
    if half:
        _require_bfloat16(device, variant.path)
    try:
        # A quantised file as it is: folding what was read would turn its int8 weights into float32.
        model = read_quantised(path) if path.suffix == ".xml" or holds_integers(path) else read(path)
        _bound(model, order)
        xml, weights = serialise(model, compress_to_fp16=recipe == "fp16")
        files.write_bytes(into / ENTRY, xml)
        files.write_bytes(into / Path(ENTRY).with_suffix(".bin"), weights)
        hint = "bf16" if half else "f32"
        group = _group(variant.recipe)
        placement, precision = asked(into / ENTRY, hint, order.threads, group)
    except RuntimeError as error:
        why, cure = str(error).strip(), "Choose another recipe or target, or change the model at that node"
        raise ConversionFailed("converting for OpenVINO", variant.path, why, cure) from error
    tools = {"openvino": openvino.__version__}
    if recipe.startswith("int8-nncf-"):
        tools["nncf"] = importlib.metadata.version("nncf")
    options: dict[str, Scalar] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if group:
        options[GROUP] = group
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
        checks=(precision,),
        placement=(placement,),
    )


def _group(recipe: Recipe) -> int:
    """How many weights share a scale where weights alone are compressed, else 0; 0 for ``+exact`` too.

    Activations of such products are then rounded to 8 bits by the plugin, in groups as large as the weights'
    own: other groups leave it at float products of unpacked weights, with half the speed (MiniLM).
    """
    for one in recipe.passes:
        if one.name == "compress-weights" and one.params.get("granularity") == "per_block":
            return 0 if one.params.get("exact") else int(one.params["block"])
    return 0


def _require_bfloat16(device: Device, path: str) -> None:
    if device.arch == "x86_64" and BFLOAT16 & set(device.features):
        return
    why = f"{device.name} has no bfloat16 arithmetic that OpenVINO uses (x86-64 with avx512_bf16 or amx_bf16)"
    raise ConversionFailed("converting for OpenVINO", path, why, "Use fp32, fp16 or int8 on this device")


def _bound(model: Any, order: Conversion) -> None:
    """Give height and width the range of the sizes asked for; inner shapes and buffers are bounded by it."""
    import openvino

    if not order.sizes:
        return
    name, first = order.spatial()
    port = model.input(name)
    shape = port.partial_shape
    for axis, sides in zip((first, first + 1), zip(*order.sizes, strict=True), strict=True):
        shape[axis] = openvino.Dimension(min(sides), max(sides))
    known = {op.get_friendly_name() for op in model.get_ops()}
    model.reshape({port: shape})
    _name_unnamed(model, known)  # what folds on the way bears the process's counter in its name


def asked(xml: Path, hint: str, threads: int, group: int = 0) -> tuple[Placement, Check]:
    """What OpenVINO's CPU plugin of this machine takes of the IR, and the types it computes in.

    Raises RuntimeError as OpenVINO does.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(xml)
    answer = core.query_model(model, "CPU")
    nodes = [op for op in model.get_ordered_ops() if op.get_type_name() not in _NO_OPERATORS]
    left = Counter(op.get_type_name() for op in nodes if op.get_friendly_name() not in answer)
    taken = len(nodes) - sum(left.values())
    where = f"the CPU plugin of OpenVINO {openvino.__version__} on {platform.machine()}"
    placement = Placement(
        provider=PROVIDER,
        how="measured",
        operators=len(nodes),
        taken=taken,
        partitions=None if left else 1,
        fallback=dict(sorted(left.items())),
        detail=where,
    )
    config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(threads), "CACHE_DIR": ""}
    config[GROUP] = str(group)
    compiled = core.compile_model(model, "CPU", config)
    capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if hint == "bf16" and "BF16" not in capable:
        return placement, Check(
            name="precision", passed=None, detail=f"asked for bf16, which {where} has not"
        )
    types = Counter(
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ordered_ops()
        if op.get_rt_info()["layerType"].astype(str) not in _NO_LAYERS
    )
    told = ", ".join(f"{count} in {kind}" for kind, count in sorted(types.items()))
    detail = f"asked for {hint}; {where} computes the compiled layers so: {told}"
    return placement, Check(name="precision", passed=_as_asked(types, hint), detail=detail)


def _as_asked(types: Counter[str], hint: str) -> bool:
    """Whether no layer computes in a lower float type than asked for, and bf16 is used where it was."""
    if hint == "f32":
        return not types["bf16"] and not types["f16"]
    return bool(types["bf16"])


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


def read_quantised(path: Path) -> Any:
    """NNCF's IR, or an ONNX file with Q/DQ pairs, as an ``openvino.Model`` without any folding."""
    import openvino

    model = openvino.Core().read_model(path)
    if path.suffix == ".onnx":
        _name_unnamed(model)
        model.set_friendly_name("model")
    return model


def holds_integers(path: Path) -> bool:
    """Whether an ONNX file has weights that DequantizeLinear reads."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return any(node.op_type == "DequantizeLinear" for node in graph.node)


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
