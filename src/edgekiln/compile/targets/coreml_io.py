"""How an application meets a Core ML package: pictures in, labels out, names, dtypes and sizes.

All of it is written into the ONNX graph before any converter sees it, so both routes convert the same
thing: the preprocessing as a multiplication and an addition in front, the class probabilities behind, and
names that an ML Program allows. In an ML Program an ``ImageType``'s own scale and bias become these two
operators as well, but its scale is one number for all channels; ours has one per channel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.records import Check, Preprocess, Scalar

Ranges: TypeAlias = Mapping[str, tuple[int, int]] | None
"""(least, most) by the ONNX name of a symbolic axis."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What an ML Program allows as the name of an input or output."""

# fmt: off
RESERVED = frozenset((
    "any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "bf16",
    "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "state",
))
# fmt: on
"""Words of the MIL language: coremltools renames an input or output of that name without saying so."""

PROBABILITIES = "edgekiln_class_probabilities"
LABEL = "classLabel"
_NORMALISED = {"Softmax", "Sigmoid"}
_COLOURS = {"RGB": 3, "BGR": 3, "GRAY": 1}


@dataclass(frozen=True)
class Feature:
    """An input or output: its name in the package, the model's own name, dtype and shape.

    A symbolic axis is its ONNX name in ``shape``. For a picture, ``shape`` is [1, C, H, W].
    """

    name: str
    own: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Interface:
    """What the package takes and gives. ``image`` names the input that takes a picture, if one does.

    ``labels`` are unique (a Core ML classifier answers with a dictionary by label); empty: no classifier.
    ``scores`` is the output, by its name in the package, that the class probabilities are made of.
    """

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    image: str | None = None
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    scores: str | None = None
    checks: tuple[Check, ...] = ()


def interface(
    model: Any, preprocess: Preprocess | None, labels: tuple[str, ...], classifies: bool
) -> Interface:
    """The interface of an ``onnx.ModelProto``: a picture where the preprocessing fits exactly one input,
    a classifier where there is one label per score of the first output. What was left out is a check."""
    inputs, outputs = _features(model)
    checks = []
    image, why = _image_input(inputs, preprocess)
    if preprocess is not None:
        checks.append(Check(name="image input", passed=image is not None, detail=why))
    scores: str | None = None
    if classifies and labels:
        unique, note = _unique(labels)
        dims = tuple(d for d in outputs[0].shape if d != 1) if outputs else ()
        if dims == (len(labels),):
            labels, scores = unique, outputs[0].name
            checks.append(Check(name="class labels", passed=True, detail=note))
        else:
            detail = f"{len(labels)} labels do not fit an output of shape {list(outputs[0].shape)}: left out"
            checks.append(Check(name="class labels", passed=False, detail=detail))
    return Interface(
        inputs=inputs,
        outputs=outputs,
        image=image,
        preprocess=preprocess,
        labels=labels if scores else (),
        scores=scores,
        checks=tuple(checks),
    )


def _features(model: Any) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    import onnx

    constants = {i.name for i in model.graph.initializer}
    taken = {n for v in (*model.graph.input, *model.graph.output) if NAME.fullmatch(n := v.name)}
    taken |= {PROBABILITIES, LABEL}
    sides = []
    for values in (model.graph.input, model.graph.output):
        side = []
        for value in values:
            if value.name in constants:
                continue
            kind = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            side.append(Feature(_allowed(value.name, taken), value.name, dtype, shape))
        sides.append(tuple(side))
    return sides[0], sides[1]


def _allowed(name: str, taken: set[str]) -> str:
    """``name`` where an ML Program allows it, else a near one that nothing has; ``taken`` grows by it."""
    if NAME.fullmatch(name) and name != LABEL and name not in RESERVED:
        return name
    near = re.sub(r"[^A-Za-z0-9_]", "_", name) + ("_" if name in RESERVED else "")
    near = near if NAME.fullmatch(near) and near != LABEL else f"_{near}"
    while near in taken:
        near += "_"
    taken.add(near)
    return near


def _image_input(inputs: Iterable[Feature], preprocess: Preprocess | None) -> tuple[str | None, str]:
    """The input that takes pictures, by its name in the package, and why (not)."""
    if preprocess is None:
        return None, ""
    channels = _COLOURS[preprocess.colour]
    first = preprocess.layout == "NCHW"
    fits = []
    for one in inputs:
        if len(one.shape) != 4 or one.dtype != "float32" or one.shape[0] != 1:
            continue
        axes = (one.shape[1], *one.shape[2:]) if first else (one.shape[3], *one.shape[1:3])
        wanted = (channels, preprocess.height, preprocess.width)
        if (
            all(a == w or isinstance(a, str) for a, w in zip(axes, wanted, strict=True))
            and axes[0] == channels
        ):
            fits.append(one.name)
    if len(fits) != 1:
        return None, f"{len(fits)} inputs are one float32 picture as the preprocessing says: tensors stay"
    detail = f"'{fits[0]}' takes a {preprocess.colour} picture; scale, mean and std are part of the program"
    return fits[0], f"{detail}; resizing ({preprocess.fit}) stays with the application"


