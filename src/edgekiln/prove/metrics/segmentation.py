"""Mean intersection over union of class maps (Everingham et al., IJCV 88, 2010), and pixel accuracy.

Intersections and unions are summed per class over all pictures, then divided, then averaged over the classes
that occur in the labels or in the answer. Labels are brought into the model's frame by its own geometry
without interpolation, and the answer to the frame's size; what lies outside the picture is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.files import sha256_file
from edgekiln.job import MetricOrder
from edgekiln.model.preprocess import MAX_FILE_BYTES, MAX_PIXELS, frame, image_size
from edgekiln.prove.metrics.outputs import chosen
from edgekiln.prove.metrics.score import Labelled
from edgekiln.records import Dataset, Model, Preprocess, Record, Task

MAX_CLASSES = 255
VOID = 255


class Mask(Record, frozen=True, kw_only=True):
    """A picture of class indices on disk."""

    path: str
    sha256: str


class Areas:
    """Per class: intersections and unions of (n, C) pixels, and of each picture (right, all) pixels."""

    def __init__(self, rows: Sequence[NDArray[np.int64]]) -> None:
        table = np.asarray(rows, np.float64)
        self.hits = None
        self.each = table.reshape(len(table), -1)
        self._inter, self._union = table[:, 0, :-1], table[:, 1, :-1]
        right, pixels = table[:, 0, -1].sum(), table[:, 1, -1].sum()
        score = float(self.at(np.ones((1, len(table)), np.int64))[0])
        known = pixels > 0 and np.isfinite(score)
        self.figures = {"miou": score, "pixel_accuracy": float(right / pixels)} if known else {}

    def at(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        inter, union = counts @ self._inter, counts @ self._union
        there = union > 0
        shares = np.divide(inter, union, out=np.zeros_like(inter), where=there).sum(axis=1)
        number = there.sum(axis=1)
        found: NDArray[np.float64] = np.full(len(counts), np.nan)
        np.divide(shares, number, out=found, where=number > 0)
        return found


class Segmentation:
    task: Task = "segmentation"
    title = "mIoU"
    likeness = "mIoU against the float model's own class map"
    lower_is_better = False

    def __init__(self, order: MetricOrder, spec: Preprocess | None, classes: int) -> None:
        self._order, self._spec, self._classes = order, spec, classes

    def decode(self, outputs: Arrays, inputs: Arrays) -> NDArray[np.uint8]:
        """(h, w) class indices: the largest score, or with one channel whether it passes the threshold."""
        values = np.asarray(chosen(outputs, self._order.outputs)[0])
        values = values[0] if values.ndim > 2 else values
        if values.ndim == 2 or (values.dtype.kind in "iub" and 1 in values.shape):
            whole = values.reshape([n for n in values.shape if n != 1] or [1, 1])
            if whole.dtype.kind == "f" and self._classes == 2:
                return np.asarray(whole > self._order.threshold, np.uint8)
            return np.asarray(np.clip(whole, 0, VOID), np.uint8)
        axis = 2 if self._order.channels_last else 0
        if values.shape[axis] == 1:
            return np.asarray(np.take(values, 0, axis) > self._order.threshold, np.uint8)
        return np.asarray(np.argmax(values, axis=axis), np.uint8)

    def truth(self, decoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return decoded

    def row(self, decoded: NDArray[np.uint8], truth: Any) -> NDArray[np.int64]:
        """(2, C + 1): intersections, unions; the last column counts right and all pixels."""
        wanted = self._framed(truth) if isinstance(truth, Mask) else truth
        found = _resized(decoded, wanted.shape)
        keep = wanted != self._order.ignore if isinstance(truth, Mask) else np.ones(wanted.shape, bool)
        bins, a, b = self._classes, wanted[keep].astype(np.int64), found[keep].astype(np.int64)
        inter = np.bincount(a[a == b], minlength=bins)[:bins]
        union = np.bincount(a, minlength=bins)[:bins] + np.bincount(b, minlength=bins)[:bins] - inter
        return np.array([[*inter, int((a == b).sum())], [*union, a.size]], np.int64)

    def scores(self, rows: Sequence[Any]) -> Areas:
        return Areas(rows)

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        """Masks of the same name as their pictures, whatever the suffix; PNG, class indices as values."""
        if given is None or not given.is_dir():
            why = "no folder of masks was given" if given is None else "there is no such folder"
            cure = 'Give [metric] labels = "masks/": one PNG of class indices per picture, of its name'
            raise BadInput("reading the masks", given or dataset.root, why, cure)
        masks = {p.relative_to(given).with_suffix("").as_posix(): p for p in sorted(given.rglob("*.png"))}
        truths: list[Mask | None] = []
        reasons: dict[str, str] = {}
        for sample in dataset.samples:
            name = Path(sample.path).with_suffix("").as_posix()
            file = masks.get(name) or masks.get(Path(name).name)
            why = "it has no mask" if file is None else self._wrong(file, Path(dataset.root) / sample.path)
            truths.append(None if file is None or why else Mask(path=str(file), sha256=sha256_file(file)))
            reasons |= {sample.path: why} if why else {}
        return Labelled(truths=tuple(truths), reasons=reasons)

    def _wrong(self, file: Path, picture: Path) -> str:
        """Why the mask can't judge its picture; "" where it can."""
        try:
            values = indices(file)
        except BadInput as error:
            return f"its mask can't be read: {error.why}"
        if self._spec is not None and picture.suffix not in (".npz", ".npy"):
            size = image_size(picture)
            if values.shape != size:
                have, want = ("x".join(map(str, s)) for s in (values.shape, size))
                return f"its mask is of {have} pixels, the picture of {want}"
        known = (values < self._classes) | (values == self._order.ignore)
        if not known.all():
            worst = int(values[~known].max())
            return f"its mask holds class {worst}; the model has {self._classes}"
        return ""

    def _framed(self, mask: Mask) -> NDArray[np.uint8]:
        from PIL import Image

        values = indices(Path(mask.path))
        if self._spec is None:
            return values
        change = {"interpolation": "nearest", "colour": "GRAY", "pad": self._order.ignore}
        return np.asarray(frame(msgspec.structs.replace(self._spec, **change), Image.fromarray(values)))


