"""How long a call of each rung takes now: learned from every call, and guessed where there was none yet.

A rung's *base* is the logarithm of its typical time on this machine; the *load* is the logarithm of how much
slower than its base the rung in use is at the moment. What one rung shows of the load shifts the estimate of
all others. Bases start at the bundle's evidence, moved by what the tried rungs showed of this machine, and
are learned by a scalar Kalman filter per rung (the load's jumps count as noise of the measurement, and a call
that is slower than evidence and load explain is the likelier a stall, the slower it is). The estimate at a
percentile is an order statistic of the rung's own latest calls: it rises with the second slow call and falls
when those have left the window.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from edgekiln.records import Record
from edgekiln.runtime.vocabulary import Goal, Rung

WINDOW = 64
"""Calls of one rung that are remembered: at the 99th percentile one outlier in so many is none."""
FEW = 16
"""Below so many calls none is an outlier: a rung that was just taken has to show itself."""
RECENT = 5
MEMORY_S = 3.0
"""How long the calls of a rung that is not in use still speak of it."""
LOAD_VARIANCE, NOISE_VARIANCE = 0.04, 0.01
TOLD_VARIANCE, GUESSED_VARIANCE, LEAST_VARIANCE = 0.09, 1.0, 4e-4
BELIEVED = math.log(1.5)
"""Evidence is believed to be wrong by so much; a call that is slower than that was rather held up."""
LEAST_MS, MOST_MS = 1e-9, 1e12
FAILED_TIMES = 2.0
"""A call that failed counts as one of so many deadlines."""


class Track(Record, frozen=True, kw_only=True):
    """What is known of one rung, one frame a call. ``samples`` are the ms of its latest calls, oldest first,
    ``ordered`` the same by size.

    ``prior`` is the logarithm of the evidence or of a guess, ``shift`` what was learned on top of it (None:
    never tried). ``high_ms`` is the goal's percentile of ``samples``, ``peak_ms`` the worst of the latest.
    ``valid_until_s``: when they stop speaking of a rung that is not in use. ``hold_s``: how long a rung
    that was found late is left alone. ``remote``: a server's, which no load here slows. ``told``: the
    prior is evidence.
    """

    prior: float
    variance: float
    shift: float | None = None
    samples: tuple[float, ...] = ()
    ordered: tuple[float, ...] = ()
    high_ms: float = 0.0
    peak_ms: float = 0.0
    recent_ms: float = 0.0
    mean_ms: float = 0.0
    valid_until_s: float = 0.0
    hold_s: float = 0.0
    remote: bool = False
    told: bool = True


class Estimate(Record, frozen=True, kw_only=True):
    """Milliseconds of one call. ``high_ms`` is at the goal's percentile, ``worst_ms`` what a careful guess
    would say; both are equal where ``n`` own calls are fresh. ``mean_ms`` is the typical time,
    ``base_ms`` that without the present load. ``tried``: some call was timed here,
    ``guessed``: neither evidence nor a call speaks for it."""

    high_ms: float
    worst_ms: float
    mean_ms: float
    peak_ms: float
    base_ms: float
    n: int
    tried: bool = True
    guessed: bool = False


def priors(ladder: Sequence[Rung], goal: Goal) -> dict[str, Track]:
    """A track per rung: the evidence where there is some, else the known rungs' time per pixel, else half the
    deadline for the largest."""
    told = {r.id: r.expected_ms for r in ladder if sound(r.expected_ms)}
    areas = {r.id: float(r.size[0] * r.size[1]) if r.size else 0.0 for r in ladder}
    per_pixel = sorted(ms / areas[i] for i, ms in told.items() if ms and areas[i] > 0)
    largest = max(areas.values(), default=0.0)
    usual = sorted(ms for ms in told.values() if ms)
    tracks: dict[str, Track] = {}
    for rung in ladder:
        ms, variance = told.get(rung.id), TOLD_VARIANCE
        if ms is None:
            variance, area = GUESSED_VARIANCE, areas[rung.id]
            if per_pixel and area > 0:
                ms = per_pixel[len(per_pixel) // 2] * area
            elif usual:
                ms = usual[len(usual) // 2]
            else:
                ms = goal.deadline_ms / 2 * (area / largest if area > 0 else 1.0)
        tracks[rung.id] = Track(
            prior=math.log(ms),
            variance=variance,
            remote=rung.place == "cloud",
            told=rung.id in told,
        )
    return tracks


def sound(ms: float | None) -> bool:
    """Whether it is a time at all, and not one that a machine can't have taken: what is divided by it has to
    stay a number."""
    return ms is not None and LEAST_MS < ms < MOST_MS


def shared_shift(tracks: Mapping[str, Track]) -> float:
    """How much slower than its evidence this machine is, by the tried rungs: the logarithm, 0 before any."""
    shifts = [(t.told, t.shift) for t in tracks.values() if t.shift is not None and not t.remote]
    told = [shift for told, shift in shifts if told]
    # how wrong a guess was says little of another rung's evidence
    if not told and (not shifts or any(t.told for t in tracks.values())):
        return 0.0
    found = told or [shift for _, shift in shifts]
    return sum(found) / len(found)


def base(track: Track, shared: float) -> float:
    """The logarithm of the typical time of a call, in ms."""
    shift = track.shift
    if shift is None:
        shift = 0.0 if track.remote else shared
    return track.prior + shift


def learned(
    track: Track,
    calls: Sequence[tuple[float, float]],
    percentile: float,
    load: float,
    shared: float,
    memory_s: float,
) -> tuple[Track, float]:
    """The track after ``calls`` (at least one: when it ended in s, ms), and the load that the last one shows.

    ``memory_s``: how long a call speaks of its rung. A load of NaN: nothing was ever tried, and the machine
    is as slow as the first call says.
    """
    samples, ordered = list(track.samples), list(track.ordered)
    variance, until_s = track.variance, track.valid_until_s
    known, shift, latest = base(track, shared), 0.0, [0.0]
    for at_s, ms in calls:
        first = math.isnan(load)
        surprise = math.log(ms) - known - (0.0 if first else load)
        noise = LOAD_VARIANCE + NOISE_VARIANCE
        if track.told and surprise > BELIEVED:  # the slower, the likelier a stall, which says nothing of it
            noise += (surprise - BELIEVED) ** 2
        gain = 1.0 if first else variance / (variance + noise)
        known += gain * surprise
        variance = max(LEAST_VARIANCE, (1 - gain) * variance, NOISE_VARIANCE if first else 0.0)
        if len(samples) == WINDOW:  # kept in order, for to sort them all would take most of a decision
            del ordered[bisect_left(ordered, samples.pop(0))]
        samples.append(ms)
        insort(ordered, ms)
        latest = sorted(samples[-RECENT:])
        load = math.log(_middle(latest)) - known
        shift = known - track.prior
        known = track.prior + shift
        until_s = max(until_s, at_s + memory_s)
    n = len(samples)
    made = replace(
        track,
        shift=shift,
        variance=variance,
        samples=tuple(samples),
        ordered=tuple(ordered),
        high_ms=ordered[n - 1 - outliers(n, percentile)],
        peak_ms=latest[-1],
        recent_ms=_middle(latest),
        mean_ms=sum(ordered) / n,
        valid_until_s=until_s,
    )
    return made, load


def _middle(ordered: Sequence[float]) -> float:
    return ordered[(len(ordered) - 1) // 2]


def outliers(n: int, percentile: float) -> int:
    """How many of the slowest of ``n`` calls lie beyond the percentile."""
    beyond = int((1 - percentile) * n)
    return min(n - 1, beyond if n < FEW else max(1, beyond))


def estimate(track: Track, load: float, worst: float, shared: float) -> Estimate:
    """Of a rung on this machine. ``load`` is the present one, ``worst`` the worst that was just seen."""
    known = base(track, shared)
    base_ms = _ms(known)
    if track.samples:
        high, n = track.high_ms, len(track.samples)
        return Estimate(
            high_ms=high,
            worst_ms=high,
            mean_ms=track.mean_ms,
            peak_ms=track.peak_ms,
            base_ms=base_ms,
            n=n,
        )
    load, worst = (0.0, 0.0) if track.remote or math.isnan(load) else (load, worst)
    now = _ms(known + load)
    worst_ms = _ms(known + worst) if worst > load else now
    return Estimate(
        high_ms=now,
        worst_ms=worst_ms,
        mean_ms=now,
        peak_ms=worst_ms,
        base_ms=base_ms,
        n=0,
        tried=track.shift is not None,
        guessed=track.shift is None and not track.told,
    )


def _ms(logarithm: float) -> float:
    """No more than a number can hold."""
    return math.exp(60.0 if logarithm > 60.0 else logarithm)


def aged(tracks: Mapping[str, Track], now_s: float) -> Mapping[str, Track]:
    """Without the calls that no longer speak of their rung. The same object where nothing changed."""
    old = [k for k, t in tracks.items() if t.samples and now_s > t.valid_until_s]
    if not old:
        return tracks
    return {**tracks, **{k: replace(tracks[k], samples=(), ordered=()) for k in old}}
