"""Judging one artifact by its outputs: parity with the float model, accuracy, and golden tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.errors import ConversionFailed
from edgekiln.prove import golden
from edgekiln.prove.accuracy import Tally, accuracy_evidence, bound_warning
from edgekiln.prove.parity import ParityStream, parity_evidence
from edgekiln.records import Artifact, Evidence, Golden, Record, Scalar, Task

KEPT_BYTES = 256 << 20
GOLDEN_SAMPLES = 2


class Kept:
    """A stream that can be read again: its first samples stay in memory, up to a bound in bytes.

    ``source(start)`` yields the samples from index ``start`` on. Decoding a photograph costs as much
    as many an inference, and every artifact of a build is judged on the same ones.
    """

    def __init__(self, source: Callable[[int], Iterator[Arrays]], limit_bytes: int = KEPT_BYTES) -> None:
        self._source, self._limit = source, limit_bytes
        self._held: list[Arrays] = []
        self._bytes, self._whole = 0, False

    def __iter__(self) -> Iterator[Arrays]:
        # Several readers may be under way at once; what is held is always a prefix of the stream.
        position = 0
        while position < len(self._held):
            yield self._held[position]
            position += 1
        if self._whole:
            return
        for sample in self._source(position):
            size = sum(np.asarray(a).nbytes for a in sample.values())
            if len(self._held) == position and self._bytes + size <= self._limit:
                self._held.append(sample)
                self._bytes += size
            position += 1
            yield sample
        self._whole = len(self._held) == position


@dataclass(frozen=True)
class Reference:
    """The float model's outputs over the holdout and the labelled data, and its own tally."""

    task: Task
    holdout: Kept
    holdout_outputs: Kept
    evaluation: Kept | None
    labels: tuple[int, ...]
    tally: Tally = field(default_factory=Tally)


class Judged(Record, frozen=True, kw_only=True):
    """``evidence`` says ``measured``: outputs of the proof engine on this machine. The build says
    ``emulated`` instead where the device is another. ``golden`` names files in the step's folder."""

    evidence: tuple[Evidence, ...]
    top1: tuple[bool, ...]
    golden: Golden


def score_of(outputs: Arrays) -> NDArray[Any]:
    """The first output holds the class scores."""
    return np.asarray(next(iter(outputs.values())))


def reference(
    task: Task,
    run: Callable[[Arrays], dict[str, NDArray[Any]]],
    holdout: Callable[[int], Iterator[Arrays]],
    evaluation: Callable[[int], Iterator[Arrays]] | None,
    labels: Iterable[int],
) -> Reference:
    """Run the float model over both data sets. Its outputs are kept like the inputs, within a bound."""
    inputs = Kept(holdout)

    def outputs(start: int) -> Iterator[Arrays]:
        for number, sample in enumerate(inputs):
            if number >= start:
                yield run(sample)

    made = Reference(
        task=task,
        holdout=inputs,
        holdout_outputs=Kept(outputs),
        evaluation=None if evaluation is None else Kept(evaluation),
        labels=tuple(labels),
    )
    for sample, label in zip(made.evaluation or (), made.labels, strict=True):
        made.tally.add(score_of(run(sample)), label)
    return made


def judge(
    artifact: Artifact, folder: Path, against: Reference, threads: int, where: str, into: Path
) -> Judged:
    """Open ``artifact`` with its proof engine and compare it with the float model.

    Raises NotRunnableHere or MissingExtra where it can't be opened, ConversionFailed where an output
    holds NaN or infinity: such an artifact is never a candidate.
    """
    runner = open_engine(artifact.proof_engine, artifact, folder, threads)
    try:
        environment: dict[str, Scalar] = {"engine": artifact.proof_engine, "threads": threads}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        stream = ParityStream(against.task)
        firsts: list[Arrays] = []
        for sample, expected in zip(against.holdout, against.holdout_outputs, strict=True):
            if len(firsts) < GOLDEN_SAMPLES:
                firsts.append(sample)
            stream.add(expected, runner(sample))
        parity = stream.result()
        _check_finite(parity.outputs, artifact)
        tally = _tally(runner, against, artifact)
        evidence = (
            *parity_evidence(parity, "measured", where, when, environment),
            *accuracy_evidence(tally, against.tally, "measured", where, when, environment),
        )
        made = golden.record(runner, artifact, firsts, into)
    finally:
        runner.close()
    return Judged(evidence=evidence, top1=tuple(tally.top1), golden=made)


def sample_warning(judged: Iterable[Judged], against: Reference, bound: float | None) -> str | None:
    """One sentence where the labelled samples can't support the bound on the accuracy drop."""
    if bound is None or not against.labels:
        return None
    found = (bound_warning(against.tally.top1, j.top1, bound) for j in judged)
    return next((w for w in found if w is not None), None)


def _tally(runner: Runner, against: Reference, artifact: Artifact) -> Tally:
    tally = Tally()
    for number, (sample, label) in enumerate(zip(against.evaluation or (), against.labels, strict=True)):
        outputs = runner(sample)
        broken = next((n for n, v in outputs.items() if not np.isfinite(np.asarray(v)).all()), None)
        if broken is not None:
            raise _not_finite(
                artifact, f"output '{broken}' holds NaN or infinity on labelled sample {number}"
            )
        tally.add(score_of(outputs), label)
    return tally


def _check_finite(outputs: Iterable[Any], artifact: Artifact) -> None:
    broken = next((o for o in outputs if o.nonfinite), None)
    if broken is not None:
        raise _not_finite(artifact, broken.reason or f"output '{broken.name}' holds NaN or infinity")


def _not_finite(artifact: Artifact, why: str) -> ConversionFailed:
    cure = "Use a recipe of wider range (fp32 or bf16 instead of fp16), or another observer"
    return ConversionFailed("proving", artifact.id, why, cure)
