"""What a session leaves behind: a frozen ``Played`` with rows over time, bounded in number.

Snapshots only grow, so a row is the difference of two of them; where there are too many, every second one is
left out, and nothing is lost but the finer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec

from edgekiln import __version__
from edgekiln.records import Record, Scalar
from edgekiln.runtime.histogram import quantile, since
from edgekiln.runtime.metrics import Snapshot
from edgekiln.runtime.vocabulary import Event, Goal, Rung

MOST_ROWS = 360
Ended: TypeAlias = Literal["whole", "interrupted", "failed"]


class Row(Record, frozen=True, kw_only=True):
    """What happened from ``start_s`` to ``end_s`` (since the session's start).

    ``rung`` held longest, ``shares`` says what share of the time each held. Latencies are of the answers of
    the row, ``highest_ms`` the slowest (all within ``histogram.RELATIVE_ERROR``), None where there was none.
    ``power_watts`` is the mean, from the energy; the temperature is that at the row's end.
    """

    start_s: float
    end_s: float
    entered: int = 0
    done: int = 0
    late: int = 0
    dropped: int = 0
    failed: int = 0
    offloaded: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    highest_ms: float | None = None
    rung: str = ""
    shares: dict[str, float] = msgspec.field(default_factory=dict)
    quality: float | None = None
    busy_share: float = 0.0
    temperature_c: float | None = None
    trip_c: float | None = None
    power_watts: float | None = None


class Played(Record, frozen=True, kw_only=True):
    """A session that is over. ``ladder`` is ordered as the policies saw it, the best first.

    ``engine`` ran the first rung; ``notes`` say where an engine stood in for an artifact's own, so that its
    figures are emulated. ``events_left_out`` of the oldest are counted in the snapshot, but not listed.
    ``when`` is the wall clock's UTC at the start, for people.
    """

    bundle: str
    model: str
    device: str
    engine: str
    goal: Goal
    ladder: tuple[Rung, ...]
    snapshot: Snapshot
    rows: tuple[Row, ...] = ()
    events: tuple[Event, ...] = ()
    events_left_out: int = 0
    ended: Ended = "whole"
    why: str = ""
    notes: tuple[str, ...] = ()
    environment: dict[str, Scalar] = msgspec.field(default_factory=dict)
    when: str = ""
    edgekiln: str = __version__


class Timeline:
    """Snapshots over time, ``MOST_ROWS`` at most: the spacing doubles each time there are too many."""

    def __init__(self, most: int = MOST_ROWS) -> None:
        self._most = most
        self._held: list[Snapshot] = []
        self._last: Snapshot | None = None
        self._least_s = 0.0

    def add(self, found: Snapshot) -> None:
        """Keep ``found`` if it is far enough from the one before; the last is always part of the rows."""
        self._last = found
        if self._held and found.at_s - self._held[-1].at_s < self._least_s * 0.999:
            return
        self._held.append(found)
        if len(self._held) > self._most:
            self._held = self._held[::2]
            spans = sorted(b.at_s - a.at_s for a, b in pairwise(self._held))
            self._least_s = spans[len(spans) // 2]

    def rows(self) -> tuple[Row, ...]:
        """The rows from the session's start to the last snapshot."""
        if self._last is None:
            return ()
        held = self._held if self._held[-1] is self._last else [*self._held, self._last]
        first = held[0]
        begin = Snapshot(
            at_s=first.started_s,
            started_s=first.started_s,
            deadline_ms=first.deadline_ms,
            percentile=first.percentile,
        )
        # Of several looks at one moment the last counts; what it holds beyond the others is in its row.
        moments = {s.at_s: s for s in held if s.at_s > begin.at_s}
        return tuple(row_between(a, b) for a, b in pairwise([begin, *moments.values()]))

    @property
    def last(self) -> Snapshot | None:
        """The last snapshot, None before the first."""
        return self._last


def row_between(before: Snapshot, after: Snapshot) -> Row:
    """What happened between two snapshots of one session."""
    seconds = after.at_s - before.at_s
    latency = since(before.latency, after.latency)
    old, new = before.total, after.total
    held = {name: use.seconds - _seconds(before, name) for name, use in after.rungs.items()}
    known = {name: s for name, s in held.items() if s > 0}
    powered = after.powered_s - before.powered_s
    rated = after.quality_n - before.quality_n
    return Row(
        start_s=before.at_s - after.started_s,
        end_s=after.at_s - after.started_s,
        entered=new.entered - old.entered,
        done=new.done - old.done,
        late=new.late - old.late,
        dropped=sum(new.dropped.values()) - sum(old.dropped.values()),
        failed=sum(new.failed.values()) - sum(old.failed.values()),
        offloaded=after.offloaded - before.offloaded,
        p50_ms=quantile(latency, 0.5),
        p95_ms=quantile(latency, 0.95),
        p99_ms=quantile(latency, 0.99),
        highest_ms=quantile(latency, 1.0),
        rung=max(known, key=lambda name: known[name], default=""),
        shares={name: s / seconds for name, s in known.items()} if seconds > 0 else {},
        quality=(after.quality_sum - before.quality_sum) / rated if rated else None,
        busy_share=(after.busy_s - before.busy_s) / seconds if seconds > 0 else 0.0,
        temperature_c=after.health.temperature_c if after.health else None,
        trip_c=after.health.trip_c if after.health else None,
        power_watts=(after.joules - before.joules) / powered if powered > 0 else None,
    )


def _seconds(found: Snapshot, rung: str) -> float:
    return found.rungs[rung].seconds if rung in found.rungs else 0.0


def played(
    *,
    bundle: str,
    model: str,
    device: str,
    engine: str,
    goal: Goal,
    ladder: Sequence[Rung],
    timeline: Timeline,
    events: Sequence[Event] = (),
    ended: Ended = "whole",
    why: str = "",
    notes: Sequence[str] = (),
    environment: dict[str, Scalar] | None = None,
    when: str = "",
) -> Played:
    """The summary of a session. Raises ValueError where ``timeline`` never saw a snapshot."""
    last = timeline.last
    if last is None:
        raise ValueError("a summary needs at least one snapshot")
    return Played(
        bundle=bundle,
        model=model,
        device=device,
        engine=engine,
        goal=goal,
        ladder=tuple(ladder),
        snapshot=last,
        rows=timeline.rows(),
        events=tuple(events),
        events_left_out=max(0, sum(last.events.values()) - len(events)),
        ended=ended,
        why=why,
        notes=tuple(notes),
        environment=environment or {},
        when=when,
    )
