"""The whole road on one page: take in, optimise, make, prove, time, choose, bundle, report.

Each station is a plain function from record to record; this page is the only one that knows them all.
Every finished step is kept in the cache by the hash of what went in, so a second build redoes nothing
and a killed one goes on. One artifact that fails is a row in the report, and the others go on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekiln import __version__
from edgekiln.baseline import float_reference, normalisation_warning
from edgekiln.bundle import SUFFIX
from edgekiln.bundle import app as app_code
from edgekiln.bundle.pack import pack
from edgekiln.cache import default_root, step
from edgekiln.choose import choose
from edgekiln.compile.graph import optimise
from edgekiln.compile.make import Calibration, Workshop, make, matmul_share, plan
from edgekiln.compile.targets import TARGETS
from edgekiln.devices import Device, load
from edgekiln.errors import BadInput, EdgekilnError, MachineFault, did_you_mean
from edgekiln.files import check_space, disk_errors, sha256_file, write_bytes, write_json
from edgekiln.intake import Intake, dataset_key, samples, take_in
from edgekiln.job import Job
from edgekiln.progress import Progress, Silent
from edgekiln.prove.environment import fingerprint, fitness, version_of
from edgekiln.prove.judge import Judged, Reference, judge, sample_warning
from edgekiln.prove.timing import Contender, Timing, TimingFailure, measure
from edgekiln.records import (
    Artifact,
    Build,
    Choice,
    Decision,
    Failure,
    PassReport,
    Proof,
    Record,
)
from edgekiln.rows import (
    Made,
    Timings,
    explained,
    failure,
    floor_warning,
    proofs_of,
    provenance,
    this_machine,
    told,
    untried,
)


class _Passes(Record, frozen=True, kw_only=True):
    passes: tuple[PassReport, ...]


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
    shop = Workshop(graph, sha256_file(graph), _calibration(intake), store, threads, intake.model)
    with say.step("run the float model over the data"):
        against = float_reference(intake, threads)
        warnings = [*intake.warnings, *normalisation_warning(intake, threads, store)]
    made, failures = _make_and_prove(job, devices, shop, against, intake, say)
    with say.step("time what runs on this machine"):
        timings = _timed(made, intake, threads, job.search.samples, store, unfit)
    warnings = [*(f"this machine: {sentence}" for sentence in timings.unfit), *warnings]
    proofs, more = proofs_of(made, timings, where)
    too_few = sample_warning((m.judged for m in made), against, job.budget.max_drop)
    warnings += [too_few] if too_few else []
    budget = job.budget.budget()
    failures += more
    choices = tuple(
        explained(choose(d.name, [p for p in proofs if p.device == d.name], budget, d.targets), failures)
        for d in devices
    )
    warnings += floor_warning(budget, proofs)
    choices = _bundles(choices, made, proofs, intake, out)
    result = Build(
        edgekiln=__version__,
        model=intake.model,
        graph_passes=passes,
        calibration=told(intake.calibration, job),
        evaluation=told(intake.evaluation, job),
        holdout=told(intake.holdout, job),
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


def _make_and_prove(
    job: Job,
    devices: Sequence[Device],
    shop: Workshop,
    against: Reference,
    intake: Intake,
    say: Progress,
) -> tuple[list[Made], list[Failure]]:
    made: list[Made] = []
    failures = [f for d in devices for f in untried(d, job)]
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
            failures.append(failure(device, target, name, "recipe", skip, kind="skipped"))
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
            check_space(shop.cache, Path(tempfile.gettempdir()))
            failures.append(failure(device, target, name, stage, error.why, error.cure))
        except Exception as error:
            check_space(shop.cache, Path(tempfile.gettempdir()))
            why = f"{type(error).__name__}: {error}"[:500]
            cure = "This is a fault of edgekiln or of a converter: please report it with the model"
            failures.append(failure(device, target, name, stage, why, cure))
    return made, failures


def _proved(
    device: Device, artifact: Artifact, folder: Path, against: Reference, intake: Intake, shop: Workshop
) -> Made:
    def produce(into: Path) -> Judged:
        return judge(artifact, folder, against, shop.threads, this_machine(), into)

    data = [dataset_key(d, intake.model) for d in (intake.holdout, intake.evaluation)]
    labels = [against.labels, intake.model.task]
    # Not the id: one artifact for two devices is judged once.
    how = [artifact.engine, artifact.proof_engine, artifact.options, artifact.precisions]
    key = [artifact.files, how, *data, labels, fingerprint()]
    golden, judged, _ = step(shop.cache, "judge", [key, intake.model.sha256, shop.threads], Judged, produce)
    return Made(device, artifact, folder, judged, golden)


def _timed(
    made: Sequence[Made], intake: Intake, threads: int, count: int, store: Path, unfit: tuple[str, ...]
) -> Timings:
    """All artifacts of this machine in one alternated run, each in a fresh process."""
    here = [m for m in made if m.device.name == "host" and m.artifact.engine == m.artifact.proof_engine]
    if not here:
        return Timings()
    contenders = tuple(
        Contender(id=m.artifact.id, folder=str(m.folder), artifact=m.artifact, engine=m.artifact.engine)
        for m in here
    )
    sample = next(iter(samples(intake, intake.holdout)))
    seconds = 4.0 * len(contenders)

    def produce(into: Path) -> Timings:
        found = measure(contenders, sample, threads, min_samples=count, max_seconds=seconds)
        return Timings(
            timed=tuple(t for t in found if isinstance(t, Timing)),
            failed=tuple(t for t in found if isinstance(t, TimingFailure)),
            unfit=unfit,
        )

    key = [[m.artifact.id, m.artifact.files, m.artifact.options] for m in here]
    machine = fingerprint()
    _, found, _ = step(store, "timing", [key, threads, count, machine], Timings, produce)
    return found


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
            provenance=provenance(intake),
            app=app_code.files(app_code.App(m.device, intake.model, proof.artifact, m.judged.golden)),
        )
        done.append(final)
    return tuple(done)


def _write(result: Build, out: Path) -> None:
    from edgekiln.report.html import render

    write_json(out / "evidence.json", result)
    write_json(out / "decision.json", result.decision)
    write_bytes(out / result.decision.report, render(result).encode())


# ---------------------------------------------------------------- rows


def _check_search(job: Job) -> None:
    from edgekiln.compile.recipes import recipe

    for name in job.search.recipes or ():
        recipe(name)
    for name in job.search.targets or ():
        if name not in TARGETS:
            why = "no target has this name"
            raise BadInput("choosing the target", name, why, did_you_mean(name, TARGETS))


def _targets(device: Device, job: Job) -> list[str]:
    wanted = job.search.targets
    return [t for t in device.targets if t in TARGETS and (wanted is None or t in wanted)]
