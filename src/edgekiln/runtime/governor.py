"""How much the engine may compute, so that the machine stays below its trip point and the user's power
budget.

The kernel's own governor lowers the clock once the trip point is reached, and then every frame is late. This
one acts before: it asks the fitted thermal model (``thermal``) how warm each share of busy time would get
over ``AHEAD_S``, and allows the largest that stays below the limit (model-predictive control with one step of
input, after S. Qin and T. Badgwell, "A survey of industrial model predictive control technology", 2003). The
horizon is shorter than what the machine's mass takes to warm up, so a cold machine may spend its heat
capacity in a burst, and as it fills the allowance settles to what can be held.

The limit is the lowest of the trip point and the user's ceiling, less ``MARGIN_C``. The budget is kept
through the power that a busy engine was seen to add. On battery the share is at most ``BATTERY`` of the
charge that is left. While the model is not identified a reactive rule stands in for it, and while the
temperature can't be read, a cautious constant; ``why`` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from edgekiln.runtime import thermal
from edgekiln.runtime.thermal import Thermal
from edgekiln.runtime.vocabulary import Allowance, Event, Goal, Health

Footing: TypeAlias = Literal["free", "forecast", "reactive", "blind"]
"""What an allowance rests on: nothing limits it, the model, the reactive rule, or a sensor that is gone."""

MARGIN_C = 2.0
AHEAD_S = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
DOUBT = 1.0
"""A forecast counts with so many of its standard deviations on top."""
GRID = tuple(round(0.02 * n, 2) for n in range(51))
_SHARES: thermal.Floats = np.array(GRID)
LEAST_SHARE = 0.04
"""What is always allowed: a machine that answers nothing is no use, and the kernel's governor is still
there."""
DOWN, UP, UP_S = 0.03, 0.08, 8.0
"""The allowance follows its target down by more than the first at once, up by more than the second after a
while."""
REACT_S, LOOK_S, REACT_BAND_C = 2.0, 10.0, 3.0
BLIND_HOLD_S, BLIND_SHARE = 10.0, 0.5
BATTERY = ((0.10, 0.3), (0.20, 0.6))
"""At most so much of the time on battery, at a charge of at most so much; a charger lifts it."""
BATTERY_BACK = 0.02
BUDGET_MARGIN = 0.97
BUDGET_S = 10.0
MOST_WATTS = 1e4
PAIRS_FORGET_S = 120.0


@dataclass(frozen=True, slots=True)
class Drain:
    """The machine's power over the busy share, by least squares with forgetting: watts = idle + added x
    share."""

    n: float = 0.0
    share: float = 0.0
    watts: float = 0.0
    square: float = 0.0
    product: float = 0.0
    lowest: float = math.inf

    def line(self) -> tuple[float, float] | None:
        """(idle, added) in watts; None before anything was seen. Where the share hardly moved, the least
        power that was ever seen is taken for the idle one."""
        if self.n <= 0.0:
            return None
        share, watts = self.share / self.n, self.watts / self.n
        spread = self.square / self.n - share * share
        if spread > 0.02**2:
            added = (self.product / self.n - share * watts) / spread
            idle = watts - added * share
            if added > 0.0 and idle > 0.0:
                return idle, added
        idle = min(self.lowest, watts)
        return idle, max((watts - idle) / max(share, 0.05), 0.02 * watts, 1e-3)


@dataclass(frozen=True, slots=True)
class State:
    """What the governor remembers. ``events`` are those of the last step alone.

    ``share`` is what is allowed now, ``battery_cap`` what the charge allows. ``seen`` says that there once
    was a temperature; ``slope`` is its rise in K/s.
    """

    model: Thermal | None = None
    drain: Drain = Drain()
    share: float = 1.0
    battery_cap: float = 1.0
    footing: Footing = "free"
    changed_s: float = -math.inf
    at_s: float | None = None
    temperature_c: float | None = None
    slope: float = 0.0
    seen: bool = False
    lost_s: float | None = None
    watts: float | None = None
    why: str = ""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class _Target:
    """A share, what it rests on, and the sentence that explains it."""

    share: float
    footing: Footing
    why: str


def start() -> State:
    return State()


def govern(state: State, health: Health, goal: Goal) -> tuple[State, Allowance]:
    """What the engine is allowed after one look at the machine. Pure; to be called about once a second.

    Without a sensor or a limit everything is allowed, and ``why`` says so. ``health.busy_share`` is the
    engine's own since the look before; without it and without power no forecast is possible, and the reactive
    rule stays.
    """
    health = _sound(health)
    state = _looked(state, health)
    limit = limit_c(health, goal)
    heat = _heat(state, health, limit)
    budget = _budget(state, goal)
    cap = _battery_cap(state.battery_cap, health)
    charge = f"the battery is at {health.battery_share or 0.0:.0%}"
    targets = [heat, budget, _Target(cap, "free", charge)]
    lowest = min(targets, key=lambda t: t.share)
    lowest = heat if heat.share <= lowest.share else lowest
    target = replace(lowest, share=max(LEAST_SHARE, lowest.share), footing=heat.footing)
    state = _followed(replace(state, battery_cap=cap), health, target, limit)
    return state, Allowance(busy_share=state.share, power_watts=_watts(state, goal), why=state.why)


def limit_c(health: Health, goal: Goal) -> float | None:
    """The temperature to stay below: the lower of the trip point and the user's ceiling, less the margin."""
    known = [c for c in (goal.ceiling_c, health.trip_c) if c is not None and math.isfinite(c)]
    return min(known) - MARGIN_C if known else None


