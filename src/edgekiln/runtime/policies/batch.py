"""Several frames a call: only where a frame was measured here to cost less so, and all are in time."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.plan import MARGIN, Plan, View
from edgekiln.runtime.policies.quality import gathering
from edgekiln.runtime.vocabulary import Setting

PAYS = 0.95
"""A frame has to cost at most so much of what it costs alone."""


def paid(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """The plans, and beside each those batches of it that pay."""
    counts = sizes(view.goal.most_batch) if view.batch_ratio else []
    made = list(plans)
    for plan in plans if counts else ():
        for batch in counts:
            ratio = view.batch_ratio.get((plan.setting.rung, batch), 1.0)
            if ratio <= PAYS:
                made.append(_batched(plan, batch, ratio))
    return made


def _batched(plan: Plan, batch: int, ratio: float) -> Plan:
    return replace(
        plan,
        setting=replace(plan.setting, batch=batch),
        latency_ms=plan.latency_ms * batch * ratio,
        worst_ms=plan.worst_ms * batch * ratio,
        call_ms=plan.call_ms * ratio,
        energy_mj=None if plan.energy_mj is None else plan.energy_mj * ratio,
    )


def sizes(most: int) -> list[int]:
    """2, 4, 8 and so on up to ``most``."""
    found: list[int] = []
    while (size := 2 << len(found)) <= most:
        found.append(size)
    return found


def unmeasured(view: View, here: Plan) -> Setting | None:
    """The next batch of the rung in use whose cost is not known and that would be in time even if it saved
    nothing; None where there is none, or the last one that was measured does not pay."""
    rung = here.setting.rung
    if here.cloud or here.setting.burst > 1:
        return None
    found = view.estimates[rung]
    for batch in sizes(view.goal.most_batch):
        known = view.batch_ratio.get((rung, batch))
        if known is None:
            wanted = Setting(rung=rung, every=here.setting.every, batch=batch)
            wait, _ = gathering(view, wanted)
            whole = view.seen.overhead_ms + wait + batch * found.high_ms
            return wanted if whole <= MARGIN * view.goal.deadline_ms else None
        if known > PAYS:
            return None
    return None
