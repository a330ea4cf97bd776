"""What a soak says in sentences and rows: the same on the terminal and on its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekiln.prove.soak_analysis import Rate
from edgekiln.prove.soak_record import Slowdown, Soak
from edgekiln.report import numbers
from edgekiln.report.numbers import MISSING, significant

STEADY_FROM = 0.95


@dataclass(frozen=True)
class RateRow:
    """One rate as it is written; a dash and the reason where there is none."""

    name: str
    value: str
    interval: str
    stretch: str
    n: str
    reason: str


@dataclass(frozen=True)
class Range:
    """A figure over the soak: first and last stretch, least and most, and which sensor it is."""

    name: str
    unit: str
    first: str
    last: str
    least: str
    most: str
    sensor: str


def name(soak: Soak) -> str:
    return soak.id.removeprefix("a: ")


def clock(seconds: float) -> str:
    """A moment of the soak: ``45 s``, ``12 min 03 s``, ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def headline(soak: Soak) -> str:
    """Burst against sustained, in one sentence."""
    start = {"whole": "", "interrupted": "Cut short: ", "failed": "Ended early: "}[soak.ended]
    if soak.kept is None:
        reason = soak.burst.reason or soak.sustained.reason
        return f"{start}no burst and sustained rates: {reason}."
    share = f"{soak.kept * 100:.0f} %"
    whole = f"{significant(soak.sustained.per_second)} of {significant(soak.burst.per_second)} inferences/s"
    _, high = soak.kept_interval or (soak.kept, soak.kept)
    if high < 1 and soak.kept < STEADY_FROM:
        return f"{start}{share} of the burst rate was kept in the last third ({whole})."
    steady = "No slower at the end than at the start"
    return f"{start}{steady}: {share} of the burst rate in the last third ({whole})."


def rates(soak: Soak) -> tuple[RateRow, RateRow]:
    return _rate("burst", soak.burst), _rate("sustained", soak.sustained)


def _rate(title: str, rate: Rate) -> RateRow:
    if rate.per_second is None or rate.start_s is None or rate.end_s is None:
        return RateRow(title, MISSING, "", "", "", rate.reason)
    stretch = f"{clock(rate.start_s)} to {clock(rate.end_s)}"
    interval = numbers.interval(rate.interval, significant)
    return RateRow(title, significant(rate.per_second), interval, stretch, f"{rate.n:,}", "")


def slowdown(found: Slowdown) -> str:
    """When, from what to what, and how sure that is."""
    c = found.change
    levels = f"from {significant(c.before_ms)} to {significant(c.after_ms)} ms"
    return f"after {clock(c.at_s)} a call took {c.ratio:.2f} times as long ({levels}, p ≤ {c.p:.3f})"


def no_slowdown(soak: Soak) -> str:
    if soak.sustained.per_second is None:
        return "too short to tell whether anything slowed it down"
    return "no slow-down of 5 % or more was confirmed"


def energy(soak: Soak) -> str:
    """Energy per inference, or that it is not known, and why."""
    e = soak.energy
    if e.mj is not None:
        idle = f"above {significant(e.idle_watts)} W idle, {significant(e.watts)} W in all"
        return f"{significant(e.mj)} mJ per inference ({idle}; {soak.watts_of})"
    known = f"{significant(e.watts)} W in all; " if e.watts is not None else ""
    return f"{known}not known: {e.reason}"


def ranges(soak: Soak) -> tuple[Range, ...]:
    """Clock, temperature and power, those that this machine has a sensor for."""
    rows = (
        ("clock", "MHz", soak.clock_mhz, soak.clock_of),
        ("temperature", "°C", soak.hottest_c, soak.hottest_of),
        ("power", "W", soak.watts, soak.watts_of),
    )
    return tuple(_range(*row) for row in rows if any(v is not None for v in row[2]))


def _range(title: str, unit: str, values: Sequence[float | None], sensor: str) -> Range:
    known = [v for v in values if v is not None]
    first, last, least, most = (significant(v) for v in (known[0], known[-1], min(known), max(known)))
    return Range(title, unit, first, last, least, most, sensor)


def missing(soak: Soak) -> tuple[str, ...]:
    """What is not drawn, and why."""
    found = []
    if not soak.clock_of:
        found.append("clock: this machine shows no clock of its processor")
    if not soak.hottest_of:
        found.append("temperature: this machine has no thermal sensor that can be read")
    if not soak.watts_of:
        found.append(f"power: {soak.energy.reason}")
    return tuple(found)


def events(soak: Soak) -> tuple[tuple[str, str], ...]:
    """When and what."""
    return tuple((clock(e.time_s) if e.time_s >= 0 else "before", f"{e.kind}: {e.what}") for e in soak.events)
