"""ONNX Runtime's execution providers on a device: which there are, with which options, in which order.

Options are those that the providers document; ``KEYS`` is all that may ever be written, and a value of
a closed set must be one of it. Keys that circulate but do not exist (``nnapi_accelerator_name``,
``tunable_op_*`` on Android) are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from edgekiln.compile.targets import qnn
from edgekiln.devices import Device
from edgekiln.engines.qnn import PROVIDER as QNN
from edgekiln.records import Placement, Record

FILE = "providers.json"
CPU, XNNPACK, NNAPI, COREML = (
    "CPUExecutionProvider",
    "XnnpackExecutionProvider",
    "NnapiExecutionProvider",
    "CoreMLExecutionProvider",
)
Platform: TypeAlias = Literal["android", "apple", "other"]
_SWITCH = frozenset({"0", "1"})

KEYS: Mapping[str, Mapping[str, frozenset[str] | None]] = {
    CPU: {},
    # docs/execution-providers/Xnnpack-ExecutionProvider.html
    XNNPACK: {"intra_op_num_threads": None},
    # The flags of nnapi_provider_factory.h, by the names of Java's NNAPIFlags.
    NNAPI: {"USE_FP16": _SWITCH, "USE_NCHW": _SWITCH, "CPU_DISABLED": _SWITCH, "CPU_ONLY": _SWITCH},
    # coreml_provider_factory.h
    COREML: {
        "ModelFormat": frozenset({"MLProgram", "NeuralNetwork"}),
        "MLComputeUnits": frozenset({"ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"}),
        "RequireStaticInputShapes": _SWITCH,
        "EnableOnSubgraphs": _SWITCH,
        "AllowLowPrecisionAccumulationOnGPU": _SWITCH,
    },
    # QNN-ExecutionProvider.md of onnxruntime/onnxruntime-qnn
    QNN: {
        "backend_type": frozenset({"htp", "gpu", "cpu"}),
        "htp_performance_mode": frozenset({"burst", "balanced", "default", "sustained_high_performance"}),
        "htp_graph_finalization_optimization_mode": frozenset({"0", "1", "2", "3"}),
        "offload_graph_io_quantization": _SWITCH,
        "soc_model": None,
        "htp_arch": frozenset({"0", "68", "69", "73", "75", "79", "81"}),
    },
}

NNAPI_NOTE = "NNAPI is deprecated since Android 15, where most devices are expected to run it on their CPU"


class Provider(Record, frozen=True, kw_only=True):
    """``options`` go to the provider when it is added, ``session`` into the session's own options."""

    name: str
    options: dict[str, str] = msgspec.field(default_factory=dict)
    session: dict[str, str] = msgspec.field(default_factory=dict)
    note: str = ""


class Providers(Record, frozen=True, kw_only=True):
    """``providers.json``: in the order to try them. The order is advice, not a measurement."""

    schema: int = 1
    entry: str
    ranked: tuple[Provider, ...]


def platform(device: Device) -> Platform:
    """By the chip's maker and the kind of device: the catalogue states no operating system."""
    figure = device.figures.get("soc")
    if figure is not None and str(figure.value).startswith("Apple"):
        return "apple"
    return "android" if device.kind == "phone" else "other"


def available(device: Device, flexible: bool) -> tuple[Provider, ...]:
    """The providers that ONNX Runtime has on this device's platform.

    ``flexible``: the graph takes several sizes, so that its inputs are not static; QNN then takes nothing.
    """
    chip, system = qnn.soc(device), platform(device)
    found: list[Provider] = []
    if chip is not None and not flexible:
        options = {k: str(v) for k, v in qnn.provider_options(chip).items()}
        note = (
            f"Hexagon of {chip.part}, by the package onnxruntime-android-qnn; the target qnn is made for it"
        )
        found.append(Provider(name=QNN, options=options, note=note))
    if system == "apple":
        found.append(_coreml(flexible))
    if device.kind == "phone":
        found.append(_xnnpack(device.threads))
    found.append(Provider(name=CPU))
    if system == "android":
        note = f"{NNAPI_NOTE}. CPU_DISABLED keeps it from its own slow CPU code"
        found.append(Provider(name=NNAPI, options={"CPU_DISABLED": "1"}, note=note))
    for one in found:
        _check(one)
    return tuple(found)


WORTH_SHARE = 0.75
WORTH_PARTITIONS = 2


def ranked(found: tuple[Provider, ...], rows: tuple[Placement, ...]) -> tuple[Provider, ...]:
    """``found`` in the order to try them: by what each takes of the file, NNAPI last whatever it takes.

    Before the CPU stands who takes more than three quarters of the operators in at most two partitions,
    the bound of ONNX Runtime's usability tool; XNNPACK runs on the CPU, so its partitions cost no copies.
    """

    def place(provider: Provider) -> int:
        if provider.name == CPU:
            return 1
        mine = [r for r in rows if r.provider.split(" ")[0] == provider.name]
        return 3 if provider.name == NNAPI else 0 if any(_worth(r) for r in mine) else 2

    return tuple(sorted(found, key=place))


def _worth(row: Placement) -> bool:
    if not row.operators or row.taken is None or row.partitions is None:
        return False
    few = row.partitions <= WORTH_PARTITIONS or row.provider == XNNPACK
    return few and row.taken / row.operators > WORTH_SHARE


def _coreml(flexible: bool) -> Provider:
    options = {
        "ModelFormat": "MLProgram",
        "MLComputeUnits": "ALL",
        "RequireStaticInputShapes": "0" if flexible else "1",
        "EnableOnSubgraphs": "0",
        "AllowLowPrecisionAccumulationOnGPU": "0",
    }
    return Provider(name=COREML, options=options, note="the target coreml needs no ONNX Runtime in the app")


def _xnnpack(threads: int) -> Provider:
    return Provider(
        name=XNNPACK,
        options={"intra_op_num_threads": str(threads)},
        # XNNPACK has threads of its own, with which those of ONNX Runtime would compete.
        session={"intra_op_num_threads": "1", "session.intra_op.allow_spinning": "0"},
    )


def _check(provider: Provider) -> None:
    for key, value in provider.options.items():
        allowed = KEYS[provider.name][key]
        if allowed is not None and value not in allowed:
            raise ValueError(f"{provider.name} has no value '{value}' for {key}")
