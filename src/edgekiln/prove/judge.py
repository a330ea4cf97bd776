"""Judging one artifact by its outputs: parity with the float model, accuracy, and golden tensors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner
from edgekiln.errors import ConversionFailed
from edgekiln.prove import golden
from edgekiln.prove.accuracy import Tally, accuracy_evidence, bound_warning
from edgekiln.prove.apart import open_proof
from edgekiln.prove.flips import (
    Floats,
    LabelMargin,
    expected_drop,
    label_margin,
    label_move,
    leads,
)
from edgekiln.prove.metrics.score import Comparison, Metric, compare, metric_evidence, too_few
from edgekiln.prove.parity import ESTIMATED_ROWS, ParityStream, parity_evidence
from edgekiln.prove.statistics import wilson
from edgekiln.records import Artifact, Evidence, Golden, Record, Scalar, Task

KEPT_BYTES = 256 << 20
GOLDEN_SAMPLES = 2
ANSWER_BYTES = 64 << 10
"""The float model's answer to a sample is kept for the next artifact where it is smaller: boxes, not maps."""
MARGINS = 256
"""Samples that tell how close the float model's calls are, beside those that are compared."""


class Kept:
    """A stream that can be read again: its first samples stay in memory, up to a bound in bytes.

    ``source(start)`` yields the samples from index ``start`` on. Decoding a photograph costs as much
    as many an inference, and every artifact of a build is judged on the same ones.
    """

    def __init__(self, source: Callable[[int], Iterator[Arrays]], limit_bytes: int = KEPT_BYTES) -> None:
        self._source, self._limit = source, limit_bytes
        self._held: list[Arrays] = []
        self._bytes, self._whole = 0, False
        self._n: int | None = None

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

    @property
    def n(self) -> int:
        """How many samples there are; the first call reads them all."""
        if self._n is None:
            self._n = sum(1 for _ in self)
        return self._n


@dataclass(frozen=True)
class Reference:
    """The float model's outputs over the holdout and the labelled data, and its own tally.

    ``metric`` is the task's own where it is not a classifier's; ``labels`` are then its truths, and ``rows``
    what the float model scored on them. ``margins`` gives ``flips.leads`` of a classifier on further samples,
    ``label_margins`` those of a classifier's labels. ``answers`` are kept as they are made, by sample.
    """

    task: Task
    holdout: Kept
    holdout_outputs: Kept
    evaluation: Kept | None
    labels: tuple[Any, ...]
    tally: Tally = field(default_factory=Tally)
    metric: Metric | None = None
    rows: list[Any] = field(default_factory=list)
    margins: Callable[[], tuple[Floats, ...]] = tuple
    label_margins: list[LabelMargin] = field(default_factory=list)
    answers: dict[int, tuple[Any, Any]] = field(default_factory=dict)


class Judged(Record, frozen=True, kw_only=True):
    """``evidence`` says ``measured``: outputs of the proof engine on this machine. The build says
    ``emulated`` instead where the device is another. ``golden`` names files in the step's folder.
    ``top1`` are the artifact's hits on the labelled samples that it saw, ``float_top1`` the float model's
    on the same ones."""

    evidence: tuple[Evidence, ...]
    top1: tuple[bool, ...]
    float_top1: tuple[bool, ...]
    golden: Golden


def score_of(outputs: Arrays) -> NDArray[Any]:
    """The first output holds the class scores."""
    return np.asarray(next(iter(outputs.values())))


