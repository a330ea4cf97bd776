"""Which frames are answered: each one where the engine keeps up within its allowance, else every n-th."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.allowance import others_watts
from edgekiln.runtime.policies.plan import KEEP_UP, MARGIN, Plan, View


def kept_up(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """Each plan at the least ``every`` with which the engine keeps up and the allowance holds.

    What is not in use now has to do so with a margin; where not even the goal's ``most_every`` does, the plan
    takes that and is marked. Without a known rate the plans stay as they are.
    """
    if view.interval_ms is None:
        return plans
    others = others_watts(view)
    return [_thinned(view, plan, view.interval_ms, others) for plan in plans]


def _thinned(view: View, plan: Plan, interval_ms: float, others: float | None) -> Plan:
    """The plan at its least ``every``. Calls a second times the time of a call are the share of the time that
    one is under way, here or on the server, of as many as run at once. A server's time is not this
    machine's."""
    now, setting, allowed = view.current, plan.setting, view.seen.allowance
    same, most = setting.rung == now.rung, max(1, view.goal.most_every)
    power = None
    for every in range(1, most + 1):
        each_ms = interval_ms * every
        occupied = plan.call_ms / (each_ms * view.seen.at_once)
        busy = 0.0 if plan.cloud else occupied
        if others is not None and plan.energy_mj is not None:
            power = others + plan.energy_mj / each_ms
        margin = 1.0 if same and every >= now.every else MARGIN
        fits = busy <= margin * allowed.busy_share and occupied <= margin * KEEP_UP
        if fits and (power is None or allowed.power_watts is None or power <= allowed.power_watts):
            late = plan.late
            break
    else:
        late = occupied > KEEP_UP
    if setting.every != every:
        setting = replace(setting, every=every)
    return replace(plan, setting=setting, busy_share=busy, power_watts=power, late=late)
