"""What every task metric is, and the one way in which two models are compared by it.

A metric reduces each sample to a small row, and a set of rows to a score of which 1 is perfect and more is
better. Because a score is a function of the rows alone, samples can be drawn again: the intervals of scores
that are no plain shares (mAP, mIoU, word error) come from a paired bootstrap over samples (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), with the same draws for both models.

A bootstrap can't see what never happened: where fewer than MIN_CHANGED samples differ between the two
models, the interval of the drop is widened by how much larger the share of differing samples could be
(Wilson's upper limit), each of them taken as lost whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.prove.statistics import Interval, paired_difference, wilson
from edgekiln.records import Dataset, Evidence, How, Record, Scalar, Task

RESAMPLES = 400
MIN_CHANGED = 5
MOST_SAMPLES_ADVISED = 10_000_000


class Labelled(Record, frozen=True, kw_only=True):
    """The truth of each sample of a data set, in its order; None where ``reasons`` (by path) says why."""

    truths: tuple[Any, ...]
    reasons: dict[str, str] = msgspec.field(default_factory=dict)


class Scores(Protocol):
    """A set of rows ready to be scored, over and over."""

    @property
    def figures(self) -> dict[str, float]:
        """The figures by their evidence names, the main one first; empty where there is nothing to score."""

    @property
    def hits(self) -> NDArray[np.bool_] | None:
        """(n,) where the score is the share of samples that are right, else None."""

    @property
    def each(self) -> NDArray[np.float64]:
        """(n, k): what each sample was scored; equal rows are samples that count the same."""

    def at(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """(draws,) of scores for (draws, n) counts of each sample; NaN where a draw has nothing to score."""


class Metric(Protocol):
    """One task's measure. A new one is a file here and a row in ``metrics.METRICS``."""

    task: Task
    title: str
    likeness: str
    """What agreement means for this task: ``mAP against the float model's own detections``."""
    lower_is_better: bool
    """Whether the main figure is 1 less the score (an error rate)."""

    def decode(self, outputs: Arrays, inputs: Arrays) -> Any:
        """What one sample's outputs say: boxes, a map of classes, a text, a vector."""

    def truth(self, decoded: Any) -> Any:
        """The float model's own answer as the truth that agreement is scored against."""

    def row(self, decoded: Any, truth: Any) -> Any:
        """One sample against its truth, small enough to keep for every sample."""

    def scores(self, rows: Sequence[Any]) -> Scores: ...

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        """The truths of ``dataset``. Raises BadInput where the labels as a whole can't be used."""


class Comparison(Record, frozen=True, kw_only=True):
    """An artifact against the float model on the same ``n`` samples; the interval are of 95 %.

    ``drop`` is the float model's score less the artifact's, positive for a loss. Without labels the float
    model's own answers are the truth, so that its score is 1 and ``value`` is the agreement. The figures are
    None where ``reason`` says why.
    """

    n: int
    labelled: bool
    value: float | None = None
    interval: Interval | None = None
    drop: float | None = None
    drop_interval: Interval | None = None
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    float_figures: dict[str, float] = msgspec.field(default_factory=dict)
    reason: str = ""


def score(
    metric: Metric,
    inputs: Iterable[Arrays],
    float_outputs: Iterable[Arrays],
    artifact_outputs: Iterable[Arrays],
    truths: Sequence[Any] | None = None,
) -> Comparison:
    """The artifact's score, what it lost, and the intervals: on ``truths``, else on agreement."""
    first, second = [], []
    for i, (sample, expected, found) in enumerate(zip(inputs, float_outputs, artifact_outputs, strict=True)):
        decoded, other = metric.decode(expected, sample), metric.decode(found, sample)
        truth = metric.truth(decoded) if truths is None else truths[i]
        first.append(metric.row(decoded, truth))
        second.append(metric.row(other, truth))
    return compare(metric, first, second, labelled=truths is not None)


