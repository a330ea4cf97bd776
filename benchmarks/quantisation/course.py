"""One model's part of the benchmark: every contender quantises in a fresh process, is judged in another, and
then all artifacts are timed in turns in one run. What was found is kept, so that a long benchmark can be made
piece by piece."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.files import sha256_file, write_json
from edgekiln.prove.environment import fingerprint, fitness
from edgekiln.prove.statistics import Blocks, Ratio, ratio_of_medians
from edgekiln.prove.timing import Contender as Lane
from edgekiln.prove.timing import Timing, measure
from edgekiln.records import Artifact, Record, Scalar
from measuring import process
from measuring.process import say
from quantisation import olive_workflow, scenes
from quantisation.contenders import CONTENDERS, Contender
from quantisation.judging import Judged
from quantisation.scenes import Scene

RUN = Path(__file__).with_name("run.py")
SECONDS_EACH = 4.0
SAMPLES_EACH = 200
SPINNING = " spinning"
ROW = "row.json"


class Made(Record, frozen=True, kw_only=True):
    """What a worker did. ``seconds`` is without the start of the process, ``peak_bytes`` the process's own
    peak; a contender that starts other processes has its figures from outside."""

    artifact: Artifact
    note: str
    seconds: float
    peak_bytes: int


class Row(Record, frozen=True, kw_only=True):
    """One contender on one model. ``seconds`` and the peaks are of the whole command, imports included:
    ``peak_bytes`` of its largest process, ``tree_bytes`` of all of them together. ``blocks_ms`` are the timed
    calls, turn by turn. ``failure`` says at which station it was lost, and why."""

    contender: str
    seconds: float | None = None
    inner_seconds: float | None = None
    peak_bytes: int | None = None
    tree_bytes: int | None = None
    size_bytes: int | None = None
    artifact: Artifact | None = None
    judged: Judged | None = None
    blocks_ms: tuple[tuple[float, ...], ...] = ()
    run_peak_bytes: int | None = None
    spinning: bool = False
    note: str = ""
    failure: str = ""
    unfit: bool = False

    @property
    def samples_ms(self) -> tuple[float, ...]:
        return tuple(ms for block in self.blocks_ms for ms in block)


class _Kept(Record, frozen=True, kw_only=True):
    row: Row
    scene_sha256: str


class Memory(Record, frozen=True, kw_only=True):
    """Peak of one process of a build by its number of calibration samples."""

    samples: int
    peak_bytes: int | None
    failure: str = ""


class Found(Record, frozen=True, kw_only=True):
    """All that is known about one model."""

    scene: Scene
    rows: tuple[Row, ...]
    memory: tuple[Memory, ...] = ()
    threads: int
    when: str
    machine: dict[str, Scalar]
    unfit: tuple[str, ...]

    def row(self, contender: str) -> Row | None:
        return next((row for row in self.rows if row.contender == contender), None)


@dataclass(frozen=True)
class Plan:
    """How the benchmark was asked for. ``work`` holds scenes, artifacts and results. With ``keep`` a
    contender that has made and judged its artifact of the same scene is not asked again, unless it is in
    ``fresh``; what is timed is timed anew, all together."""

    work: Path
    contenders: tuple[str, ...]
    threads: int
    samples: int
    run_seconds: float
    memory_bytes: int
    recipes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    timed_samples: int = SAMPLES_EACH
    keep: bool = False
    fresh: tuple[str, ...] = ()


def ratio(a: Row, b: Row) -> Ratio | None:
    """Median latency of a over that of b in their one run; None where one was not timed."""
    if not a.blocks_ms or not b.blocks_ms:
        return None
    first: Blocks = a.blocks_ms
    return ratio_of_medians(first, b.blocks_ms)


def run(model: str, plan: Plan, memory: Sequence[int] = ()) -> Found:
    """Prepare, quantise, judge, time; the result is kept in ``work/results``.

    Contenders that were not asked for keep no row. ``memory`` are numbers of calibration samples at which the
    chosen recipe's build is looked at once more.
    """
    unfit = fitness()
    folder = scenes.prepare(model, plan.work)
    scene = scenes.load(folder)
    rows: list[Row] = []
    for name in plan.contenders:
        row = _earlier(name, folder, plan) or _made(CONTENDERS[name], scene, folder, plan, rows)
        rows.append(_judged(row, folder, plan) if row.artifact is not None else row)
    rows = _timed(rows, scene, folder, plan)
    found = Found(
        scene=scene,
        rows=tuple(rows),
        memory=tuple(_memory(rows, model, plan, n) for n in memory),
        threads=plan.threads,
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=fingerprint(),
        unfit=unfit,
    )
    write_json(kept(model, plan.work), found)
    return found


def kept(model: str, work: Path) -> Path:
    return work / "results" / f"{model}.json"


def read(model: str, work: Path) -> Found | None:
    """What an earlier run found, or None."""
    path = kept(model, work)
    return msgspec.json.decode(path.read_bytes(), type=Found) if path.is_file() else None


# ---------------------------------------------------------------- the stations


def _made(contender: Contender, scene: Scene, folder: Path, plan: Plan, rows: Sequence[Row]) -> Row:
    reason = contender.unfit(scene)
    if reason:
        return Row(contender=contender.name, failure=reason, unfit=True)
    if contender.family == "olive" and (reason := olive_workflow.absent()):
        return Row(contender=contender.name, failure=reason)
    recipes, targets = plan.recipes, plan.targets
    if contender.name == "ours-alone":
        chosen = next((row.artifact for row in rows if row.contender == "ours"), None)
        if chosen is None:
            return Row(contender=contender.name, failure="nothing was chosen")
        recipes, targets = (chosen.recipe,), (chosen.target,)
    into = plan.work / "artifacts" / scene.name / contender.name
    return _quantise(contender.name, folder, into, plan, plan.samples, recipes, targets)


def _quantise(
    name: str,
    folder: Path,
    into: Path,
    plan: Plan,
    samples: int,
    recipes: Sequence[str],
    targets: Sequence[str],
) -> Row:
    command = [sys.executable, str(RUN), "--worker", name, "--folder", str(folder), "--into", str(into)]
    command += ["--threads", str(plan.threads), "--samples", str(samples)]
    command += [x for recipe in recipes for x in ("--recipe", recipe)]
    command += [x for target in targets for x in ("--target", target)]
    done = process.run(command, limit_seconds=plan.run_seconds, limit_bytes=plan.memory_bytes)
    failure = _failure("quantising", done)
    say(f"{done.seconds:7.1f} s  {folder.name} · {name}" + (f": {failure}" if failure else ""))
    if failure:
        return Row(contender=name, seconds=done.seconds, peak_bytes=done.peak_process_bytes, failure=failure)
    made = msgspec.json.decode(done.stdout.splitlines()[-1].encode(), type=Made)
    return Row(
        contender=name,
        seconds=done.seconds,
        inner_seconds=made.seconds,
        peak_bytes=max(made.peak_bytes, done.peak_process_bytes),
        tree_bytes=done.peak_tree_bytes,
        size_bytes=made.artifact.size_bytes,
        artifact=made.artifact,
        note=made.note,
    )


def _failure(station: str, done: process.Finished) -> str:
    if done.stopped:
        return f"{station}: {done.stopped} after {done.seconds:.0f} s, at {done.peak_tree_bytes / 1e9:.1f} GB"
    if done.exit_code:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        said = " ".join(last).replace(f"{process.ROOT}/", "")[:300]
        return f"{station}: {said or f'exit code {done.exit_code}'}"
    return ""


def _earlier(name: str, folder: Path, plan: Plan) -> Row | None:
    """The contender's row of an earlier run over the same graph, or None."""
    path = plan.work / "artifacts" / folder.name / name / ROW
    if not plan.keep or name in plan.fresh or not path.is_file():
        return None
    held = msgspec.json.decode(path.read_bytes(), type=_Kept)
    return held.row if held.scene_sha256 == sha256_file(folder / "graph.onnx") else None


