"""Padding channels changes no output: on random networks, on a trained one, and in INT8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.align import align
from edgekiln.compile.make import make, plan
from edgekiln.compile.recipes import needs_calibration, recipe
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput
from edgekiln.files import sha256_file
from edgekiln.records import Artifact
from fakes.variants import model_of


def run(model: onnx.ModelProto, x: Any) -> Any:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def network(widths: list[int], kinds: list[str], seed: int) -> onnx.ModelProto:
    """Blocks of random kinds over whole numbers, so that sums are exact in any order."""
    random = np.random.default_rng(seed)
    held: list[Any] = []
    nodes: list[Any] = []
    count, here, channels = 0, "x", 3

    def const(*shape: int) -> str:
        name = f"w{len(held)}"
        held.append(numpy_helper.from_array(random.integers(-2, 3, shape).astype(np.float32), name))
        return name

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, inputs, [f"t{count}"], **attributes))
        return f"t{count}"

    for width, kind in zip(widths, kinds, strict=True):
        here = node("Conv", [here, const(width, channels, 1, 1), const(width)])
        channels = width
        if kind == "depthwise":
            pads = [1, 1, 1, 1]
            here = node("Conv", [here, const(width, 1, 3, 3), const(width)], group=width, pads=pads)
        elif kind == "residual":
            inner = node("Relu", [here])
            inner = node("Conv", [inner, const(width, width, 1, 1)])
            here = node("Add", [here, inner])
        elif kind == "gate":
            gate = node("Relu", [node("GlobalMaxPool", [here])])
            here = node("Mul", [here, gate])
        elif kind == "scale":
            here = node("Mul", [here, const(1, width, 1, 1)])
            here = node("Add", [here, const(width, 1, 1)])
        elif kind == "concat":
            here = node("Concat", [here, here], axis=1)
            channels = 2 * width
        elif kind == "pool":
            here = node("MaxPool", [here], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "pixel":
            here = node("Mul", [here, const(1, 1, 6, 6)])
    here = node("Flatten", [node("GlobalMaxPool", [here])])
    here = node("Gemm", [here, const(5, channels), const(5)], transB=1)
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


KINDS = ("plain", "depthwise", "residual", "gate", "scale", "concat", "pool", "pixel")


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from(KINDS)), min_size=1, max_size=3),
    st.sampled_from([8, 16]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_network_gives_exactly_what_it_gave(
    blocks: list[tuple[int, str]], multiple: int, seed: int
) -> None:
    model = network([w for w, _ in blocks], [k for _, k in blocks], seed)
    x = np.random.default_rng(seed).integers(-2, 3, (1, 3, 6, 6)).astype(np.float32)
    before = run(model, x)
    # Beyond 2^24 float32 rounds whole numbers, and then the order of a sum shows.
    exact = float(np.abs(before).max()) < 2**20
    align(model, multiple)
    after = run(model, x)
    assert after.shape == before.shape
    if exact:
        assert np.array_equal(after, before)
    else:
        assert np.allclose(after, before, rtol=1e-4, atol=1e-4 * float(np.abs(before).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_kind_of_block_pads(kind: str) -> None:
    model = network([12, 12], [kind, "plain"], 0)
    found = align(model, 8)
    widths = {t.dims[0] for t in model.graph.initializer if len(t.dims) == 4 and t.dims[0] > 1}
    if kind == "concat":  # the first block's channels, the input's and the output's stay
        assert (found.padded, found.fixed) == (1, 3)
        assert widths == {12, 16}
    else:
        assert found.widths == {12: 16}
        assert widths == {16}
    assert "12 to 16" in found.sentence(8)


def test_a_group_that_would_more_than_double_is_left_alone() -> None:
    assert align(network([3], ["plain"], 0), 16).padded == 0


def test_efficientnet_has_multiples_of_8_already_and_gains_for_16(lite0: Path) -> None:
    model, x = onnx.load(lite0), np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    name = model.graph.input[0].name
    plain = ort.InferenceSession(str(lite0), providers=["CPUExecutionProvider"]).run(None, {name: x})[0]
    assert align(model, 8).padded == 0
    found = align(model, 16)
    assert found.widths == {24: 32, 40: 48}
    padded = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    after = padded.run(None, {name: x})[0]
    assert np.abs(after - plain).max() < 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize("name", ["fp32+align16", "int8-static-minmax+align8"])
def test_the_suffix_decodes_to_a_pass_before_the_others(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert found.passes[0].name == "align"
    assert found.passes[1:] == recipe(name.partition("+")[0]).passes
    assert needs_calibration(found) is name.startswith("int8")


@pytest.mark.parametrize(
    "name", ["fp16+align16", "int8-static-mse+round+align8", "fp32+align8+align16", "fp32+align4", "+align8"]
)
def test_other_recipes_with_the_suffix_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        recipe(name)


def test_it_is_tried_only_where_it_is_asked_for() -> None:
    host = load("host")
    assert not any("align" in name for name, _ in plan(host, "onnxruntime", None))
    assert plan(host, "onnxruntime", ["fp32+align16"]) == [("fp32+align16", "")]
    assert plan(host, "litert", ["int8-static-mse+align16"])[0][1]


def made(folder: Path, width: int, name: str) -> tuple[Any, Artifact]:
    """An artifact of a small network of that width, and its outputs over a fixed input."""
    path = folder / f"{width}.onnx"
    onnx.save(network([width, width], ["depthwise", "residual"], 0), path)
    random = np.random.default_rng(0)
    rows = [{"x": random.normal(size=(1, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    shop = Workshop(path, sha256_file(path), Calibration(lambda: rows, 4, "d"), folder, 1, model_of(path))
    place, artifact = make(shop, load("host"), "onnxruntime", name)
    runner = open_engine("onnxruntime", artifact, place, 1)
    return runner(rows[0])["y"], artifact


@pytest.mark.parametrize("base", ["fp32", "int8-static-minmax"])
def test_a_padded_artifact_computes_what_the_plain_one_does(tmp_path: Path, base: str) -> None:
    plain, _ = made(tmp_path, 12, base)
    padded, artifact = made(tmp_path, 12, f"{base}+align16")
    report = artifact.passes[0]
    assert (report.name, report.outcome) == ("align", "kept")
    assert "12 to 16" in report.note
    assert artifact.id == f"host.onnxruntime.{base}+align16"
    # Padding changes no range and no scale of a channel that is used: INT8 gives the same to the bit.
    assert np.allclose(padded, plain, rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))


def test_where_all_channels_fit_already_the_pass_is_not_needed(tmp_path: Path) -> None:
    _, artifact = made(tmp_path, 16, "fp32+align16")
    assert artifact.passes[0].outcome == "unneeded"
    assert "nothing to pad" in artifact.passes[0].note
