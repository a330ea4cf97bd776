"""The float model as it came in, before any pass: what every artifact is held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekiln.cache import step
from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.intake import Intake, dataset_key, is_tensor, samples
from edgekiln.model.preprocess import COMMON, apply, normalised, open_image
from edgekiln.prove.judge import KEPT_BYTES, Reference, reference, score_of
from edgekiln.prove.metrics import metric_of
from edgekiln.prove.normalisation import better_normalisation
from edgekiln.records import Record


class _Warnings(Record, frozen=True, kw_only=True):
    sentences: tuple[str, ...]


def float_reference(intake: Intake, threads: int, limit_bytes: int = KEPT_BYTES) -> Reference:
    """The float model as it came in, before any pass: what every artifact is held against.

    ``limit_bytes`` bounds each stream that is kept in memory: a build of several sizes has several.
    """
    runner = float_runner(intake, threads)
    data = intake.evaluation
    task, model = intake.model.task, intake.model
    own = None if task == "classification" else metric_of(task, intake.metric, model)
    further = intake.calibration if task == "classification" else None
    return reference(
        intake.model.task,
        runner,
        lambda start: _from(samples(intake, intake.holdout), start),
        None if data is None else lambda start: _from(samples(intake, data), start),
        () if data is None else intake.truths,
        limit_bytes,
        own,
        tuple if further is None else lambda: samples(intake, further),
    )


def normalisation_warning(intake: Intake, threads: int, cache: Path) -> tuple[str, ...]:
    """Labels may say that another common normalisation fits the float model better."""
    own, data = intake.model.preprocess, intake.evaluation
    if own is None or data is None or intake.model.task != "classification":
        return ()

    def produce(into: Path) -> _Warnings:
        pictures = [s for s in data.samples if not is_tensor(s)]  # tensors come normalised
        shown = msgspec.structs.replace(data, samples=tuple(pictures))
        runner, name = float_runner(intake, threads), intake.model.signature.inputs[0].name
        others = [(n, normalised(own, n)) for n in COMMON if own.dtype == "float32"]
        sentence = better_normalisation(
            intake.model,
            shown,
            others,
            lambda sample, p: score_of(runner({name: apply(p, open_image(Path(data.root) / sample.path))})),
        )
        return _Warnings(sentences=(sentence,) if sentence else ())

    key = [intake.model.sha256, dataset_key(data, intake.model), [s.label for s in data.samples], threads]
    _, found, _ = step(cache, "normalisation", key, _Warnings, produce)
    return found.sentences


def float_runner(intake: Intake, threads: int) -> Runner:
    """The float model as it came in, opened in ONNX Runtime."""
    plain = float_artifact(intake.model.path, "float")
    return open_engine("onnxruntime", plain, intake.folder, threads)


def _from(stream: Iterator[Arrays], start: int) -> Iterator[Arrays]:
    for number, sample in enumerate(stream):
        if number >= start:
            yield sample
