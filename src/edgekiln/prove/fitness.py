"""Whether a machine is fit to measure on now: each shortcoming is a sentence with its cure.

Everything is read from files below ``root``, so that any machine can be judged from a copy of its files; what
a machine does not tell is no objection. What only shows over time (stolen time, a quota at work, others'
work) takes two looks, and shows on the machine itself alone.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekiln.errors import MachineFault
from edgekiln.prove.machine import ROOT, cpu_quota, cpus_usable, memory, read, text
from edgekiln.records import Record
from edgekiln.sensors import cgroup, processors, sysfs

SWAP_TOLERATED_BYTES = 64 << 20
PRESSURE_TOLERATED_PERCENT = 10.0
NEAR_TRIP_C = 5.0
COLDEST_TRIP_C = 30.0
"""Firmware that has no trip point writes one that room temperature passes."""
CAP_TOLERATED = 0.99
STOLEN_TOLERATED = 0.05
OTHERS_TOLERATED_CPUS = 0.5
LOOK_SECONDS = 0.25
_CPU = "sys/devices/system/cpu"


class Finding(Record, frozen=True, kw_only=True):
    """``what`` makes the machine unfit, and the ``cure``."""

    what: str
    cure: str

    @property
    def sentence(self) -> str:
        return f"{self.what}; {self.cure}"


def fitness(root: Path = ROOT, look_seconds: float = LOOK_SECONDS) -> tuple[str, ...]:
    """Sentences about what makes this machine unfit to measure on now, each with its cure; () is fit."""
    return tuple(found.sentence for found in findings(root, look_seconds))


def findings(root: Path = ROOT, look_seconds: float = LOOK_SECONDS) -> tuple[Finding, ...]:
    """The same in two parts. ``look_seconds`` lie between the two looks at counters; 0 leaves them out."""
    started, before = time.monotonic(), _counters(root)
    found = [f for check in _CHECKS for f in check(root)]
    if look_seconds > 0 and any(before):
        time.sleep(max(0.0, look_seconds - (time.monotonic() - started)))
        busy = any(f.what.startswith("the load average") for f in found)
        found += _moving(before, _counters(root), busy)
    return tuple(found)


def gate(found: Sequence[Finding], strict: bool) -> None:
    """Raises MachineFault with every cure where ``strict`` and there is any finding."""
    if strict and found:
        raise MachineFault(
            "measuring on",
            "this machine",
            "; ".join(f.what for f in found),
            "; ".join(f.cure[:1].upper() + f.cure[1:] for f in found) + "; or measure without --strict",
        )


# ---------------------------------------------------------------- load


def _load(root: Path) -> Iterator[Finding]:
    match = re.match(r"\d+\.\d+", text(root, "proc/loadavg") or "")
    cpus = cpus_usable(root)
    if match is not None and float(match[0]) > cpus:
        what = f"the load average is {match[0]} on {cpus} CPUs"
        yield Finding(what=what, cure="end other work, or wait a minute, and measure again")


def _pressure(root: Path) -> Iterator[Finding]:
    match = re.search(r"^some avg10=(\d+\.\d+)", text(root, "proc/pressure/cpu") or "", re.MULTILINE)
    if match is not None and float(match.group(1)) > PRESSURE_TOLERATED_PERCENT:
        what = f"for {match.group(1)} % of the last 10 s some task waited for a CPU"
        yield Finding(what=what, cure="end other work, then measure")


def _quota(root: Path) -> Iterator[Finding]:
    quota, cpus = cpu_quota(root), cpus_usable(root)
    if quota is not None and quota < cpus:
        what = f"a control group limits this process to {quota:g} of {cpus} CPUs, which stops it in bursts"
        yield Finding(what=what, cure=f"lift the limit, or use {max(1, math.floor(quota))} thread(s)")


def _swap(root: Path) -> Iterator[Finding]:
    total, free = memory(root, "swaptotal"), memory(root, "swapfree")
    if total is not None and free is not None and total - free > SWAP_TOLERATED_BYTES:
        what = f"{(total - free) >> 20} MiB of swap are in use"
        yield Finding(what=what, cure="free memory, then run: sudo swapoff -a && sudo swapon -a")


_Counters = tuple[tuple[cgroup.Periods, ...], processors.Ticks | None]


def _counters(root: Path) -> _Counters:
    return cgroup.cpu_periods(root), processors.look(root, (os.getpid(),))


def _moving(before: _Counters, after: _Counters, busy: bool) -> Iterator[Finding]:
    """What counters show between two looks. Others' work is told once: not where the load average told it."""
    throttled = cgroup.throttled_between(before[0], after[0])
    if throttled > 0:
        what = f"a CPU quota stopped this process's control group in {throttled:.0%} of the last periods"
        yield Finding(
            what=what, cure="lift the limit (cpu.max, cpu.cfs_quota_us), or end what else runs in it"
        )
    if before[1] is None or after[1] is None:
        return
    stolen = processors.stolen_between(before[1], after[1])
    if stolen is not None and stolen > STOLEN_TOLERATED:
        what = f"the hypervisor gives {stolen:.0%} of the CPUs' time to other machines"
        yield Finding(what=what, cure="wait until its host is idle, or measure on a machine of your own")
    others = processors.others_between(before[1], after[1])
    if others is not None and others > OTHERS_TOLERATED_CPUS and not busy:
        what = f"other processes keep {others:.1f} CPUs busy now"
        yield Finding(what=what, cure="end them, then measure")


# ---------------------------------------------------------------- clocks and power


