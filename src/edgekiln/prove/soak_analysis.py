"""What a soak shows, from its figures alone: rates with intervals, where the latency changed, and why.

A soak gives a *block* of calls every moment: when it was made, how many calls, the seconds they took. Its
mean latency is what is looked at here, and not its median: a CPU quota stops few calls, each for long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.statistics import Interval
from edgekiln.records import Record
from edgekiln.sensors.live import OTHERS, QUOTA, STOLEN
from edgekiln.sensors.recorder import Recording, Track
from edgekiln.sensors.sysfs import Trip

Floats: TypeAlias = NDArray[np.float64]
Span: TypeAlias = tuple[float, float]
"""From and to, in seconds."""

FALSE_ALARMS = 0.01
"""How often a run whose latency only varies at random is said to have changed at most: kept where blocks are
independent of one another, because the test is one of permutations."""
RESAMPLES = 999
BATCHES = 64
LEAST_BATCHES = 16
EDGE = 3
SMALLEST_CHANGE = 0.05
MOST_CHANGES = 8

BURST_SECONDS = 60.0
BURST_SHARE = 1 / 6
WINDOW = 5
STABLE_WITHIN = 0.05
LEAST_BLOCKS = 2 * WINDOW

CLOCK_FELL = 0.05
NEAR_TRIP_C = 1.0
HEAT_SECONDS = 10.0
COLDEST_TRIP_C = 30.0
SHARE_GREW = 0.02
CPUS_GREW = 0.2


class Rate(Record, frozen=True, kw_only=True):
    """Inferences per second over ``start_s`` to ``end_s`` of the soak, and the 95 % interval by a bootstrap
    of batches of blocks. None has a ``reason``."""

    per_second: float | None
    interval: Interval | None = None
    start_s: float | None = None
    end_s: float | None = None
    n: int = 0
    reason: str = ""


class Change(Record, frozen=True, kw_only=True):
    """The latency went from ``before_ms`` to ``after_ms`` at ``at_s``: medians of the blocks' means up to the
    neighbouring changes. ``ratio`` above 1 is slower. ``p`` is the permutation test's."""

    at_s: float
    before_ms: float
    after_ms: float
    ratio: float
    p: float


CauseKind: TypeAlias = Literal["clock", "temperature", "quota", "stolen", "load", "unknown"]


class Cause(Record, frozen=True, kw_only=True):
    """What changed together with the latency, as a sentence; that is no proof that it was the reason."""

    kind: CauseKind
    what: str


class Blocks(Record, frozen=True, kw_only=True):
    """The turns of a soak in order: the middle of each (seconds since the start), its calls, their time."""

    middle_s: tuple[float, ...]
    calls: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def mean_ms(self) -> Floats:
        means: Floats = np.asarray(self.seconds) / np.asarray(self.calls) * 1e3
        return means


# ---------------------------------------------------------------- changes


def changes(blocks: Blocks, seed: int = 0) -> tuple[Change, ...]:
    """Where the blocks' mean latency changed by 5 % or more, in order; () where nothing that can be told did.

    The most different split of the batches' ranks (Pettitt, Applied Statistics 28 (1979) 126-135, weighted so
    that the ends count like the middle) is kept where fewer than 1 % of the shuffled orders of the batches
    have one as strong; then both sides are looked at in the same way, and steps below 5 % are taken back. Of
    ranks of medians: single slow blocks move nothing, and the unit does not matter.
    """
    values = blocks.mean_ms
    found = sorted(_split(values, 0, np.random.default_rng(seed)))
    shortest = EDGE * _batch(len(values))
    while found:
        places = [at for at, _ in found]
        levels = _levels(values, places)
        steps = [abs(math.log(b / a)) for a, b in pairwise(levels)]
        # of two changes that no stretch worth the name lies between, the smaller goes
        close = {i for i, (a, b) in enumerate(pairwise(places)) if b - a < shortest}
        close |= {i + 1 for i in close}
        least = min(close or range(len(steps)), key=steps.__getitem__)
        if not close and len(found) <= MOST_CHANGES and steps[least] >= math.log1p(SMALLEST_CHANGE):
            return _told(blocks, values, found, levels)
        del found[least]
    return ()


