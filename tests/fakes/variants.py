"""Variants, devices and artifacts as the other rooms would hand them over."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekiln.devices import Device, Figure
from edgekiln.files import sha256_file
from edgekiln.records import Artifact, Recipe, Scalar, Variant

ORIN = Device(
    name="jetson-orin-nano-8gb",
    title="NVIDIA Jetson Orin Nano 8GB",
    kind="jetson",
    arch="arm64",
    targets=("tensorrt", "onnxruntime"),
    threads=6,
    features=("fp16", "bf16", "int8"),
    figures={"memory_bytes": Figure(value=8 << 30, unit="bytes", source="data sheet")},
)
PC = Device(
    name="intel-n100",
    title="Intel N100",
    kind="pc",
    arch="x86_64",
    targets=("openvino",),
    threads=4,
    features=(),
    figures={"memory_bytes": Figure(value=None, reason="depends on the PC")},
)


def variant(folder: Path, model: Path, recipe: str) -> Variant:
    """``model`` put into ``folder`` (with the weights beside an IR) as the variant of ``recipe``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (model, model.with_suffix(".bin")):
        if path.exists():
            shutil.copy(path, folder / path.name)
    return Variant(
        model_sha256="0" * 64,
        recipe=Recipe(name=recipe, passes=()),
        dialect="ort",
        path=model.name,
        sha256=sha256_file(model),
        precisions={"float32": 1},
        passes=(),
    )


def artifact(entry: str, engine: str, **options: Scalar) -> Artifact:
    return Artifact(
        id="made.for.a-test",
        target=engine,
        recipe="fp32",
        engine=engine,
        proof_engine=engine,
        entry=entry,
        files=(),
        options=options,
        tools={},
        precisions={},
    )
