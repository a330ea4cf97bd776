"""An engine with an artifact in it: one call at a time, without copies where it can, warm before its use."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Runner, bind
from edgekiln.records import Record

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector that CPUs load: engines take such buffers as they are."""
WINDOW = 5
STEADY = 0.10
MOST_WARM_CALLS = 50


class Warmth(Record, frozen=True, kw_only=True):
    """``calls`` before the first that counts, and whether the last ones were alike."""

    calls: int
    steady: bool


class Loaded:
    """A runner behind a lock. ``in_place``: it reads inputs and leaves outputs in place (``engines.bind``).

    ``file`` is what is loaded, so that rungs of one file share it.
    ``retire`` closes it as soon as no call runs; a call that comes later finds ``runner`` None.
    """

    def __init__(self, runner: Runner, file: object = None) -> None:
        bound = bind(runner)
        self.file = file
        self.lock = threading.Lock()
        self.in_place = bound is not None
        self.takes = {} if bound is None else bound.takes
        self.runner: Runner | None = runner if bound is None else bound
        self.retired = False
        self.fault = ""
        self.used = 0
        self.memory_bytes = 0
        self._owner: Runner | None = runner

    def retire(self, wait_s: float) -> bool:
        """Close it, or leave that to the call that still runs after ``wait_s``: then False."""
        self.retired = True
        if not self.lock.acquire(timeout=wait_s):
            return False
        try:
            self.close()
        finally:
            self.lock.release()
        return True

    def close(self) -> None:
        """Free the engine, only under the lock. What it says to that stands in ``fault``: others go on."""
        runner, owner = self.runner, self._owner
        self.runner = self._owner = None
        for one in (runner, owner):
            try:
                if one is not None:
                    one.close()
            except Exception as error:
                self.fault = str(error) or type(error).__name__


def warm(call: Callable[[], object], most_s: float, clock: Callable[[], float] = time.perf_counter) -> Warmth:
    """Call until the calls are alike (``steady``), MOST_WARM_CALLS have passed or ``most_s`` are over."""
    times: list[float] = []
    begun = clock()
    while len(times) < MOST_WARM_CALLS and (not times or clock() - begun < most_s):
        started = clock()
        call()
        times.append(clock() - started)
        if steady(times):
            return Warmth(calls=len(times), steady=True)
    return Warmth(calls=len(times), steady=False)


def steady(times: Sequence[float]) -> bool:
    """Whether the median of the last WINDOW differs from that of those before by at most STEADY."""
    if len(times) < 2 * WINDOW:
        return False
    before = statistics.median(times[-2 * WINDOW : -WINDOW])
    return abs(statistics.median(times[-WINDOW:]) - before) <= STEADY * before


def aligned(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros of this shape that begin at a multiple of ALIGNMENT_BYTES."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    made: NDArray[Any] = memory[start : start + size].view(kind).reshape(shape)
    return made


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()