def indices(file: Path) -> NDArray[np.uint8]:
    """(h, w) of a PNG's values: palette indices or 8-bit grey. Raises BadInput for any other picture."""
    from PIL import Image

    doing, cure = "reading the mask", "Save class indices as an 8-bit grey or palette PNG"
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(doing, file, "the file is too large", cure)
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.size[0] * picture.size[1] > MAX_PIXELS or picture.mode not in ("L", "P", "1"):
                raise BadInput(doing, file, f"it is no picture of indices (mode {picture.mode})", cure)
            return np.asarray(picture, np.uint8)
    except BadInput:
        raise
    except Exception as error:  # a broken file makes decoders raise nearly anything
        raise BadInput(doing, file, str(error) or type(error).__name__, cure) from error


def _resized(classes: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Nearest neighbour at pixel centres."""
    if classes.shape == shape:
        return classes
    picks = [
        ((np.arange(n) + 0.5) * have / n).astype(int) for n, have in zip(shape, classes.shape, strict=True)
    ]
    return classes[np.ix_(*picks)]


def make(order: MetricOrder, model: Model) -> Segmentation:
    """Raises BadInput where the number of classes is neither given nor read from the output."""
    specs = {s.name: s for s in model.signature.outputs}
    spec = specs.get(order.outputs[0]) if order.outputs else model.signature.outputs[0]
    shape = spec.shape if spec is not None else ()
    channels = shape[-1 if order.channels_last else 1] if len(shape) == 4 else None
    known = (
        channels if isinstance(channels, int) and spec is not None and spec.dtype.startswith("float") else 0
    )
    classes = order.classes or (2 if known == 1 else known)
    if not 2 <= classes <= MAX_CLASSES:
        why = f"the output {'x'.join(map(str, shape))} does not say how many classes there are (2 to 255)"
        cure = "Give [metric] classes = N; channels_last = true for an output of height x width x classes"
        raise BadInput("preparing the metric of", model.name, why, cure)
    return Segmentation(order, model.preprocess, classes)
