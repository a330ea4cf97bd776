"""One contender in a process of its own: ``python -m edgekiln.prove.worker``.

Reads one JSON request a line from stdin, answers each with one JSON line on stdout, and computes only
between the two. Whatever libraries print goes to stderr, so it can't mix with the answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.errors import EdgekilnError
from edgekiln.prove.arrays import npz_bytes, read_npz
from edgekiln.prove.environment import ENGINE_PACKAGES, version_of
from edgekiln.records import Artifact, Record

WINDOW_CALLS = 5
WINDOW_SECONDS = 0.02
STABLE_WITHIN = 0.05


class Open(Record, frozen=True, kw_only=True, tag="open"):
    """Load ``artifact`` from ``folder`` and make the first call with the arrays in ``inputs`` (.npz)."""

    folder: str
    artifact: Artifact
    engine: str
    threads: int
    inputs: str
    cores: tuple[int, ...] = ()


class Warm(Record, frozen=True, kw_only=True, tag="warm"):
    """Call until the time per call is stable, ``seconds`` at most."""

    seconds: float


class Block(Record, frozen=True, kw_only=True, tag="block"):
    """Make ``lead_in`` calls that are not timed (the other contenders emptied the caches), then ``calls``.

    ``collect`` frees what Python left behind before that; a soak, which never rests, does without.
    """

    calls: int
    lead_in: int
    collect: bool = True


class Call(Record, frozen=True, kw_only=True, tag="call"):
    """Make one call with the arrays in ``inputs`` and write its outputs to ``outputs`` (both .npz)."""

    inputs: str
    outputs: str


class Finish(Record, frozen=True, kw_only=True, tag="finish"):
    """Report the memory and end."""


class Opened(Record, frozen=True, kw_only=True, tag="opened"):
    """``import_ms`` is the engine's library, ``load_ms`` the artifact, ``first_ms`` the first call."""

    import_ms: float
    load_ms: float
    first_ms: float
    baseline_bytes: int
    engine_version: str
    cores: tuple[int, ...]


class Warmed(Record, frozen=True, kw_only=True, tag="warmed"):
    calls: int
    stable: bool
    median_ms: float


class Timed(Record, frozen=True, kw_only=True, tag="timed"):
    samples_ms: tuple[float, ...]


class Called(Record, frozen=True, kw_only=True, tag="called"):
    pass


class Finished(Record, frozen=True, kw_only=True, tag="finished"):
    peak_bytes: int


class Refused(Record, frozen=True, kw_only=True, tag="refused"):
    """The contender failed in an orderly way; ``error`` is the exception's name."""

    error: str
    why: str
    cure: str


Request = Open | Warm | Block | Call | Finish
Answer = Opened | Warmed | Timed | Called | Finished | Refused


# ---------------------------------------------------------------- memory


def resident_bytes() -> int:
    """Resident memory now (Linux), or the peak so far where the system tells only that."""
    return _status("VmRSS") or _peak_by_rusage()


def peak_bytes() -> int:
    """The most resident memory this process ever had (VmHWM; ru_maxrss elsewhere)."""
    return _status("VmHWM") or _peak_by_rusage()


def _status(field: str) -> int | None:
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def _peak_by_rusage() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------- the work


class _Bench:
    """A loaded contender and its inputs."""

    def __init__(self, request: Open) -> None:
        self.cores = _pin(request.cores)
        self.inputs: Arrays = read_npz(Path(request.inputs))
        self.baseline = resident_bytes()
        started = time.perf_counter_ns()
        distribution, module = ENGINE_PACKAGES.get(request.engine, ("", ""))
        if module and importlib.util.find_spec(module):
            importlib.import_module(module)
        self.import_ms = _since_ms(started)
        started = time.perf_counter_ns()
        self.runner: Runner = open_engine(
            request.engine, request.artifact, Path(request.folder), request.threads
        )
        self.load_ms = _since_ms(started)
        self.first_ms = self.call_ms()
        self.version = (version_of(distribution) if distribution else None) or "unknown"

    def call(self, request: Call) -> Called:
        outputs = self.runner(read_npz(Path(request.inputs)))
        Path(request.outputs).write_bytes(npz_bytes(outputs))
        return Called()

    def call_ms(self) -> float:
        started = time.perf_counter_ns()
        self.runner(self.inputs)
        return _since_ms(started)

    def opened(self) -> Opened:
        return Opened(
            import_ms=self.import_ms,
            load_ms=self.load_ms,
            first_ms=self.first_ms,
            baseline_bytes=self.baseline,
            engine_version=self.version,
            cores=self.cores,
        )

    def warm(self, seconds: float) -> Warmed:
        """Windows of at least 5 calls and 20 ms, until two successive medians differ by under 5 %."""
        deadline = time.perf_counter() + seconds
        calls, before = 0, 0.0
        while True:
            window: list[float] = []
            while len(window) < WINDOW_CALLS or sum(window) < WINDOW_SECONDS * 1e3:
                window.append(self.call_ms())
                if time.perf_counter() > deadline:
                    break
            calls += len(window)
            median = statistics.median(window)
            stable = before > 0 and abs(median - before) <= STABLE_WITHIN * before
            if stable or time.perf_counter() > deadline:
                return Warmed(calls=calls, stable=stable, median_ms=median)
            before = median

    def block(self, request: Block) -> Timed:
        if request.collect:
            gc.collect()
        gc.disable()
        try:
            for _ in range(request.lead_in):
                self.call_ms()
            return Timed(samples_ms=tuple(self.call_ms() for _ in range(request.calls)))
        finally:
            gc.enable()


def _since_ms(started_ns: int) -> float:
    return (time.perf_counter_ns() - started_ns) / 1e6


def _pin(cores: tuple[int, ...]) -> tuple[int, ...]:
    """Keep to ``cores`` before the engine makes threads. () where nothing was asked or it can't be had."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return ()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
        return cores
    return ()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer each request until Finish or the end of input, which means that the parent is gone."""
    decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
    bench: _Bench | None = None
    for line in requests:
        request = decoder.decode(line)
        answer: Answer
        try:
            if isinstance(request, Open):
                bench = _Bench(request)
                answer = bench.opened()
            elif isinstance(request, Finish) or bench is None:
                answer = Finished(peak_bytes=peak_bytes())
            else:
                answer = _worked(bench, request)
        except Exception as error:
            answer = _refusal(error)
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()
        if isinstance(answer, Finished | Refused):
            return


def _worked(bench: _Bench, request: Warm | Block | Call) -> Answer:
    if isinstance(request, Call):
        return bench.call(request)
    return bench.warm(request.seconds) if isinstance(request, Warm) else bench.block(request)


def _refusal(error: Exception) -> Refused:
    name = type(error).__name__
    if isinstance(error, EdgekilnError):
        return Refused(error=name, why=error.why, cure=error.cure)
    if isinstance(error, MemoryError):
        why = f"out of memory ({error})"
        return Refused(error=name, why=why, cure="Free some memory, or use a smaller model or batch")
    lines = str(error).strip().splitlines()
    cure = "Check that the inputs have the artifact's names, shapes and types"
    return Refused(error=name, why=f"{name}: {lines[-1] if lines else ''}", cure=cure)


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent ends, so that even a hung call leaves no orphan."""
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def attend(serve: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """The life of a worker process: ``serve`` its requests, whatever libraries print goes to stderr, and
    end with the parent or with the requests."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, answers)
    # Some libraries crash in their destructors; the answers are out, so end without running them.
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    attend(serve)


if __name__ == "__main__":
    main()
