"""An artifact against the float model on the evaluation samples, by what the task is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.prove.accuracy import Tally, accuracy_drop, top_class
from edgekiln.prove.parity import ParityStream
from edgekiln.records import Artifact, Record
from quantisation import boxes, scenes
from quantisation.scenes import NANODET_SIZE, Scene

MAP_THRESHOLD = 0.3
"""Above it PP-OCR takes a pixel for text (rapidocr's ``thresh``)."""

Share = tuple[float, float]


class Judged(Record, frozen=True, kw_only=True):
    """``metric`` is the task's own, ``value`` the artifact's and ``reference`` the float model's.

    ``drop`` is what was lost of it (``interval``: 95 %, where the metric is a share of paired right answers).
    ``agreement`` is over samples with classes, ``sure`` over those of them where the float model gives its
    class at least 0.5. ``more`` says what else was compared.
    """

    samples: int
    metric: str
    value: float | None
    reference: float | None
    drop: float | None
    interval: Share | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    agreement_interval: Share | None = None
    sure: float | None = None
    sure_samples: int = 0
    more: str = ""


def judge(scene: Scene, folder: Path, artifact: Artifact, into: Path, threads: int) -> Judged:
    """Run the float graph in ONNX Runtime and the artifact in its own engine over ``folder/evaluation``."""
    reference = open_engine("onnxruntime", float_artifact("graph.onnx", "float"), folder, threads)
    candidate = open_engine(artifact.engine, artifact, into, threads)
    stream = ParityStream("classification" if scene.judge == "classes" else "tensors")
    task = _TASKS[scene.judge](scene)
    for place, sample in enumerate(scenes.arrays(folder / "evaluation")):
        expected = reference(sample)
        found = _same_names(expected, candidate(sample))
        stream.add(expected, found)
        task.add(place, expected, found)
    reference.close()
    candidate.close()
    result = stream.result()
    worst = result.worst
    sqnr = None if worst is None else worst.sqnr_db
    return task.result(
        samples=result.samples,
        sqnr_db=sqnr,
        agreement=result.agreement.value,
        agreement_interval=result.agreement.interval,
        sure=result.sure.value,
        sure_samples=result.sure.n,
    )


def _same_names(expected: Any, found: Any) -> dict[str, NDArray[Any]]:
    """A converter may rename outputs but keeps their order."""
    if set(expected) == set(found):
        return {name: found[name] for name in expected}
    return dict(zip(expected, found.values(), strict=True))


# ---------------------------------------------------------------- what each task is about


class _Task(Protocol):
    """Fed both models' outputs sample by sample; ``result`` adds its own figures to the common ones."""

    def add(self, place: int, expected: Any, found: Any) -> None: ...

    def result(self, **figures: Any) -> Judged: ...


class _Classes:
    def __init__(self, scene: Scene) -> None:
        self._labels = scene.labels
        self._tallies = Tally(), Tally()

    def add(self, place: int, expected: Any, found: Any) -> None:
        label = self._labels[place] if self._labels else None
        if label is None:
            return
        for tally, outputs in zip(self._tallies, (expected, found), strict=True):
            tally.add(next(iter(outputs.values())), label)

    def result(self, **figures: Any) -> Judged:
        before, after = (tally.top1 for tally in self._tallies)
        if not before:
            value = figures["agreement"]
            drop = None if value is None else 1 - value
            return Judged(metric="agreement", value=value, reference=1.0, drop=drop, **figures)
        drop = accuracy_drop(before, after)
        return Judged(
            metric="top-1",
            value=sum(after) / len(after),
            reference=sum(before) / len(before),
            drop=drop.value,
            interval=drop.interval,
            more=f"{drop.n} labelled: {drop.lost} lost, {drop.gained} gained",
            **figures,
        )


class _Boxes:
    def __init__(self, scene: Scene) -> None:
        self._expected = self._found = self._hits = 0

    def add(self, place: int, expected: Any, found: Any) -> None:
        before, after = (boxes.decode(outputs, NANODET_SIZE) for outputs in (expected, found))
        self._expected += len(before.scores)
        self._found += len(after.scores)
        self._hits += boxes.matched(before, after)

    def result(self, **figures: Any) -> Judged:
        total = self._expected + self._found
        value = 2 * self._hits / total if total else 1.0
        more = f"{self._expected} boxes of the float model, {self._found} found, {self._hits} the same"
        return Judged(metric="F1 of boxes", value=value, reference=1.0, drop=1 - value, more=more, **figures)


class _Map:
    def __init__(self, scene: Scene) -> None:
        self._shares: list[float] = []

    def add(self, place: int, expected: Any, found: Any) -> None:
        before, after = (next(iter(outputs.values())) > MAP_THRESHOLD for outputs in (expected, found))
        union = np.logical_or(before, after).sum()
        self._shares.append(float(np.logical_and(before, after).sum() / union) if union else 1.0)

    def result(self, **figures: Any) -> Judged:
        value = float(np.mean(self._shares))
        more = f"worst page {min(self._shares):.3f}"
        return Judged(metric="IoU of text", value=value, reference=1.0, drop=1 - value, more=more, **figures)


class _Embedding:
    def __init__(self, scene: Scene) -> None:
        self._pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def add(self, place: int, expected: Any, found: Any) -> None:
        self._pairs.append((_flat(expected), _flat(found)))

    def result(self, **figures: Any) -> Judged:
        before, after = (np.stack(side) for side in zip(*self._pairs, strict=True))
        before, after = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (before, after))
        value = float((before * after).sum(axis=1).mean())
        same = float(np.mean(_nearest(before) == _nearest(after)))
        more = f"nearest neighbour the same for {same:.1%}"
        return Judged(metric="cosine", value=value, reference=1.0, drop=1 - value, more=more, **figures)


def _flat(outputs: Any) -> NDArray[np.float64]:
    return np.ravel(next(iter(outputs.values()))).astype(np.float64)


def _nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each row's nearest other row, by cosine of rows of length 1."""
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    return np.asarray(products.argmax(axis=1))


class _Values:
    def __init__(self, scene: Scene) -> None:
        self._same = self._count = 0

    def add(self, place: int, expected: Any, found: Any) -> None:
        a, b = (top_class(next(iter(outputs.values()))) for outputs in (expected, found))
        self._same += int((a == b).sum())
        self._count += int(a.size)

    def result(self, **figures: Any) -> Judged:
        sqnr = figures["sqnr_db"]
        drop = None if sqnr is None else 10 ** (-sqnr / 10)
        value = None if drop is None else 1 - drop
        more = f"largest output the same for {self._same / max(1, self._count):.1%}"
        return Judged(metric="energy kept", value=value, reference=1.0, drop=drop, more=more, **figures)


_TASKS: dict[str, Callable[[Scene], _Task]] = {
    "classes": _Classes,
    "boxes": _Boxes,
    "map": _Map,
    "embedding": _Embedding,
    "values": _Values,
}
