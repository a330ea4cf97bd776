"""The sources that a recorder asks: plain callables, each giving a ``Sample`` of now.

What is a counter (energy, throttled periods, stolen time) becomes a mean between two calls, so the first
call of such a source gives nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from edgekiln.sensors import cgroup, processors, sysfs
from edgekiln.sensors.reading import Quantity, Reading, Sample
from edgekiln.sensors.tegrastats import parse

Source: TypeAlias = Callable[[], Sample]
"""What it raises is an event of the recording, and no end of it."""

ROOT = Path("/")
STALE_SECONDS, STALE_INTERVALS = 3.0, 10
"""A line so old says nothing of now."""
QUOTA, STOLEN, OTHERS = "cpu quota", "hypervisor", "other processes"
"""Sensors of our own: the share of periods that a quota cut short, the share of time that the hypervisor gave
away, and the CPUs that others kept busy."""


def powercap(root: Path = ROOT) -> Source:
    """Watts of each powercap zone since the last call (``sysfs.power_between``)."""
    before: dict[str, sysfs.Counter] = {}

    def read() -> Sample:
        found, missing = sysfs.counters(root / "sys")
        made = [sysfs.power_between(before[c.zone], c) for c in found if c.zone in before]
        before.clear()
        before.update({c.zone: c for c in found})
        return Sample(readings=(*made, *missing))

    return read


def load(root: Path = ROOT, own: Sequence[int] = ()) -> Source:
    """Since the last call: CPUs that processes other than ``own`` took, and the time that was stolen."""
    before: processors.Ticks | None = None

    def read() -> Sample:
        nonlocal before
        now, then = processors.look(root, own), before
        before = now
        if now is None or then is None:
            return Sample(readings=())
        others, stolen = processors.others_between(then, now), processors.stolen_between(then, now)
        return Sample(readings=(*_known(OTHERS, "cpus", others), *_known(STOLEN, "share", stolen)))

    return read


def quota(root: Path = ROOT, process: int | str = "self") -> Source:
    """Since the last call: the share of periods in which a CPU quota stopped ``process``'s control group."""
    before: tuple[cgroup.Periods, ...] | None = None

    def read() -> Sample:
        nonlocal before
        now, then = cgroup.cpu_periods(root, process), before
        before = now
        if not now or then is None:
            return Sample(readings=())
        return Sample(readings=tuple(_known(QUOTA, "share", cgroup.throttled_between(then, now))))

    return read


def _known(sensor: str, quantity: Quantity, value: float | None) -> Iterator[Reading]:
    if value is not None:
        yield Reading(sensor=sensor, quantity=quantity, value=value)


@contextlib.contextmanager
def tegrastats(program: str, interval_s: float) -> Iterator[Source]:
    """``program`` as a child that writes a line every ``interval_s``; the source gives the last of them.

    Raises nothing where it can't be started: the source then says why at each call, as it does when the child
    ends or falls silent. The child is ended, and reaped, when the block ends.
    """
    command = [program, "--interval", str(max(1, round(interval_s * 1e3)))]
    last: list[tuple[float, str]] = []
    patience = max(STALE_SECONDS, STALE_INTERVALS * interval_s)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to us alone
        )
    except OSError as error:
        failed = f"{program}: {error.strerror or error}"

        def refuse() -> Sample:
            raise RuntimeError(failed)

        yield refuse
        return

    def drain() -> None:
        assert child.stdout is not None
        for raw in child.stdout:
            last[:] = [(time.monotonic(), raw.decode(errors="replace"))]

    reader = threading.Thread(target=drain, name="tegrastats", daemon=True)
    reader.start()

    def read() -> Sample:
        if child.poll() is not None:
            raise RuntimeError(f"{program} ended with exit code {child.returncode}")
        if not last:
            return Sample(readings=())
        when, line = last[0]
        if time.monotonic() - when > patience:
            raise RuntimeError(f"{program} wrote nothing for {patience:.0f} s")
        return parse(line)

    try:
        yield read
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.wait()
        reader.join(timeout=5.0)
        if child.stdout is not None:
            child.stdout.close()


@contextlib.contextmanager
def here(
    interval_s: float, own: Sequence[int] = (), process: int | str = "self", root: Path = ROOT
) -> Iterator[dict[str, Source]]:
    """All sources of this machine, by name. ``own`` are the processes whose work is the measurement's own;
    ``process`` is the one whose quota counts."""
    found: dict[str, Source] = {
        "sysfs": lambda: sysfs.read(root / "sys"),
        "powercap": powercap(root),
        "load": load(root, own),
        "quota": quota(root, process),
    }
    program = shutil.which("tegrastats")
    with contextlib.ExitStack() as stack:
        if program is not None:
            found["tegrastats"] = stack.enter_context(tegrastats(program, interval_s))
        yield found
