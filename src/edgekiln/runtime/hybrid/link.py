"""What is known of the way to the server: round trips as they were measured, and what follows from them.

A call that was given up after some time took longer than that, nobody knows how much. Such samples count as
infinite, which is right for any percentile: a share of answers within a limit needs no more than to know
which calls were within it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.records import Record
from edgekiln.runtime.hybrid.breaker import Breaker
from edgekiln.runtime.vocabulary import Link

WINDOW = 64
FRESH_S = 30.0
HALVING = 4
_LEAST_SPREAD = 1.5


class Trip(Record, frozen=True, kw_only=True):
    """One call that ended at ``at_s``: ``round_trip_ms`` from its start to the last byte of the answer.

    ``answered`` False: given up or failed after so long, and the true figure is larger.
    """

    at_s: float
    round_trip_ms: float
    sent_bytes: int = 0
    received_bytes: int = 0
    answered: bool = True


class Trips(Record, frozen=True, kw_only=True):
    """The last WINDOW calls, oldest first."""

    trips: tuple[Trip, ...] = ()


class Bandwidth(Record, frozen=True, kw_only=True):
    """Payload bytes a second, both ways together. ``at_least``: all calls were of about one size, so that
    the share of the bytes in their time can't be told from the rest, and the true figure is higher."""

    bytes_per_s: float
    at_least: bool


def observe(known: Trips, trip: Trip) -> Trips:
    return replace(known, trips=(*known.trips, trip)[-WINDOW:])


def fresh(known: Trips, now_s: float) -> tuple[Trip, ...]:
    """The calls that ended within the last FRESH_S seconds: what is older was another network."""
    return tuple(t for t in known.trips if now_s - t.at_s <= FRESH_S)


def round_trip_ms(known: Trips, percentile: float, now_s: float) -> float | None:
    """The round trip that ``percentile`` of the fresh calls kept (nearest rank), infinite where more than
    the rest got no answer. None without a fresh call."""
    samples = sorted(t.round_trip_ms if t.answered else math.inf for t in fresh(known, now_s))
    if not samples:
        return None
    return samples[min(len(samples), max(1, math.ceil(percentile * len(samples)))) - 1]


def share_within(known: Trips, limit_ms: float, now_s: float) -> float | None:
    """The share of fresh calls that were answered within ``limit_ms``; None without a fresh call.

    Later calls weigh more (halving every HALVING calls), so that a link that broke or came back is soon seen.
    """
    trips = fresh(known, now_s)
    if not trips:
        return None
    weights: list[float] = [0.5 ** (age / HALVING) for age in reversed(range(len(trips)))]
    kept: float = sum(
        w for w, t in zip(weights, trips, strict=True) if t.answered and t.round_trip_ms <= limit_ms
    )
    return kept / sum(weights)


def bandwidth(known: Trips, now_s: float) -> Bandwidth | None:
    """From how the time of a call grows with its bytes: the median slope over pairs of calls (Theil 1950,
    Sen 1968), which a few delayed calls do not move. None without an answered call with payload."""
    trips = [t for t in fresh(known, now_s) if t.answered and _payload(t) and t.round_trip_ms > 0]
    if not trips:
        return None
    slopes = [
        (b.round_trip_ms - a.round_trip_ms) / (_payload(b) - _payload(a))
        for i, a in enumerate(trips)
        for b in trips[i + 1 :]
        if max(_payload(a), _payload(b)) >= _LEAST_SPREAD * min(_payload(a), _payload(b))
    ]
    if slopes and (slope := _median(slopes)) > 0:
        return Bandwidth(bytes_per_s=1e3 / slope, at_least=False)
    return Bandwidth(bytes_per_s=max(1e3 * _payload(t) / t.round_trip_ms for t in trips), at_least=True)


def link(known: Trips, breaker: Breaker, percentile: float, now_s: float) -> Link:
    """The link as policies see it. ``round_trip_ms`` is infinite where too many calls got no answer."""
    trip_ms = round_trip_ms(known, percentile, now_s)
    if not breaker.usable:
        return Link(usable=False, round_trip_ms=trip_ms, why=f"the circuit breaker is {breaker.state}")
    if trip_ms is None:
        return Link(usable=True, why="no call has been answered lately")
    if math.isinf(trip_ms):
        why = f"fewer than {percentile:.0%} of the last calls were answered"
        return Link(usable=True, round_trip_ms=trip_ms, why=why)
    return Link(usable=True, round_trip_ms=trip_ms)


def _payload(trip: Trip) -> int:
    return trip.sent_bytes + trip.received_bytes


def _median(values: Sequence[float]) -> float:
    ranked = sorted(values)
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