# ---------------------------------------------------------------- what is seen


def _sound(health: Health) -> Health:
    """``health`` without what no sensor can have measured: the governor acts on no nonsense."""

    def within(value: float | None, least: float, most: float) -> float | None:
        return value if value is not None and least <= value <= most else None

    return msgspec.structs.replace(
        health,
        temperature_c=within(health.temperature_c, thermal.LEAST_C, thermal.MOST_C),
        trip_c=within(health.trip_c, thermal.LEAST_C, thermal.MOST_C),
        power_watts=within(health.power_watts, 0.0, MOST_WATTS),
        busy_share=within(health.busy_share, 0.0, 1.0),
        battery_share=within(health.battery_share, 0.0, 1.0),
    )


def _looked(state: State, health: Health) -> State:
    """The state with this look learned. A clock that stands still or goes back teaches nothing."""
    at, before = health.at_s, state.at_s
    step = 0.0 if before is None else at - before
    busy, watts, celsius = health.busy_share, health.power_watts, health.temperature_c
    drain = state.drain
    if busy is not None and watts is not None and step > 0.0:
        drain = _added(drain, min(1.0, max(0.0, busy)), watts, step)
    given = _input(state, drain, health)
    model = state.model
    if celsius is not None and given is not None:
        of, value = given
        model = thermal.observe(model or thermal.begin(of), at, celsius, value)
    slope = state.slope
    if celsius is not None and state.temperature_c is not None and 0.0 < step < 30.0:
        kept = math.exp(-step / 5.0)
        slope = kept * slope + (1.0 - kept) * (celsius - state.temperature_c) / step
    elif celsius is None or step <= 0.0:
        slope = 0.0
    lost = None
    if celsius is None and state.seen:
        lost = state.lost_s if state.lost_s is not None and state.lost_s <= at else at
    kept = math.exp(-max(step, 0.0) / BUDGET_S)
    mean = watts if watts is None or state.watts is None else kept * state.watts + (1.0 - kept) * watts
    return replace(
        state,
        model=model,
        drain=drain,
        at_s=at,
        temperature_c=celsius,
        slope=slope,
        seen=state.seen or celsius is not None,
        lost_s=lost,
        watts=mean,
        events=(),
    )


