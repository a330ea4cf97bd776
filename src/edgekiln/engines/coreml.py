"""Core ML's ML Programs off a Mac: a reference interpreter of the saved ``.mlpackage``.

It reads the saved files (the program's protobuf and ``weights/weight.bin``) and evaluates them op by op
with PyTorch on the CPU. Numbers are float32; where the program says fp16 the result is rounded to fp16
after every op, so an overflow shows. What a phone does inside one op (the order of its sums, fp16
accumulation) stays unknown: see ``NOTE``.

``artifact.entry`` is the package's folder. The options that are read, all of them optional:

``function``          which function of a multi-function package runs; else the package's default.
``input_names``       JSON object, package's name to the model's own name, where they differ.
``output_names``      the same for outputs. A classifier's scores stand in the package under
                      ``description.predictedProbabilitiesName``: that name is mapped here too, unless the
                      package gives the scores under their own name as well.
``output_dtypes``     JSON object, the model's own output name to a numpy dtype (``{"ids": "int64"}``), where
                      the package computes in another one. Inputs are converted to what the package declares;
                      an integer that does not fit is BadInput.
``scalars``           JSON list of the model's own names of inputs and outputs of rank 0, which Core ML holds
                      as shape (1,).
``image_input``       true where the package takes a picture. The runner is still given the model's own
                      tensor and recovers the picture from it: ``p = (x * std + mean) / scale``, with the
                      model's ``Preprocess`` in ``image_scale``, ``image_mean_0..2``, ``image_std_0..2``,
                      ``image_layout`` (NCHW or NHWC) and ``image_colour`` (RGB, BGR or GRAY). A value within
                      1e-3 of a whole number becomes that number; others stay as they are, and nothing is
                      clamped. The picture's channels are put into the colour order that the *package*
                      declares, and the package's own arithmetic (coremltools writes an ImageType's scale and
                      bias as ``mul`` and ``add`` at the start of ``main``) does the rest. So a wrong scale,
                      bias, layout or colour order in the package is a wrong result here, as on the phone.

The runner keeps the package's states between calls; ``reset()`` sets them to zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra
from edgekiln.records import Artifact, Scalar

if TYPE_CHECKING:
    from edgekiln.engines.mil.program import Program

NOTE = (
    "Interpreted from the saved package by edgekiln's reference interpreter: this proves what the program "
    "means, not the Neural Engine's arithmetic, nor that Apple's compiler takes it."
)
_DOING = "opening the Core ML package"
_RUNNING = "running the Core ML package"
_WHOLE = 1e-3
"""A recovered pixel this near to a whole number was one: the rest is float32's rounding."""


class _Interpreted:
    """One function of a package, with its states. Not for several threads at once."""

    def __init__(self, artifact: Artifact, program: Program, description: Any, threads: int) -> None:
        self._program = program
        self._threads = threads
        self._options = artifact.options
        self._inputs = {f.name: f for f in description.input}
        self._outputs = [f.name for f in description.output]
        self._input_names = _names(artifact.options, "input_names")
        self._output_names = _names(artifact.options, "output_names")
        self._added = _added(description, self._output_names)
        self._dtypes = _names(artifact.options, "output_dtypes")
        self._scalars = frozenset(_json(artifact.options, "scalars", list))
        self._states: dict[str, Any] = {}
        self.reset()

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The model's outputs under its own names. Raises BadInput for inputs that the package does not
        take, and NotRunnableHere with the op and its place where a step can't be computed."""
        found = self._run(inputs)
        return {
            self._output_names.get(name, name): self._array(name, found[name])
            for name in self._outputs
            if name not in self._added
        }

    def features(self, inputs: Arrays) -> dict[str, Any]:
        """What Core ML would hand out, under the package's own names: arrays, and for a classifier the label
        and the dictionary from class to score."""
        from edgekiln.engines.mil.control import Scores

        handed: dict[str, Any] = {}
        for name, value in self._run(inputs).items():
            if isinstance(value, Scores):
                handed[name] = value.by_class()
            else:
                handed[name] = value if isinstance(value, str) else value.numpy()
        return handed

    def reset(self) -> None:
        """Every state to zero, as a new ``MLState`` begins."""
        import torch

        from edgekiln.engines.mil.values import TORCH

        self._states = {
            name: torch.zeros([n or 0 for n in kind.shape], dtype=TORCH[kind.dtype])
            for name, kind in self._program.states.items()
        }

    def close(self) -> None:
        self._states = {}

    def _run(self, inputs: Arrays) -> dict[str, Any]:
        import torch

        from edgekiln.engines.mil import program

        feeds = self._feeds(inputs)
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return program.run(self._program, feeds, self._states)
        finally:
            torch.set_num_threads(before)

    def _feeds(self, inputs: Arrays) -> dict[str, Any]:
        """Tensors for the program's inputs, checked against what the package says it takes."""
        from edgekiln.engines.mil.values import tensor_of

        own = {self._input_names.get(name, name): name for name in self._program.inputs}
        if set(inputs) != set(own):
            why = f"it takes {sorted(own)}, and was given {sorted(inputs)}"
            raise BadInput(_RUNNING, self._program.function, why, "Give every input, and no other")
        feeds = {}
        for given, name in own.items():
            array = np.asarray(inputs[given])
            feature = self._inputs.get(name)
            if feature is not None and feature.type.WhichOneof("Type") == "imageType":
                array = picture(array, self._options, feature.type.imageType)
            elif given in self._scalars:
                array = array.reshape(1)
            _require_shape(name, array.shape, feature)
            declared = self._program.inputs[name]
            feeds[name] = tensor_of(_converted(array, declared.dtype, given), declared.dtype)
        return feeds

    def _array(self, name: str, value: Any) -> NDArray[Any]:
        from edgekiln.engines.mil.control import Scores

        array: NDArray[Any] = (value.tensor if isinstance(value, Scores) else value).numpy().copy()
        own = self._output_names.get(name, name)
        if own in self._scalars:
            array = array.reshape(())
        return array.astype(self._dtypes[own]) if own in self._dtypes else array


