"""What the benchmark of deadlines writes down."""

from __future__ import annotations

import msgspec

from edgekiln.records import Artifact, Record

LEAD_IN_S = 0.2
"""A block of a rung that follows another's begins with frames that do not count: the other's excess (a
used-up quota) still weighs on them."""


class Phase(Record, frozen=True, kw_only=True):
    """``seconds`` in which ``rivals`` processes spin on the same core and the worker's control group may
    compute ``quota`` CPUs (None: no limit)."""

    kind: str
    seconds: float
    rivals: int = 0
    quota: float | None = None


class Place(Record, frozen=True, kw_only=True):
    """A rung: an artifact on disk at one square size. ``quality`` is its share of top-1 classes that are
    those of the float model at the largest size; ``calm_ms`` the median of a call when it was made."""

    id: str
    folder: str
    artifact: Artifact
    side: int
    quality: float
    calm_ms: float


class Order(Record, frozen=True, kw_only=True):
    """What a worker is to do. ``picks`` are the oracle's rungs by kind of phase; ``turn`` shifts blocks."""

    contender: str
    places: tuple[Place, ...]
    course: tuple[Phase, ...]
    deadline_ms: float
    percentile: float
    fps: float
    core: int
    group: str
    threads: int = 1
    turn: int = 0
    picks: dict[str, str] = msgspec.field(default_factory=dict)


class Frame(Record, frozen=True, kw_only=True):
    """One frame that came ``at_s`` after the start.

    ``ended_ms`` is from its arrival to its answer, ``call_ms`` the call alone; both are None where a newer
    frame took its place, and then ``rung`` is empty (of a rung without adaptation: the one that would have
    answered it). ``counts``: it is no lead-in.
    """

    at_s: float
    kind: str
    rung: str = ""
    ended_ms: float | None = None
    call_ms: float | None = None
    counts: bool = True


class Change(Record, frozen=True, kw_only=True):
    at_s: float
    rung: str
    why: str


class Run(Record, frozen=True, kw_only=True):
    """One contender over the course once. ``turns_s`` is when each phase's load was in fact set, after the
    start; ``decide_us`` is what a decision took (median)."""

    contender: str
    turn: int
    frames: tuple[Frame, ...]
    changes: tuple[Change, ...] = ()
    probes: int = 0
    decide_us: float | None = None
    turns_s: tuple[float, ...] = ()


def phase_at(course: tuple[Phase, ...], at_s: float) -> tuple[Phase, float]:
    """The phase at ``at_s``, and the seconds since it began; the last one after the end."""
    for phase in course:
        if at_s < phase.seconds:
            return phase, at_s
        at_s -= phase.seconds
    return course[-1], at_s + course[-1].seconds
