"""Samples over time: a thread that asks its sources at a fixed interval and forgets nothing that matters.

Time is the monotonic clock: a wall clock that jumps is an event and moves nothing. Memory is bounded: a
recording that grows too long is thinned by means of pairs, so that its integral stays. A source that
raises, or a sensor that vanishes, is an event, and the others go on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from edgekiln.records import Record
from edgekiln.sensors.live import Source
from edgekiln.sensors.reading import Quantity, Sample

MOST_ROWS = 4096
MOST_EVENTS = 64
MOST_SENSORS = 512
JUMP_SECONDS = 1.0
"""A wall clock that moves so far against the monotonic one in a tick was set, or the machine slept."""

STOP_SECONDS = 5.0

Kind: TypeAlias = Literal["lost", "returned", "clock", "late"]
_Key: TypeAlias = tuple[str, Quantity]


class Event(Record, frozen=True, kw_only=True):
    """Something that happened to the recording: a sensor ``lost`` or ``returned``, the wall ``clock`` set, a
    tick that came ``late`` because nothing ran."""

    time_s: float
    kind: Kind
    what: str


class Track(Record, frozen=True, kw_only=True):
    """One sensor over the recording's times. None where it said nothing; ``reason`` is the last one given."""

    sensor: str
    quantity: Quantity
    values: tuple[float | None, ...]
    reason: str = ""


class Recording(Record, frozen=True, kw_only=True):
    """``times_s`` are seconds of the monotonic clock. ``ticks`` were made ``interval_s`` apart; where there
    are more of them than rows, a row is a mean of several. ``events_left_out`` did not fit."""

    times_s: tuple[float, ...]
    tracks: tuple[Track, ...]
    events: tuple[Event, ...]
    interval_s: float
    ticks: int
    events_left_out: int = 0

    def track(self, sensor: str, quantity: Quantity) -> Track | None:
        return next((t for t in self.tracks if (t.sensor, t.quantity) == (sensor, quantity)), None)


class Recorder:
    """``with Recorder(sources, 0.5) as running: ...; running.stop()`` gives the recording.

    The thread ends with the block, whatever ends it. ``monotonic`` and ``wall`` are the clocks, in seconds.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        interval_s: float,
        *,
        most_rows: int = MOST_ROWS,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sources, self.interval_s, self._most = dict(sources), interval_s, max(8, most_rows)
        self._monotonic, self._wall = monotonic, wall
        self._rows = _Rows(self._most)
        self._events: list[Event] = []
        self._left_out = self._ticks = 0
        self._down: set[str] = set()
        self._alive: set[_Key] = set()
        self._had: set[_Key] = set()
        self._offset: float | None = None
        self._before: float | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def stop(self) -> Recording:
        """End the thread, take a last look, and give what was recorded. May be called again.

        A source that hangs in its driver is left behind after 5 s, and an event says so.
        """
        if not self._ending.is_set():
            self._end()
            if self._thread.is_alive():
                self._tell(self._monotonic(), "late", "a source did not answer when the recording ended")
            else:
                self.tick()
        return Recording(
            times_s=self._rows.times(),
            tracks=self._rows.tracks(),
            events=tuple(self._events),
            interval_s=self.interval_s,
            ticks=self._ticks,
            events_left_out=self._left_out,
        )

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            self.tick()
            due = max(due + self.interval_s, time.monotonic())

    def tick(self) -> None:
        """One look at all sources. The thread calls it; a test may."""
        now = self._monotonic()
        self._watch_clocks(now)
        found: dict[_Key, float | None] = {}
        reasons: dict[_Key, str] = {}
        for name, source in self._sources.items():
            for key, value, reason in _figures(self._asked(name, source, now)):
                while key in found:  # two zones of one type: both are kept
                    key = (_next(key[0]), key[1])
                found[key], reasons[key] = value, reason
        self._watch_sensors(now, found, reasons)
        self._rows.add(now, found, reasons)
        self._ticks += 1

    def _asked(self, name: str, source: Source, now: float) -> Sample:
        try:
            sample = source()
        except Exception as error:  # a driver, a parser, a child that ended: the others go on
            if name not in self._down:
                self._tell(now, "lost", f"{name}: {error}")
            self._down.add(name)
            return Sample(readings=())
        if name in self._down:
            self._down.discard(name)
            self._tell(now, "returned", name)
        return sample

    def _watch_clocks(self, now: float) -> None:
        offset = self._wall() - now
        if self._offset is not None and abs(offset - self._offset) > JUMP_SECONDS:
            self._tell(now, "clock", f"the wall clock jumped by {offset - self._offset:+.0f} s")
        if self._before is not None and now - self._before > 5 * self.interval_s + 1.0:
            self._tell(now, "late", f"nothing was read for {now - self._before:.1f} s")
        self._offset, self._before = offset, now

    def _watch_sensors(
        self, now: float, found: Mapping[_Key, float | None], reasons: Mapping[_Key, str]
    ) -> None:
        values = {key for key, value in found.items() if value is not None}
        for key in sorted(self._alive - values):
            why = reasons.get(key) or "it is no longer there"
            self._tell(now, "lost", f"{key[0]} ({key[1]}): {why}")
        for key in sorted(values & (self._had - self._alive)):
            self._tell(now, "returned", f"{key[0]} ({key[1]})")
        self._alive = values
        self._had |= values

    def _tell(self, now: float, kind: Kind, what: str) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append(Event(time_s=now, kind=kind, what=what[:300]))
        else:
            self._left_out += 1


def _figures(sample: Sample) -> list[tuple[_Key, float | None, str]]:
    made = []
    for r in sample.readings:
        value = r.value if r.value is not None and math.isfinite(r.value) else None
        made.append(((r.sensor, r.quantity), value, r.reason))
    return made


def _next(sensor: str) -> str:
    """``zone``, ``zone #2``, ``zone #3``."""
    name, mark, number = sensor.rpartition(" #")
    return f"{name} #{int(number) + 1}" if mark and number.isdigit() else f"{sensor} #2"


