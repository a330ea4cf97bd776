"""The float ``.tflite`` of an ONNX graph, compared with ONNX Runtime before anything else is made of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekiln import files
from edgekiln.cache import step
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets import litert_layout as layout
from edgekiln.engines import Arrays
from edgekiln.engines import litert as engine
from edgekiln.engines import onnxruntime as reference
from edgekiln.errors import BadInput, ConversionFailed, MissingExtra, NotRunnableHere
from edgekiln.prove.parity import OutputParity, ParityStream
from edgekiln.records import Artifact, Model, Record, Scalar, Signature

ENTRY = "model.tflite"
FLOAT_SQNR_DB = 50.0
"""The least SQNR of the float file against ONNX Runtime. Rounding alone leaves more than 90 dB."""
DOING = "converting for LiteRT"
PACKAGES = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert", "torch": "torch"}
_CURE = "Choose another target, or change the model at that operator"
_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|quantized_decomposed|stablehlo|tfl)[.:]+\w+(?:\.\w+)?")

_LOCATION = re.compile(r"\S+\.py:\d+(?::\d+)?:\s*")  # MLIR points at our own sources, which help nobody


class FloatFile(Record, frozen=True, kw_only=True):
    """What is known of a float file: the SQNR in dB of its worst output against ONNX Runtime on one sample
    (None with a reason where it has no scale), and the transposes of the ONNX graph and of the file."""

    sqnr_db: float | None
    reason: str = ""
    transposes: tuple[int, int]


def float_file(order: Conversion, own: Signature, nhwc: tuple[str, ...]) -> tuple[bytes, FloatFile]:
    """The file with the model's ``own`` names and its inputs ``nhwc`` as NHWC, and how it compares.

    It is kept in ``order.cache`` (where given): all recipes of one graph begin with it.
    Raises ConversionFailed where litert-torch refuses, or the file is another function than the graph.
    """
    graph = order.graph(DOING)

    def produce(folder: Path) -> FloatFile:
        tree = layout.load(_converted(order, graph, own, nhwc))
        layout.rename(tree, own)
        content = layout.dump(tree)
        artifact = draft(order, layout.options(own, layout.signature_of(tree), nhwc))
        found = compare(content, artifact, order, synthetic(order.model, own))
        require_same(found, order.variant.path)
        files.write_bytes(folder / ENTRY, content)
        counted = layout.operators(tree)["TRANSPOSE"]
        return FloatFile(
            sqnr_db=found.sqnr_db, reason=found.reason, transposes=(_onnx_transposes(graph), counted)
        )

    if order.cache is None:
        with tempfile.TemporaryDirectory() as scratch:
            made = produce(Path(scratch))
            return (Path(scratch) / ENTRY).read_bytes(), made
    versions = {name: importlib.metadata.version(name) for name in PACKAGES.values()}
    key = [files.sha256_file(graph), list(nhwc), order.model.preprocess, versions]
    folder, made, _ = step(Path(order.cache), "litert-float", key, FloatFile, produce)
    return (folder / ENTRY).read_bytes(), made


def draft(order: Conversion, options: Mapping[str, Scalar]) -> Artifact:
    """The artifact as far as it is known before its file is finished."""
    tools = {name: importlib.metadata.version(name) for name in PACKAGES.values()}
    if order.variant.recipe.passes:
        tools["ai-edge-quantizer"] = importlib.metadata.version("ai-edge-quantizer")
    return Artifact(
        id=f"{order.device.name}.litert.{order.variant.recipe.name}",
        target="litert",
        recipe=order.variant.recipe.name,
        engine="litert",
        proof_engine="litert",
        entry=ENTRY,
        files=(),
        options=dict(options),
        tools=tools,
        precisions={},
        passes=order.variant.passes,
    )


def static_signature(order: Conversion) -> Signature:
    """Names and shapes of the variant's graph. Raises ConversionFailed for dynamic axes and strings."""
    import onnx

    from edgekiln.model.signature import signature

    own = signature(onnx.load(order.graph(DOING), load_external_data=False))
    for spec in own.inputs:
        if any(isinstance(n, str) for n in spec.shape):
            why = f"its input '{spec.name}' has dynamic axes: {'x'.join(map(str, spec.shape))}"
            cure = "Give --input-shape; a .tflite is made for one size"
            raise ConversionFailed(DOING, order.variant.path, why, cure)
        if spec.dtype == "string":
            why, cure = f"its input '{spec.name}' holds strings", "Cut the text processing off the model"
            raise ConversionFailed(DOING, order.variant.path, why, cure)
    return own


