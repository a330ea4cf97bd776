"""One figure of one sensor, and all that was read at one moment."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgekiln.records import Record

Quantity: TypeAlias = Literal[
    "temperature_c", "power_watts", "voltage_volts", "current_amperes", "clock_mhz", "load", "memory_bytes"
]
"""The unit stands in the name; ``load`` is a share of what the clock of the moment gives."""


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