def _unique(labels: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Labels with the index behind each that comes twice, so that the dictionary has them all."""
    doubles = {one for one in labels if labels.count(one) > 1} if len(set(labels)) < len(labels) else set()
    made = tuple(f"{one} ({at})" if one in doubles else one for at, one in enumerate(labels))
    if len(set(made)) < len(made):  # a label that already looks like another with its index
        made = tuple(f"{one} ({at})" for at, one in enumerate(labels))
    note = f"{len(labels)} labels"
    if doubles:
        note += f"; {', '.join(sorted(doubles))} come twice and carry their index"
    return made, note


# ---------------------------------------------------------------- the graph


def wrapped(model: Any, face: Interface) -> Any:
    """A copy of an ``onnx.ModelProto`` with the interface's names, picture and class probabilities."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    names = {f.own: f.name for f in (*face.inputs, *face.outputs) if f.own != f.name}
    if names:
        _rename(graph, names)
        for value in (*graph.input, *graph.output):
            value.name = names.get(value.name, value.name)
    if face.image is not None and face.preprocess is not None:
        _picture_in_front(graph, face.image, face.preprocess)
    if face.scores is not None:
        _probabilities_behind(graph, face.scores, len(face.labels))
    return made


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes use them, subgraphs included (their own names never shadow)."""
    for node in graph.node:
        for field in (node.input, node.output):
            for at, name in enumerate(field):
                field[at] = names.get(name, name)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, names)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def affine(preprocess: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(a, b), each [1, C, 1, 1], so that ``pixel * a + b`` is ``(pixel * scale - mean) / std``."""
    channels = _COLOURS[preprocess.colour]
    mean = np.asarray(preprocess.mean[:channels], np.float64)
    std = np.asarray(preprocess.std[:channels], np.float64)
    shape = (1, channels, 1, 1)
    a, b = np.broadcast_to(preprocess.scale / std, (channels,)), np.broadcast_to(-mean / std, (channels,))
    return a.reshape(shape).astype(np.float32), b.reshape(shape).astype(np.float32)


def _picture_in_front(graph: Any, name: str, preprocess: Preprocess) -> None:
    from onnx import helper, numpy_helper

    tensor = f"{name}_tensor"
    _rename(graph, {name: tensor})
    a, b = affine(preprocess)
    for suffix, value in (("a", a), ("b", b)):
        graph.initializer.append(numpy_helper.from_array(value, f"{name}_pixel_{suffix}"))
    nodes, at = [], name
    last_is_transpose = preprocess.layout == "NHWC"
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if not np.all(a == 1):
        steps.append(("Mul", [f"{name}_pixel_a"], {}))
    if not np.all(b == 0):
        steps.append(("Add", [f"{name}_pixel_b"], {}))
    if last_is_transpose:
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    if not steps:
        _rename(graph, {tensor: name})
    for number, (kind, more, attributes) in enumerate(steps):
        out = tensor if number == len(steps) - 1 else f"{name}_pixel_{number}"
        nodes.append(helper.make_node(kind, [at, *more], [out], name=f"{name}_{kind}", **attributes))
        at = out
    for node in reversed(nodes):
        graph.node.insert(0, node)
    if last_is_transpose:
        taken = next(v for v in graph.input if v.name == name)
        dims = taken.type.tensor_type.shape.dim
        order = [dims[0], dims[3], dims[1], dims[2]]
        copies = [type(d).FromString(d.SerializeToString()) for d in order]
        del dims[:]
        dims.extend(copies)


def _probabilities_behind(graph: Any, scores: str, count: int) -> None:
    """Softmax (unless the scores are probabilities already) and [count]: another tensor than the scores,
    because Core ML's classify operator takes its input from the outputs."""
    from onnx import TensorProto, helper, numpy_helper

    source = next((n.op_type for n in graph.node if scores in n.output), "")
    at = scores
    if source not in _NORMALISED:
        at = f"{PROBABILITIES}_softmax"
        graph.node.append(helper.make_node("Softmax", [scores], [at], name=at, axis=-1))
    graph.initializer.append(numpy_helper.from_array(np.array([count], np.int64), f"{PROBABILITIES}_shape"))
    graph.node.append(
        helper.make_node("Reshape", [at, f"{PROBABILITIES}_shape"], [PROBABILITIES], name=PROBABILITIES)
    )
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [count]))


# ---------------------------------------------------------------- the arguments of coremltools


