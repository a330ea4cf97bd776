"""Whether a server may answer: while its link is up and the mode lets it, at the round trip measured."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from edgekiln.runtime.policies.plan import Plan, View

PROVEN = 3
"""A link's percentile is itself measured: it counts as so many calls."""


def reachable(view: View, plans: Sequence[Plan]) -> Sequence[Plan]:
    """Without the cloud's plans where the mode or the link forbids them; else at the round trip measured.

    Where nothing else is left, the plans stay as they are: a ladder of the cloud alone has no other answer.
    """
    if not any(p.cloud for p in plans):
        return plans
    link = view.seen.link
    edge = [p for p in plans if not p.cloud]
    if view.goal.mode in ("edge", "fixed") or link is None or not link.usable:
        return edge or plans
    made = []
    for plan in plans:
        if plan.cloud and link.round_trip_ms is not None:
            trip = max(link.round_trip_ms, plan.latency_ms if plan.n else 0.0)
            made.append(
                replace(
                    plan,
                    latency_ms=trip,
                    worst_ms=trip,
                    n=max(plan.n, PROVEN),
                    call_ms=min(trip, plan.call_ms),
                )
            )
        else:
            made.append(plan)
    return made