class _Rows:
    """Times and a column per sensor. Where they would pass ``most`` rows, pairs become their means, and from
    then on so many ticks make one row. The first and the newest tick stay at their own times."""

    def __init__(self, most: int) -> None:
        self._most, self._stride = most, 1
        self._times: list[float] = []
        self._columns: dict[_Key, list[float]] = {}
        self._reasons: dict[_Key, str] = {}
        self._pending: list[tuple[float, dict[_Key, float | None]]] = []
        self._newest: list[tuple[float, dict[_Key, float | None]]] = []

    def add(self, now: float, found: dict[_Key, float | None], reasons: Mapping[_Key, str]) -> None:
        for key in found:
            if key not in self._columns and len(self._columns) < MOST_SENSORS:
                self._columns[key] = [math.nan] * len(self._times)
            if reasons[key]:
                self._reasons[key] = reasons[key]
        self._newest = [(now, found)]
        self._pending.append((now, found))
        # the first tick stays alone: a log has to cover its run from the start
        if len(self._pending) >= self._stride or not self._times:
            self._append(*_mean(self._pending))
            self._pending.clear()
        if len(self._times) > self._most:
            self._thin()

    def _append(self, now: float, found: Mapping[_Key, float]) -> None:
        self._times.append(now)
        for key, column in self._columns.items():
            column.append(found.get(key, math.nan))

    def _thin(self) -> None:
        self._stride *= 2
        self._times = _pairs(self._times)
        self._columns = {key: _pairs(column) for key, column in self._columns.items()}

    def times(self) -> tuple[float, ...]:
        return (*self._times, *self._tail()[0])

    def tracks(self) -> tuple[Track, ...]:
        _, last = self._tail()
        made = []
        for key, column in sorted(self._columns.items()):
            values = [*column, *(row.get(key, math.nan) for row in last)]
            shown = tuple(None if math.isnan(v) else v for v in values)
            made.append(
                Track(sensor=key[0], quantity=key[1], values=shown, reason=self._reasons.get(key, ""))
            )
        return tuple(made)

    def _tail(self) -> tuple[list[float], list[dict[_Key, float]]]:
        """The newest tick where no row has it at its own time: a log has to cover its run to the end."""
        if not self._newest or self._times[-1] >= self._newest[0][0]:
            return [], []
        now, found = _mean(self._newest)
        return [now], [found]


def _mean(ticks: list[tuple[float, dict[_Key, float | None]]]) -> tuple[float, dict[_Key, float]]:
    sums: dict[_Key, list[float]] = {}
    for _, found in ticks:
        for key, value in found.items():
            if value is not None:
                sums.setdefault(key, []).append(value)
    return sum(t for t, _ in ticks) / len(ticks), {k: sum(v) / len(v) for k, v in sums.items()}


def _pairs(values: list[float]) -> list[float]:
    """The first alone, then the mean of each two that follow; what is unknown is left out of its mean."""
    made = values[:1]
    for at in range(1, len(values), 2):
        known = [v for v in values[at : at + 2] if not math.isnan(v)]
        made.append(sum(known) / len(known) if known else math.nan)
    return made
