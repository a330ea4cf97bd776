"""Policies that can be simulated: one small protocol, the project's own behind it, and the static and
reactive ones.

The reactive one is what mobile frameworks do: it goes down a rung once the clock has fallen or frames were
late, and tries the rung above after a while in which neither happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgekiln.runtime import policies
from edgekiln.runtime.vocabulary import Goal, Observation, Rung, Setting


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy decided. ``probe`` is a setting that it would like to be timed in idle time."""

    setting: Setting
    why: str = ""
    probe: Setting | None = None


class Policy(Protocol):
    """``governed``: whether it listens to the governor. State is whatever ``start`` gave; both are pure."""

    @property
    def name(self) -> str: ...
    @property
    def governed(self) -> bool: ...
    def start(self, goal: Goal, ladder: Sequence[Rung]) -> Any: ...
    def decide(self, state: Any, seen: Observation) -> tuple[Any, Choice]: ...


@dataclass(frozen=True, slots=True)
class Static:
    """The rung at ``place`` of the ladder by quality, the best being 0, whatever happens."""

    name: str
    place: float
    governed: bool = False

    def start(self, goal: Goal, ladder: Sequence[Rung]) -> Setting:
        ordered = sorted(ladder, key=lambda rung: -rung.quality)
        return Setting(rung=ordered[round(self.place * (len(ordered) - 1))].id)

    def decide(self, state: Setting, seen: Observation) -> tuple[Setting, Choice]:
        return state, Choice(setting=state)


BEST = Static(name="static best", place=0.0)
MIDDLE = Static(name="static middle", place=0.5)
LOWEST = Static(name="static lowest", place=1.0)


@dataclass(frozen=True, slots=True)
class _Following:
    goal: Goal
    ladder: tuple[str, ...]
    at: int = 0
    calm_since_s: float = 0.0


LEAST_CLOCK, LATE_SHARE, CALM_S, REST_S = 0.98, 0.1, 20.0, 2.0


@dataclass(frozen=True, slots=True)
class Reactive:
    """Follows the throttle: down when it is there, up after ``CALM_S`` without it."""

    name: str = "reactive"
    governed: bool = False

    def start(self, goal: Goal, ladder: Sequence[Rung]) -> _Following:
        return _Following(
            goal=goal, ladder=tuple(r.id for r in sorted(ladder, key=lambda rung: -rung.quality))
        )

    def decide(self, state: _Following, seen: Observation) -> tuple[_Following, Choice]:
        clock = seen.health.clock_share if seen.health is not None else None
        late = sum(call.latency_ms > state.goal.deadline_ms for call in seen.calls)
        slow = clock is not None and clock < LEAST_CLOCK
        waited = seen.now_s - state.calm_since_s
        why = ""
        if slow or late > LATE_SHARE * max(1, len(seen.calls)):
            if waited >= REST_S and state.at < len(state.ladder) - 1:
                why = "the clock has fallen" if slow else f"{late} of {len(seen.calls)} calls were late"
                state = replace(state, at=state.at + 1)
            if waited >= REST_S:
                state = replace(state, calm_since_s=seen.now_s)
        elif waited >= CALM_S and state.at > 0:
            why = f"nothing was slow for {CALM_S:.0f} s"
            state = replace(state, at=state.at - 1, calm_since_s=seen.now_s)
        return state, Choice(setting=Setting(rung=state.ladder[state.at]), why=why)


@dataclass(frozen=True, slots=True)
class Ours:
    """The runtime's own policies, with the governor or (``governed`` False) without it."""

    name: str = "edgekiln"
    governed: bool = True

    def start(self, goal: Goal, ladder: Sequence[Rung]) -> policies.State:
        return policies.start(goal, ladder)

    def decide(self, state: policies.State, seen: Observation) -> tuple[policies.State, Choice]:
        state, made = policies.decide(state, seen)
        return state, Choice(setting=made.setting, why=made.why, probe=made.probe)


OURS = Ours()
UNGOVERNED = Ours(name="edgekiln without its governor", governed=False)
ALL: tuple[Policy, ...] = (BEST, MIDDLE, LOWEST, Reactive(), UNGOVERNED, OURS)