def shape_of(
    feature: Feature, face: Interface, size: tuple[int, int] | None = None, ranges: Ranges = None
) -> tuple[int, ...]:
    """The shape that an input takes as it stands in the package, for one size (height, width).

    A symbolic axis is the size's height or width by its place, else the least of its range, else 1.
    """
    layout = face.preprocess.layout if face.preprocess else "NCHW"
    first = feature.name == face.image or layout == "NCHW"
    at = dict(zip((2, 3) if first else (1, 2), size, strict=True)) if size else {}
    made = []
    for axis, dim in enumerate(picture_shape(feature, face)):
        least = ranges[dim][0] if ranges and isinstance(dim, str) and dim in ranges else 1
        made.append(dim if isinstance(dim, int) else at.get(axis, least))
    return tuple(made)


def picture_shape(feature: Feature, face: Interface) -> tuple[int | str, ...]:
    """The shape of an input in the package: a picture is [1, C, H, W] whatever the model's layout."""
    dims = feature.shape
    if feature.name == face.image and face.preprocess and face.preprocess.layout == "NHWC":
        return (dims[0], dims[3], dims[1], dims[2])
    return dims


def input_types(face: Interface, sizes: tuple[tuple[int, int], ...], ranges: Ranges) -> list[Any]:
    """coremltools' types of the inputs, in order. Several sizes become EnumeratedShapes (first: default).

    ``ranges`` gives a symbolic axis by its ONNX name a least and a most instead (RangeDim): every size
    between works, but only the default one, the least, may run on the Neural Engine, so prefer sizes.
    """
    import coremltools

    found = []
    for feature in face.inputs:
        takes = list(dict.fromkeys(shape_of(feature, face, size, ranges) for size in sizes or (None,)))
        shape: Any = takes[0]
        dims = picture_shape(feature, face)
        if ranges and any(d in ranges for d in dims):
            spans = [ranges.get(d) if isinstance(d, str) else None for d in dims]
            shape = [n if span is None else _range(*span) for n, span in zip(shape, spans, strict=True)]
        elif len(takes) > 1:
            shape = coremltools.EnumeratedShapes(shapes=takes, default=takes[0])
        if feature.name == face.image and face.preprocess:
            layout = {"GRAY": "GRAYSCALE"}.get(face.preprocess.colour, face.preprocess.colour)
            colour = getattr(coremltools.colorlayout, layout)
            found.append(
                coremltools.ImageType(name=feature.name, shape=shape, color_layout=colour, channel_first=True)
            )
        else:
            dtype = in_package(feature.dtype)
            found.append(coremltools.TensorType(name=feature.name, shape=shape, dtype=dtype))
    return found


def _range(least: int, most: int) -> Any:
    import coremltools

    return coremltools.RangeDim(least, most, default=least)


_IN_PACKAGE = {"int64": "int32", "float64": "float32", "uint32": "int32", "int16": "int32", "int8": "int32"}


def in_package(dtype: str) -> Any:
    """The numpy type in which a package holds ``dtype``: Core ML computes in at most 32 bits, and the
    runner converts and refuses what does not fit."""
    return np.dtype(_IN_PACKAGE.get(dtype, dtype)).type


def output_types(face: Interface) -> list[Any]:
    """coremltools' types of the outputs, in order, the class probabilities last."""
    import coremltools

    made = [coremltools.TensorType(name=f.name, dtype=in_package(f.dtype)) for f in face.outputs]
    if face.scores is not None:
        made.append(coremltools.TensorType(name=PROBABILITIES, dtype=np.float32))
    return made


def options(face: Interface) -> dict[str, Scalar]:
    """What the engine and the app code must know of the interface, as plain scalars."""
    made: dict[str, Scalar] = {}
    for key, side in (("input_names", face.inputs), ("output_names", face.outputs)):
        if differing := {f.name: f.own for f in side if f.name != f.own}:
            made[key] = json.dumps(differing, sort_keys=True)
    if dtypes := {f.own: f.dtype for f in face.outputs if f.dtype != "float32"}:
        made["output_dtypes"] = json.dumps(dtypes, sort_keys=True)
    if scalars := [f.own for f in (*face.inputs, *face.outputs) if not f.shape]:
        made["scalars"] = json.dumps(scalars)
    if face.scores is not None:
        made |= {"class_label": LABEL, "class_probabilities": f"{LABEL}_probs"}
    if face.image is not None and (how := face.preprocess) is not None:
        made |= {"image_input": True, "image_scale": how.scale}
        made |= {"image_layout": how.layout, "image_colour": how.colour}
        channels = _COLOURS[how.colour]
        for key, values in (("mean", how.mean), ("std", how.std)):
            whole = np.broadcast_to(np.asarray(values[:channels], np.float64), (channels,))
            made |= {f"image_{key}_{at}": float(value) for at, value in enumerate(whole)}
    return made
