"""Web artifacts: same bytes, opened in a real Chromium, placement as the runtime itself logs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekiln.compile.quantise.static import quantise_dynamic
from edgekiln.compile.targets.web import convert, placement
from edgekiln.devices import load
from edgekiln.engines import npm
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import web as engine
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact
from fakes.networks import picture, quantise, sqnr_db
from fakes.variants import artifact as native
from fakes.variants import order

BROWSER = load("browser")


def made(model: Path, recipe: str, folder: Path, **more: object) -> Artifact:
    return convert(order(folder / "variant", model, recipe, BROWSER, **more), folder / "out")


def answers(made: Artifact, folder: Path, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runner = engine.open(made, folder / "out", 1)
    try:
        return runner(x)
    finally:
        runner.close()


@pytest.fixture(scope="module")
def whole(net: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return made(net, "fp32", folder), folder


def test_two_conversions_give_the_same_record_and_the_same_bytes(
    whole: tuple[Artifact, Path], net: Path, tmp_path: Path
) -> None:
    second = made(net, "fp32", tmp_path / "elsewhere")
    assert whole[0] == second
    assert (tmp_path / "elsewhere/out/model.onnx").read_bytes() == net.read_bytes()
    assert second.id == "browser.web.fp32"
    assert (second.engine, second.proof_engine) == ("web", "web")


def test_the_runtime_itself_says_that_every_node_runs_in_wasm(whole: tuple[Artifact, Path]) -> None:
    artifact, _ = whole
    wasm, webgpu, webnn = artifact.placement
    assert (wasm.provider, wasm.how, wasm.partitions, wasm.fallback) == ("wasm", "measured", 1, {})
    assert wasm.operators == wasm.taken
    assert wasm.operators is not None
    assert wasm.operators > 5
    for row in (webgpu, webnn):
        assert (row.operators, row.taken) == (None, None)
        assert row.detail
    assert {check.name: check.passed for check in artifact.checks} == {"loads": True, "threads": True}
    assert set(artifact.tools) == {"onnx", "onnxruntime-web"}


def test_int8_computes_in_the_browser_what_it_computes_natively(net: Path, tmp_path: Path) -> None:
    int8 = quantise(net, tmp_path / "int8.onnx", symmetric=False)
    artifact = made(int8, "int8-static-mse", tmp_path)
    x = {"image": picture(7)}
    found = answers(artifact, tmp_path, x)["logits"]
    full = reference.open(native(net.name, "onnxruntime"), net.parent, 1)(x)["logits"]
    same = reference.open(native("int8.onnx", "onnxruntime"), tmp_path, 1)(x)["logits"]
    assert sqnr_db(same, found) > 20
    assert 5 < sqnr_db(full, found) < 60  # it is not the float graph


def test_dynamically_quantised_weights_run_there(net: Path, tmp_path: Path) -> None:
    quantise_dynamic(net, tmp_path / "dynamic.onnx")
    artifact = made(tmp_path / "dynamic.onnx", "int8-dynamic", tmp_path)
    x = {"image": picture(7)}
    same = reference.open(native("dynamic.onnx", "onnxruntime"), tmp_path, 1)(x)["logits"]
    assert sqnr_db(same, answers(artifact, tmp_path, x)["logits"]) > 20


def test_one_file_takes_every_size_where_several_are_asked_for(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    shapes = (["N", 3, "height", "width"], ["N", 3])
    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("image", "means"), shapes, strict=True)
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
    ]
    graph = helper.make_graph(nodes, "means", [inputs], [outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "any.onnx")
    artifact = made(tmp_path / "any.onnx", "fp32", tmp_path, sizes=((32, 48), (64, 64)))
    assert [(r.height, r.width, r.entry) for r in artifact.resolutions] == [
        (32, 48, "model.onnx"),
        (64, 64, "model.onnx"),
    ]
    assert artifact.flexible
    runner = engine.open(artifact, tmp_path / "out", 1)
    try:
        for size in ((32, 48), (64, 64)):
            x = np.random.default_rng(1).random((1, 3, *size), np.float32)
            assert np.allclose(runner({"image": x})["means"], x.mean((2, 3)), atol=1e-5)
    finally:
        runner.close()


def test_an_operator_that_the_runtime_does_not_know_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "made.up"
    model.opset_import.append(onnx.helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Unheard"):
        made(tmp_path / "odd.onnx", "fp32", tmp_path)


def test_without_a_runtime_here_the_artifact_says_that_nothing_opened_it(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(npm.VARIABLE, str(tmp_path))
    artifact = made(net, "fp32", tmp_path)
    (check,) = artifact.checks
    assert check.passed is None
    assert "npm install" in check.detail
    assert artifact.placement[0].operators is None
    assert "onnxruntime-web" in artifact.placement[0].detail


def test_nodes_on_several_providers_are_counted_apart() -> None:
    lines = (
        " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3",
        " Node(s) placed on [JsExecutionProvider]. Number of nodes: 7",
    )
    row = placement(lines)
    assert (row.operators, row.taken, row.partitions) == (10, 3, None)
    assert placement(()).operators is None
