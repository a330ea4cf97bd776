"""The whole road on one page: take in, optimise, make, prove, time, choose, bundle, report.

Each station is a plain function from record to record; this page is the only one that knows them all.
Every finished step is kept in the cache by the hash of what went in, so a second build redoes nothing
and a killed one goes on. One artifact that fails is a row in the report, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekiln import __version__
from edgekiln.bundle import SUFFIX
from edgekiln.bundle.pack import pack
from edgekiln.cache import default_root, step
from edgekiln.choose import SQNR_FLOOR_DB, choose, constraints
from edgekiln.compile.graph import optimise
from edgekiln.compile.make import Calibration, Workshop, make, matmul_share, plan
from edgekiln.compile.targets import PLANNED, TARGETS
from edgekiln.devices import Device, load
from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import BadInput, EdgekilnError, MachineFault, did_you_mean
from edgekiln.files import disk_errors, sha256_file, write_bytes, write_json
from edgekiln.intake import Intake, dataset_key, is_tensor, samples, take_in
from edgekiln.job import Job
from edgekiln.model.preprocess import COMMON, apply, normalised, open_image
from edgekiln.progress import Progress, Silent
from edgekiln.prove.environment import fingerprint, fitness, version_of
from edgekiln.prove.judge import Judged, Reference, judge, reference, sample_warning, score_of
from edgekiln.prove.normalisation import better_normalisation
from edgekiln.prove.timing import Contender, Timing, TimingFailure, measure, timing_evidence
from edgekiln.records import (
    Artifact,
    Budget,
    Build,
    Choice,
    Dataset,
    Decision,
    Evidence,
    Failure,
    PassReport,
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


class _Passes(Record, frozen=True, kw_only=True):
    passes: tuple[PassReport, ...]


class _Timings(Record, frozen=True, kw_only=True):
    """``unfit``: what the machine lacked when the build that timed began, before its own work loaded it."""

    timed: tuple[Timing, ...] = ()
    failed: tuple[TimingFailure, ...] = ()
    unfit: tuple[str, ...] = ()


def build(job: Job, progress: Progress | None = None, cache: Path | None = None) -> Build:
    """Run ``job`` and write report.html, decision.json, evidence.json and bundles/ below its out folder.

    Raises BadInput for what the user can mend, MachineFault for a full disk. Where no artifact meets
    the budget, everything is written all the same and ``decision.met`` is False.
    """
    say, store, out = progress or Silent(), cache or default_root(), job.path(job.out)
    devices = tuple(load(name) for name in dict.fromkeys(job.devices))
    _check_search(job)
    where = fingerprint()
    threads = job.search.threads or min(int(where["cpus_usable"]), 4)
    unfit = fitness()  # before our own work loads the machine
    say.expect(4)
    with say.step("read the model and the data"):
        intake = take_in(job, store)
    with say.step("optimise the graph"):
        graph, passes = _optimised(intake, store)
    # The graph's own hash: one model at two input sizes gives two graphs.
    shop = Workshop(graph, sha256_file(graph), _calibration(intake), store, threads)
    with say.step("run the float model over the data"):
        against = _reference(intake, threads)
        warnings = [*intake.warnings, *_normalisation_warning(intake, threads)]
    made, failures = _make_and_prove(job, devices, shop, against, intake, say)
    with say.step("time what runs on this machine"):
        timings = _timed(made, intake, threads, job.search.samples, store, unfit)
    warnings = [*(f"this machine: {sentence}" for sentence in timings.unfit), *warnings]
    proofs, more = _proofs(made, timings, where)
    too_few = sample_warning((m.judged for m in made), against, job.budget.max_drop)
    warnings += [too_few] if too_few else []
    budget = job.budget.budget()
    failures += more
    choices = tuple(
        _explained(choose(d.name, [p for p in proofs if p.device == d.name], budget, d.targets), failures)
        for d in devices
    )
    warnings += _floor_warning(budget, proofs)
    choices = _bundles(choices, made, proofs, intake, out)
    result = Build(
        edgekiln=__version__,
        model=intake.model,
        graph_passes=passes,
        calibration=_told(intake.calibration, job),
        evaluation=_told(intake.evaluation, job),
        holdout=_told(intake.holdout, job),
        proofs=tuple(proofs),
        failures=tuple(failures),
        warnings=tuple(warnings),
        environment=where,
        decision=Decision(model=intake.model.name, budget=budget, choices=choices),
    )
    _write(result, out)
    return result


# ---------------------------------------------------------------- stations


def _optimised(intake: Intake, store: Path) -> tuple[Path, tuple[PassReport, ...]]:
    shapes = {i.name: tuple(int(n) for n in i.shape) for i in intake.model.signature.inputs}
    probe = next(iter(samples(intake, intake.holdout)))

    def produce(into: Path) -> _Passes:
        return _Passes(passes=optimise(intake.graph, shapes, probe, into / "graph.onnx"))

    tools = [version_of(name) for name in ("onnx", "onnxruntime", "onnxslim", "onnxsim")]
    key = [intake.model.sha256, shapes, dataset_key(intake.holdout, intake.model), tools]
    folder, found, _ = step(store, "graph", key, _Passes, produce)
    return folder / "graph.onnx", found.passes


def _calibration(intake: Intake) -> Calibration | None:
    data = intake.calibration
    if data is None:
        return None
    return Calibration(lambda: samples(intake, data), len(data.samples), dataset_key(data, intake.model))


def _reference(intake: Intake, threads: int) -> Reference:
    """The float model as it came in, before any pass: what every artifact is held against."""
    runner = _float_runner(intake, threads)
    data = intake.evaluation
    return reference(
        intake.model.task,
        runner,
        lambda start: _from(samples(intake, intake.holdout), start),
        None if data is None else lambda start: _from(samples(intake, data), start),
        () if data is None else (s.label for s in data.samples if s.label is not None),
    )


def _normalisation_warning(intake: Intake, threads: int) -> list[str]:
    """Labels may say that another common normalisation fits the float model better."""
    own, data = intake.model.preprocess, intake.evaluation
    if own is not None and data is not None:
        pictures = [s for s in data.samples if not is_tensor(s)]  # tensors come normalised
        data = msgspec.structs.replace(data, samples=tuple(pictures))
        runner, name = _float_runner(intake, threads), intake.model.signature.inputs[0].name
        others = [(n, normalised(own, n)) for n in COMMON if own.dtype == "float32"]
        sentence = better_normalisation(
            intake.model,
            data,
            others,
            lambda sample, p: score_of(runner({name: apply(p, open_image(Path(data.root) / sample.path))})),
        )
        return [sentence] if sentence else []
    return []


def _make_and_prove(
    job: Job,
    devices: Sequence[Device],
    shop: Workshop,
    against: Reference,
    intake: Intake,
    say: Progress,
) -> tuple[list[Made], list[Failure]]:
    made: list[Made] = []
    failures = [f for d in devices for f in _planned(d, job)]
    share = matmul_share(shop.graph)
    rows = [
        (device, target, name, skip)
        for device in devices
        for target in _targets(device, job)
        for name, skip in plan(device, target, job.search.recipes, share)
    ]
    say.expect(2 * sum(not skip for *_, skip in rows))
    for device, target, name, skip in rows:
        if skip:
            failures.append(_failure(device, target, name, "recipe", skip, kind="skipped"))
            continue
        stage = "make"
        try:
            with say.step(f"make  {device.name} · {target} · {name}"):
                folder, artifact = make(shop, device, target, name)
            stage = "prove"
            with say.step(f"prove {device.name} · {target} · {name}"):
                made.append(_proved(device, artifact, folder, against, intake, shop))
        except (MachineFault, MemoryError):
            raise
        except EdgekilnError as error:
            failures.append(_failure(device, target, name, stage, error.why, error.cure))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:500]
            cure = "This is a fault of edgekiln or of a converter: please report it with the model"
            failures.append(_failure(device, target, name, stage, why, cure))
    return made, failures


def _proved(
    device: Device, artifact: Artifact, folder: Path, against: Reference, intake: Intake, shop: Workshop
) -> Made:
    def produce(into: Path) -> Judged:
        return judge(artifact, folder, against, shop.threads, _where(), into)

    data = [dataset_key(d, intake.model) for d in (intake.holdout, intake.evaluation)]
    labels = [against.labels, intake.model.task]
    # Not the id: one artifact for two devices is judged once.
    how = [artifact.engine, artifact.proof_engine, artifact.options, artifact.precisions]
    key = [artifact.files, how, *data, labels, fingerprint()]
    golden, judged, _ = step(shop.cache, "judge", [key, intake.model.sha256, shop.threads], Judged, produce)
    return Made(device, artifact, folder, judged, golden)


def _timed(
    made: Sequence[Made], intake: Intake, threads: int, count: int, store: Path, unfit: tuple[str, ...]
) -> _Timings:
    """All artifacts of this machine in one alternated run, each in a fresh process."""
    here = [m for m in made if m.device.name == "host" and m.artifact.engine == m.artifact.proof_engine]
    if not here:
        return _Timings()
    contenders = tuple(
        Contender(id=m.artifact.id, folder=str(m.folder), artifact=m.artifact, engine=m.artifact.engine)
        for m in here
    )
    sample = next(iter(samples(intake, intake.holdout)))
    seconds = 4.0 * len(contenders)

    def produce(into: Path) -> _Timings:
        found = measure(contenders, sample, threads, min_samples=count, max_seconds=seconds)
        return _Timings(
            timed=tuple(t for t in found if isinstance(t, Timing)),
            failed=tuple(t for t in found if isinstance(t, TimingFailure)),
            unfit=unfit,
        )

    key = [[m.artifact.id, m.artifact.files, m.artifact.options] for m in here]
    machine = fingerprint()
    _, found, _ = step(store, "timing", [key, threads, count, machine], _Timings, produce)
    return found


def _proofs(
    made: Sequence[Made], timings: _Timings, where: dict[str, Scalar]
) -> tuple[list[Proof], list[Failure]]:
    proofs, failures = [], []
    timed, failed = {t.id: t for t in timings.timed}, {t.id: t for t in timings.failed}
    for m in made:
        native = m.device.name == "host" and m.artifact.engine == m.artifact.proof_engine
        evidence = [e if native else _emulated(e, m) for e in m.judged.evidence]
        evidence.append(_size(m.artifact))
        latency: tuple[float, ...] = ()
        if native and (lost := failed.get(m.artifact.id)):
            failures.append(
                _failure(m.device, m.artifact.target, m.artifact.recipe, "time", lost.reason, lost.cure)
            )
            continue
        if native and (timing := timed.get(m.artifact.id)):
            evidence += timing_evidence(timing, _where(), where)
            latency = timing.samples_ms
        else:
            evidence += _not_measured(m.device)
        proofs.append(
            Proof(device=m.device.name, artifact=m.artifact, evidence=tuple(evidence), latency_ms=latency)
        )
    return proofs, failures


def _bundles(
    choices: Sequence[Choice], made: Sequence[Made], proofs: Sequence[Proof], intake: Intake, out: Path
) -> tuple[Choice, ...]:
    """Pack what was chosen; a bundle of an earlier build for a device without a choice goes."""
    done = []
    for choice in choices:
        relative = f"bundles/{choice.device}{SUFFIX}"
        if choice.artifact_id is None:
            with disk_errors("removing the stale bundle", out / relative):
                (out / relative).unlink(missing_ok=True)
            done.append(choice)
            continue
        m = next(m for m in made if (m.device.name, m.artifact.id) == (choice.device, choice.artifact_id))
        proof = next(p for p in proofs if (p.device, p.artifact.id) == (choice.device, choice.artifact_id))
        final = msgspec.structs.replace(choice, bundle=relative)
        pack(
            out / relative,
            version=__version__,
            model=intake.model,
            proof=proof,
            choice=final,
            artifact_folder=m.folder,
            golden=m.judged.golden,
            golden_folder=m.golden_folder,
            provenance=_provenance(intake),
        )
        done.append(final)
    return tuple(done)


def _write(result: Build, out: Path) -> None:
    from edgekiln.report.html import render

    write_json(out / "evidence.json", result)
    write_json(out / "decision.json", result.decision)
    write_bytes(out / result.decision.report, render(result).encode())


# ---------------------------------------------------------------- rows


def _floor_warning(budget: Budget, proofs: Sequence[Proof]) -> list[str]:
    """The rule that stands in where neither labels nor classes tell a good artifact from a bad one."""
    names = {c.key for c in constraints(budget, proofs)}
    if budget.sqnr_db is not None or "sqnr_db" not in names:
        return []
    return [
        f"no labels and no classes to judge by: an artifact needs {SQNR_FLOOR_DB:g} dB of signal to "
        "quantisation noise against the float model; --sqnr-db sets another bound"
    ]


def _explained(choice: Choice, failures: Sequence[Failure]) -> Choice:
    """Where nothing could be made for a device, the reasons stand in its choice."""
    reasons = [f"{f.target} {f.recipe}: {f.reason}" for f in failures if f.device == choice.device]
    if choice.artifact_id is not None or choice.losers or not reasons:
        return choice
    said = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return msgspec.structs.replace(choice, basis=f"{choice.basis}; {said}")


def _check_search(job: Job) -> None:
    from edgekiln.compile.recipes import recipe

    for name in job.search.recipes or ():
        recipe(name)
    for name in job.search.targets or ():
        if name not in TARGETS:
            why = "it is planned, and not there yet" if name in PLANNED else "no target has this name"
            raise BadInput("choosing the target", name, why, did_you_mean(name, TARGETS))


def _targets(device: Device, job: Job) -> list[str]:
    wanted = job.search.targets
    return [t for t in device.targets if t in TARGETS and (wanted is None or t in wanted)]


def _planned(device: Device, job: Job) -> Iterator[Failure]:
    for target in device.targets:
        if target not in TARGETS and (job.search.targets is None or target in job.search.targets):
            yield _failure(
                device,
                target,
                "*",
                "target",
                f"{device.name} would take it, but edgekiln can't make {target} artifacts yet",
                "See the list of what is not there yet in the README",
                kind="skipped",
            )


def _failure(
    device: Device, target: str, recipe: str, stage: str, reason: str, cure: str = "", kind: str = "failed"
) -> Failure:
    return Failure(
        device=device.name,
        target=target,
        recipe=recipe,
        stage=stage,
        kind="skipped" if kind == "skipped" else "failed",
        reason=reason,
        cure=cure,
    )


def _emulated(e: Evidence, m: Made) -> Evidence:
    """The same arithmetic on this machine's engine, not the device itself."""
    if e.value is None:
        return e
    note = f"{m.artifact.engine} on {m.device.name}, emulated by {m.artifact.proof_engine} here"
    return msgspec.structs.replace(e, how="emulated", environment={**e.environment, "stands_for": note})


