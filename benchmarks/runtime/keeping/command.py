"""How well deadlines are kept under real loads that come and go, and at what quality.

Frames come at a fixed rate to one process on one core. On a recorded course processes spin on that core, and
a CPU quota of a control group holds the process down (the kernel's period of 100 ms). The contenders run over
the same course, in turns:
- each rung throughout (no adaptation): the rungs take turns in blocks within every phase;
- the guide's AdaptiveResolution: each frame at the smallest size first, then the next until one is in time;
- edgekiln's policies, which see their own calls and nothing of the course;
- an oracle that knows the course, and which rung was best in each kind of phase, as measured beforehand.

A frame counts as in time when its answer is there within the deadline after its arrival; one that a newer
frame overtook is dropped, and not in time. Quality is the share of top-1 classes that agree with the float
model at 224 x 224 on photographs that nothing was calibrated on.

Goal: edgekiln at least 99 % in time, with a mean quality within 5 % of the oracle's.

The policies were tuned on the usual course. ``--seed N`` draws another: eight phases of 4 to 12 seconds, each
calm, with one or two rivals, or with a quota of 0.2 to 0.5 CPUs.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.files import write_json
from edgekiln.prove.environment import fitness
from measuring import process
from measuring.process import say
from measuring.table import Table, arguments, publish
from runtime.keeping import loads
from runtime.keeping.contenders import EACH, GUIDE, ORACLE, OURS
from runtime.keeping.figures import Figure, Score, picks, score, without_adaptation
from runtime.keeping.records import Order, Phase, Place, Run

GOAL_IN_TIME, GOAL_QUALITY = 0.99, 0.95
COURSE = (
    Phase(kind="calm", seconds=8.0),
    Phase(kind="a rival", seconds=8.0, rivals=1),
    Phase(kind="calm", seconds=8.0),
    Phase(kind="quota", seconds=8.0, quota=0.25),
    Phase(kind="calm", seconds=4.0),
)
QUICK_COURSE = (
    Phase(kind="calm", seconds=0.8),
    Phase(kind="a rival", seconds=0.8, rivals=1),
    Phase(kind="quota", seconds=0.8, quota=0.25),
)
START_S = 0.3
DRAWN_PHASES, DRAWN_S, DRAWN_QUOTAS = 8, (4.0, 12.0), (0.2, 0.3, 0.4, 0.5)


def drawn_course(seed: int) -> tuple[Phase, ...]:
    """A course by chance: it begins calm, and no phase is as the one before."""
    draw = random.Random(seed)
    loads: list[tuple[str, int, float | None]] = [
        ("calm", 0, None),
        ("a rival", 1, None),
        ("two rivals", 2, None),
    ]
    loads += [(f"quota {quota:g}", 0, quota) for quota in DRAWN_QUOTAS]
    made: list[Phase] = []
    for number in range(DRAWN_PHASES):
        kind, rivals, quota = draw.choice(loads) if number else loads[0]
        while made and made[-1].kind == kind:
            kind, rivals, quota = draw.choice(loads)
        seconds = round(draw.uniform(*DRAWN_S), 1)
        made.append(Phase(kind=kind, seconds=seconds, rivals=rivals, quota=quota))
    return tuple(made)


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--deadline-ms", type=float, default=20.0)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=2, help="times over the course (default 2)")
    parser.add_argument("--seed", type=int, help="draw the course by this seed (default: the usual one)")
    parser.add_argument("--core", type=int, help="the core to run on (default: the last one)")
    parser.add_argument("--prepare", type=Path, help="what the benchmark starts itself with")
    given = parser.parse_args()
    if given.quick:
        given.repeats = 1
    if given.prepare:
        from runtime.keeping.rungs import make_places

        write_json(given.prepare, make_places(given.out / "cache", given.quick))
    else:
        _benchmark(given)


def _benchmark(given: Any) -> None:
    unfit = fitness()
    given.out.mkdir(parents=True, exist_ok=True)
    places = _places(given)
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if given.core is None else given.core
    if len(cores) > 1:
        os.sched_setaffinity(0, [c for c in cores if c != core])  # the benchmark itself is no rival
    course: tuple[Phase, ...] = QUICK_COURSE if given.quick else COURSE
    if given.seed is not None:
        course = drawn_course(given.seed)
        course = tuple(msgspec.structs.replace(p, seconds=0.8) for p in course) if given.quick else course
    with loads.control_group() as group, loads.rivals(core, max(p.rivals for p in course)) as let:
        if group is None:
            course = tuple(p for p in course if p.quota is None)
        order = Order(
            contender=EACH,
            places=places,
            course=course,
            deadline_ms=given.deadline_ms,
            percentile=GOAL_IN_TIME,
            fps=given.fps,
            core=core,
            group=str(group[0]) if group else "",
        )
        runs = list(_runs(order, given.repeats, let, group[1] if group else None))
    tables = _tables(order, runs, quota=group is not None)
    publish("deadline", tables, [order, runs], quick=given.quick, out=given.out, unfit=unfit)


def _places(given: Any) -> tuple[Place, ...]:
    """Made in a process of its own: converters leave threads and memory behind."""
    from runtime.keeping.rungs import read_places

    path = given.out / "cache" / "rungs.json"
    command = [sys.executable, str(Path(__file__).parents[1] / "deadline.py"), "--prepare", str(path)]
    command += ["--out", str(given.out), *(["--quick"] if given.quick else [])]
    done = process.run(command, limit_seconds=600)
    if done.stopped or done.exit_code:
        sys.exit(f"making the rungs failed: {done.stopped}\n{done.stderr}")
    say(f"{done.seconds:7.1f} s  rungs")
    return read_places(path)


# ---------------------------------------------------------------- the runs


def _runs(order: Order, repeats: int, let: Any, limit: Any) -> Iterator[Run]:
    """Every rung in turns first, which the oracle learns from; then the others, in an order that rotates."""
    rungs = []
    for turn in range(repeats):
        rungs.append(_run(msgspec.structs.replace(order, turn=turn), let, limit))
        yield rungs[-1]
    known = picks(rungs, order.places, order.deadline_ms, order.percentile)
    names = [GUIDE, OURS, ORACLE]
    for turn in range(repeats):
        for name in names[turn % 3 :] + names[: turn % 3]:
            one = msgspec.structs.replace(order, contender=name, turn=turn, picks=known)
            yield _run(one, let, limit)


def _run(order: Order, let: Any, limit: Any) -> Run:
    began = time.monotonic()
    command = [sys.executable, "-m", "runtime.keeping.worker"]
    env = process.environment()
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env["PYTHONPATH"]])
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(msgspec.json.encode(order) + b"\n")
            worker.stdin.flush()
            if worker.stdout.readline().strip() != b"ready":
                sys.exit(f"the worker of '{order.contender}' did not start")
            start_s = time.monotonic() + START_S
            worker.stdin.write(f"{start_s!r}\n".encode())
            worker.stdin.flush()
            turns = loads.drive(order.course, start_s, let, limit)
            run = msgspec.json.decode(worker.stdout.readline(), type=Run)
        finally:
            with contextlib.suppress(OSError):
                worker.stdin.close()
            if worker.poll() is None and sys.exc_info()[0] is not None:
                worker.kill()
    say(f"{time.monotonic() - began:7.1f} s  {order.contender}, turn {order.turn + 1}")
    return msgspec.structs.replace(run, turns_s=turns)


# ---------------------------------------------------------------- the answer


def _tables(order: Order, runs: Sequence[Run], quota: bool) -> list[Table]:
    places = {p.id: p for p in order.places}
    of = {name: [r for r in runs if r.contender == name] for name in (EACH, GUIDE, OURS, ORACLE)}
    scores = [
        score(name, of[name], order.course, places, order.deadline_ms) for name in (ORACLE, OURS, GUIDE)
    ]
    alone = without_adaptation(of[EACH], order.course, places, order.deadline_ms)
    known = picks(of[EACH], order.places, order.deadline_ms, order.percentile)
    course = ", ".join(f"{p.seconds:g} s {p.kind}" for p in order.course)
    decisions = [r.decide_us for r in of[OURS] if r.decide_us is not None]
    note = (
        f"Measured on core {order.core}: frames at {order.fps:g} a second, {order.deadline_ms:g} ms from "
        f"arrival to answer, {len(of[OURS])} times over the course: {course}. A rival spins on that core; "
        f"quotas are in periods of 100 ms, of {_quotas(order.course)} CPUs. Intervals "
        f"(95 %) are from resampling phases. The oracle takes {_picks(known)}. A decision of edgekiln's took "
        f"{max(decisions, default=0.0):.0f} µs (median of the slowest run); its calls in idle time: "
        f"{sum(r.probes for r in of[OURS])}."
    )
    if not quota:
        note += " No control group could be made here: the phases with a quota are left out."
    columns = ("contender", "in time", "mean quality", "quality in time", "mean side", "changes/min", "n")
    kept = Table(
        title="Deadlines kept, and at what quality",
        columns=(*columns, "goal"),
        rows=tuple([(*_row(s), _verdict(s, scores[0])) for s in scores] + [(*_row(s), "—") for s in alone]),
        note=note,
    )
    return [kept, _by_phase(order, runs, scores, alone)]


def _quotas(course: Sequence[Phase]) -> str:
    return ", ".join(f"{quota:g}" for quota in sorted({p.quota for p in course if p.quota is not None}))


def _picks(known: dict[str, str]) -> str:
    return ", ".join(f"{rung} ({kind})" for kind, rung in known.items())


def _row(found: Score) -> tuple[str, ...]:
    return (
        found.contender,
        _share(found.in_time),
        _share(found.quality),
        _share(found.useful),
        f"{found.side[0]:.0f} px",
        f"{found.changes:.1f}",
        str(found.n),
    )


def _share(figure: Figure) -> str:
    value, low, high = figure
    return f"{value:.2%} ({low:.2%} to {high:.2%})"


def _verdict(found: Score, oracle: Score) -> str:
    """Whether the means reach the goal; of edgekiln alone, the others have none."""
    if found.contender != OURS:
        return "—"
    parts = []
    if found.in_time[0] < GOAL_IN_TIME:
        parts.append(f"in time missed by {GOAL_IN_TIME - found.in_time[0]:.2%}")
    if found.quality[0] < GOAL_QUALITY * oracle.quality[0]:
        parts.append(f"quality {found.quality[0] / oracle.quality[0]:.1%} of the oracle's")
    return "; ".join(parts) or f"met (quality {found.quality[0] / oracle.quality[0]:.1%} of the oracle's)"


def _by_phase(order: Order, runs: Sequence[Run], scores: Sequence[Score], alone: Sequence[Score]) -> Table:
    """Shares in time by kind of phase."""
    kinds = list(dict.fromkeys(p.kind for p in order.course))
    rows = []
    for name in [s.contender for s in (*scores, *alone)]:
        frames = [f for r in runs if r.contender == name for f in r.frames]
        if not frames:  # a rung by itself
            rung = name.removesuffix(" throughout")
            frames = [f for r in runs if r.contender == EACH for f in r.frames if f.rung == rung and f.counts]
        cells = []
        for kind in kinds:
            part = [
                f.ended_ms is not None and f.ended_ms <= order.deadline_ms for f in frames if f.kind == kind
            ]
            cells.append(f"{sum(part) / len(part):.1%} of {len(part)}" if part else "—")
        rows.append((name, *cells))
    return Table(title="In time, by phase", columns=("contender", *kinds), rows=tuple(rows))
