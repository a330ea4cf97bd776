"""A small artifact to measure on a device, a bundle of it, and a course that is short."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekiln.bundle.pack import pack
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.files import entries
from edgekiln.prove.remote.order import Course
from edgekiln.records import Artifact, Signature, TensorSpec
from fakes.build_record import model, proof
from fakes.bundle_content import content

QUICK = Course(
    threads=1, samples=40, idle_seconds=0.3, warmup_seconds=0.2, least_seconds=0.0, interval_seconds=0.1
)
"""Short, and with the same steps as a real one."""


def bundle(path: Path, artifact: Artifact, folder: Path) -> Path:
    """A bundle with that artifact alone."""
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 8, 32, 32))
    out = msgspec.structs.replace(spec, name="y")
    named = msgspec.structs.replace(model(), signature=Signature(inputs=(spec,), outputs=(out,)))
    parts = content(path.parent / "content", golden=False)
    parts |= {
        "model": named,
        "proof": proof("host", artifact, p50=3.0, drop=0.0, agreement=1.0, sqnr=30.0, memory=1e8),
        "choice": msgspec.structs.replace(parts["choice"], artifact_id=artifact.id),
        "artifact_folder": folder,
    }
    pack(path, **parts)
    return path


def conv(folder: Path, *, name: str = "model.onnx", opset: int = 17, ir: int = 8) -> tuple[Artifact, Path]:
    weights = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", 1, [1, 8, 32, 32])],
        [helper.make_tensor_value_info("y", 1, [1, 8, 32, 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(made.SerializeToString())
    assert onnx.load(folder / name).ir_version == ir
    return msgspec.structs.replace(float_artifact(name, "conv"), files=entries(folder)), folder