def open(artifact: Artifact, folder: Path, threads: int) -> _Interpreted:
    """Read ``folder / artifact.entry`` and prepare the function that the options name.

    Raises MissingExtra without coremltools or torch; BadInput for a damaged package, a function it does not
    have or an option that can't be read; NotRunnableHere for an op that is not interpreted, with its place.
    """
    try:
        import coremltools  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("interpreting a Core ML package", artifact.entry, "coreml") from error
    from edgekiln.engines.mil import package, program

    read = package.read(folder, artifact.entry)
    description = read.spec.description
    function = str(artifact.options.get("function", "") or description.defaultFunctionName or "main")
    own = next((f for f in description.functions if f.name == function), description)
    _require_images(own, artifact)
    return _Interpreted(artifact, program.load(read, function), own, threads)


# ---------------------------------------------------------------- options


def _json(options: Mapping[str, Scalar], key: str, kind: type) -> Any:
    try:
        value = json.loads(str(options.get(key, "null")))
    except ValueError as error:
        raise BadInput(_DOING, key, f"the option is not JSON ({error})", "Convert the model again") from error
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise BadInput(_DOING, key, f"the option is no {kind.__name__}", "Convert the model again")
    return value


def _added(description: Any, mapped: Mapping[str, str]) -> frozenset[str]:
    """What a classifier gives besides the model's own outputs: its label, and the probabilities by label
    unless ``output_names`` says that they are an output of the model."""
    label, scores = str(description.predictedFeatureName), str(description.predictedProbabilitiesName)
    others = {f.name for f in description.output} - {label, scores}
    return frozenset({label, scores} if others and scores not in mapped else {label})


def _names(options: Mapping[str, Scalar], key: str) -> dict[str, str]:
    return {str(k): str(v) for k, v in _json(options, key, dict).items()}


def _require_images(description: Any, artifact: Artifact) -> None:
    """Raise BadInput where package and artifact disagree on whether an input is a picture."""
    pictures = [f.name for f in description.input if f.type.WhichOneof("Type") == "imageType"]
    if bool(pictures) != bool(artifact.options.get("image_input", False)) or len(pictures) > 1:
        why = f"its inputs {pictures} are pictures" if pictures else "none of its inputs is a picture"
        why = f"{why}, and the artifact says image_input={artifact.options.get('image_input', False)}"
        raise BadInput(_DOING, artifact.entry, why, "Convert the model again")


# ---------------------------------------------------------------- inputs


_COLOURS = {10: "GRAY", 20: "RGB", 30: "BGR", 40: "GRAY"}
"""``ImageFeatureType.ColorSpace``; 40 is greyscale in float16."""


