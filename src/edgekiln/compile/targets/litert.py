"""LiteRT (once TensorFlow Lite): a ``.tflite`` by way of torch.export and litert-torch.

ONNX to a torch module, to a float file that is compared with ONNX Runtime at once (``litert_float``), to
the recipe's quantisation (``litert_quantise``), to metadata (``litert_metadata``). The signature bears the
model's own tensor names, and a picture input is NHWC (``litert_layout``).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import numpy as np

from edgekiln import files
from edgekiln.compile.recipes import LEFT_TO_TARGET
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets import litert_layout as layout
from edgekiln.compile.targets import litert_metadata as metadata
from edgekiln.compile.targets.litert_float import (
    DOING,
    ENTRY,
    PACKAGES,
    FloatFile,
    compare,
    draft,
    float_file,
    static_signature,
    synthetic,
)
from edgekiln.compile.targets.litert_quantise import quantise
from edgekiln.engines import litert as engine
from edgekiln.errors import MissingExtra
from edgekiln.records import Artifact, Check, Placement, Signature

NOT_ASKED = (
    Placement(
        provider="GPU delegate",
        how="published",
        detail="not asked: it exists on a phone only, and LiteRT's analyser calls any graph compatible with "
        "it. Its documentation says that it computes quantised files in float too, and that a graph which it "
        "takes in part is often slower than on the CPU alone",
    ),
    Placement(
        provider="NPU (Qualcomm, MediaTek, Google Tensor)",
        how="published",
        detail="not asked: LiteRT compiles for these with the vendors' own SDKs, which are not at hand here",
    ),
    Placement(
        provider="NNAPI",
        how="published",
        detail="not offered: deprecated since Android 15",
    ),
)


def convert(order: Conversion, into: Path) -> Artifact:
    """``model.tflite`` of the variant's float graph, after the recipe's own passes.

    Raises MissingExtra; ConversionFailed with the tool's message and the operator where it refuses, where the
    float file does not compute what the ONNX graph does, or where LiteRT can't run the result.
    """
    for package in (*PACKAGES, "ai_edge_quantizer"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(DOING, order.variant.path, "litert")
    own = static_signature(order)
    nhwc = layout.nchw_pictures(order.model, own)
    pictures = nhwc or layout.nhwc_pictures(order.model, own)
    content, made = float_file(order, own, nhwc)
    artifact = draft(order, layout.options(own, layout.signature_of(layout.load(content)), nhwc))
    checks = [_float_check(made), _transposes_check(made)]
    # What was done to the float graph already is none of LiteRT's business.
    own_passes = [p for p in order.variant.recipe.passes if p.name in {*LEFT_TO_TARGET, "precision"}]
    for one in own_passes:
        content = quantise(content, one, order.calibration, artifact)
    if own_passes:
        checks.append(_recipe_check(content, artifact, order, own))
    tree = layout.load(content)
    held = layout.signature_of(tree)
    files.write_bytes(into / ENTRY, _finished(tree, held, order, pictures))
    placed = engine.placement(into / ENTRY, 1, ENTRY)
    checks += [_form_check(artifact, held), _metadata_check(order, held, pictures)]
    return msgspec.structs.replace(
        artifact,
        files=files.entries(into),
        precisions=layout.precisions(tree),
        checks=tuple(checks),
        placement=(placed, *NOT_ASKED),
    )


def _finished(tree: object, held: Signature, order: Conversion, pictures: tuple[str, ...]) -> bytes:
    """The file with its metadata, and its labels behind it."""
    model = order.model
    layout.add_buffer(tree, metadata.BUFFER, metadata.encode(model, held, pictures))
    content = layout.dump(tree)
    labelled = metadata.labelled_output(model, held) is not None
    return metadata.with_labels(content, model.labels) if labelled else content


def _float_check(made: FloatFile) -> Check:
    if made.sqnr_db is None:
        return Check(name="float file", passed=None, detail=f"not compared with ONNX Runtime: {made.reason}")
    detail = f"{made.sqnr_db:.1f} dB against ONNX Runtime on noise, before any quantisation"
    detail += f"; {made.reason}" if made.reason else ""
    return Check(name="float file", passed=True, detail=detail)


def _recipe_check(content: bytes, artifact: Artifact, order: Conversion, own: Signature) -> Check:
    """That LiteRT runs the quantised file at all; whether it is good enough is for the proof to say."""
    given = sorted(Path(order.calibration).glob("*.npz")) if order.calibration is not None else []
    sample = synthetic(order.model, own)
    if given:
        with np.load(given[0], allow_pickle=False) as held:
            sample = {spec.name: held[spec.name] for spec in own.inputs}
    worst = compare(content, artifact, order, sample)
    said = worst.reason if worst.sqnr_db is None else f"{worst.sqnr_db:.1f} dB"
    what = "a calibration sample" if given else "noise"
    detail = f"runs; output '{worst.name}' has {said} against the float graph in ONNX Runtime on {what}"
    return Check(name="recipe", passed=True, detail=detail)


def _transposes_check(made: FloatFile) -> Check:
    before, after = made.transposes
    detail = f"{after} TRANSPOSE in the file, {before} in the ONNX graph"
    return Check(name="transposes", passed=after <= before, detail=detail)


def _form_check(artifact: Artifact, held: Signature) -> Check:
    """What an application hands over and gets, tensor by tensor."""
    parts = []
    for spec in (*held.inputs, *held.outputs):
        layout_said = " NHWC" if engine.LAYOUT + spec.name in artifact.options else ""
        parts.append(f"{spec.name} {spec.dtype} {'x'.join(map(str, spec.shape))}{layout_said}")
    detail = f"signature {engine.SIGNATURE}: {'; '.join(parts)}. No scales or zero points to apply"
    return Check(name="inputs and outputs", passed=True, detail=detail)


def _metadata_check(order: Conversion, held: Signature, pictures: tuple[str, ...]) -> Check:
    """What TFLite metadata holds, and what the model gave no reason to put there."""
    model = order.model
    output = metadata.labelled_output(model, held)
    lacking = []
    if model.labels and output is None:
        lacking.append(f"the {len(model.labels)} labels fit no output, or several")
    if model.preprocess is not None and not pictures:
        lacking.append("no normalisation: the input is no picture of 1 or 3 channels")
    if model.preprocess is not None and model.preprocess.colour == "BGR":
        lacking.append("the format has no BGR: the colour space says UNKNOWN, the description BGR")
    has = "names and descriptions"
    has += ", size and normalisation" if model.preprocess is not None and pictures else ""
    has += f", {len(model.labels)} labels of '{output}' in {metadata.LABELS}" if output else ""
    detail = f"TFLite metadata: {has}" + "".join(f"; {line}" for line in lacking)
    return Check(name="metadata", passed=not lacking, detail=detail)
