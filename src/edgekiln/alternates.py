"""Which artifacts ship beside the chosen one, to take over where it fails or is too slow.

Pure rules over proofs. Only devices that run edgekiln's own runtime get any: a phone's app opens one model.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekiln.choose import broken, constraints
from edgekiln.devices import Device
from edgekiln.records import Budget, Choice, Proof

KINDS = ("host", "jetson", "board", "pc", "laptop", "accelerator")
"""Kinds of devices on which this program itself runs a bundle."""
KEPT = ("accuracy_drop", "agreement", "sqnr_db", "memory_bytes")
"""Limits of the budget that an alternate keeps as well; it may be slower or larger than the chosen one."""


def alternates(
    device: Device, choice: Choice, proofs: Sequence[Proof], budget: Budget, most: int
) -> tuple[Proof, ...]:
    """At most ``most`` proofs of ``device`` in the order in which they take over from the chosen artifact.

    First the best of another engine, since a fault of one engine takes all of its artifacts; then the
    fastest, smallest of another recipe; then what is left. All keep the limits on quality and memory.
    """
    chosen = next((p for p in proofs if p.artifact.id == choice.artifact_id), None)
    if chosen is None or device.kind not in KINDS:
        return ()
    checks = [c for c in constraints(budget, proofs) if c.key in KEPT]
    sound = [p for p in proofs if p is not chosen and not broken(p, checks)]
    ranked = sorted(sound, key=_cost)
    found: list[Proof] = []

    def take(wanted: Sequence[Proof]) -> None:
        found.extend(p for p in wanted[:1] if p not in found)

    take([p for p in ranked if p.artifact.engine != chosen.artifact.engine])
    recipes = {p.artifact.recipe for p in (chosen, *found)}
    take([p for p in ranked if p.artifact.recipe not in recipes])
    found += [p for p in ranked if p not in found]
    return tuple(found[:most])


def _cost(proof: Proof) -> tuple[float, float, str]:
    """Latency where one is known, whatever obtained it: it decides an order of trial here and no winner."""
    latency = proof.value("latency_p50_ms")
    return (float("inf") if latency is None else latency, proof.artifact.size_bytes, proof.artifact.id)
