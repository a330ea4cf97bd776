"""``edgekiln doctor``: which targets can convert and run here, and the command for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from edgekiln.compile.targets import TARGETS
from edgekiln.engines import chromium, npm
from edgekiln.errors import NotRunnableHere
from edgekiln.prove.environment import fitness
from edgekiln.records import Record
from edgekiln.sensors import sysfs

# Distribution and module that converting for a target, running it here, and checking it need.
_NEEDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "onnxruntime": {"convert": ("onnxruntime", "onnxruntime", ""), "run": ("onnxruntime", "onnxruntime", "")},
    "openvino": {
        "convert": ("openvino", "openvino", "openvino"),
        "quantise": ("nncf", "nncf", "openvino"),
        "run": ("openvino", "openvino", "openvino"),
    },
    "tensorrt": {
        "convert": ("onnx", "onnx", ""),
        "check": ("tensorrt-rtx", "tensorrt_rtx", "tensorrt"),
        "run": ("tensorrt", "tensorrt", "-"),
    },
    "coreml": {
        "convert": ("onnx2coreml", "onnx2coreml", "coreml"),
        "run": ("coremltools", "coremltools", "coreml"),
    },
    "litert": {
        "convert": ("litert-torch", "litert_torch", "litert"),
        "quantise": ("ai-edge-quantizer", "ai_edge_quantizer", "litert"),
        "run": ("ai-edge-litert", "ai_edge_litert", "litert"),
    },
    "executorch": {
        "convert": ("executorch", "executorch", "executorch"),
        "quantise": ("torchao", "torchao", "executorch"),
        "run": ("executorch", "executorch", "executorch"),
    },
    "qnn": {
        "convert": ("onnxruntime-qnn", "onnxruntime_qnn", "qnn"),
        "run": ("onnxruntime-qnn", "onnxruntime_qnn", "qnn"),
    },
    "web": {"convert": ("onnxruntime", "onnxruntime", "")},
}
_IMPORTERS = {
    "ONNX files": ("onnx", "onnx", ""),
    "PyTorch": ("torch", "torch", "torch"),
    "PyTorch's exporter": ("onnxscript", "onnxscript", "torch"),
    "safetensors": ("safetensors", "safetensors", "torch"),
}


class Ability(Record, frozen=True, kw_only=True):
    """One thing that this installation can or can't do; ``cure`` is the command that adds it."""

    subject: str
    ability: str
    there: bool
    version: str = ""
    cure: str = ""


class Diagnosis(Record, frozen=True, kw_only=True):
    abilities: tuple[Ability, ...]
    unfit: tuple[str, ...]


def doctor(sys_root: Path = sysfs.SYS) -> Diagnosis:
    """Look for the packages without importing them, for sensors below ``sys_root``, and at this machine's
    fitness to measure on.
    """
    found = [_ability(target, what, *need) for target in TARGETS for what, need in _NEEDS[target].items()]
    found += _web()
    found += [_ability(name, "import", *need) for name, need in _IMPORTERS.items()]
    return Diagnosis(abilities=(*found, _power(sys_root)), unfit=fitness())


def _power(root: Path) -> Ability:
    """Whether this machine says what it takes: rails, or energy counters."""
    readings = sysfs.read(root).readings
    counters, closed = sysfs.counters(root)
    names = [r.sensor for r in readings if r.quantity == "power_watts" and r.value is not None]
    names += [c.zone for c in counters]
    if names:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        ability = f"measure power ({', '.join(names[:2])}{more})"
        return Ability(subject="this machine", ability=ability, there=True)
    cure = "there is no sensor of power below /sys; use an external meter"
    if closed:
        cure = f"{closed[0].sensor} can't be read ({closed[0].reason}): run as root"
    return Ability(subject="this machine", ability="measure power", there=False, cure=cure)


def _web() -> list[Ability]:
    """What running a web artifact needs: a browser, and a package that no extra can bring."""
    try:
        there, cure = bool(chromium.find("running", "web artifacts")), ""
    except NotRunnableHere as error:
        there, cure = False, error.cure
    browser = Ability(subject="web", ability="run (Chromium)", there=there, cure=cure)
    name = "onnxruntime-web"
    try:
        version, cure = npm.version(npm.package(name, "running", "web artifacts")), ""
    except NotRunnableHere as error:
        version, cure = "", error.cure
    runtime = Ability(subject="web", ability=f"run ({name})", there=not cure, version=version, cure=cure)
    return [browser, runtime]


def _ability(subject: str, what: str, distribution: str, module: str, extra: str) -> Ability:
    there = importlib.util.find_spec(module) is not None
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    cure = ""
    if not there:
        cure = f"pip install 'edgekiln[{extra}]'" if extra.isalpha() else "comes with JetPack, on the device"
    return Ability(subject=subject, ability=what, there=there, version=version if there else "", cure=cure)
