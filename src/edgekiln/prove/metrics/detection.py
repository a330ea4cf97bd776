"""Mean average precision by COCO's definition: matching and figures are pycocotools' own.

AP at IoU 0.50 to 0.95 in steps of 0.05 over all classes and box sizes, at most 100 detections a picture
(Lin et al., ECCV 2014; cocodataset.org). Only the resampled scores of the bootstrap are added up here, from
pycocotools' matches, because it has no weights; with weights of one they equal its figures.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra
from edgekiln.job import MetricOrder
from edgekiln.model.labels import Classes
from edgekiln.model.preprocess import unframe
from edgekiln.prove.metrics.decoders import Found, Head, classes_of, detections
from edgekiln.prove.metrics.outputs import chosen
from edgekiln.prove.metrics.score import Labelled
from edgekiln.records import Dataset, Model, Preprocess, Record, Sample, Task

MAX_JSON_BYTES = 1 << 30
_DOING = "reading the annotations"
_CURE = "Give a JSON file in COCO's format: images, annotations and categories"


class Boxes(Record, frozen=True, kw_only=True):
    """The truth of one picture: boxes x, y, width, height, class indices, areas, crowds.

    ``size`` is (height, width) of the picture that the boxes are of; None where it is the frame itself.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[int, ...]
    areas: tuple[float, ...]
    crowd: tuple[bool, ...]
    size: tuple[int, int] | None = None


