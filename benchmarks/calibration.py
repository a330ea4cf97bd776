"""Calibrating INT8: edgekiln's streaming observers against ONNX Runtime's calibrators and NNCF.

Compared, each in a fresh process on the same cores, graph and samples:
- edgekiln: ``observe``, then ``quantise_static`` with the rules minmax, percentile 99.99 and mse;
- ONNX Runtime: ``quantize_static`` with its calibrators MinMax, Percentile and Entropy, the calibrators'
  own parameters at their defaults, everything else (Q/DQ, u8 activations, s8 weights per channel, operators)
  as edgekiln sets it, so that only the calibration differs;
- NNCF: ``quantize`` at its defaults, on the same ONNX file read by OpenVINO.

Wall time runs from the first sample to the quantised file; imports and evaluation are outside. Peak memory is
the process's, from the kernel, before evaluation. Agreement and SQNR are against the float model on the 84
holdout crops, of other photographs. The samples are crops of ten photographs, so 512 of them are a load for
the memory, not 512 independent pictures. A contender that passes the limit of memory or time is a row that
says so: the limits are this benchmark's own.

Goals: what edgekiln adds in memory grows by at most a tenth from the fewest samples to the most; minmax takes
at most 1.5 times as long as ONNX Runtime's MinMax; its best agreement is at most one sample behind the
others' best.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekiln.prove.environment import fitness
from edgekiln.prove.statistics import percentiles
from edgekiln.records import Record
from measuring import process
from measuring.calibrators import OURS, THEIRS, quantiser
from measuring.process import say
from measuring.table import Table, against_goal, arguments, megabytes, publish, spread

SIZES = (32, 128)
LARGEST = (512, ("edgekiln minmax", "ONNX Runtime MinMax"))
GOAL_GROWTH = 1.1
GOAL_TIME_RATIO = 1.5


class Scene(Record, frozen=True, kw_only=True):
    """What ``prepare`` left in its folder: ``graph.onnx``, ``samples/``, ``holdout/``, ``expected.npy``."""

    input: str
    output: str
    dialect: str
    samples: int
    holdout: int


class Answer(Record, frozen=True, kw_only=True):
    """What one worker found. ``before_bytes`` is its memory with all packages imported and nothing done."""

    seconds: float
    before_bytes: int
    peak_bytes: int
    agreement: float | None = None
    sqnr_db: float | None = None


@dataclass
class Series:
    """One contender at one number of samples: its answers, or why it has none."""

    contender: str
    samples: int
    answers: list[Answer] = field(default_factory=list)
    failure: str = ""
    last_seconds: float = 0.0


# ---------------------------------------------------------------- the workers


def prepare(folder: Path, cache: Path, network: str, threads: int, count: int) -> None:
    """Write the scene into ``folder``: prepared arrays, so that no contender pays for decoding pictures."""
    from edgekiln import files
    from edgekiln.compile.targets import dialect
    from edgekiln.devices import load
    from edgekiln.engines import open_engine
    from edgekiln.engines.onnxruntime import float_artifact
    from measuring.scene import scene

    made = scene("tiny" if network == "tiny" else "efficientnet-lite0", cache, threads)
    files.write_bytes(folder / "graph.onnx", made.shop.graph.read_bytes())
    signature = made.intake.model.signature
    name, output = signature.inputs[0].name, signature.outputs[0].name
    for kind, arrays in (("samples", made.calibration(count)), ("holdout", made.holdout())):
        (folder / kind).mkdir()
        for number, sample in enumerate(arrays):
            np.save(folder / kind / f"{number:05d}.npy", sample[name])
    runner = open_engine("onnxruntime", float_artifact("graph.onnx", "float"), folder, threads)
    expected = [runner(sample)[output] for sample in _arrays(folder / "holdout", name)]
    np.save(folder / "expected.npy", np.stack(expected))
    about = Scene(
        input=name,
        output=output,
        dialect=dialect("onnxruntime", "int8-static-minmax", load("host")),
        samples=count,
        holdout=len(expected),
    )
    files.write_json(folder / "scene.json", about)


def _arrays(folder: Path, name: str, count: int | None = None) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir())[:count]:
        yield {name: np.load(path)}


def work(contender: str, folder: Path, count: int, threads: int, evaluate: bool) -> Answer:
    """Calibrate and quantise once in this process."""
    scene = msgspec.json.decode((folder / "scene.json").read_bytes(), type=Scene)

    def samples() -> Iterator[dict[str, Any]]:
        return _arrays(folder / "samples", scene.input, count)

    with tempfile.TemporaryDirectory() as scratch:
        quantise, engine = quantiser(contender, folder / "graph.onnx", scene.dialect, samples, count, threads)
        before = process.own_memory_bytes("VmRSS")
        started = time.perf_counter()
        made = quantise(Path(scratch))
        seconds = time.perf_counter() - started
        peak = process.own_memory_bytes("VmHWM")
        agreement, sqnr = _judged(made, engine, folder, scene, threads) if evaluate else (None, None)
    return Answer(seconds=seconds, before_bytes=before, peak_bytes=peak, agreement=agreement, sqnr_db=sqnr)


def _judged(made: Path, engine: str, folder: Path, scene: Scene, threads: int) -> tuple[float, float]:
    """Agreement and SQNR in dB of the quantised file against the float model on the holdout."""
    from edgekiln.engines import open_engine
    from edgekiln.engines.onnxruntime import float_artifact
    from edgekiln.prove.parity import ParityStream

    # An int8 file needs no option of its own: the record names the file and the engine.
    artifact = msgspec.structs.replace(float_artifact(made.name, "int8"), engine=engine, proof_engine=engine)
    runner = open_engine(engine, artifact, made.parent, threads)
    stream = ParityStream("classification")
    expected = np.load(folder / "expected.npy")
    for sample, wanted in zip(_arrays(folder / "holdout", scene.input), expected, strict=True):
        # OpenVINO may rename an output that it reads from ONNX; there is one, so its place decides.
        (found,) = runner(sample).values()
        stream.add({scene.output: wanted}, {scene.output: found})
    runner.close()
    result = stream.result()
    agreement, sqnr = result.agreement.value, result.outputs[0].sqnr_db
    if agreement is None or sqnr is None:
        raise RuntimeError(result.agreement.reason or result.outputs[0].reason)
    return agreement, sqnr


# ---------------------------------------------------------------- the course


def contest(folder: Path, plan: Sequence[Series], given: Any, deadline: float) -> None:
    """Rounds over ``plan`` until each has ``given.rounds`` answers or the time is over.

    A round takes few samples before many, each in shuffled order. The first round is always made; a later run
    starts only where its last duration still fits.
    """
    order = random.Random(0)
    for turn in range(given.rounds):
        row = [series for series in plan if not series.failure]
        order.shuffle(row)
        row.sort(key=lambda series: series.samples)
        for series in row:
            if turn and time.monotonic() + series.last_seconds > deadline:
                continue
            _run(series, folder, given, deadline)


def _run(series: Series, folder: Path, given: Any, deadline: float) -> None:
    command = [
        *(sys.executable, __file__, "--worker", series.contender, "--folder", str(folder)),
        *("--samples", str(series.samples), "--threads", str(given.threads)),
        *([] if series.answers else ["--evaluate"]),
    ]
    # Towards the end of the benchmark's own time a first run gets less, but enough for most.
    limit = max(30.0, min(given.run_seconds, deadline - time.monotonic()))
    done = process.run(command, limit_seconds=limit, limit_bytes=round(given.memory_gb * 1e9))
    series.last_seconds = done.seconds
    if done.stopped or done.exit_code:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        ended = f"exit code {done.exit_code}: {' '.join(last)[:200]}"
        series.failure = (
            f"{done.stopped} after {done.seconds:.0f} s, at {done.peak_tree_bytes / 1e9:.1f} GB"
            if done.stopped
            else ended
        )
        say(f"{series.contender}, {series.samples} samples: {series.failure}")
        return
    answer = msgspec.json.decode(done.stdout.splitlines()[-1].encode(), type=Answer)
    series.answers.append(answer)
    say(f"{done.seconds:7.1f} s  {series.contender}, {series.samples} samples: {answer.seconds:.1f} s")


def _row(series: Series, holdout: int) -> tuple[str, ...]:
    name = (series.contender, str(series.samples))
    if not series.answers:
        return (*name, "—", "—", "—", "—", "—", series.failure)
    judged = series.answers[0]
    assert judged.agreement is not None  # the first run of a series evaluates
    return (
        *name,
        spread([a.seconds for a in series.answers], "s", 2),
        megabytes([a.peak_bytes for a in series.answers]),
        megabytes([a.peak_bytes - a.before_bytes for a in series.answers]),
        f"{judged.agreement:.1%} of {holdout}",
        f"{judged.sqnr_db:.1f} dB",
        str(len(series.answers)) + (f", then {series.failure}" if series.failure else ""),
    )


def goals(plan: Sequence[Series], holdout: int) -> Table:
    """The goals with what this run says to them; a goal without both figures is not judged."""
    held = {(s.contender, s.samples): s.answers for s in plan if s.answers}
    sizes = sorted({s.samples for s in plan})
    rows = []
    for size in sizes:
        ours, theirs = (held.get((name, size)) for name in LARGEST[1])
        if ours and theirs:
            ratio = _middle(a.seconds for a in ours) / _middle(a.seconds for a in theirs)
            verdict = against_goal(ratio, GOAL_TIME_RATIO)
            what = f"time of minmax over ONNX Runtime's MinMax, {size} samples"
            rows.append((what, f"{ratio:.2f}", f"≤ {GOAL_TIME_RATIO}", verdict))
        mine = [held[n, size][0].agreement or 0.0 for n in OURS if (n, size) in held]
        others = [held[n, size][0].agreement or 0.0 for n in THEIRS if (n, size) in held]
        if mine and others:
            behind = round((max(others) - max(mine)) * holdout)
            what = f"holdout samples that the best agreement lies behind the others' best, {size} samples"
            rows.append((what, str(behind), "≤ 1", against_goal(behind, 1)))
    for name in OURS:
        there = [size for size in sizes if (name, size) in held]
        if len(there) > 1:
            least, most = (
                _middle(a.peak_bytes - a.before_bytes for a in held[name, n])
                for n in there[:: len(there) - 1]
            )
            what = f"memory added by {name}, {there[-1]} samples over {there[0]}"
            verdict = against_goal(most / least, GOAL_GROWTH)
            rows.append((what, f"{most / least:.2f}", f"≤ {GOAL_GROWTH}", verdict))
    return Table(title="Goals of calibration", columns=("what", "value", "goal", ""), rows=tuple(rows))


def _middle(values: Iterable[float]) -> float:
    return percentiles(list(values)).p50


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="cores that each contender may use")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender, if the time allows")
    parser.add_argument("--seconds", type=float, default=540.0, help="time for all (default 540)")
    parser.add_argument("--run-seconds", type=float, default=150.0, help="time for one run (default 150)")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="memory for one run (default 8)")
    worker = parser.add_argument_group("what the benchmark starts itself with")
    worker.add_argument("--prepare", metavar="NETWORK")
    worker.add_argument("--worker", metavar="CONTENDER")
    worker.add_argument("--folder", type=Path)
    worker.add_argument("--samples", type=int)
    worker.add_argument("--evaluate", action="store_true")
    given = parser.parse_args()
    process.keep_to_cores(given.threads)
    if given.prepare:
        prepare(given.folder, given.out / "cache", given.prepare, given.threads, given.samples)
    elif given.worker:
        answer = work(given.worker, given.folder, given.samples, given.threads, given.evaluate)
        print(json.dumps(msgspec.to_builtins(answer)))
    else:
        _benchmark(given)


def _benchmark(given: Any) -> None:
    unfit = fitness()
    deadline = time.monotonic() + given.seconds
    network = "tiny" if given.quick else "efficientnet-lite0"
    sizes = (8,) if given.quick else SIZES
    plan = [Series(name, n) for n in sizes for name in (*OURS, *THEIRS)]
    if given.quick:
        given.rounds = 1
    else:
        plan += [Series(name, LARGEST[0]) for name in LARGEST[1]]
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as scratch:
        folder = Path(scratch)
        most = str(max(series.samples for series in plan))
        command = [sys.executable, __file__, "--prepare", network, "--folder", scratch, "--samples", most]
        command += ["--threads", str(given.threads), "--out", str(given.out)]
        done = process.run(command, limit_seconds=given.seconds)
        if done.exit_code:
            sys.exit(f"preparing failed:\n{done.stderr}")
        say(f"{done.seconds:7.1f} s  prepared {network} and {most} samples")
        scene = msgspec.json.decode((folder / "scene.json").read_bytes(), type=Scene)
        contest(folder, plan, given, deadline)
    table = Table(
        title=f"INT8 calibration of {network}, {given.threads} cores",
        columns=(
            "contender",
            "samples",
            "wall time",
            "peak memory",
            "of it added",
            "agreement",
            "SQNR",
            "runs",
        ),
        rows=tuple(_row(series, scene.holdout) for series in plan),
        note=f"Measured, each run in a fresh process, in shuffled order; Q/DQ dialect '{scene.dialect}'. "
        "Wall time is from the first sample to the quantised file. Peak memory is the process's, imports "
        "included; 'of it added' is what came after them. Agreement is the share of holdout samples with the "
        "float model's top class.",
    )
    raw = [
        {"contender": s.contender, "samples": s.samples, "answers": s.answers, "failure": s.failure}
        for s in plan
    ]
    publish(
        "calibration", [table, goals(plan, scene.holdout)], raw, quick=given.quick, out=given.out, unfit=unfit
    )


if __name__ == "__main__":
    main()
