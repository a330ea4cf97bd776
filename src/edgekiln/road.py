"""The whole road on one page: take in, optimise, make, prove, time, choose, bundle, report.

Each station is a plain function from record to record; this page is the only one that knows them all.
Every finished step is kept in the cache by the hash of what went in, so a second build redoes nothing
and a killed one goes on. One artifact that fails is a row in the report, and the others go on.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgekiln import __version__
from edgekiln.alternates import alternates
from edgekiln.baseline import float_reference, normalisation_warning
from edgekiln.bundle import SUFFIX
from edgekiln.bundle import app as app_code
from edgekiln.bundle.pack import pack
from edgekiln.cache import default_root, step
from edgekiln.calibrated import Given, calibration, check_file, given, told_and_kept, validation
from edgekiln.choose import choose
from edgekiln.compile.graph import optimise
from edgekiln.compile.isolate import Converters, Limits
from edgekiln.compile.make import make, matmul_share, plan, searched_drop
from edgekiln.compile.sizes import Workshops, make_sizes
from edgekiln.compile.targets import TARGETS, Target
from edgekiln.compile.workshop import Workshop
from edgekiln.devices import HOST, Device, load
from edgekiln.errors import BadInput, EdgekilnError, MachineFault, did_you_mean
from edgekiln.files import check_space, disk_errors, sha256_file, write_bytes, write_json
from edgekiln.finetuning import training
from edgekiln.intake import Intake, dataset_key, samples, take_in
from edgekiln.job import Job, Size, size_text
from edgekiln.model.signature import image_layout
from edgekiln.model.workload import workload
from edgekiln.progress import Progress, Silent
from edgekiln.prove.environment import fingerprint, fitness, version_of
from edgekiln.prove.judge import KEPT_BYTES, Bound, Judged, Reference, judge, judge_at, sample_warning
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
from edgekiln.tuned import tuned


class _Passes(Record, frozen=True, kw_only=True):
    passes: tuple[PassReport, ...]


@dataclass(frozen=True)
class _Work:
    """What every artifact of a build is made from and held against: at the base size, and at the others."""

    intake: Intake
    shop: Workshop
    against: Reference
    targets: Mapping[str, Target]
    converters: Converters
    several: Workshops | None = None
    others: tuple[tuple[Size, Reference], ...] = ()


def build(
    job: Job,
    progress: Progress | None = None,
    cache: Path | None = None,
    targets: Mapping[str, Target] = TARGETS,
) -> Build:
    """Run ``job`` and write report.html, decision.json, evidence.json and bundles/ below its out folder.

    ``targets`` is the table of those that are tried. Raises BadInput for what the user can mend,
    MachineFault for a full disk. Where no artifact meets the budget, everything is written all the same and
    ``decision.met`` is False.
    """
    # Converters have a working folder of their own: a path relative to ours is nothing to them.
    say, store, out = progress or Silent(), (cache or default_root()).resolve(), job.path(job.out)
    devices = tuple(load(name) for name in dict.fromkeys(job.devices))
    _check_search(job, targets)
    where = fingerprint()
    threads = job.search.threads or min(int(where["cpus_usable"]), 4)
    unfit = fitness()  # before our own work loads the machine
    say.expect(5 if job.search.tune_seconds else 4)
    with say.step("read the model and the data"):
        intake, order = take_in(job, store), given(job)
    with say.step("optimise the graph"):
        shop, passes = _shop(intake, store, threads, order)
        shop = replace(shop, training=training(job, intake.model))
        several, passes = _several(intake, store, threads, order) if intake.sizes else (None, passes)
        check_file(order, shop if several is None else several.flexible)
    with say.step("run the float model over the data"):
        against, others = _references(intake, threads)
        warnings = [*intake.warnings, *normalisation_warning(intake, threads, store)]
    with Converters(_limits(job), threads) as converters:
        work = _Work(intake, shop, against, targets, converters, several, others)
        made, failures = _make_and_prove(job, devices, work, say)
    with say.step("time what runs on this machine"):
        timings = _timed(made, intake, threads, job.search.samples, store, unfit)
    with say.step("tune the fastest on this machine") if job.search.tune_seconds else nullcontext():
        sample = next(iter(samples(intake, intake.holdout)))
        seconds, bounds = job.search.tune_seconds, job.budget.budget()
        made, tuning = tuned(made, timings, bounds, sample, threads, seconds, store)
        if any(t.taken for t in tuning):  # the options ship with the figures that they give
            timings = _timed(made, intake, threads, job.search.samples, store, unfit)
    warnings = [*(f"this machine: {sentence}" for sentence in timings.unfit), *warnings]
    base = shop if several is None else several.flexible
    checks = told_and_kept(intake, base, (m.artifact for m in made), threads, out)
    warnings += [c.detail for c in checks if c.passed is False]
    elsewhere = any(m.device.name != HOST for m in made)
    proofs, more = proofs_of(
        made, timings, where, workload(base.graph, _static(intake)) if elsewhere else None
    )
    too_few = sample_warning((m.judged for m in made), against, job.budget.max_drop)
    warnings += [too_few] if too_few else []
    budget = job.budget.budget()
    failures += more
    choices = tuple(
        explained(choose(d.name, [p for p in proofs if p.device == d.name], budget, d.targets), failures)
        for d in devices
    )
    warnings += floor_warning(budget, proofs)
    choices = _bundles(choices, made, proofs, intake, job, out)
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
        calibration_checks=checks,
        decision=Decision(model=intake.model.name, budget=budget, choices=choices),
        tuning=tuning,
        validation=told(intake.validation, job),
    )
    _write(result, out)
    return result


# ---------------------------------------------------------------- stations


def _shop(intake: Intake, store: Path, threads: int, order: Given) -> tuple[Workshop, tuple[PassReport, ...]]:
    """The workshop of one size: a static graph. Its name is its own hash: two sizes are two graphs."""
    shapes = {i.name: tuple(i.shape) for i in intake.model.signature.inputs}
    graph, passes = _optimised(intake, store, shapes, (intake,))
    data, held_on = calibration(intake, order), validation(intake)
    return Workshop(graph, sha256_file(graph), data, store, threads, intake.model, (), held_on), passes


def _static(intake: Intake) -> dict[str, tuple[int, ...]]:
    """The shapes of the base size: what a prediction is for."""
    return {i.name: tuple(d for d in i.shape if isinstance(d, int)) for i in intake.model.signature.inputs}


def _several(
    intake: Intake, store: Path, threads: int, order: Given
) -> tuple[Workshops, tuple[PassReport, ...]]:
    """The workshops of all sizes. The symbolic graph's ranges are found on samples of the base size."""
    base = intake.sizes[0]
    layout = image_layout(intake.model.signature.inputs[0])
    first = {"NCHW": 2, "NHWC": 1}[str(layout)]
    shapes: dict[str, tuple[int | str, ...]] = {}
    for spec in intake.model.signature.inputs:
        shapes[spec.name] = (*spec.shape[:first], "height", "width", *spec.shape[first + 2 :])
    graph, passes = _optimised(intake, store, shapes, [intake.at(size) for size in intake.sizes])
    data = calibration(intake, order)
    if data is not None:
        remark = "; ".join(filter(None, (data.remark, f"of {size_text(base)}, the base size alone")))
        data = replace(data, remark=remark)
    about = (intake.model, intake.sizes, validation(intake))
    flexible = Workshop(graph, sha256_file(graph), data, store, threads, *about)

    @functools.cache
    def at(size: Size) -> Workshop:
        return _shop(intake.at(size), store, threads, Given(processes=order.processes))[0]

    return Workshops(intake.sizes, flexible, at), passes


