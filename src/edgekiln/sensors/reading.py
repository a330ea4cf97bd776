"""One figure of one sensor, and all that was read at one moment."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from edgekiln.records import Record

Quantity: TypeAlias = Literal[
    "temperature_c",
    "power_watts",
    "voltage_volts",
    "current_amperes",
    "clock_mhz",
    "load",
    "memory_bytes",
    "share",
    "cpus",
    "status",
    "charge_mah",
    "seconds",
]
"""The unit stands in the name; ``load`` is a share of what the clock of the moment gives, ``share`` one of
anything else (0 to 1), ``cpus`` processors' worth of work, ``status`` a number that the source names."""

COLDEST_C, HOTTEST_C = -60.0, 250.0
"""No sensor on a board works outside: what says so has nothing behind it."""


class Reading(Record, frozen=True, kw_only=True):
    """``sensor`` bears the source's own name. ``value`` is None where ``reason`` says why there is none."""

    sensor: str
    quantity: Quantity
    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError(f"reading '{self.sensor}' has neither a value nor a reason for its absence")


class Sample(Record, frozen=True, kw_only=True):
    """All readings of one moment.

    ``time_s`` is the source's own clock, seconds since its epoch; None where it says no time. ``unread`` are
    the parts of the text that no rule knows, word for word: a new dialect is seen and not lost.
    """

    readings: tuple[Reading, ...]
    time_s: float | None = None
    unread: tuple[str, ...] = ()

    def value(self, sensor: str, quantity: Quantity) -> float | None:
        return next(
            (r.value for r in self.readings if r.sensor == sensor and r.quantity == quantity),
            None,
        )


def figure(sensor: str, quantity: Quantity, text: str, factor: float = 1.0) -> Reading:
    """The reading that ``text`` gives, or one without a value and the reason: no number, not finite, a
    temperature that no sensor can have (-256 is what firmware answers for a zone that it can't read).
    """

    def none(reason: str) -> Reading:
        return Reading(sensor=sensor, quantity=quantity, value=None, reason=reason)

    try:
        value = float(text) * factor
    except ValueError:
        return none(f"'{text[:40]}' is no number")
    if not math.isfinite(value):
        return none(f"the source answers '{text[:40]}', which is not finite")
    if quantity == "temperature_c" and not COLDEST_C < value < HOTTEST_C:
        return none(f"the sensor answers {value:g} degrees: nothing is behind it")
    return Reading(sensor=sensor, quantity=quantity, value=value)