def _input(state: State, drain: Drain, health: Health) -> tuple[thermal.Input, float] | None:
    """What heats: power where it is measured or can be told from the busy share, else that share.

    A model begun on one is not fed the other.
    """
    of = state.model.of if state.model is not None else "power" if health.power_watts is not None else "busy"
    if of == "busy":
        return None if health.busy_share is None else ("busy", health.busy_share)
    if health.power_watts is not None:
        return "power", health.power_watts
    line = drain.line()
    if line is None or health.busy_share is None:
        return None
    return "power", line[0] + line[1] * health.busy_share


def _added(drain: Drain, busy: float, watts: float, step: float) -> Drain:
    kept = math.exp(-step / PAIRS_FORGET_S)
    return Drain(
        n=kept * drain.n + step,
        share=kept * drain.share + step * busy,
        watts=kept * drain.watts + step * watts,
        square=kept * drain.square + step * busy * busy,
        product=kept * drain.product + step * busy * watts,
        lowest=min(drain.lowest, watts),
    )


# ---------------------------------------------------------------- what it allows


def _heat(state: State, health: Health, limit: float | None) -> _Target:
    """The share that the temperature allows."""
    if state.lost_s is not None:
        return _blind(state, health.at_s, limit)
    if health.temperature_c is None:
        return _Target(1.0, "free", "no temperature can be read here")
    if limit is None:
        zone = health.zone or "the machine"
        return _Target(1.0, "free", f"{zone} states no trip point and no ceiling was asked for")
    model = state.model
    if model is None:
        return _reactive(state, health, limit)
    idle, added = _line(state, model)
    found = thermal.trusted(model, AHEAD_S, idle + added * _SHARES)
    if found is None:
        return _reactive(state, health, limit)
    return _foreseen(model, health, limit, (idle, added), found)


def _foreseen(
    model: Thermal,
    health: Health,
    limit: float,
    line: tuple[float, float],
    found: tuple[thermal.Floats, thermal.Floats],
) -> _Target:
    """The largest share whose forecast stays below ``limit``."""
    (idle, added), (mean, deviation) = line, found
    cool = (mean + DOUBT * deviation <= limit).all(axis=1)
    # what is warmer than the limit already has to cool: then the last look ahead counts
    if model.temperature_c > limit:
        cool = mean[:, -1] + DOUBT * deviation[:, -1] <= limit
    share = GRID[int(np.flatnonzero(cool)[-1])] if cool.any() else 0.0
    warmest = float(mean[-1].max())
    zone = health.zone or "the machine"
    if share >= 1.0:
        why = f"{zone} stays below {limit:.0f} °C at full load for {AHEAD_S[-1]:.0f} s"
        return _Target(1.0, "forecast", why)
    hold = (thermal.sustainable(model, limit) - idle) / max(added, 1e-9)
    why = (
        f"{zone} at {model.temperature_c:.1f} °C would reach {warmest:.0f} °C within {AHEAD_S[-1]:.0f} s at "
        f"full load, the limit is {limit:.0f} °C; about {min(1.0, max(0.0, hold)):.0%} can be held"
    )
    return _Target(share, "forecast", why)


def _line(state: State, model: Thermal) -> tuple[float, float]:
    """Idle and added input of the model, in its own unit."""
    line = state.drain.line()
    if model.of == "busy":
        return 0.0, 1.0
    if line is None:  # power without a busy share: what was seen so far is taken for idle and full
        return model.lowest_input, max(1e-3, model.highest_input - model.lowest_input)
    return line


def _reactive(state: State, health: Health, limit: float) -> _Target:
    """A step down where ten seconds of this slope lead over the limit, a step up well below it."""
    celsius = health.temperature_c or 0.0
    coming = celsius + LOOK_S * max(0.0, state.slope)
    waited = health.at_s - state.changed_s
    zone = health.zone or "the machine"
    if coming > limit:
        share = state.share * (0.85 if waited >= REACT_S or celsius > limit else 1.0)
        why = f"{zone} at {celsius:.1f} °C nears {limit:.0f} °C; how it warms is not known yet"
        return _Target(share, "reactive", why)
    room = coming < limit - REACT_BAND_C and waited >= UP_S
    share = min(1.0, state.share + (UP + 0.01 if room else 0.0))
    why = f"{zone} at {celsius:.1f} °C is below {limit:.0f} °C; how it warms is not known yet"
    return _Target(share, "reactive", why)


