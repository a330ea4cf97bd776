"""What a figure was measured on. Whether that machine was fit to measure on is said by ``fitness``.

Everything is read from files below ``root`` (``/proc``, ``/sys``), so that any machine can be described
from a copy of its files; what a machine does not tell is left out, never guessed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

from edgekiln.prove.fitness import fitness as fitness
from edgekiln.prove.machine import ROOT, cpu_quota, cpus_usable, fields, memory, text
from edgekiln.prove.machine import parse_cpu_list as parse_cpu_list
from edgekiln.records import Scalar
from edgekiln.sensors import cgroup

PACKAGES = ("onnxruntime", "openvino", "nncf", "tensorrt-rtx", "onnx", "torch", "numpy")
ENGINE_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "tensorrt": ("tensorrt-rtx", "tensorrt_rtx"),
    "coreml": ("coremltools", "coremltools"),
    "litert": ("ai-edge-litert", "ai_edge_litert"),
    "executorch": ("executorch", "executorch"),
    "qnn": ("onnxruntime-qnn", "onnxruntime_qnn"),
}
"""Engine name to its distribution and the module that its library is imported as."""


def version_of(distribution: str) -> str | None:
    """The installed version, read from metadata: nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint(root: Path = ROOT) -> dict[str, Scalar]:
    """CPU model, CPUs this process may use, quota, memory, OS, kernel, Python and engine versions.

    Holds no host name, user or path. Keys that the machine gives no value for are absent.
    """
    found: dict[str, Scalar | None] = {
        "cpu_model": cpu_model(root),
        "cpus_usable": cpus_usable(root),
        "cpu_quota": cpu_quota(root),
        "memory_bytes": memory_bytes(root),
        "virtual_machine": "hypervisor" in _cpuinfo(root).get("flags", "").split() or None,
        "os": _os_name(root),
        "kernel": text(root, "proc/sys/kernel/osrelease") or platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
    found.update({name: version_of(name) for name in PACKAGES})
    return {key: value for key, value in found.items() if value is not None and value != ""}


# ---------------------------------------------------------------- what the machine is


def cpu_model(root: Path = ROOT) -> str | None:
    """The processor's name as the kernel gives it; None where it gives none."""
    info = _cpuinfo(root)
    board = (text(root, "proc/device-tree/model") or "").strip("\0") or info.get("model")
    is_name = board is not None and not board.isdecimal()  # x86 calls a number "model"
    return info.get("model name") or (board if is_name else None) or info.get("hardware") or None


def memory_bytes(root: Path = ROOT) -> int | None:
    """What this process can have: the machine's memory or the control group's limit, if lower."""
    total = memory(root, "memtotal")
    if total is None:
        return None
    limits = [total]
    for name in ("memory.max", "memory.limit_in_bytes"):
        texts = (text(root, path) or "" for path in cgroup.files(root, name, "memory"))
        limits.extend(int(limit) for limit in texts if limit.isdecimal())
    return min(limits)


def _os_name(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text(root, "etc/os-release") or "", re.MULTILINE)
    return match.group(1) if match else platform.system()


def _cpuinfo(root: Path) -> dict[str, str]:
    return fields(text(root, "proc/cpuinfo") or "")
