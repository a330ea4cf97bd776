"""The engine options with which an artifact runs fastest on this machine, found by measurement.

Three alternated runs, each of fresh samples. ``screen`` tries every change alone; ``confirm`` tries the most
promising ones again, and all of them together, because the best of many is partly luck; ``loaded`` tries
what competes for cores (spinning, thread counts) beside a busy process, because such an option may win on
an idle machine and lose half on a busy one. An option is taken where the interval of its ratio lies below 1
by more than the margin at which two latencies tie, and where the outputs stay the same.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from edgekiln.engines import Arrays
from edgekiln.errors import EdgekilnError
from edgekiln.prove.apart import open_proof
from edgekiln.prove.statistics import TIE_MARGIN, Blocks, Ratio, ratio_of_medians
from edgekiln.prove.timing import WORKER, Contender, Timing, measure, worker_environment
from edgekiln.records import Artifact, Record, Scalar, Trial

Options: TypeAlias = dict[str, Scalar]
Timer: TypeAlias = Callable[[Sequence[Options], float, bool], Sequence[Blocks]]
"""``timer(changes, seconds, loaded)``: blocks of latencies with each change in one alternated run of about
``seconds`` of sampling, beside a busy process if ``loaded``; none for a change that could not run."""

SHARES = {"screen": 0.4, "confirm": 0.35, "loaded": 0.25}
FASTER = 1 / (1 + TIE_MARGIN)
SLOWER = 1 + TIE_MARGIN
MOST_CONFIRMED = 3
CONTENDED = frozenset(
    {"spinning", "threads", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "TBB_PARTITIONER"}
)
"""Options whose worth depends on what else the machine does."""

MIN_SAMPLES = 400
WARMUP_SECONDS = 0.5
SAME_WITHIN = 1e-4
"""Relative root mean square: sums in another order stay within it, a changed rounding of INT8 does not."""

_BUSY = "from edgekiln.prove.worker import die_with_parent as d\nd()\nwhile True: pass"


class Found(Record, frozen=True, kw_only=True):
    """``options`` to add to the artifact's, none where nothing helps, and every trial."""

    options: Options
    trials: tuple[Trial, ...]