def picture(tensor: NDArray[Any], options: Mapping[str, Scalar], image: Any) -> NDArray[np.float32]:
    """The model's input tensor as the picture (1, C, H, W), 0..255, that the package takes.

    ``image`` is the package's ``ImageFeatureType``. Raises BadInput where an option is missing, or where the
    number of channels is not the package's.
    """
    order = str(options.get("image_colour", "RGB"))
    if tensor.ndim != 4:
        raise BadInput(_RUNNING, "the picture", f"the tensor has shape {tensor.shape}", "Give four axes")
    nchw = np.moveaxis(tensor, -1, 1) if options.get("image_layout", "NCHW") == "NHWC" else tensor
    wanted = _COLOURS.get(image.colorSpace, str(image.colorSpace))
    if nchw.shape[1] != len("G" if order == "GRAY" else order) or (order == "GRAY") != (wanted == "GRAY"):
        why = f"{nchw.shape[1]} channels in order {order} do not make a {wanted} picture"
        raise BadInput(_RUNNING, "the picture", why, "Convert the model again")
    try:
        scale = float(options["image_scale"])
        mean, std = (
            np.array([float(options[f"image_{what}_{c}"]) for c in range(nchw.shape[1])])
            for what in ("mean", "std")
        )
    except (KeyError, ValueError) as error:
        why = f"the artifact does not say how its picture was normalised ({error})"
        raise BadInput(_DOING, "the picture", why, "Convert the model again") from error
    shape = (1, -1, 1, 1)
    pixels = (nchw.astype(np.float64) * std.reshape(shape) + mean.reshape(shape)) / scale
    whole = np.rint(pixels)
    pixels = np.where(np.abs(pixels - whole) <= _WHOLE, whole, pixels)
    if wanted != order:
        pixels = pixels[:, ::-1]
    result: NDArray[np.float32] = pixels.astype(np.float32)
    return result


def _converted(array: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """The array in the element type that the package declares. Raises BadInput where values would change."""
    kind, wanted = array.dtype.kind, "f" if dtype.startswith("fp") else "b" if dtype == "bool" else "iu"
    if kind not in "fiub" or (kind == "f" and wanted != "f"):
        why = f"it holds {array.dtype}, and the package takes {dtype}"
        raise BadInput(_RUNNING, name, why, "Give it in the model's own type")
    if wanted == "f":
        return array.astype(np.float32)
    if wanted == "b":
        return array.astype(np.bool_)
    limits = np.iinfo(dtype)
    if array.size and kind != "b" and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        why = f"a value does not fit {dtype}, which is what the package takes"
        raise BadInput(_RUNNING, name, why, f"Keep it within {limits.min} and {limits.max}")
    return array.astype(dtype)


def _require_shape(name: str, shape: tuple[int, ...], feature: Any) -> None:
    """Raise BadInput for a shape that the package does not allow: Core ML would refuse it as well."""
    if feature is None:
        return
    kind = feature.type.WhichOneof("Type")
    allowed = _image_shapes(feature.type.imageType) if kind == "imageType" else _array_shapes(feature.type)
    spatial = shape[-2:] if kind == "imageType" else shape
    fits = any(
        len(ranges) == len(spatial)
        and all(low <= n and (high < 0 or n <= high) for n, (low, high) in zip(spatial, ranges, strict=True))
        for ranges in allowed
    )
    if not fits:
        said = " or ".join(_said(ranges) for ranges in allowed)
        raise BadInput(
            _RUNNING, name, f"its shape is {list(spatial)}, and the package takes {said}", "Resize it"
        )


_Ranges = list[tuple[int, int]]
"""(least, most) per axis; most is -1 where it is open."""


def _said(ranges: _Ranges) -> str:
    words = (str(a) if a == b else f"{a}..{b if b >= 0 else ''}" for a, b in ranges)
    return f"[{', '.join(words)}]"


def _array_shapes(feature_type: Any) -> list[_Ranges]:
    array = feature_type.multiArrayType
    which = array.WhichOneof("ShapeFlexibility")
    if which == "enumeratedShapes":
        return [[(n, n) for n in s.shape] for s in array.enumeratedShapes.shapes]
    if which == "shapeRange":
        return [[(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]]
    return [[(n, n) for n in array.shape]]


def _image_shapes(image: Any) -> list[_Ranges]:
    which = image.WhichOneof("SizeFlexibility")
    if which == "enumeratedSizes":
        return [[(s.height, s.height), (s.width, s.width)] for s in image.enumeratedSizes.sizes]
    if which == "imageSizeRange":
        both = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        return [[(r.lowerBound, r.upperBound) for r in both]]
    return [[(image.height, image.height), (image.width, image.width)]]
