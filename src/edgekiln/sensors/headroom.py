"""How much is left: memory that a process may still take, and the clocks of the moment over the highest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgekiln.sensors import cgroup
from edgekiln.sensors.reading import Reading, Sample

LONGEST = 1 << 16
MEMORY, CLOCK = "free memory", "clock"
_UNLIMITED = 1 << 60
"""Version 1 of control groups says so for no limit, rounded to pages."""


def read(root: Path = Path("/"), process: int | str = "self") -> Sample:
    """``free memory`` (bytes) and ``clock`` (share): what this machine has of them."""
    return Sample(readings=(*_memory(root, process), *_clock(root / "sys")))


def _memory(root: Path, process: int | str) -> Iterator[Reading]:
    """The least of what the kernel says is available and what each control group above the process leaves.

    A group's own file cache is given back when it is needed, so it counts as free (``inactive_file``).
    """
    found = re.search(r"^MemAvailable:\s+(\d{1,15}) kB", _text(root / "proc" / "meminfo"), re.MULTILINE)
    if found is None:
        return
    free = int(found[1]) * 1024
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        for path in dict.fromkeys(cgroup.files(root, limit_name, "memory", process)):
            limit = _number(root / path)
            used = _number((root / path).with_name(used_name))
            if limit is None or used is None or limit >= _UNLIMITED:
                continue
            stat = _text((root / path).with_name("memory.stat"))
            cache = re.search(r"^(?:total_)?inactive_file (\d{1,18})$", stat, re.MULTILINE)
            free = min(free, max(0, limit - used + (int(cache[1]) if cache else 0)))
    yield Reading(sensor=MEMORY, quantity="memory_bytes", value=float(free))


def _clock(root: Path) -> Iterator[Reading]:
    """The largest share of its own highest clock that a core has: a governor that saves power slows the idle
    ones."""
    shares = []
    for folder in sorted((root / "devices" / "system" / "cpu").glob("cpu[0-9]*/cpufreq")):
        now, most = _number(folder / "scaling_cur_freq"), _number(folder / "cpuinfo_max_freq")
        if now is not None and most:
            shares.append(min(1.0, now / most))
    if shares:
        yield Reading(sensor=CLOCK, quantity="share", value=max(shares))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return opened.read(LONGEST).decode(errors="replace")
    except OSError:
        return ""
