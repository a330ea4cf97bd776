"""Whole bundles, unpacked, around a small real model that takes just what a preprocess record gives."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekiln import files
from edgekiln.bundle import app as app_code
from edgekiln.bundle.pack import pack
from edgekiln.devices import Device, load
from edgekiln.engines import open_engine
from edgekiln.model.preprocess import apply
from edgekiln.model.signature import signature
from edgekiln.prove import golden
from edgekiln.records import Artifact, Choice, Model, Preprocess, Proof, Source
from fakes.variants import artifact as plain_artifact

CLASSES = ("tabby cat", 'a "quoted" \\ name', "Zebra \u2028 zebra", "ü", "last")
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def network(path: Path, spec: Preprocess, name: str = "image") -> Path:
    """Mean colour of 2 x 2 quarters, then a linear layer: input ``name`` as ``spec`` gives it, ``scores``.

    It has five classes, and weights that tell colours, rows and columns apart.
    """
    channels = 1 if spec.colour == "GRAY" else 3
    size = (spec.height, spec.width)
    shape = [1, channels, *size] if spec.layout == "NCHW" else [1, *size, channels]
    weights = np.random.default_rng(0).normal(size=(channels * 4, 5)).astype(np.float32) / abs(
        spec.scale * 64
    )
    node = helper.make_node
    nodes = [
        node("Cast", [name], ["real"], to=TensorProto.FLOAT),
        node("Transpose", ["real"], ["planes"], perm=[0, 1, 2, 3] if spec.layout == "NCHW" else [0, 3, 1, 2]),
        node("Slice", ["planes", "start", "half", "axes"], ["top"]),
        node("Slice", ["planes", "half", "end", "axes"], ["bottom"]),
        *(node("ReduceMean", [h], [f"{h}_mean"], axes=[2, 3], keepdims=0) for h in ("top", "bottom")),
        node("Slice", ["planes", "start", "half", "columns"], ["left"]),
        node("ReduceMean", ["left"], ["left_mean"], axes=[2, 3], keepdims=0),
        node("ReduceMax", ["planes"], ["most"], axes=[2, 3], keepdims=0),
        node("Concat", ["top_mean", "bottom_mean", "left_mean", "most"], ["features"], axis=1),
        node("MatMul", ["features", "weights"], ["scores"]),
    ]
    values = {"start": [0], "half": [3], "end": [10**6], "axes": [2], "columns": [3]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in values.items()]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "quarters",
            [helper.make_tensor_value_info(name, _TYPES[spec.dtype], shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5])],
            [*constants, numpy_helper.from_array(weights, "weights")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path)
    return path


def model(graph: Path, spec: Preprocess | None, labels: tuple[str, ...] = CLASSES) -> Model:
    return Model(
        name="quarters */ of\n\\ a picture",
        path=graph.name,
        sha256=files.sha256_file(graph),
        signature=signature(onnx.load(graph)),
        task="classification" if labels else "tensors",
        source=Source(kind="onnx", files=()),
        preprocess=spec,
        labels=labels,
    )


def artifact(folder: Path, graph: Path, engine: str) -> Artifact:
    """``graph`` in the form of ``engine``, written into ``folder``."""
    folder.mkdir(parents=True)
    entry = {"openvino": "model.xml", "coreml": "model.mlpackage"}.get(engine, "model.onnx")
    if engine == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(graph), folder / entry, compress_to_fp16=False)
    elif engine == "coreml":
        (folder / entry).mkdir()
        (folder / entry / "Manifest.json").write_text("{}")
    else:
        (folder / entry).write_bytes(graph.read_bytes())
    if engine == "tensorrt":
        from edgekiln.engines import build_engine

        shape = [d.dim_value for d in onnx.load(graph).graph.input[0].type.tensor_type.shape.dim]
        plan = {
            "schema": 1,
            "tensorrt_min": [10, 0],
            "tensorrt_below": 12,
            "profiles": [{"image": {"min": shape, "opt": shape, "max": shape}}],
            "workspace_bytes": None,
            "tf32": False,
            "builder_optimization_level": 3,
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "build_engine.py").write_bytes(Path(build_engine.__file__).read_bytes())
    made = plain_artifact(entry, engine)
    return msgspec.structs.replace(
        made, files=files.entries(folder), tools={engine: "1.2.3"}, precisions={"float32": 9}
    )


def bundle(
    root: Path,
    device: str | Device,
    engine: str,
    spec: Preprocess,
    *,
    labels: tuple[str, ...] = CLASSES,
    pictures: bool = True,
    recorded: bool = True,
) -> Path:
    """The packed bundle below ``root``. Without ``pictures`` its model has no preprocessing record."""
    at = load(device) if isinstance(device, str) else device
    graph = network(root / "graph.onnx", spec)
    known = model(graph, spec if pictures else None, labels)
    made = artifact(root / "artifact", graph, engine)
    tensors = None
    if recorded:
        runner = open_engine("onnxruntime", plain_artifact(graph.name, "onnxruntime"), root, 1)
        samples = [{"image": apply(spec, _noise(seed))} for seed in (1, 2)]
        tensors = golden.record(runner, made, samples, root / "golden")
    path = root / f"{at.name}.edgekiln"
    pack(
        path,
        version="0.1.0",
        model=known,
        proof=Proof(device=at.name, artifact=made, evidence=()),
        choice=Choice(device=at.name, status="unproven", artifact_id=made.id, basis="a test"),
        artifact_folder=root / "artifact",
        golden=tensors,
        golden_folder=root / "golden",
        provenance={},
        app=app_code.files(app_code.App(at, known, made, tensors)),
    )
    return path


def unpacked(path: Path) -> Path:
    """The bundle's content in a folder beside it, as an app developer unzips it."""
    folder = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def _noise(seed: int):  # type: ignore[no-untyped-def]
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (61, 83, 3), dtype=np.uint8))