def _blind(state: State, at_s: float, limit: float | None) -> _Target:
    """After a while without the sensor: the lower of half and of what the model says can be held, well
    below."""
    lost = state.lost_s if state.lost_s is not None else at_s
    if at_s - lost < BLIND_HOLD_S:
        return _Target(state.share, "blind", "the temperature can't be read; what was allowed stays for now")
    share = BLIND_SHARE
    if limit is not None and state.model is not None and thermal.identified(state.model):
        idle, added = _line(state, state.model)
        hold = (thermal.sustainable(state.model, limit - MARGIN_C) - idle) / max(added, 1e-9)
        share = min(share, max(0.0, hold))
    why = f"the temperature can't be read for {at_s - lost:.0f} s"
    return _Target(min(state.share, share), "blind", why)


def _budget(state: State, goal: Goal) -> _Target:
    """The share that the power budget allows, by the line of power over busy share."""
    line = state.drain.line()
    if goal.power_watts is None or line is None:
        return _Target(1.0, "free", "")
    idle, added = line
    allowed = goal.power_watts * BUDGET_MARGIN
    if state.watts is not None and state.watts > goal.power_watts:
        allowed -= state.watts - goal.power_watts  # the line is wrong by so much just now
    share = math.floor(50.0 * min(1.0, max(0.0, (allowed - idle) / added)) + 1e-9) / 50.0
    why = f"the budget is {goal.power_watts:.1f} W; idle takes {idle:.1f} W, full load {idle + added:.1f} W"
    return _Target(share, "free", why)


def _battery_cap(before: float, health: Health) -> float:
    charge = health.battery_share
    if charge is None or not health.on_battery:
        return 1.0
    for level, cap in BATTERY:
        if charge <= level + (BATTERY_BACK if before <= cap else 0.0):
            return cap
    return 1.0


def _watts(state: State, goal: Goal) -> float | None:
    """The machine's mean power at what is allowed, where a limit binds."""
    line = state.drain.line()
    bound = [] if goal.power_watts is None else [goal.power_watts]
    if line is not None and state.share < 1.0:
        bound.append(line[0] + line[1] * state.share)
    return min(bound) if bound else None


# ---------------------------------------------------------------- and when it changes


def _followed(state: State, health: Health, target: _Target, limit: float | None) -> State:
    """The allowance moved towards its target, with hysteresis, and the events of that."""
    waited = health.at_s - state.changed_s
    if waited < 0.0:
        waited = math.inf  # a clock set back: nobody knows how long
    share = state.share
    ends = target.share in (1.0, LEAST_SHARE) and target.share != share
    if (
        target.share < share - DOWN
        or (target.share < share and ends)
        or (waited >= UP_S and (target.share > share + UP or (target.share > share and ends)))
    ):
        share = target.share
    changed = share != state.share
    other = target.footing != state.footing
    return replace(
        state,
        share=share,
        footing=target.footing,
        changed_s=health.at_s if changed else min(state.changed_s, health.at_s),
        why=_sentence(share, target.why) if changed or other or share >= 1.0 else state.why,
        events=(_event(state, health, target, share, limit),) if changed or other else (),
    )


def _sentence(share: float, why: str) -> str:
    return f"{share:.0%} of the time may be computed: {why}" if why else ""


def _event(state: State, health: Health, target: _Target, share: float, limit: float | None) -> Event:
    facts: dict[str, str | int | float | bool] = {"busy_share": share, "before": state.share}
    facts["footing"] = target.footing
    known = {"temperature_c": health.temperature_c, "limit_c": limit, "power_watts": health.power_watts}
    facts.update({key: value for key, value in known.items() if value is not None})
    if share == state.share:
        done = f"the allowance rests on another footing: {target.footing}"
    else:
        done = f"from {state.share:.0%} to {share:.0%} of the time"
    return Event(at_s=health.at_s, kind="governor", what="busy share", why=target.why, done=done, facts=facts)
