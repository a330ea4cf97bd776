"""What a soak gives: frozen records, and nothing that computes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgekiln.prove.metering import Idle
from edgekiln.prove.soak_analysis import Cause, Change, Rate
from edgekiln.prove.statistics import Interval, Percentiles
from edgekiln.records import Record, Scalar
from edgekiln.sensors.energy import Energy
from edgekiln.sensors.reading import Quantity
from edgekiln.sensors.recorder import Event
from edgekiln.sensors.sysfs import Trip

Ended: TypeAlias = Literal["whole", "interrupted", "failed"]


class Bin(Record, frozen=True, kw_only=True):
    """A stretch of the soak, ``start_s`` after its start and ``seconds`` long: its calls and their latency.

    ``p95_ms`` is None below 20 calls.
    """

    start_s: float
    seconds: float
    n: int
    p50_ms: float
    p95_ms: float | None


class Course(Record, frozen=True, kw_only=True):
    """One sensor's mean in each bin; None where it said nothing."""

    sensor: str
    quantity: Quantity
    means: tuple[float | None, ...]


class Slowdown(Record, frozen=True, kw_only=True):
    """A confirmed change for the slower, and what changed with it."""

    change: Change
    causes: tuple[Cause, ...]


class Soak(Record, frozen=True, kw_only=True):
    """What a soak showed. Times are seconds since its first call; latencies are of calls, measured here.

    ``ended`` is ``whole``, ``interrupted`` (cut short by the user) or ``failed`` (the worker was lost), and
    ``why`` says more. ``percentiles`` are of ``percentiles.n`` calls of all ``n``, taken evenly. ``kept`` is
    the sustained rate over the burst rate. The first of ``slowdowns`` is the point of throttling.
    ``clock_mhz``, ``hottest_c`` and ``watts`` are per bin: the mean of the CPU's cores (else of the first
    engine that has a clock), the hottest sensor, the machine's power. ``courses`` holds every sensor;
    ``courses_left_out`` did not fit. Idle power was measured before.
    """

    id: str
    engine: str
    engine_version: str
    threads: int
    when: str
    asked_s: float
    lasted_s: float
    ended: Ended
    why: str
    n: int
    percentiles: Percentiles | None
    bins: tuple[Bin, ...]
    burst: Rate
    sustained: Rate
    kept: float | None
    kept_interval: Interval | None
    changes: tuple[Change, ...]
    slowdowns: tuple[Slowdown, ...]
    clock_mhz: tuple[float | None, ...]
    clock_of: str
    hottest_c: tuple[float | None, ...]
    hottest_of: str
    watts: tuple[float | None, ...]
    watts_of: str
    trips: tuple[Trip, ...]
    courses: tuple[Course, ...]
    courses_left_out: int
    events: tuple[Event, ...]
    idle: Idle
    energy: Energy
    peak_rss_bytes: int | None
    warmup_calls: int
    warmup_stable: bool
    cores: tuple[int, ...]
    unfit: tuple[str, ...]
    environment: dict[str, Scalar]

    @property
    def throttle(self) -> Slowdown | None:
        """The point of throttling: the first confirmed slow-down."""
        return self.slowdowns[0] if self.slowdowns else None