def _optimised(
    intake: Intake, store: Path, shapes: Mapping[str, tuple[int | str, ...]], sizes: Sequence[Intake]
) -> tuple[Path, tuple[PassReport, ...]]:
    """The graph at ``shapes``, each pass checked on a sample of each of ``sizes``."""
    probe, *others = (next(iter(samples(one, one.holdout))) for one in sizes)

    def produce(into: Path) -> _Passes:
        return _Passes(passes=optimise(intake.graph, shapes, probe, into / "graph.onnx", others))

    tools = [version_of(name) for name in ("onnx", "onnxruntime", "onnxslim", "onnxsim")]
    probed = [dataset_key(one.holdout, one.model) for one in sizes]
    key = [intake.model.sha256, shapes, probed, tools]
    folder, found, _ = step(store, "graph", key, _Passes, produce)
    return folder / "graph.onnx", found.passes


def _references(intake: Intake, threads: int) -> tuple[Reference, tuple[tuple[Size, Reference], ...]]:
    """The float model over the data, at the base size and at the others; all share one bound in memory."""
    limit = KEPT_BYTES // max(1, len(intake.sizes))
    others = ((size, float_reference(intake.at(size), threads, limit)) for size in intake.sizes[1:])
    return float_reference(intake, threads, limit), tuple(others)


