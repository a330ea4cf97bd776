"""What a running session counts: cheap where frames pass, and a frozen ``Snapshot`` for whoever looks.

A loop calls ``Metrics`` from any of its threads; each call takes one lock for some microseconds and never
waits for a file, a terminal or a scrape. All counts only grow, so two snapshots subtract to what happened
between them (``runtime.summary``).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from edgekiln.records import Record
from edgekiln.runtime.histogram import BUCKETS, Histogram, bucket_of, clamped, frozen
from edgekiln.runtime.joules import Joules
from edgekiln.runtime.vocabulary import Answer, Call, Event, Goal, Health, Rung, Setting
from edgekiln.sensors.energy import Energy

MOST_STREAMS, MOST_REASONS, MOST_RUNGS = 64, 32, 64
"""Names beyond these are counted under ``OTHER``: strangers' names must not fill memory, nor Prometheus."""
OTHER = "other"
KEPT_EVENTS = 512


PASSED_OVER = "passed over"
"""Why a frame was dropped that the setting (every n-th frame) never meant to answer."""


class FrameCounts(Record, frozen=True, kw_only=True):
    """Frames of one stream. Those that are neither done, dropped nor failed are still on their way.

    ``done`` were answered, ``late`` of them after the deadline; ``dropped`` got no answer on purpose (a full
    queue, every second frame), ``failed`` could have none; both by reason.
    """

    entered: int = 0
    done: int = 0
    late: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    failed: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def due(self) -> int:
        """Frames that should have been answered in time and are over: all but those passed over by plan."""
        lost = sum(self.dropped.values()) + sum(self.failed.values())
        return self.done + lost - self.dropped.get(PASSED_OVER, 0)


class RungUse(Record, frozen=True, kw_only=True):
    """Seconds for which a rung was the setting, and the frames that it answered (a fallback's too)."""

    seconds: float = 0.0
    frames: int = 0
    late: int = 0


class Snapshot(Record, frozen=True, kw_only=True):
    """All counts from ``started_s`` to ``at_s`` of the session's monotonic clock.

    ``latency`` is of every answer, in the caller's eyes. ``rescued`` frames were answered by another rung
    than the one tried first; ``offloaded`` ones by a server. ``busy_s`` is what the calls on this machine
    took, added up: more than the time that passed where calls overlap. ``joules`` is what the machine took in
    all while its power was known (``powered_s`` seconds). ``hottest_c`` is the highest temperature seen.
    ``log_lost`` are lines that the log could not write. Means are None before there is anything to average.
    """

    at_s: float
    started_s: float
    deadline_ms: float
    percentile: float
    streams: dict[str, FrameCounts] = msgspec.field(default_factory=dict)
    latency: Histogram = Histogram()
    setting: Setting | None = None
    setting_why: str = ""
    setting_since_s: float | None = None
    changes: int = 0
    rungs: dict[str, RungUse] = msgspec.field(default_factory=dict)
    quality_sum: float = 0.0
    quality_n: int = 0
    rescued: int = 0
    offloaded: int = 0
    calls: int = 0
    failed_calls: int = 0
    busy_s: float = 0.0
    health: Health | None = None
    hottest_c: float | None = None
    joules: float = 0.0
    powered_s: float = 0.0
    energy: Energy = Energy(inferences=0, reason="no power was read")
    events: dict[str, int] = msgspec.field(default_factory=dict)
    log_lost: int = 0

    @property
    def seconds(self) -> float:
        return max(0.0, self.at_s - self.started_s)

    @property
    def quality(self) -> float | None:
        """Mean quality of the answers that have one, a share of the model's best."""
        return self.quality_sum / self.quality_n if self.quality_n else None

    @property
    def total(self) -> FrameCounts:
        """The counts of all streams together."""
        found = list(self.streams.values())
        return FrameCounts(
            entered=sum(s.entered for s in found),
            done=sum(s.done for s in found),
            late=sum(s.late for s in found),
            dropped=_summed([s.dropped for s in found]),
            failed=_summed([s.failed for s in found]),
        )


