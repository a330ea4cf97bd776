"""Predictions: which evidence they rest on, when they are refused, and that none passes for a measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.devices import load, load_catalogue
from edgekiln.errors import BadInput
from edgekiln.forecast.calibration import Anchor, Calibration, calibrate, read, save
from edgekiln.forecast.latency import ALIASES, Prediction, predict
from edgekiln.forecast.profiles import data, precisions, profile, runs
from edgekiln.forecast.terms import FULL, amounts
from edgekiln.model.workload import Layer, Workload, workload
from fakes import networks

ROOT = Path(__file__).resolve().parents[2]
ZOO = json.loads((ROOT / "scripts" / "prediction" / "zoo.json").read_text())


def zoo(name: str) -> Workload:
    return msgspec.convert(ZOO[name]["workload"], Workload)


def one(work: Workload, device: str, target: str, precision: str) -> Prediction:
    (found,) = predict(work, load(device), target, precision)
    return found


def test_every_run_is_of_a_device_and_target_of_the_catalogue_and_has_a_profile() -> None:
    catalogue = load_catalogue()
    for run in runs():
        assert run.device in catalogue, f"{run.device} is not in the catalogue"
        assert run.target in catalogue[run.device].targets
        assert precisions(run), f"{run.chip} {run.runtime} has no profile"
        for name in precisions(run):
            found = profile(run, name)
            assert found is not None
            assert len(found.coefficients) == len(data().groups[found.group].terms)
            assert min(found.coefficients) >= 0
            assert found.published
            assert found.source
            assert set(found.published) <= set(data().models)


@pytest.mark.parametrize(
    ("model", "device", "target", "precision"),
    [
        ("resnet50", "galaxy-s24", "qnn", "fp16"),
        ("mobilenet_v2", "galaxy-s24", "litert", "int8"),
        ("yolo11n", "jetson-orin-nano-8gb", "tensorrt", "fp16"),
        ("yolo11l", "jetson-agx-orin-64gb", "tensorrt", "int8"),
        ("yolo11s", "raspberry-pi-5", "openvino", "fp32"),
    ],
)
def test_a_published_model_is_predicted_near_its_own_figure(
    model: str, device: str, target: str, precision: str
) -> None:
    row = one(zoo(model), device, target, precision)
    (run,) = (r for r in runs() if (r.device, r.target) == (device, target))
    known = profile(run, row.precision)
    assert known is not None
    figure = row.get("latency_p50_ms")
    assert figure.interval is not None
    assert figure.interval[0] <= known.published[model] <= figure.interval[1]
    assert row.nearest[0].model == model
    assert row.nearest[0].distance == 0


def test_a_prediction_says_that_it_is_one_and_on_what_it_rests() -> None:
    row = one(zoo("resnet50"), "galaxy-s24", "qnn", "fp16")
    assert row.basis == "fitted"
    for figure in row.evidence:
        assert figure.how in ("predicted", None)
        assert (figure.value is None) == bool(figure.reason)
    latency = row.get("latency_p50_ms")
    assert latency.environment["basis"].startswith("fitted")
    assert "held-out" in str(latency.environment["interval"])
    assert "ai-hub-models" in latency.source


@pytest.mark.parametrize("device", ["iphone-16-pro", "pixel-9", "intel-n100", "macbook-m4"])
def test_where_nobody_published_a_run_nothing_is_predicted(device: str) -> None:
    for row in predict(zoo("resnet50"), load(device)):
        assert row.basis == "refused"
        assert row.get("latency_p50_ms").value is None
        assert "calibrate-device" in row.get("latency_p50_ms").reason
        assert row.get("arena_bytes").value, "the arena follows from the graph alone"


def test_a_model_unlike_all_measured_ones_has_a_wider_interval_and_is_told_so() -> None:
    like = one(zoo("yolo11m"), "jetson-orin-nano-8gb", "tensorrt", "fp16").get("latency_p50_ms")
    unlike = one(zoo("bert_base_uncased_hf"), "jetson-orin-nano-8gb", "tensorrt", "fp16").get(
        "latency_p50_ms"
    )
    assert like.interval is not None
    assert unlike.interval is not None
    assert unlike.interval[1] / unlike.interval[0] > 5 * like.interval[1] / like.interval[0]
    assert "unlike" in str(unlike.environment["note"])
    assert "note" not in like.environment


def test_a_graph_that_could_not_be_counted_is_refused() -> None:
    work = msgspec.structs.replace(zoo("resnet50"), unresolved=50)
    row = one(work, "galaxy-s24", "qnn", "fp16")
    assert row.basis == "refused"
    assert "--input-shape" in row.get("latency_p50_ms").reason


def test_a_neighbours_figures_are_carried_over_with_a_wider_interval() -> None:
    work = zoo("yolo11m")
    own = one(work, "jetson-orin-nano-8gb", "tensorrt", "fp16").get("latency_p50_ms")
    row = one(work, "jetson-orin-nx-16gb", "tensorrt", "fp16")
    other = row.get("latency_p50_ms")
    assert row.basis == "carried over"
    assert own.interval is not None
    assert other.interval is not None
    assert other.interval[0] < own.interval[0]
    assert other.interval[1] > own.interval[1]


def test_energy_is_carried_over_and_watts_follow() -> None:
    row = one(zoo("yolo11m"), "jetson-orin-nano-8gb", "tensorrt", "fp16")
    mj, watts, ms = (row.get(w).value for w in ("energy_mj", "power_watts", "latency_p50_ms"))
    assert mj is not None
    assert watts is not None
    assert ms is not None
    assert math.isclose(mj, watts * ms)
    assert "low confidence" in str(row.get("energy_mj").environment["note"])
    assert one(zoo("resnet50"), "galaxy-s24", "qnn", "fp16").get("energy_mj").reason


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(ZOO)), st.integers(2, 6))
def test_more_of_the_same_work_never_takes_less(name: str, times: int) -> None:
    work = zoo(name)
    more = msgspec.structs.replace(
        work, layers=tuple(msgspec.structs.replace(x, count=x.count * times) for x in work.layers)
    )
    for precision in ("fp16", "int8"):
        a = one(work, "galaxy-s24", "qnn", precision).get("latency_p50_ms").value
        b = one(more, "galaxy-s24", "qnn", precision).get("latency_p50_ms").value
        assert a is None or b is None or b >= a


def test_amounts_name_every_term_and_add_up() -> None:
    found = amounts(zoo("mobilenet_v2"))
    assert set(FULL) <= set(found)
    assert math.isclose(found["macs"], zoo("mobilenet_v2").macs / 1e6)


def test_the_arena_of_int8_is_a_quarter_of_that_of_fp32() -> None:
    four = one(zoo("yolo11n"), "jetson-orin-nano-8gb", "tensorrt", "fp32").get("arena_bytes").value
    quarter = one(zoo("yolo11n"), "jetson-orin-nano-8gb", "tensorrt", "int8").get("arena_bytes").value
    assert four == 4 * (quarter or 0)


# ---------------------------------------------------------------- the user's own figures


def anchors(*names: str, speed: float = 3.0) -> list[Anchor]:
    """Models that a device three times as slow as the Orin Nano would have been measured on."""
    run = next(r for r in runs() if (r.device, r.target) == ("jetson-orin-nano-8gb", "tensorrt"))
    known = profile(run, "FP16")
    assert known is not None
    return [Anchor(n, zoo(n), known.published[n] * speed) for n in names]


@pytest.mark.parametrize("names", [("yolo26m",), ("yolo26m", "yolo11n"), ("yolo26m", "yolo11n", "yolo11s")])
def test_anchors_teach_the_speed_of_a_device_that_was_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    device = load("jetson-orin-nx-16gb")
    own = calibrate(device, "tensorrt", "fp16", anchors(*names))
    save(own, tmp_path / "own.json")
    (row,) = predict(zoo("yolo11l"), device, "tensorrt", "fp16", (read(tmp_path / "own.json"),))
    assert row.basis == "calibrated"
    figure = row.get("latency_p50_ms")
    assert figure.value is not None
    assert abs(figure.value / (3 * 17.57) - 1) < 0.15, "3 x the figure published for the Orin Nano"
    assert all(name in row.why for name in names)


@pytest.mark.parametrize(
    ("target", "precision", "given_anchors", "says"),
    [
        ("coreml", "fp16", [Anchor("a", zoo("resnet50"), 1.0)], "does not take"),
        ("tensorrt", "fp16", [], "no anchor"),
        ("tensorrt", "fp16", [Anchor("a", zoo("resnet50"), 0.0)], "no latency"),
        ("tensorrt", "fp16", [Anchor("a", zoo("resnet50"), math.nan)], "no latency"),
        ("tensorrt", "fp16", [Anchor("a", zoo("resnet50"), 1.0)] * 2, "twice"),
        ("tensorrt", "w4a16", [Anchor("a", zoo("resnet50"), 1.0)], "no form"),
    ],
)
def test_a_calibration_that_can_not_be_is_refused_with_its_cure(
    target: str, precision: str, given_anchors: list[Anchor], says: str
) -> None:
    with pytest.raises(BadInput, match=says) as refusal:
        calibrate(load("jetson-orin-nx-16gb"), target, precision, given_anchors)
    assert refusal.value.cure


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"schema": 2}'])
def test_a_file_that_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"calibration"):
        read(path)


def test_a_calibration_of_another_version_is_refused(tmp_path: Path) -> None:
    own = calibrate(load("jetson-orin-nx-16gb"), "tensorrt", "fp16", anchors("yolo26m"))
    path = tmp_path / "c.json"
    for odd in ({"coefficients": own.coefficients[:-1]}, {"like": "no chip"}, {"anchors": {}}):
        save(msgspec.structs.replace(own, **odd), path)
        with pytest.raises(BadInput, match="another form"):
            read(path)
    assert isinstance(own, Calibration)


def test_every_alias_is_a_precision_of_some_profile() -> None:
    have = {p.precision for p in data().profiles}
    assert all(set(names) & have for names in ALIASES.values())


def test_an_onnx_file_of_a_user_is_predicted(tmp_path: Path) -> None:
    work = workload(networks.export(tmp_path / "m.onnx", dynamic_batch=False))
    assert all(isinstance(x, Layer) for x in work.layers)
    assert any(r.get("latency_p50_ms").value for r in predict(work, load("galaxy-s24")))


def test_a_layer_that_a_runtime_left_to_the_cpu_in_every_published_graph_is_not_predicted() -> None:
    row = one(zoo("bert_base_uncased_hf"), "galaxy-s24", "onnxruntime", "w8a16")
    assert row.basis == "refused"
    assert "norm" in row.get("latency_p50_ms").reason
    assert "left to the CPU" in row.get("latency_p50_ms").reason
    assert one(zoo("bert_base_uncased_hf"), "galaxy-s24", "qnn", "w8a16").basis == "fitted"
