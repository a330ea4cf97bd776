"""The zoo's networks have the shapes of those they stand for; the table says what a build found."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from edgekiln.compile.targets import TARGETS
from edgekiln.devices import load as load_device
from edgekiln.job import load
from edgekiln.prove.arrays import read_npz
from edgekiln.records import Failure

ZOO = Path(__file__).resolve().parents[2] / "examples" / "zoo"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ZOO))


@pytest.mark.parametrize(
    ("factory", "shape", "made", "millions"),
    [
        # Parameters as the papers state them: 5.4 M, 5.7 M, and 22.7 M for MiniLM-L6 (with its pooler).
        ("mobilenet_v3:mobilenet_v3_large", (1, 3, 224, 224), (1, 1000), (5.3, 5.6)),
        ("attention:vit_tiny", (1, 3, 224, 224), (1, 1000), (5.6, 5.8)),
        ("detector:detector", (1, 3, 320, 320), (1, 84, 2100), (2.5, 2.8)),
        ("attention:bert_six", (1, 128), (1, 128, 384), (22.0, 23.0)),
    ],
)
def test_a_network_has_the_shape_and_size_of_the_one_it_stands_for(
    factory: str, shape: tuple[int, ...], made: tuple[int, ...], millions: tuple[float, float]
) -> None:
    module, name = factory.split(":")
    network = getattr(importlib.import_module(module), name)()
    inputs = (
        (torch.randint(1, 1000, shape), torch.ones(shape)) if name == "bert_six" else (torch.rand(shape),)
    )
    with torch.no_grad():
        first, second = network(*inputs), getattr(importlib.import_module(module), name)()(*inputs)
    assert tuple(first.shape) == made
    assert torch.isfinite(first).all()
    assert torch.equal(first, second), "the random weights are the same at every call"
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions[0] < parameters < millions[1]


def test_the_detectors_boxes_are_in_pixels_of_the_picture() -> None:
    from detector import _anchors

    centres, strides = _anchors(320)
    assert centres.shape == (1, 2, 40 * 40 + 20 * 20 + 10 * 10)
    pixels = (centres * strides)[0]
    assert pixels.min() == 4.0
    assert pixels.max() == 316.0


def test_every_job_is_read_and_its_factory_or_file_is_named() -> None:
    for path in sorted(ZOO.glob("*.toml")):
        job = load(path)
        assert job.data is not None
        if not job.model.source.endswith(".onnx"):
            module, name = job.model.source.split(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_the_data_step_makes_what_the_models_take(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ZOO / "data.py"), "--out", str(tmp_path)], check=True, timeout=120)
    sentence = read_npz(tmp_path / "bert-data" / "03.npz")
    seen = sentence["attention_mask"].astype(bool)
    assert sentence["input_ids"].dtype == np.int64
    assert (sentence["input_ids"][seen] > 0).all()
    assert (sentence["input_ids"][~seen] == 0).all()
    heard = read_npz(tmp_path / "silero-data" / "00.npz")
    assert {n: v.shape for n, v in heard.items()} == {"input": (1, 576), "state": (2, 1, 128)}
    assert np.abs(heard["input"]).max() <= 1.5


def test_fixing_the_sampling_rate_leaves_the_branch_of_16_khz(tmp_path: Path) -> None:
    from data import branch_16k

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    branches = []
    for name, op in (("fast", "Neg"), ("slow", "Abs")):
        out = helper.make_tensor_value_info(f"{name}-y", TensorProto.FLOAT, [2])
        branches.append(helper.make_graph([helper.make_node(op, ["x"], [f"{name}-y"])], name, [], [out]))
    wanted = helper.make_node("Constant", [], ["k"], value_int=16000)
    same = helper.make_node("Equal", ["sr", "k"], ["is"])
    chosen = helper.make_node("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph([wanted, same, chosen], "vad", [x, rate], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "both.onnx")
    branch_16k(tmp_path / "both.onnx", tmp_path / "one.onnx")
    session = ort.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    found = session.run(None, {"x": np.array([1, -2], np.float32)})[0]
    np.testing.assert_array_equal(found, [-1, 2])


def test_the_table_has_a_column_per_target_with_a_device_that_takes_it() -> None:
    from table import COLUMNS, MODELS

    assert set(COLUMNS) == set(TARGETS)
    for target, (device, recipe, _) in COLUMNS.items():
        assert target in load_device(device).targets
        assert recipe in TARGETS[target].recipes
    assert all(path.is_file() for path in MODELS.values())


def test_a_failure_stands_in_the_table_with_its_stage_and_reason() -> None:
    from table import _reason

    lost = Failure(
        device="pixel-9",
        target="litert",
        recipe="fp32",
        stage="make",
        kind="failed",
        reason="op Foo\n  is | unknown",
    )
    assert _reason(lost) == "make: op Foo is \\| unknown"
    assert "fault of edgekiln" in _reason(None)
