"""Latencies in buckets of equal ratio: bounded memory, a known relative error, sums and differences.

The buckets are those of DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", VLDB 2019): bucket i holds (g^(i-1), g^i], and the value told for it, 2 g^i /
(g + 1), is within (g - 1) / (g + 1) of everything in it. ``g`` is a 60th of a decade, so that every power of
ten is an edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekiln.records import Record

PER_DECADE = 60
LEAST_MS, DECADES = 1e-3, 10
MOST_MS = LEAST_MS * 10.0**DECADES
RATIO = 10 ** (1 / PER_DECADE)
RELATIVE_ERROR = (RATIO - 1) / (RATIO + 1)
"""1.92 %: of a quantile, between a microsecond and two and three quarter hours."""
BUCKETS = PER_DECADE * DECADES + 1

_PER_NATURAL = PER_DECADE / math.log(10)
_SHIFT = -math.log(LEAST_MS) * _PER_NATURAL


class Histogram(Record, frozen=True, kw_only=True):
    """``counts[k]`` latencies lie in bucket ``buckets[k]``; buckets ascend, and empty ones are left out.

    ``n`` and ``sum_ms`` are exact. A value below a microsecond counts as one, one above ``MOST_MS`` as that.
    """

    buckets: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    n: int = 0
    sum_ms: float = 0.0


def bucket_of(latency_ms: float) -> int:
    """The bucket that ``latency_ms`` lies in, 0 to ``BUCKETS`` - 1; NaN lies in the first."""
    if not latency_ms > LEAST_MS:
        return 0
    if latency_ms >= MOST_MS:
        return BUCKETS - 1
    return math.ceil(math.log(latency_ms) * _PER_NATURAL + _SHIFT - 1e-9)


def edge_ms(bucket: int) -> float:
    """The upper edge of ``bucket``, which belongs to it."""
    return float(LEAST_MS * 10.0 ** (bucket / PER_DECADE))


def frozen(counts: Sequence[int], sum_ms: float) -> Histogram:
    """The record of a count for every bucket, shape (BUCKETS,)."""
    held = [(i, n) for i, n in enumerate(counts) if n]
    return Histogram(
        buckets=tuple(i for i, _ in held),
        counts=tuple(n for _, n in held),
        n=sum(n for _, n in held),
        sum_ms=sum_ms,
    )


def histogram(latencies_ms: Sequence[float]) -> Histogram:
    """The record of ``latencies_ms``."""
    counts, total = [0] * BUCKETS, 0.0
    for latency in latencies_ms:
        counts[bucket_of(latency)] += 1
        total += clamped(latency)
    return frozen(counts, total)


def clamped(latency_ms: float) -> float:
    """``latency_ms`` within what the buckets span; the least for NaN."""
    return min(MOST_MS, max(LEAST_MS, latency_ms))


def merged(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of both lots of latencies together."""
    return _added(a, b, 1)


def since(before: Histogram, after: Histogram) -> Histogram:
    """What ``after`` holds beyond ``before``, an earlier state of it. Raises ValueError where it is none."""
    found = _added(after, before, -1)
    if any(n < 0 for n in found.counts):
        raise ValueError("the earlier histogram holds what the later one lacks")
    return found


def _added(a: Histogram, b: Histogram, sign: int) -> Histogram:
    held = dict(zip(a.buckets, a.counts, strict=True))
    for bucket, count in zip(b.buckets, b.counts, strict=True):
        held[bucket] = held.get(bucket, 0) + sign * count
    pairs = sorted((i, n) for i, n in held.items() if n)
    return Histogram(
        buckets=tuple(i for i, _ in pairs),
        counts=tuple(n for _, n in pairs),
        n=a.n + sign * b.n,
        sum_ms=a.sum_ms + sign * b.sum_ms,
    )


def quantile(found: Histogram, share: float) -> float | None:
    """The least latency that ``share`` (0 to 1) of all keep, within ``RELATIVE_ERROR``; None of none.

    It is the nearest rank, without interpolation: what a deadline at a percentile asks for.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{share} is no share")
    if found.n == 0:
        return None
    rank, seen = max(1, math.ceil(share * found.n - 1e-9)), 0
    for bucket, count in zip(found.buckets, found.counts, strict=True):
        seen += count
        if seen >= rank:
            return _told(bucket)
    return _told(found.buckets[-1])


def mean_ms(found: Histogram) -> float | None:
    """The exact mean; None of none."""
    return found.sum_ms / found.n if found.n else None


def _told(bucket: int) -> float:
    return LEAST_MS if bucket == 0 else 2 * edge_ms(bucket) / (RATIO + 1)


def below(found: Histogram, bucket: int) -> int:
    """How many latencies lie at or below the upper edge of ``bucket``."""
    return sum(n for i, n in zip(found.buckets, found.counts, strict=True) if i <= bucket)
