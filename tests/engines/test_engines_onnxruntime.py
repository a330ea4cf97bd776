"""ONNX Runtime as engine, and as proof engine of half-precision artifacts that it can't compute itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekiln.compile.precision import to_bf16, to_fp16
from edgekiln.engines import onnxruntime as engine
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput, NotRunnableHere
from edgekiln.records import Artifact
from fakes.networks import picture, sqnr_db
from fakes.variants import artifact


def trt(entry: str, arithmetic: str) -> Artifact:
    return artifact(entry, "tensorrt", arithmetic=arithmetic)


def test_a_bf16_artifact_of_another_engine_is_emulated(net: Path, tmp_path: Path) -> None:
    x = {"image": picture(1)}
    (tmp_path / "model.onnx").write_bytes(to_bf16(onnx.load(net)).SerializeToString())
    low = engine.open(trt("model.onnx", "bf16"), tmp_path, 1)(x)["logits"]
    full = engine.open(artifact(net.name, "onnxruntime"), net.parent, 1)(x)["logits"]
    assert low.dtype == np.float32
    assert 15 < sqnr_db(full, low) < 60


def test_fp16_is_emulated_for_a_gpu_and_runs_as_it_is_without_the_option(net: Path, tmp_path: Path) -> None:
    x = {"image": picture(1)}
    (tmp_path / "model.onnx").write_bytes(to_fp16(onnx.load(net)).SerializeToString())
    emulated = engine.open(trt("model.onnx", "fp16"), tmp_path, 1)(x)["logits"]
    direct = engine.open(artifact("model.onnx", "onnxruntime"), tmp_path, 1)(x)["logits"]
    assert not np.array_equal(emulated, direct)
    assert sqnr_db(direct, emulated) > 40


@pytest.mark.parametrize(("arithmetic", "expected"), [("fp16", True), ("bf16", True), ("int8", False)])
def test_only_half_precision_is_emulated(arithmetic: str, expected: bool) -> None:
    assert engine.emulates(trt("model.onnx", arithmetic)) is expected


def test_a_later_call_leaves_earlier_outputs_alone(net: Path) -> None:
    runner = open_engine("onnxruntime", artifact(net.name, "onnxruntime"), net.parent, 1)
    first = runner({"image": picture(1)})["logits"]
    kept = first.copy()
    runner({"image": picture(2)})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("arithmetic", ["fp16", "none"])
def test_a_text_file_is_an_error_with_a_cure(tmp_path: Path, arithmetic: str) -> None:
    (tmp_path / "model.onnx").write_text("not a model")
    with pytest.raises(NotRunnableHere) as caught:
        engine.open(trt("model.onnx", arithmetic), tmp_path, 1)
    assert caught.value.why
    assert "onnxruntime version" in caught.value.cure


def test_an_unknown_engine_is_answered_with_the_near_names(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="onnxruntime"):
        open_engine("onnxruntim", artifact("model.onnx", "onnxruntime"), tmp_path, 1)
