"""What the policies remember from one decision to the next, and how calls change it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec
from msgspec.structs import replace

from edgekiln.errors import BadInput
from edgekiln.records import Record
from edgekiln.runtime.policies.estimate import (
    FAILED_TIMES,
    FEW,
    MEMORY_S,
    Track,
    aged,
    learned,
    priors,
    shared_shift,
    sound,
)
from edgekiln.runtime.vocabulary import Call, Goal, Observation, Rung, Setting

CALM_S = 0.5
"""How long after a refusal nothing is tried: what the refused rung took still weighs on all."""
HOLD_S = 2.0
"""How long a rung that was late is left alone, the first time."""
LATES_AT_ONCE = 2.0
"""A trial that fails, and so a change of the load, makes about so many frames late."""
LONGEST_S = 60.0
STALLED_TIMES = 2.0
"""A call of so many deadlines makes those that wait behind it late too."""
DUCK_LATES = 3.0
DEFAULT_INTERVAL_MS = 50.0
WAKE_S = 0.1
"""A call that begins so soon after a probe may be late because of it."""
CARRY_S = 0.1
"""A call that begins so soon after a rung was fled from may still suffer from its excess: the kernel's period
of a CPU quota, which may be used up, is so long."""
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
    taken because another was late. ``ducked_s`` is when a rung was last left for one late call,
    ``refused_s`` when one was last refused.
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
    ducked_s: float = -math.inf
    refused_s: float = -math.inf
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


def learn(state: State, seen: Observation) -> State:
    """The state after the calls in ``seen``. A clock that stands still or goes back moves nothing."""
    if math.isfinite(seen.now_s):
        passed = 0.0 if state.seen_s is None else max(0.0, seen.now_s - state.seen_s)
        state = replace(state, now_s=state.now_s + passed, seen_s=seen.now_s)
    tracks = aged(state.tracks, state.now_s)
    if tracks is not state.tracks:
        state = replace(state, tracks=tracks)
    known = [c for c in seen.calls if c.rung in state.tracks]
    for usual, calls in groupby(known, key=functools.partial(_usual, state, seen)):
        if usual:
            took = [(_ended(state, seen, call), call.latency_ms) for call in calls]
            state = _lasted(state, seen, state.setting.rung, took, live=True)
        else:
            for call in calls:
                state = _called(state, seen, call)
    return state


def _usual(state: State, seen: Observation, call: Call) -> bool:
    """Whether all that a call tells is that the rung in use was in time: such calls are learned together."""
    ms, rung = call.latency_ms, call.rung
    if rung != state.setting.rung or state.tracks[rung].remote or not call.ok or call.batch > 1:
        return False
    return sound(ms) and ms + seen.overhead_ms <= state.goal.deadline_ms and call.energy_mj is None


def _ended(state: State, seen: Observation, call: Call) -> float:
    """When it ended, by the clock that never goes back."""
    age = seen.now_s - call.at_s
    return state.now_s - (max(0.0, age) if math.isfinite(age) else 0.0)


def _called(state: State, seen: Observation, call: Call) -> State:
    """One call's time, energy and, in company, what that saved."""
    ms, frames = call.latency_ms, max(1, call.batch)
    setting = state.setting
    live = call.rung == setting.rung and (frames == 1 or setting.batch > 1)
    if not call.ok:
        ms = max(ms if sound(ms) else 0.0, FAILED_TIMES * state.goal.deadline_ms)
    if not sound(ms):
        return state
    at_s = _ended(state, seen, call)
    if not live:
        state = replace(state, probed=call.rung, probed_s=at_s, asked="", asks=0, probes=True)
    if frames > 1 and call.ok:
        state, ms = _shared(state, call.rung, frames, ms, at_s)
        if not live:
            return state
    state = _timed(state, seen, call.rung, ms, at_s, live)
    return _spent(state, call, frames, at_s, live)


def _timed(state: State, seen: Observation, rung: str, ms: float, at_s: float, live: bool) -> State:
    """A frame's time alone goes into its rung's track; one that is late refuses a rung that is not in use."""
    late = ms + seen.overhead_ms > state.goal.deadline_ms
    if live and late and state.probed != rung and 0 <= at_s - state.probed_s <= WAKE_S + ms * 1e-3:
        # The probe before it took its time (a quota, a busy core): the probed rung costs too much just now.
        told = state.now_s - state.refused_s < CALM_S
        return state if told else refused(state, seen, state.probed, harm=True)
    if live and late and state.fled and at_s - ms * 1e-3 - state.changed_s <= CARRY_S:
        return state
    state = _lasted(state, seen, rung, [(at_s, ms)], live)
    return refused(state, seen, rung) if late and not live else state


