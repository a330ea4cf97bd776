"""What Linux says about a machine: /proc, /sys and cgroups, parsed.

Text goes in, or the root folder of a file tree, so that a fake tree tests every function. A file that
is missing, unreadable or garbage gives None or nothing, never an error: a probe must not stop a build.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ISA_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
)
"""The flags of /proc/cpuinfo that decide a recipe, spelled as the kernel spells them."""

ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
}
"""Part numbers of Arm's own cores (implementer 0x41), from GCC's aarch64-cores.def."""

_LIMIT_BYTES = 1 << 20
_CGROUP = PurePosixPath("sys/fs/cgroup")


@dataclass(frozen=True)
class Found:
    """A value and the file that it was read from, as a path on the machine."""

    value: float
    file: str


def text(root: Path, relative: str | PurePosixPath) -> str | None:
    """The first MiB of a file below ``root`` without NULs and outer space; None if unreadable or empty."""
    try:
        with (root / relative).open("rb") as file:
            data = file.read(_LIMIT_BYTES)
    except (OSError, ValueError):
        return None
    return data.decode("utf-8", errors="replace").replace("\0", "").strip() or None


def number(given: str | None) -> int | None:
    """A whole number, or None for anything else."""
    return int(given) if given is not None and re.fullmatch(r"-?\d{1,20}", given.strip()) else None


# ---------------------------------------------------------------- /proc


def processors(cpuinfo: str) -> tuple[dict[str, str], ...]:
    """The blocks of /proc/cpuinfo that describe a processor, as key and value."""
    blocks = []
    for chunk in re.split(r"\n\s*\n", cpuinfo):
        pairs = (line.split(":", 1) for line in chunk.splitlines() if ":" in line)
        block = {key.strip(): value.strip() for key, value in pairs}
        if "processor" in block:
            blocks.append(block)
    return tuple(blocks)


def cpu_model(cpuinfo: str) -> str | None:
    """``AMD EPYC``, or ``4x Cortex-A76``: the name the kernel gives, or Arm's part numbers counted."""
    blocks = processors(cpuinfo)
    for block in blocks:
        if block.get("model name"):
            return block["model name"]
    parts = [b["CPU part"] for b in blocks if b.get("CPU part")]
    if not parts:
        return None
    arm = all(b.get("CPU implementer") == "0x41" for b in blocks)
    named = [ARM_CORES.get(p, f"Arm part {p}") if arm else f"part {p}" for p in parts]
    return ", ".join(f"{named.count(n)}x {n}" for n in dict.fromkeys(named))


def isa_flags(cpuinfo: str) -> tuple[str, ...] | None:
    """Those of ISA_FLAGS that every core has; None where /proc/cpuinfo lists no flags at all."""
    lists = [b.get("flags") or b.get("Features") for b in processors(cpuinfo)]
    sets = [set(found.split()) for found in lists if found]
    if not sets:
        return None
    common = set.intersection(*sets)
    return tuple(flag for flag in ISA_FLAGS if flag in common)


