"""What the policies remember from one decision to the next, and how calls change it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Record
from edgekiln.runtime.policies.estimate import (
    FAILED_TIMES,
    MEMORY_S,
    Track,
    aged,
    base,
    learned,
    priors,
    shared_shift,
    sound,
)
from edgekiln.runtime.vocabulary import Call, Goal, Observation, Rung, Setting

HOLD_S = 2.0
"""How long a rung that was late is left alone, the first time."""
TRIAL_S = 1.5
"""A rung that fails so soon after it was taken up should not have been."""
LONGEST_S = 60.0
"""A refusal older than this says nothing; no hold is longer."""
LATE_AT_ONCE = 10
HARM_FRAMES = 6.0
DEFAULT_INTERVAL_MS = 50.0
BUDGET_FRAMES = 3.0
"""Late frames are counted over so many frames for each one that the percentile lets be late."""
WAKE_S = 0.15
"""A call that ends so soon after a probe may be late because of it."""
CARRY_S = 0.05
"""A call that begins so soon after a rung was left may still suffer from its excess (a used-up quota)."""
KNOWN_S = 300.0
"""How long what was measured of batches and bursts is believed."""
LEAST_SHARES = 3
_SMOOTH = 0.2


class Saving(Record, frozen=True, kw_only=True):
    """What a frame costs in company over what it costs alone: the mean of ``n`` calls, since ``at_s``."""

    ratio: float
    n: int
    at_s: float


class State(Record, frozen=True, kw_only=True):
    """Plain data: the live loop and a simulator carry it from decision to decision.

    ``now_s`` is a clock that never goes back, whatever ``seen_s``, the last clock reading, did. ``load`` and
    ``worst`` are logarithms (see ``estimate``), NaN before the first call. ``asked`` is the rung whose probe
    was asked for and has not come, ``asks`` times since ``asked_s``; ``probes`` is False where the loop does
    not make them. ``probed_s`` is when the last probe, of ``probed``, ended. ``fled``: the rung in use was
    taken because another was late. ``late_share`` is the share of late frames lately.
    """

    goal: Goal
    rungs: dict[str, Rung]
    tracks: Mapping[str, Track]
    setting: Setting
    now_s: float = 0.0
    seen_s: float | None = None
    load: float = math.nan
    worst: float = 0.0
    changed_s: float = -math.inf
    fled: bool = False
    late_share: float = 0.0
    asked: str = ""
    asks: int = 0
    asked_s: float = 0.0
    probes: bool = True
    probed: str = ""
    probed_s: float = -math.inf
    batches: dict[tuple[str, int], Saving] = msgspec.field(default_factory=dict)
    bursts: dict[tuple[str, int], Saving] = msgspec.field(default_factory=dict)
    energy_mj: dict[str, float] = msgspec.field(default_factory=dict)


def start(goal: Goal, ladder: Sequence[Rung]) -> State:
    """The state before the first frame: the best rung that the evidence says is in time, else the best.

    Raises BadInput for a ladder without rungs, with two of one name or with a quality that is no number, and
    for a deadline or percentile that nothing can keep.
    """
    doing = "starting to adapt to"
    if not ladder:
        why, cure = "the ladder has no rung", "Build the bundle for this device, or give another bundle"
        raise BadInput(doing, f"{goal.deadline_ms:g} ms", why, cure)
    twice = [i for i, n in Counter(r.id for r in ladder).items() if n > 1]
    odd = [r.id for r in ladder if not math.isfinite(r.quality)]
    if twice or odd:
        why = "two rungs bear this name" if twice else "its quality is no number"
        raise BadInput(doing, (twice or odd)[0], why, "Give each rung a name of its own and a finite quality")
    if not sound(goal.deadline_ms) or not 0 < goal.percentile < 1:
        why = "the deadline has to be above 0 ms and the percentile between 0 and 1"
        raise BadInput(doing, f"{goal.deadline_ms:g} ms at {goal.percentile:g}", why, "Give others")
    edge = [r for r in ladder if r.place == "edge"] or list(ladder)
    enough = [r for r in edge if r.quality >= goal.least_quality] or edge
    fits = [r for r in enough if not sound(r.expected_ms) or (r.expected_ms or 0.0) <= goal.deadline_ms]
    best = max(enough if goal.mode == "fixed" else fits or enough, key=lambda r: r.quality)
    if not fits and goal.mode != "fixed":
        best = min(enough, key=lambda r: r.expected_ms or 0.0)
    return State(
        goal=goal,
        rungs={r.id: r for r in ladder},
        tracks=priors(ladder, goal),
        setting=Setting(rung=best.id),
    )


def fixed(state: State, rung: str) -> State:
    """``state`` on ``rung``, as a fallback chose it. Raises BadInput for a rung that the ladder has not."""
    if rung not in state.rungs:
        raise BadInput("taking", rung, "the ladder has no such rung", did_you_mean(rung, state.rungs))
    return msgspec.structs.replace(state, setting=Setting(rung=rung), changed_s=state.now_s)


def learn(state: State, seen: Observation) -> State:
    """The state after the calls in ``seen``. A clock that stands still or goes back moves nothing."""
    if math.isfinite(seen.now_s):
        passed = 0.0 if state.seen_s is None else max(0.0, seen.now_s - state.seen_s)
        state = msgspec.structs.replace(state, now_s=state.now_s + passed, seen_s=seen.now_s)
    tracks = aged(state.tracks, state.now_s)
    if tracks is not state.tracks:
        state = msgspec.structs.replace(state, tracks=tracks)
    for call in seen.calls:
        if call.rung in state.tracks:
            state = _called(state, seen, call)
    return state


def _called(state: State, seen: Observation, call: Call) -> State:
    """One call's time, energy and, in company, what that saved."""
    ms, frames = call.latency_ms, max(1, call.batch)
    setting = state.setting
    live = call.rung == setting.rung and (frames == 1 or setting.batch > 1)
    if not call.ok:
        ms = max(ms if sound(ms) else 0.0, FAILED_TIMES * state.goal.deadline_ms)
    if not sound(ms):
        return state
    age = seen.now_s - call.at_s
    at_s = state.now_s - (max(0.0, age) if math.isfinite(age) else 0.0)
    if not live:
        state = msgspec.structs.replace(state, probed=call.rung, probed_s=at_s, asked="", asks=0, probes=True)
    if frames > 1 and call.ok:
        state, ms = _shared(state, call.rung, frames, ms, at_s)
        if not live:
            return state
    state = _timed(state, seen, call.rung, ms, frames, at_s, live)
    return _spent(state, call, frames, at_s, live)


