"""The output of ``sensors`` (lm-sensors): as JSON (``sensors -j``) and as the text that people read.

Sensors bear the name that ``sysfs`` gives them: the chip and the label. Limits, alarms and fans are no
readings of ours and are passed over; what no rule knows stands in ``unread``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from edgekiln.sensors.reading import Quantity, Reading, Sample, figure

LONGEST_TEXT = 1 << 20
MOST_UNREAD = 64

_KINDS: dict[str, Quantity] = {
    "temp": "temperature_c",
    "power": "power_watts",
    "in": "voltage_volts",
    "curr": "current_amperes",
}
_VALUE = re.compile(r"(temp|power|in|curr)\d{1,3}_(input|average)")
_OTHER = re.compile(
    r"(?:temp|power|in|curr|fan|pwm|energy|humidity|intrusion|cpu)\d{0,3}(?:_\w+)?|beep_enable|Adapter"
)


def parse(text: str) -> Sample:
    """Either form, told apart by the first character. A sensor that failed is a reading without a value."""
    kept: list[str] = []
    unread: list[str] = []
    for line in text[:LONGEST_TEXT].splitlines():
        # the program writes its errors between the lines of its answer
        (unread if line.startswith("ERROR:") else kept).append(line)
    whole = "\n".join(kept)
    found = _json(whole, unread) if whole.lstrip().startswith("{") else _text(kept, unread)
    return Sample(readings=tuple(found), unread=tuple(unread[:MOST_UNREAD]))


# ---------------------------------------------------------------- JSON


def _json(text: str, unread: list[str]) -> list[Reading]:
    try:
        chips = json.loads(text)
    except (ValueError, RecursionError):
        unread += text.splitlines()
        return []
    if not isinstance(chips, dict):
        unread += text.splitlines()
        return []
    made: list[Reading] = []
    for chip, features in chips.items():
        for label, values in features.items() if isinstance(features, dict) else ():
            if label == "Adapter":
                continue
            if isinstance(values, dict):
                made += _feature(f"{chip} {label}", values, unread)
            else:
                unread.append(f"{chip} {label}: {values}")
    return made


def _feature(sensor: str, values: dict[str, Any], unread: list[str]) -> Iterator[Reading]:
    """One channel. ``input`` is now; a chip that has only a mean over its interval gives that."""
    found: dict[str, tuple[Quantity, Any]] = {}
    for name, value in values.items():
        if match := _VALUE.fullmatch(name):
            found[match[2]] = (_KINDS[match[1]], value)
        elif not _OTHER.fullmatch(name):
            unread.append(f"{sensor} {name}: {value}")
    if found:
        quantity, value = found.get("input") or found["average"]
        yield figure(sensor, quantity, "" if isinstance(value, bool) else str(value))
    elif not values:
        # the error that says so went to another stream, and no kind of channel is named here
        unread.append(f"{sensor}: no value")


# ---------------------------------------------------------------- text

_LINE = re.compile(
    r"(?P<label>[^:]{1,64}):\s+(?P<value>[+-]?[\d.]+|N/A|FAULT)\s*(?P<unit>[^\s(]*)(?P<rest>.*)"
)
_UNITS: dict[str, tuple[Quantity, float]] = {
    "C": ("temperature_c", 1.0),
    "F": ("temperature_c", 1.0),
    "W": ("power_watts", 1.0),
    "V": ("voltage_volts", 1.0),
    "A": ("current_amperes", 1.0),
}
_SCALES = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "k": 1e3, "M": 1e6}
_PASSED_OVER = {"RPM", "%", "J", "kJ", "mJ", "MJ"}


def _text(lines: list[str], unread: list[str]) -> list[Reading]:
    made: list[Reading] = []
    chip = ""
    for line in lines:
        if not line.strip() or line.startswith("Adapter:") or line.startswith(" "):
            continue  # what is indented goes on with the limits of the line above
        found = _LINE.fullmatch(line)
        if found is None and re.fullmatch(r"\S+-\S+", line):
            chip = line
        elif found is None or not chip or not _measured(found, f"{chip} {found['label']}", made):
            unread.append(line)
    return made


def _measured(found: re.Match[str], sensor: str, made: list[Reading]) -> bool:
    """Whether the line is understood; a reading of it goes to ``made`` where it is one of ours."""
    value, unit = found["value"], re.sub(r"^[°\ufffdÂ]+", "", found["unit"])
    if value in {"N/A", "FAULT"}:
        reason = f"the chip answers {value}"
        named = (q for prefix, q in _KINDS.items() if found["label"].startswith(prefix))
        guess: Quantity = next(named, "temperature_c")
        made.append(Reading(sensor=sensor, quantity=guess, value=None, reason=reason))
        return True
    if unit in _PASSED_OVER or (found["label"].startswith("fan") and not unit):
        return True
    kind = unit[-1:]
    if kind not in _UNITS or unit[:-1] not in _SCALES:
        return False
    quantity, factor = _UNITS[kind]
    if unit == "F":
        degrees = figure(sensor, "status", value).value
        value = value if degrees is None else str((degrees - 32) / 1.8)
    made.append(figure(sensor, quantity, value, factor * _SCALES[unit[:-1]]))
    return True
