"""Quantisers side by side: edgekiln, ONNX Runtime, OpenVINO with NNCF, Olive, ai-edge-quantizer in LiteRT.

Each contender quantises the same ONNX file with the same calibration samples in a fresh process; wall time
and peak memory are of that command, imports included. Each artifact is judged against the float model on
samples that no contender saw, and all artifacts of a model are timed in turns in one run.
docs/quantisation-benchmark.md says how to read the tables.

A whole run takes more than half an hour. Each model's figures are kept below ``--work`` when it is done:
``--models NAME`` runs some, ``--missing`` those that have no figures yet, ``--report`` none, and each prints
the tables of all that there is.

Goals are those of the program's issue on quantisation; each is met, missed or not judged.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.prove.environment import fitness
from edgekiln.records import Artifact
from measuring import process
from measuring.table import arguments, publish
from quantisation import contenders, course, estimates, scenes, tables
from quantisation.contenders import CONTENDERS, Order
from quantisation.course import Made, Plan

MEMORY_OF = "efficientnet-lite0"
MEMORY_SAMPLES = (32, scenes.MANY)


def parser() -> ArgumentParser:
    """What the command takes."""
    found = arguments(__doc__)
    panel, names = ", ".join(scenes.PANEL), ", ".join(CONTENDERS)
    found.add_argument("--models", help=f"some of {panel} (comma between them; default all)")
    found.add_argument("--contenders", help=f"some of {names} (default all)")
    found.add_argument("--recipe", action="append", default=[], help="ask edgekiln for this recipe alone")
    found.add_argument("--target", action="append", default=[], help="ask edgekiln for this target alone")
    found.add_argument("--threads", type=int, default=2, help="cores that each contender may use")
    found.add_argument("--samples", type=int, default=64, help="calibration samples at most (default 64)")
    found.add_argument("--run-seconds", type=float, default=900.0, help="time for one command (default 900)")
    found.add_argument("--memory-gb", type=float, default=10.0, help="memory for one command (default 10)")
    found.add_argument("--memory-test", action="store_true", help=f"look at {MEMORY_OF}'s memory as well")
    found.add_argument("--missing", action="store_true", help="only models that have no figures yet")
    found.add_argument(
        "--keep", action="store_true", help="ask no contender again that has made its artifact"
    )
    found.add_argument("--fresh", help="with --keep: but these (comma between them)")
    found.add_argument("--report", action="store_true", help="run nothing; print what there is")
    found.add_argument(
        "--estimates",
        action="store_true",
        help="run nothing anew; print what few samples tell of the artifacts",
    )
    found.add_argument("--work", type=Path, help="scenes, artifacts, results (build/quantisation)")
    worker = found.add_argument_group("what the benchmark starts itself with")
    worker.add_argument("--worker", metavar="CONTENDER")
    worker.add_argument("--judge", metavar="FOLDER", type=Path)
    worker.add_argument("--folder", type=Path)
    worker.add_argument("--into", type=Path)
    return found


def main() -> None:
    """See the module."""
    given = parser().parse_args()
    process.keep_to_cores(given.threads)
    if given.worker:
        print(json.dumps(msgspec.to_builtins(work(given))))
    elif given.judge:
        from quantisation.judging import judge

        artifact = msgspec.json.decode((given.judge / "artifact.json").read_bytes(), type=Artifact)
        scene = scenes.load(given.folder)
        print(
            json.dumps(msgspec.to_builtins(judge(scene, given.folder, artifact, given.judge, given.threads)))
        )
    elif given.estimates:
        work_folder = (given.work or scenes.BUILD).resolve()
        made = estimates.table(work_folder, given.threads)
        publish("estimates", [made], msgspec.to_builtins(made), quick=False, out=given.out, unfit=fitness())
    else:
        benchmark(given)


def work(given: Namespace) -> Made:
    """One contender on one scene, in this process; ``artifact.json`` beside the artifact's files."""
    from edgekiln.compile.quantise.static import quiet
    from edgekiln.files import write_json

    shutil.rmtree(given.into, ignore_errors=True)
    given.into.mkdir(parents=True)
    order = Order(
        scene=scenes.load(given.folder),
        folder=given.folder.resolve(),
        into=given.into.resolve(),
        threads=given.threads,
        samples=given.samples,
        recipes=tuple(given.recipe),
        targets=tuple(given.target),
        bounded=given.worker != "ours-alone",
    )
    with quiet():
        started = time.perf_counter()
        artifact, note = CONTENDERS[given.worker].make(order)
        seconds = time.perf_counter() - started
    peak = process.own_memory_bytes("VmHWM")
    write_json(given.into / "artifact.json", artifact)
    return Made(artifact=artifact, note=note, seconds=seconds, peak_bytes=peak)


def benchmark(given: Namespace) -> None:
    """Run what was asked for, print all that there is, write ``out/quantisation.json``."""
    unfit = fitness()
    if given.quick:
        models: tuple[str, ...] = ("digits",)
        named: tuple[str, ...] = contenders.QUICK
        given.work = given.out / "cache" / "quantisation"
    else:
        models = chosen(given.models, scenes.PANEL, "model")
        named = chosen(given.contenders, tuple(CONTENDERS), "contender")
        given.work = given.work or scenes.BUILD
    quick: dict[str, Any] = {"timed_samples": 40} if given.quick else {}
    plan = Plan(
        work=given.work.resolve(),
        contenders=named,
        threads=given.threads,
        samples=given.samples,
        run_seconds=given.run_seconds,
        memory_bytes=round(given.memory_gb * 1e9),
        recipes=tuple(given.recipe) or (("fp32", "int8-static-mse") if given.quick else ()),
        targets=tuple(given.target) or (("onnxruntime",) if given.quick else ()),
        keep=given.keep,
        fresh=chosen(given.fresh, tuple(CONTENDERS), "contender") if given.fresh else (),
        **quick,
    )
    for model in () if given.report else models:
        if given.missing and course.read(model, plan.work) is not None:
            continue
        memory = MEMORY_SAMPLES if given.memory_test and model == MEMORY_OF else ()
        course.run(model, plan, memory)
    known = models if given.quick else scenes.PANEL
    found = [held for model in known if (held := course.read(model, plan.work)) is not None]
    if not found:
        sys.exit("there are no figures yet: run without --report")
    raw = [msgspec.to_builtins(one) for one in found]
    publish("quantisation", tables.every(found), raw, quick=given.quick, out=given.out, unfit=unfit)


def chosen(text: str | None, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names in ``text`` in the order of ``known``; exits with what there is for another name."""
    if text is None:
        return known
    asked = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := asked - set(known):
        sys.exit(f"unknown {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return tuple(name for name in known if name in asked)
