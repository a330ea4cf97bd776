"""Power, heat and clocks as Linux gives them below ``/sys``: hwmon, thermal zones, powercap (RAPL), cpufreq.

Units are the kernel's (Documentation/hwmon/sysfs-interface, thermal/sysfs-api, power/powercap):
millidegrees, microwatts, millivolts, milliamperes, microjoules, kilohertz. An INA3221, which measures the
rails of a Jetson, gives volts and amperes per channel and no watts: their product is the rail's power.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from edgekiln.records import Record
from edgekiln.sensors.reading import COLDEST_C, HOTTEST_C, Quantity, Reading, Sample

SYS = Path("/sys")
LONGEST = 128
"""Characters of a sensor's file or name that are read: labels are written by firmware."""


def read(root: Path = SYS) -> Sample:
    """All sensors that there are now. One that can't be read is a reading without a value, and the reason."""
    found = [*_hwmon(root / "class" / "hwmon"), *_zones(root / "class" / "thermal"), *_clocks(root)]
    return Sample(readings=tuple(found), time_s=time.monotonic())


# ---------------------------------------------------------------- hwmon


def _hwmon(folder: Path) -> Iterator[Reading]:
    for chip in _numbered(folder, "hwmon"):
        name = _text(chip / "name") or chip.name
        channels = sorted(_channels(chip))
        for kind, number in channels:
            label = _text(chip / f"{kind}{number}_label") or f"{kind}{number}"
            # INA3221's in4 to in6 are drops over its shunts, labelled "sum of shunt voltages" or not at all
            yield from _channel(chip, f"{name} {label}", kind, number)
        yield from _rails(chip, name, channels)


_KINDS: dict[str, tuple[Quantity, float]] = {
    "temp": ("temperature_c", 1e-3),
    "power": ("power_watts", 1e-6),
    "in": ("voltage_volts", 1e-3),
    "curr": ("current_amperes", 1e-3),
}
_CHANNEL = re.compile(r"(temp|power|in|curr)(\d{1,3})_(?:input|average)")


def _channels(chip: Path) -> set[tuple[str, int]]:
    names = (_CHANNEL.fullmatch(p.name) for p in _inside(chip))
    return {(found[1], int(found[2])) for found in names if found}


def _channel(chip: Path, sensor: str, kind: str, number: int) -> Iterator[Reading]:
    quantity, factor = _KINDS[kind]
    # a mean over the chip's own interval is power as a meter shows it; some chips have nothing else
    path = chip / f"{kind}{number}_input"
    if not path.exists():
        path = chip / f"{kind}{number}_average"
    yield _figure(sensor, quantity, path, factor)


def _rails(chip: Path, name: str, channels: list[tuple[str, int]]) -> Iterator[Reading]:
    """The power of channels that have volts and amperes and no watts of their own."""
    for kind, number in channels:
        if kind != "curr" or ("in", number) not in channels or ("power", number) in channels:
            continue
        label = _text(chip / f"in{number}_label") or f"rail{number}"
        volts = _figure("", "voltage_volts", chip / f"in{number}_input", 1e-3)
        amperes = _figure("", "current_amperes", chip / f"curr{number}_input", 1e-3)
        value = None if volts.value is None or amperes.value is None else volts.value * amperes.value
        reason = "" if value is not None else volts.reason or amperes.reason
        yield Reading(sensor=f"{name} {label}", quantity="power_watts", value=value, reason=reason)


# ---------------------------------------------------------------- zones and clocks


def _zones(folder: Path) -> Iterator[Reading]:
    for zone in _numbered(folder, "thermal_zone"):
        yield _figure(_text(zone / "type") or zone.name, "temperature_c", zone / "temp", 1e-3)


def _clocks(root: Path) -> Iterator[Reading]:
    for core in _numbered(root / "devices" / "system" / "cpu", "cpu"):
        path = core / "cpufreq" / "scaling_cur_freq"
        if path.exists():
            yield _figure(core.name, "clock_mhz", path, 1e-3)


class Trip(Record, frozen=True, kw_only=True):
    """A temperature at which the kernel acts: ``passive`` lowers clocks, ``critical`` shuts down."""

    zone: str
    kind: str
    celsius: float
    now_celsius: float | None


