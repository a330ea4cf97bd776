"""The published measurements that the fit uses, and a count of those it leaves out with the reason."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.forecast.terms import FULL, SHORT, TILED, amounts
from edgekiln.model.workload import Layer, Workload

ZOO = Path(__file__).with_name("zoo.json")
TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "published.csv"
HEXAGON = ("qnn_dlc:NPU", "tflite:NPU", "onnx:NPU")
JETSON = ("Orin (8SM)", "Orin (GA10B 16SM)", "Thor")


class Group(NamedTuple):
    """Profiles that share the form of their cost: one kind of engine on one kind of chip."""

    name: str
    terms: tuple[str, ...]
    held: str
    least: int


GROUPS = (
    Group("hexagon", FULL, "family", 12),
    Group("jetson-tensorrt", TILED, "model", 4),
    Group("jetson-onnxruntime", SHORT, "model", 4),
    Group("cpu-openvino", SHORT, "model", 2),
    Group("cpu-onnxruntime", SHORT, "model", 2),
    Group("cpu-litert", SHORT, "model", 2),
)


class Key(NamedTuple):
    """A profile: what was measured with what. ``mode`` is "" where the table says only the highest."""

    chip: str
    device: str
    runtime: str
    precision: str
    mode: str


class Row(NamedTuple):
    key: Key
    model: str
    value: float
    source: str
    date: str


class Architecture(NamedTuple):
    """A model of the zoo: its layers as amounts of every term."""

    family: str
    work: Workload
    amounts: dict[str, float]


def zoo(path: Path = ZOO) -> dict[str, Architecture]:
    """Every rebuilt architecture by its published name."""
    found = {}
    for name, entry in json.loads(path.read_text()).items():
        told = entry["workload"]
        layers = tuple(Layer(**layer) for layer in told.pop("layers"))
        work = Workload(layers=layers, **told)
        found[name] = Architecture(entry["family"], work, amounts(work))
    return found


def group_of(key: Key) -> str | None:
    """The group that a profile belongs to; None for a runtime that edgekiln makes nothing for."""
    if key.runtime in HEXAGON and key.precision in ("float", "w8a8", "w8a16"):
        return "hexagon"
    jetson = key.chip in JETSON
    if jetson and key.runtime == "TensorRT":
        return "jetson-tensorrt"
    if jetson and key.runtime == "ONNX":
        return "jetson-onnxruntime"
    if key.runtime == "OpenVINO" and not key.chip.startswith("Arc"):
        return "cpu-openvino"
    if key.runtime == "ONNX Runtime" or (key.runtime == "ONNX" and not jetson):
        return "cpu-onnxruntime"
    return "cpu-litert" if key.runtime == "TF Lite" else None


def mode_of(text: str) -> str:
    return "" if text.startswith("MAXN (") or text == "MAXN_SUPER" else text


def rows(
    path: Path, known: dict[str, Architecture], metric: str
) -> tuple[list[Row], collections.Counter[str]]:
    """Rows of ``metric`` that can be used, and how many can't by reason."""
    found: dict[tuple[Key, str], list[Row]] = collections.defaultdict(list)
    left: collections.Counter[str] = collections.Counter()
    with path.open(newline="", encoding="utf-8") as file:
        for told in csv.DictReader(file):
            if told["metric"] != metric:
                continue
            mode = mode_of(told["power_mode"])
            key = Key(told["chip"], told["device"], told["runtime"], told["precision"], mode)
            if group_of(key) is None:
                left["a runtime or precision that edgekiln makes nothing for"] += 1
            elif told["model"] not in known:
                left["an architecture that the zoo does not rebuild"] += 1
            else:
                row = Row(key, told["model"], float(told["value"]), told["source"], told["date"])
                found[key, row.model].append(row)
    kept = [r[0] for r in found.values() if len(r) == 1]
    left["several figures for one model and setting"] = sum(len(r) for r in found.values() if len(r) > 1)
    return kept, left


class Data(NamedTuple):
    """One group: latencies ``y`` (ms) of model ``m`` in profile ``p``.

    ``x`` is [models, terms], ``kinds`` the kinds of layers of each model.
    """

    group: Group
    keys: list[Key]
    models: list[str]
    families: list[str]
    kinds: list[frozenset[str]]
    x: NDArray[np.float64]
    p: NDArray[np.int64]
    m: NDArray[np.int64]
    y: NDArray[np.float64]


def data(group: Group, found: list[Row], known: dict[str, Architecture]) -> Data:
    """The rows of ``group`` whose profile has ``group.least`` models."""
    mine = [r for r in found if group_of(r.key) == group.name]
    counts = collections.Counter(r.key for r in mine)
    mine = [r for r in mine if counts[r.key] >= group.least]
    keys, models = sorted({r.key for r in mine}), sorted({r.model for r in mine})
    at_key, at_model = {k: i for i, k in enumerate(keys)}, {m: i for i, m in enumerate(models)}
    return Data(
        group=group,
        keys=keys,
        models=models,
        families=[known[m].family if group.held == "family" else m for m in models],
        kinds=[frozenset(layer.kind for layer in known[m].work.layers) for m in models],
        x=np.array([[known[m].amounts[t] for t in group.terms] for m in models]),
        p=np.array([at_key[r.key] for r in mine]),
        m=np.array([at_model[r.model] for r in mine]),
        y=np.array([r.value for r in mine]),
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
