"""Leave a setting at once when it breaks a bound; take up a better one only when it has proved itself.

A better rung is *probed* first: its calls are timed in the idle time after an answer, which makes no frame
late. Where the loop makes no probes, or the frames leave no idle time, it is tried on live frames. A rung
that was late is left alone for a while, and for twice as long each time that a trial of it did harm, so that
under a constant load the number of changes has a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec.structs import replace

from edgekiln.records import Record
from edgekiln.runtime.policies import batch, burst
from edgekiln.runtime.policies.estimate import FEW
from edgekiln.runtime.policies.plan import MARGIN, Plan, View
from edgekiln.runtime.policies.state import CALM_S, HOLD_S, State, may_duck
from edgekiln.runtime.vocabulary import Setting, ordinal

PROOF = 3
"""Calls, all in time with a margin, that prove a rung."""
DWELL_S = 2.0
"""A better rate, batch or burst waits so long after the last change."""
IGNORED_ASKS = 8
IGNORED_S = 0.5
"""A loop that has not probed after so many decisions and seconds does not probe."""
CHEAPER = 0.8
NEAR_BAD = 0.9
ALIKE = 1.01
UNSURE_TIMES = 2.0
EXPLORE_S = 20.0
"""After so long in one setting a live frame is risked on a rung that was never timed here."""
OFTEN = 0.1
"""Where no setting keeps all bounds: a rung of which no larger share is late is kept."""
LOW_BATTERY = 0.2
NEAR_BEST = 0.05

Move: TypeAlias = Literal["keep", "leave", "improve", "try"]
Rank: TypeAlias = tuple[float, ...]


class Choice(Record, frozen=True, kw_only=True):
    """The setting, its forecast, and what kind of move it is. ``probe`` is a setting to be timed if there is
    idle time. ``meets``: no bound is broken by what is foretold."""

    move: Move
    plan: Plan
    why: str
    meets: bool = True
    probe: Setting | None = None


def rank(view: View, plan: Plan) -> Rank:
    """The greater the better: what the goal prefers first, then the edge, then the lesser cost."""
    cloud = float(plan.cloud) if view.goal.mode == "cloud" else 0.0
    kind = (plan.quality, -plan.setting.every)
    first = kind if view.goal.prefer == "quality" else kind[::-1]
    return (cloud, *first, -float(plan.cloud), -cost(plan))


def cost(plan: Plan) -> float:
    """Energy where it is known, else computing time of this machine; per frame."""
    if plan.energy_mj is not None and not plan.cloud:
        return plan.energy_mj
    return 0.0 if plan.cloud else plan.call_ms


def choose(state: State, view: View, plans: Sequence[Plan]) -> Choice:
    """Keep, leave or improve on the setting in use."""
    here = next((p for p in plans if _same(p.setting, view.current)), None)
    if here is None:
        return _leave(view, plans, None, f"{view.current.rung} can't be had any more")
    broken = _broken(view, here)
    if broken:
        return _leave(view, plans, here, broken, often_late(state, view))
    here = replace(here, setting=view.current)  # the plan may answer more frames than it
    if may_duck(state, view.seen) and (duck := _duck(view, plans, here)) is not None:
        return duck
    better = _better(state, view, plans, here)
    if better is not None:
        return better
    return _measure(state, view, here)


def _same(one: Setting, other: Setting) -> bool:
    return (one.rung, one.batch, one.burst) == (other.rung, other.batch, other.burst)


def _broken(view: View, here: Plan) -> str:
    """What the setting in use breaks, in words."""
    if here.forbidden:
        return here.forbidden
    if here.late and here.latency_ms > view.goal.deadline_ms:
        return (
            f"{here.setting.rung} takes {here.latency_ms:.1f} ms at the {view.goal.percentile:.4g} quantile, "
            f"{view.goal.deadline_ms:.4g} ms are allowed"
        )
    if here.late or here.setting.every > view.current.every:
        return f"{here.setting.rung} does not keep up with every {_nth(view.current.every)} frame"
    return ""


def _nth(every: int) -> str:
    return "single" if every == 1 else ordinal(every)


# ---------------------------------------------------------------- down


def _leave(view: View, plans: Sequence[Plan], here: Plan | None, why: str, often: bool = True) -> Choice:
    """The best plan that keeps all bounds by a careful guess; else the least bad one, told as such."""
    allowed = [p for p in plans if not p.forbidden]
    if here is not None and not here.forbidden:
        allowed = [p for p in allowed if _lighter(p, here)]
    sure = [p for p in allowed if not p.late_at_worst]
    if sure:
        return Choice(move="leave", plan=best(view, sure), why=why)
    hopeful = [p for p in allowed if not p.late]
    if hopeful:
        return Choice(move="leave", plan=min(hopeful, key=lambda p: p.worst_ms), why=why)
    cheapest_ms = min((p.base_ms for p in plans if p.tried and not p.cloud), default=math.inf)
    unknown = [p for p in plans if not p.tried and not p.cloud and (p.guessed or p.base_ms < cheapest_ms)]
    if unknown:
        first = min(unknown, key=_hunger)
        why = f"no rung that was ever timed here keeps all bounds, so {first.setting.rung} is tried: {why}"
        return Choice(move="leave", plan=first, why=why, meets=False)
    least = _least_bad(allowed, here, often) if allowed else min(plans, key=_hunger)
    if here is not None and least.forbidden and not _much_hungrier(here, least):
        least = here
    why = f"no setting keeps all bounds; {least.setting.rung} is the least bad: {why}"
    return Choice(move="leave", plan=least, why=why, meets=False)


def often_late(state: State, view: View) -> bool:
    """Whether more of the latest calls of the rung in use were late than a stall now and then explains."""
    latest = state.tracks[view.current.rung].samples[-FEW:]
    allowed_ms = view.goal.deadline_ms - view.seen.overhead_ms
    return sum(ms > allowed_ms for ms in latest) > OFTEN * FEW


def _lighter(plan: Plan, here: Plan) -> bool:
    """Whether ``plan`` may do where ``here`` is too slow: a dearer rung of the same place may not."""
    if plan.cloud != here.cloud or plan.setting.rung == here.setting.rung:
        return True
    unlike = plan.base_ms < here.base_ms
    return unlike or (plan.base_ms < ALIKE * here.base_ms and plan.quality < here.quality)


def _duck(view: View, plans: Sequence[Plan], here: Plan) -> Choice | None:
    """Away from a rung of which one call was late, the first for a while: it may be the first of many."""
    others = [p for p in plans if p.setting.rung != here.setting.rung]
    sure = [p for p in others if not p.forbidden and not p.late_at_worst and _lighter(p, here)]
    why = f"a call of {here.setting.rung} took {here.peak_ms:.1f} ms, the first so long for a while"
    return Choice(move="leave", plan=best(view, sure), why=why) if sure else None


def _least_bad(pool: Sequence[Plan], here: Plan | None, often: bool) -> Plan:
    """Where every plan is late: the one in use, as long as few of its calls are, for stalls befall each; else
    the least of what is to compute, which has the most calls in time whatever the load; or a server."""
    edge = sorted((p for p in pool if not p.cloud), key=lambda p: (p.base_ms, -p.quality))[:1]
    if here is not None and not here.forbidden and not here.cloud:
        less = any(p.base_ms < NEAR_BAD * here.base_ms or p.setting.every > here.setting.every for p in edge)
        edge = edge if often and less else [here]
    return min([*edge, *(p for p in pool if p.cloud)], key=_badness)


def _badness(plan: Plan) -> tuple[float, float]:
    return (plan.latency_ms, -plan.quality)


def _hunger(plan: Plan) -> tuple[float, float]:
    return (plan.busy_share or 0.0, plan.latency_ms)


def _much_hungrier(one: Plan, other: Plan) -> bool:
    return (other.busy_share or 0.0) < NEAR_BAD * (one.busy_share or 0.0)


# ---------------------------------------------------------------- up


def _better(state: State, view: View, plans: Sequence[Plan], here: Plan) -> Choice | None:
    """The best plan that is better than the setting in use and that may be taken up, or proved, now."""
    most_ms = min((p.base_ms for p in plans if _refused(view, p)), default=math.inf)
    long = state.now_s - state.changed_s >= EXPLORE_S
    open_ = [
        p
        for p in plans
        if (p.n >= PROOF or p.cloud or p.base_ms < most_ms)
        and (
            not (p.forbidden or p.late or _marginal(view, p))
            or _worth_a_call(view, p)
            or (long and _shut_out(view, p))
        )
    ]
    theirs, thrifty = rank(view, here), economical(view)
    pool = [p for p in open_ if _wins(p, here, rank(view, p), theirs, thrifty)]
    while pool:
        target = best(view, pool)
        move = _towards(state, view, target, here)
        if move is not None:
            return move
        pool = [p for p in pool if p is not target]
    return None


def _refused(view: View, plan: Plan) -> bool:
    """Whether the rung was just found late: then what costs as much or more need not be tried now."""
    return plan.late and plan.n > 0 and not plan.cloud and plan.setting.rung != view.current.rung


def _worth_a_call(view: View, plan: Plan) -> bool:
    """Whether a rung was never timed here and what is foretold of it may be wrong enough for it to fit."""
    return not plan.tried and (plan.guessed or plan.latency_ms <= UNSURE_TIMES * view.goal.deadline_ms)


def _shut_out(view: View, plan: Plan) -> bool:
    """Whether a rung that is in time but for the load is called late by a load that may be none: what is seen
    of the rung in use alone can't tell a load from a rung that is slower than its evidence."""
    fits = plan.base_ms + view.seen.overhead_ms <= MARGIN * view.goal.deadline_ms
    return plan.n == 0 and not plan.cloud and not plan.forbidden and fits


