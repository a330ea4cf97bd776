"""Rows that the road writes itself: proofs with what is and is not measured, failures, what is told.

Here a figure gets its class: ``measured`` where this machine is the device and the engine its own, else
``emulated``; what nobody measured on the device is null with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekiln.choose import SQNR_FLOOR_DB, constraints
from edgekiln.devices import Device
from edgekiln.forecast.latency import predict
from edgekiln.intake import Intake
from edgekiln.job import Job
from edgekiln.model.workload import Workload
from edgekiln.prove.environment import fingerprint
from edgekiln.prove.judge import Judged
from edgekiln.prove.timing import Timing, TimingFailure, timing_evidence
from edgekiln.records import (
    Artifact,
    Budget,
    Choice,
    Dataset,
    Evidence,
    Failure,
    Proof,
    Record,
    Scalar,
)


@dataclass(frozen=True)
class Made:
    """An artifact on disk for one device, and what its outputs showed."""

    device: Device
    artifact: Artifact
    folder: Path
    judged: Judged
    golden_folder: Path


class Timings(Record, frozen=True, kw_only=True):
    """``unfit``: what the machine lacked when the build that timed began, before its own work loaded it."""

    timed: tuple[Timing, ...] = ()
    failed: tuple[TimingFailure, ...] = ()
    unfit: tuple[str, ...] = ()


def proofs_of(
    made: Sequence[Made], timings: Timings, where: dict[str, Scalar], work: Workload | None = None
) -> tuple[list[Proof], list[Failure]]:
    """A proof per artifact, its figures marked by how they came; what could not be timed is a failure.

    ``work`` are the float graph's layers, by which a latency is predicted where nobody measured one.
    """
    proofs, failures = [], []
    timed, failed = {t.id: t for t in timings.timed}, {t.id: t for t in timings.failed}
    for m in made:
        native = m.device.name == "host" and m.artifact.engine == m.artifact.proof_engine
        evidence = [e if native else _emulated(e, m) for e in m.judged.evidence]
        evidence.append(_size(m.artifact))
        latency: tuple[float, ...] = ()
        if native and (lost := failed.get(m.artifact.id)):
            failures.append(
                failure(m.device, m.artifact.target, m.artifact.recipe, "time", lost.reason, lost.cure)
            )
            continue
        if native and (timing := timed.get(m.artifact.id)):
            evidence += timing_evidence(timing, this_machine(), where)
            latency = timing.samples_ms
        else:
            evidence += _not_measured(m.device)
            if work is not None and (figure := foretold(work, m.device, m.artifact)) is not None:
                evidence = [_beside(figure, e) for e in evidence]
        proofs.append(
            Proof(device=m.device.name, artifact=m.artifact, evidence=tuple(evidence), latency_ms=latency)
        )
    return proofs, failures


def _emulated(e: Evidence, m: Made) -> Evidence:
    """The same arithmetic on this machine's engine, not the device itself."""
    if e.value is None:
        return e
    note = f"{m.artifact.engine} on {m.device.name}, emulated by {m.artifact.proof_engine} here"
    return msgspec.structs.replace(e, how="emulated", environment={**e.environment, "stands_for": note})


def _not_measured(device: Device) -> list[Evidence]:
    why = (
        f"nobody measured on a {device.name} in this build; "
        "run `edgekiln bench BUNDLE --on ssh://USER@HOST` with the device"
    )
    figures = (
        ("latency_p50_ms", "ms"),
        ("latency_p95_ms", "ms"),
        ("latency_p99_ms", "ms"),
        ("peak_memory_bytes", "bytes"),
    )
    return [Evidence(what=what, unit=unit, value=None, reason=why) for what, unit in figures]


def _beside(figure: Evidence, e: Evidence) -> Evidence:
    """``figure`` in its own place; where the percentiles are missing, what is predicted instead of them."""
    if e.what == figure.what:
        return figure
    if e.value is not None or not e.what.startswith("latency_") or figure.interval is None:
        return e
    low, high = figure.interval
    return msgspec.structs.replace(
        e, reason=f"{e.reason}; the median is predicted at {figure.value:.3g} ms ({low:.2g} to {high:.2g})"
    )


