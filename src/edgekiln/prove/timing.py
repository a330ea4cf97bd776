"""Latency and memory: each contender in a fresh process, all alternated in one run.

The parent opens one worker per contender, then tells one at a time to make a small block of calls, in a
newly shuffled order each round. Whatever slows the machine for a while then slows all of them, and
ratios hold on a busy machine where absolute figures do not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.files import write_bytes
from edgekiln.prove.arrays import npz_bytes
from edgekiln.prove.environment import fitness
from edgekiln.prove.process import Lost, Process
from edgekiln.prove.statistics import drift, percentiles
from edgekiln.prove.worker import Block, Finish, Finished, Open, Opened, Timed, Warm, Warmed
from edgekiln.records import Artifact, Evidence, How, Record, Scalar

WORKER = (sys.executable, "-P", "-m", "edgekiln.prove.worker")
ROUNDS = 10
BLOCK_MS = 150.0
COLD_MATTERS_BELOW_MS = 50.0
OPEN_SECONDS = 180.0

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(text, done, total)``; what it raises ends the run, and every worker with it."""


class Contender(Record, frozen=True, kw_only=True):
    """What to time: ``artifact``, whose files lie in ``folder``, in ``engine``. ``id`` is unique in a run."""

    id: str
    folder: str
    artifact: Artifact
    engine: str


class Timing(Record, frozen=True, kw_only=True):
    """What one worker showed. ``samples_ms`` are in order; ``blocks`` are the sizes of its turns and
    ``turns`` their places in the run's one sequence, in which only one contender computes at a time.

    ``import_ms`` is the engine's library, ``load_ms`` the artifact, ``first_ms`` the first call; memory is
    resident: the peak of the whole process, and what it had before the engine's library was loaded.
    ``cores`` is () where the process was not pinned. ``unfit`` holds the machine's shortcomings before.
    ``lead_ins`` calls were made among the samples and not timed.
    """

    id: str
    engine: str
    engine_version: str
    threads: int
    spinning: bool
    contenders: int
    samples_ms: tuple[float, ...]
    blocks: tuple[int, ...]
    turns: tuple[int, ...]
    import_ms: float
    load_ms: float
    first_ms: float
    warmup_calls: int
    warmup_stable: bool
    peak_rss_bytes: int
    baseline_rss_bytes: int
    cores: tuple[int, ...] = ()
    unfit: tuple[str, ...] = ()
    lead_ins: int = 0

    @property
    def blocks_ms(self) -> tuple[tuple[float, ...], ...]:
        """The samples turn by turn."""
        ends = np.cumsum(self.blocks)
        return tuple(
            self.samples_ms[int(end) - size : int(end)] for end, size in zip(ends, self.blocks, strict=True)
        )


class TimingFailure(Record, frozen=True, kw_only=True):
    """A contender without figures. ``kind``: refused (an orderly error), crashed, hung or garbled.

    ``stderr`` holds the worker's last lines.
    """

    id: str
    kind: str
    reason: str
    cure: str
    stderr: tuple[str, ...] = ()


class _Course(Record, frozen=True, kw_only=True):
    """How long and how to measure; all times in seconds."""

    threads: int
    min_samples: int
    max_seconds: float
    warmup_seconds: float
    call_seconds: float
    open_seconds: float
    cores: tuple[int, ...]
    seed: int


class _Lane:
    """One contender on its way: its process, what it has answered, or why it is out."""

    def __init__(self, contender: Contender, process: Process) -> None:
        self.contender, self.process = contender, process
        self.opened: Opened | None = None
        self.warmed: Warmed | None = None
        self.finished: Finished | None = None
        self.samples: list[float] = []
        self.blocks: list[int] = []
        self.turns: list[int] = []
        self.lead_ins = 0
        self.failure: TimingFailure | None = None

    def attempt(self, step: Callable[[], None]) -> None:
        """Run ``step``; whatever the worker does wrong takes this lane out and leaves the others."""
        try:
            step()
        except Lost as lost:
            self.process.end()
            self.failure = TimingFailure(
                id=self.contender.id,
                kind=lost.kind,
                reason=lost.reason,
                cure=lost.cure,
                stderr=self.process.last_words(),
            )