class Precision:
    """pycocotools' matches over (detections, truth) of every picture, and its figures."""

    hits = None

    def __init__(self, rows: Sequence[tuple[NDArray[np.float64], Boxes]]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            found = _evaluated(rows)
        n = len(rows)
        self._recalls = np.asarray(found.params.recThrs)
        self._kinds: list[_Class] = []
        images = found.evalImgs
        steps = len(found.params.iouThrs)
        self.each = np.zeros((n, steps))
        for k in range(len(found.params.catIds)):
            kind = _Class(images[k * n : (k + 1) * n], steps)
            if kind.wanted.sum() > 0:
                self._kinds.append(kind)
                self.each += kind.found
        precision = found.eval["precision"][..., 0, 0] if found.params.catIds else np.full((1, 1, 1), -1.0)
        known = precision > -1
        ap50 = precision[0][known[0]]
        self.figures = (
            {"map": float(precision[known].mean()), "map50": float(ap50.mean())} if known.any() else {}
        )

    def at(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = np.full(len(counts), np.nan)
        for draw, weights in enumerate(counts):
            classes = [k.ap(weights, self._recalls) for k in self._kinds]
            known = [ap for ap in classes if ap is not None]
            if known:
                scores[draw] = float(np.mean(known))
        return scores


class _Class:
    """One class over all pictures: detections in falling order of score, with their picture and matches."""

    def __init__(self, images: Sequence[dict[str, Any] | None], steps: int) -> None:
        held = [(i, e) for i, e in enumerate(images) if e is not None]
        none = np.zeros((steps, 0))
        scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in held)])
        matched = np.concatenate([none, *(e["dtMatches"] for _, e in held)], axis=1) > 0
        ignored = np.concatenate([none, *(e["dtIgnore"] for _, e in held)], axis=1) > 0
        owner = np.concatenate([np.zeros(0, int), *(np.full(len(e["dtScores"]), i) for i, e in held)])
        order = np.argsort(-scores, kind="mergesort")
        self._owner, self._right = owner[order], (matched & ~ignored)[:, order]
        self._wrong = (~matched & ~ignored)[:, order]
        self.wanted = np.zeros(len(images))
        self.found = np.zeros((len(images), steps))
        for i, e in held:
            self.wanted[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
            self.found[i] = ((e["dtMatches"] > 0) & ~(e["dtIgnore"] > 0)).sum(axis=1)

    def ap(self, weights: NDArray[np.int64], recalls: NDArray[np.float64]) -> float | None:
        """Average precision with each picture counted ``weights`` times; None without a box to find."""
        wanted = float(weights @ self.wanted)
        if wanted == 0:
            return None
        weight = weights[self._owner]
        right = np.cumsum(self._right * weight, axis=1)
        wrong = np.cumsum(self._wrong * weight, axis=1)
        precision = right / np.maximum(right + wrong, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
        recall = right / wanted
        picked = [p[np.searchsorted(r, recalls, side="left")] for p, r in zip(padded, recall, strict=True)]
        return float(np.mean(picked))


def _evaluated(rows: Sequence[tuple[NDArray[np.float64], Boxes]]) -> Any:
    """A COCOeval after evaluate and accumulate; crowds and areas as in the annotations."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, (detected, truth) in enumerate(rows):
        for box, kind, area, crowd in zip(truth.boxes, truth.classes, truth.areas, truth.crowd, strict=True):
            entry = {"id": len(truths) + 1, "image_id": image, "category_id": kind, "bbox": list(box)}
            truths.append(entry | {"area": area, "iscrowd": int(crowd), "ignore": 0})
        for x, y, w, h, score, kind in detected:
            entry = {"id": len(found) + 1, "image_id": image, "category_id": int(kind), "bbox": [x, y, w, h]}
            found.append(entry | {"score": score, "area": w * h, "iscrowd": 0})
    kinds = sorted({t["category_id"] for t in truths} | {d["category_id"] for d in found})
    shared = {"images": [{"id": i} for i in range(len(rows))], "categories": [{"id": k} for k in kinds]}
    sides = []
    for boxes in (truths, found):
        side = COCO()
        side.dataset = shared | {"annotations": boxes}
        side.createIndex()
        sides.append(side)
    run = COCOeval(*sides, "bbox")
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [100]
    run.evaluate()
    run.accumulate()
    return run


class Detection:
    task: Task = "detection"
    title = "mAP"
    lower_is_better = False

    def __init__(self, order: MetricOrder, head: Head, spec: Preprocess | None, model: Model) -> None:
        self._order, self._head, self._spec = order, head, spec
        self._names, self._model = model.labels, model.name
        shapes = {s.name: s.shape for s in model.signature.outputs}
        named = [shapes[n] for n in order.outputs if n in shapes] if order.outputs else list(shapes.values())
        self._classes = classes_of(order, named)
        floor = order.agreement_score
        self.likeness = f"mAP against the float model's own detections of score {floor:g} and above"

    def decode(self, outputs: Arrays, inputs: Arrays) -> Found:
        return detections(chosen(outputs, self._order.outputs), self._head)

    def truth(self, decoded: Found) -> Boxes:
        boxes, scores, kinds = decoded
        sure = scores >= self._order.agreement_score
        corners = boxes[sure]
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        return Boxes(
            boxes=tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in sides),
            classes=tuple(map(int, kinds[sure])),
            areas=tuple(float(w * h) for w, h in sides[:, 2:]),
            crowd=(False,) * int(sure.sum()),
        )

    def row(self, decoded: Found, truth: Boxes) -> tuple[NDArray[np.float64], Boxes]:
        """(n, 6) of x, y, width, height, score, class in the truth's pixels, and the truth."""
        boxes, scores, kinds = decoded
        if truth.size is not None and self._spec is not None:
            boxes = unframe(boxes, self._spec, truth.size)
        sides = boxes[:, 2:] - boxes[:, :2]
        return np.concatenate([boxes[:, :2], sides, scores[:, None], kinds[:, None]], 1), truth

    def scores(self, rows: Sequence[Any]) -> Precision:
        return Precision(rows)

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        """From COCO's JSON; pictures by ``file_name``, as a path below ``eval`` or its last part."""
        if given is None:
            why, cure = (
                "no annotations were given",
                'Give [metric] labels = "annotations.json" in COCO\'s format',
            )
            raise BadInput(_DOING, dataset.root, why, cure)
        table = _read(given)
        kinds = self._kinds(table["categories"], given)
        of_picture: dict[Any, list[dict[str, Any]]] = {}
        for one in table["annotations"]:
            of_picture.setdefault(one.get("image_id"), []).append(one)
        named = {str(i.get("file_name")): i for i in table["images"]}
        last = {Path(name).name: i for name, i in named.items()}
        truths: list[Boxes | None] = []
        reasons: dict[str, str] = {}
        for sample in dataset.samples:
            image = named.get(sample.path) or last.get(Path(sample.path).name)
            if image is None:
                truths.append(None)
                reasons[sample.path] = "it is not among the images of the annotations"
                continue
            made = _truth(of_picture.get(image.get("id"), []), kinds, self._size(image, sample, dataset))
            truths.append(made if isinstance(made, Boxes) else None)
            reasons |= {} if isinstance(made, Boxes) else {sample.path: made}
        return Labelled(truths=tuple(truths), reasons=reasons)

    def _size(self, image: dict[str, Any], sample: Sample, dataset: Dataset) -> tuple[int, int] | str | None:
        """The picture's size; a sentence where the annotations mean another picture; None for a tensor."""
        from edgekiln.model.preprocess import image_size

        if self._spec is None or Path(sample.path).suffix.lower() in (".npz", ".npy"):
            return None
        size = image_size(Path(dataset.root) / sample.path)
        said = (image.get("height", size[0]), image.get("width", size[1]))
        if said != size:
            return f"the annotations say {said[0]}x{said[1]} pixels, the picture has {size[0]}x{size[1]}"
        return size

    def _kinds(self, categories: Sequence[dict[str, Any]], given: Path) -> dict[Any, int]:
        """From category ids to the model's classes: by name where the model has labels, else in id order."""
        if not all(isinstance(c.get("id"), int) for c in categories):
            raise BadInput(_DOING, given, "a category has no number as its id", _CURE)
        if self._names:
            known = Classes(self._names)
            return {c["id"]: known.index(str(c.get("name")), given) for c in categories}
        ordered = sorted(c["id"] for c in categories)
        if self._classes is not None and len(ordered) > self._classes:
            why = f"they have {len(ordered)} categories, the model {self._classes} classes"
            raise BadInput(_DOING, given, why, "Give the model's labels, one name a line, to match by name")
        return {number: i for i, number in enumerate(ordered)}


def _truth(
    annotations: Sequence[dict[str, Any]], kinds: dict[Any, int], size: tuple[int, int] | str | None
) -> Boxes | str:
    """The picture's boxes, or why it can't be used."""
    if isinstance(size, str):
        return size
    boxes, classes, areas, crowd = [], [], [], []
    for one in annotations:
        kind, box = kinds.get(one.get("category_id")), one.get("bbox")
        if kind is None:
            return f"an annotation is of the unknown category {one.get('category_id')}"
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            return "an annotation has no bbox of four numbers"
        x, y, w, h = (float(v) for v in box)
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            return f"an annotation's bbox is {box}"
        boxes.append((x, y, w, h))
        classes.append(kind)
        areas.append(float(one.get("area", w * h)))
        crowd.append(bool(one.get("iscrowd", 0)))
    return Boxes(
        boxes=tuple(boxes), classes=tuple(classes), areas=tuple(areas), crowd=tuple(crowd), size=size
    )


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInput(_DOING, path, "the file is larger than 1 GiB", _CURE)
        table = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(_DOING, path, f"it can't be read ({error.strerror})", _CURE) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(_DOING, path, f"it is no JSON ({error})", _CURE) from error
    for key in ("images", "annotations", "categories"):
        rows = table.get(key) if isinstance(table, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise BadInput(_DOING, path, f"it has no list of '{key}'", _CURE)
    return dict(table)


def make(order: MetricOrder, model: Model) -> Detection:
    """Raises MissingExtra without pycocotools, BadInput where no decoder or no frame is known."""
    doing = "preparing the metric of"
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise MissingExtra(doing, model.name, "detection") from error
    if order.decoder is None:
        cure = 'Give [metric] decoder = "yolo", "nanodet" or "boxes"'
        raise BadInput(doing, model.name, "nothing says how its outputs become boxes", cure)
    spec = model.preprocess
    if spec is not None:
        return Detection(order, Head(height=spec.height, width=spec.width, order=order), spec, model)
    from edgekiln.model.signature import image_layout

    shape = model.signature.inputs[0].shape
    layout = image_layout(model.signature.inputs[0])
    sides = shape[2:] if layout == "NCHW" else shape[1:3] if layout == "NHWC" else ()
    if len(sides) != 2 or not all(isinstance(n, int) for n in sides):
        raise BadInput(doing, model.name, "its input is no picture of a known size", "Give [preprocess]")
    return Detection(order, Head(height=int(sides[0]), width=int(sides[1]), order=order), None, model)
