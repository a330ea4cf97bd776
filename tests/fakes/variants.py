"""Variants, devices and artifacts as the other rooms would hand them over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edgekiln.compile.recipes import recipe as decoded
from edgekiln.compile.targets import Conversion
from edgekiln.devices import Device, Figure
from edgekiln.files import sha256_file
from edgekiln.model.signature import signature
from edgekiln.records import Artifact, Model, Recipe, Scalar, Signature, Source, Variant

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


def order(
    folder: Path, graph: Path, recipe: str, device: Device, model: Model | None = None, **more: Any
) -> Conversion:
    """A conversion of ``graph`` (put into ``folder``) for ``device``; what is known of it by reading it."""
    made = msgspec.structs.replace(variant(folder, graph, recipe), recipe=decoded(recipe))
    return Conversion(variant=made, folder=str(folder), device=device, model=model or model_of(graph), **more)


def model_of(graph: Path) -> Model:
    """What is known of an ONNX file by reading it: its signature."""
    return Model(
        name=graph.stem,
        path=graph.name,
        sha256=sha256_file(graph),
        signature=signature(onnx.load(graph, load_external_data=False))
        if graph.suffix == ".onnx"
        else Signature(inputs=(), outputs=()),
        task="tensors",
        source=Source(kind="onnx", files=()),
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