def measure(
    contenders: Sequence[Contender],
    inputs: Arrays,
    threads: int,
    *,
    min_samples: int = 200,
    max_seconds: float = 30.0,
    warmup_seconds: float = 5.0,
    call_seconds: float = 60.0,
    open_seconds: float = OPEN_SECONDS,
    pin: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    command: Sequence[str] = WORKER,
    unfit: tuple[str, ...] | None = None,
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[Timing | TimingFailure, ...]:
    """Time ``contenders`` on ``inputs`` (one call's named arrays), results in their order.

    Ends after the round in which every contender has ``min_samples``, or ``max_seconds`` of sampling are
    over (at least one round is made; a timing says how many samples it has). Loading and warming up come
    on top, ``open_seconds`` and ``warmup_seconds`` at most each. A worker that is silent for ``call_seconds``
    longer than it was asked to work is taken as hung. ``pin`` keeps every worker on the same ``threads``
    cores. ``unfit`` are the machine's shortcomings where the caller has looked already; ``around`` is entered
    while samples are taken, and not while models load. No worker outlives the call, whatever raises. Raises
    BadInput for ids that are not unique and bad counts, MachineFault where no process can be started.
    """
    ids = [c.id for c in contenders]
    if len(set(ids)) != len(ids):
        raise BadInput("timing", ", ".join(ids), "contenders need different ids", "Rename one of them")
    if threads < 1 or min_samples < 1:
        why = "threads and samples must be at least 1"
        raise BadInput("timing with", f"{threads} threads, {min_samples} samples", why, "Give larger numbers")
    course = _Course(
        threads=threads,
        min_samples=min_samples,
        max_seconds=max_seconds,
        warmup_seconds=warmup_seconds,
        call_seconds=call_seconds,
        open_seconds=open_seconds,
        cores=_cores(threads) if pin else (),
        seed=seed,
    )
    tell = progress or (lambda text, done, total: None)
    unfit = fitness(look_seconds=0.0) if unfit is None else unfit
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekiln-timing-")))
        file = scratch / "inputs.npz"
        write_bytes(file, npz_bytes(inputs))
        lanes = []
        for number, contender in enumerate(contenders):
            process = Process(command, worker_environment(threads), scratch / f"{number}.stderr")
            stack.callback(process.end)
            lanes.append(_Lane(contender, process))
        _run(lanes, course, file, tell, around)
    return tuple(lane.failure or _timing(lane, course, len(lanes), unfit) for lane in lanes)


def _run(
    lanes: list[_Lane],
    course: _Course,
    inputs: Path,
    tell: Progress,
    around: Callable[[], AbstractContextManager[object]],
) -> None:
    for number, lane in enumerate(lanes):
        tell(f"loading {lane.contender.id}", number, len(lanes))
        lane.attempt(functools.partial(_open, lane, course, inputs))
    with around():
        _alternate([lane for lane in lanes if lane.failure is None], course, tell)
    for lane in lanes:
        if lane.failure is None:
            lane.attempt(functools.partial(_finish, lane, course))


def _open(lane: _Lane, course: _Course, inputs: Path) -> None:
    contender = lane.contender
    request = Open(
        folder=str(Path(contender.folder).resolve()),
        artifact=contender.artifact,
        engine=contender.engine,
        threads=course.threads,
        inputs=str(inputs),
        cores=course.cores,
    )
    lane.opened = lane.process.ask(request, Opened, course.open_seconds + course.call_seconds)
    warm = Warm(seconds=course.warmup_seconds)
    lane.warmed = lane.process.ask(warm, Warmed, course.warmup_seconds + course.call_seconds)


def _finish(lane: _Lane, course: _Course) -> None:
    lane.finished = lane.process.ask(Finish(), Finished, course.call_seconds)


def _alternate(lanes: list[_Lane], course: _Course, tell: Progress) -> None:
    """Rounds of one block each, in a shuffled order that ``seed`` repeats."""
    random = np.random.default_rng(course.seed)
    deadline = time.monotonic() + course.max_seconds
    turn = 0
    while lanes:
        for place in random.permutation(len(lanes)):
            lanes[place].attempt(functools.partial(_turn, lanes[place], course, turn))
            turn += 1
        lanes = [lane for lane in lanes if lane.failure is None]
        fewest = min((len(lane.samples) for lane in lanes), default=0)
        tell("timing", min(fewest, course.min_samples), course.min_samples)
        if fewest >= course.min_samples or time.monotonic() > deadline:
            return


def _turn(lane: _Lane, course: _Course, turn: int) -> None:
    median = _answered(lane.warmed).median_ms
    most = math.ceil(course.min_samples / ROUNDS)
    calls = max(1, min(most, int(BLOCK_MS / max(median, 1e-3))))
    request = Block(calls=calls, lead_in=1 if median < COLD_MATTERS_BELOW_MS else 0)
    timed = lane.process.ask(request, Timed, course.call_seconds + calls * median / 1e3)
    lane.samples.extend(timed.samples_ms)
    lane.blocks.append(len(timed.samples_ms))
    lane.turns.append(turn)
    lane.lead_ins += request.lead_in


_T = TypeVar("_T")


def _answered(answer: _T | None) -> _T:
    assert answer is not None, "a lane without failure has answered"
    return answer


def _timing(lane: _Lane, course: _Course, contenders: int, unfit: tuple[str, ...]) -> Timing:
    opened, warmed = _answered(lane.opened), _answered(lane.warmed)
    return Timing(
        id=lane.contender.id,
        engine=lane.contender.engine,
        engine_version=opened.engine_version,
        threads=course.threads,
        spinning=bool(lane.contender.artifact.options.get("spinning", False)),
        contenders=contenders,
        samples_ms=tuple(lane.samples),
        blocks=tuple(lane.blocks),
        turns=tuple(lane.turns),
        import_ms=opened.import_ms,
        load_ms=opened.load_ms,
        first_ms=opened.first_ms,
        warmup_calls=warmed.calls,
        warmup_stable=warmed.stable,
        peak_rss_bytes=_answered(lane.finished).peak_bytes,
        baseline_rss_bytes=opened.baseline_bytes,
        cores=opened.cores,
        unfit=unfit,
        lead_ins=lane.lead_ins,
    )


def _cores(threads: int) -> tuple[int, ...]:
    """The first ``threads`` cores this process may use, or () where there are fewer or no such call."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[:threads]) if len(allowed) >= threads else ()


def worker_environment(threads: int) -> dict[str, str]:
    """The parent's environment with every pool of threads that libraries read at import fixed."""
    package = str(Path(__file__).resolve().parents[2])
    pools = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMEXPR")
    fixed = {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
    fixed["VECLIB_MAXIMUM_THREADS"] = str(threads)
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **fixed, "PYTHONPATH": search}


def timing_evidence(
    timing: Timing, where: str, environment: dict[str, Scalar], *, when: str = "", how: How = "measured"
) -> tuple[Evidence, ...]:
    """``latency_p50_ms``, ``latency_p95_ms``, ``latency_p99_ms``, ``load_ms``, ``peak_memory_bytes`` and
    ``engine_memory_bytes`` (peak less what the process had before the engine's library)."""
    found = percentiles(timing.samples_ms)
    moved = drift(timing.blocks_ms)
    around: dict[str, Scalar] = {
        **environment,
        "engine": timing.engine,
        "engine_version": timing.engine_version,
        "threads": timing.threads,
        "pinned_cores": ",".join(map(str, timing.cores)) or "not pinned",
        "spinning": timing.spinning,
        "n": found.n,
        "iqr_ms": found.iqr,
        "mad_ms": found.mad,
        "drift_ratio": moved.ratio,
        "drifted": moved.drifted,
        "warmup_calls": timing.warmup_calls,
        "warmup_stable": timing.warmup_stable,
        "first_ms": timing.first_ms,
        "import_ms": timing.import_ms,
        "alternated_contenders": timing.contenders,
        "machine_fitness": "; ".join(timing.unfit) or "no objection",
    }

    def figure(
        what: str, value: float | None, n: int, interval: tuple[float, float] | None = None, reason: str = ""
    ) -> Evidence:
        return Evidence(
            what=what,
            unit="bytes" if what.endswith("bytes") else "ms",
            value=value,
            how=None if value is None else how,
            where=where,
            when=when,
            n=n,
            interval=interval,
            environment=around,
            reason=reason,
        )

    engine_bytes = max(0, timing.peak_rss_bytes - timing.baseline_rss_bytes)
    return (
        figure("latency_p50_ms", found.p50, found.n, found.p50_interval),
        figure("latency_p95_ms", found.p95, found.n, found.p95_interval, found.reasons.get("p95", "")),
        figure("latency_p99_ms", found.p99, found.n, None, found.reasons.get("p99", "")),
        figure("load_ms", timing.load_ms, 1),
        figure("peak_memory_bytes", float(timing.peak_rss_bytes), 1),
        figure("engine_memory_bytes", float(engine_bytes), 1),
    )