def reference(
    task: Task,
    run: Callable[[Arrays], dict[str, NDArray[Any]]],
    holdout: Callable[[int], Iterator[Arrays]],
    evaluation: Callable[[int], Iterator[Arrays]] | None,
    labels: Iterable[Any],
    limit_bytes: int = KEPT_BYTES,
    metric: Metric | None = None,
    further: Callable[[], Iterable[Arrays]] = tuple,
) -> Reference:
    """Run the float model over both data sets. Its outputs are kept like the inputs, within a bound.

    ``further`` gives samples of the same field, of which a classifier's margins are taken: ``MARGINS`` at
    most.
    """
    inputs = Kept(holdout, limit_bytes)

    def outputs(start: int) -> Iterator[Arrays]:
        for number, sample in enumerate(inputs):
            if number >= start:
                yield run(sample)

    made = Reference(
        task=task,
        holdout=inputs,
        holdout_outputs=Kept(outputs, limit_bytes),
        evaluation=None if evaluation is None else Kept(evaluation, limit_bytes),
        labels=tuple(labels),
        metric=metric,
        margins=functools.cache(lambda: tuple(_margins(score_of(run(s)) for s in further()))),
    )
    for sample, label in zip(made.evaluation or (), made.labels, strict=True):
        if metric is None:
            scores = score_of(run(sample))
            made.tally.add(scores, label)
            made.label_margins.append(label_margin(scores, label, made.tally.top1[-1]))
        else:
            made.rows.append(metric.row(metric.decode(run(sample), sample), label))
    return made


def _margins(scores: Iterable[NDArray[Any]]) -> Iterator[Floats]:
    return (leads(s) for s in itertools.islice(scores, MARGINS) if np.isfinite(s).all())


@dataclass(frozen=True)
class Bound:
    """At most ``samples`` of each data set are shown to an artifact; ``why`` names what is slow."""

    samples: int
    why: str


@dataclass(frozen=True)
class _Compared:
    """What one pass over both data sets showed. ``float_tally`` is of the same labelled samples."""

    evidence: tuple[Evidence, ...]
    tally: Tally
    float_tally: Tally
    firsts: tuple[Arrays, ...]


def judge(
    artifact: Artifact,
    folder: Path,
    against: Reference,
    threads: int,
    where: str,
    into: Path,
    bound: Bound | None = None,
) -> Judged:
    """Open ``artifact`` with its proof engine and compare it with the float model.

    Raises NotRunnableHere or MissingExtra where it can't be opened, ConversionFailed where an output
    holds NaN or infinity: such an artifact is never a candidate.
    """
    runner = open_proof(artifact, folder, threads)
    try:
        found = _compared(runner, artifact, against, threads, where, bound)
        made = golden.record(runner, artifact, found.firsts, into)
    finally:
        runner.close()
    return Judged(
        evidence=found.evidence,
        top1=tuple(found.tally.top1),
        float_top1=tuple(found.float_tally.top1),
        golden=made,
    )


def judge_at(
    size: tuple[int, int],
    artifact: Artifact,
    folder: Path,
    against: Reference,
    threads: int,
    where: str,
    bound: Bound | None = None,
    base: Reference | None = None,
) -> tuple[Evidence, ...]:
    """The same figures at another (height, width): ``sqnr_db@320x416`` and so on.

    ``against`` is the float model at that size, on the same pictures prepared to it; ``base`` the float model
    at its own size. A classifier gets ``base_agreement`` with that one too, which is what a smaller input
    costs: at its own size a small picture agrees with itself. Raises as ``judge``.
    """
    runner = open_proof(artifact, folder, threads, size)
    try:
        found = _compared(runner, artifact, against, threads, where, bound, base).evidence
    finally:
        runner.close()
    return tuple(msgspec.structs.replace(e, what=f"{e.what}@{size[0]}x{size[1]}") for e in found)