def _batch(blocks: int) -> int:
    """How many blocks make a batch."""
    return max(1, math.ceil(blocks / BATCHES))


def _levels(values: Floats, places: Sequence[int]) -> list[float]:
    """The median of each stretch between ``places``."""
    return [float(np.median(part)) for part in np.split(values, places)]


def _told(
    blocks: Blocks, values: Floats, found: Sequence[tuple[int, float]], levels: Sequence[float]
) -> tuple[Change, ...]:
    """The changes, each moved to where it lies best between its two levels and its neighbours."""
    ends = [0, *(at for at, _ in found), len(values)]
    moved = [_best(values, ends[i] + 1, ends[i + 2] - 1, levels[i], levels[i + 1]) for i in range(len(found))]
    ordered = all(a < b for a, b in pairwise(moved))
    places = moved if ordered else [at for at, _ in found]
    steps = zip(places, found, pairwise(_levels(values, places)), strict=True)
    return tuple(_change(blocks, at, p, *level) for at, (_, p), level in steps)


def _change(blocks: Blocks, at: int, p: float, before: float, after: float) -> Change:
    middle = (blocks.middle_s[at - 1] + blocks.middle_s[at]) / 2
    return Change(at_s=middle, before_ms=before, after_ms=after, ratio=after / before, p=p)


def _split(values: Floats, offset: int, random: np.random.Generator) -> Iterator[tuple[int, float]]:
    found = strongest(values, random)
    if found is None:
        return
    at, p = found
    yield offset + at, p
    yield from _split(values[:at], offset, random)
    yield from _split(values[at:], offset + at, random)


def strongest(values: Floats, random: np.random.Generator) -> tuple[int, float] | None:
    """The index where the second level starts, and the test's p; None where no change is confirmed."""
    size = _batch(len(values))
    count = len(values) // size
    if count < LEAST_BATCHES:
        return None
    batches = np.median(values[: count * size].reshape(count, size), axis=1)
    ranks = _ranks(batches)
    scores = _scores(ranks[None, :])[0]
    best = float(scores.max())
    shuffled = random.permuted(np.tile(ranks, (RESAMPLES, 1)), axis=1)
    p = (1 + int((_scores(shuffled).max(axis=1) >= best * (1 - 1e-12)).sum())) / (RESAMPLES + 1)
    if p > FALSE_ALARMS:
        return None
    return _refined(values, (int(scores.argmax()) + EDGE) * size, size), p


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    middle: Floats = (ends - (count - 1) / 2)[place]
    return middle


def _scores(ranks: Floats) -> Floats:
    """The weighted distance of the first t ranks' sum from its mean, for t of EDGE to n - EDGE; by row."""
    n = ranks.shape[1]
    t = np.arange(EDGE, n - EDGE + 1)
    sums = np.cumsum(ranks, axis=1)[:, t - 1]
    scores: Floats = np.abs(sums - t * (n + 1) / 2) / np.sqrt(t * (n - t))
    return scores


def _refined(values: Floats, near: int, reach: int) -> int:
    """The split within ``reach`` of ``near`` that lies best between the levels on both sides of it."""
    before = float(np.median(values[max(0, near - 5 * reach) : near]))
    after = float(np.median(values[near : near + 5 * reach]))
    return _best(values, max(1, near - reach), min(len(values) - 1, near + reach), before, after)


def _best(values: Floats, low: int, high: int, before: float, after: float) -> int:
    """The split from ``low`` to ``high`` with the least absolute error against two levels."""
    window = values[low:high]
    left = np.concatenate([[0.0], np.cumsum(np.abs(window - before))])
    right = np.concatenate([[0.0], np.cumsum(np.abs(window - after)[::-1])])[::-1]
    costs = left + right
    # two splits may lie equally well: rounding, which depends on the unit, must not choose between them
    return low + int(np.flatnonzero(costs <= costs.min() * (1 + 1e-9))[0])