def _governor(root: Path) -> Iterator[Finding]:
    files = sorted(root.glob(f"{_CPU}/cpu[0-9]*/cpufreq/scaling_governor"))
    slow = sorted({found for f in files if (found := read(f)) and found != "performance"})
    if slow:
        what = f"the CPU frequency governor is {', '.join(slow)}, so clocks follow the load"
        yield Finding(what=what, cure="run: sudo cpupower frequency-set -g performance")


def _capped(root: Path) -> Iterator[Finding]:
    """Each policy's limit against what its processor can do; the most capped is told."""
    worst: tuple[float, str, int, int] | None = None
    for folder in root.glob(f"{_CPU}/cpu[0-9]*/cpufreq"):
        texts = [read(folder / name) or "" for name in ("scaling_max_freq", "cpuinfo_max_freq")]
        if not all(t.isdecimal() for t in texts):
            continue
        limit, most = (int(t) for t in texts)
        if 0 < limit < CAP_TOLERATED * most:
            worst = min(filter(None, (worst, (limit / most, folder.parent.name, limit, most))))
    if worst is not None:
        _, core, limit, most = worst
        what = f"the clock of {core} is capped at {limit / 1e6:.2f} of {most / 1e6:.2f} GHz"
        yield Finding(what=what, cure=f"run: sudo cpupower frequency-set -u {most}kHz")


def _turbo(root: Path) -> Iterator[Finding]:
    if text(root, f"{_CPU}/intel_pstate/no_turbo") == "1":
        yield Finding(
            what="turbo clocks are switched off (intel_pstate/no_turbo)",
            cure="run: echo 0 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo",
        )


def _profile(root: Path) -> Iterator[Finding]:
    found = text(root, "sys/firmware/acpi/platform_profile") or ""
    choices = (text(root, "sys/firmware/acpi/platform_profile_choices") or "performance").split()
    if re.fullmatch(r"[a-z-]{1,32}", found) and "performance" in choices and found != "performance":
        what = f"the power profile is {found}"
        yield Finding(what=what, cure="run: powerprofilesctl set performance")


def _preference(root: Path) -> Iterator[Finding]:
    files = root.glob(f"{_CPU}/cpu[0-9]*/cpufreq/energy_performance_preference")
    saving = sorted({found for f in files if (found := read(f)) in {"power", "balance_power"}})
    if saving:
        what = f"the processor is asked to save energy (energy_performance_preference is {', '.join(saving)})"
        cure = f"run: echo performance | sudo tee /{_CPU}/cpu*/cpufreq/energy_performance_preference"
        yield Finding(what=what, cure=cure)


def _jetson(root: Path) -> Iterator[Finding]:
    """The power mode of a Jetson against the fastest that its own table has.

    MAXN is not mode 0 on every board: an Orin Nano's mode 0 is 15 W, and MAXN_SUPER is its mode 2.
    """
    match = re.search(r"pmode:(\d{1,4})\b", text(root, "var/lib/nvpmodel/status") or "")
    if match is None:
        return
    mode = int(match[1])
    listed = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([\w.-]{1,40})",
        text(root, "etc/nvpmodel.conf") or "",
        re.MULTILINE,
    )
    names = {int(number): name for number, name in listed}
    best = max(names, key=lambda number: _fastness(names[number]), default=0)
    if mode != best and not names.get(mode, "").startswith("MAXN_SUPER"):
        name = f" ({names[mode]})" if mode in names else ""
        cure = f"run: sudo nvpmodel -m {best} && sudo jetson_clocks"
        yield Finding(what=f"the power mode is {mode}{name}, which caps clocks", cure=cure)


def _fastness(name: str) -> tuple[int, float]:
    """MAXN and its kin before modes that are named by their watts."""
    watts = re.match(r"(?:MODE_)?(\d+(?:\.\d+)?)W", name)
    rank = 2 if name.startswith("MAXN_SUPER") else int(name.startswith("MAXN"))
    return rank, float(watts[1]) if watts else 0.0


def _battery(root: Path) -> Iterator[Finding]:
    supplies = [f.parent for f in root.glob("sys/class/power_supply/*/type") if read(f) == "Mains"]
    states = [read(supply / "online") for supply in supplies]
    if states and "1" not in states:
        yield Finding(what="the machine runs on its battery, which lowers clocks", cure="plug it in")


# ---------------------------------------------------------------- heat


def _throttling(root: Path) -> Iterator[Finding]:
    counts = [
        int(found)
        for f in root.glob(f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (found := read(f)) and found.isdecimal()
    ]
    if any(counts):
        what = f"the CPU was throttled by heat {max(counts)} times since start-up"
        yield Finding(what=what, cure="cool and restart the machine")


def _trips(root: Path) -> Iterator[Finding]:
    """The zone that is nearest to a temperature at which the kernel takes speed away."""
    near = [
        (trip.now_celsius - trip.celsius, trip)
        for trip in sysfs.trips(root / "sys")
        if trip.now_celsius is not None
        and trip.celsius >= COLDEST_TRIP_C
        and trip.now_celsius > trip.celsius - NEAR_TRIP_C
    ]
    if near:
        _, trip = max(near, key=lambda pair: pair[0])
        what = f"thermal zone {trip.zone} is at {trip.now_celsius:.1f} °C, its {trip.kind} trip point is "
        yield Finding(what=f"{what}{trip.celsius:.1f} °C", cure="let it cool, or give it a fan, then measure")


_CHECKS = (
    _load,
    _pressure,
    _governor,
    _capped,
    _turbo,
    _profile,
    _preference,
    _jetson,
    _quota,
    _swap,
    _throttling,
    _trips,
    _battery,
)