def space(artifact: Artifact, threads: int) -> tuple[Options, ...]:
    """Every change to try alone on ``artifact`` at ``threads`` threads: none that it has already.

    Only what leaves the outputs alone up to rounding; () for an engine without such options.
    """
    fewer: tuple[Options, ...] = tuple(
        {"threads": n} for n in dict.fromkeys((threads // 2, 1)) if 0 < n < threads
    )
    known: dict[str, tuple[Options, ...]] = {
        "onnxruntime": (
            {"spinning": True},
            {"io_binding": True},
            {"arena": False},
            {"mem_pattern": False},
            {"prepacking": False},
            {"graph_level": "extended"},
            *fewer,
        ),
        "openvino": (
            {"share_inputs": True},
            {"ENABLE_CPU_PINNING": False},
            {"TBB_PARTITIONER": "AUTO"},
            {"TBB_PARTITIONER": "STATIC"},
            *fewer,
        ),
    }
    return tuple(c for c in known.get(artifact.engine, ()) if not c.items() <= artifact.options.items())


def search(
    name: str,
    changes: Sequence[Options],
    timer: Timer,
    same: Callable[[Options], bool],
    seconds: float,
) -> Found:
    """The best of ``changes`` and their union for artifact ``name``, in ``seconds`` of sampling at most.

    ``same`` says whether the outputs stay what they are with a change; it is asked of what would be taken
    alone. Loading the contenders of the three runs comes on top. Pure but for ``timer`` and ``same``.
    """
    course = _Course(name, timer, seconds)
    screened = course.run("screen", changes)
    order = sorted((r.value, i) for i, r in enumerate(screened) if r is not None and r.value < FASTER)
    best = [changes[i] for _, i in order[:MOST_CONFIRMED]]
    if not best:
        return course.found({})
    union = _union(best)
    pool = best if union in best else [*best, union]
    confirmed = course.run("confirm", pool)
    winners = [(r.value, c) for r, c in zip(confirmed, pool, strict=True) if r is not None and _faster(r)]
    contended = [c for _, c in winners if CONTENDED & c.keys()]
    borne = course.run("loaded", contended) if contended else []
    lost = [c for r, c in zip(borne, contended, strict=True) if r is None or not _bears(r)]
    course.explain(confirmed, pool, lost)
    left = [(value, c) for value, c in winners if c not in lost]
    while left:
        least = min(value for value, _ in left)
        # Of those that tie, the one that changes least.
        _, chosen = min((p for p in left if p[0] <= least * SLOWER), key=lambda p: (len(p[1]), p[0]))
        if same(chosen):
            return course.found(chosen)
        course.note(chosen, "changes the outputs beyond rounding: it would have to be judged again")
        left = [p for p in left if p[1] is not chosen]
    return course.found({})


def _union(best: Sequence[Options]) -> Options:
    """All changes at once; where two set one option, the better one's value stands."""
    whole: Options = {}
    for change in reversed(best):
        whole |= change
    return whole


def _faster(ratio: Ratio) -> bool:
    return ratio.interval is not None and ratio.interval[1] < FASTER


def _bears(ratio: Ratio) -> bool:
    """Whether a busy machine is shown to cost no more than a tie."""
    return ratio.interval is not None and ratio.interval[1] <= SLOWER


class _Course:
    """One search under way, and its rows."""

    def __init__(self, name: str, timer: Timer, seconds: float) -> None:
        self._name, self._timer, self._seconds = name, timer, seconds
        self._trials: list[Trial] = []

    def run(self, stage: str, changes: Sequence[Options]) -> list[Ratio | None]:
        """Each change against none, in one run; None where it gave nothing. Rows for all."""
        if not changes:
            return []
        base, *others = self._timer([{}, *changes], SHARES[stage] * self._seconds, stage == "loaded")
        ratios = [ratio_of_medians(b, base) if len(b) and len(base) else None for b in others]
        self._trials += [
            self._row(stage, c, r, "" if r else "it could not run")
            for c, r in zip(changes, ratios, strict=True)
        ]
        return ratios

    def _row(self, stage: str, change: Options, ratio: Ratio | None, note: str) -> Trial:
        return Trial(
            artifact_id=self._name,
            options=change,
            stage="loaded" if stage == "loaded" else "confirm" if stage == "confirm" else "screen",
            ratio=None if ratio is None else ratio.value,
            interval=None if ratio is None else ratio.interval,
            note=note if ratio is None else ratio.reason,
        )

    def explain(
        self, ratios: Sequence[Ratio | None], pool: Sequence[Options], lost: Sequence[Options]
    ) -> None:
        """Say of each confirmed change why it will not be taken, where that is known."""
        for ratio, change in zip(ratios, pool, strict=True):
            if change in lost:
                self.note(change, "not shown to hold on a busy machine")
            elif ratio is not None and not _faster(ratio) and not ratio.reason:
                self.note(change, f"not shown to be faster by more than {TIE_MARGIN:.0%}")

    def note(self, change: Options, text: str) -> None:
        """``text`` on the row of ``change`` in the run that decides."""
        for i, row in enumerate(self._trials):
            if row.stage == "confirm" and row.options == change:
                self._trials[i] = msgspec.structs.replace(row, note=text)

    def found(self, chosen: Options) -> Found:
        rows = [
            msgspec.structs.replace(row, taken=True)
            if chosen and row.stage == "confirm" and row.options == chosen
            else row
            for row in self._trials
        ]
        return Found(options=chosen, trials=tuple(rows))


# ---------------------------------------------------------------- on this machine


def tune(
    contender: Contender,
    inputs: Arrays,
    threads: int,
    seconds: float,
    command: Sequence[str] = WORKER,
) -> Found:
    """Search the options of ``contender`` on ``inputs`` (one call's named arrays), fresh processes all.

    ``seconds`` are of sampling: what loading the processes of three runs takes comes on top.
    """
    changes = space(contender.artifact, threads)
    if not changes:
        return Found(options={}, trials=())
    timed = timer(contender, inputs, threads, command)
    same = _same(contender, inputs, threads)
    return search(contender.artifact.id, changes, timed, same, seconds)


def timer(contender: Contender, inputs: Arrays, threads: int, command: Sequence[str] = WORKER) -> Timer:
    """The timer of this machine: each change of ``contender`` in a fresh process, all alternated."""

    def timed(changes: Sequence[Options], seconds: float, loaded: bool) -> Sequence[Blocks]:
        contenders = [
            msgspec.structs.replace(contender, id=str(i), artifact=with_options(contender.artifact, change))
            for i, change in enumerate(changes)
        ]
        with _busy() if loaded else contextlib.nullcontext():
            found = measure(
                contenders,
                inputs,
                threads,
                min_samples=MIN_SAMPLES,
                max_seconds=seconds,
                warmup_seconds=WARMUP_SECONDS,
                command=command,
            )
        return [t.blocks_ms if isinstance(t, Timing) else () for t in found]

    return timed


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A process that keeps one core busy until the end of the block."""
    process = subprocess.Popen([sys.executable, "-P", "-c", _BUSY], env=worker_environment(1))
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _same(contender: Contender, inputs: Arrays, threads: int) -> Callable[[Options], bool]:
    folder = Path(contender.folder)

    def outputs(change: Options) -> Arrays:
        runner = open_proof(with_options(contender.artifact, change), folder, threads)
        try:
            return runner(inputs)
        finally:
            runner.close()

    def same(change: Options) -> bool:
        try:
            return alike(outputs({}), outputs(change))
        except EdgekilnError:
            return False

    return same


def with_options(artifact: Artifact, change: Mapping[str, Scalar]) -> Artifact:
    """``artifact`` with ``change`` in its options."""
    return msgspec.structs.replace(artifact, options={**artifact.options, **change})


def alike(one: Arrays, other: Arrays) -> bool:
    """Whether outputs differ by no more than the order of a sum may: ``SAME_WITHIN``, per output."""
    if one.keys() != other.keys():
        return False
    for name, a in one.items():
        x, y = np.asarray(a, np.float64), np.asarray(other[name], np.float64)
        if x.shape != y.shape:
            return False
        error, signal = float(np.square(x - y).sum()), float(np.square(x).sum())
        if not math.sqrt(error) <= SAME_WITHIN * math.sqrt(signal):
            return False
    return True
