"""Predictions for a device that is not here, each with its interval and with the figures that it rests on.

Three kinds, never mixed: fitted on published runs of this very chip and runtime; carried over from a
neighbour; calibrated by the user's own measurements. Where there is neither, nothing is predicted: data
sheets alone were wrong by 37 to 71 %. What is said then is a bound, not a guess: the time that the memory's
bandwidth alone takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgekiln.devices import Device
from edgekiln.forecast.calibration import Calibration
from edgekiln.forecast.energy import energy
from edgekiln.forecast.likeness import Likeness, Near, likeness
from edgekiln.forecast.memory import arena_bytes
from edgekiln.forecast.profiles import Group, Profile, Run, Spread, data, precisions, profile, runs
from edgekiln.forecast.terms import amounts, vector
from edgekiln.model.workload import Workload
from edgekiln.records import Evidence, Record, Scalar

Basis = Literal["fitted", "carried over", "calibrated", "refused"]
INTERVAL = "90 % of held-out figures lay within"
UNCOUNTED = 0.05
"""The share of nodes that may be missing from the count before a prediction is refused."""

ALIASES = {
    "fp32": ("FP32", "float"),
    "fp16": ("FP16", "float"),
    "float": ("float", "FP16", "FP32"),
    "int8": ("INT8", "w8a8"),
    "w8a8": ("w8a8", "INT8"),
    "w8a16": ("w8a16",),
}
"""What a user calls a precision, and what tables call it; ``float`` on a Hexagon NPU computes in FP16."""


class Prediction(Record, frozen=True, kw_only=True):
    """One device, target and precision. ``evidence``: ``latency_p50_ms``, ``arena_bytes``, ``energy_mj``
    and ``power_watts``, each predicted or null with the reason; ``nearest`` are the published figures
    beside it."""

    device: str
    target: str
    precision: str
    runtime: str
    basis: Basis
    why: str
    evidence: tuple[Evidence, ...]
    nearest: tuple[Near, ...] = ()

    def get(self, what: str) -> Evidence:
        return next(e for e in self.evidence if e.what == what)


def predict(
    work: Workload,
    device: Device,
    target: str | None = None,
    precision: str | None = None,
    measured: Sequence[Calibration] = (),
) -> tuple[Prediction, ...]:
    """Every prediction for ``work`` on ``device``, in the order of its targets; at least one row a target.

    ``precision`` is one of ``ALIASES``; ``measured`` are the user's calibrations, which come first.
    """
    found: list[Prediction] = []
    for name in device.targets:
        if target is not None and name != target:
            continue
        rows = [
            _calibrated(work, device, c)
            for c in measured
            if (c.device, c.target) == (device.name, name) and _meant(precision, (c.precision,))
        ]
        for run in (r for r in runs() if (r.device, r.target) == (device.name, name)):
            for published in _meant(precision, precisions(run)):
                if not any(r.precision == published for r in rows):
                    rows.append(_published(work, device, run, published))
        found += rows or [_refused(work, device, name, precision)]
    return tuple(found)


def _meant(precision: str | None, have: Sequence[str]) -> tuple[str, ...]:
    """Which of the precisions that a table has are meant by the user's word; all where none is given."""
    if precision is None:
        return tuple(have)
    names = ALIASES.get(precision.lower(), (precision,))
    return next(((n,) for n in names if n in have), ())


def _published(work: Workload, device: Device, run: Run, precision: str) -> Prediction:
    known = profile(run, precision)
    assert known is not None, "precisions() names only those that there are"
    group = data().groups[known.group]
    found = amounts(work)
    value = float(vector(found, group.terms) @ np.array(known.coefficients))
    alike = likeness(found, known, group)
    spread = group.own[precision]
    low, high = spread.low, spread.high
    if run.how == "carried over":
        low, high = _together((low, high), _device_spread(group))
    low, high = low / alike.widened, high * alike.widened
    return _prediction(
        work,
        device,
        run.target,
        precision,
        run.runtime,
        run.how,
        run.why,
        value,
        (low, high),
        spread,
        alike,
        known,
    )


def _calibrated(work: Workload, device: Device, own: Calibration) -> Prediction:
    group = data().groups[own.group]
    found = amounts(work)
    value = float(vector(found, group.terms) @ np.array(own.coefficients))
    base = group.own.get(own.precision) or next(iter(group.own.values()))
    count = max((k for k in group.anchored if 0 < int(k) <= len(own.anchors)), key=int, default=None)
    known = next(
        p for p in data().profiles if (p.group, p.chip, p.runtime) == (own.group, own.like, own.runtime)
    )
    alike = likeness(found, known, group)
    pair = (base.low, base.high)
    if count is not None:
        pair = _together(pair, (group.anchored[count].low, group.anchored[count].high))
    low, high = pair[0] / alike.widened, pair[1] * alike.widened
    why = (
        f"the form of {own.like} ({own.runtime}), set by your {len(own.anchors)} measurement"
        f"{'s' if len(own.anchors) > 1 else ''}: {', '.join(own.anchors)}"
    )
    return _prediction(
        work,
        device,
        own.target,
        own.precision,
        own.runtime,
        "calibrated",
        why,
        value,
        (low, high),
        base,
        alike,
        None,
    )


