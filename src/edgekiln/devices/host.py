"""This machine as a Device. Every figure names the file, or the call, that it came from."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekiln.devices import HOST, Device, Figure, linux, load
from edgekiln.errors import NotRunnableHere

_ARCH: dict[str, Literal["x86_64", "arm64"]] = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "arm64",
    "arm64": "arm64",
}
_TENSOR_CORES = {"orin": "jetson-orin-nano-8gb", "thor": "jetson-agx-thor"}
"""By a word of the board's name: every module of that chip has the same tensor cores, and the catalogue has a
document's word for what they compute in."""
_AFFINITY = "os.sched_getaffinity"
_NOT_STATED = "no file of the system states it"


@dataclass(frozen=True)
class Interpreter:
    """What Python itself says of the machine: for systems without /proc, and for the CPU affinity.

    ``allowed`` is the number of CPUs that this process may use, ``memory_bytes`` the physical memory.
    """

    system: str
    machine: str
    allowed: int | None
    cpus: int | None
    memory_bytes: int | None


def interpreter() -> Interpreter:
    """Ask the running Python."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        memory = 0
    return Interpreter(
        system=platform.system(),
        machine=platform.machine(),
        allowed=allowed,
        cpus=os.cpu_count(),
        memory_bytes=memory if memory > 0 else None,
    )


def probe(root: Path = Path("/"), said: Interpreter | None = None) -> Device:
    """The machine whose files lie below ``root``. What cannot be found out is a figure with a reason.

    Raises NotRunnableHere only for an architecture that no target runs on.
    """
    said = interpreter() if said is None else said
    arch = _ARCH.get(said.machine.lower())
    if arch is None:
        raise NotRunnableHere(
            "probing",
            "this machine",
            f"its architecture is '{said.machine}'",
            f"Use a machine with one of {', '.join(_ARCH)}",
        )
    cpuinfo = linux.text(root, "proc/cpuinfo") or ""
    model = _board(root)
    jetson = model is not None and "jetson" in model[0].lower()
    cores, threads = _cores(root, cpuinfo, said)
    figures = {
        "os": _os(root, said),
        "kernel": _read(linux.text(root, "proc/sys/kernel/osrelease"), "/proc/sys/kernel/osrelease", said),
        **_cpu(root, cpuinfo, said),
        **cores,
        **_memory(root, said),
        **_thermal(root, said),
        **_accelerator(root, jetson, model, said),
    }
    if model is not None:
        figures["board"] = Figure(value=model[0], source=model[1])
    cpu = figures["cpu"].value
    return Device(
        name=HOST,
        title=f"This machine ({(model[0] if model else None) or cpu or said.machine})",
        kind="host",
        arch=arch,
        targets=("tensorrt", "onnxruntime") if jetson else ("onnxruntime", "openvino"),
        threads=threads,
        features=_features(figures),
        figures=figures,
    )


def _features(figures: dict[str, Figure]) -> tuple[str, ...]:
    lists = [figures[key].value for key in ("isa", "accelerator_formats")]
    return tuple(dict.fromkeys(str(f) for found in lists if isinstance(found, tuple) for f in found))


def _read(value: str | tuple[str, ...] | None, file: str, said: Interpreter, unit: str = "") -> Figure:
    if value:
        return Figure(value=value, unit=unit, source=file)
    return Figure(unit=unit, reason=f"{file} is absent or says nothing here ({said.system})")


def _found(found: linux.Found | None, file: str, said: Interpreter, unit: str) -> Figure:
    if found is None:
        return Figure(unit=unit, reason=f"{file} is absent or says nothing here ({said.system})")
    return Figure(value=found.value, unit=unit, source=found.file)


def _board(root: Path) -> tuple[str, str] | None:
    """The board's model, as the device tree of Arm boards gives it, and its file."""
    for file in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        model = linux.text(root, file)
        if model:
            return model, f"/{file}"
    return None


def _os(root: Path, said: Interpreter) -> Figure:
    name = linux.os_name(linux.text(root, "etc/os-release") or "")
    if name:
        return Figure(value=name, source="/etc/os-release")
    if said.system:
        return Figure(value=said.system, source="platform.system")
    return Figure(reason="neither /etc/os-release nor platform.system says")


def _cpu(root: Path, cpuinfo: str, said: Interpreter) -> dict[str, Figure]:
    figures = {
        "soc": Figure(reason="a system does not report it; see board and cpu"),
        "cpu": _read(linux.cpu_model(cpuinfo), "/proc/cpuinfo", said),
        "cpu_mhz": _found(
            linux.max_mhz(root), "/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq", said, "MHz"
        ),
        "governor": _read(
            linux.governors(root), "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", said
        ),
    }
    flags = linux.isa_flags(cpuinfo)
    if flags is None:
        figures["isa"] = Figure(reason=f"/proc/cpuinfo is absent or lists no flags ({said.system})")
    else:
        figures["isa"] = Figure(value=flags, source="/proc/cpuinfo")
    return figures