def _judged(row: Row, folder: Path, plan: Plan) -> Row:
    if row.judged is not None:
        return row
    into = plan.work / "artifacts" / folder.name / row.contender
    command = [sys.executable, str(RUN), "--judge", str(into), "--folder", str(folder)]
    command += ["--threads", str(plan.threads)]
    done = process.run(command, limit_seconds=plan.run_seconds, limit_bytes=plan.memory_bytes)
    if failure := _failure("judging", done):
        say(f"{done.seconds:7.1f} s  {folder.name} · {row.contender}: {failure}")
        return msgspec.structs.replace(row, failure=failure)
    judged = msgspec.json.decode(done.stdout.splitlines()[-1].encode(), type=Judged)
    row = msgspec.structs.replace(row, judged=judged)
    write_json(into / ROW, _Kept(row=row, scene_sha256=sha256_file(folder / "graph.onnx")))
    return row


def _timed(rows: Sequence[Row], scene: Scene, folder: Path, plan: Plan) -> list[Row]:
    """All artifacts in turns. Where an engine lets threads spin by default it is timed with and without, and
    the faster one is its row's."""
    lanes = []
    for row in rows:
        # The recipe alone gives what the search chose: timed once, as ``ours``.
        if row.artifact is None or row.failure or row.contender == "ours-alone":
            continue
        where = str(plan.work / "artifacts" / scene.name / row.contender)
        lanes.append(Lane(id=row.contender, folder=where, artifact=row.artifact, engine=row.artifact.engine))
        if CONTENDERS[row.contender].spins:
            spun = msgspec.structs.replace(row.artifact, options={**row.artifact.options, "spinning": True})
            name = row.contender + SPINNING
            lanes.append(Lane(id=name, folder=where, artifact=spun, engine=spun.engine))
    if not lanes:
        return list(rows)
    sample = next(scenes.arrays(folder / "evaluation"))
    say(f"           timing {len(lanes)} lanes in turns")
    timings = measure(
        lanes,
        sample,
        plan.threads,
        min_samples=plan.timed_samples,
        max_seconds=SECONDS_EACH * len(lanes),
    )
    by_id = {timing.id: timing for timing in timings}
    return [_with_timing(row, by_id) for row in rows]