def _prediction(
    work: Workload,
    device: Device,
    target: str,
    precision: str,
    runtime: str,
    basis: Basis,
    why: str,
    value: float,
    pair: tuple[float, float],
    spread: Spread,
    alike: Likeness,
    known: Profile | None,
) -> Prediction:
    """The row, or a refusal where the graph holds what no published model could teach."""
    reason = alike.refusal or _unpredictable(work, runtime, precision)
    if reason:
        return _row(
            device, target, precision, runtime, "refused", reason, _nothing(work, device, precision, reason)
        )
    around: dict[str, Scalar] = {
        "basis": f"{basis}: {why}",
        "runtime": runtime,
        "interval": f"{INTERVAL} ({spread.held}; {spread.n} figures of {spread.models} models)",
        "error_of_held_out_percent": round(spread.mape, 1),
    }
    if alike.note:
        around["note"] = alike.note
    latency = Evidence(
        what="latency_p50_ms",
        unit="ms",
        value=value,
        how="predicted",
        where=device.title,
        interval=(value * pair[0], value * pair[1]),
        environment=around,
        source="" if known is None else known.source,
    )
    power = energy(device, target, precision, latency)
    evidence = (latency, _arena(work, device, precision), *power)
    return _row(device, target, precision, runtime, basis, why, evidence, alike.nearest)


def _unpredictable(work: Workload, runtime: str, precision: str) -> str:
    """Why nothing can be said of this graph on that runtime; "" where something can."""
    if work.unresolved > UNCOUNTED * work.nodes:
        cure = "fix the input shapes with --input-shape"
        return f"{work.unresolved} of {work.nodes} nodes could not be counted; {cure}"
    label = f"{runtime} {precision}"
    slow = {kind for group in data().groups.values() for kind in group.falls_back.get(label, ())}
    if have := sorted(slow & {layer.kind for layer in work.layers}):
        return (
            f"it has {', '.join(have)} layers, which {label} left to the CPU in every published graph: "
            "each took more than three times what its work explains"
        )
    return ""


def _refused(work: Workload, device: Device, target: str, precision: str | None) -> Prediction:
    if any((r.device, r.target) == (device.name, target) for r in runs()):
        why = f"no published run of this device with {target} has this precision"
    else:
        why = (
            f"nobody published a run of this device with {target}, and data sheets alone were wrong by 37 to "
            "71 %; measure one to five models on it and give them to "
            f"`edgekiln calibrate-device {device.name}`"
        )
    name = (precision or "fp16").lower()
    return _row(device, target, name, "", "refused", why, _nothing(work, device, name, why))


def _nothing(work: Workload, device: Device, precision: str, why: str) -> tuple[Evidence, ...]:
    """No figure but the arena, which the graph alone decides."""
    units = {"latency_p50_ms": "ms", "energy_mj": "mJ", "power_watts": "W"}
    nothing = [Evidence(what=w, unit=u, value=None, reason=why) for w, u in units.items()]
    return (*nothing, _arena(work, device, precision))


def _arena(work: Workload, device: Device, precision: str) -> Evidence:
    """A bound from the lifetimes of the graph, good for any device."""
    names = ALIASES.get(precision.lower(), (precision,))
    note = "weights and the activations alive together: an engine needs at least this, without its own code"
    return Evidence(
        what="arena_bytes",
        unit="bytes",
        value=float(arena_bytes(work, names[0])),
        how="predicted",
        where=device.title,
        environment={"basis": "computed from the graph", "note": note},
    )


def _row(
    device: Device,
    target: str,
    precision: str,
    runtime: str,
    basis: Basis,
    why: str,
    evidence: tuple[Evidence, ...],
    nearest: tuple[Near, ...] = (),
) -> Prediction:
    return Prediction(
        device=device.name,
        target=target,
        precision=precision,
        runtime=runtime,
        basis=basis,
        why=why,
        evidence=evidence,
        nearest=nearest,
    )


def _together(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Two independent spreads as one: their logarithms add in squares."""
    low = -math.hypot(*(min(0.0, math.log(s[0])) for s in (one, other)))
    high = math.hypot(*(max(0.0, math.log(s[1])) for s in (one, other)))
    return math.exp(low), math.exp(high)


def _device_spread(group: Group) -> tuple[float, float]:
    """How far off a device not measured is: scaled by data sheets where that was checked, else by one
    anchor."""
    found = group.anchored.get("0") or group.anchored.get("1")
    return (found.low, found.high) if found else (0.5, 2.0)