def _timed(
    state: State, seen: Observation, rung: str, ms: float, frames: int, at_s: float, live: bool
) -> State:
    """A frame's time alone goes into its rung's track; one that is late refuses a rung that is not in use."""
    late = ms + seen.overhead_ms > state.goal.deadline_ms
    if live:
        state = msgspec.structs.replace(state, late_share=_counted(state, seen, late, ms, frames))
    if live and late and state.probed != rung and 0 <= at_s - state.probed_s <= WAKE_S:
        # The probe before it took its time (a quota, a busy core): the probed rung costs too much just now.
        return refused(state, seen, state.probed, harm=True)
    here, shared = state.tracks[rung], shared_shift(state.tracks)
    if live and late and state.fled and _carried(state, here, at_s - ms * 1e-3):
        return state
    memory_s = max(MEMORY_S, 8e-3 * (seen.interval_ms or 0.0))
    load = state.load
    if here.remote:
        load = math.nan if here.shift is None else 0.0
    made, found = learned(here, at_s, ms, state.goal.percentile, load, shared, memory_s)
    change: dict[str, object] = {"tracks": {**state.tracks, rung: made}}
    if live and not here.remote:
        change |= {"load": found, "worst": found + math.log(made.peak_ms / made.recent_ms)}
    state = msgspec.structs.replace(state, **change)
    return refused(state, seen, rung) if late and not live else state


def _carried(state: State, here: Track, began_s: float) -> bool:
    """Whether a call is the first since its rung was fled to, and began right then."""
    first = not here.samples or here.samples[-1][0] <= state.changed_s
    return first and began_s - state.changed_s <= CARRY_S


def refused(state: State, seen: Observation, rung: str, harm: bool = False) -> State:
    """``rung`` is left alone for its hold, which doubles where trying it did ``harm`` to live frames.

    It grows until trials, at three late frames each, use up half of what the percentile lets be late.
    """
    here = state.tracks[rung]
    longest_s = HARM_FRAMES / (1 - state.goal.percentile) * 1e-3 * (seen.interval_ms or DEFAULT_INTERVAL_MS)
    hold_s = min(2 * here.hold_s, max(HOLD_S, min(longest_s, LONGEST_S))) if harm else here.hold_s
    high_ms = here.high_ms if here.samples else 0.0
    if high_ms + seen.overhead_ms <= state.goal.deadline_ms:
        high_ms = FAILED_TIMES * state.goal.deadline_ms
    made = msgspec.structs.replace(
        here,
        samples=here.samples or ((state.now_s, high_ms),),
        high_ms=high_ms,
        hold_s=max(HOLD_S, hold_s),
        refused_s=state.now_s,
        valid_until_s=state.now_s + max(HOLD_S, hold_s),
    )
    return msgspec.structs.replace(state, tracks={**state.tracks, rung: made})


