"""What the kernel tells of a machine and of this process's share in it, read from files below ``root``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgekiln.sensors import cgroup

ROOT = Path("/")
LONGEST = 1 << 20


def cpus_usable(root: Path = ROOT) -> int:
    """CPUs that this process may be scheduled on: its affinity, not what the machine has."""
    status = fields(text(root, "proc/self/status") or "")
    allowed = parse_cpu_list(status.get("cpus_allowed_list", ""))
    return len(allowed) or os.cpu_count() or 1


def parse_cpu_list(listed: str) -> tuple[int, ...]:
    """The kernel's list format: ``0-2,5`` is (0, 1, 2, 5). () for anything else."""
    cpus: list[int] = []
    for part in listed.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if match is None:
            return ()
        cpus.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(cpus)


def cpu_quota(root: Path = ROOT) -> float | None:
    """The control group's limit in CPUs (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``); None is no limit."""
    limits = []
    for path in cgroup.files(root, "cpu.max", "cpu"):
        quota, _, period = (text(root, path) or "").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    for path in cgroup.files(root, "cpu.cfs_quota_us", "cpu"):
        quota = text(root, path) or ""
        period = text(root, path.replace("quota", "period")) or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory(root: Path, key: str) -> int | None:
    """Bytes of one line of ``proc/meminfo``, named in lower case."""
    match = re.match(r"(\d+) kB", fields(text(root, "proc/meminfo") or "").get(key, ""))
    return int(match.group(1)) * 1024 if match else None


def read(path: Path) -> str | None:
    """A small file without the white space around it; None where it can't be read."""
    try:
        with path.open("rb") as opened:
            return opened.read(LONGEST).decode(errors="replace").strip()
    except OSError:
        return None


def text(root: Path, relative: str) -> str | None:
    return read(root / relative)


def fields(lines: str) -> dict[str, str]:
    """``Key : value`` lines, keys in lower case; of equal keys the first."""
    found: dict[str, str] = {}
    for line in lines.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), value.strip())
    return found