class Metrics:
    """The counters of one session.

    ``ladder`` only fixes the order in which rungs are shown; others may come. ``idle_watts`` is the machine's
    power without the session, None where nobody measured it: energy per inference is then unknown.
    """

    def __init__(
        self, goal: Goal, ladder: Sequence[Rung] = (), started_s: float = 0.0, idle_watts: float | None = None
    ) -> None:
        self._goal, self._started = goal, started_s
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._counts, self._sum_ms = [0] * BUCKETS, 0.0
        # seconds, frames, late
        self._rungs: dict[str, list[float]] = {r.id: [0.0, 0, 0] for r in ladder[:MOST_RUNGS]}
        self._setting: tuple[Setting, str, float] | None = None
        self._since, self._changes = started_s, 0
        self._quality_sum, self._quality_n = 0.0, 0
        self._rescued = self._offloaded = self._done = 0
        self._calls = self._failed_calls = 0
        self._busy_s = 0.0
        self._health: Health | None = None
        self._hottest: float | None = None
        self._joules = Joules(idle_watts)
        self._events: dict[str, int] = {}
        self._recent: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._log_lost = 0

    def frame_in(self, stream: str, n: int = 1) -> None:
        """``n`` frames came from ``stream``."""
        with self._lock:
            self._stream(stream).entered += n

    def done(
        self, stream: str, answer: Answer, deadline_ms: float | None = None, quality: float | None = None
    ) -> None:
        """A frame of ``stream`` was answered. ``deadline_ms`` replaces the goal's."""
        bucket = bucket_of(answer.latency_ms)
        limit = self._goal.deadline_ms if deadline_ms is None else deadline_ms
        late = answer.late or answer.latency_ms > limit
        with self._lock:
            counts = self._stream(stream)
            counts.done += 1
            counts.late += late
            self._done += 1
            self._counts[bucket] += 1
            self._sum_ms += clamped(answer.latency_ms)
            rung = self._rung(answer.rung)
            rung[1] += 1
            rung[2] += late
            self._rescued += bool(answer.hops)
            self._offloaded += answer.place == "cloud"
            if quality is not None:
                self._quality_sum += quality
                self._quality_n += 1

    def dropped(self, stream: str, n: int, why: str) -> None:
        """``n`` frames of ``stream`` will get no answer, on purpose."""
        with self._lock:
            _count(self._stream(stream).dropped, why, n)

    def failed(self, stream: str, n: int, why: str) -> None:
        """``n`` frames of ``stream`` got a typed error instead of an answer."""
        with self._lock:
            _count(self._stream(stream).failed, why, n)

    def call(self, call: Call, place: str = "edge") -> None:
        """An engine's call ended; one on a server keeps no engine of this machine busy."""
        with self._lock:
            self._calls += 1
            self._failed_calls += not call.ok
            if place == "edge":
                self._busy_s += max(0.0, call.latency_ms) / 1e3

    def health(self, health: Health) -> None:
        """The machine was looked at. Power is integrated from the look before to this one."""
        with self._lock:
            self._health = health
            if health.temperature_c is not None:
                before = health.temperature_c if self._hottest is None else self._hottest
                self._hottest = max(before, health.temperature_c)
            self._joules.read(health.at_s, health.power_watts, self._done)

    def setting(self, setting: Setting, rung: Rung, why: str, at_s: float) -> None:
        """From ``at_s`` frames are answered as ``setting`` says, on ``rung``, because of ``why``."""
        with self._lock:
            self._pass_time(at_s)
            self._rung(rung.id)
            self._changes += self._setting is not None
            self._setting = (setting, why, at_s)

    def event(self, event: Event) -> None:
        """Something happened that an operator would want to know."""
        with self._lock:
            self._events[event.kind] = self._events.get(event.kind, 0) + 1
            self._recent.append(event)

    def log_lost(self, lines: int) -> None:
        """So many lines of the log could not be written, all in all."""
        with self._lock:
            self._log_lost = lines

    def recent(self) -> tuple[Event, ...]:
        """The last events, oldest first, ``KEPT_EVENTS`` at most."""
        with self._lock:
            return tuple(self._recent)

    def snapshot(self, now_s: float) -> Snapshot:
        """All counts until ``now_s``."""
        with self._lock:
            self._pass_time(now_s)
            counts, sum_ms = self._counts.copy(), self._sum_ms
            setting, why, since = self._setting or (None, "", None)
            made = Snapshot(
                at_s=max(now_s, self._started),
                started_s=self._started,
                deadline_ms=self._goal.deadline_ms,
                percentile=self._goal.percentile,
                streams={name: s.counts() for name, s in self._streams.items()},
                setting=setting,
                setting_why=why,
                setting_since_s=since,
                changes=self._changes,
                rungs={
                    r: RungUse(seconds=u[0], frames=int(u[1]), late=int(u[2])) for r, u in self._rungs.items()
                },
                quality_sum=self._quality_sum,
                quality_n=self._quality_n,
                rescued=self._rescued,
                offloaded=self._offloaded,
                calls=self._calls,
                failed_calls=self._failed_calls,
                busy_s=self._busy_s,
                health=self._health,
                hottest_c=self._hottest,
                joules=self._joules.joules,
                powered_s=self._joules.seconds,
                energy=self._joules.energy(),
                events=dict(self._events),
                log_lost=self._log_lost,
            )
        return msgspec.structs.replace(made, latency=frozen(counts, sum_ms))  # outside of the lock

    def _stream(self, name: str) -> _Stream:
        found = self._streams.get(name)
        if found is None:
            if len(self._streams) >= MOST_STREAMS:
                name = OTHER
            found = self._streams.setdefault(name, _Stream())
        return found

    def _rung(self, name: str) -> list[float]:
        found = self._rungs.get(name)
        if found is None:
            if len(self._rungs) >= MOST_RUNGS:
                name = OTHER
            found = self._rungs.setdefault(name, [0.0, 0, 0])
        return found

    def _pass_time(self, now_s: float) -> None:
        """The time since the last look belongs to the setting of that time; a clock never runs back here."""
        if self._setting is not None and now_s > self._since:
            self._rung(self._setting[0].rung)[0] += now_s - self._since
        self._since = max(now_s, self._since)


class _Stream:
    """The counters of one stream, before they are frozen."""

    __slots__ = ("done", "dropped", "entered", "failed", "late")

    def __init__(self) -> None:
        self.entered = self.done = self.late = 0
        self.dropped: dict[str, int] = {}
        self.failed: dict[str, int] = {}

    def counts(self) -> FrameCounts:
        return FrameCounts(
            entered=self.entered,
            done=self.done,
            late=self.late,
            dropped=dict(self.dropped),
            failed=dict(self.failed),
        )


def _count(held: dict[str, int], why: str, n: int) -> None:
    if why not in held and len(held) >= MOST_REASONS:
        why = OTHER
    held[why] = held.get(why, 0) + n


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    made: dict[str, int] = {}
    for one in counts:
        for why, n in one.items():
            made[why] = made.get(why, 0) + n
    return made
