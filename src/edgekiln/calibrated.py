"""What a build found its ranges on: samples, or the calibration file of an earlier build; and what it says
of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.baseline import float_runner
from edgekiln.cache import step
from edgekiln.compile.passes import observations
from edgekiln.compile.quantise.calibration_file import (
    NAME,
    CalibrationFile,
    header,
    read_calibration,
    write_calibration,
)
from edgekiln.compile.quantise.checks import confidence, observation_checks
from edgekiln.compile.recipes import recipe
from edgekiln.compile.workshop import Calibration, Validation, Workshop, tools
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.files import sha256_record
from edgekiln.intake import Intake, dataset_key, samples
from edgekiln.job import Job
from edgekiln.model.data import subset
from edgekiln.prove.accuracy import probabilities
from edgekiln.prove.judge import score_of
from edgekiln.prove.metrics import metric_of
from edgekiln.records import Artifact, Check, Dataset, Record

LOOKED_AT = 64
"""Samples of each data set that the float model's confidence is told of."""

OBSERVERS = ("onnx", "onnxruntime", "numpy")


class _Confidence(Record, frozen=True, kw_only=True):
    values: tuple[float, ...]


@dataclass(frozen=True)
class Given:
    """What the job says of calibration: the file of an earlier build, and how many processes observe."""

    file: CalibrationFile | None = None
    processes: int = 1


def given(job: Job) -> Given:
    """Reads the calibration file that the job names. Raises BadInput for one that can't be used."""
    file = None if job.calibration is None else read_calibration(job.path(job.calibration))
    return Given(file, job.search.calibrate_processes)


def calibration(intake: Intake, order: Given) -> Calibration | None:
    """The samples to find ranges on, with the ranges that the file brings.

    Without data the file stands alone: what needs the samples themselves fails with a cure.
    """
    data = intake.calibration
    own = None
    if data is not None:
        key = dataset_key(data, intake.model)
        own = Calibration(lambda: samples(intake, data), len(data.samples), key, processes=order.processes)
    if order.file is None:
        return own
    file = order.file
    kept = {file.header.graph_sha256: file.seen}
    remark = f"ranges from the calibration file of {file.header.samples} samples"
    if own is not None:
        return replace(own, sha256=f"{own.sha256}:{file.sha256}", remark=remark, kept=kept)
    return Calibration(_no_samples, file.header.samples, file.sha256, remark, kept, ranges_alone=True)


def validation(intake: Intake) -> Validation | None:
    """What a search holds its bound on: the job's own samples, and in any case the task's metric."""
    data, task = intake.validation, intake.model.task
    metric = metric_of(task, intake.metric, intake.model)
    how = sha256_record([task, intake.metric, intake.validation_truths])
    if data is None:
        return None if metric is None else Validation(sha256=how, metric=metric)
    key = f"{dataset_key(data, intake.model)}:{how}"
    return Validation(lambda: samples(intake, data), len(data.samples), key, intake.validation_truths, metric)


def _no_samples() -> Iterable[dict[str, NDArray[Any]]]:
    why = "a calibration file holds the ranges of one graph, no samples, and this recipe needs some"
    cure = "Give --data with pictures like those of the field, or choose a plain int8-static recipe"
    raise ConversionFailed("calibrating", "the recipe", why, cure)


def check_file(order: Given, shop: Workshop) -> None:
    """Raises BadInput for a file of another graph than the build's own."""
    file = order.file
    if file is None or file.header.graph_sha256 == shop.model_sha256:
        return
    theirs = file.header
    why = (
        f"it is of another graph ({theirs.model}, {theirs.graph_sha256[:12]}; this build's is "
        f"{shop.model_sha256[:12]})"
    )
    if theirs.tools != _observers():
        why += f"; it was made with {', '.join(f'{k} {v}' for k, v in theirs.tools.items())}"
    cure = "Calibrate again with --data; the model, its input size and the tools must be the same"
    raise BadInput("using the calibration file", NAME, why, cure)


def _observers() -> dict[str, str]:
    found = tools()
    return {name: found[name] for name in OBSERVERS}


# ---------------------------------------------------------------- after the build


def told_and_kept(
    intake: Intake, shop: Workshop, made: Iterable[Artifact], threads: int, out: Path
) -> tuple[Check, ...]:
    """The checks of what calibration rested on; writes the calibration file into ``out``.

    Nothing is written or said where no artifact rests on ranges of the shop's own graph: then an earlier
    build's file goes. What was observed is in the cache.
    """
    data = shop.calibration
    if data is None or not any(_rests_on_ranges(a.recipe) for a in made):
        (out / NAME).unlink(missing_ok=True)
        return ()
    seen = observations(shop, shop.graph, data)
    about = header(shop.model.name, shop.model_sha256, data.sha256, data.n, _observers())
    write_calibration(out / NAME, about, seen)
    checks = observation_checks(seen, data.n)
    return (
        (*checks, _domain(intake, shop.cache, threads)) if intake.model.task == "classification" else checks
    )


def _rests_on_ranges(name: str) -> bool:
    passes = {p.name for p in recipe(name).passes}
    return "quantise-static" in passes and not {"equalise", "qat"} & passes


def _domain(intake: Intake, cache: Path, threads: int) -> Check:
    """The float model's confidence on the calibration data against that on the labelled ones."""

    def of(data: Dataset | None) -> tuple[float, ...]:
        if data is None:
            return ()
        part = subset(data, LOOKED_AT)

        def produce(into: Path) -> _Confidence:
            runner = float_runner(intake, threads)
            return _Confidence(values=tuple(_confidences(runner(s) for s in samples(intake, part))))

        key = [intake.model.sha256, dataset_key(part, intake.model), threads]
        _, found, _ = step(cache, "confidence", key, _Confidence, produce)
        return found.values

    return confidence(of(intake.calibration), of(intake.evaluation))


def _confidences(outputs: Iterable[dict[str, NDArray[Any]]]) -> Iterator[float]:
    for one in outputs:
        yield float(np.max(probabilities(score_of(one)), axis=-1).mean())
