"""Batteries and mains as Linux gives them below ``/sys/class/power_supply``
(Documentation/ABI/testing/sysfs-class-power).

Units are the kernel's: percent, microwatts, microvolts, microamperes, microwatt hours. Drivers differ in the
sign of a current that discharges; what flows is told by ``status``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from edgekiln.sensors.reading import Reading, Sample, figure

SYS = Path("/sys")
LONGEST = 128
MOST = 32
"""Supplies that are read: a folder full of links is no machine."""
DISCHARGING = "discharging"
"""Sensor ``NAME discharging``, quantity ``status``: 1 where the battery feeds the machine, else 0."""
ONLINE = "online"
"""Sensor ``NAME online``, quantity ``status``: 1 where mains or USB feed it, else 0."""


def read(root: Path = SYS) -> Sample:
    """All supplies that feed the machine: a battery's charge (``share``), whether it discharges, and its
    power (``power_watts``) while it does; whether mains are there. A mouse's battery (scope Device) is left
    out."""
    found: list[Reading] = []
    folder = root / "class" / "power_supply"
    try:
        supplies = sorted(folder.iterdir())[:MOST]
    except OSError:
        supplies = []
    for supply in supplies:
        kind = _text(supply / "type")
        if _text(supply / "scope") == "Device":
            continue
        if kind == "Battery" and _text(supply / "present") != "0":
            found += _battery(supply)
        elif kind in {"Mains", "USB", "Wireless"} and (online := _text(supply / "online")):
            found.append(figure(f"{supply.name} {ONLINE}", "status", "1" if online != "0" else "0"))
    return Sample(readings=tuple(found), time_s=time.monotonic())


def _battery(supply: Path) -> Iterator[Reading]:
    yield _charge(supply)
    status = _text(supply / "status")
    if not status or status == "Unknown":
        reason = f"its status is '{status}'" if status else "it states no status"
        yield Reading(sensor=f"{supply.name} {DISCHARGING}", quantity="status", value=None, reason=reason)
        return
    draining = status == "Discharging"
    yield Reading(sensor=f"{supply.name} {DISCHARGING}", quantity="status", value=float(draining))
    if draining:
        yield _power(supply)


def _charge(supply: Path) -> Reading:
    """``capacity`` in percent, else what is left over what a full battery holds."""
    made = figure(supply.name, "share", _text(supply / "capacity") or "no capacity", 0.01)
    if made.value is None:
        for kind in ("energy", "charge"):
            now, full = (figure("", "share", _text(supply / f"{kind}_{w}")) for w in ("now", "full"))
            if now.value is not None and full.value:
                made = Reading(sensor=supply.name, quantity="share", value=now.value / full.value)
                break
    if made.value is not None and not 0.0 <= made.value <= 1.05:
        reason = f"it answers a charge of {made.value:.0%}"
        return Reading(sensor=supply.name, quantity="share", value=None, reason=reason)
    return made


def _power(supply: Path) -> Reading:
    """``power_now``, else current times voltage; a current is positive here whatever its driver says."""
    power = figure(supply.name, "power_watts", _text(supply / "power_now") or "no power_now", 1e-6)
    if power.value is not None:
        return Reading(sensor=supply.name, quantity="power_watts", value=abs(power.value))
    current = figure("", "current_amperes", _text(supply / "current_now") or "no current_now", 1e-6)
    volts = figure("", "voltage_volts", _text(supply / "voltage_now") or "no voltage_now", 1e-6)
    if current.value is None or volts.value is None:
        reason = current.reason or volts.reason
        return Reading(sensor=supply.name, quantity="power_watts", value=None, reason=reason)
    return Reading(sensor=supply.name, quantity="power_watts", value=abs(current.value * volts.value))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            raw = opened.read(LONGEST)
    except OSError:
        return ""
    return "".join(c for c in raw.decode(errors="replace").strip() if c.isprintable())
