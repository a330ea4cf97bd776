"""Statistics of samples and counts: percentiles, intervals, ratios, ties. No wall clock, no engine.

Latency samples arrive as *blocks*: the calls that one contender made in one of its turns. Calls within
a block share the machine's mood, so whatever compares two contenders resamples blocks, not calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.records import Record

Interval: TypeAlias = tuple[float, float]
Blocks: TypeAlias = Sequence[Sequence[float]]

Z95 = 1.959963984540054
MIN_N_P95 = 20
MIN_N_P99 = 100
MIN_ROUNDS = 5
TIE_MARGIN = 0.02
DRIFT_MARGIN = 0.05


# ---------------------------------------------------------------- counts


def wilson(hits: float, n: float) -> Interval:
    """95 % interval of a proportion. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212. ``n`` above 0."""
    p, z2 = hits / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the formula's end is exactly 0 or 1; rounding must not move it past the estimate.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return (low, high)


def paired_difference(both: float, first: float, second: float, neither: float) -> Interval:
    """95 % interval of p1 - p2 where both proportions were seen on the same samples.

    ``both`` samples were right in both, ``first`` only in the first, ``second`` only in the second.
    Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10: the Wilson limits of each proportion
    combined with the correlation of the pairs, which is continuity corrected where it is positive.
    """
    n = both + first + second + neither
    right1, right2 = both + first, both + second
    p1, p2 = right1 / n, right2 / n
    (low1, high1), (low2, high2) = wilson(right1, n), wilson(right2, n)
    margins = right1 * (n - right1) * right2 * (n - right2)
    covariance = both * neither - first * second
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins > 0 else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))

    difference = p1 - p2
    low = difference - reach(p1 - low1, high2 - p2)
    high = difference + reach(p2 - low2, high1 - p1)
    return (max(-1.0, low), min(1.0, high))


def sign_test(wins: int, losses: int) -> float:
    """One-sided exact P of at least ``wins`` among ``wins + losses`` fair coins (McNemar's exact test)."""
    n = wins + losses
    return 1.0 if n == 0 else float(min(1.0, math.fsum(_binomial_pmf(n, 0.5)[wins:])))


def _binomial_pmf(n: int, p: float) -> NDArray[np.float64]:
    """Probabilities of 0..n hits, shape (n + 1,); in logarithms, so that large n does not underflow."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    pmf: NDArray[np.float64] = np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
    return pmf


# ---------------------------------------------------------------- one series


class Percentiles(Record, frozen=True, kw_only=True):
    """Of ``n`` samples in ms. P95 needs 20 samples and P99 100; ``reasons`` says which is missing and why.

    The intervals are 95 % by order statistics and None where n is too small to bound the quantile.
    They take the calls as independent; a busy machine's calls are not, so read them as a lower bound.
    """

    n: int
    p50: float
    p95: float | None
    p99: float | None
    p50_interval: Interval | None
    p95_interval: Interval | None
    iqr: float
    mad: float
    reasons: dict[str, str] = msgspec.field(default_factory=dict)


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Quantiles (linear interpolation), their intervals, and the spread. ``samples`` is not empty."""
    data = np.asarray(samples, np.float64)
    n = data.size
    q25, p50, q75, p95, p99 = (float(q) for q in np.quantile(data, [0.25, 0.5, 0.75, 0.95, 0.99]))
    needed = {"p95": MIN_N_P95, "p99": MIN_N_P99}
    reasons = {
        name: f"{n} samples do not reach {name.upper()}; it takes at least {least}"
        for name, least in needed.items()
        if n < least
    }
    return Percentiles(
        n=n,
        p50=p50,
        p95=None if "p95" in reasons else p95,
        p99=None if "p99" in reasons else p99,
        p50_interval=quantile_interval(samples, 0.5),
        p95_interval=None if "p95" in reasons else quantile_interval(samples, 0.95),
        iqr=q75 - q25,
        mad=float(np.median(np.abs(data - p50))),
        reasons=reasons,
    )


def quantile_interval(samples: Sequence[float], q: float) -> Interval | None:
    """95 % interval of the ``q`` quantile by order statistics, free of any assumed distribution.

    The number of samples under the quantile is binomial(n, q), so two order statistics enclose it with
    at least 95 % (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). None where the sample
    has no such pair.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = ordered.size
    if n == 0:
        return None
    cdf = np.cumsum(_binomial_pmf(n, q))
    # X(l) is above the quantile with P(B <= l - 1), X(u) below it with P(B >= u); both stay under 2.5 %.
    low = int(np.searchsorted(cdf, 0.025, side="right"))
    high = int(np.searchsorted(cdf, 0.975, side="left")) + 1
    if low < 1 or high > n:
        return None
    return (float(ordered[low - 1]), float(ordered[high - 1]))


# ---------------------------------------------------------------- two series of one run


class Ratio(Record, frozen=True, kw_only=True):
    """Median of a over median of b in one alternated run; ``interval`` None has a ``reason``."""

    value: float
    interval: Interval | None
    rounds: int
    reason: str = ""


def in_blocks(samples: Sequence[float], count: int = 10) -> tuple[tuple[float, ...], ...]:
    """A flat series cut into ``count`` consecutive blocks, for figures whose turns were not kept."""
    pieces = np.array_split(np.asarray(samples, np.float64), min(count, len(samples)) or 1)
    return tuple(tuple(float(x) for x in piece) for piece in pieces)


def ratio_of_medians(a: Blocks, b: Blocks, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Median(a) / median(b) with a 95 % percentile bootstrap interval over paired blocks.

    Block i of a and block i of b ran next to each other, so a round (both blocks) is the unit that is
    drawn with replacement: what slowed the machine slows both and cancels. Bootstrap: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 (blocks) and 13 (percentiles).
    The quantiles are taken of the logarithm, so that swapping a and b gives exactly the reciprocal.
    """
    rounds = min(len(a), len(b))
    first = [np.asarray(x, np.float64) for x in a[:rounds]]
    second = [np.asarray(x, np.float64) for x in b[:rounds]]
    value = float(np.median(np.concatenate(first)) / np.median(np.concatenate(second)))
    if rounds < MIN_ROUNDS:
        reason = f"{rounds} alternated rounds give no interval; it takes at least {MIN_ROUNDS}"
        return Ratio(value=value, interval=None, rounds=rounds, reason=reason)
    draws = np.random.default_rng(seed).integers(0, rounds, (resamples, rounds))
    logs = np.log(_medians(first, draws)) - np.log(_medians(second, draws))
    low, high = (float(x) for x in np.exp(np.quantile(logs, [0.025, 0.975])))
    return Ratio(value=value, interval=(low, high), rounds=rounds)


def _medians(blocks: list[NDArray[np.float64]], draws: NDArray[Any]) -> NDArray[np.float64]:
    """Median of the pooled blocks of each draw, shape (draws,): a weighted median over one sort."""
    values = np.concatenate(blocks)
    owner = np.concatenate([np.full(len(x), i) for i, x in enumerate(blocks)])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    medians = np.empty(len(draws))
    for row, draw in enumerate(draws):
        upto = np.cumsum(np.bincount(draw, minlength=len(blocks))[owner])
        total = upto[-1]
        low = np.searchsorted(upto, (total - 1) // 2, side="right")
        high = np.searchsorted(upto, total // 2, side="right")
        medians[row] = (values[low] + values[high]) / 2
    return medians


def is_tie(a: Blocks, b: Blocks) -> bool:
    """Whether this run can't tell a and b apart, or the difference is below 2 % and so of no use.

    A tie also where no interval could be had. Symmetric; not transitive (a = b and b = c leave a and c
    open), so compare against the fastest, not along a chain.
    """
    ratio = ratio_of_medians(a, b)
    if ratio.interval is None or abs(math.log(ratio.value)) < math.log1p(TIE_MARGIN):
        return True
    return ratio.interval[0] <= 1.0 <= ratio.interval[1]


class Drift(Record, frozen=True, kw_only=True):
    """Median of the second half over that of the first; ``drifted`` where that is a real change."""

    ratio: float
    interval: Interval | None
    drifted: bool


def drift(blocks: Blocks, resamples: int = 1000, seed: int = 0) -> Drift:
    """Whether the machine changed during the run (heat, another job): first half against second half.

    Blocks of each half are resampled separately. Drifted means more than 5 % and an interval off 1.
    """
    half = len(blocks) // 2
    if half == 0:
        return Drift(ratio=1.0, interval=None, drifted=False)
    first = [np.asarray(x, np.float64) for x in blocks[:half]]
    second = [np.asarray(x, np.float64) for x in blocks[-half:]]
    ratio = float(np.median(np.concatenate(second)) / np.median(np.concatenate(first)))
    if half < MIN_ROUNDS:
        return Drift(ratio=ratio, interval=None, drifted=False)
    random = np.random.default_rng(seed)
    early = _medians(first, random.integers(0, half, (resamples, half)))
    late = _medians(second, random.integers(0, half, (resamples, half)))
    low, high = (float(x) for x in np.quantile(late / early, [0.025, 0.975]))
    moved = abs(math.log(ratio)) > math.log1p(DRIFT_MARGIN)
    return Drift(ratio=ratio, interval=(low, high), drifted=moved and not low <= 1.0 <= high)