def compare(metric: Metric, reference: Sequence[Any], candidate: Sequence[Any], labelled: bool) -> Comparison:
    """The rows of the float model against those of the artifact, on the same samples."""
    n = len(reference)
    if not n:
        why = "no labelled sample was given" if labelled else "no sample was compared"
        return Comparison(n=0, labelled=labelled, reason=why)
    a, b = metric.scores(reference), metric.scores(candidate)
    if not a.figures or not b.figures:
        why = "the labels hold nothing to score" if labelled else "the float model finds nothing to agree on"
        return Comparison(n=n, labelled=labelled, reason=why)
    whole = np.ones((1, n), np.int64)
    of_a, of_b = float(a.at(whole)[0]), float(b.at(whole)[0])
    drop = of_a - of_b
    if a.hits is not None and b.hits is not None:
        drop_interval = _newcombe(a.hits, b.hits)
        interval = wilson(int(b.hits.sum()), n)
    else:
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
        drawn_a, drawn_b = a.at(draws), b.at(draws)
        changed = int((a.each != b.each).any(axis=1).sum())
        drop_interval = _around(drop, drawn_a - drawn_b, _unseen(changed, n), -1.0)
        alike = bool((b.each == b.each[0]).all()) or not np.nanstd(drawn_b) > 0
        interval = _around(of_b, drawn_b, _unseen(0, n) if alike else 0.0, 0.0)
    if not labelled:
        of_b = max(0.0, 1 - drop)
        interval = (max(0.0, 1 - drop_interval[1]), min(1.0, 1 - drop_interval[0]))
    return Comparison(
        n=n,
        labelled=labelled,
        value=of_b,
        interval=interval,
        drop=drop,
        drop_interval=drop_interval,
        figures=b.figures,
        float_figures=a.figures,
    )


def _newcombe(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    cells = (first & second, first & ~second, ~first & second, ~first & ~second)
    both, lost, gained, neither = (int(c.sum()) for c in cells)
    return paired_difference(both, lost, gained, neither)


def _unseen(changed: int, n: int) -> float:
    """By how much the share of changed samples may exceed what was seen; 0 where enough of them were."""
    return 0.0 if changed >= MIN_CHANGED else wilson(changed, n)[1] - changed / n


def _around(value: float, drawn: NDArray[np.float64], wider: float, least: float) -> Interval:
    """The percentile interval of ``drawn``, which always holds ``value``; within ``least`` to 1."""
    known = drawn[np.isfinite(drawn)]
    low, high = (float(x) for x in np.quantile(known, [0.025, 0.975])) if known.size else (value, value)
    low, high = min(low, value - wider), max(high, value + wider)
    return (max(least, low) if value >= least else value, min(1.0, high) if value <= 1 else value)


def too_few(n: int, value: float, interval: Interval, bound: float, what: str, kind: str) -> str | None:
    """A sentence where half the interval is wider than the bound that it has to judge, else None."""
    half = (interval[1] - interval[0]) / 2
    if half <= bound:
        return None
    enough = n * (half / bound) ** 2 if bound > 0 else math.inf
    digits = 10 ** max(0, len(str(int(enough))) - 2) if enough < MOST_SAMPLES_ADVISED else 1
    advised = (
        f"about {-(-int(enough) // digits) * digits} would"
        if enough < MOST_SAMPLES_ADVISED
        else "no practical number would"
    )
    low, high = interval
    return (
        f"{n} {kind}samples can't support a bound of {bound:g} on the {what}: measured {value:.3g}, "
        f"95 % interval {low:.3g} to {high:.3g}; {advised}"
    )


def metric_evidence(
    metric: Metric,
    found: Comparison,
    how: How,
    where: str,
    when: str,
    environment: dict[str, Scalar],
) -> tuple[Evidence, ...]:
    """With labels both models' figures (``map``, ``map_float``) and ``metric_drop``, else ``agreement``.

    Each names its metric in the environment. What could not be scored is null with its reason.
    """

    def figure(what: str, value: float | None, interval: Interval | None, named: str) -> Evidence:
        return Evidence(
            what=what,
            unit="1" if what.startswith("embedding_cosine") else "fraction",
            value=value,
            how=None if value is None else how,
            where=where,
            when=when,
            n=found.n,
            interval=interval,
            environment={**environment, "metric": named},
            reason="" if value is not None else found.reason,
        )

    if not found.labelled:
        main = figure("agreement", found.value, found.interval, metric.likeness)
        extra = found.figures if metric.task == "embedding" else {}
        return main, *(figure(k, v, None, metric.likeness) for k, v in extra.items() if "cosine" in k)
    drop = figure("metric_drop", found.drop, found.drop_interval, metric.title)
    rows = []
    for number, (name, value) in enumerate(found.figures.items()):
        interval = found.interval if number == 0 else None
        if interval is not None and metric.lower_is_better:
            interval = (1 - interval[1], 1 - interval[0])
        rows.append(figure(name, value, interval, metric.title))
        rows.append(figure(f"{name}_float", found.float_figures.get(name), None, metric.title))
    return *rows, drop
