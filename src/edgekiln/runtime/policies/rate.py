"""Which frames are answered: each one where the engine keeps up within its allowance, else every n-th."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgekiln.runtime.policies.allowance import busy_share, power_watts
from edgekiln.runtime.policies.plan import KEEP_UP, MARGIN, Plan, View


def kept_up(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """Each plan at the least ``every`` with which the engine keeps up and the allowance holds.

    What is not in use now has to do so with a margin; where not even the goal's ``most_every`` does, the plan
    takes that and is marked. Without a known rate the plans stay as they are.
    """
    return [_thinned(view, plan) for plan in plans]


def _thinned(view: View, plan: Plan) -> Plan:
    now, setting = view.current, plan.setting
    most = 1 if view.interval_ms is None else max(1, view.goal.most_every)
    for every in range(1, most + 1):
        setting = msgspec.structs.replace(plan.setting, every=every)
        in_use = setting.rung == now.rung and every >= now.every
        busy, power = busy_share(view, plan, every), power_watts(view, plan, every)
        if _fits(view, busy, power, _occupied(view, plan, every), 1.0 if in_use else MARGIN):
            return msgspec.structs.replace(plan, setting=setting, busy_share=busy, power_watts=power)
    occupied = _occupied(view, plan, most)
    return msgspec.structs.replace(
        plan,
        setting=setting,
        busy_share=busy_share(view, plan, most),
        power_watts=power_watts(view, plan, most),
        late=occupied is not None and occupied > KEEP_UP,
    )


def _fits(view: View, busy: float | None, power: float | None, occupied: float | None, margin: float) -> bool:
    allowed = view.seen.allowance
    return (
        (busy is None or busy <= margin * allowed.busy_share)
        and (power is None or allowed.power_watts is None or power <= allowed.power_watts)
        and (occupied is None or occupied <= margin * KEEP_UP)
    )


def _occupied(view: View, plan: Plan, every: int) -> float | None:
    """The share of the time that a call is under way, here or on the server: one call at a time."""
    return None if view.interval_ms is None else plan.call_ms / (view.interval_ms * every)