# ---------------------------------------------------------------- rates


def burst(blocks: Blocks, found: Sequence[Change]) -> Rate:
    """The rate of the first stable stretch: from where two windows of five blocks differ by less than 5 % (or
    three times their noise, if that is more), for a minute or a sixth of the run, and not past a change."""
    values, middle = blocks.mean_ms, np.asarray(blocks.middle_s)
    if len(values) < LEAST_BLOCKS:
        return Rate(per_second=None, reason=f"{len(values)} blocks of calls are too few for a rate")
    limit = found[0].at_s if found else math.inf
    usable = int((middle < limit).sum())
    tolerance = max(STABLE_WITHIN, 3 * _noise(values[:usable]) / math.sqrt(WINDOW))
    for start in range(usable - LEAST_BLOCKS + 1):
        a = np.median(values[start : start + WINDOW])
        b = np.median(values[start + WINDOW : start + LEAST_BLOCKS])
        if abs(math.log(b / a)) < tolerance:
            long = min(BURST_SECONDS, (middle[-1] - middle[0]) * BURST_SHARE)
            end = max(start + LEAST_BLOCKS, int((middle <= middle[start] + long).sum()))
            return rate(blocks, start, min(end, usable))
    return Rate(per_second=None, reason="no stretch at the start was stable within 5 %")


def sustained(blocks: Blocks) -> Rate:
    """The rate of the last third of the run."""
    middle = np.asarray(blocks.middle_s)
    if len(middle) < LEAST_BLOCKS:
        return Rate(per_second=None, reason=f"{len(middle)} blocks of calls are too few for a rate")
    start = int((middle < middle[0] + (middle[-1] - middle[0]) * 2 / 3).sum())
    return rate(blocks, start, len(middle))


def rate(blocks: Blocks, start: int, end: int) -> Rate:
    """Calls over the seconds that they took, of the blocks ``start`` to ``end``."""
    calls, seconds = _batched(blocks, start, end)
    draws = np.random.default_rng(0).integers(0, len(calls), (1000, len(calls)))
    low, high = np.quantile(calls[draws].sum(axis=1) / seconds[draws].sum(axis=1), [0.025, 0.975])
    return Rate(
        per_second=float(calls.sum() / seconds.sum()),
        interval=(float(low), float(high)),
        start_s=blocks.middle_s[start],
        end_s=blocks.middle_s[end - 1],
        n=int(calls.sum()),
    )


def kept_share(
    blocks: Blocks, first: Rate, last: Rate, resamples: int = 1000
) -> tuple[float, Interval] | None:
    """Sustained over burst rate with its 95 % interval (both sides drawn); None where one is missing."""
    if first.per_second is None or last.per_second is None:
        return None
    random, sides = np.random.default_rng(1), []
    for side in (last, first):
        middle = np.asarray(blocks.middle_s)
        start, end = (int((middle < at).sum()) for at in (side.start_s, side.end_s))
        calls, seconds = _batched(blocks, start, end + 1)
        draws = random.integers(0, len(calls), (resamples, len(calls)))
        sides.append(calls[draws].sum(axis=1) / seconds[draws].sum(axis=1))
    low, high = np.quantile(sides[0] / sides[1], [0.025, 0.975])
    return last.per_second / first.per_second, (float(low), float(high))


def _batched(blocks: Blocks, start: int, end: int, most: int = 20) -> tuple[Floats, Floats]:
    """Calls and seconds of up to ``most`` consecutive batches: neighbours share the machine's mood."""
    places = np.array_split(np.arange(start, end), min(most, end - start))
    calls = np.asarray([sum(blocks.calls[i] for i in p) for p in places], np.float64)
    return calls, np.asarray([sum(blocks.seconds[i] for i in p) for p in places])


