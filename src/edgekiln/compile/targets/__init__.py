"""How an artifact is made: the table of targets, one file per target.

A target file gives ``convert`` and nothing else that the table needs; a new target is one file and one
row here. Vendor packages are imported inside ``convert``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgekiln.devices import Device
from edgekiln.records import Artifact, Variant

Convert: TypeAlias = Callable[[Variant, Path, Device, Path], Artifact]
"""``convert(variant, variant_folder, device, into)`` writes the artifact's files into ``into``."""


@dataclass(frozen=True)
class Target:
    """``recipes`` are tried in order; ``dialects`` maps a device's architecture to a Q/DQ dialect."""

    name: str
    module: str
    engine: str
    proof_engine: str
    extra: str | None
    recipes: tuple[str, ...]

    @property
    def convert(self) -> Convert:
        function: Convert = importlib.import_module(self.module).convert
        return function


TARGETS = {
    t.name: t
    for t in (
        Target(
            name="onnxruntime",
            module="edgekiln.compile.targets.onnxruntime",
            engine="onnxruntime",
            proof_engine="onnxruntime",
            extra=None,
            recipes=(
                "fp32",
                "fp16",
                "int8-static-minmax",
                "int8-static-percentile-99.99",
                "int8-static-mse",
                "int8-dynamic",
            ),
        ),
        Target(
            name="openvino",
            module="edgekiln.compile.targets.openvino",
            engine="openvino",
            proof_engine="openvino",
            extra="openvino",
            recipes=("fp32", "fp16", "bf16", "int8-nncf-performance", "int8-nncf-mixed"),
        ),
        Target(
            name="tensorrt",
            module="edgekiln.compile.targets.tensorrt",
            engine="tensorrt",
            proof_engine="onnxruntime",
            extra=None,
            recipes=(
                "fp32",
                "fp16",
                "bf16",
                "int8-static-minmax",
                "int8-static-percentile-99.99",
                "int8-static-mse",
            ),
        ),
    )
}

PLANNED = ("coreml", "litert", "executorch", "qnn", "web")
"""Targets that devices name and that are not there yet: a row in the report, never silence."""

# Without VNNI (or its AVX form) u8 x s8 products saturate in 16 bits on x86.
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def dialect(target: str, recipe: str, device: Device) -> str:
    """The form in which ``target`` wants this recipe's graph on ``device``: part of a variant's identity."""
    if target in {"openvino", "tensorrt"}:
        return target
    if recipe.startswith("int8-static") and device.arch == "x86_64" and not _VNNI & set(device.features):
        return "ort-7bit"
    return "ort"
