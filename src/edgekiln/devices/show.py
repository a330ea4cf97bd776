"""A device, or several, as rows of plain text: the command line and the docs lay them out.

What is not known reads ``unknown: reason``. It is never blank, and never 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgekiln.devices import Device, Figure

_LABELS = {
    "soc": "chip",
    "cpu": "CPU",
    "cores": "usable cores",
    "cores_total": "cores in all",
    "cpu_quota": "CPU quota",
    "cpu_mhz": "CPU clock, highest",
    "isa": "CPU instructions",
    "memory_bytes": "memory",
    "memory_total_bytes": "memory in all",
    "bandwidth_gb_s": "memory bandwidth",
    "accelerator_formats": "accelerator computes in",
    "gpu_mhz": "GPU clock, highest",
    "int8_dense_tops": "INT8, dense",
    "int8_sparse_tops": "INT8, sparse (2:4 pruned weights)",
    "gpu_int8_dense_tops": "INT8 of the GPU alone, dense",
    "gpu_int8_sparse_tops": "INT8 of the GPU alone, sparse",
    "dla_int8_sparse_tops": "INT8 of the DLAs alone, sparse",
    "fp16_dense_tflops": "FP16, dense",
    "fp16_sparse_tflops": "FP16, sparse (2:4 pruned weights)",
    "fp8_dense_tflops": "FP8, dense",
    "fp8_sparse_tflops": "FP8, sparse (2:4 pruned weights)",
    "fp4_dense_tflops": "FP4, dense",
    "fp4_sparse_tflops": "FP4, sparse (2:4 pruned weights)",
    "bandwidth_gb_s_32_core_gpu": "memory bandwidth with the 32-core GPU",
    "edge_tpu_artifacts": "artifacts for the Edge TPU",
    "edge_tpu_watts": "power of the Edge TPU",
    "npu_headline_tops": "NPU, the vendor's headline",
    "power_modes_watts": "power modes",
    "throttle_celsius": "slows down at",
    "throttle_hard_celsius": "slows down hard at",
    "shutdown_celsius": "turns itself off at",
    "chip_throttle_celsius": "Linux slows the chip down at",
    "chip_hot_celsius": "Linux calls the chip hot at",
    "chip_shutdown_celsius": "Linux turns the chip off at",
    "nvpmodel_modes": "power modes by name",
    "video_encode": "video encoding in hardware",
    "video_decode": "video decoding in hardware",
    "nvenc": "video encoders (NVENC)",
    "nvdec": "video decoders (NVDEC)",
    "pva": "vision accelerators (PVA)",
    "runtimes": "runtime versions",
    "dla": "deep learning accelerators (DLA)",
    "jetpack": "JetPack versions",
    "l4t": "Jetson Linux",
    "os": "operating system",
    "simd": "WebAssembly SIMD",
    "web_threads": "WebAssembly threads",
}
_BASE = "_base"
_ORDER_KEY = "target_order"


def label(key: str) -> str:
    """A figure's key in words; ``_base`` is the one without MAXN_SUPER."""
    if key.endswith(_BASE):
        return f"{label(key.removesuffix(_BASE))}, without MAXN_SUPER"
    return _LABELS.get(key, key.replace("_", " "))


def value_text(figure: Figure, reasons: bool = True) -> str:
    """``33 TOPS``, ``8 GiB``, ``7, 15, 25 W``, ``yes``, ``none``, ``unknown: reason``."""
    value, unit = figure.value, figure.unit
    if value is None:
        return f"unknown: {figure.reason}" if reasons else "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        plain = ", ".join(v if isinstance(v, str) else f"{v:g}" for v in value) or "none"
    elif isinstance(value, str):
        plain = value
    elif unit == "bytes":
        return f"{value / 2**30:.4g} GiB"
    else:
        plain = f"{value:.6g}"
    return f"{plain} {unit}".rstrip()


def overview(devices: Iterable[Device], reasons: bool = True) -> list[dict[str, str]]:
    """One row a device, in the order given, for ``edgekiln devices``.

    With ``reasons=False`` an unknown is the bare word, for a narrow table: ``details`` says why.
    """
    return [
        {
            "name": device.name,
            "title": device.title,
            "arch": device.arch,
            "targets": ", ".join(device.targets),
            "threads": str(device.threads),
            "features": ", ".join(device.features) or "none",
            "memory": _cell(device, "memory_bytes", reasons),
            "bandwidth": _cell(device, "bandwidth_gb_s", reasons),
            "int8 dense": _cell(device, "int8_dense_tops", reasons),
            "int8 sparse": _cell(device, "int8_sparse_tops", reasons),
        }
        for device in devices
    ]


def details(device: Device) -> list[tuple[str, str, str]]:
    """Every fact of a device as (label, value, source or reason), for ``edgekiln devices NAME``."""
    order = device.figures.get(_ORDER_KEY)
    rows = [
        ("name", device.name, "the name for --device"),
        ("device", device.title, f"kind: {device.kind}"),
        ("architecture", device.arch, "what the artifacts are made for"),
        ("targets, best first", ", ".join(device.targets), _order_text(order)),
        ("threads of a CPU run", str(device.threads), "all usable cores where alike, else the larger ones"),
    ]
    for key, figure in device.figures.items():
        if key != _ORDER_KEY:
            rows.append((label(key), value_text(figure), figure.source or figure.reason))
    return rows


def _cell(device: Device, key: str, reasons: bool) -> str:
    figure = device.figures.get(key)
    if figure is None:
        return "unknown: no figure is kept" if reasons else "unknown"
    return value_text(figure, reasons)


def _order_text(order: Figure | None) -> str:
    if order is None:
        return "no word on what the order rests on"
    if order.value is None:
        return order.reason
    return f"{value_text(order)}; {order.source}"