def memory_total(meminfo: str) -> int | None:
    """Bytes of memory that the kernel manages."""
    match = re.search(r"^MemTotal:\s+(\d{1,15}) kB$", meminfo, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def os_name(os_release: str) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', os_release, re.MULTILINE)
    return match.group(1) if match else None


def gpu_models(root: Path) -> tuple[str, ...]:
    """The discrete NVIDIA GPUs that the driver lists."""
    found = []
    for card in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", text(card.parent, card.name) or "", re.MULTILINE)
        if match:
            found.append(match.group(1).strip())
    return tuple(found)


# ---------------------------------------------------------------- cgroups


def cgroup_paths(proc_self_cgroup: str, controller: str) -> tuple[PurePosixPath, ...]:
    """Where the process's limits may lie, inmost first: version 2 (``0::/a/b``) and 1 (``4:memory:/a``).

    A limit of any folder on the way up holds, so the parents are there too. Paths are relative to the
    root; a path that would climb out of the cgroup tree is dropped.
    """
    folders: list[PurePosixPath] = []
    for line in proc_self_cgroup.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3 or ".." in PurePosixPath(fields[2]).parts:
            continue
        number_, controllers, path = fields
        inner = PurePosixPath(path.lstrip("/"))
        if number_ == "0" and not controllers:
            mounts = [_CGROUP, _CGROUP / "unified"]
        elif controller in controllers.split(","):
            mounts = [_CGROUP / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        for mount in mounts:
            folders += [mount / inner, *(mount / up for up in inner.parents)] if inner.parts else [mount]
    return tuple(dict.fromkeys(folders)) or (_CGROUP, _CGROUP / controller)


def cpu_quota(root: Path) -> Found | None:
    """The least CPU quota on the way up, in cores (``cpu.max``, or ``cpu.cfs_quota_us``); None if none."""
    found = []
    for folder in cgroup_paths(text(root, "proc/self/cgroup") or "", "cpu"):
        fields = (text(root, folder / "cpu.max") or "").split()
        name = "cpu.max"
        if len(fields) != 2:
            name = "cpu.cfs_quota_us"
            fields = [text(root, folder / name) or "", text(root, folder / "cpu.cfs_period_us") or ""]
        quota, period = number(fields[0]), number(fields[1])
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(Found(quota / period, f"/{folder / name}"))
    return min(found, key=lambda f: f.value, default=None)


def memory_limit(root: Path) -> Found | None:
    """The least memory limit on the way up, in bytes; None if none. Version 1 says "none" by 2^63."""
    found = []
    for folder in cgroup_paths(text(root, "proc/self/cgroup") or "", "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number(text(root, folder / name))
            if limit is not None and 0 < limit < 1 << 60:
                found.append(Found(limit, f"/{folder / name}"))
    return min(found, key=lambda f: f.value, default=None)


def whole_cores(allowed: int, quota: float | None) -> int:
    """Threads that can run at once: a quota of 1.5 cores throttles two threads, so it is rounded down."""
    return max(1, allowed if quota is None else min(allowed, math.floor(quota)))


# ---------------------------------------------------------------- /sys


def max_mhz(root: Path) -> Found | None:
    """The highest clock of any core, from cpufreq."""
    found = []
    for file in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")):
        khz = number(text(file.parent, file.name))
        if khz is not None and khz > 0:
            found.append(Found(khz / 1000, f"/{file.relative_to(root)}"))
    return max(found, key=lambda f: f.value, default=None)


def governors(root: Path) -> tuple[str, ...]:
    """The cpufreq governors in use, each once."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    return tuple(dict.fromkeys(g for g in (text(f.parent, f.name) for f in files) if g))


def thermal_zones(root: Path) -> tuple[str, ...]:
    """The types of the thermal zones, by number."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*"), key=_zone_number)
    return tuple(t for t in (text(zone, "type") for zone in zones) if t)


def throttle_trip(root: Path) -> Found | None:
    """The lowest passive trip point in °C: where the kernel starts to slow something down."""
    return _lowest_trip(root, "passive")


def shutdown_trip(root: Path) -> Found | None:
    """The lowest critical trip point in °C: where the kernel turns the machine off."""
    return _lowest_trip(root, "critical")


def _lowest_trip(root: Path, kind: str) -> Found | None:
    found = []
    for file in sorted((root / "sys/class/thermal").glob("thermal_zone[0-9]*/trip_point_[0-9]*_type")):
        if text(file.parent, file.name) == kind:
            temp = file.with_name(file.name.removesuffix("_type") + "_temp")
            milli = number(text(temp.parent, temp.name))
            if milli is not None and 0 < milli < 200_000:
                found.append(Found(milli / 1000, f"/{temp.relative_to(root)}"))
    return min(found, key=lambda f: f.value, default=None)


def _zone_number(zone: Path) -> int:
    return number(zone.name.removeprefix("thermal_zone")) or 0