def _with_timing(row: Row, by_id: dict[str, Any]) -> Row:
    found = [by_id[i] for i in (row.contender, row.contender + SPINNING) if i in by_id]
    timed = [t for t in found if isinstance(t, Timing)]
    if not timed:
        return msgspec.structs.replace(row, failure=f"timing: {found[0].reason}") if found else row
    best = min(timed, key=lambda t: sorted(t.samples_ms)[len(t.samples_ms) // 2])
    return msgspec.structs.replace(
        row, blocks_ms=best.blocks_ms, spinning=best.spinning, run_peak_bytes=best.peak_rss_bytes
    )


def _memory(rows: Sequence[Row], model: str, plan: Plan, samples: int) -> Memory:
    """The peak of building the recipe that ``ours`` chose with so many calibration samples."""
    chosen = next((row.artifact for row in rows if row.contender == "ours"), None)
    if chosen is None:
        return Memory(samples=samples, peak_bytes=None, failure="nothing was chosen")
    folder = scenes.prepare(f"{model}-many", plan.work)
    into = plan.work / "artifacts" / f"{model}-{samples}"
    row = _quantise("ours-alone", folder, into, plan, samples, (chosen.recipe,), (chosen.target,))
    # What a build took until it failed says nothing of one that ends.
    return Memory(samples=samples, peak_bytes=None if row.failure else row.peak_bytes, failure=row.failure)
