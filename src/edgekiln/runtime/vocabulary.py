"""The words of the runtime: frozen records that sessions, policies, the governor and the simulator share.

Times (``at_s``, ``now_s``) are seconds of one monotonic clock, real or virtual; no wall clock is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from numpy.typing import NDArray

from edgekiln.records import Artifact, Record, Scalar

Place: TypeAlias = Literal["edge", "cloud"]
Mode: TypeAlias = Literal["fixed", "adaptive", "edge", "cloud"]
"""``fixed``: the best rung and no adaptation. ``edge``: adaptive, and nothing leaves the machine. ``cloud``:
the server first, the edge where it fails. ``adaptive``: whichever answers best within the deadline."""
EventKind: TypeAlias = Literal[
    "opened",
    "change",
    "governor",
    "fallback",
    "recovered",
    "refused",
    "crashed",
    "hung",
    "timeout",
    "memory",
    "not-finite",
    "corrupt",
    "accelerator-lost",
    "source-ended",
    "source-failed",
    "source-lost",
    "source-returned",
    "sensor-lost",
    "sensor-returned",
    "clock",
    "link-down",
    "link-up",
    "log-failed",
    "dropped",
    "closed",
]


class Rung(Record, frozen=True, kw_only=True):
    """One way to answer: an artifact at one input size (pixels), here or on a server.

    ``quality`` is a share of the best that the model can do (1.0), measured or emulated when the bundle was
    built; ``quality_of`` names the figure it came from. ``expected_ms`` (one call of one frame) and
    ``expected_mj`` are the bundle's evidence for this device, None where it has none; what is learned here
    replaces them.
    """

    id: str
    artifact_id: str
    quality: float
    quality_of: str
    size: tuple[int, int] | None = None
    place: Place = "edge"
    expected_ms: float | None = None
    expected_mj: float | None = None
    memory_bytes: int | None = None


class Candidate(Record, frozen=True, kw_only=True):
    """How a rung of this bundle runs here: ``artifact`` with its files in ``folder``, by ``engine``.

    ``note`` says where the engine stands in for the artifact's own, so that figures are told as emulated.
    """

    rung: Rung
    artifact: Artifact
    folder: str
    engine: str
    threads: int
    note: str = ""


class Setting(Record, frozen=True, kw_only=True):
    """How the next frames are answered: on ``rung``, every ``every``-th frame, ``batch`` frames a call.

    ``burst`` frames are gathered and answered in one go before the engine idles again: 1 is no gathering.
    """

    rung: str
    every: int = 1
    batch: int = 1
    burst: int = 1


class Goal(Record, frozen=True, kw_only=True):
    """What the user asks for. ``percentile`` of the frames are to be answered within ``deadline_ms``.

    ``fps`` is the rate at which frames come (None: as fast as they are asked for). ``ceiling_c`` replaces
    the lowest trip point that the machine states. Of settings that keep all bounds, ``prefer`` says whether
    quality or the rate of answered frames counts first.
    """

    deadline_ms: float
    percentile: float = 0.99
    fps: float | None = None
    power_watts: float | None = None
    ceiling_c: float | None = None
    least_quality: float = 0.0
    most_every: int = 4
    most_batch: int = 1
    prefer: Literal["quality", "rate"] = "quality"
    mode: Mode = "adaptive"


class Health(Record, frozen=True, kw_only=True):
    """The machine at one moment; None is what it has no sensor for.

    ``temperature_c`` is the zone nearest to its trip point ``trip_c``; ``zone`` its name. ``clock_share`` is
    the clock of the moment over the highest. ``others_cpus`` is what other processes take, in CPUs.
    ``busy_share`` is the share of the time since the look before in which the engine computed: no sensor
    tells it, who makes the calls puts it in.
    """

    at_s: float
    temperature_c: float | None = None
    trip_c: float | None = None
    zone: str = ""
    power_watts: float | None = None
    power_of: str = ""
    battery_share: float | None = None
    on_battery: bool | None = None
    clock_share: float | None = None
    memory_free_bytes: int | None = None
    others_cpus: float | None = None
    busy_share: float | None = None


class Allowance(Record, frozen=True, kw_only=True):
    """What the governor lets the engine take until it says otherwise.

    ``busy_share`` is the share of the time that the engine may compute (1.0: all of it), which holds where
    power can't be measured too; ``power_watts`` is the mean power of the machine that keeps it below its
    ceiling and the user's budget, None where neither binds. ``why`` explains it in a sentence for people.
    """

    busy_share: float = 1.0
    power_watts: float | None = None
    why: str = ""


class Call(Record, frozen=True, kw_only=True):
    """A call that ended at ``at_s``. ``latency_ms`` is of the whole call, preprocessing left out;
    ``energy_mj`` is per frame where it is known."""

    at_s: float
    rung: str
    batch: int
    latency_ms: float
    ok: bool = True
    energy_mj: float | None = None


class Link(Record, frozen=True, kw_only=True):
    """The way to the server as it was measured: ``round_trip_ms`` at the goal's percentile, None before the
    first answer. ``usable`` is False while the circuit breaker is open."""

    usable: bool
    round_trip_ms: float | None = None
    why: str = ""


class Observation(Record, frozen=True, kw_only=True):
    """All that a policy may know at ``now_s``. ``calls`` are those since the last decision, oldest first.

    ``queued`` frames wait; ``overhead_ms`` is what a frame costs beside the call (decode, preprocess, wait
    for its turn), at the goal's percentile. ``at_once`` calls of the engine may run side by side.
    """

    now_s: float
    calls: tuple[Call, ...] = ()
    queued: int = 0
    at_once: int = 1
    overhead_ms: float = 0.0
    interval_ms: float | None = None
    health: Health | None = None
    allowance: Allowance = Allowance()
    link: Link | None = None


class Event(Record, frozen=True, kw_only=True):
    """Something that an operator would want to know: what happened to what, why, and what was done about it.

    ``facts`` are figures for machines. Every change of the setting, every fault and every recovery is one.
    """

    at_s: float
    kind: EventKind
    what: str
    why: str = ""
    done: str = ""
    facts: dict[str, Scalar] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller gets for one frame: ``outputs`` by name, who gave them, and how long that took in all.

    ``late`` says that the deadline had passed. ``hops`` are the rungs that were tried before, oldest first.
    """

    outputs: Mapping[str, NDArray[Any]]
    rung: str
    place: Place
    latency_ms: float
    late: bool = False
    hops: tuple[str, ...] = ()


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th ... 11th ... 21st."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10 if n % 100 // 10 != 1 else 0, "th")
    return f"{n}{ending}"
