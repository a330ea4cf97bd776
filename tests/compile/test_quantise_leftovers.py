"""Graphs that simplifiers leave something in: constants, a batch normalisation, weights with two readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.static import DIALECTS, write_static
from edgekiln.compile.simplify import simplified
from edgekiln.engines import open_engine
from edgekiln.engines.onnxruntime import float_artifact


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch normalisation before a padded convolution, which can't be folded; the convolution's weights
    read twice; a scale that is a Constant node."""
    rng = np.random.default_rng(0)
    held = {
        "gamma": rng.uniform(0.5, 1.5, 4),
        "beta": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "variance": rng.uniform(0.5, 1.5, 4),
        "w": rng.standard_normal((4, 4, 3, 3)) * 0.2,
    }
    nodes = [
        constant("scale", np.array(0.5, np.float32)),
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "variance"], ["normed"], "bn"),
        helper.make_node("Conv", ["normed", "w"], ["first"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["lit"], "relu"),
        helper.make_node("Conv", ["lit", "w"], ["second"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["second", "scale"], ["y"], "mul"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    weights = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in held.items()]
    graph = helper.make_graph(nodes, "left", ends[:1], ends[1:], weights)
    path = tmp_path_factory.mktemp("left") / "left.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def run(path: Path, x: np.ndarray, recipe: str = "fp32") -> np.ndarray:
    import msgspec

    artifact = msgspec.structs.replace(float_artifact(path.name, "left"), target="tensorrt", recipe=recipe)
    runner = open_engine("onnxruntime", artifact, path.parent, 1)
    try:
        return runner({"x": x})["y"]
    finally:
        runner.close()


@pytest.fixture(scope="module")
def slim(left: Path) -> Path:
    made, _ = simplified("onnxslim", onnx.load(left))
    onnx.save(made, left.with_name("slim.onnx"))
    return left.with_name("slim.onnx")


def test_constants_become_initialisers(slim: Path) -> None:
    made = onnx.load(slim)
    assert "Constant" not in {n.op_type for n in made.graph.node}
    onnx.checker.check_model(made)


@pytest.mark.parametrize("dialect", ["ort", "tensorrt"])
def test_such_a_graph_is_quantised_and_runs_in_exact_arithmetic(
    left: Path, slim: Path, dialect: str, tmp_path: Path
) -> None:
    """The engine computes 8-bit products exactly, as it does to prove what another device will run."""
    x = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    held = dict.fromkeys(("x", "normed", "first", "second", "y"), (-8.0, 8.0)) | {"lit": (0.0, 8.0)}
    found = tmp_path / "found.onnx"
    write_static(slim, held, {}, DIALECTS[dialect], found)
    batch = next(n for n in onnx.load(found).graph.node if n.op_type == "BatchNormalization")
    assert list(batch.input[1:]) == ["gamma", "beta", "mean", "variance"], "its constants stay constants"
    wanted, got = run(left, x), run(found, x, "int8-static-minmax")
    assert np.square(wanted - got).sum() < 0.01 * np.square(wanted).sum()
