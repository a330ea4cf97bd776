"""Real loads: processes that spin on one core, and a CPU quota of a control group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from runtime.keeping.records import Phase

SetQuota = Callable[[float | None], None]


@contextlib.contextmanager
def control_group() -> Iterator[tuple[Path, SetQuota] | None]:
    """A new control group with the CPU controller (version 1 or 2): its folder and what sets its quota in
    CPUs, over the kernel's usual period of 100 ms. None where none can be made."""
    found = next(_groups(), None)
    if found is None:
        yield None
        return
    folder, quota, free = found
    try:
        yield folder, lambda cpus: _write(quota, free if cpus is None else str(round(cpus * 100_000)))
    finally:
        until = time.monotonic() + 10
        while folder.exists() and time.monotonic() < until:
            with contextlib.suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)


def _groups() -> Iterator[tuple[Path, Path, str]]:
    """Each group that can be made: its folder, its file of the quota, what that says where there is none."""
    for line in Path("/proc/mounts").read_text().splitlines():
        point, kind, options = line.split()[1:4]
        one, two = kind == "cgroup" and "cpu" in options.split(","), kind == "cgroup2"
        if not (one or two):
            continue
        folder = Path(point) / f"edgekiln-deadline-{os.getpid()}"
        quota, free = folder / ("cpu.cfs_quota_us" if one else "cpu.max"), "-1" if one else "max"
        try:
            folder.mkdir()
            _write(quota, free)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        yield folder, quota, free


def _write(path: Path, text: str) -> None:
    with path.open("r+") as file:  # a missing file is an error, no new file
        file.write(text)


@contextlib.contextmanager
def rivals(core: int, count: int) -> Iterator[Callable[[int], None]]:
    """``count`` processes that spin on ``core``, stopped at first; what is given lets so many of them run.

    Each is a session of its own: else the kernel's autogroups would weigh them as one. They die with this
    process however it dies (PR_SET_PDEATHSIG).
    """
    code = f"import ctypes, os\nctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})\n"
    code += f"os.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            one = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
            )
            started.append(one)
            assert one.stdout is not None
            one.stdout.readline()
            one.send_signal(signal.SIGSTOP)

        def let(running: int) -> None:
            for number, one in enumerate(started):
                one.send_signal(signal.SIGCONT if number < running else signal.SIGSTOP)

        yield let
    finally:
        for one in started:
            one.kill()
            one.wait()
            if one.stdout is not None:
                one.stdout.close()


def drive(
    course: Sequence[Phase], start_s: float, let: Callable[[int], None], limit: SetQuota | None
) -> tuple[float, ...]:
    """Set each phase's load when its time comes (monotonic clock); when each was set, after ``start_s``."""
    turns, due = [], start_s
    try:
        for phase in course:
            time.sleep(max(0.0, due - time.monotonic()))
            let(phase.rivals)
            if limit is not None:
                limit(phase.quota)
            turns.append(time.monotonic() - start_s)
            due += phase.seconds
        time.sleep(max(0.0, due - time.monotonic()))
    finally:
        let(0)
        if limit is not None:
            limit(None)
    return tuple(turns)
