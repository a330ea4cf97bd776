"""What policies pass to one another: settings with what is foretold of them, and what they may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgekiln.records import Record
from edgekiln.runtime.policies.estimate import Estimate
from edgekiln.runtime.vocabulary import Goal, Observation, Rung, Setting

KEEP_UP = 0.95
"""An engine that is busier than this share of the time falls behind its source."""
MARGIN = 0.92
"""What is to be taken up has to keep its bounds by so much; what is in use has to keep them."""


class Plan(Record, frozen=True, kw_only=True):
    """A setting and its forecast. ``latency_ms`` is from a frame's arrival to its answer at the goal's
    percentile, ``worst_ms`` the careful guess of it.

    ``busy_share`` is what the engine would compute of the time (None: no rate is known), ``power_watts`` the
    machine's power (None: not known). ``forbidden`` says what of the allowance it breaks, ``late`` that it
    misses the deadline or can't keep up. ``n`` calls are its proof. ``call_ms`` is the typical time of a call
    per frame, ``base_ms`` that without the present load; ``tried`` says that calls of it were
    timed, ``guessed`` that there is not even evidence.
    """

    setting: Setting
    quality: float
    latency_ms: float
    worst_ms: float
    cloud: bool = False
    n: int = 0
    peak_ms: float = 0.0
    call_ms: float = 0.0
    base_ms: float = 0.0
    tried: bool = True
    guessed: bool = False
    busy_share: float | None = None
    power_watts: float | None = None
    energy_mj: float | None = None
    forbidden: str = ""
    late: bool = False
    late_at_worst: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """All that a policy may look at. ``current`` is the setting in use. ``interval_ms`` is the time between
    frames, None where they come as asked for. ``batch_ratio`` and ``burst_ratio`` are what a frame costs
    (time, energy) in a call of several or in a burst over what it costs alone, by rung and count, as measured
    here. ``here_watts`` is what the setting in use takes above idle.
    """

    goal: Goal
    rungs: Mapping[str, Rung]
    seen: Observation
    current: Setting
    estimates: Mapping[str, Estimate]
    interval_ms: float | None
    batch_ratio: Mapping[tuple[str, int], float]
    burst_ratio: Mapping[tuple[str, int], float]
    energy_mj: Mapping[str, float]
    here_watts: float | None = None


Policy: TypeAlias = Callable[[View, Sequence[Plan]], Sequence[Plan]]
"""Narrows, extends or marks the plans. Pure: the same view and plans give the same plans."""
