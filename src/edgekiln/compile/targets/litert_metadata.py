"""TFLite Metadata: what a ``.tflite`` says of its inputs, outputs, normalisation and labels.

The format: a flatbuffer of schema 1.1.0 (``metadata_schema.fbs`` of the project tflite-support, file
identifier ``M001``) in the model's buffer ``TFLITE_METADATA``; the label file follows the model in the same
file, as an uncompressed zip archive, so that the ``.tflite`` opens with any zip reader too.
The Task libraries, ML Binding and MediaPipe read it. No package on PyPI for current Pythons writes it, hence
the few tables of the schema that are needed here, by their field numbers.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from edgekiln.records import Model, Preprocess, Signature, TensorSpec

BUFFER = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS = "labels.txt"
PARSER_VERSION = "1.0.0"  # the least that knows all the fields used here

_TENSOR_AXIS_LABELS = 2
_IMAGE_PROPERTIES = 2  # in the union ContentProperties
_FEATURE_PROPERTIES = 1
_NORMALIZATION_OPTIONS = 1  # in the union ProcessUnitOptions
_COLOUR = {"RGB": 1, "GRAY": 2}  # ColorSpaceType; BGR has no value there and stays UNKNOWN

_Set = Callable[[Any], None]


def normalisation(spec: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel for pixels of 0..255, as the metadata's ``(pixel - mean) / std`` wants them.

    Our own rule is ``(pixel * scale - mean) / std``: both are divided by ``scale``.
    """
    return tuple(m / spec.scale for m in spec.mean), tuple(s / spec.scale for s in spec.std)


def encode(model: Model, signature: Signature, pictures: Sequence[str]) -> bytes:
    """The metadata flatbuffer for ``signature`` (the file's own tensors, in the order of its subgraph).

    ``pictures`` are the inputs that the file holds as NHWC pictures; they alone get image properties and the
    model's normalisation. Labels go to the one output whose last axis counts as many.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    inputs = [_input(builder, spec, model, spec.name in pictures) for spec in signature.inputs]
    labelled = labelled_output(model, signature)
    outputs = [_output(builder, spec, spec.name == labelled) for spec in signature.outputs]
    subgraph = _table(
        builder,
        7,
        (0, _text(builder, model.name)),
        (2, _vector(builder, inputs)),
        (3, _vector(builder, outputs)),
    )
    root = _table(
        builder,
        8,
        (0, _text(builder, model.name)),
        (1, _text(builder, f"{model.task}, made by edgekiln from the model {model.sha256}")),
        (3, _vector(builder, [subgraph])),
        (7, _text(builder, PARSER_VERSION)),
    )
    builder.Finish(root, file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def labelled_output(model: Model, signature: Signature) -> str | None:
    """The output whose last axis has one place per label; None without labels or where none or two have."""
    fitting = [s.name for s in signature.outputs if s.shape and s.shape[-1] == len(model.labels)]
    return fitting[0] if model.labels and len(fitting) == 1 else None


def with_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """``content`` with ``labels.txt`` appended as a zip archive: one name a line, no time stamp."""
    file = io.BytesIO(content)
    member = zipfile.ZipInfo(LABELS, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr = 3, 0o100644 << 16
    lines = (" ".join(label.splitlines()) for label in labels)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, "".join(f"{line}\n" for line in lines))
    return file.getvalue()


def _input(builder: Any, spec: TensorSpec, model: Model, picture: bool) -> int:
    preprocess = model.preprocess if picture else None
    said = f"{spec.dtype} {'x'.join(map(str, spec.shape))}"
    if preprocess is None:
        return _tensor(builder, spec.name, said, _content(builder, _FEATURE_PROPERTIES, _table(builder, 0)))
    said += f", a picture in {preprocess.colour} order, rows from the top, fitted by '{preprocess.fit}'"
    size = _table(builder, 2, (0, _uint(preprocess.width)), (1, _uint(preprocess.height)))
    colour = _COLOUR.get(preprocess.colour, 0)
    image = _table(builder, 2, (0, _byte(colour)), (1, _offset(size)))
    mean, std = normalisation(preprocess)
    options = _table(builder, 2, (0, _floats(builder, mean)), (1, _floats(builder, std)))
    unit = _table(builder, 2, (0, _ubyte(_NORMALIZATION_OPTIONS)), (1, _offset(options)))
    bounds = [[(pixel - m) / s for m, s in zip(mean, std, strict=True)] for pixel in (255, 0)]
    low, high = (tuple(pick(pair) for pair in zip(*bounds, strict=True)) for pick in (min, max))
    stats = _table(builder, 2, (0, _floats(builder, high)), (1, _floats(builder, low)))
    return _tensor(
        builder,
        spec.name,
        said,
        _content(builder, _IMAGE_PROPERTIES, image),
        (4, _vector(builder, [unit])),
        (5, _offset(stats)),
    )


def _output(builder: Any, spec: TensorSpec, labelled: bool) -> int:
    said = f"{spec.dtype} {'x'.join(map(str, spec.shape))}"
    content = _content(builder, _FEATURE_PROPERTIES, _table(builder, 0))
    if not labelled:
        return _tensor(builder, spec.name, said, content)
    name, about = _text(builder, LABELS), _text(builder, "One label a line, in the order of the last axis")
    file = _table(builder, 4, (0, name), (1, about), (2, _byte(_TENSOR_AXIS_LABELS)))
    return _tensor(builder, spec.name, said + ", a score per label", content, (6, _vector(builder, [file])))


def _tensor(builder: Any, name: str, said: str, content: int, *more: tuple[int, _Set]) -> int:
    """A TensorMetadata table."""
    fields = ((0, _text(builder, name)), (1, _text(builder, said)), (3, _offset(content)))
    return _table(builder, 7, *fields, *more)


def _content(builder: Any, kind: int, properties: int) -> int:
    """A Content table: its type in the union, and the properties."""
    return _table(builder, 3, (0, _ubyte(kind)), (1, _offset(properties)))


# What follows writes flatbuffers: a field is its number and a function that puts its value into the slot.


def _table(builder: Any, fields: int, *given: tuple[int, _Set]) -> int:
    builder.StartObject(fields)
    for slot, put in given:
        put((builder, slot))
    made: int = builder.EndObject()
    return made


def _offset(offset: int) -> _Set:
    return lambda at: at[0].PrependUOffsetTRelativeSlot(at[1], offset, 0)


def _text(builder: Any, text: str) -> _Set:
    return _offset(builder.CreateString(text))


def _byte(value: int) -> _Set:
    return lambda at: at[0].PrependInt8Slot(at[1], value, 0)


def _ubyte(value: int) -> _Set:
    return lambda at: at[0].PrependUint8Slot(at[1], value, 0)


def _uint(value: int) -> _Set:
    return lambda at: at[0].PrependUint32Slot(at[1], value, 0)


def _vector(builder: Any, offsets: Sequence[int]) -> _Set:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return _offset(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> _Set:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return _offset(builder.EndVector())
