"""A soak: one artifact runs without a pause for minutes or hours, with the machine's sensors recorded beside.

Minute 1 is not minute 30: a board that answers fast while it is cool answers slower when it is warm. So the
run is told as two rates, burst and sustained, with the moment between them and what changed there.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from edgekiln import interrupt
from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.files import write_bytes
from edgekiln.prove import soak_analysis as analysis
from edgekiln.prove.arrays import npz_bytes
from edgekiln.prove.environment import fingerprint
from edgekiln.prove.machine import ROOT
from edgekiln.prove.metering import Idle, energy, idle
from edgekiln.prove.process import Lost, Process
from edgekiln.prove.soak_analysis import Blocks, Change
from edgekiln.prove.soak_record import Bin, Course, Ended, Slowdown, Soak
from edgekiln.prove.statistics import percentiles
from edgekiln.prove.timing import OPEN_SECONDS, WORKER, Contender, Progress, TimingFailure, worker_environment
from edgekiln.prove.worker import Block, Finish, Finished, Open, Opened, Timed, Warm, Warmed
from edgekiln.sensors import live, sysfs
from edgekiln.sensors.power import Power, total
from edgekiln.sensors.reading import Quantity
from edgekiln.sensors.recorder import Event, Recorder, Recording

SHORTEST_SECONDS = 5.0
LONGEST_SECONDS = 7 * 86400.0
BINS, BLOCKS_A_BIN = 90, 4
MOST_CALLS = 100_000
MOST_SAMPLES = 100_000
MOST_TRACKS = 64
SHOWN: tuple[Quantity, ...] = ("clock_mhz", "temperature_c", "power_watts", "share", "cpus", "load")


def parse_duration(text: str, option: str = "--soak") -> float:
    """Seconds of ``45s``, ``30m``, ``1h`` or ``1h30m``. Raises BadInput for anything else, and for less than
    5 seconds or more than a week."""
    found = re.fullmatch(r"(?:(\d{1,3})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text.strip().lower())
    hours, minutes, seconds = (int(g or 0) for g in found.groups()) if found else (0, 0, 0)
    total_s = hours * 3600.0 + minutes * 60 + seconds
    if not SHORTEST_SECONDS <= total_s <= LONGEST_SECONDS:
        why = "that is no duration from 5 seconds to a week"
        raise BadInput(f"reading {option}", text, why, "Write it as 45s, 30m, 1h or 1h30m")
    return total_s


class _Run:
    """What the worker has answered so far."""

    def __init__(self, asked_s: float) -> None:
        self.block_s = min(2.0, max(0.1, asked_s / 300))
        self.width_s = max(asked_s / BINS, BLOCKS_A_BIN * self.block_s)
        self.start_s = self.end_s = 0.0
        self.middles: list[float] = []
        self.calls: list[int] = []
        self.seconds: list[float] = []
        self.bins: list[Bin] = []
        self.samples: list[float] = []
        self._stride, self._seen = 1, 0
        self._open: list[tuple[float, ...]] = []
        self._place = 0

    def take(self, samples_ms: tuple[float, ...], asked: float, answered: float) -> None:
        """A block of calls that was asked for and answered at two moments of the monotonic clock."""
        self.end_s = answered
        self.middles.append((asked + answered) / 2 - self.start_s)
        self.calls.append(len(samples_ms))
        self.seconds.append(sum(samples_ms) / 1e3)
        place = int(self.middles[-1] / self.width_s)
        if place != self._place:
            self.close()
            self._place = place
        self._open.append(samples_ms)
        self._keep(samples_ms)

    def close(self) -> None:
        """The calls gathered become a bin."""
        if self._open:
            data = np.concatenate([np.asarray(block) for block in self._open])
            p50, p95 = (float(q) for q in np.quantile(data, [0.5, 0.95]))
            start, enough = self._place * self.width_s, data.size >= 20
            self.bins.append(
                Bin(
                    start_s=start,
                    seconds=min(self.width_s, self.end_s - self.start_s - start),
                    n=int(data.size),
                    p50_ms=p50,
                    p95_ms=p95 if enough else None,
                )
            )
            self._open = []

    def _keep(self, samples_ms: tuple[float, ...]) -> None:
        """Every so many calls evenly over the run, so that an hour of them has a bounded number."""
        first = -self._seen % self._stride
        self.samples.extend(samples_ms[first :: self._stride])
        self._seen += len(samples_ms)
        while len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]
            self._stride *= 2

    def blocks(self) -> Blocks:
        return Blocks(middle_s=tuple(self.middles), calls=tuple(self.calls), seconds=tuple(self.seconds))

    def next_calls(self, mean_ms: float) -> int:
        return max(1, min(MOST_CALLS, int(self.block_s * 1e3 / max(mean_ms, 1e-3))))


def soak(
    contender: Contender,
    inputs: Arrays,
    threads: int,
    seconds: float,
    *,
    idle_seconds: float = 10.0,
    warmup_seconds: float = 5.0,
    call_seconds: float = 60.0,
    cores: Sequence[int] = (),
    unfit: tuple[str, ...] = (),
    progress: Progress | None = None,
    command: Sequence[str] = WORKER,
    root: Path = ROOT,
) -> Soak | TimingFailure:
    """Run ``contender`` on ``inputs`` (one call's named arrays) for ``seconds``, and record this machine.

    Where the machine has a sensor of power, its idle power is measured before, for ``idle_seconds`` or a
    tenth of the soak, if that is less. A worker that can't be opened is a failure; one that is lost later,
    and Ctrl-C, end the soak with what was measured so far. A call may take ``call_seconds``. ``cores`` pins
    the worker. Raises MachineFault where no process can be started, and KeyboardInterrupt where Ctrl-C
    strikes before the first call.
    """
    tell = progress or (lambda text, done, total: None)
    interval_s = min(1.0, max(0.1, seconds / 600))
    tell("idle", 0, 1)
    rest = idle(min(idle_seconds, seconds / 10), interval_s, root)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekiln-soak-")))
        file = scratch / "inputs.npz"
        write_bytes(file, npz_bytes(inputs))
        process = Process(command, worker_environment(threads), scratch / "stderr")
        stack.callback(process.end)
        tell("loading", 0, 1)
        try:
            request = Open(
                folder=str(Path(contender.folder).resolve()),
                artifact=contender.artifact,
                engine=contender.engine,
                threads=threads,
                inputs=str(file),
                cores=tuple(cores),
            )
            opened = process.ask(request, Opened, OPEN_SECONDS + call_seconds)
            warmed = process.ask(Warm(seconds=warmup_seconds), Warmed, warmup_seconds + call_seconds)
        except Lost as lost:
            return _failure(contender, lost, process)
        trips = sysfs.trips(root / "sys")
        own = (os.getpid(), process.pid)
        sources = stack.enter_context(live.here(interval_s, own, process.pid, root))
        running = stack.enter_context(Recorder(sources, interval_s))
        run = _Run(seconds)
        ended, why, peak = _drive(process, run, seconds, warmed.median_ms, call_seconds, tell)
        if not run.middles:
            if ended == "interrupted":
                raise KeyboardInterrupt
            kind, _, reason = why.partition(": ")
            return TimingFailure(
                id=contender.id, kind=kind, reason=reason, cure="See the worker's last lines"
            )
        recording = running.stop()
    told = _told(run, recording, trips, rest)
    return msgspec.structs.replace(
        told,
        id=contender.id,
        engine=contender.engine,
        engine_version=opened.engine_version,
        threads=threads,
        asked_s=seconds,
        ended=ended,
        why=why,
        peak_rss_bytes=peak,
        warmup_calls=warmed.calls,
        warmup_stable=warmed.stable,
        cores=opened.cores,
        unfit=unfit,
        environment=fingerprint(root),
    )


def _failure(contender: Contender, lost: Lost, process: Process) -> TimingFailure:
    process.end()
    words = process.last_words()
    return TimingFailure(id=contender.id, kind=lost.kind, reason=lost.reason, cure=lost.cure, stderr=words)


def _drive(
    process: Process,
    run: _Run,
    seconds: float,
    median_ms: float,
    call_seconds: float,
    tell: Callable[[str, int, int], None],
) -> tuple[Ended, str, int | None]:
    """Block after block until the time is over, the worker is lost, or the user has enough."""
    run.start_s = run.end_s = time.monotonic()
    calls = run.next_calls(median_ms)
    ended: Ended = "whole"
    why, peak = "", None
    try:
        while (asked := time.monotonic()) < run.start_s + seconds:
            interrupt.check()
            limit = call_seconds + 10 * run.block_s
            timed = process.ask(Block(calls=calls, lead_in=0, collect=False), Timed, limit)
            run.take(timed.samples_ms, asked, time.monotonic())
            calls = run.next_calls(run.seconds[-1] / run.calls[-1] * 1e3)
            tell("soaking", min(int(run.end_s - run.start_s), int(seconds)), int(seconds))
        peak = process.ask(Finish(), Finished, call_seconds).peak_bytes
    except Lost as lost:
        ended, why = "failed", f"{lost.kind}: {lost.reason}"
    except KeyboardInterrupt:
        ended, why = "interrupted", f"cut short after {run.end_s - run.start_s:.0f} of {seconds:.0f} s"
    run.close()
    return ended, why, peak


# ---------------------------------------------------------------- what it shows


def _told(run: _Run, recording: Recording, trips: tuple[sysfs.Trip, ...], rest: Idle) -> Soak:
    """All that figures alone say; who ran what is filled in by the caller."""
    blocks = run.blocks()
    lasted = run.end_s - run.start_s
    changes = analysis.changes(blocks)
    first, last = analysis.burst(blocks, changes), analysis.sustained(blocks)
    kept = analysis.kept_share(blocks, first, last)
    power = total(recording)
    spans = [(run.start_s + b.start_s, run.start_s + b.start_s + run.width_s) for b in run.bins]
    shown = [t for t in recording.tracks if t.quantity in SHOWN and any(v is not None for v in t.values)]
    courses = [
        Course(sensor=t.sensor, quantity=t.quantity, means=_binned(recording.times_s, t.values, spans))
        for t in shown
    ]
    clock_of, clock = next(iter(analysis.clocks(recording).items()), ("", ()))
    hottest_of, hottest = _hottest(courses, len(spans))
    return Soak(
        id="",
        engine="",
        engine_version="",
        threads=1,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked_s=lasted,
        lasted_s=lasted,
        ended="whole",
        why="",
        n=sum(run.calls),
        percentiles=percentiles(run.samples) if run.samples else None,
        bins=tuple(run.bins),
        burst=first,
        sustained=last,
        kept=None if kept is None else kept[0],
        kept_interval=None if kept is None else kept[1],
        changes=changes,
        slowdowns=_slowdowns(changes, recording, run.start_s, lasted, trips),
        clock_mhz=_binned(recording.times_s, clock, spans) if clock_of else (),
        clock_of=clock_of,
        hottest_c=hottest,
        hottest_of=hottest_of,
        watts=_binned(power.times_s, power.watts, spans) if power.sensors else (),
        watts_of=_named(power),
        trips=trips,
        courses=tuple(courses[:MOST_TRACKS]),
        courses_left_out=max(0, len(courses) - MOST_TRACKS),
        events=_since(recording.events, run.start_s),
        idle=rest,
        energy=energy(power, run.start_s, run.end_s, sum(run.calls), rest),
        peak_rss_bytes=None,
        warmup_calls=0,
        warmup_stable=False,
        cores=(),
        unfit=(),
        environment={},
    )


def _slowdowns(
    changes: Sequence[Change],
    recording: Recording,
    start_s: float,
    lasted: float,
    trips: Sequence[sysfs.Trip],
) -> tuple[Slowdown, ...]:
    """The changes for the slower with what changed beside them; their neighbours bound what is compared."""
    ends = [start_s + at for at in (0.0, *(c.at_s for c in changes), lasted)]
    return tuple(
        Slowdown(
            change=change,
            causes=analysis.causes(recording, (ends[at], ends[at + 1]), (ends[at + 1], ends[at + 2]), trips),
        )
        for at, change in enumerate(changes)
        if change.ratio > 1
    )


def _binned(
    times_s: Sequence[float], values: Sequence[float | None], spans: Sequence[tuple[float, float]]
) -> tuple[float | None, ...]:
    """The mean of ``values`` in each of ``spans``; None where there is none."""
    times = np.asarray(times_s, np.float64)
    data = np.asarray([math.nan if v is None else v for v in values], np.float64)
    made: list[float | None] = []
    for start, end in spans:
        known = data[(times >= start) & (times < end)]
        known = known[~np.isnan(known)]
        made.append(float(known.mean()) if known.size else None)
    return tuple(made)


def _hottest(courses: Sequence[Course], count: int) -> tuple[str, tuple[float | None, ...]]:
    """The sensor that was hottest at any time, and its course."""
    warm = [c for c in courses if c.quantity == "temperature_c" and any(m is not None for m in c.means)]
    if not warm or not count:
        return "", ()
    best = max(warm, key=lambda c: max(m for m in c.means if m is not None))
    return best.sensor, best.means


def _named(power: Power) -> str:
    return f"{' + '.join(power.sensors)}: {power.scope}" if power.sensors else ""


def _since(events: Sequence[Event], start_s: float) -> tuple[Event, ...]:
    """Events on the soak's own time."""
    return tuple(msgspec.structs.replace(e, time_s=e.time_s - start_s) for e in events)
