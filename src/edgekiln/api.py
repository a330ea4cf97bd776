"""The verbs as Python functions where the command line's form is not already one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.job import BudgetOrder, Job, ModelOrder, SearchOrder, check, load, parse_shape
from edgekiln.progress import Progress
from edgekiln.records import Decision, Preprocess

if TYPE_CHECKING:
    from edgekiln.inspection import Inspection
    from edgekiln.prediction import Predicted
    from edgekiln.splitting import Parted


def build(
    model: str | Path | Job,
    *,
    devices: tuple[str, ...] | list[str] = ("host",),
    data: str | Path | None = None,
    holdout: str | Path | None = None,
    calibration: str | Path | None = None,
    eval: str | Path | None = None,
    validation: str | Path | None = None,
    labels: str | Path | None = None,
    weights: str | Path | None = None,
    input_shape: str | dict[str, str] | None = None,
    sizes: tuple[int | str, ...] | None = None,
    preprocess: Preprocess | None = None,
    out: str | Path = "edgekiln-out",
    cache: str | Path | None = None,
    targets: tuple[str, ...] | None = None,
    recipes: tuple[str, ...] | None = None,
    threads: int | None = None,
    tune_seconds: float | None = None,
    progress: Progress | None = None,
    **budget: float,
) -> Decision:
    """Build ``model`` (a file, a factory, a job file, or a Job) and return the decision.

    ``budget`` takes the command line's figures: max_drop, agreement, sqnr_db, latency_ms, memory_mb,
    size_mb. Where no artifact meets it, ``Decision.met`` is False and everything is written all the same.
    ``sizes`` are input sizes, ``224`` or ``"HEIGHTxWIDTH"``, the first one the base.
    ``tune_seconds`` is how long this machine's engine options are searched.
    A Job or a job file is taken as it is. Raises the errors of ``edgekiln.errors``.
    """
    from edgekiln.road import build as run

    is_job = isinstance(model, Job) or str(model).endswith(".toml")
    changes = [
        data,
        holdout,
        calibration,
        eval,
        validation,
        labels,
        weights,
        input_shape,
        sizes,
        preprocess,
        targets,
        recipes,
        threads,
        tune_seconds,
    ]
    if is_job and (budget or any(c is not None for c in changes)):
        why = "a job is taken as it is, and other arguments came with it"
        raise BadInput("building", model, why, "Write them into the job, or pass the model itself")
    for key in budget.keys() - set(BudgetOrder.__struct_fields__):
        cure = did_you_mean(key, BudgetOrder.__struct_fields__)
        raise BadInput("building", model, f"unknown argument '{key}'", cure)
    if isinstance(model, Job):
        job = model
    elif is_job:
        job = load(Path(model))
    else:
        order = ModelOrder(
            source=str(model),
            weights=_text(weights),
            labels=_text(labels),
            input_shape=input_shape,
            sizes=sizes,
        )
        job = Job(
            model=order,
            devices=tuple(devices),
            data=_text(data),
            holdout=_text(holdout),
            calibration=_text(calibration),
            eval=_text(eval),
            validation=_text(validation),
            out=str(out),
            preprocess=preprocess,
            budget=msgspec.convert(budget, type=BudgetOrder),
            search=SearchOrder(
                targets=targets, recipes=recipes, threads=threads, tune_seconds=tune_seconds or 0.0
            ),
        )
        check(job, model)
    return run(job, progress, None if cache is None else Path(cache)).decision


def inspect(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    input_shape: str | dict[str, str] | None = None,
    targets: tuple[str, ...] | None = None,
) -> Inspection:
    """Signature, operators, cost, and what each of ``targets`` (None: all, () none) says to a model."""
    from edgekiln.inspection import inspect as look

    given = input_shape or {}
    table = given if isinstance(given, dict) else {"": given}
    shapes = {name: parse_shape(text) for name, text in table.items()}
    job = Job(model=ModelOrder(source=str(model), weights=_text(weights)))
    return look(job, shapes, targets)


def predict(
    model: str | Path,
    devices: tuple[str, ...] | list[str],
    *,
    weights: str | Path | None = None,
    input_shape: str | dict[str, str] | None = None,
    target: str | None = None,
    precision: str | None = None,
    measured: tuple[str | Path, ...] = (),
) -> Predicted:
    """Latency, energy, power and memory of a model on ``devices`` that are not here, each with its interval.

    ``measured`` are files that ``edgekiln calibrate-device`` wrote.
    """
    from edgekiln.prediction import predict as look

    given = input_shape or {}
    table = given if isinstance(given, dict) else {"": given}
    shapes = {name: parse_shape(text) for name, text in table.items()}
    job = Job(model=ModelOrder(source=str(model), weights=_text(weights)))
    files = [Path(path) for path in measured]
    return look(job, devices, shapes, target=target, precision=precision, measured=files)


def split(
    model: str | Path,
    at: tuple[str, ...] | list[str],
    *,
    beside: tuple[str, ...] | list[str] = (),
    data: str | Path | None = None,
    weights: str | Path | None = None,
    input_shape: str | dict[str, str] | None = None,
    preprocess: Preprocess | None = None,
    out: str | Path = "edgekiln-split",
) -> Parted:
    """Cut a model at the tensors ``at`` into a head for a device and a tail for a server, in the new folder
    ``out``, compared with the whole on pictures of ``data``. ``edgekiln.splitting.places`` tells where.
    Inputs named ``beside``, such as a question, go to the tail as they are.
    """
    from edgekiln.splitting import split as cut

    order = ModelOrder(source=str(model), weights=_text(weights), input_shape=input_shape)
    return cut(Job(model=order, data=_text(data), preprocess=preprocess, out=str(out)), at, beside)


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
