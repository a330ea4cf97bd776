"""edgekiln as a contender: ``edgekiln build`` from an empty cache; what it chose is its artifact."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.bundle.unpack import opened
from edgekiln.compile.graph import optimise
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.errors import EdgekilnError
from edgekiln.files import sha256_file, write_bytes
from edgekiln.intake import take_in
from edgekiln.job import Job, ModelOrder
from edgekiln.records import Artifact, Build, Decision, Task
from measuring.process import ROOT, environment
from quantisation.boxes import LEAST_SCORE
from quantisation.contenders import Order
from quantisation.judging import MAP_THRESHOLD

MAX_DROP = 0.01


@dataclass(frozen=True)
class Asked:
    """How a job says the task of a scene, and at most 1 % of loss by the scene's own judgement."""

    task: Task
    budget: dict[str, Any]
    metric: dict[str, Any] = field(default_factory=dict)


_DROP = {"max_drop": MAX_DROP}
ASKED = {
    # Labels are few: what keeps them may still change one decision in ten. 0.97 left Lite1 nothing but
    # float32, so it was lowered after looking at Lite0 and Lite1; Lite2 was not looked at.
    "classes": Asked("classification", {**_DROP, "agreement": 0.95}),
    "boxes": Asked("detection", _DROP, {"decoder": "nanodet", "bins": 11, "agreement_score": LEAST_SCORE}),
    "map": Asked("segmentation", _DROP, {"classes": 2, "threshold": MAP_THRESHOLD}),
    # A mean cosine of 0.99 is an error of 2 % of the energy, and 1 % of the energy is 20 dB.
    "embedding": Asked("tensors", {"sqnr_db": 17.0}),
    "values": Asked("tensors", {"sqnr_db": 20.0}),
}


def build(order: Order) -> tuple[Artifact, str]:
    """Run the command, and unpack what it chose. Raises EdgekilnError with its last words."""
    work = order.into.parent / f"{order.into.name}.build"
    shutil.rmtree(work, ignore_errors=True)
    job = work / "job.toml"
    write_bytes(job, job_text(order, work).encode())
    command = [sys.executable, "-m", "edgekiln", "build", str(job), "--quiet", "--cache", str(work / "cache")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    try:
        return _chosen(order, work, done)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _chosen(order: Order, work: Path, done: subprocess.CompletedProcess[str]) -> tuple[Artifact, str]:
    bundle = work / "out" / "bundles" / "host.edgekiln"
    found = next(iter(sorted((work / "out" / "bundles").glob("*"))), bundle)
    if not found.is_file():
        why = done.stderr.strip()[-400:] or _why_nothing(work) or f"exit code {done.returncode}, no bundle"
        raise EdgekilnError("building with", "edgekiln", why, "See its output")
    with opened(found) as unpacked:
        artifact = unpacked.manifest.artifact
        choice = unpacked.manifest.choice
        for path in sorted(unpacked.model_folder.rglob("*")):
            if path.is_file():
                write_bytes(order.into / path.relative_to(unpacked.model_folder), path.read_bytes())
    made = msgspec.json.decode((work / "out" / "evidence.json").read_bytes(), type=Build)
    tried = f"{len(made.proofs)} artifacts proved, {len(made.failures)} not made"
    return artifact, f"{artifact.target} {artifact.recipe}, {choice.status}; {tried}"


def _why_nothing(work: Path) -> str:
    """What the decision says of each artifact that was not chosen; empty where there is no decision."""
    path = work / "out" / "decision.json"
    if not path.is_file():
        return ""
    (choice,) = msgspec.json.decode(path.read_bytes(), type=Decision).choices
    return "nothing was chosen: " + "; ".join(f"{one.artifact_id}: {one.why}" for one in choice.losers)[:400]


def job_text(order: Order, work: Path) -> str:
    """The job as TOML: the scene's graph and samples, this machine, the bound, and what was asked for."""
    asked = ASKED[order.scene.judge]
    search: dict[str, Any] = {"threads": order.threads}
    if order.recipes:
        search["recipes"] = list(order.recipes)
    if order.targets:
        search["targets"] = list(order.targets)
    top: dict[str, Any] = {
        "name": order.scene.name,
        "devices": ["host"],
        "data": str(_calibration(order, work)),
        "holdout": str(_holdout(order, work)),
        "out": str(work / "out"),
    }
    if asked.task == "classification":  # else a search would hold its bound on sixteen samples
        top["validation"] = top["holdout"]
    if (order.folder / "validation.csv").is_file():
        top["eval"] = str((order.folder / "validation.csv").resolve())
    model = {"source": str(order.graph.resolve()), "task": asked.task}
    budget = asked.budget if order.bounded else {}
    tables = (("model", model), ("metric", asked.metric), ("budget", budget), ("search", search))
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables:
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _holdout(order: Order, work: Path) -> Path:
    """All that a contender may judge by: the validation samples, and the labelled photographs where there are
    some. Half of the evaluation samples have labels too, and their calls are clearer than the others'.
    """
    parts = [order.folder / "validation", order.folder / "validation-labelled"]
    if not parts[1].is_dir():
        return parts[0].resolve()
    whole = work / "holdout"
    whole.mkdir(parents=True)
    for part in parts:
        for path in sorted(part.glob("*.npz")):
            (whole / f"{part.name}-{path.name}").hardlink_to(path)
    return whole


def _calibration(order: Order, work: Path) -> Path:
    """The scene's own folder, or links to as many of its samples as were asked for."""
    whole = (order.folder / "calibration").resolve()
    paths = sorted(whole.glob("*.npz"))
    if order.samples >= len(paths):
        return whole
    few = work / "calibration"
    few.mkdir(parents=True)
    for path in paths[: order.samples]:
        (few / path.name).hardlink_to(path)
    return few


def workshop(order: Order) -> Workshop:
    """The optimised graph and its samples, for a target that is called by itself."""
    cache = order.into.parent / f"{order.into.name}.cache"
    task: Task = "classification" if order.scene.judge == "classes" else "tensors"
    source = ModelOrder(source=str(order.graph), task=task)
    intake = take_in(Job(model=source, data=str(order.folder / "calibration")), cache)
    shapes = {i.name: tuple(int(n) for n in i.shape) for i in intake.model.signature.inputs}
    optimise(intake.graph, shapes, next(order.calibration()), cache / "graph.onnx")
    graph = cache / "graph.onnx"
    key = sha256_file(order.folder / "scene.json")
    held = Calibration(order.calibration, min(order.samples, order.scene.calibration), key)
    return Workshop(graph, sha256_file(graph), held, cache, order.threads, intake.model)


__all__ = ["build", "job_text", "workshop"]