def _marginal(view: View, plan: Plan) -> bool:
    """A rung that has shown itself to be in time, but too narrowly to be taken up."""
    elsewhere = plan.setting.rung != view.current.rung
    return elsewhere and plan.n >= PROOF and plan.latency_ms > MARGIN * view.goal.deadline_ms


def _wins(plan: Plan, here: Plan, mine: Rank, theirs: Rank, thrifty: bool) -> bool:
    """Whether ``plan``, of rank ``mine``, is better than the one in use, of rank ``theirs``."""
    if plan.setting == here.setting:
        return False
    if thrifty:
        near = plan.quality >= here.quality - NEAR_BEST
        if near and cost(plan) < CHEAPER * cost(here):
            return True
        if plan.quality < here.quality + NEAR_BEST and cost(plan) > CHEAPER * cost(here):
            return False
    if mine[:-2] != theirs[:-2]:
        return mine > theirs
    same_rung = plan.setting.rung == here.setting.rung
    return cost(plan) < (cost(here) if same_rung else CHEAPER * cost(here)) and not plan.cloud


def _towards(state: State, view: View, target: Plan, here: Plan) -> Choice | None:
    """The next step to ``target``: take it up, have it probed, try it; None where it has to wait."""
    waited = state.now_s - state.changed_s
    if state.now_s - state.refused_s < CALM_S:
        return None
    why = f"{target.setting.rung} is foretold {target.latency_ms:.1f} of {view.goal.deadline_ms:.4g} ms"
    if target.setting.rung == here.setting.rung:
        return Choice(move="improve", plan=target, why=why) if waited >= DWELL_S else None
    if target.n >= PROOF:
        return Choice(move="improve", plan=target, why=f"{why} after {target.n} calls")
    if state.probes and _idle(view, target, here):
        probe = Setting(rung=target.setting.rung)
        return Choice(move="keep", plan=here, why="", probe=probe)
    promising = target.guessed or target.latency_ms <= MARGIN * view.goal.deadline_ms or waited >= EXPLORE_S
    if waited >= HOLD_S and promising and not (target.tried and target.late):
        kept = not (target.forbidden or target.late)
        return Choice(move="try", plan=target, why=f"{why}; it is tried on live frames", meets=kept)
    return None


