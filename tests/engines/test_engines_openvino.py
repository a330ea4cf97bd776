"""The OpenVINO engine computes in the precision that the artifact states, and says when it can't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from edgekiln.compile.precision import emulate_bf16
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import openvino as engine
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from fakes.networks import picture, sqnr_db
from fakes.variants import artifact

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def ir(net: Path, tmp_path: Path) -> Path:
    openvino.save_model(openvino.Core().read_model(net), tmp_path / "model.xml", compress_to_fp16=False)
    return tmp_path


def test_without_an_option_it_computes_in_float32(ir: Path, net: Path) -> None:
    x = {"image": picture(1)}
    runner = engine.open(artifact("model.xml", "openvino"), ir, 1)
    expected = reference.open(artifact(net.name, "onnxruntime"), net.parent, 1)(x)["logits"]
    assert np.abs(runner(x)["logits"] - expected).max() < 1e-4 * np.abs(expected).max()


def test_bf16_rounds_where_the_cpu_has_it_and_is_refused_where_not(ir: Path, net: Path) -> None:
    asked = artifact("model.xml", "openvino", INFERENCE_PRECISION_HINT="bf16")
    if not HAS_BF16:
        with pytest.raises(NotRunnableHere, match="bf16"):
            engine.open(asked, ir, 1)
        return
    x = {"image": picture(1)}
    low = engine.open(asked, ir, 1)(x)["logits"]
    full = engine.open(artifact("model.xml", "openvino"), ir, 1)(x)["logits"]
    assert 15 < sqnr_db(full, low) < 60
    (ir / "bf16.onnx").write_bytes(emulate_bf16(onnx.load(net)).SerializeToString())
    emulated = reference.open(artifact("bf16.onnx", "onnxruntime"), ir, 1)(x)["logits"]
    assert sqnr_db(full, emulated) == pytest.approx(sqnr_db(full, low), abs=10)


@pytest.mark.parametrize(
    ("asked", "effective", "capable"),
    [
        ("bf16", "float32", ("FP32", "INT8")),
        ("bf16", "bfloat16", ("FP32", "INT8")),
        ("f32", "bfloat16", ("FP32", "BF16")),
        ("f16", "bfloat16", ("FP32", "BF16")),
    ],
)
def test_another_precision_than_asked_for_is_refused(
    asked: str, effective: str, capable: tuple[str, ...]
) -> None:
    with pytest.raises(NotRunnableHere, match=asked):
        engine.require_precision("model.xml", asked, effective, capable)


def test_the_precision_asked_for_is_accepted() -> None:
    engine.require_precision("model.xml", "f32", "float32", ("FP32",))
    engine.require_precision("model.xml", "bf16", "bfloat16", ("FP32", "BF16"))


def test_f16_on_this_cpu_is_refused_because_openvino_would_take_another(ir: Path) -> None:
    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in float16")
    with pytest.raises(NotRunnableHere, match="f16"):
        engine.open(artifact("model.xml", "openvino", INFERENCE_PRECISION_HINT="f16"), ir, 1)


def test_a_later_call_leaves_earlier_outputs_alone(ir: Path) -> None:
    runner = engine.open(artifact("model.xml", "openvino"), ir, 1)
    first = runner({"image": picture(1)})["logits"]
    kept = first.copy()
    second = runner({"image": picture(2)})["logits"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_inputs_are_not_changed_and_may_be_changed_afterwards(ir: Path) -> None:
    runner, x = engine.open(artifact("model.xml", "openvino"), ir, 1), picture(1)
    before = x.copy()
    first = runner({"image": x})["logits"]
    assert np.array_equal(x, before)
    x[:] = 0
    assert np.array_equal(runner({"image": before})["logits"], first)


def test_nothing_is_written_beside_the_model(ir: Path) -> None:
    engine.open(artifact("model.xml", "openvino"), ir, 1)({"image": picture(1)})
    assert sorted(path.name for path in ir.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize("content", ["not a model", "<net/>"])
def test_a_broken_model_is_an_error_with_a_cure(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.xml").write_text(content)
    with pytest.raises(NotRunnableHere) as caught:
        engine.open(artifact("model.xml", "openvino"), tmp_path, 1)
    assert "openvino version" in caught.value.cure


def test_an_unknown_precision_names_the_known_ones(ir: Path) -> None:
    with pytest.raises(BadInput, match="f32, bf16, f16"):
        engine.open(artifact("model.xml", "openvino", INFERENCE_PRECISION_HINT="f8"), ir, 1)


def test_without_the_package_the_extra_is_named(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"edgekiln\[openvino\]"):
        engine.open(artifact("model.xml", "openvino"), ir, 1)
