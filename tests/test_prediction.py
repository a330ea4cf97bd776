"""``edgekiln predict`` and ``calibrate-device``, as a user types them; predictions in a build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekiln.devices import load
from edgekiln.model.workload import workload
from edgekiln.records import Artifact
from edgekiln.rows import foretold
from fakes.command import Kiln


def artifact(target: str, recipe: str) -> Artifact:
    return Artifact(
        id=recipe,
        target=target,
        recipe=recipe,
        engine=target,
        proof_engine="onnxruntime",
        entry="m",
        files=(),
        options={},
        tools={},
        precisions={},
    )


def test_predict_answers_in_json_and_says_that_nothing_was_measured(
    cold_kiln: Kiln, digit_files: Path
) -> None:
    done = cold_kiln("predict", digit_files / "digits.onnx", "--device", "galaxy-s24", "--json")
    assert done.code == 0, (done.stdout, done.stderr)
    rows = done.json["rows"]
    assert {r["target"] for r in rows} >= {"qnn", "litert", "onnxruntime"}
    for row in rows:
        for figure in row["evidence"]:
            assert figure.get("how") in ("predicted", None)
            assert (figure["value"] is None) == bool(figure.get("reason"))


def test_predict_shows_a_table_with_the_interval_and_the_evidence(kiln: Kiln, digit_files: Path) -> None:
    done = kiln("predict", digit_files / "digits.onnx", "--device", "galaxy-s24", "--precision", "int8")
    assert done.code == 0
    assert "none measured" in done.stdout
    assert "fitted" in done.stdout
    assert "published, ms, the nearest" in done.stdout


def test_where_nothing_can_be_predicted_the_code_is_1_and_the_cure_is_told(
    kiln: Kiln, digit_files: Path
) -> None:
    done = kiln("predict", digit_files / "digits.onnx", "--device", "iphone-16-pro")
    assert done.code == 1
    assert "calibrate-device" in done.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--device", "jetson-orin-nano"], "jetson-orin-nano-8gb"),
        (["--device", "galaxy-s24", "--precision", "fp12"], "precision"),
        (["--device", "galaxy-s24", "--target", "tensorrt"], "does not take it"),
        (["--device", "galaxy-s24", "--measured", "none.json"], "calibrate-device"),
    ],
)
def test_a_wrong_word_is_refused_with_its_cure(
    kiln: Kiln, digit_files: Path, more: list[str], says: str
) -> None:
    done = kiln("predict", digit_files / "digits.onnx", *more)
    assert done.code == 2
    assert says in done.stderr
    assert "cure" in done.stderr


def test_your_own_figure_teaches_a_device(
    kiln: Kiln, cold_kiln: Kiln, digit_files: Path, tmp_path: Path
) -> None:
    model, out = digit_files / "digits.onnx", tmp_path / "own.json"
    order = ["--target", "tensorrt", "--precision", "fp16", "--out", out]
    done = cold_kiln("calibrate-device", "jetson-orin-nx-16gb", *order, "--anchor", f"{model}=2.5")
    assert done.code == 0, done.stderr
    assert json.loads(out.read_text())["anchors"] == {"digits.onnx": 2.5}
    told = kiln("predict", model, "--device", "jetson-orin-nx-16gb", "--measured", out, "--json").json["rows"]
    (row,) = (r for r in told if r["basis"] == "calibrated")
    (latency,) = (e for e in row["evidence"] if e["what"] == "latency_p50_ms")
    assert latency["value"] == pytest.approx(2.5, rel=1e-3), "the anchor itself"


@pytest.mark.parametrize(
    ("anchor", "says"),
    [("none.onnx=3", "no ONNX file"), ("{model}=soon", "no number"), ("{model}", "no time")],
)
def test_an_anchor_that_is_none_is_refused(kiln: Kiln, digit_files: Path, anchor: str, says: str) -> None:
    text = anchor.format(model=digit_files / "digits.onnx")
    done = kiln("calibrate-device", "jetson-orin-nx-16gb", "--target", "tensorrt", "--anchor", text)
    assert done.code == 2
    assert says in done.stderr


def test_the_host_is_measured_here_where_no_time_is_given(
    kiln: Kiln, digit_files: Path, tmp_path: Path
) -> None:
    model, out = digit_files / "digits.onnx", tmp_path / "host.json"
    order = ["--target", "onnxruntime", "--anchor", model, "--out", out]
    done = kiln("calibrate-device", "host", *order)
    assert done.code == 0, done.stderr
    assert json.loads(out.read_text())["anchors"]["digits.onnx"] > 0


# ---------------------------------------------------------------- in a build


def test_an_artifact_is_foretold_in_its_precision(digit_files: Path) -> None:
    work = workload(digit_files / "digits.onnx", {"": (1, 1, 8, 8)})
    device = load("jetson-orin-nano-8gb")
    found = {
        recipe: foretold(work, device, artifact("tensorrt", recipe))
        for recipe in ("fp32", "fp16", "int8-static-mse", "int8-mixed-0.01", "w4-block32", "int8-dynamic")
    }
    assert found["w4-block32"] is None
    assert found["int8-dynamic"] is None
    eight, half, mixed = found["int8-static-mse"], found["fp16"], found["int8-mixed-0.01"]
    assert eight is not None
    assert half is not None
    assert mixed is not None
    assert mixed.interval is not None
    assert eight.interval is not None
    assert half.interval is not None
    assert mixed.interval[0] == min(eight.interval[0], half.interval[0])
    assert mixed.interval[1] == max(eight.interval[1], half.interval[1])
    assert all(f is None or f.how == "predicted" for f in found.values())
    assert foretold(work, load("iphone-16-pro"), artifact("coreml", "fp16")) is None
