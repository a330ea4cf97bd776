"""One decision: learn from the calls, let each policy narrow the settings, choose with hysteresis.

Source of the shape: model-predictive rate adaptation as in video streaming (Yin et al., "A Control-Theoretic
Approach for Dynamic Adaptive Video Streaming over HTTP", SIGCOMM 2015), with one step of horizon: forecast
each setting, drop what breaks a bound, take the best of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.records import Record
from edgekiln.runtime.policies import allowance, batch, burst, offload, quality, rate
from edgekiln.runtime.policies.estimate import estimate, shared_shift, sound
from edgekiln.runtime.policies.hysteresis import IGNORED_ASKS, IGNORED_S, Choice, choose
from edgekiln.runtime.policies.plan import Plan, Policy, View
from edgekiln.runtime.policies.state import Saving, State, learn, left, ratios
from edgekiln.runtime.vocabulary import Observation, Setting

POLICIES: tuple[Policy, ...] = (
    quality.rungs,
    offload.reachable,
    batch.paid,
    burst.gathered,
    rate.kept_up,
    allowance.marked,
    quality.in_time,
)
TRIED_S = 10.0
"""A burst that showed no energy within so long is not known to save any."""


class Decision(Record, frozen=True, kw_only=True):
    """How the next frames are answered, and why where that is a change.

    ``forecast`` is what is foretold of it; ``meets`` is False where that breaks a bound: no setting keeps all
    and this is the least bad, or it was never timed here and is tried. ``probe``: a setting that should be
    timed, if there is idle time before the next frame, on the frame (or ``batch`` copies of it) that was just
    answered; its Call goes into the next Observation. A loop may ignore it: better rungs are then tried on
    live frames.
    """

    setting: Setting
    changed: bool
    why: str
    meets: bool
    forecast: Plan
    probe: Setting | None = None


def decide(state: State, seen: Observation, policies: Sequence[Policy] = POLICIES) -> tuple[State, Decision]:
    """The next setting. Pure: no clock and no sensor is asked, so virtual time will do as well as real."""
    state = learn(state, seen)
    view = _view(state, seen)
    if state.goal.mode == "fixed":
        only = quality.in_time(view, quality.rungs(view))
        here = next((p for p in only if p.setting.rung == state.setting.rung), only[0])
        return state, Decision(
            setting=state.setting, changed=False, why="", meets=not here.late, forecast=here
        )
    plans: Sequence[Plan] = ()
    for policy in policies:
        plans = policy(view, plans)
    choice = choose(state, view, plans)
    changed = choice.plan.setting != state.setting
    decision = Decision(
        setting=choice.plan.setting,
        changed=changed,
        why=choice.why,
        meets=choice.meets,
        forecast=choice.plan,
        probe=choice.probe,
    )
    return _after(state, view.seen, choice, changed), decision


def _view(state: State, seen: Observation) -> View:
    shared, goal, setting = shared_shift(state.tracks), state.goal, state.setting
    interval = seen.interval_ms if sound(seen.interval_ms) else None
    if interval is None and goal.fps and sound(goal.fps):
        interval = 1e3 / goal.fps
    if not math.isfinite(seen.overhead_ms) or seen.overhead_ms < 0:
        seen = replace(seen, overhead_ms=0.0)
    found = {name: estimate(track, state.load, state.worst, shared) for name, track in state.tracks.items()}
    burst_ratio = ratios(state.bursts, state.now_s, 2)
    batch_ratio = ratios(state.batches, state.now_s, 0)
    if setting.burst > 1:  # a burst on trial is a plan like any other until it is judged
        burst_ratio.setdefault((setting.rung, setting.burst), burst.SAVES)
    if setting.batch > 1:
        batch_ratio.setdefault((setting.rung, setting.batch), batch.PAYS)
    spent, watts = state.energy_mj.get(setting.rung), None
    if spent is not None and interval is not None:
        ratio = burst_ratio.get((setting.rung, setting.burst), 1.0)
        ratio *= batch_ratio.get((setting.rung, setting.batch), 1.0)
        watts = spent * ratio / (interval * setting.every)
    return View(
        goal=goal,
        rungs=state.rungs,
        seen=seen,
        current=setting,
        estimates=found,
        interval_ms=interval,
        batch_ratio=batch_ratio,
        burst_ratio=burst_ratio,
        energy_mj=state.energy_mj,
        here_watts=watts,
    )


def _after(state: State, seen: Observation, choice: Choice, changed: bool) -> State:
    """What is to be remembered of the choice."""
    change: dict[str, object] = {}
    setting = choice.plan.setting
    if choice.move == "leave" and setting.rung != state.setting.rung:
        state = left(state, seen)
    if choice.probe is not None:
        again = choice.probe.rung == state.asked
        asks, since = (state.asks + 1, state.asked_s) if again else (1, state.now_s)
        ignored = asks >= IGNORED_ASKS and state.now_s - since >= IGNORED_S
        change |= {"asked": choice.probe.rung, "asks": asks, "asked_s": since, "probes": not ignored}
    waited = state.now_s - state.changed_s
    if state.setting.burst > 1 and waited > TRIED_S:
        key = (state.setting.rung, state.setting.burst)
        if key not in state.bursts:
            none = Saving(ratio=1.0, n=2 * key[1], at_s=state.now_s)
            change["bursts"] = {**state.bursts, key: none}
    if changed:
        change |= {"setting": setting, "changed_s": state.now_s}
        if setting.rung != state.setting.rung:
            change["fled"] = choice.move == "leave"
    return replace(state, **change) if change else state
