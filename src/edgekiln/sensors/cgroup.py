"""Control groups, version 1 and 2: where a process's files lie, and how often a CPU quota stopped it.

``cpu.stat`` counts the periods (of 100 ms, usually) in which the group could run, ``nr_periods``, and those
in which its quota was used up before the end, ``nr_throttled`` (Documentation/scheduler/sched-bwc).
"""

from __future__ import annotations

import re
from pathlib import Path

from edgekiln.records import Record

LONGEST = 1 << 16


class Periods(Record, frozen=True, kw_only=True):
    """What one group's ``cpu.stat`` counts. ``group`` is its folder below the root."""

    group: str
    periods: int
    throttled: int


def files(root: Path, name: str, controller: str, process: int | str = "self") -> list[str]:
    """Candidates for a control file, from the mount down to the process's own group, relative to ``root``."""
    folders = ["sys/fs/cgroup", f"sys/fs/cgroup/{controller}"]
    for line in _text(root / "proc" / str(process) / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = f"sys/fs/cgroup/{controllers}" if controllers else "sys/fs/cgroup"
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        folders += [f"{mount}/{'/'.join(parts[:depth])}" for depth in range(1, len(parts) + 1)]
    return [f"{folder}/{name}" for folder in folders]


def cpu_periods(root: Path, process: int | str = "self") -> tuple[Periods, ...]:
    """The counts of every group on the way down to the process's own; () where no group counts."""
    found = []
    for path in dict.fromkeys(files(root, "cpu.stat", "cpu", process)):
        counts = dict(re.findall(r"^(nr_periods|nr_throttled) (\d{1,18})$", _text(root / path), re.MULTILINE))
        if len(counts) == 2:
            group = path.removesuffix("/cpu.stat")
            periods, throttled = int(counts["nr_periods"]), int(counts["nr_throttled"])
            found.append(Periods(group=group, periods=periods, throttled=throttled))
    return tuple(found)


def throttled_between(before: tuple[Periods, ...], after: tuple[Periods, ...]) -> float:
    """The share of periods in which some group was stopped, between two looks; 0 where none counted."""
    known = {p.group: p for p in before}
    shares = [0.0]
    for now in after:
        then = known.get(now.group)
        if then is not None and now.periods > then.periods and now.throttled >= then.throttled:
            shares.append(min(1.0, (now.throttled - then.throttled) / (now.periods - then.periods)))
    return max(shares)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return opened.read(LONGEST).decode(errors="replace")
    except OSError:
        return ""