def spread(n: int, most: int | None) -> frozenset[int]:
    """At most ``most`` of the indices below ``n``, at even distances: data sets are sorted by class."""
    if most is None or most >= n:
        return frozenset(range(n))
    return frozenset(i * n // most for i in range(most))


def _compared(
    runner: Runner,
    artifact: Artifact,
    against: Reference,
    threads: int,
    where: str,
    bound: Bound | None,
    base: Reference | None = None,
) -> _Compared:
    environment: dict[str, Scalar] = {"engine": artifact.proof_engine, "threads": threads}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    most = None if bound is None else bound.samples
    # Counting reads the whole stream once, which is only needed where a part of it is chosen.
    shown = None if most is None else spread(against.holdout.n, most)
    labelled = spread(len(against.labels), most)
    if bound is not None and shown is not None:
        left_out = [(len(shown), against.holdout.n, ""), (len(labelled), len(against.labels), "labelled ")]
        parts = [f"{part} of {n} {kind}samples" for part, n, kind in left_out if part < n]
        if parts:
            environment["samples_bounded"] = f"{', '.join(parts)}: {bound.why}"
    stream = ParityStream(against.task, against.margins())
    firsts: list[Arrays] = []
    own, likeness = against.metric, _Likeness(against.metric, against.answers)
    same_class: list[bool] = []
    whole = against.holdout_outputs if base is None else base.holdout_outputs
    triples = zip(against.holdout, against.holdout_outputs, whole, strict=True)
    for number, (sample, expected, at_base) in enumerate(triples):
        if shown is not None and number not in shown:
            continue
        if len(firsts) < GOLDEN_SAMPLES:
            firsts.append(sample)
        answer = runner(sample)
        stream.add(expected, answer)
        likeness.add(number, sample, expected, answer)
        if base is not None and against.task == "classification":
            tops = (np.argmax(score_of(outputs), axis=-1).reshape(-1) for outputs in (at_base, answer))
            same_class.extend(np.equal(*tops).tolist())
    parity = stream.result()
    _check_finite(parity.outputs, artifact)
    same = against.tally.part(labelled)
    tally = Tally()
    if own is not None:
        rows = []
        for _, sample, outputs, label in _labelled(runner, against, artifact, labelled):
            rows.append(own.row(own.decode(outputs, sample), label))
        of_float = [row for i, row in enumerate(against.rows) if i in labelled]
        found = (likeness.result(), compare(own, of_float, rows, labelled=True))
        parities = parity_evidence(parity, "measured", where, when, environment)
        evidence = (
            *(e for e in parities if not e.what.startswith("agreement")),
            *(e for c in found for e in metric_evidence(own, c, "measured", where, when, environment)),
        )
        return _Compared(evidence, tally, same, tuple(firsts))
    margins, moved = [], []
    for number, _, outputs, label in _labelled(runner, against, artifact, labelled):
        tally.add(score_of(outputs), label)
        margins.append(against.label_margins[number])
        moved.append(label_move(margins[-1], score_of(outputs)))
    accuracy = accuracy_evidence(tally, same, "measured", where, when, environment)
    agreed = [_base_agreement(same_class, where, when, environment)] if same_class else []
    evidence = (
        *parity_evidence(parity, "measured", where, when, environment),
        *accuracy,
        _expected(next(e for e in accuracy if e.what == "accuracy_drop"), margins, moved),
        *agreed,
    )
    return _Compared(evidence, tally, same, tuple(firsts))


def _base_agreement(same: Sequence[bool], where: str, when: str, environment: dict[str, Scalar]) -> Evidence:
    return Evidence(
        what="base_agreement",
        unit="fraction",
        value=sum(same) / len(same),
        how="measured",
        where=where,
        when=when,
        n=len(same),
        interval=wilson(sum(same), len(same)),
        environment=environment,
    )


def _expected(drop: Evidence, margins: Sequence[LabelMargin], moved: Sequence[float]) -> Evidence:
    """``accuracy_drop_expected``, of the same samples as the counted ``drop``."""
    reason = drop.reason
    if not reason and len(margins) > ESTIMATED_ROWS:
        reason = f"the count of {len(margins)} samples is as sure"
    if not reason and not margins[0].leads.size:
        reason = "there is one class alone"
    if not reason and not all(np.isfinite(m.leads).all() for m in margins):
        reason = "the float model's scores hold NaN or infinity"
    value, interval = (None, None) if reason else expected_drop(margins, moved)
    how = None if reason else drop.how
    return msgspec.structs.replace(
        drop, what="accuracy_drop_expected", value=value, interval=interval, how=how, reason=reason
    )


class _Likeness:
    """The metric's agreement with the float model, a sample at a time; without a metric it does nothing.

    ``answers`` are the float model's truth and row by sample: every artifact is held against the same ones.
    """

    def __init__(self, metric: Metric | None, answers: dict[int, tuple[Any, Any]]) -> None:
        self._metric, self._answers = metric, answers
        self._reference: list[Any] = []
        self._candidate: list[Any] = []
        self._reason = ""

    def add(self, number: int, sample: Arrays, expected: Arrays, found: Arrays) -> None:
        if self._metric is None:
            return
        if _broken(expected) or _broken(found):
            # A sample left out must not leave a clean-looking figure of the others behind.
            self._reason = "an output holds NaN or infinity, so that nothing can be decoded"
            return
        if (known := self._answers.get(number)) is None:
            own = self._metric.decode(expected, sample)
            truth = self._metric.truth(own)
            known = truth, self._metric.row(own, truth)
            if _nbytes(known) <= ANSWER_BYTES:
                self._answers[number] = known
        truth, row = known
        self._reference.append(row)
        self._candidate.append(self._metric.row(self._metric.decode(found, sample), truth))

    def result(self) -> Comparison:
        assert self._metric is not None
        if self._reason:
            return Comparison(n=len(self._reference), labelled=False, reason=self._reason)
        return compare(self._metric, self._reference, self._candidate, labelled=False)


def _nbytes(held: Any) -> int:
    """What the arrays in nested tuples take."""
    if isinstance(held, tuple):
        return sum(map(_nbytes, held))
    return held.nbytes if isinstance(held, np.ndarray) else 0


def sample_warning(judged: Iterable[Judged], against: Reference, bound: float | None) -> str | None:
    """One sentence where the samples can't support the bound on the drop of accuracy or of the metric."""
    if bound is None:
        return None
    if against.metric is not None:
        return _metric_warning(judged, bound)
    if not against.labels:
        return None
    # Those that saw the most samples first: a few of a slow simulator say nothing about the data set.
    most = sorted(judged, key=lambda j: -len(j.top1))
    found = (bound_warning(j.float_top1, j.top1, bound) for j in most)
    return next((w for w in found if w is not None), None)


def _metric_warning(judged: Iterable[Judged], bound: float) -> str | None:
    """The same for a metric of its own: from the drop on labels, else from the agreement."""
    rows = [e for j in judged for e in j.evidence if e.value is not None and e.n and e.interval is not None]
    for what, words, kind in (("metric_drop", "drop", "labelled "), ("agreement", "loss of agreement", "")):
        named = sorted((e for e in rows if e.what == what), key=lambda e: -(e.n or 0))
        for e in named:
            assert e.value is not None
            assert e.interval is not None
            assert e.n is not None
            title = f"{e.environment['metric']} {words}" if kind else words
            found = too_few(e.n, e.value, e.interval, bound, title, kind)
            if found is not None:
                return found
        if named:
            return None
    return None


def _labelled(
    runner: Runner, against: Reference, artifact: Artifact, shown: frozenset[int]
) -> Iterator[tuple[int, Arrays, Arrays, Any]]:
    """(number, sample, outputs, label) of the labelled samples in ``shown``; the outputs are finite."""
    for number, (sample, label) in enumerate(zip(against.evaluation or (), against.labels, strict=True)):
        if number not in shown:
            continue
        outputs = runner(sample)
        broken = _broken(outputs)
        if broken is not None:
            raise _not_finite(
                artifact, f"output '{broken}' holds NaN or infinity on labelled sample {number}"
            )
        yield number, sample, outputs, label


def _broken(outputs: Arrays) -> str | None:
    """The name of the first output with NaN or infinity."""
    return next((n for n, v in outputs.items() if not np.isfinite(np.asarray(v)).all()), None)


def _check_finite(outputs: Iterable[Any], artifact: Artifact) -> None:
    broken = next((o for o in outputs if o.nonfinite), None)
    if broken is not None:
        raise _not_finite(artifact, broken.reason or f"output '{broken.name}' holds NaN or infinity")


def _not_finite(artifact: Artifact, why: str) -> ConversionFailed:
    cure = "Use a recipe of wider range (fp32 or bf16 instead of fp16), or another observer"
    return ConversionFailed("proving", artifact.id, why, cure)
