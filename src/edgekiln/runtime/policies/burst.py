"""Gather frames, answer them in one go, idle in between: only where that was measured here to save energy.

It is of use where energy counts: on battery, or under a power allowance.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.plan import MARGIN, Plan, View
from edgekiln.runtime.policies.quality import gathering
from edgekiln.runtime.vocabulary import Setting

SAVES = 0.95
"""A frame has to take at most so much of the energy that it takes alone."""
COUNTS = (2, 4, 8)


def wanted(view: View) -> bool:
    """Whether energy counts and frames come at a rate, so that there is something to gather."""
    health = view.seen.health
    on_battery = health is not None and bool(health.on_battery)
    return view.interval_ms is not None and (on_battery or view.seen.allowance.power_watts is not None)


def gathered(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """The plans, and beside each those bursts of it that save."""
    if not view.burst_ratio or not wanted(view):
        return plans
    made = list(plans)
    for plan in plans:
        for count in COUNTS:
            ratio = view.burst_ratio.get((plan.setting.rung, count), 1.0)
            if ratio <= SAVES and plan.setting.batch == 1 and plan.energy_mj is not None:
                setting = replace(plan.setting, burst=count)
                made.append(replace(plan, setting=setting, energy_mj=plan.energy_mj * ratio))
    return made


def unmeasured(view: View, here: Plan) -> Setting | None:
    """The next burst of the rung in use whose energy is not known and whose frames would all be in time."""
    rung = here.setting.rung
    if here.cloud or here.setting.batch > 1 or not wanted(view) or rung not in view.energy_mj:
        return None
    for count in COUNTS:
        known = view.burst_ratio.get((rung, count))
        if known is None:
            setting = Setting(rung=rung, every=here.setting.every, burst=count)
            wait, times = gathering(view, setting)
            ms = view.estimates[rung].high_ms
            whole = view.seen.overhead_ms + max(wait + ms, times * ms)
            return setting if whole <= MARGIN * view.goal.deadline_ms else None
        if known > SAVES:
            return None
    return None