def compare(content: bytes, artifact: Artifact, order: Conversion, sample: Arrays) -> OutputParity:
    """The file's worst output against the order's float graph in ONNX Runtime, on one sample.

    Outputs of the graph that are NaN or infinite themselves can't be judged; ``reason`` names them.
    Raises ConversionFailed where LiteRT can't run the file, or gives other shapes, or NaN or infinity.
    """
    doing, name = f"running the {artifact.recipe} file of", order.variant.path
    graph = order.graph(DOING)
    expected_by = reference.open(reference.float_artifact(graph.name, "float"), graph.parent, 1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            files.write_bytes(Path(scratch) / artifact.entry, content)
            runner = engine.open(artifact, Path(scratch), 1)
            expected, found = expected_by(sample), runner(sample)
        broken = [n for n, v in expected.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
        stream = ParityStream("tensors")
        stream.add(*({n: v for n, v in side.items() if n not in broken} for side in (expected, found)))
    except (NotRunnableHere, BadInput) as error:
        raise ConversionFailed(doing, name, f"LiteRT can't: {error.why}", _CURE) from error
    unjudged = f"the graph itself gives NaN or infinity at {', '.join(broken)}" if broken else ""
    worst = stream.result().worst
    if worst is None:
        return OutputParity(name=", ".join(broken), reason=unjudged or "the graph has no outputs")
    if worst.nonfinite:
        raise ConversionFailed(doing, name, worst.reason, "Use another recipe or target")
    return msgspec.structs.replace(worst, reason=worst.reason or unjudged)


def require_same(worst: OutputParity, name: str) -> None:
    """Raise ConversionFailed where a float file is another function than the graph ``name``.

    An output whose difference has no scale (the graph's is zero throughout) must be zero as well.
    """
    if worst.sqnr_db is None and not worst.max_abs_error:
        return
    if worst.sqnr_db is not None and worst.sqnr_db >= FLOAT_SQNR_DB:
        return
    found = worst.reason if worst.sqnr_db is None else f"{worst.sqnr_db:.1f} dB"
    why = (
        f"the float file is another function than the graph: output '{worst.name}' has {found} against "
        f"ONNX Runtime, where {FLOAT_SQNR_DB:g} dB is the least"
    )
    raise ConversionFailed(DOING, name, why, "Choose another target, and report this to edgekiln")


def synthetic(model: Model, own: Signature) -> dict[str, Any]:
    """Seeded noise: pixels as the preprocessing gives them, else a normal distribution; integers 0 or 1."""
    random = np.random.default_rng(0)
    how = model.preprocess
    found: dict[str, Any] = {}
    for spec in own.inputs:
        shape = tuple(int(n) for n in spec.shape)
        if how is not None:
            pixels = random.integers(0, 256, shape) * how.scale
            values = (pixels - np.mean(how.mean)) / np.mean(how.std)
        elif np.dtype(spec.dtype).kind == "f":
            values = random.standard_normal(shape)
        else:
            values = random.integers(0, 2, shape).astype(np.float64)
        found[spec.name] = values.astype(spec.dtype)
    return found


def _converted(order: Conversion, graph: Path, own: Signature, nhwc: tuple[str, ...]) -> bytes:
    """The float flatbuffer as litert-torch writes it."""
    try:
        import litert_torch
        import torch
    except ImportError as error:
        raise MissingExtra(DOING, order.variant.path, "litert") from error
    from edgekiln.compile import torch_graph

    module = torch_graph.load(graph)
    sample = tuple(
        torch.from_numpy(v.transpose(0, 2, 3, 1).copy() if n in nhwc else v)
        for n, v in synthetic(order.model, own).items()
    )
    sink = io.StringIO()
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            made = litert_torch.convert(layout.channels_last(module.eval(), own, nhwc), sample)
            content: bytes = made.model_content()
    except Exception as error:  # torch.export, litert-torch, jax and MLIR each have their own
        raise _refused(order.variant.path, error, sink.getvalue()) from error
    return content


def _refused(name: str, error: Exception, said: str) -> ConversionFailed:
    """litert-torch's refusal in a line, with the operators that it names anywhere."""
    lines = [_LOCATION.sub("", line).strip() for line in str(error).splitlines() if line.strip()]
    why = f"litert-torch: {type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
    named = [o for o in dict.fromkeys(_OPERATOR.findall(f"{error}\n{said}")) if o not in why][:3]
    if named and not _OPERATOR.search(why):
        why += f" (operators named: {', '.join(named)})"
    return ConversionFailed(DOING, name, why, _CURE)


def _onnx_transposes(graph: Path) -> int:
    import onnx

    return sum(n.op_type == "Transpose" for n in onnx.load(graph, load_external_data=False).graph.node)
