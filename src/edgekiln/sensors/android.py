"""What an Android phone says of heat, battery and drain: the text of three ``dumpsys`` services.

- ``dumpsys thermalservice`` (Android 10 and later): only the block "Current temperatures from HAL:" is now;
  "Cached temperatures:" above it are those of the last event, hours old perhaps.
- ``dumpsys battery``: tenths of a degree, millivolts, microampere hours.
- ``dumpsys batterystats``: every vendor writes it differently. The totals of "Estimated power use (mAh)" and
  the time on battery are the same in all; nothing else is touched.

Names of types and states are those of ``android.os.Temperature``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgekiln.sensors.reading import Quantity, Reading, Sample, figure

LONGEST_TEXT = 4 << 20
LONGEST_LINE = 512
MOST_UNREAD = 64

TYPES = {
    -1: "UNKNOWN",
    0: "CPU",
    1: "GPU",
    2: "BATTERY",
    3: "SKIN",
    4: "USB_PORT",
    5: "POWER_AMPLIFIER",
    6: "BCL_VOLTAGE",
    7: "BCL_CURRENT",
    8: "BCL_PERCENTAGE",
    9: "NPU",
    10: "TPU",
    11: "DISPLAY",
    12: "MODEM",
    13: "SOC",
    14: "WIFI",
    15: "CAMERA",
    16: "FLASHLIGHT",
    17: "SPEAKER",
    18: "AMBIENT",
    19: "POGO",
}
STATES = ("NONE", "LIGHT", "MODERATE", "SEVERE", "CRITICAL", "EMERGENCY", "SHUTDOWN")
"""``Thermal Status:`` by its number; from LIGHT on the phone lowers clocks."""
_NOT_DEGREES: dict[str, tuple[Quantity, float]] = {
    "BCL_VOLTAGE": ("voltage_volts", 1e-3),
    "BCL_CURRENT": ("current_amperes", 1e-3),
    "BCL_PERCENTAGE": ("share", 1e-2),
}
"""The battery current limiter stands in the list of temperatures, with a voltage, a current and a charge."""

# ---------------------------------------------------------------- thermalservice

_ITEM = re.compile(r"Temperature\{(.*)\}")
_STATUS = re.compile(r"Thermal Status:\s*(\S+)")
_HAL = "Current temperatures from HAL:"


def thermalservice(text: str) -> Sample:
    """The temperatures of the moment, named ``TYPE name``, and ``thermal status`` (see ``STATES``).

    A type's names are unique and a name is not: there may be a CPU and a SKIN called the same.
    """
    readings: list[Reading] = []
    unread: list[str] = []
    inside = found = False
    for line in _lines(text):
        if status := _STATUS.fullmatch(line):
            readings.append(_status(status[1]))
        elif line == _HAL:
            inside = found = True
        elif inside and (item := _ITEM.fullmatch(line)):
            readings += _temperature(item[1], line, unread)
        elif inside and line.endswith(":"):
            inside = False  # the next block: cooling devices, thresholds
        elif inside:
            unread.append(line)
    if not found:
        reason = f"the text has no block '{_HAL}'"
        readings.append(Reading(sensor="HAL", quantity="temperature_c", value=None, reason=reason))
        unread += list(_lines(text))
    return Sample(readings=tuple(readings), unread=tuple(unread[:MOST_UNREAD]))


def _status(text: str) -> Reading:
    made = figure("thermal status", "status", text)
    if made.value is None or made.value in range(len(STATES)):
        return made
    reason = f"'{text[:40]}' is no thermal status of Android"
    return Reading(sensor=made.sensor, quantity="status", value=None, reason=reason)


def _temperature(body: str, line: str, unread: list[str]) -> Iterator[Reading]:
    fields = dict(part.split("=", 1) for part in body.split(", ") if "=" in part)
    try:
        number = int(fields["mType"])
        name, value = fields["mName"], fields["mValue"]
    except (KeyError, ValueError):
        unread.append(line)
        return
    kind = TYPES.get(number, f"TYPE {number}")
    sensor = f"{kind} {name}"
    quantity, factor = _NOT_DEGREES.get(kind, ("temperature_c", 1.0))
    if kind == "UNKNOWN":
        reason = f"its type is unknown, so that {value[:40]} may be in any unit"
        yield Reading(sensor=sensor, quantity="temperature_c", value=None, reason=reason)
        return
    made = figure(sensor, quantity, value, factor)
    if quantity == "temperature_c" and made.value == 0:
        # phones list sensors that their board does not have: a second battery, a USB port, at 0.0 for ever
        reason = "the sensor answers exactly 0 degrees: nothing is behind it"
        made = Reading(sensor=sensor, quantity=quantity, value=None, reason=reason)
    yield made


# ---------------------------------------------------------------- battery

_PLUGS = ("AC powered", "USB powered", "Wireless powered", "Dock powered")
_KNOWN = {
    "Max charging current",
    "Max charging voltage",
    "Charge counter",
    "status",
    "health",
    "present",
    "level",
    "scale",
    "voltage",
    "temperature",
    "technology",
    *_PLUGS,
}
_BATTERY = "Current Battery Service state:"


def battery(text: str) -> Sample:
    """``battery`` as share of its charge, degrees, volts and mAh, and ``plugged`` (status 1 or 0).

    After ``dumpsys battery set`` or ``unplug`` the service repeats what it was told: then there are no
    values, and the reason names the cure.
    """
    fields: dict[str, str] = {}
    unread: list[str] = []
    inside = stopped = False
    for line in _lines(text):
        key, colon, value = line.partition(":")
        if line == _BATTERY:
            inside = True
        elif not inside or line.startswith("["):  # what follows in brackets is a log of the past
            inside = False
        elif "UPDATES STOPPED" in line:
            stopped = True
        elif colon and key in _KNOWN:
            fields.setdefault(key, value.strip())
        else:
            unread.append(line)
    if not fields:
        unread = list(_lines(text))
    readings = _charges(fields)
    if stopped:
        reason = "the service repeats what it was told; run: dumpsys battery reset"
        readings = [
            Reading(sensor=r.sensor, quantity=r.quantity, value=None, reason=reason) for r in readings
        ]
    return Sample(readings=tuple(readings), unread=tuple(unread[:MOST_UNREAD]))


def _charges(fields: dict[str, str]) -> list[Reading]:
    def read(quantity: Quantity, key: str, factor: float) -> Reading:
        if key in fields:
            return figure("battery", quantity, fields[key], factor)
        reason = f"the text does not say '{key}'"
        return Reading(sensor="battery", quantity=quantity, value=None, reason=reason)

    scale = figure("", "status", fields.get("scale", "100")).value or 0.0
    level = read("share", "level", 1 / scale if scale > 0 else float("nan"))
    made = [level, read("temperature_c", "temperature", 0.1), read("voltage_volts", "voltage", 1e-3)]
    if "Charge counter" in fields:
        made.append(read("charge_mah", "Charge counter", 1e-3))
    plugs = {fields[key] for key in _PLUGS if key in fields}
    known = bool(plugs) and plugs <= {"true", "false"}
    reason = "" if known else "the text does not say what powers the phone"
    value = float("true" in plugs) if known else None
    made.append(Reading(sensor="plugged", quantity="status", value=value, reason=reason))
    return made


# ---------------------------------------------------------------- batterystats

_TIME = re.compile(r"Time on battery:\s*([^(]*)")
_USE = "Estimated power use (mAh):"
_TOTALS = re.compile(r"Capacity: ([\d.]+).*?, Computed drain: ([\d.]+), actual drain: ([\d.]+)(?:-([\d.]+))?")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_PLUGGED = "the phone is plugged in: what it draws now is not the battery's"


def batterystats(text: str) -> Sample:
    """``capacity``, ``computed drain`` and ``actual drain`` in mAh, ``time on battery`` in seconds.

    Older phones give the actual drain as a range: then there is no one value, but a least and a most. While
    the phone is plugged in nothing is said of the drain.
    """
    lines = list(_lines(text))
    plugged = any("currently on battery: false" in line for line in lines)
    made: list[Reading] = []
    unread: list[str] = []
    after = next((lines[at + 1 :] for at, line in enumerate(lines) if line == _USE), [])
    found = _TOTALS.match(after[0]) if after else None
    if found is not None:
        made += _drains(found, plugged)
    else:
        reason = "the totals are not written as expected" if after else f"the text has no '{_USE}'"
        names = ("capacity", "computed drain", "actual drain")
        made += [Reading(sensor=n, quantity="charge_mah", value=None, reason=reason) for n in names]
        unread += after[:1] or lines[:MOST_UNREAD]
    made.append(_time_on_battery(lines))
    return Sample(readings=tuple(made), unread=tuple(unread))


def _drains(found: re.Match[str], plugged: bool) -> Iterator[Reading]:
    def read(sensor: str, text: str) -> Reading:
        if plugged and sensor != "capacity":
            return Reading(sensor=sensor, quantity="charge_mah", value=None, reason=_PLUGGED)
        return figure(sensor, "charge_mah", text)

    yield read("capacity", found[1])
    yield read("computed drain", found[2])
    if found[4] is None or plugged:
        yield read("actual drain", found[3])
        return
    reason = f"the phone knows it only as {found[3]} to {found[4]} mAh"
    yield Reading(sensor="actual drain", quantity="charge_mah", value=None, reason=reason)
    yield read("actual drain, least", found[3])
    yield read("actual drain, most", found[4])


def _time_on_battery(lines: list[str]) -> Reading:
    """``15h 39m 45s 541ms (98.8%) realtime, ...``: the first is since the last charge."""
    found = next((m[1] for line in lines if (m := _TIME.match(line))), "")
    parts = re.findall(r"(\d+)(ms|[dhms])(?![a-z])", found)
    if not parts:
        reason = "the text does not say the time on battery"
        return Reading(sensor="time on battery", quantity="seconds", value=None, reason=reason)
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    return Reading(sensor="time on battery", quantity="seconds", value=seconds)


def _lines(text: str) -> Iterator[str]:
    """Lines without their indent, of a length that a record can hold; empty ones are none."""
    for line in text[:LONGEST_TEXT].splitlines():
        if stripped := line.strip():
            yield stripped[:LONGEST_LINE]
