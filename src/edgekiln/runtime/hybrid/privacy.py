"""What may leave the device, as the user's rule says, held by types.

``raw``: the input tensor or the picture as it is. ``reduced``: the picture at no more than so many pixels,
coded anew as JPEG without its metadata; it is still a picture, and people in it may be recognised.
``features-only``: what the declared head of the model computed, in 8 bits, and the inputs that its split
declares to go beside (a question, never an input of a picture's four axes); a Features object, which
nothing but a FeatureHead makes, and only that of the head whose hash the rule names. A rule lets pass what a
stricter one would: features under any, a reduced picture under ``raw`` too.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Runner, open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import BadInput
from edgekiln.model.parts import Split, coded_inputs, read_split
from edgekiln.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image

Rule: TypeAlias = Literal["raw", "reduced", "features-only"]
PICTURE = "picture"
JPEG_QUALITY = 85
_SEAL = object()


class Privacy(Record, frozen=True, kw_only=True):
    """``most_pixels`` bounds a reduced picture; ``head_sha256`` is the head (``Split.head``) whose features
    may leave under ``features-only``."""

    rule: Rule
    most_pixels: int = 320 * 240
    head_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Raw:
    """Input tensors by name, as the whole model takes them."""

    tensors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A picture coded by ``reduce_picture``, for a model on the server that takes coded pictures."""

    jpeg: bytes
    pixels: int


class Features:
    """What a declared head computed, coded. Only FeatureHead makes one; it can't be changed."""

    __slots__ = ("_tensors", "head_sha256")
    _tensors: dict[str, NDArray[Any]]
    head_sha256: str

    def __init__(self, seal: object, head_sha256: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        if seal is not _SEAL:
            raise TypeError("features are made by a FeatureHead")
        object.__setattr__(self, "head_sha256", head_sha256)
        copies = {name: array.copy() for name, array in tensors.items()}
        for array in copies.values():
            array.setflags(write=False)
        object.__setattr__(self, "_tensors", copies)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("features can't be changed")

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The tail's inputs by name: bytes, scales and offsets, and what goes beside them."""
        return dict(self._tensors)


Sendable: TypeAlias = Raw | Reduced | Features


class FeatureHead:
    """The part of a model that runs here and gives Features; ``float_features`` serves a tail that runs here
    too. May be called from several threads: one frame at a time. Close it when done."""

    def __init__(self, split: Split, runner: Runner) -> None:
        self.split = split
        self._runner = runner
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Features:
        return self.coded(self.float_features(inputs), inputs)

    def float_features(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The features by tensor name, as the head gave them."""
        with self._lock:
            return self._runner(inputs)

    def coded(
        self, features: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> Features:
        """``features`` in 8 bits, with those of ``inputs`` that go beside them. Raises BadInput where they
        are not of the head's shapes, or not finite."""
        for feature in self.split.features:
            self._check(features.get(feature.tensor), feature.tensor, feature.shape, "float32")
        tensors = coded_inputs(features, self.split.features)
        for spec in self.split.beside_specs:
            array = (inputs or {}).get(spec.name)
            tensors[spec.name] = self._check(array, spec.name, spec.shape, spec.dtype)
        return Features(_SEAL, self.split.head.sha256, tensors)

    def _check(
        self, array: NDArray[Any] | None, name: str, shape: tuple[int | str, ...], dtype: str
    ) -> NDArray[Any]:
        if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
            why = f"'{name}' is not what the declared head gives or takes"
            raise BadInput("coding features", self.split.head.path, why, "Give the head's own outputs")
        return array

    def close(self) -> None:
        self._runner.close()


def open_head(folder: Path, threads: int = 1) -> FeatureHead:
    """The head of the split model in ``folder``, its hash verified, in ONNX Runtime. Raises BadInput."""
    split = read_split(folder)
    artifact = float_artifact(split.head.path, "head")
    return FeatureHead(split, open_engine("onnxruntime", artifact, folder, threads))


def reduce_picture(picture: Image, most_pixels: int) -> Reduced:
    """``picture`` (RGB) with its aspect kept at no more than ``most_pixels``, as JPEG without metadata."""
    from PIL import Image as Pictures

    if most_pixels < 1:
        raise BadInput("reducing a picture to", most_pixels, "it is below 1 pixel", "Give 1 or more")
    ratio = min(1.0, math.sqrt(most_pixels / (picture.width * picture.height)))
    width, height = max(1, int(picture.width * ratio)), max(1, int(picture.height * ratio))
    width, height = min(width, most_pixels // height or 1), min(height, most_pixels)
    small = picture.convert("RGB").resize((width, height), Pictures.Resampling.LANCZOS)
    small.info = {}  # Pillow carries the source file's comment here, and would write it
    out = io.BytesIO()
    small.save(out, "JPEG", quality=JPEG_QUALITY)
    return Reduced(out.getvalue(), width * height)


def payload(privacy: Privacy, frame: Sendable) -> dict[str, NDArray[Any]]:
    """The tensors to send for ``frame``. Raises BadInput for what the rule does not let leave."""
    doing, rule = "sending under the privacy rule", privacy.rule
    if isinstance(frame, Features):
        if privacy.head_sha256 and frame.head_sha256 != privacy.head_sha256:
            why = "the features come from another head than the one that was declared"
            raise BadInput(doing, rule, why, "Use the head of this split model")
        return frame.tensors
    if isinstance(frame, Reduced) and rule != "features-only":
        if rule == "reduced" and frame.pixels > privacy.most_pixels:
            why = f"the picture has {frame.pixels} pixels, {privacy.most_pixels} may leave"
            raise BadInput(doing, rule, why, "Reduce it further")
        return {PICTURE: np.array([frame.jpeg], object)}
    if isinstance(frame, Raw) and rule == "raw":
        return dict(frame.tensors)
    cure = "Give the Features of the declared head" if rule == "features-only" else "Give a Reduced picture"
    raise BadInput(doing, rule, f"a {type(frame).__name__} may not leave the device", cure)


def check_privacy(privacy: Privacy) -> None:
    """Raise BadInput for ``features-only`` without a declared head."""
    if privacy.rule == "features-only" and not privacy.head_sha256:
        why = "no head is declared"
        raise BadInput(
            "setting the privacy rule", privacy.rule, why, "Give the hash of the head (Split.head)"
        )