def _idle(view: View, target: Plan, here: Plan) -> bool:
    """Whether a call of ``target`` fits between an answer and the next frame."""
    if view.interval_ms is None or target.cloud:
        return True
    return here.call_ms + target.call_ms <= view.interval_ms * here.setting.every


def _measure(state: State, view: View, here: Plan) -> Choice:
    """Keep the setting, and find out about a batch or a burst of it while all is calm."""
    calm = state.now_s - state.changed_s >= DWELL_S and here.n >= FEW
    if calm and (wanted := batch.unmeasured(view, here)) is not None:
        if state.probes and _spare(view, here, wanted):
            return Choice(move="keep", plan=here, why="", probe=wanted)
        plan = replace(here, setting=wanted)
        return Choice(move="try", plan=plan, why=f"whether {wanted.batch} frames a call pay is tried")
    if calm and (wanted := burst.unmeasured(view, here)) is not None:
        plan = replace(here, setting=wanted)
        return Choice(move="try", plan=plan, why=f"whether bursts of {wanted.burst} save energy is tried")
    return Choice(move="keep", plan=here, why="")


def _spare(view: View, here: Plan, wanted: Setting) -> bool:
    if view.interval_ms is None:
        return True
    return (1 + wanted.batch) * here.call_ms <= view.interval_ms * here.setting.every


# ---------------------------------------------------------------- which is best


def economical(view: View) -> bool:
    """Whether the battery runs low: then near the best quality the lesser cost counts."""
    health = view.seen.health
    low = health is not None and health.battery_share is not None and health.battery_share < LOW_BATTERY
    return low and health is not None and bool(health.on_battery)


def best(view: View, plans: Sequence[Plan]) -> Plan:
    """The highest in rank; on a low battery the least costly of those near it in quality."""
    top = max(plans, key=lambda p: rank(view, p))
    if not economical(view):
        return top
    near = [p for p in plans if p.quality >= top.quality - NEAR_BEST]
    return min(near, key=lambda p: (cost(p), -p.quality))
