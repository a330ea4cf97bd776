"""Ranges carried from one build to another, and what a build says of the data that it found ranges on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.calibration_file import read_calibration
from edgekiln.records import Build
from fakes import digits
from fakes.command import Kiln

ONE = ("--target", "onnxruntime", "--threads", "1", "--samples", "20", "--out", "out")
STATIC = ("--recipe", "int8-static-mse", *ONE)


def build(kiln: Kiln, *arguments: object) -> Build:
    done = kiln("build", *arguments)
    assert done.code in (0, 1), (done.stdout, done.stderr)
    return msgspec.json.decode((kiln.folder / "out" / "evidence.json").read_bytes(), type=Build)


@pytest.fixture
def calibrated(kiln: Kiln, digit_files: Path) -> Path:
    """The calibration file of a build with data, moved to where another machine would have it."""
    build(kiln, digit_files / "digits.onnx", *STATIC, "--data", digit_files / "data")
    made = kiln.folder / "out" / "calibration.npz"
    return made.rename(kiln.folder / "carried.npz")


def test_a_build_that_observes_writes_its_ranges_and_says_what_they_rest_on(
    kiln: Kiln, digit_files: Path
) -> None:
    found = build(kiln, digit_files / "digits.onnx", *STATIC, *digits.data_arguments(digit_files))
    held = read_calibration(kiln.folder / "out" / "calibration.npz")
    assert found.calibration is not None
    assert held.header.samples == len(found.calibration.samples) == 18
    assert held.header.model == "digits"
    assert {"x", "scores"} <= set(held.seen)
    checks = {c.name: c for c in found.calibration_checks}
    assert set(checks) == {f"calibration {k}" for k in ("samples", "channels", "outliers", "domain")}
    assert checks["calibration samples"].passed is False
    assert checks["calibration outliers"].passed is True
    assert checks["calibration domain"].passed is True
    assert "labelled samples: at least 0.5 sure of" in checks["calibration domain"].detail
    told = [w for w in found.warnings if "calibration samples to trust: 18 samples" in w]
    assert len(told) == 1


def test_the_file_stands_in_for_the_data_and_gives_the_same_artifact(
    kiln: Kiln, digit_files: Path, calibrated: Path
) -> None:
    model = digit_files / "digits.onnx"
    with_data = build(kiln, model, *STATIC, "--data", digit_files / "data")
    kiln.cache = kiln.folder / "cache"  # another machine has nothing of the first build
    alone = build(kiln, model, *STATIC, "--recipe", "int8-static-mse+round", "--calibration", calibrated.name)
    proof = next(p for p in alone.proofs if p.artifact.recipe == "int8-static-mse")
    assert proof.artifact.files == with_data.proofs[0].artifact.files
    assert "18 samples (ranges from the calibration file of 18 samples)" in proof.artifact.passes[-1].note
    row = next(f for f in alone.failures if f.recipe == "int8-static-mse+round")
    assert "holds the ranges of one graph, no samples" in row.reason
    assert "--data" in row.cure
    assert "nothing can be calibrated" not in " ".join(alone.warnings)
    assert any("too few calibration samples" in w for w in alone.warnings)
    again = read_calibration(kiln.folder / "out" / "calibration.npz")
    first = read_calibration(calibrated)
    assert np.array_equal(again.seen["scores"].counts, first.seen["scores"].counts)


def test_a_file_of_another_graph_is_refused_with_the_cure(kiln: Kiln, calibrated: Path) -> None:
    weights = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 6, 6))],
        [weights],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        kiln.folder / "other.onnx",
    )
    done = kiln("build", "other.onnx", *STATIC, "--calibration", calibrated)
    assert done.code == 2
    assert "it is of another graph (digits" in done.stderr
    assert "Calibrate again with --data" in done.stderr
    assert kiln("build", "other.onnx", *STATIC, "--calibration", "none.npz").code == 2


def test_where_nothing_is_calibrated_no_file_is_left(kiln: Kiln, digit_files: Path, calibrated: Path) -> None:
    (kiln.folder / "out" / "calibration.npz").write_bytes(calibrated.read_bytes())
    found = build(kiln, digit_files / "digits.onnx", "--recipe", "fp32", *ONE)
    assert not (kiln.folder / "out" / "calibration.npz").exists()
    assert found.calibration_checks == ()


def test_pictures_of_another_domain_are_told_by_the_float_models_confidence(
    kiln: Kiln, digit_files: Path
) -> None:
    from PIL import Image

    (kiln.folder / "noise").mkdir()
    rng = np.random.default_rng(0)
    for number in range(32):
        noise = rng.integers(100, 130, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(kiln.folder / "noise" / f"{number:02d}.png")
    labelled = ("--eval", digit_files / "eval", "--labels", digit_files / "labels.txt")
    found = build(kiln, digit_files / "digits.onnx", *STATIC, "--data", "noise", *labelled)
    domain = next(c for c in found.calibration_checks if c.name == "calibration domain")
    assert domain.passed is False, domain.detail
    assert domain.detail in found.warnings