def _make_and_prove(
    job: Job, devices: Sequence[Device], work: _Work, say: Progress
) -> tuple[list[Made], list[Failure]]:
    made: list[Made] = []
    failures = [f for d in devices for f in untried(d, job)]
    share, cache = matmul_share(work.shop.graph), work.shop.cache
    data = work.shop.calibration
    count = None if data is None else data.n
    held = work.intake.validation
    apart = None if held is None else len(held.samples)
    drop = searched_drop(job.budget.budget(), labelled=bool(work.intake.validation_truths))
    rows = [
        (device, target, name, skip)
        for device in devices
        for target in _targets(device, job, work.targets)
        for name, skip in plan(
            device, target, job.search.recipes, share, drop, count, apart, job.qat is not None
        )
    ]
    say.expect(2 * sum(not skip for *_, skip in rows))
    for device, target, name, skip in rows:
        if skip:
            failures.append(failure(device, target, name, "recipe", skip, kind="skipped"))
            continue
        stage = "make"
        try:
            with say.step(f"make  {device.name} · {target} · {name}"):
                folder, artifact = _artifact(device, work.targets[target], name, work)
            stage = "prove"
            with say.step(f"prove {device.name} · {target} · {name}"):
                made.append(_proved(device, artifact, folder, work))
        except (MachineFault, MemoryError):
            raise
        except EdgekilnError as error:
            check_space(cache, Path(tempfile.gettempdir()))
            failures.append(failure(device, target, name, stage, error.why, error.cure))
        except Exception as error:
            check_space(cache, Path(tempfile.gettempdir()))
            why = f"{type(error).__name__}: {error}"[:500]
            cure = "This is a fault of edgekiln or of a converter: please report it with the model"
            failures.append(failure(device, target, name, stage, why, cure))
    return made, failures


def _artifact(device: Device, target: Target, name: str, work: _Work) -> tuple[Path, Artifact]:
    if work.several is None:
        return make(work.shop, device, target.name, name, work.converters)
    return make_sizes(work.several, device, target, name, work.converters)


def _proved(device: Device, artifact: Artifact, folder: Path, work: _Work) -> Made:
    intake, threads, most = work.intake, work.shop.threads, work.targets[artifact.target].proof_samples
    bound = None if most is None else Bound(most, f"the proof engine of {artifact.target} is slow")

    def produce(into: Path) -> Judged:
        found = judge(artifact, folder, work.against, threads, this_machine(), into, bound)
        more = [
            judge_at(size, artifact, folder, against, threads, this_machine(), bound, work.against)
            for size, against in work.others
        ]
        return msgspec.structs.replace(found, evidence=(*found.evidence, *itertools.chain(*more)))

    data = [dataset_key(d, intake.model) for d in (intake.holdout, intake.evaluation, intake.calibration)]
    labels = [work.against.labels, intake.model.task, intake.metric]
    # Not the id: one artifact for two devices is judged once.
    how = [artifact.engine, artifact.proof_engine, artifact.options, artifact.precisions]
    where = [artifact.entry, artifact.resolutions, most]
    key = [artifact.files, how, where, *data, labels, fingerprint()]
    golden, judged, _ = step(work.shop.cache, "judge", [key, intake.model.sha256, threads], Judged, produce)
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
    choices: Sequence[Choice],
    made: Sequence[Made],
    proofs: Sequence[Proof],
    intake: Intake,
    job: Job,
    out: Path,
) -> tuple[Choice, ...]:
    """Pack what was chosen; a bundle of an earlier build for a device without a choice goes."""
    done = []
    held = {(m.device.name, m.artifact.id): m for m in made}
    for choice in choices:
        relative = f"bundles/{choice.device}{SUFFIX}"
        if choice.artifact_id is None:
            with disk_errors("removing the stale bundle", out / relative):
                (out / relative).unlink(missing_ok=True)
            done.append(choice)
            continue
        m = held[choice.device, choice.artifact_id]
        own = [p for p in proofs if p.device == choice.device]
        proof = next(p for p in own if p.artifact.id == choice.artifact_id)
        others = alternates(m.device, choice, own, job.budget.budget(), job.search.alternates)
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
            alternates=[(p, held[p.device, p.artifact.id].folder) for p in others],
        )
        done.append(final)
    return tuple(done)


def _write(result: Build, out: Path) -> None:
    from edgekiln.report.html import render

    write_json(out / "evidence.json", result)
    write_json(out / "decision.json", result.decision)
    write_bytes(out / result.decision.report, render(result).encode())


# ---------------------------------------------------------------- rows


def _limits(job: Job) -> Limits:
    memory = job.search.convert_memory_mb
    return Limits(job.search.convert_seconds, None if memory is None else round(memory * 1e6))


def _check_search(job: Job, targets: Mapping[str, Target]) -> None:
    from edgekiln.compile.recipes import recipe

    for name in job.search.recipes or ():
        recipe(name)
    for name in job.search.targets or ():
        if name not in targets:
            why = "no target has this name"
            raise BadInput("choosing the target", name, why, did_you_mean(name, targets))


def _targets(device: Device, job: Job, known: Mapping[str, Target]) -> list[str]:
    wanted = job.search.targets
    return [t for t in device.targets if t in known and (wanted is None or t in wanted)]
