"""Energy of an inference, and the watts that follow: from the boards whose power was published."""

from __future__ import annotations

from edgekiln.devices import Device
from edgekiln.forecast.profiles import data
from edgekiln.records import Evidence

ASSUMED = 1.3
"""Power was published for one model. That another model draws up to so many times more or less is an
assumption."""


def energy(device: Device, target: str, precision: str, latency: Evidence) -> tuple[Evidence, Evidence]:
    """``energy_mj`` and ``power_watts`` of one inference after the other, the idle power of the board
    included.

    Energy is nearly the same in every power mode (YOLOv8n on the Orin Nano: 62.6 mJ in FP16 at 15 W and at
    the highest), so it is what is carried over: in proportion to latency in the mode that latency was
    predicted for.
    """
    known = [
        p
        for p in data().power
        if p.device == device.name and p.precision == precision and target == "tensorrt"
    ]
    best = max(known, key=lambda p: p.watts, default=None)
    if best is None or latency.value is None or latency.interval is None:
        reason = f"no power was published for {device.name} with {target} in this precision"
        return (
            Evidence(what="energy_mj", unit="mJ", value=None, reason=reason),
            Evidence(what="power_watts", unit="W", value=None, reason=reason),
        )
    mj = best.watts * latency.value
    low, high = latency.interval
    note = (
        f"low confidence: one model measured ({best.model}, {best.mode}), idle included, "
        f"x/÷{ASSUMED:g} assumed"
    )
    around = {"basis": "power of one published model", "note": note}
    return (
        Evidence(
            what="energy_mj",
            unit="mJ",
            value=mj,
            how="predicted",
            where=device.title,
            interval=(best.watts * low / ASSUMED, best.watts * high * ASSUMED),
            environment=dict(around),
            source=best.source,
        ),
        Evidence(
            what="power_watts",
            unit="W",
            value=mj / latency.value,
            how="predicted",
            where=device.title,
            interval=(best.watts / ASSUMED, best.watts * ASSUMED),
            environment=dict(around),
            source=best.source,
        ),
    )