def _not_measured(device: Device) -> list[Evidence]:
    why = (
        f"nobody measured on a {device.name} in this build; run `edgekiln bench BUNDLE` on the device itself"
    )
    figures = (
        ("latency_p50_ms", "ms"),
        ("latency_p95_ms", "ms"),
        ("latency_p99_ms", "ms"),
        ("peak_memory_bytes", "bytes"),
    )
    return [Evidence(what=what, unit=unit, value=None, reason=why) for what, unit in figures]


def _size(artifact: Artifact) -> Evidence:
    size = float(artifact.size_bytes)
    return Evidence(what="size_bytes", unit="bytes", value=size, how="measured", where="the artifact's files")


def _provenance(intake: Intake) -> dict[str, Scalar]:
    source = intake.model.source
    found: dict[str, Scalar] = {"source_kind": source.kind, "model_sha256": intake.model.sha256}
    found |= {f"source_sha256:{Path(f.path).name}": f.sha256 for f in source.files}
    if source.exporter:
        found["exporter"] = source.exporter
    return found


def _told(data: Dataset | None, job: Job) -> Dataset | None:
    """``data`` named relative to the job, else by its folder's own name: no path of this machine."""
    if data is None:
        return None
    root, base = Path(data.root).resolve(), Path(job.base).resolve()
    told = root.relative_to(base).as_posix() if root.is_relative_to(base) else root.name
    return msgspec.structs.replace(data, root=told)


def _float_runner(intake: Intake, threads: int) -> Runner:
    plain = float_artifact(intake.model.path, "float")
    return open_engine("onnxruntime", plain, intake.folder, threads)


def _from(stream: Iterator[Arrays], start: int) -> Iterator[Arrays]:
    for number, sample in enumerate(stream):
        if number >= start:
            yield sample


def _where() -> str:
    """This machine in a few words: what stands beside every figure it gave."""
    found = fingerprint()
    return f"{found.get('cpu_model', 'unknown CPU')} ({found['cpus_usable']} CPUs)"
