"""Which rungs may answer at all, and which of them in time: the ladder of resolutions and variants."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.plan import Plan, View
from edgekiln.runtime.vocabulary import Setting


def rungs(view: View, plans: Sequence[Plan] = ()) -> Sequence[Plan]:
    """One plan per rung of at least the goal's quality; of all rungs where none has it."""
    least = view.goal.least_quality
    enough = [r for r in view.rungs.values() if r.quality >= least] or list(view.rungs.values())
    made = []
    for rung in enough:
        found = view.estimates[rung.id]
        made.append(
            Plan(
                setting=Setting(rung=rung.id),
                quality=rung.quality,
                latency_ms=found.high_ms,
                worst_ms=found.worst_ms,
                cloud=rung.place == "cloud",
                n=found.n,
                peak_ms=found.peak_ms,
                call_ms=found.mean_ms,
                base_ms=found.base_ms,
                tried=found.tried,
                guessed=found.guessed,
                energy_mj=energy_mj(view, rung.id),
            )
        )
    return made


def energy_mj(view: View, rung: str) -> float | None:
    """Of one frame: as measured here, else as the evidence says, else by time from the rung in use."""
    known = view.energy_mj.get(rung)
    if known is None:
        known = view.rungs[rung].expected_mj
    if known is None and (here := view.energy_mj.get(view.current.rung)) is not None:
        known = here * view.estimates[rung].mean_ms / view.estimates[view.current.rung].mean_ms
    return known


def in_time(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """Each plan with the whole time from a frame's arrival to its answer, marked where that is too long."""
    deadline_ms, overhead_ms = view.goal.deadline_ms, view.seen.overhead_ms
    made = []
    for plan in plans:
        setting, latency, worst = plan.setting, plan.latency_ms, plan.worst_ms
        if setting.batch > 1 or setting.burst > 1:
            wait, times = gathering(view, setting)
            latency = max(wait + latency, times * latency)
            worst = max(wait + worst, times * worst)
        latency, worst = overhead_ms + latency, overhead_ms + worst
        made.append(
            replace(
                plan,
                latency_ms=latency,
                worst_ms=worst,
                late=plan.late or latency > deadline_ms,
                late_at_worst=plan.late or worst > deadline_ms,
            )
        )
    return made


def gathering(view: View, setting: Setting) -> tuple[float, int]:
    """How long the first frame of a batch or burst waits for the last, in ms, and how many calls it takes to
    answer that one. Frames that wait already need no gathering."""
    frames = max(setting.batch, setting.burst)
    if frames == 1:
        return 0.0, 1
    missing = max(0, frames - 1 - view.seen.queued) if setting.burst == 1 else frames - 1
    wait = missing * (view.interval_ms or 0.0) * setting.every
    return wait, -(-setting.burst // setting.batch)