def _noise(values: Floats) -> float:
    """The spread from block to block, as a share: robust, and blind to slow drifts."""
    steps = np.diff(np.log(values))
    return 1.4826 * float(np.median(np.abs(steps))) / math.sqrt(2) if len(steps) else 0.0


# ---------------------------------------------------------------- causes


def causes(recording: Recording, before: Span, after: Span, trips: Sequence[Trip]) -> tuple[Cause, ...]:
    """What changed with the latency from ``before`` to ``after``, spans of the recording's clock."""
    found = [
        *_clocks(recording, before, after),
        *_heat(recording, before, after, trips),
        *_grown(recording, before, after),
    ]
    unknown = "no clock, temperature, quota, stolen time or other work that was seen changed with it"
    return tuple(found) or (Cause(kind="unknown", what=f"unknown cause: {unknown}"),)


def _clocks(recording: Recording, before: Span, after: Span) -> Iterator[Cause]:
    for name, values in clocks(recording).items():
        then, now = (float(np.median(_inside(recording, values, s) or [0.0])) for s in (before, after))
        if then and now and now < then * (1 - CLOCK_FELL):
            yield Cause(kind="clock", what=f"the clock of {name} fell from {then:.0f} to {now:.0f} MHz")


def clocks(recording: Recording) -> dict[str, tuple[float | None, ...]]:
    """The mean of the CPU's cores as one clock, and the clocks of other engines by their names."""
    tracks = [t for t in recording.tracks if t.quantity == "clock_mhz"]
    cores = [t.values for t in tracks if t.sensor.lower().removeprefix("cpu").isdecimal()]
    found = {t.sensor: t.values for t in tracks if not t.sensor.lower().removeprefix("cpu").isdecimal()}
    if cores:
        rows = ([v for v in row if v is not None] for row in zip(*cores, strict=True))
        found = {"the CPU": tuple(sum(row) / len(row) if row else None for row in rows), **found}
    return found


def _heat(recording: Recording, before: Span, after: Span, trips: Sequence[Trip]) -> Iterator[Cause]:
    for trip in sorted(trips, key=lambda t: t.celsius):
        track = recording.track(trip.zone, "temperature_c")
        if track is None or trip.celsius < COLDEST_TRIP_C:
            continue
        # what got hot long after the slow-down did not make it
        until = min(after[1], after[0] + HEAT_SECONDS)
        hottest = max(_inside(recording, track.values, (before[0], until)), default=-math.inf)
        if hottest >= trip.celsius - NEAR_TRIP_C:
            point = f"its {trip.kind} trip point is {trip.celsius:.1f} °C"
            what = f"thermal zone {trip.zone} reached {hottest:.1f} °C; {point}"
            yield Cause(kind="temperature", what=what)


_GREW: tuple[tuple[str, CauseKind, float, str], ...] = (
    (QUOTA, "quota", SHARE_GREW, "a CPU quota stopped it in {now:.0%} of the periods, {then:.0%} before"),
    (STOLEN, "stolen", SHARE_GREW, "the hypervisor took {now:.0%} of the CPUs' time, {then:.0%} before"),
    (OTHERS, "load", CPUS_GREW, "other processes kept {now:.1f} CPUs busy, {then:.1f} before"),
)


def _grown(recording: Recording, before: Span, after: Span) -> Iterator[Cause]:
    for sensor, kind, least, words in _GREW:
        track: Track | None = next((t for t in recording.tracks if t.sensor == sensor), None)
        if track is None:
            continue
        then, now = (_mean(recording, track.values, span) for span in (before, after))
        if then is not None and now is not None and now - then > least:
            yield Cause(kind=kind, what=words.format(now=now, then=then))


def _inside(recording: Recording, values: Sequence[float | None], span: Span) -> list[float]:
    pairs = zip(recording.times_s, values, strict=True)
    return [v for t, v in pairs if v is not None and span[0] <= t < span[1]]


def _mean(recording: Recording, values: Sequence[float | None], span: Span) -> float | None:
    known = _inside(recording, values, span)
    return sum(known) / len(known) if known else None
