"""A user's own measurements of one to five models, and the device that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from edgekiln.devices import Device
from edgekiln.errors import BadInput
from edgekiln.files import write_json
from edgekiln.forecast.fitting import anchored
from edgekiln.forecast.profiles import Profile, data, runs
from edgekiln.forecast.terms import amounts, vector
from edgekiln.model.workload import Workload
from edgekiln.records import Record

DOING = "calibrating a device"
_LIMIT_BYTES = 1 << 20
_RUNTIMES = {
    "tensorrt": ("TensorRT",),
    "openvino": ("OpenVINO",),
    "onnxruntime": ("ONNX Runtime", "ONNX"),
    "litert": ("TF Lite",),
    "qnn": ("qnn_dlc:NPU",),
}
_GROUP = {"tensorrt": "jetson-tensorrt", "openvino": "cpu-openvino", "litert": "cpu-litert", "qnn": "hexagon"}
_NAMES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


class Anchor(NamedTuple):
    """A model that was measured on the device: its name, its layers, its median latency in ms."""

    name: str
    work: Workload
    latency_ms: float


class Calibration(Record, frozen=True, kw_only=True):
    """What ``calibrate-device`` writes. ``anchors`` are the measurements (ms) by model; ``like`` is the
    chip whose published form fits them best; ``worst_percent`` is how far the form is from the anchor that
    it fits worst."""

    schema: Literal[1] = 1
    device: str
    target: str
    precision: str
    group: str
    runtime: str
    like: str
    coefficients: tuple[float, ...]
    anchors: dict[str, float]
    worst_percent: float


def calibrate(device: Device, target: str, precision: str, anchors: Sequence[Anchor]) -> Calibration:
    """Coefficients of ``device`` from ``anchors``. Raises BadInput where no published form exists for the
    target, an anchor is no positive time, or one stands twice."""
    to = f"{device.name} with {target}"
    if target not in device.targets:
        raise BadInput(
            DOING, to, "the device does not take this target", f"Give one of {', '.join(device.targets)}"
        )
    if not anchors:
        raise BadInput(DOING, to, "no anchor is given", "Give --anchor MODEL=MILLISECONDS, one to five times")
    names = [a.name for a in anchors]
    if len(set(names)) != len(names):
        raise BadInput(DOING, to, "an anchor stands twice", "Give each model once")
    for a in anchors:
        if not 0 < a.latency_ms < 1e7:
            raise BadInput(
                DOING, a.name, f"{a.latency_ms} ms is no latency", "Give the median in milliseconds"
            )
    forms = _forms(device, target, precision)
    if not forms:
        why = f"no form of cost was published for {target} in {precision}"
        raise BadInput(
            DOING, to, why, f"Targets with one: {', '.join(_RUNTIMES)}; measure there with `bench --on`"
        )
    group = data().groups[forms[0].group]
    x = np.array([vector(amounts(a.work), group.terms) for a in anchors])
    y = np.array([a.latency_ms for a in anchors])
    each = np.array([f.coefficients for f in forms])
    found = anchored(x, y, each)
    off = [float(np.ptp(np.log(y / np.maximum(x @ row, 1e-12)))) for row in each]
    return Calibration(
        device=device.name,
        target=target,
        precision=forms[0].precision,
        group=forms[0].group,
        runtime=forms[0].runtime,
        like=forms[int(np.argmin(off))].chip,
        coefficients=tuple(float(f"{v:.6g}") for v in found),
        anchors=dict(zip(names, (float(v) for v in y), strict=True)),
        worst_percent=round(float(100 * np.max(np.abs(x @ found / y - 1))), 1),
    )


def _forms(device: Device, target: str, precision: str) -> list[Profile]:
    """The published profiles whose form may be this device's: its own runs' first, else all of the target's
    kind."""
    own = [r.runtime for r in runs() if (r.device, r.target) == (device.name, target)]
    wanted = _NAMES.get(precision.lower(), precision)
    for runtimes in (tuple(own), _RUNTIMES.get(target, ())):
        found = [p for p in data().profiles if p.runtime in runtimes and p.precision == wanted]
        group = found[0].group if own and found else _group(target)
        kept = [p for p in found if p.group == group]
        if kept:
            return kept
    return []


def _group(target: str) -> str:
    return _GROUP.get(target, "cpu-onnxruntime")


def save(found: Calibration, path: Path) -> None:
    write_json(path, found)


def read(path: Path) -> Calibration:
    """The calibration in a file. Raises BadInput for a file that is none, or one of another form of cost."""
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise BadInput(
                "reading a calibration", path, "it is larger than 1 MB", "Give calibrate-device's file"
            )
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError) as error:
        cure = "Give a file that `edgekiln calibrate-device` wrote"
        raise BadInput("reading a calibration", path, str(error), cure) from error
    group = data().groups.get(found.group)
    known = any(
        (p.group, p.chip, p.runtime) == (found.group, found.like, found.runtime) for p in data().profiles
    )
    if group is None or not known or not found.anchors or len(group.terms) != len(found.coefficients):
        cure = "Run `edgekiln calibrate-device` again with this version"
        raise BadInput("reading a calibration", path, "it is of another form of cost", cure)
    return found
