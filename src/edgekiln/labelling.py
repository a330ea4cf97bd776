"""The labels of a job in the form of its task's metric: classes, boxes, masks, texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.files import sha256_record
from edgekiln.job import Job, MetricOrder
from edgekiln.model import data, onnx_file
from edgekiln.prove.metrics import Metric
from edgekiln.records import Dataset, Model, Rejected

MAX_CHARSET_BYTES = 16 << 20
MAX_LABELS_BYTES = 16 << 20


def metric_order(job: Job, folder: Path, model: Model) -> MetricOrder:
    """[metric] with paths that are found, and the charset read from its file or the model's metadata."""
    order = job.metric
    labels = None if order.labels is None else str(job.path(order.labels))
    characters: tuple[str, ...] = ()
    if order.charset is not None and order.charset.startswith("metadata:"):
        key = order.charset.removeprefix("metadata:")
        kept = onnx_file.metadata(folder / model.path)
        if key not in kept:
            cure = did_you_mean(key, kept) if kept else "Give a file with one character a line"
            raise BadInput("reading the charset from", model.name, f"it has no metadata '{key}'", cure)
        characters = tuple(kept[key].rstrip("\n").split("\n"))
    elif order.charset is not None:
        characters = read_characters(job.path(order.charset))
    return msgspec.structs.replace(order, labels=labels, characters=characters)


def classes_of(model: Model, root: Path) -> tuple[str, ...] | None:
    """The class names by which ``root`` is labelled; None where its labels lie elsewhere."""
    if model.task == "embedding" and not model.labels:
        return data.class_names(root)
    return model.labels if model.task in ("classification", "embedding", "tensors") else None


def labelled(
    found: Dataset, model: Model, order: MetricOrder, metric: Metric | None
) -> tuple[Dataset, tuple[Any, ...]]:
    """The samples of ``found`` that have a truth, and the truths; each other one is a rejected row.

    Raises BadInput where the labels can't be used, or no sample has one.
    """
    if metric is None or model.task == "classification":
        _check_classes(found, model)
        return found, tuple(s.label for s in found.samples)
    labels = metric.labels(None if order.labels is None else Path(order.labels), found)
    pairs = [(s, t) for s, t in zip(found.samples, labels.truths, strict=True) if t is not None]
    if not pairs:
        path, why = next(iter(labels.reasons.items()))
        cure = "Check that labels and pictures belong together"
        raise BadInput(
            "labelling the data in", found.root, f"no sample has a usable label; {path}: {why}", cure
        )
    rejected = [*found.rejected, *(Rejected(path=p, reason=why) for p, why in labels.reasons.items())]
    kept = tuple(s for s, _ in pairs)
    truths = tuple(t for _, t in pairs)
    digest = found.sha256 if len(kept) == len(found.samples) else sha256_record(kept)
    changed = msgspec.structs.replace(found, samples=kept, rejected=tuple(rejected), sha256=digest)
    return changed, truths


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line; blank lines at the end do not count."""
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise BadInput(
                "reading the labels", path, "the file is larger than 16 MiB", "Give one name a line"
            )
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError as error:
        raise BadInput("reading the labels", path, "there is no such file", "Check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            "reading the labels", path, f"it is no UTF-8 text ({error})", "Save it as UTF-8"
        ) from error
    if not names:
        raise BadInput("reading the labels", path, "it is empty", "Give one class name a line")
    return tuple(name.strip() for name in names)


def read_characters(path: Path) -> tuple[str, ...]:
    """A charset, one character a line; a line may be a space. Raises BadInput for no UTF-8 text."""
    doing, cure = "reading the charset", "Give a UTF-8 file with one character a line"
    try:
        if path.stat().st_size > MAX_CHARSET_BYTES:
            raise BadInput(doing, path, "the file is larger than 16 MiB", cure)
        found = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(doing, path, f"it can't be read ({error})", cure) from error
    return tuple(line.rstrip("\r") for line in found)


def _check_classes(dataset: Dataset, model: Model) -> None:
    """Every label is an index into the model's scores."""
    if model.task != "classification":
        raise BadInput(
            "reading the labelled data",
            dataset.root,
            f"the model's task is '{model.task}', which has no classes",
            'Leave --eval out, or say task = "classification"',
        )
    scores = model.signature.outputs[0].shape
    axes = scores[1:] if len(scores) > 1 else scores
    classes = math.prod(n if isinstance(n, int) else 1 << 31 for n in axes)
    worst = max((s.label for s in dataset.samples if s.label is not None), default=0)
    if worst >= classes:
        raise BadInput(
            "reading the labelled data",
            dataset.root,
            f"label {worst} is not among the model's {classes} classes",
            "Check the labels, or the order of the class names",
        )
