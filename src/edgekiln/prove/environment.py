"""What a figure was measured on, and whether that machine was fit to measure on.

Everything is read from files below ``root`` (``/proc``, ``/sys``), so that any machine can be described
from a copy of its files; what a machine does not tell is left out, never guessed.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from pathlib import Path

from edgekiln.records import Scalar

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

SWAP_TOLERATED_BYTES = 64 << 20
PRESSURE_TOLERATED_PERCENT = 10.0
ROOT = Path("/")


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
        "kernel": _text(root, "proc/sys/kernel/osrelease") or platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
    found.update({name: version_of(name) for name in PACKAGES})
    return {key: value for key, value in found.items() if value is not None and value != ""}


def fitness(root: Path = ROOT) -> tuple[str, ...]:
    """Sentences about what makes this machine unfit to measure on now, each with its cure; () is fit."""
    checks = (_load, _pressure, _governor, _quota, _swap, _throttling, _battery)
    return tuple(sentence for check in checks if (sentence := check(root)) is not None)


# ---------------------------------------------------------------- what the machine is


def cpu_model(root: Path = ROOT) -> str | None:
    """The processor's name as the kernel gives it; None where it gives none."""
    info = _cpuinfo(root)
    board = (_text(root, "proc/device-tree/model") or "").strip("\0") or info.get("model")
    is_name = board is not None and not board.isdecimal()  # x86 calls a number "model"
    return info.get("model name") or (board if is_name else None) or info.get("hardware") or None


def cpus_usable(root: Path = ROOT) -> int:
    """CPUs that this process may be scheduled on: its affinity, not what the machine has."""
    status = _fields(_text(root, "proc/self/status") or "")
    allowed = parse_cpu_list(status.get("cpus_allowed_list", ""))
    return len(allowed) or os.cpu_count() or 1


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format: ``0-2,5`` is (0, 1, 2, 5). () for anything else."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if match is None:
            return ()
        cpus.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(cpus)


def cpu_quota(root: Path = ROOT) -> float | None:
    """The control group's limit in CPUs (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``); None is no limit."""
    limits = []
    for path in _cgroup_files(root, "cpu.max", "cpu"):
        quota, _, period = (_text(root, path) or "").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    for path in _cgroup_files(root, "cpu.cfs_quota_us", "cpu"):
        quota = _text(root, path) or ""
        period = _text(root, path.replace("quota", "period")) or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_bytes(root: Path = ROOT) -> int | None:
    """What this process can have: the machine's memory or the control group's limit, if lower."""
    total = _memory(root, "memtotal")
    if total is None:
        return None
    limits = [total]
    for name in ("memory.max", "memory.limit_in_bytes"):
        texts = (_text(root, path) or "" for path in _cgroup_files(root, name, "memory"))
        limits.extend(int(text) for text in texts if text.isdecimal())
    return min(limits)


def _cgroup_files(root: Path, name: str, controller: str) -> list[str]:
    """Candidates for a control file: from the process's own group up to the mount, v2 and v1."""
    folders = ["sys/fs/cgroup", f"sys/fs/cgroup/{controller}"]
    for line in (_text(root, "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = f"sys/fs/cgroup/{controllers}" if controllers else "sys/fs/cgroup"
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        folders += [f"{mount}/{'/'.join(parts[:depth])}" for depth in range(1, len(parts) + 1)]
    return [f"{folder}/{name}" for folder in folders]


def _os_name(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', _text(root, "etc/os-release") or "", re.MULTILINE)
    return match.group(1) if match else platform.system()


# ---------------------------------------------------------------- is it fit


def _load(root: Path) -> str | None:
    match = re.match(r"\d+\.\d+", _text(root, "proc/loadavg") or "")
    cpus = cpus_usable(root)
    if match is None or float(match[0]) <= cpus:
        return None
    return (
        f"the load average is {match[0]} on {cpus} CPUs; end other work, or wait a minute, and measure again"
    )


def _pressure(root: Path) -> str | None:
    match = re.search(r"^some avg10=(\d+\.\d+)", _text(root, "proc/pressure/cpu") or "", re.MULTILINE)
    if match is None or float(match.group(1)) <= PRESSURE_TOLERATED_PERCENT:
        return None
    return f"for {match.group(1)} % of the last 10 s some task waited for a CPU; end other work, then measure"


def _governor(root: Path) -> str | None:
    files = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    slow = sorted({text for f in files if (text := _read(f)) and text != "performance"})
    if not slow:
        return None
    cure = "run: sudo cpupower frequency-set -g performance"
    return f"the CPU frequency governor is {', '.join(slow)}, so clocks follow the load; {cure}"


def _quota(root: Path) -> str | None:
    quota, cpus = cpu_quota(root), cpus_usable(root)
    if quota is None or quota >= cpus:
        return None
    return (
        f"a control group limits this process to {quota:g} of {cpus} CPUs, which stops it in bursts; "
        f"lift the limit, or use {max(1, math.floor(quota))} thread(s)"
    )


def _swap(root: Path) -> str | None:
    total, free = _memory(root, "swaptotal"), _memory(root, "swapfree")
    if total is None or free is None or total - free <= SWAP_TOLERATED_BYTES:
        return None
    used = (total - free) >> 20
    return f"{used} MiB of swap are in use; free memory, then run: sudo swapoff -a && sudo swapon -a"


def _throttling(root: Path) -> str | None:
    counts = [
        int(text)
        for f in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (text := _read(f)) and text.isdecimal()
    ]
    if not any(counts):
        return None
    return f"the CPU was throttled by heat {max(counts)} times since start-up; cool and restart the machine"


def _battery(root: Path) -> str | None:
    supplies = [f.parent for f in root.glob("sys/class/power_supply/*/type") if _read(f) == "Mains"]
    states = [_read(supply / "online") for supply in supplies]
    if not states or "1" in states:
        return None
    return "the machine runs on its battery, which lowers clocks; plug it in"


# ---------------------------------------------------------------- reading


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _text(root: Path, relative: str) -> str | None:
    return _read(root / relative)


def _fields(text: str) -> dict[str, str]:
    """``Key : value`` lines, keys in lower case; of equal keys the first."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), value.strip())
    return found


def _cpuinfo(root: Path) -> dict[str, str]:
    return _fields(_text(root, "proc/cpuinfo") or "")


def _memory(root: Path, key: str) -> int | None:
    match = re.match(r"(\d+) kB", _fields(_text(root, "proc/meminfo") or "").get(key, ""))
    return int(match.group(1)) * 1024 if match else None
