"""``edgekiln predict`` and ``edgekiln calibrate-device``: figures for a device that is not here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekiln.benching import bench
from edgekiln.bundle import SUFFIX
from edgekiln.devices import HOST, load
from edgekiln.errors import BadInput, NotRunnableHere, did_you_mean
from edgekiln.forecast.calibration import Anchor, Calibration, calibrate, read, save
from edgekiln.forecast.latency import ALIASES, Prediction
from edgekiln.forecast.latency import predict as for_device
from edgekiln.job import Job
from edgekiln.model.cost import Cost, cost
from edgekiln.model.importers import import_model
from edgekiln.model.workload import Workload, workload
from edgekiln.records import Record

Shapes = Mapping[str, tuple[int, ...]]


class Predicted(Record, frozen=True, kw_only=True):
    """``rows`` hold one row per device, target and precision. ``cost`` is what was counted of the model."""

    model: str
    cost: Cost
    rows: tuple[Prediction, ...]


def predict(
    job: Job,
    devices: Sequence[str],
    shapes: Shapes,
    *,
    target: str | None = None,
    precision: str | None = None,
    measured: Sequence[Path] = (),
) -> Predicted:
    """Count ``job.model`` and predict it for each of ``devices``; ``measured`` are files of calibrations.

    Raises BadInput for a model that can't be read or counted, an unknown device, target or precision.
    """
    if precision is not None and precision.lower() not in ALIASES:
        raise BadInput(
            "predicting in", precision, "no such precision", did_you_mean(precision, tuple(ALIASES))
        )
    found = [load(name) for name in dict.fromkeys(devices)]
    for device in found:
        if target is not None and target not in device.targets:
            cure = f"It takes {', '.join(device.targets)}"
            raise BadInput(
                "predicting for", f"{device.name} with {target}", "the device does not take it", cure
            )
    own = [read(path) for path in measured]
    name, counted, work = _counted(job, shapes)
    rows = [row for device in found for row in for_device(work, device, target, precision, own)]
    return Predicted(model=name, cost=counted, rows=tuple(rows))


def calibrate_device(
    name: str, target: str, precision: str, anchors: Sequence[str], shapes: Shapes, out: Path
) -> Calibration:
    """Measurements of one to five models as a calibration of device ``name``, written to ``out``.

    An anchor is ``MODEL.onnx=MILLISECONDS``; of the host the time may be left out, and is then measured here.
    Raises BadInput for an anchor that is not that.
    """
    device = load(name)
    given = [_anchor(text, name, target, precision, shapes) for text in anchors]
    found = calibrate(device, target, precision, given)
    save(found, out)
    return found


def _anchor(text: str, device: str, target: str, precision: str, shapes: Shapes) -> Anchor:
    path, equals, number = text.rpartition("=")
    if not equals:
        path, number = text, ""
    file = Path(path)
    doing, cure = "reading --anchor", "Write MODEL.onnx=MILLISECONDS, such as resnet50.onnx=12.4"
    if file.suffix == SUFFIX or not file.is_file():
        raise BadInput(doing, text, "the model is no ONNX file that can be read", cure)
    work = workload(file, shapes)
    if number:
        try:
            return Anchor(file.name, work, float(number))
        except ValueError:
            raise BadInput(doing, text, f"'{number}' is no number of milliseconds", cure) from None
    if device != HOST or target != "onnxruntime" or precision.lower() != "fp32":
        why = "it has no time, and only the host is measured here (onnxruntime, fp32)"
        raise BadInput(doing, text, why, cure)
    measured = bench(file, shapes=dict(shapes)).a_percentiles
    if measured is None:
        raise NotRunnableHere("timing", text, "it did not run", "Run `edgekiln bench` on it to see why")
    return Anchor(file.name, work, measured.p50)


def _counted(job: Job, shapes: Shapes) -> tuple[str, Cost, Workload]:
    located = job.path(job.model.source)
    source = str(located) if located.exists() or ":" not in job.model.source else job.model.source
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        folder = Path(scratch)
        model = import_model(
            source,
            folder,
            weights=None if job.model.weights is None else str(job.path(job.model.weights)),
            input_shapes=dict(shapes),
            search_path=(Path(job.base).resolve(), Path.cwd()),
        )
        graph = folder / model.path
        return model.name, cost(graph, shapes), workload(graph, shapes)