def _cores(root: Path, cpuinfo: str, said: Interpreter) -> tuple[dict[str, Figure], int]:
    """``cores`` is what this process may use at once: affinity and CPU quota are respected."""
    seen = len(linux.processors(cpuinfo))
    total = seen or said.cpus
    quota = linux.cpu_quota(root)
    figures = {
        "cores_total": Figure(value=total, source="/proc/cpuinfo" if seen else "os.cpu_count")
        if total
        else Figure(reason="neither /proc/cpuinfo nor os.cpu_count says"),
        "cpu_quota": Figure(value=quota.value, unit="cores", source=quota.file)
        if quota
        else Figure(unit="cores", reason="no cgroup limits this process"),
    }
    allowed = said.allowed or total
    if allowed is None:
        figures["cores"] = Figure(reason="neither the affinity, /proc/cpuinfo nor os.cpu_count says")
        return figures, linux.whole_cores(1, quota.value if quota else None)
    cores = linux.whole_cores(allowed, quota.value if quota else None)
    origin = _AFFINITY if said.allowed else figures["cores_total"].source
    if quota is not None and cores < allowed:
        origin = f"derived: {quota.value:g} cores of {quota.file}, rounded down, of {allowed} by {origin}"
    figures["cores"] = Figure(value=cores, source=origin)
    return figures, cores


def _memory(root: Path, said: Interpreter) -> dict[str, Figure]:
    """``memory_bytes`` is what this process may use: a cgroup's limit counts where it is less."""
    total: Figure | None = None
    kernel = linux.memory_total(linux.text(root, "proc/meminfo") or "")
    if kernel is not None:
        total = Figure(value=kernel, unit="bytes", source="/proc/meminfo")
    elif said.memory_bytes is not None:
        total = Figure(value=said.memory_bytes, unit="bytes", source="os.sysconf")
    limit = linux.memory_limit(root)
    bandwidth = Figure(unit="GB/s", reason=_NOT_STATED)
    if total is None:
        unknown = Figure(unit="bytes", reason="neither /proc/meminfo nor os.sysconf says")
        usable = Figure(value=int(limit.value), unit="bytes", source=limit.file) if limit else unknown
        return {"memory_bytes": usable, "memory_total_bytes": unknown, "bandwidth_gb_s": bandwidth}
    usable = total
    if limit is not None and isinstance(total.value, int) and limit.value < total.value:
        usable = Figure(value=int(limit.value), unit="bytes", source=limit.file)
    return {"memory_bytes": usable, "memory_total_bytes": total, "bandwidth_gb_s": bandwidth}


def _thermal(root: Path, said: Interpreter) -> dict[str, Figure]:
    return {
        "thermal_zones": _read(linux.thermal_zones(root), "/sys/class/thermal/thermal_zone*/type", said),
        "throttle_celsius": _found(
            linux.throttle_trip(root),
            "/sys/class/thermal/thermal_zone*/trip_point_*_type with a passive trip",
            said,
            "°C",
        ),
        "shutdown_celsius": _found(
            linux.shutdown_trip(root),
            "/sys/class/thermal/thermal_zone*/trip_point_*_type with a critical trip",
            said,
            "°C",
        ),
        "power_modes_watts": Figure(unit="W", reason="the active mode is not read from the system"),
    }


def _accelerator(
    root: Path, jetson: bool, model: tuple[str, str] | None, said: Interpreter
) -> dict[str, Figure]:
    gpus = linux.gpu_models(root)
    if jetson and model is not None:
        chip = Figure(value=f"integrated GPU of {model[0]}", source=model[1])
    elif gpus:
        chip = Figure(value=", ".join(gpus), source="/proc/driver/nvidia/gpus/*/information")
    else:
        chip = Figure(
            reason=f"no NVIDIA driver and no Jetson was found ({said.system}); others are not looked for"
        )
    order = "the probe does not rank runtimes: the build measures each of them on this machine"
    figures = {
        "accelerator": chip,
        "accelerator_formats": Figure(reason="a system does not report what an accelerator computes in"),
        "int8_dense_tops": Figure(unit="TOPS", reason=_NOT_STATED),
        "int8_sparse_tops": Figure(unit="TOPS", reason=_NOT_STATED),
        "fp16_dense_tflops": Figure(unit="TFLOPS", reason=_NOT_STATED),
        "fp16_sparse_tflops": Figure(unit="TFLOPS", reason=_NOT_STATED),
        "video_encode": Figure(reason="the probe does not ask for codecs"),
        "video_decode": Figure(reason="the probe does not ask for codecs"),
        "runtimes": Figure(reason="edgekiln doctor lists the runtimes that are installed here"),
        "target_order": Figure(reason=order),
    }
    if jetson:
        for word, known in _TENSOR_CORES.items():
            if model is not None and word in model[0].lower():
                figures["accelerator_formats"] = load(known).figures["accelerator_formats"]
        figures["l4t"] = _read(linux.text(root, "etc/nv_tegra_release"), "/etc/nv_tegra_release", said)
    return figures