TRIPS = ("passive", "hot", "critical")
"""The kinds that cost speed; ``active`` only turns a fan faster."""


def trips(root: Path = SYS) -> tuple[Trip, ...]:
    """The trip points of all thermal zones that cost speed, with the zones' temperatures now.

    Points that firmware left unset (0, -256, thousands of degrees) are none.
    """
    found = []
    for zone in _numbered(root / "class" / "thermal", "thermal_zone"):
        name = _text(zone / "type") or zone.name
        now = _figure(name, "temperature_c", zone / "temp", 1e-3).value
        for path in sorted(zone.glob("trip_point_*_temp")):
            kind = _text(zone / path.name.replace("_temp", "_type"))
            celsius = _figure(name, "temperature_c", path, 1e-3).value
            if kind in TRIPS and celsius is not None and celsius > 0:
                found.append(Trip(zone=name, kind=kind, celsius=celsius, now_celsius=now))
    return tuple(found)


# ---------------------------------------------------------------- energy counters


class Counter(Record, frozen=True, kw_only=True):
    """A powercap zone's energy so far. ``range_joules`` is where it starts again from nothing."""

    zone: str
    joules: float
    range_joules: float | None
    time_s: float


def counters(root: Path = SYS) -> tuple[tuple[Counter, ...], tuple[Reading, ...]]:
    """The energy counters of all zones, and a reading with the reason for each that can't be read.

    Since Linux 5.10 they are for root alone, because power tells secrets.
    """
    found, missing = [], []
    for zone in sorted(p for p in _inside(root / "class" / "powercap") if ":" in p.name):
        name = _text(zone / "name") or zone.name
        energy = _figure(f"{name} ({zone.name})", "power_watts", zone / "energy_uj", 1e-6)
        if energy.value is None:
            missing.append(energy)
            continue
        whole = _figure("", "power_watts", zone / "max_energy_range_uj", 1e-6).value
        about = f"{name} ({zone.name})"
        found.append(Counter(zone=about, joules=energy.value, range_joules=whole, time_s=time.monotonic()))
    return tuple(found), tuple(missing)


def power_between(before: Counter, after: Counter) -> Reading:
    """The mean power of one zone between two looks. A counter may have started again once in between."""

    def none(reason: str) -> Reading:
        return Reading(sensor=before.zone, quantity="power_watts", value=None, reason=reason)

    seconds, joules = after.time_s - before.time_s, after.joules - before.joules
    if before.zone != after.zone or seconds <= 0:
        return none("the two looks are not of one zone, one after the other")
    if joules < 0 and not before.range_joules:
        return none("the counter went back and does not say where it starts again")
    if joules < 0:
        joules += before.range_joules or 0.0
    return Reading(sensor=before.zone, quantity="power_watts", value=joules / seconds)


# ---------------------------------------------------------------- files


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """``folder``'s entries that are ``prefix`` and a number, by that number."""
    named = ((p, p.name.removeprefix(prefix)) for p in _inside(folder) if p.name.startswith(prefix))
    return [p for p, rest in sorted(((p, r) for p, r in named if r.isdigit()), key=lambda x: int(x[1]))]


def _text(path: Path) -> str:
    """The first printable characters of a small file; empty where there is none."""
    try:
        with path.open("rb") as opened:
            raw = opened.read(LONGEST)
    except OSError:
        return ""
    return "".join(c for c in raw.decode(errors="replace").strip() if c.isprintable())


def _figure(sensor: str, quantity: Quantity, path: Path, factor: float) -> Reading:
    def none(reason: str) -> Reading:
        return Reading(sensor=sensor, quantity=quantity, value=None, reason=reason)

    try:
        with path.open("rb") as opened:
            raw = opened.read(LONGEST).decode(errors="replace").strip()
    except OSError as error:
        return none(f"{path.name}: {error.strerror or error}")
    if not re.fullmatch(r"-?\d{1,18}", raw):
        return none(f"{path.name} holds '{raw[:40]}', which is no number")
    value = int(raw) * factor
    if quantity == "temperature_c" and not COLDEST_C < value < HOTTEST_C:
        return none(f"{path.name} answers {value:g} degrees: nothing is behind it")
    return Reading(sensor=sensor, quantity=quantity, value=value)
