"""What the governor allows: the share of the time that the engine may compute, and the machine's power."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.plan import Plan, View

_SLACK = 1e-9
MARGIN = 0.96
"""A rung to be taken up keeps the allowance by so much, or noise would take it back at once."""


def others_watts(view: View) -> float | None:
    """The machine's power of now, less what the setting in use takes of it.

    None where the machine's power, the rate or the energy of the setting in use is not known.
    """
    health, here = view.seen.health, view.here_watts
    if health is None or health.power_watts is None or here is None:
        return None
    return health.power_watts - here


def marked(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """Each plan with what of the allowance it would break."""
    return [_marked(view, plan) for plan in plans]


def _marked(view: View, plan: Plan) -> Plan:
    allowed, busy, power = view.seen.allowance, plan.busy_share, plan.power_watts
    here = plan.setting == view.current or allowed.busy_share >= 1.0
    if busy is not None and busy > allowed.busy_share * (1.0 if here else MARGIN) + _SLACK:
        what = f"{busy:.0%} busy, {allowed.busy_share:.0%} allowed"
    elif power is not None and allowed.power_watts is not None and power > allowed.power_watts + _SLACK:
        what = f"{power:.1f} W, {allowed.power_watts:.1f} W allowed"
    else:
        return plan
    return replace(plan, forbidden=what)