def left(state: State, seen: Observation) -> State:
    """The state where the rung in use is being left: refused if it was late, with harm if just taken up."""
    rung, lasted_s = state.setting.rung, state.now_s - state.changed_s
    here = state.tracks[rung]
    if not here.samples or here.high_ms + seen.overhead_ms <= state.goal.deadline_ms:
        return state
    if lasted_s < TRIAL_S and not state.fled:
        return refused(state, seen, rung, harm=True)
    fresh = {**state.tracks, rung: msgspec.structs.replace(here, hold_s=HOLD_S)}
    return refused(msgspec.structs.replace(state, tracks=fresh), seen, rung)


def may_try(state: State, target: str) -> bool:
    """Whether the frames that were late lately leave room for a trial that may make others so.

    A rung that costs less than any that was refused in the last minute may always be tried; others while
    late frames are at most a third of what the goal's percentile allows.
    """
    if state.late_share <= (1 - state.goal.percentile) / 3:
        return True
    shared, since_s = shared_shift(state.tracks), state.now_s - LONGEST_S
    cost = base(state.tracks[target], shared)
    return all(t.refused_s < since_s or base(t, shared) > cost for t in state.tracks.values())


def _counted(state: State, seen: Observation, late: bool, ms: float, frames: int) -> float:
    """The share of late frames, faded over ``BUDGET_FRAMES`` for each that may be late.

    A call that takes so long that others come meanwhile makes those late as well.
    """
    goal = state.goal
    kept = 0.0
    if late and seen.interval_ms:
        kept = min(LATE_AT_ONCE, (ms - goal.deadline_ms) // seen.interval_ms)
    fade = min(1.0, (frames + max(0.0, kept)) * (1 - goal.percentile) / BUDGET_FRAMES)
    return state.late_share + fade * (float(late) - state.late_share)


def _shared(state: State, rung: str, frames: int, ms: float, at_s: float) -> tuple[State, float]:
    """What a batch saved, by its first calls; later ones tell of the load. And a frame's time alone."""
    known, track = state.batches.get((rung, frames)), state.tracks[rung]
    if not track.samples or (known is not None and known.n >= 4 * LEAST_SHARES):
        return state, ms / frames / (known.ratio if known else 1.0)
    ratio = ms / frames / track.recent_ms
    made = _mean(known, ratio, at_s)
    return msgspec.structs.replace(state, batches={**state.batches, (rung, frames): made}), track.recent_ms


def _spent(state: State, call: Call, frames: int, at_s: float, live: bool) -> State:
    """The energy of a frame, alone or, where the setting in use gathers, in a burst."""
    spent = call.energy_mj
    if spent is None or not math.isfinite(spent) or spent <= 0 or frames > 1 or not call.ok:
        return state
    alone, burst = state.energy_mj.get(call.rung), state.setting.burst
    if live and burst > 1:
        if alone is None:
            return state
        made = _mean(state.bursts.get((call.rung, burst)), spent / alone, at_s)
        return msgspec.structs.replace(state, bursts={**state.bursts, (call.rung, burst): made})
    mean = spent if alone is None else alone + _SMOOTH * (spent - alone)
    return msgspec.structs.replace(state, energy_mj={**state.energy_mj, call.rung: mean})


def _mean(known: Saving | None, ratio: float, at_s: float) -> Saving:
    if known is None or at_s - known.at_s > KNOWN_S:
        return Saving(ratio=ratio, n=1, at_s=at_s)
    return Saving(ratio=known.ratio + (ratio - known.ratio) / (known.n + 1), n=known.n + 1, at_s=known.at_s)


def ratios(
    savings: Mapping[tuple[str, int], Saving], now_s: float, each: int
) -> dict[tuple[str, int], float]:
    """Those of enough calls (``each`` per frame in company) that are not too old to be believed."""
    return {
        key: s.ratio
        for key, s in savings.items()
        if s.n >= max(LEAST_SHARES, each * key[1]) and now_s - s.at_s <= KNOWN_S
    }