def _lasted(
    state: State, seen: Observation, rung: str, calls: Sequence[tuple[float, float]], live: bool
) -> State:
    """Calls (when each ended in s, ms of a frame alone) go into their rung's track, and the load where they
    were ``live``."""
    here, load = state.tracks[rung], state.load
    memory_s = max(MEMORY_S, 8e-3 * (seen.interval_ms or 0.0))
    if here.remote:
        load = math.nan if here.shift is None else 0.0
    shared = 0.0 if here.shift is not None else shared_shift(state.tracks)
    made, found = learned(here, calls, state.goal.percentile, load, shared, memory_s)
    change: dict[str, object] = {"tracks": {**state.tracks, rung: made}}
    if live and not here.remote:
        change |= {"load": found, "worst": found + math.log(made.peak_ms / made.recent_ms)}
    return replace(state, **change)


def allowed_s(state: State, seen: Observation, lates: float) -> float:
    """The time in which the goal's percentile lets so many frames be late."""
    each_s = 1e-3 * (seen.interval_ms or DEFAULT_INTERVAL_MS)
    return min(LONGEST_S, lates / (1 - state.goal.percentile) * each_s)


def refused(state: State, seen: Observation, rung: str, harm: bool = False) -> State:
    """``rung`` is left alone for its hold, which doubles where trying it did ``harm`` to live frames.

    It grows until trials use up no more than a third of what the percentile lets be late.
    """
    here = state.tracks[rung]
    longest_s = max(HOLD_S, allowed_s(state, seen, 3 * LATES_AT_ONCE))
    hold_s = min(2 * max(HOLD_S, here.hold_s), longest_s) if harm else max(HOLD_S, here.hold_s)
    high_ms = here.high_ms if here.samples else 0.0
    if high_ms + seen.overhead_ms <= state.goal.deadline_ms:
        high_ms = FAILED_TIMES * state.goal.deadline_ms
    return _held(state, rung, replace(here, hold_s=hold_s), high_ms, hold_s)


def _held(state: State, rung: str, here: Track, high_ms: float, hold_s: float) -> State:
    made = replace(
        here,
        samples=here.samples or (high_ms,),
        ordered=here.ordered or (high_ms,),
        high_ms=high_ms,
        valid_until_s=state.now_s + hold_s,
    )
    return replace(state, tracks={**state.tracks, rung: made}, refused_s=state.now_s)


def left(state: State, seen: Observation) -> State:
    """The state where the rung in use is being left: refused if it was late.

    It did harm where it lasted for less than the frames among which so many may be late, or where a call
    stalled. After a first late call the rung is only ducked from: nothing is known yet.
    """
    rung, deadline_ms = state.setting.rung, state.goal.deadline_ms
    here = state.tracks[rung]
    if not here.samples or here.peak_ms + seen.overhead_ms <= deadline_ms:
        return state
    if here.high_ms + seen.overhead_ms <= deadline_ms:
        state = replace(state, ducked_s=state.now_s)
        return _held(state, rung, here, here.peak_ms, CALM_S)
    lasted = state.fled or state.now_s - state.changed_s >= allowed_s(state, seen, LATES_AT_ONCE)
    if lasted:
        fresh = replace(here, hold_s=HOLD_S)
        state = replace(state, tracks={**state.tracks, rung: fresh})
    stalled = here.peak_ms > STALLED_TIMES * deadline_ms
    return refused(state, seen, rung, harm=stalled or not lasted)


def may_duck(state: State, seen: Observation) -> bool:
    """Whether one late call is reason enough to leave the rung in use: it was the first for long."""
    here = state.tracks[state.setting.rung]
    if len(here.samples) < FEW or here.samples[-1] + seen.overhead_ms <= state.goal.deadline_ms:
        return False
    return state.now_s - state.ducked_s >= allowed_s(state, seen, DUCK_LATES)


def _shared(state: State, rung: str, frames: int, ms: float, at_s: float) -> tuple[State, float]:
    """What a batch saved, by its first calls; later ones tell of the load. And a frame's time alone."""
    known, track = state.batches.get((rung, frames)), state.tracks[rung]
    if not track.samples or (known is not None and known.n >= 4 * LEAST_SHARES):
        return state, ms / frames / (known.ratio if known else 1.0)
    ratio = ms / frames / track.recent_ms
    made = _mean(known, ratio, at_s)
    return replace(state, batches={**state.batches, (rung, frames): made}), track.recent_ms


def _spent(state: State, call: Call, frames: int, at_s: float, live: bool) -> State:
    """The energy of a frame, alone or, where the setting in use gathers, in a burst."""
    spent = call.energy_mj
    if spent is None or not sound(spent) or frames > 1 or not call.ok:
        return state
    alone, burst = state.energy_mj.get(call.rung), state.setting.burst
    if live and burst > 1:
        if alone is None:
            return state
        made = _mean(state.bursts.get((call.rung, burst)), spent / alone, at_s)
        return replace(state, bursts={**state.bursts, (call.rung, burst): made})
    mean = spent if alone is None else alone + _SMOOTH * (spent - alone)
    return replace(state, energy_mj={**state.energy_mj, call.rung: mean})


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