def foretold(work: Workload, device: Device, artifact: Artifact) -> Evidence | None:
    """The predicted median latency of ``artifact``; None where nothing published stands for it.

    A graph that is partly INT8 lies between the two wholes: their geometric middle, and both intervals.
    """
    recipe = artifact.recipe
    if recipe in ("fp32", "fp16", "bf16"):
        names: tuple[str, ...] = ("fp16",) if recipe == "bf16" else (recipe,)
    elif recipe.startswith("int8-dynamic") or not recipe.startswith("int8"):
        return None  # no table has runs of quantised weights alone
    else:
        names = ("int8", "fp16") if "mixed" in recipe else ("int8",)
    found = []
    for name in names:
        rows = predict(work, device, artifact.target, name)
        figure = rows[0].get("latency_p50_ms") if rows else None
        if figure is None or figure.value is None or figure.interval is None:
            return None
        found.append(figure)
    values = [f.value for f in found if f.value is not None]
    bounds = [b for f in found if f.interval is not None for b in f.interval]
    middle = math.exp(sum(math.log(v) for v in values) / len(values))
    return msgspec.structs.replace(found[0], value=middle, interval=(min(bounds), max(bounds)))


def _size(artifact: Artifact) -> Evidence:
    size = float(artifact.size_bytes)
    return Evidence(what="size_bytes", unit="bytes", value=size, how="measured", where="the artifact's files")


def failure(
    device: Device, target: str, recipe: str, stage: str, reason: str, cure: str = "", kind: str = "failed"
) -> Failure:
    """The row of an artifact that is not there."""
    return Failure(
        device=device.name,
        target=target,
        recipe=recipe,
        stage=stage,
        kind="skipped" if kind == "skipped" else "failed",
        reason=reason,
        cure=cure,
    )


def untried(device: Device, job: Job) -> Iterator[Failure]:
    """A row for each target that was asked for and that the device can't take."""
    wanted = job.search.targets
    for target in wanted or ():
        if target not in device.targets:
            why = f"{device.name} does not take it; it takes {', '.join(device.targets)}"
            cure = "Leave --target out, or name one that the device takes"
            yield failure(device, target, "*", "target", why, cure, kind="skipped")


def explained(choice: Choice, failures: Sequence[Failure]) -> Choice:
    """Where nothing could be made for a device, the reasons stand in its choice."""
    reasons = [f"{f.target} {f.recipe}: {f.reason}" for f in failures if f.device == choice.device]
    if choice.artifact_id is not None or choice.losers or not reasons:
        return choice
    said = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return msgspec.structs.replace(choice, basis=f"{choice.basis}; {said}")


def floor_warning(budget: Budget, proofs: Sequence[Proof]) -> list[str]:
    """The rule that stands in where neither labels nor classes tell a good artifact from a bad one."""
    names = {c.key for c in constraints(budget, proofs)}
    if budget.sqnr_db is not None or "sqnr_db" not in names:
        return []
    return [
        f"no labels and no classes to judge by: an artifact needs {SQNR_FLOOR_DB:g} dB of signal to "
        "quantisation noise against the float model; --sqnr-db sets another bound"
    ]


def told(data: Dataset | None, job: Job) -> Dataset | None:
    """``data`` named relative to the job, else by its folder's own name: no path of this machine."""
    if data is None:
        return None
    root, base = Path(data.root).resolve(), Path(job.base).resolve()
    told = root.relative_to(base).as_posix() if root.is_relative_to(base) else root.name
    return msgspec.structs.replace(data, root=told)


def provenance(intake: Intake) -> dict[str, Scalar]:
    """What a bundle says of its model's origin: kind, hashes of the source files, exporter."""
    source = intake.model.source
    found: dict[str, Scalar] = {"source_kind": source.kind, "model_sha256": intake.model.sha256}
    found |= {f"source_sha256:{Path(f.path).name}": f.sha256 for f in source.files}
    if source.exporter:
        found["exporter"] = source.exporter
    return found


def this_machine() -> str:
    """This machine in a few words: what stands beside every figure it gave."""
    found = fingerprint()
    return f"{found.get('cpu_model', 'unknown CPU')} ({found['cpus_usable']} CPUs)"
