"""What comes in: ONNX files, PyTorch factories with weights, exported programs. All become ``model.onnx``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import BadInput
from edgekiln.model import onnx_file
from edgekiln.model.preprocess import check
from edgekiln.model.signature import (
    fix_shapes,
    guess_task,
    image_layout,
    set_input_shapes,
    signature,
)
from edgekiln.records import Model, Preprocess, Signature, Source, Task, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Shapes = dict[str, tuple[int, ...]]
_DOING = "importing the model"


def import_model(
    source: str,
    into: Path,
    *,
    name: str | None = None,
    weights: str | None = None,
    input_shapes: Shapes | None = None,
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] = (),
    task: Task | None = None,
    search_path: tuple[Path, ...] = (),
    sizes: tuple[tuple[int, int], ...] = (),
) -> Model:
    """Write ``into/model.onnx`` from ``source`` and return what is known about it.

    ``source`` is an ``.onnx`` file (with external data beside it), ``package.module:factory`` with
    ``weights`` (a state dict in .pth, .pt or .safetensors), or a ``.pt2`` exported program.
    ``input_shapes`` fixes dynamic axes of an ONNX file and is needed for a factory, unless
    ``preprocess`` says the size; its key "" is the only input. An export is compared with torch at once;
    ``Source.parity_max_error`` is the largest absolute difference. Equal input gives equal bytes.
    ``sizes`` are the (height, width) that the graph has to take, the first of them its base: a factory is
    exported with height and width symbolic, a file has to have them so.

    Raises BadInput for a source that can't be used, MissingExtra without torch, ConversionFailed where
    no exporter gives what torch gives.
    """
    proto, origin, notes = _load(source, weights, input_shapes or {}, preprocess, search_path, sizes)
    sig = signature(proto)
    if input_shapes and origin.kind != "torch":
        sig = _fix(proto, sig, input_shapes)
    _check_inputs(sig, source)
    if preprocess is not None:
        check(preprocess, _picture_input(sig, source))
    kind = task or guess_task(sig)
    if kind == "classification":
        _check_labels(sig, labels, source)
    onnx_file.clean(proto, exported=origin.kind != "onnx")
    files = onnx_file.write_onnx(proto, into)
    onnx_file.check_runs(files[0], source)
    return Model(
        name=name or _name(source),
        path=files[0].relative_to(into).as_posix(),
        sha256=onnx_file.hash_files(into, files),
        signature=sig,
        task=kind,
        source=origin,
        preprocess=preprocess,
        labels=labels,
        warnings=tuple(notes),
    )


def _load(
    source: str,
    weights: str | None,
    shapes: Shapes,
    preprocess: Preprocess | None,
    search_path: tuple[Path, ...],
    sizes: tuple[tuple[int, int], ...],
) -> tuple[ModelProto, Source, list[str]]:
    """The graph of ``source``, where it came from, and what a user should be told."""
    from edgekiln.model import torch_export, torch_source

    path = Path(source)
    if torch_source.is_factory(source) and not path.exists():
        torch_source.import_torch(_DOING, source)
        base = torch_shapes(shapes, preprocess, source)
        found, files = torch_export.export_factory(
            source,
            Path(weights) if weights else None,
            base,
            search_path,
            [_resized(base, size, source) for size in sizes],
        )
        notes = [] if weights else [f"no weights were given: {source} decides what the model holds"]
        if "torchscript" in found.exporter:
            notes.append("torch's present exporter could not export the model; its older one did")
        origin = Source(
            kind="torch", files=files, exporter=found.exporter, parity_max_error=found.parity_max_error
        )
        return found.proto, origin, notes
    if weights is not None:
        cure = "Leave --weights out, or name the model as package.module:factory."
        raise BadInput(_DOING, source, "weights belong to a PyTorch factory, this is a file", cure)
    if path.suffix == ".pt2":
        torch_source.import_torch(_DOING, source)
        found, files = torch_export.export_program(path)
        origin = Source(
            kind="exported-program",
            files=files,
            exporter=found.exporter,
            parity_max_error=found.parity_max_error,
        )
        return found.proto, origin, []
    _refuse_other_formats(path)
    proto, files = onnx_file.read_onnx(path)
    return proto, Source(kind="onnx", files=files), []


_CURES = {
    ".pt": "It would run code when it is opened. Give package.module:factory with --weights {0}, or .onnx.",
    ".pth": "Give the architecture: package.module:factory, with --weights {0}.",
    ".safetensors": "Give the architecture: package.module:factory, with --weights {0}.",
    ".ckpt": "Give the architecture: package.module:factory, with --weights {0}.",
    ".tflite": "Give the model it was converted from, as .onnx or PyTorch.",
    ".h5": "Convert it with tf2onnx and give the .onnx file.",
    ".keras": "Convert it with tf2onnx and give the .onnx file.",
    ".pb": "Convert it with tf2onnx and give the .onnx file.",
}


def _refuse_other_formats(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _CURES and path.is_file():
        raise BadInput(
            _DOING, path, f"'{suffix}' is no graph that can be read safely", _CURES[suffix].format(path)
        )
    if not path.exists() and ":" in str(path):
        cure = "Give a file that exists, or package.module:factory."
        raise BadInput(_DOING, path, "it is neither a file nor the name of a factory", cure)


def torch_shapes(shapes: Shapes, preprocess: Preprocess | None, source: str) -> Shapes:
    """The shapes that were given, or the one that ``preprocess`` implies. Raises BadInput without either."""
    if shapes:
        return shapes
    if preprocess is None:
        cure = "Give --input-shape, for example 1x3x224x224, or [preprocess] in the job."
        raise BadInput(_DOING, source, "a PyTorch model does not say what shape it takes", cure)
    channels = 1 if preprocess.colour == "GRAY" else 3
    size = (preprocess.height, preprocess.width)
    return {"": (1, channels, *size) if preprocess.layout == "NCHW" else (1, *size, channels)}


def _resized(shapes: Shapes, size: tuple[int, int], source: str) -> Shapes:
    """``shapes`` of the one picture input with another height and width."""
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        layout = image_layout(TensorSpec(name=name, dtype="float32", shape=shape))
        if layout is not None:
            return {name: (*shape[:2], *size) if layout == "NCHW" else (shape[0], *size, shape[3])}
    why = "it takes no single picture of 1 or 3 channels"
    raise BadInput(_DOING, source, f"several sizes were asked for, and {why}", "Leave the sizes out.")


def _fix(proto: ModelProto, sig: Signature, shapes: Shapes) -> Signature:
    """Write ``shapes`` into the graph; the shapes of its outputs follow as far as they can be inferred."""
    from edgekiln.model.shapes import infer

    fixed = fix_shapes(sig, shapes)
    set_input_shapes(proto, fixed)
    known = infer(proto)
    for value in proto.graph.output:
        old = next(o for o in fixed.outputs if o.name == value.name)
        dims = known.shape(value.name) or old.shape
        for want in dims:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(want, int):
                dim.dim_value = want
            else:
                dim.dim_param = want
    return signature(proto)


def _check_inputs(sig: Signature, source: str) -> None:
    if not sig.inputs:
        cure = "Export the model with its input as an argument, not as a constant."
        raise BadInput(_DOING, source, "it has no inputs", cure)


def _picture_input(sig: Signature, source: str) -> TensorSpec:
    pictures = [i for i in sig.inputs if image_layout(i) is not None]
    if len(sig.inputs) != 1 or len(pictures) != 1:
        takes = ", ".join(f"{i.name} {'x'.join(map(str, i.shape))}" for i in sig.inputs)
        cure = "Leave [preprocess] out, and give the inputs as .npz files."
        raise BadInput(_DOING, source, f"preprocessing was given, but the model takes {takes}", cure)
    return pictures[0]


def _check_labels(sig: Signature, labels: tuple[str, ...], source: str) -> None:
    shape = sig.outputs[0].shape
    classes = shape[1] if len(shape) > 1 else None
    if labels and isinstance(classes, int) and classes != len(labels):
        why = f"there are {len(labels)} labels for {classes} classes"
        raise BadInput(_DOING, source, why, "Give one label per class, in the order of the outputs.")


def _name(source: str) -> str:
    """A short name from a path or a factory: letters, digits, dashes and dots."""
    base = source.rpartition(":")[2] if ":" in source else Path(source).stem
    return re.sub(r"[^A-Za-z0-9.]+", "-", base).strip("-.")[:80] or "model"
