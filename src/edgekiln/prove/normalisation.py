"""Whether labelled data say that another common normalisation fits a model better than its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.accuracy import probabilities, rank
from edgekiln.prove.statistics import sign_test
from edgekiln.records import Dataset, Model, Preprocess, Record, Sample

Scores: TypeAlias = Callable[[Sample, Preprocess], NDArray[Any]]
"""Prepares one sample in the given way, runs the float model, gives its scores: (C,) or (1, C)."""

MAX_SAMPLES = 256
SIGNIFICANT = 0.01
LEAST_GAIN = 0.01
SMALL_SET_MARGIN = 0.10
SMALL_SET_NET_HITS = 3
SMALL_SET_LIKELIER_SHARE = 0.6
SMALL_SET_NATS = 0.5


class _Fit(Record, frozen=True, kw_only=True):
    hits: tuple[bool, ...]
    log_likelihood: tuple[float, ...]


def better_normalisation(
    model: Model, dataset: Dataset, candidates: Sequence[tuple[str, Preprocess]], scores: Scores
) -> str | None:
    """A warning sentence where one of ``candidates`` (name, preprocessing) fits the labels better.

    All are tried on the same labelled samples (256 at most, evenly drawn) against ``model.preprocess``.
    Better is one of two things:
    - a gain of at least a point that the exact paired sign test gives P < 0.01, shared out over the
      candidates (Bonferroni);
    - for sets too small for that: at least 10 points and 3 samples more right, no more than one sample
      turned wrong for each three turned right, and the label likelier in at least 60 % of the samples.
      The last uses what counting hits throws away, so that a few lucky flips raise no alarm.
    None where nothing is better, nothing is labelled, or the model has no normalisation.
    """
    own = model.preprocess
    labelled = [s for s in dataset.samples if s.label is not None]
    others = [(name, p) for name, p in candidates if p != own]
    if own is None or not labelled or not others:
        return None
    chosen = [
        labelled[i] for i in np.linspace(0, len(labelled) - 1, min(len(labelled), MAX_SAMPLES), dtype=int)
    ]
    baseline = _fit(chosen, own, scores)
    fits = [(name, _fit(chosen, p, scores)) for name, p in others]
    better = [(name, fit) for name, fit in fits if _is_better(baseline, fit, len(others))]
    if not better:
        return None
    name, fit = max(better, key=lambda pair: (sum(pair[1].hits), sum(pair[1].log_likelihood)))
    n = len(chosen)
    return (
        f"the labels fit the normalisation {name} better than the model's own: {sum(fit.hits)} of {n} right "
        f"against {sum(baseline.hits)} of {n}; check mean, std and scale against the training code"
    )


def _fit(samples: Sequence[Sample], preprocess: Preprocess, scores: Scores) -> _Fit:
    hits, logs = [], []
    for sample in samples:
        output = scores(sample, preprocess)
        label = sample.label or 0
        hits.append(rank(output, label) == 0)
        share = float(probabilities(output)[0, label])
        logs.append(math.log(max(share, 1e-30)) if math.isfinite(share) else math.log(1e-30))
    return _Fit(hits=tuple(hits), log_likelihood=tuple(logs))


def _is_better(own: _Fit, other: _Fit, tried: int) -> bool:
    pairs = list(zip(own.hits, other.hits, strict=True))
    wins, losses, n = pairs.count((False, True)), pairs.count((True, False)), len(pairs)
    gain = (wins - losses) / n
    if gain >= LEAST_GAIN and sign_test(wins, losses) < SIGNIFICANT / tried:
        return True
    gains = [b - a for a, b in zip(own.log_likelihood, other.log_likelihood, strict=True)]
    likelier = sum(g > 0 for g in gains) / n >= SMALL_SET_LIKELIER_SHARE or sum(gains) / n >= SMALL_SET_NATS
    return (
        gain >= SMALL_SET_MARGIN and wins - losses >= SMALL_SET_NET_HITS and 3 * losses <= wins and likelier
    )
