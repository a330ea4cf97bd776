"""What the processors did between two looks: work of others, and time that a hypervisor took (``/proc``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from edgekiln.records import Record

LONGEST = 1 << 16


class Ticks(Record, frozen=True, kw_only=True):
    """Time so far in seconds, of all CPUs together: ``busy`` (user and kernel), ``stolen``, ``whole``.

    ``own`` is what the processes asked about took of the busy time.
    """

    busy: float
    stolen: float
    whole: float
    own: float
    cpus: int


def look(root: Path, own: Iterable[int] = ()) -> Ticks | None:
    """The counters of ``proc/stat`` and of the processes ``own``; None where there are none.

    proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user already.
    """
    text = _text(root / "proc" / "stat")
    found = re.match(r"cpu((?: +\d{1,18}){8,10})\s", text)
    if found is None:
        return None
    user, nice, system, idle, wait, irq, soft, stolen = (int(n) for n in found[1].split()[:8])
    tick = 1.0 / os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + soft
    return Ticks(
        busy=busy * tick,
        stolen=stolen * tick,
        whole=(busy + idle + wait + stolen) * tick,
        own=sum(_taken(root, process) for process in own) * tick,
        cpus=len(re.findall(r"^cpu\d+ ", text, re.MULTILINE)) or 1,
    )


def stolen_between(before: Ticks, after: Ticks) -> float | None:
    """The share of all CPUs' time that the hypervisor gave to others; None where no time passed."""
    whole = after.whole - before.whole
    return None if whole <= 0 else min(1.0, max(0.0, (after.stolen - before.stolen) / whole))


def others_between(before: Ticks, after: Ticks) -> float | None:
    """CPUs that processes other than ``own`` kept busy; None where no time passed."""
    seconds = (after.whole - before.whole) / after.cpus
    if seconds <= 0:
        return None
    return max(0.0, (after.busy - before.busy - (after.own - before.own)) / seconds)


def _taken(root: Path, process: int) -> int:
    """User and kernel time of one process, in clock ticks; 0 where it is gone."""
    fields = _text(root / "proc" / str(process) / "stat").rpartition(")")[2].split()
    return sum(int(f) for f in fields[11:13] if f.isdecimal()) if len(fields) > 13 else 0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return opened.read(LONGEST).decode(errors="replace")
    except OSError:
        return ""
