"""The machine's health at any moment, read beside the work: no frame ever waits for a sensor.

Each source has a thread of its own, because a driver may hang for seconds; one more puts together what they
said last. What vanished, hangs or answers nonsense is None in the ``Health`` and an ``Event`` once, when it
goes and when it comes back, and never an exception. Time is the monotonic clock; a wall clock that jumps is
an event and moves nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from edgekiln.runtime.vocabulary import Event, EventKind, Health
from edgekiln.sensors import headroom, live, power, power_supply, sysfs
from edgekiln.sensors.reading import COLDEST_C, HOTTEST_C, Quantity, Reading, Sample

Source: TypeAlias = live.Source
Key: TypeAlias = tuple[str, Quantity]

INTERVAL_S = 1.0
STALE_INTERVALS, STALE_S = 3, 2.0
"""What a source said so long ago says nothing of now."""
MOST_EVENTS = 256
JUMP_S = 1.0
STOP_S = 1.0
TRIPS = "trips"
_WATCHED: tuple[Quantity, ...] = ("temperature_c", "power_watts", "share", "memory_bytes", "status", "cpus")
"""Quantities whose loss is an event; a clock or a load more or less is none."""


class Trips:
    """The trip points, read now and then: firmware changes them hardly ever, and there are dozens of
    files."""

    def __init__(self, root: Path = live.ROOT, every: int = 30) -> None:
        self._root, self._every, self._asked = root, every, 0
        self.points: tuple[sysfs.Trip, ...] = ()

    def __call__(self) -> Sample:
        if self._asked % self._every == 0:
            self.points = sysfs.trips(self._root / "sys")
        self._asked += 1
        return Sample(readings=())


@contextlib.contextmanager
def sources(root: Path = live.ROOT, interval_s: float = INTERVAL_S) -> Iterator[dict[str, Source]]:
    """All sources of this machine by name. Where there is no sysfs, psutil stands in, if it is installed."""
    with live.here(interval_s, own=(os.getpid(),), root=root) as found:
        found["power_supply"] = lambda: power_supply.read(root / "sys")
        found["headroom"] = lambda: headroom.read(root)
        found[TRIPS] = Trips(root)
        if not (root / "sys" / "class").is_dir() and importlib.util.find_spec("psutil") is not None:
            found["psutil"] = from_psutil
        yield found


def health_of(at_s: float, samples: Mapping[str, Sample], points: Sequence[sysfs.Trip] = ()) -> Health:
    """What ``samples``, by source, say together; ``points`` are the trip points of the zones. Pure."""
    readings = [r for sample in samples.values() for r in sample.readings if _sound(r)]
    zone, celsius, trip = _warmest(readings, points)
    watts, scope = _power(readings)
    batteries = [r for r in samples.get("power_supply", _NOTHING).readings if _sound(r)]
    batteries += [r for r in samples.get("psutil", _NOTHING).readings if _sound(r)]
    charges = [r.value for r in batteries if r.quantity == "share" and r.value is not None]
    return Health(
        at_s=at_s,
        temperature_c=celsius,
        trip_c=trip,
        zone=zone,
        power_watts=watts,
        power_of=scope,
        battery_share=min(1.0, min(charges)) if charges else None,
        on_battery=_on_battery(batteries),
        clock_share=_value(readings, headroom.CLOCK, "share"),
        memory_free_bytes=_whole(_value(readings, headroom.MEMORY, "memory_bytes")),
        others_cpus=_value(readings, live.OTHERS, "cpus"),
    )


_NOTHING = Sample(readings=())


def _sound(reading: Reading) -> bool:
    value = reading.value
    if value is None or not math.isfinite(value):
        return False
    return reading.quantity != "temperature_c" or COLDEST_C < value < HOTTEST_C


def _value(readings: Sequence[Reading], sensor: str, quantity: Quantity) -> float | None:
    return next((r.value for r in readings if (r.sensor, r.quantity) == (sensor, quantity)), None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _warmest(
    readings: Sequence[Reading], points: Sequence[sysfs.Trip]
) -> tuple[str, float | None, float | None]:
    """The zone nearest to its trip point: name, temperature, trip point. Without trip points, the warmest
    sensor."""
    temperatures: dict[str, float] = {}
    for r in readings:
        if r.quantity == "temperature_c" and r.value is not None:
            temperatures[r.sensor] = max(r.value, temperatures.get(r.sensor, -math.inf))
    trips: dict[str, float] = {}
    for point in points:
        trips[point.zone] = min(point.celsius, trips.get(point.zone, math.inf))
    near = [(trips[name] - celsius, name) for name, celsius in temperatures.items() if name in trips]
    if near:
        _, name = min(near)
        return name, temperatures[name], trips[name]
    if not temperatures:
        return "", None, None
    name = max(temperatures, key=lambda n: temperatures[n])
    return name, temperatures[name], None


def _power(readings: Sequence[Reading]) -> tuple[float | None, str]:
    """The machine's power and what that covers; the drain of a battery where there is no other sensor of
    it."""
    watts = {r.sensor: r.value for r in readings if r.quantity == "power_watts" and r.value is not None}
    draining = {r.sensor.split()[0] for r in readings if r.sensor.endswith(f" {power_supply.DISCHARGING}")}
    names, scope, _ = power.choose(name for name in watts if name not in draining)
    if names:
        return sum(watts[name] for name in names), scope
    drains = [watts[name] for name in sorted(draining) if name in watts]
    return (sum(drains), "what the battery gives") if drains else (None, "")


def _on_battery(readings: Sequence[Reading]) -> bool | None:
    """Whether a battery feeds the machine; None where there is none that says so."""
    states = [r.value for r in readings if r.sensor.endswith(f" {power_supply.DISCHARGING}")]
    return any(value == 1.0 for value in states) if states else None


def from_psutil() -> Sample:
    """The last resort, where there is no sysfs: temperatures, battery, memory and clock as psutil gives
    them."""
    psutil: Any = importlib.import_module("psutil")
    found: list[Reading] = []
    for chip, sensors in getattr(psutil, "sensors_temperatures", dict)().items():
        for sensor in sensors:
            name = f"{chip} {sensor.label}".strip()
            found.append(Reading(sensor=name, quantity="temperature_c", value=float(sensor.current)))
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    if battery is not None:
        found.append(Reading(sensor="battery", quantity="share", value=battery.percent / 100.0))
        if battery.power_plugged is not None:
            drains = 0.0 if battery.power_plugged else 1.0
            name = f"battery {power_supply.DISCHARGING}"
            found.append(Reading(sensor=name, quantity="status", value=drains))
    free = float(psutil.virtual_memory().available)
    found.append(Reading(sensor=headroom.MEMORY, quantity="memory_bytes", value=free))
    clock = psutil.cpu_freq()
    if clock is not None and clock.max:
        share = min(1.0, clock.current / clock.max)
        found.append(Reading(sensor=headroom.CLOCK, quantity="share", value=share))
    return Sample(readings=tuple(found))


# ---------------------------------------------------------------- beside the work


class _Asker:
    """One source with its thread. ``last`` is (when, sample or None, reason), replaced whole."""

    def __init__(self, name: str, source: Source, interval_s: float, clock: Callable[[], float]) -> None:
        self.name, self._source, self._interval_s, self._clock = name, source, interval_s, clock
        self.last: tuple[float, Sample | None, str] | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"health {name}", daemon=True)

    def ask(self) -> None:
        try:
            sample = self._source()
            self.last = (self._clock(), sample, "")
        except Exception as error:  # a driver, a parser, a child that ended: an event and no end
            self.last = (self._clock(), None, str(error) or type(error).__name__)

    def _run(self) -> None:
        due = time.monotonic()
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            self.ask()
            due = max(due + self._interval_s, time.monotonic())


class Watch:
    """``with sources() as found, Watch(found) as watch: watch.latest()`` is the health of a moment ago.

    ``latest`` and ``events`` never wait: threads write, and replace what they wrote as a whole. The threads
    end with the block; one that hangs in a driver is left behind (it is a daemon). ``clock`` and ``wall`` are
    in seconds.
    """

    def __init__(
        self,
        found: Mapping[str, Source],
        interval_s: float = INTERVAL_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.interval_s, self._clock, self._wall = interval_s, clock, wall
        self._trips = next((s for s in found.values() if isinstance(s, Trips)), None)
        self._askers = [_Asker(name, source, interval_s, clock) for name, source in found.items()]
        self._health = Health(at_s=clock())
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._begun = clock()
        self._down: set[str] = set()
        self._alive: set[Key] = set()
        self._had: set[Key] = set()
        self._offset: float | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def __enter__(self) -> Watch:
        for asker in self._askers:
            asker.thread.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for asker in self._askers:
            asker.ending.set()
        until = time.monotonic() + STOP_S
        for thread in (self._thread, *(asker.thread for asker in self._askers)):
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def latest(self) -> Health:
        """The newest health; before the first look it knows nothing but the time."""
        return self._health

    def events(self) -> tuple[Event, ...]:
        """What happened since the last call, oldest first; of more than ``MOST_EVENTS`` the newest."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._events.popleft())
        return tuple(taken)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            self.look()
            due = max(due + self.interval_s, time.monotonic())

    def ask(self) -> None:
        """Ask every source in turn, here: for tests and for who wants no threads."""
        for asker in self._askers:
            asker.ask()

    def look(self) -> Health:
        """Put together what the sources said last. The thread calls it; a test may."""
        now = self._clock()
        self._watch_clock(now)
        samples = {}
        for asker in self._askers:
            sample, reason = self._said(asker, now)
            self._watch_source(now, asker.name, reason)
            if sample is not None:
                samples[asker.name] = sample
        self._watch_sensors(now, samples)
        points = self._trips.points if self._trips is not None else ()
        self._health = health_of(now, samples, points)
        return self._health

    def _said(self, asker: _Asker, now: float) -> tuple[Sample | None, str]:
        """A source's newest sample, or why there is none."""
        stale = max(STALE_S, STALE_INTERVALS * self.interval_s)
        last = asker.last
        since = self._begun if last is None else last[0]
        if now - since > stale:
            return None, f"it has not answered for {now - since:.0f} s"
        return (None, "") if last is None else (last[1], last[2])

    def _watch_source(self, now: float, name: str, reason: str) -> None:
        if reason and name not in self._down:
            self._down.add(name)
            self._tell(now, "sensor-lost", name, reason)
        elif not reason and name in self._down:
            self._down.discard(name)
            self._tell(now, "sensor-returned", name, "it answers again")

    def _watch_sensors(self, now: float, samples: Mapping[str, Sample]) -> None:
        every = [r for s in samples.values() for r in s.readings if r.quantity in _WATCHED]
        alive = {(r.sensor, r.quantity) for r in every if _sound(r)}
        reasons = {(r.sensor, r.quantity): r.reason for r in every if not _sound(r)}
        for key in sorted(self._alive - alive):
            self._tell(
                now, "sensor-lost", f"{key[0]} ({key[1]})", reasons.get(key) or "it is no longer there"
            )
        for key in sorted(alive & (self._had - self._alive)):
            self._tell(now, "sensor-returned", f"{key[0]} ({key[1]})", "it answers again")
        self._alive = alive
        self._had |= alive

    def _watch_clock(self, now: float) -> None:
        offset = self._wall() - now
        if self._offset is not None and abs(offset - self._offset) > JUMP_S:
            self._tell(now, "clock", "the wall clock", f"it jumped by {offset - self._offset:+.0f} s")
        self._offset = offset

    def _tell(self, now: float, kind: EventKind, what: str, why: str) -> None:
        if kind == "sensor-lost":
            done = "it is left out until it answers"
        elif kind == "clock":
            done = "nothing: time is the monotonic clock"
        else:
            done = "it is used again"
        self._events.append(Event(at_s=now, kind=kind, what=what[:200], why=why[:300], done=done))
