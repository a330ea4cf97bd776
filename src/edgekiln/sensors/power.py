"""Which of a machine's sensors is the power of the whole machine, and what that is over time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgekiln.records import Record
from edgekiln.sensors.recorder import Recording

INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails of a Jetson that feed all others (NVIDIA's developer guide: the total power of the module)."""


class Power(Record, frozen=True, kw_only=True):
    """The power of the machine over time. ``sensors`` are added up; () has a ``reason``.

    ``times_s`` are of the recording's clock, only those where every sensor spoke. ``scope`` says what the
    figure covers, in words.
    """

    sensors: tuple[str, ...]
    scope: str
    times_s: tuple[float, ...]
    watts: tuple[float, ...]
    reason: str = ""


def total(recording: Recording) -> Power:
    """The machine's power in ``recording``: see ``choose`` for which sensors that is."""
    tracks = {t.sensor: t for t in recording.tracks if t.quantity == "power_watts"}
    spoke = [name for name, t in tracks.items() if any(v is not None for v in t.values)]
    names, scope, reason = choose(spoke)
    if not names:
        told = [f"{t.sensor}: {t.reason}" for t in tracks.values() if t.reason and t.sensor not in spoke]
        reason = f"{reason} ({told[0]})" if told and not spoke else reason
        return Power(sensors=(), scope="", times_s=(), watts=(), reason=reason)
    times, watts = [], []
    for at, time_s in enumerate(recording.times_s):
        values = [tracks[name].values[at] for name in names]
        known = [v for v in values if v is not None]
        if len(known) == len(values):
            times.append(time_s)
            watts.append(sum(known))
    return Power(sensors=names, scope=scope, times_s=tuple(times), watts=tuple(watts))


def choose(sensors: Iterable[str]) -> tuple[tuple[str, ...], str, str]:
    """Of the sensors of power by name: those whose sum is the machine's, what they cover, or a reason.

    The rail that feeds a Jetson's module; the platform's counter (``psys``); the packages' counters, which
    are the processors without the board; else a sensor that is the only one. Several of which none is known
    to hold the others are not added up: a sum that counts a rail twice is worse than none.
    """
    names = sorted(sensors)
    if not names:
        return (), "", "this machine has no sensor of power that can be read"
    rails = [n for n in names if n.split()[-1] in INPUT_RAILS]
    if rails:
        return (rails[0],), "the module's input", ""
    platform = [n for n in names if re.match(r"psys\b", n)]
    if platform:
        return (platform[0],), "the whole platform", ""
    packages = _packages(names)
    if packages:
        return packages, "the processor packages, not the board", ""
    if len(names) == 1:
        return (names[0],), "what the one sensor of power covers", ""
    listed = ", ".join(names[:6]) + (" and more" if len(names) > 6 else "")
    return (), "", f"of {len(names)} sensors of power none is known to be the whole machine's ({listed})"


def _packages(names: Sequence[str]) -> tuple[str, ...]:
    """RAPL's packages. Their parts (core, uncore, dram) lie below them, as ``intel-rapl:0:1``; the same
    packages stand once more under ``intel-rapl-mmio``."""
    found = [n for n in names if re.fullmatch(r"package-\d+ \([a-z-]+:\d+\)", n)]
    direct = [n for n in found if "mmio" not in n]
    return tuple(direct or found)
