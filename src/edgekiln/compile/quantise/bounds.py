"""The bound that a search holds: on the task's own metric where labels exist, else on agreement.

A classifier's agreement on few samples is estimated from margins (``flips``); every other task is scored by
its metric, without labels against the float model's own answers. A model without a metric is held to
``SQNR_FLOOR_DB``. The value alone decides whether a bound holds; its interval says how sure that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgekiln.compile.quantise import simulate
from edgekiln.engines import Arrays
from edgekiln.prove.flips import Floats, leads
from edgekiln.prove.metrics import Metric, compare
from edgekiln.prove.parity import ParityStream
from edgekiln.records import Task

SQNR_FLOOR_DB = 20.0

Samples: TypeAlias = Callable[[], Iterable[Arrays]]
Runner: TypeAlias = Callable[[Arrays], dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """``value`` against ``limit`` (both: higher is better) on ``n`` samples; ``interval`` is the 95 % one.

    ``of_one``: the value is 1 less a drop, and is told as the drop.
    """

    what: str
    value: float
    limit: float
    n: int
    interval: tuple[float, float] | None
    remark: str = ""
    of_one: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit - 1e-12

    def sentence(self) -> str:
        unit = " dB" if self.what == "SQNR" else ""
        sure = ""
        if self.of_one:
            return self._as_drop()
        if self.interval is not None:
            sure = f", 95 % interval {self.interval[0]:.3f} to {self.interval[1]:.3f}; {self.remark}"
        sign = "at least" if self.holds else "below"
        return f"{self.what} {self.value:.4g}{unit}, {sign} {self.limit:.4g} (n = {self.n}{sure})"

    def _as_drop(self) -> str:
        sure = self.remark
        if self.interval is not None:
            sure = f"95 % interval {1 - self.interval[1]:.3f} to {1 - self.interval[0]:.3f}; {self.remark}"
        sign = "at most" if self.holds else "above"
        return f"{self.what} {1 - self.value:.4g}, {sign} {1 - self.limit:.4g} (n = {self.n}, {sure})"


@dataclass(frozen=True)
class Bound:
    """The question that each written model is asked: the float model's outputs, and what may be lost.

    ``outputs`` are the float model's on the validation samples, ``leads`` those of its scores on all others
    that there are; ``rows`` are its own rows of ``metric``. ``truths`` () means without labels.
    """

    task: Task
    drop: float
    samples: Samples
    outputs: list[dict[str, Any]]
    leads: tuple[Floats, ...] = ()
    metric: Metric | None = None
    truths: tuple[Any, ...] = ()
    rows: tuple[Any, ...] = ()

    def judge(self, runner: Runner) -> Verdict:
        """What the model behind ``runner`` (its outputs in the float model's order) keeps."""
        made = (
            dict(zip(expected, runner(sample).values(), strict=True))
            for sample, expected in zip(self.samples(), self.outputs, strict=True)
        )
        if self.metric is not None and (self.truths or self.task != "classification"):
            return self._by_metric(self.metric, made)
        return self._by_outputs(made)

    def _by_metric(self, metric: Metric, made: Iterable[dict[str, Any]]) -> Verdict:
        pairs = zip(self.samples(), made, self._truths(metric), strict=True)
        rows = [metric.row(metric.decode(found, sample), truth) for sample, found, truth in pairs]
        told = compare(metric, self.rows, rows, labelled=bool(self.truths))
        if told.drop is None or told.drop_interval is None:
            return Verdict(metric.title, -math.inf, 1 - self.drop, told.n, None, told.reason)
        interval = (1 - told.drop_interval[1], 1 - told.drop_interval[0])
        what, truth = f"{metric.title} drop", "by labels"
        if not self.truths:
            what, truth = f"{metric.likeness}: loss", "by the float model's own answers"
        return Verdict(what, 1 - told.drop, 1 - self.drop, told.n, interval, truth, of_one=True)

    def _truths(self, metric: Metric) -> Iterable[Any]:
        if self.truths:
            return self.truths
        return _own_truths(metric, self.samples(), self.outputs)

    def _by_outputs(self, made: Iterable[dict[str, Any]]) -> Verdict:
        stream = ParityStream(self.task, self.leads)
        for expected, found in zip(self.outputs, made, strict=True):
            stream.add(expected, found)
        parity = stream.result()
        seen, estimate = parity.agreement, parity.expected
        if estimate.value is not None:
            told = f"{seen.value:.3f} of {seen.n} seen"
            what, limit = "expected agreement", 1 - self.drop
            return Verdict(what, estimate.value, limit, parity.samples, estimate.interval, told)
        if seen.value is not None:
            return Verdict("agreement", seen.value, 1 - self.drop, parity.samples, seen.interval, "counted")
        worst = parity.worst
        found_db = -math.inf if worst is None or worst.sqnr_db is None else worst.sqnr_db
        return Verdict("SQNR", found_db, SQNR_FLOOR_DB, parity.samples, None)


def bound(
    task: Task,
    drop: float,
    original: Any,
    validation: Samples,
    calibration: Samples,
    threads: int,
    metric: Metric | None = None,
    truths: Sequence[Any] = (),
) -> Bound:
    """The bound of at most ``drop``, with the float model ``original`` (a ModelProto) run over the samples.

    A classifier's margins are taken from the calibration samples as well: the float model does not know which
    those are.
    """
    kept = outputs(original, validation(), threads)
    further: tuple[Floats, ...] = ()
    if task == "classification" and not truths:
        seen = outputs(original, calibration(), threads)
        further = tuple(leads(next(iter(o.values()))) for o in seen)
    rows: tuple[Any, ...] = ()
    if metric is not None and (truths or task != "classification"):
        known = truths or _own_truths(metric, validation(), kept)
        pairs = zip(validation(), kept, known, strict=True)
        rows = tuple(metric.row(metric.decode(found, sample), truth) for sample, found, truth in pairs)
    return Bound(task, drop, validation, kept, further, metric, tuple(truths), rows)


def outputs(model: Any, samples: Iterable[Arrays], threads: int) -> list[dict[str, Any]]:
    """What ``model`` (a ModelProto) gives for each sample, by output name."""
    runner = simulate.session(model, threads)
    names = [o.name for o in runner.get_outputs()]
    return [dict(zip(names, runner.run(names, dict(s)), strict=True)) for s in samples]


def _own_truths(metric: Metric, samples: Iterable[Arrays], found: Sequence[dict[str, Any]]) -> list[Any]:
    return [metric.truth(metric.decode(o, s)) for o, s in zip(found, samples, strict=True)]


__all__ = ["SQNR_FLOOR_DB", "Bound", "Verdict", "bound", "outputs"]
