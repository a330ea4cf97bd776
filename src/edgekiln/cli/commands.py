"""The verbs: each turns arguments into one call and prints its answer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekiln import interrupt
from edgekiln.cli import show, show_devices, show_layers, show_remote
from edgekiln.errors import BadInput
from edgekiln.job import BudgetOrder, Job, ModelOrder, check, load, parse_shape
from edgekiln.progress import shown
from edgekiln.records import Record

R = TypeVar("R", bound=Record)


def build(given: argparse.Namespace) -> int:
    """Run a job; print the table, or the decision as JSON. 1 where no artifact meets the budget."""
    from edgekiln.report.terminal import print_build
    from edgekiln.road import build as run

    job = _job(given)
    with shown(silent=given.quiet) as progress:
        result = run(job, progress, Path(given.cache) if given.cache else None)
    if given.json:
        _print_json(result.decision)
    else:
        print_build(result, show.console(), show.short(job.path(job.out)))
    return 0 if result.decision.met else 1


def inspect(given: argparse.Namespace) -> int:
    """Print what a model is, what it costs, and what each target says to it."""
    from edgekiln.inspection import inspect as look

    order = ModelOrder(source=given.model, weights=given.weights)
    found = look(Job(model=order), _shapes(given), () if given.no_targets else given.target)
    return _answer(given, found, show.inspection)


def devices(given: argparse.Namespace) -> int:
    """Print the catalogue, one device with its sources, or several side by side."""
    from edgekiln.devices import load as load_device
    from edgekiln.devices import names

    if given.compare:
        from edgekiln.devices.compare import compare

        if given.name:
            cure = f"Give --compare {given.name} {' '.join(given.compare)}"
            raise BadInput("reading", "devices", "a device stands beside --compare", cure)
        found = compare([load_device(name) for name in given.compare])
        return _answer(given, found, show_devices.comparison)
    if given.name:
        return _answer(given, load_device(given.name), show.device)
    return _answer(given, tuple(load_device(name) for name in names()), show.catalogue)


def verify(given: argparse.Namespace) -> int:
    """Check a bundle; 1 where its golden outputs moved."""
    from edgekiln.verification import verify as check_bundle

    found = check_bundle(Path(given.bundle))
    _answer(given, found, show.verification)
    return 1 if found.golden is False else 0


def run(given: argparse.Namespace) -> int:
    """Print the predictions for pictures, 2 where none could be read; or run streams within a deadline."""
    if given.input:
        from edgekiln.cli import play

        return play.run(given)
    from edgekiln.cli.play import only_with_input
    from edgekiln.runtime.once import run as predict

    only_with_input(given)
    predictions, rejected = predict(Path(given.bundle), [Path(i) for i in given.images], given.threads)
    if given.json:
        _print_json({"predictions": predictions, "rejected": rejected})
    else:
        show.predictions(predictions, rejected)
    return 0 if predictions else 2


def bench(given: argparse.Namespace) -> int:
    """Print what timing showed, here or on a device; 2 where a contender could not be timed."""
    if given.on is not None:
        return _bench_on(given)
    _only_with_on(given)
    if given.soak is not None:
        return _soak(given)
    if given.out is not None:
        raise BadInput("timing", given.model, "--out belongs to --soak", "Leave it out, or give --soak 30m")
    from edgekiln.benching import bench as time_it

    against = None if given.against is None else Path(given.against)
    with shown(silent=given.json) as progress:
        found = time_it(
            Path(given.model),
            against,
            shapes=_shapes(given),
            threads=given.threads,
            samples=given.samples,
            strict=given.strict,
            progress=progress,
        )
    _answer(given, found, show.bench)
    return 0 if found.a_percentiles and (against is None or found.b_percentiles) else 2


def _bench_on(given: argparse.Namespace) -> int:
    from edgekiln.benching import bench_on

    for name in ("against", "input_shape", "soak", "out"):
        if getattr(given, name):
            why = "a device measures one bundle as it is"
            raise BadInput("reading", f"--{name.replace('_', '-')}", why, "Leave it out with --on")
    with shown(silent=given.json) as progress:
        found = bench_on(
            Path(given.model),
            given.on,
            threads=given.threads,
            samples=given.samples,
            idle_seconds=5.0 if given.idle_seconds is None else given.idle_seconds,
            runner=None if given.runner is None else Path(given.runner),
            remote_python=given.remote_python or "python3",
            accept_new_host_key=given.accept_new_host_key,
            strict=given.strict,
            progress=progress,
        )
    return _answer(given, found, show_remote.bench)


def _only_with_on(given: argparse.Namespace) -> None:
    """Raises BadInput for an option that means nothing without a device."""
    options = ("runner", "remote_python", "accept_new_host_key", "idle_seconds")
    for name in options:
        if getattr(given, name) not in {None, False}:
            why = "it is for measuring on a device"
            raise BadInput("reading", f"--{name.replace('_', '-')}", why, "Add --on ADDRESS, or leave it out")


def _soak(given: argparse.Namespace) -> int:
    """Print and write what a soak showed; 130 where it was cut short, 2 where the worker was lost."""
    from edgekiln.cli import show_soak
    from edgekiln.prove.soak import parse_duration
    from edgekiln.prove.timing import TimingFailure
    from edgekiln.soaking import soak

    if given.against is not None:
        raise BadInput("soaking", given.model, "--soak takes one model", "Leave --against out")
    seconds, out = parse_duration(given.soak), None if given.out is None else Path(given.out)
    if out is not None:
        show_soak.prepare(out)  # half an hour is not measured for a folder that can't be written
    with shown(silent=given.json) as progress:
        found = soak(
            Path(given.model),
            seconds,
            shapes=_shapes(given),
            threads=given.threads,
            strict=given.strict,
            progress=progress,
        )
    # What was measured before Ctrl-C is the answer: nothing here asks whether the key was pressed.
    if given.json:
        _print_json(found)
    if isinstance(found, TimingFailure):
        if not given.json:
            show_soak.failure(found, show.console())
        return 2
    if not given.json:
        show_soak.soak(found, show.console())
    for file in () if out is None else show_soak.written(found, out):
        print(f"wrote {show.short(file)}", file=sys.stderr)
    return show_soak.EXIT_CODES[found.ended]


def explain(given: argparse.Namespace) -> int:
    """Print the layers that lose most."""
    from edgekiln.explanation import explain as look

    found = look(Path(given.path))
    shown = found if given.all else tuple(e for e in found if e.chosen) or found
    return _answer(given, shown, lambda these: show_layers.explained(these, given.layers, show.console()))


def predict(given: argparse.Namespace) -> int:
    """Print predictions; 1 where none could be made."""
    from edgekiln.cli import show_prediction
    from edgekiln.prediction import predict as look

    order = ModelOrder(source=given.model, weights=given.weights)
    found = look(
        Job(model=order),
        given.device,
        _shapes(given),
        target=given.target,
        precision=given.precision,
        measured=[Path(m) for m in given.measured],
    )
    _answer(given, found, lambda it: show_prediction.predicted(it, show.console()))
    return 0 if any(row.basis != "refused" for row in found.rows) else 1


def calibrate_device(given: argparse.Namespace) -> int:
    """Print what the anchors said of a device."""
    from edgekiln.cli import show_prediction
    from edgekiln.prediction import calibrate_device as look

    out = given.out or f"{given.name}-{given.target}-{given.precision}.calibration.json"
    found = look(given.name, given.target, given.precision, given.anchor, _shapes(given), Path(out))
    return _answer(given, found, lambda it: show_prediction.calibrated(it, out, show.console()))


def split(given: argparse.Namespace) -> int:
    """Print where a model can be cut; with ``--at``, cut it there and print what that made."""
    from edgekiln import splitting
    from edgekiln.cli import show_split

    job = _job(given)
    if not given.at:
        found = splitting.places(job)
        return _answer(given, found, lambda it: show_split.places(it, show.console()))
    made = splitting.split(job, given.at, given.beside)
    return _answer(given, made, lambda it: show_split.parted(it, show.console()))


def arrcoc(given: argparse.Namespace) -> int:
    """Run one of the verbs of ``edgekiln arrcoc``."""
    from edgekiln.cli import arrcoc as room

    return _answer(given, *room.answered(given))


def doctor(given: argparse.Namespace) -> int:
    """Print what this installation can do."""
    from edgekiln.diagnosis import doctor as look

    return _answer(given, look(), show.doctor)


# ---------------------------------------------------------------- arguments and answers


def _job(given: argparse.Namespace) -> Job:
    """The job file with the command line's figures laid over it, or a job of the command line alone."""
    is_file = Path(given.model).suffix == ".toml"
    job = load(Path(given.model)) if is_file else Job(model=ModelOrder(source=given.model))
    here = Path.cwd()

    def path(text: str | None) -> str | None:
        # Paths of the command line are relative to the working folder, whatever the job's base is.
        return text if text is None or text.startswith("package:") else str(here / text)

    def asked(option: str) -> Any:
        return getattr(given, option, None)  # a verb that has not the option leaves the job's figure

    def several(option: str) -> tuple[Any, ...] | None:
        return None if asked(option) is None else tuple(asked(option))

    shapes = _shapes(given)
    text = {name: "x".join(map(str, shape)) for name, shape in shapes.items()}
    model = _laid_over(
        job.model,
        weights=path(asked("weights")),
        labels=path(asked("labels")),
        task=asked("task"),
        input_shape=None if not text else text.get("", text),
        sizes=several("size"),
    )
    budget = _laid_over(job.budget, **{f: asked(f) for f in BudgetOrder.__struct_fields__})
    search = _laid_over(
        job.search,
        targets=several("target"),
        recipes=several("recipe"),
        threads=asked("threads"),
        samples=asked("samples"),
        tune_seconds=asked("tune_seconds"),
    )
    job = _laid_over(
        job,
        model=model,
        budget=budget,
        search=search,
        devices=several("device"),
        data=path(asked("data")),
        holdout=path(asked("holdout")),
        calibration=path(asked("calibration")),
        eval=path(asked("eval")),
        validation=path(asked("validation")),
        out=path(asked("out")),
    )
    check(job, given.model)
    return job


def _laid_over(record: R, **changes: Any) -> R:
    """``record`` with the changes that were given (None: not given)."""
    return msgspec.structs.replace(record, **{k: v for k, v in changes.items() if v is not None})


def _shapes(given: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    found = {}
    for text in given.input_shape:
        name, _, shape = text.rpartition("=")
        if name in found:
            raise BadInput("reading --input-shape", text, "this input has a shape already", "Give it once")
        found[name] = parse_shape(shape)
    return found


def _answer(given: argparse.Namespace, found: Any, print_it: Any) -> int:
    interrupt.check()
    if given.json:
        _print_json(found)
    else:
        print_it(found)
    return 0


def _print_json(found: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
