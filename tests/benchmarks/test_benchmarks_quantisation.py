"""What the benchmark of quantisers computes from measurements, on measurements whose answer is known."""

from __future__ import annotations

import base64
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.job import load

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _as_the_benchmark_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"quantisation.{name}")


# ---------------------------------------------------------------- a whole smoke run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Standard output, the JSON and the folder of ``run.py --quick``."""
    out = tmp_path_factory.mktemp("quantisation")
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, str(BENCHMARKS / "quantisation" / "run.py"), "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": search}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout, json.loads((out / "quantisation.json").read_text(encoding="utf-8")), out


def test_every_contender_quantises_is_judged_and_timed_in_turns(smoke: Any) -> None:
    _, held, _ = smoke
    (found,) = held["raw"]
    rows = {row["contender"]: row for row in found["rows"]}
    assert set(rows) == set(module("contenders").QUICK)
    turns = {len(row["blocks_ms"]) for row in rows.values()}
    assert len(turns) == 1, "a round has a block of each"
    for name, row in rows.items():
        assert row["failure"] == "", name
        assert row["judged"]["metric"] == "top-1"
        assert row["judged"]["agreement"] > 0.8
        assert row["size_bytes"] > 1000
        assert row["seconds"] >= row["inner_seconds"] > 0
        assert row["peak_bytes"] > 30e6, "a Python with numpy is larger"
    assert rows["ort-fp32"]["judged"]["drop"] == 0
    assert rows["ort-best"]["note"].startswith("calibrator ")


def test_a_smoke_run_says_so_and_its_tables_are_those_of_the_json(smoke: Any) -> None:
    text, held, out = smoke
    assert "its figures mean nothing" in text
    assert [table["title"] for table in held["tables"]][-1] == "Goals"
    for table in held["tables"]:
        assert f"### {table['title']}" in text
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert {path.name for path in out.iterdir()} == {"cache", "quantisation.json"}


# ---------------------------------------------------------------- goals from known rows


def blocks(middle: float, turns: int = 12) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(middle + 0.001 * ((turn + call) % 3 - 1) for call in range(5)) for turn in range(turns)
    )


def row(name: str, ms: float, drop: float | None = 0.0, **more: Any) -> Any:
    judging, course = module("judging"), module("course")
    figures = {"agreement": 0.98, "sure": 1.0, "sure_samples": 50, "interval": (drop or 0) - 0.02} | more
    low = figures.pop("interval")
    seconds = figures.pop("seconds", 10.0)
    judged = judging.Judged(
        samples=100,
        metric="top-1",
        value=0.8,
        reference=0.8,
        drop=drop,
        interval=(low, low + 0.04),
        **{k: figures[k] for k in ("agreement", "sure", "sure_samples")},
    )
    return course.Row(
        contender=name, judged=judged, blocks_ms=blocks(ms), seconds=seconds, run_peak_bytes=100
    )


def found(rows: list[Any], name: str = "efficientnet-lite0", memory: Any = ()) -> Any:
    scenes, course = module("scenes"), module("course")
    scene = scenes.Scene(
        name=name, title=name.upper(), judge="classes", calibration=64, validation=64, evaluation=100
    )
    return course.Found(
        scene=scene, rows=tuple(rows), memory=tuple(memory), threads=2, when="now", machine={}, unfit=()
    )


def verdicts(table: Any) -> dict[str, tuple[str, str]]:
    return {goal: (value, verdict) for goal, value, _, verdict in table.rows}


def test_goals_of_one_model_are_judged_from_its_rows() -> None:
    course = module("course")
    memory = [course.Memory(samples=32, peak_bytes=140), course.Memory(samples=2000, peak_bytes=200)]
    rows = [
        row("ours", 2.0, agreement=0.96, seconds=50.0),
        row("ours-alone", 2.0, seconds=5.0),
        row("ort-fp32", 5.0),
        row("ort-best", 2.5, drop=0.05),
        row("openvino-bf16", 3.0),
        row("olive", 2.2, drop=0.02, seconds=20.0),
    ]
    got = verdicts(module("tables").goals([found(rows, memory=memory)]))
    name = "EFFICIENTNET-LITE0"
    assert got[f"{name}: agreement"] == ("96.0%", "missed by 1.0%")
    assert got[f"{name}: agreement where sure"] == ("100.0%", "met")
    assert got[f"{name}: latency over ONNX Runtime per channel"][0].startswith("0.800 (")
    assert got[f"{name}: latency over ONNX Runtime per channel"][1] == "met"
    assert got[f"{name}: labelled top-1 lost, interval reaches 0"][1] == "met"
    value, verdict = got[f"{name}: latency over the fastest that keeps 1 %"]
    assert value.endswith("over OpenVINO bf16"), "the faster two lost more than 1 %"
    assert value.startswith("0.667 (")
    assert verdict == "met"
    assert got["geometric mean of 1 models"] == ("0.667", "met")
    assert got[f"{name}: time of the chosen recipe over Olive's workflow"][1] == "met"
    assert got[f"{name}: time of all recipes over Olive's workflow"][1] == "missed by 1.5"
    assert got[f"{name}: memory over the float model's run, 32 samples"] == ("1.40", "met")
    assert got[f"{name}: memory over the float model's run, 2000 samples"] == ("2.00", "missed by 0.5")
    lost = [course.Memory(samples=32, peak_bytes=None, failure="nothing was chosen")]
    got = verdicts(module("tables").goals([found(rows, memory=lost)]))
    assert got[f"{name}: memory over the float model's run, 32 samples"] == ("—", "not judged")


def test_a_real_loss_a_slower_artifact_and_a_broken_bound_are_missed_goals() -> None:
    tables = module("tables")
    rows = [row("ours", 4.0, drop=0.06, interval=0.01), row("ort-best", 2.0), row("ort-fp32", 5.0)]
    got = verdicts(tables.goals([found(rows), found([row("ours", 1.0), row("ort-best", 2.0)], "pp-ocr")]))
    name = "EFFICIENTNET-LITE0"
    assert got[f"{name}: labelled top-1 lost, interval reaches 0"][1] == "missed by 0.01"
    assert got[f"{name}: latency over ONNX Runtime per channel"][1] == "missed by 0.95"
    assert got[f"{name}: latency over the fastest that keeps 1 %"][1].startswith("missed: it lost +6.00%")
    value, verdict = got["geometric mean of 2 models"]
    assert float(value) == pytest.approx(math.sqrt(2.0 * 0.5), abs=2e-3)
    assert verdict.endswith("1 % was not kept on efficientnet-lite0")


def test_a_tie_is_called_a_tie() -> None:
    rows = [row("ours", 2.0), row("ort-best", 2.0)]
    noisy = [
        tuple(ms + 0.2 * (turn % 2) + 0.002 for ms in block) for turn, block in enumerate(rows[0].blocks_ms)
    ]
    ours = __import__("msgspec").structs.replace(rows[0], blocks_ms=tuple(noisy))
    got = verdicts(module("tables").goals([found([ours, rows[1]])]))
    value, verdict = got["EFFICIENTNET-LITE0: latency over the fastest that keeps 1 %"]
    assert float(value.split()[0]) > 1
    assert verdict in {"a tie: the interval reaches 1", "missed by 0.05", "missed by 0.051"}


def test_what_was_not_measured_is_not_judged() -> None:
    course = module("course")
    lost = course.Row(contender="ours", failure="quantising: it broke")
    got = verdicts(module("tables").goals([found([lost, row("ort-best", 2.0), row("olive", 2.0)])]))
    assert {verdict for _, verdict in got.values()} == {"not judged"}
    table = module("tables").figures(found([lost]))
    assert table.rows[0][-1] == "quantising: it broke"


# ---------------------------------------------------------------- what the tasks are about


def run_task(judge: str, pairs: list[tuple[NDArray[Any], NDArray[Any]]], **scene: Any) -> Any:
    judging, scenes = module("judging"), module("scenes")
    about = scenes.Scene(
        name="n", title="t", judge=judge, calibration=1, validation=1, evaluation=len(pairs), **scene
    )
    task = judging._TASKS[judge](about)
    for place, (expected, got) in enumerate(pairs):
        task.add(place, {"y": expected}, {"y": got})
    return task.result(samples=len(pairs), sqnr_db=20.0, agreement=0.75)


def test_labelled_samples_decide_about_classes_and_agreement_where_there_are_none() -> None:
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    pairs = [(first, first), (first, second), (second, second), (first, second)]
    judged = run_task("classes", pairs, labels=(0, 0, 1, None))
    assert (judged.metric, judged.reference) == ("top-1", 1.0)
    assert judged.drop == pytest.approx(1 / 3)
    assert judged.interval[0] < judged.drop < judged.interval[1]
    assert judged.more == "3 labelled: 1 lost, 0 gained"
    judged = run_task("classes", pairs)
    assert (judged.metric, judged.value, judged.drop) == ("agreement", 0.75, 0.25)


def test_maps_are_compared_where_they_pass_the_threshold() -> None:
    before, after = np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4))
    before[0, 0, :2], after[0, 0, 1:3] = 0.9, 0.31
    judged = run_task("map", [(before, after), (before, before)])
    assert judged.value == pytest.approx((4 / 12 + 1) / 2)
    assert judged.more == "worst page 0.333"


def test_embeddings_are_compared_by_angle_and_by_their_neighbours() -> None:
    vectors = [np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]]), np.array([[0.0, 1.0]]), np.array([[0.1, 0.9]])]
    judged = run_task("embedding", [(v, 3 * v) for v in vectors])
    assert judged.value == pytest.approx(1.0)
    assert judged.more == "nearest neighbour the same for 100.0%"
    swapped = [vectors[0], vectors[2], vectors[1], vectors[3]]
    judged = run_task("embedding", list(zip(vectors, swapped, strict=True)))
    assert judged.drop > 0.3
    assert judged.more == "nearest neighbour the same for 0.0%"


def test_values_are_kept_by_the_energy_of_their_error() -> None:
    judged = run_task("values", [(np.ones((1, 4)), np.ones((1, 4)))])
    assert judged.drop == pytest.approx(0.01), "20 dB is an error of a hundredth of the energy"


def nanodet_outputs(
    stride: int, cell: int, label: int, score: float, sides: tuple[int, ...]
) -> dict[str, Any]:
    """Nothing anywhere but one box: its cell's class, and a sure distance in strides for each side."""
    found = {}
    for one in (8, 16, 32):
        cells = (416 // one) ** 2
        scores, spread = np.zeros((1, cells, 80)), np.zeros((1, cells, 44))
        if one == stride:
            scores[0, cell, label] = score
            for side, distance in enumerate(sides):
                spread[0, cell, 11 * side + distance] = 50.0
        found |= {f"s{one}": scores, f"b{one}": spread}
    return found


def test_a_box_is_decoded_where_its_distances_say() -> None:
    boxes = module("boxes")
    outputs = nanodet_outputs(16, 2 * 26 + 5, 17, 0.8, (1, 2, 3, 4))
    got = boxes.decode(outputs, 416)
    x, y = (5 + 0.5) * 16, (2 + 0.5) * 16
    assert got.corners.tolist() == [pytest.approx([x - 16, y - 32, x + 48, y + 64])]
    assert (got.classes.tolist(), got.scores.tolist()) == ([17], [0.8])
    assert boxes.matched(got, got) == 1
    other = boxes.decode(nanodet_outputs(16, 2 * 26 + 5, 18, 0.8, (1, 2, 3, 4)), 416)
    assert boxes.matched(got, other) == 0, "another class is another thing"
    judged = run_task_boxes(outputs, nanodet_outputs(16, 0, 17, 0.8, (1, 2, 3, 4)))
    assert judged.value == 0.0


def run_task_boxes(expected: Any, got: Any) -> Any:
    judging, scenes = module("judging"), module("scenes")
    scene = scenes.Scene(name="n", title="t", judge="boxes", calibration=1, validation=1, evaluation=1)
    task = judging._TASKS["boxes"](scene)
    task.add(0, expected, got)
    return task.result(samples=1, sqnr_db=20.0)


def test_of_overlapping_boxes_of_a_class_the_best_stays() -> None:
    boxes = module("boxes")
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]], np.float64)
    scores = np.zeros((3, 80))
    scores[0, 3], scores[1, 3], scores[2, 3] = 0.5, 0.9, 0.4
    assert boxes._kept(corners, scores).scores.tolist() == [0.9, 0.4]


# ---------------------------------------------------------------- the photographs


def test_a_photograph_is_told_from_a_drawing(tmp_path: Path) -> None:
    stamps = module("stamps")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    alpha = np.full((40, 40, 1), 255, np.uint8)
    drawn = np.repeat(np.repeat(noise[:8, :8], 5, 0), 5, 1)
    for name, pixels in (("photo", noise), ("drawn", drawn)):
        Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / f"{name}.png")
    assert stamps.is_photograph(tmp_path / "photo.png", "any/photo")
    assert not stamps.is_photograph(tmp_path / "drawn.png", "any/drawn")
    assert not stamps.is_photograph(tmp_path / "photo.png", "any/photo_mirror")
    assert not stamps.is_photograph(tmp_path / "photo.png", "any/cartoon/photo")


def test_names_become_classes_only_where_they_are_one() -> None:
    stamps = module("stamps")
    assert stamps.plain_words("A “Granny Smith” apple.") == "granny smith apple"
    assert stamps.plain_words("A spiny lobster, from the Hawaiian islands.") == "spiny lobster"
    assert stamps.plain_words("A pair of binoculars.") == "binoculars"
    names = ["crane (bird)", "crane", "drake (male duck)", "Granny Smith apple"]
    assert stamps.class_indices(names) == {"drake": 2, "granny smith apple": 3}, "two cranes are no class"


def test_no_set_holds_a_picture_of_another_sets_thing() -> None:
    stamps, data = module("stamps"), module("data")
    names = [f"plants/flower{n}" for n in range(9)] + [
        f"thing/{a}{b}" for a in "abcdefghijkl" for b in "mnopqrstuvwxyz"
    ]
    labels = {"thing/am": 3, "thing/bn": 4}
    found = [stamps.Stamp(name, Path(name), labels.get(name)) for name in names]
    sets = data.split(found)
    places = {s.name: place for place, members in sets.items() for s in members}
    assert set(places) == set(names)
    assert len({places[f"plants/flower{n}"] for n in range(9)}) == 1, "one group, one set"
    assert {places[name] for name in labels} == {"evaluation"}
    assert (len(sets["calibration"]), len(sets["validation"])) == (data.CALIBRATION, data.VALIDATION)
    assert data.split(list(reversed(found)))["calibration"] == sets["calibration"], "whatever the order"


def test_a_stamp_lies_whole_in_the_centre_crop(tmp_path: Path) -> None:
    data = module("data")
    Image.new("RGBA", (70, 20), (200, 0, 0, 255)).save(tmp_path / "wide.png")
    picture = data.on_white(tmp_path / "wide.png")
    assert picture.size == (80, 80)
    pixels = np.asarray(picture)
    assert pixels[40, 5].tolist() == pixels[40, 74].tolist() == [200, 0, 0]
    assert pixels[40, 4].tolist() == pixels[29, 40].tolist() == [255, 255, 255]


def test_as_many_samples_as_are_asked_for_and_no_two_alike(tmp_path: Path) -> None:
    data = module("data")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for n in range(2):
        Image.fromarray(np.roll(pixels, n, 0)).save(tmp_path / f"{n}.png")
    found = [picture.resize((60, 60)).tobytes() for picture in data.many(tmp_path, 13)]
    assert len(found) == len(set(found)) == 13


# ---------------------------------------------------------------- the graph of NanoDet


def tfjs_model(folder: Path, last: str = "LeakyRelu") -> Path:
    """Pad, transpose, Conv2D with a bias, activation: the pattern that NanoDet repeats, as TensorFlow.js."""
    rng = np.random.default_rng(0)
    weights = {
        "pads": np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.int32),
        "to_nhwc": np.array([0, 2, 3, 1], np.int32),
        "to_nchw": np.array([0, 3, 1, 2], np.int32),
        "kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float16),
        "bias": rng.normal(size=4).astype(np.float16),
    }
    (folder / "m.bin").write_bytes(b"".join(w.tobytes() for w in weights.values()))
    conv = {
        "padding": {"s": base64.b64encode(b"VALID").decode()},
        "strides": {"list": {"i": ["1", "2", "2", "1"]}},
    }
    nodes = [
        {"name": "x", "op": "Placeholder"},
        *({"name": name, "op": "Const"} for name in weights),
        {"name": "padded", "op": "Pad", "input": ["x", "pads"]},
        {"name": "nhwc", "op": "Transpose", "input": ["padded", "to_nhwc"]},
        {"name": "conv", "op": "Conv2D", "input": ["nhwc", "kernel"], "attr": conv},
        {"name": "added", "op": "Add", "input": ["conv", "bias"]},
        {"name": "nchw", "op": "Transpose", "input": ["added", "to_nchw"]},
        {"name": "y", "op": last, "input": ["nchw"], "attr": {"alpha": {"f": 0.1}}},
    ]

    def shaped(name: str, shape: tuple[int, ...]) -> Any:
        return {"name": f"{name}:0", "tensorShape": {"dim": [{"size": str(n)} for n in shape]}}

    manifest = [
        {"name": n, "shape": list(w.shape), "dtype": "int32"}
        if w.dtype == np.int32
        else {"name": n, "shape": list(w.shape), "dtype": "float32", "quantization": {"dtype": "float16"}}
        for n, w in weights.items()
    ]
    model = {
        "modelTopology": {"node": nodes},
        "signature": {
            "inputs": {"x": shaped("x", (1, 2, 7, 7))},
            "outputs": {"y": shaped("y", (1, 4, 4, 4))},
        },
        "weightsManifest": [{"paths": ["m.bin"], "weights": manifest}],
    }
    (folder / "m.json").write_text(json.dumps(model))
    return folder / "m.json"


def test_a_tensorflow_js_graph_computes_the_same_as_onnx(tmp_path: Path) -> None:
    import onnxruntime as ort
    import torch

    tfjs = module("tfjs")
    made = tfjs.simplified(tfjs.convert(tfjs_model(tmp_path)))
    assert [node.op_type for node in made.graph.node] in (["Conv", "LeakyRelu"], ["Pad", "Conv", "LeakyRelu"])
    x = np.random.default_rng(1).normal(size=(1, 2, 7, 7)).astype(np.float32)
    held = tfjs.weights(tmp_path, json.loads((tmp_path / "m.json").read_text())["weightsManifest"])
    kernel, bias = (
        torch.from_numpy(held["kernel"].transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(held["bias"]),
    )
    expected = torch.nn.functional.leaky_relu(
        torch.nn.functional.conv2d(torch.from_numpy(x), kernel, bias, stride=2, padding=1), 0.1
    )
    (found,) = ort.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_an_operator_that_the_converter_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="CropAndResize"):
        module("tfjs").convert(tfjs_model(tmp_path, last="CropAndResize"))


# ---------------------------------------------------------------- few samples


def test_what_draws_tell_is_held_against_the_samples_that_they_left_out() -> None:
    """A count of a quarter of a known share, an estimate that knows the share, one that is off by a tenth."""
    error = module("estimates").error
    values = np.zeros(200)
    values[:150] = 1
    knows, hopes = error(values, lambda some: 0.75), error(values, lambda some: 0.85)
    assert (knows.truth, knows.drawn, knows.bias) == (0.75, 50, 0)
    # a draw of 50 without replacement, less the mean of the other 150
    assert knows.counted == pytest.approx(np.sqrt(0.75 * 0.25 / 200) * (3**0.5 + 3**-0.5), rel=0.2)
    assert knows.estimated < 0.5 * knows.counted
    assert hopes.bias == pytest.approx(0.1)


# ---------------------------------------------------------------- orders


def order(tmp_path: Path, judge: str = "classes", **more: Any) -> Any:
    scenes, contenders = module("scenes"), module("contenders")
    folder = tmp_path / "scene"
    for place in ("calibration", "validation"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for n in range(5):
            np.savez(folder / place / f"{n:05d}.npz", x=np.full((1, 2), n, np.float32))
    (folder / "graph.onnx").write_bytes(b"")
    scene = scenes.Scene(name="n", title="t", judge=judge, calibration=5, validation=5, evaluation=5)
    return contenders.Order(
        scene=scene, folder=folder, into=tmp_path / "into", threads=2, samples=more.pop("samples", 64), **more
    )


def test_our_job_is_one_that_edgekiln_reads_with_what_was_asked_for(tmp_path: Path) -> None:
    ours = module("ours")
    asked = order(tmp_path, recipes=("int8-static-mse",), targets=("openvino",), samples=3)
    (asked.folder / "validation.csv").write_text("path,label\nvalidation/00000.npz,1\n")
    work = tmp_path / "work"
    work.mkdir()
    (work / "job.toml").write_text(ours.job_text(asked, work))
    job = load(work / "job.toml")
    assert (job.search.recipes, job.search.targets, job.search.threads) == (
        ("int8-static-mse",),
        ("openvino",),
        2,
    )
    assert job.budget.max_drop == 0.01
    assert len(list(job.path(str(job.data)).glob("*.npz"))) == 3, "as many samples as everyone else has"
    assert job.path(str(job.eval)).is_file()
    (work / "job.toml").write_text(ours.job_text(order(tmp_path, judge="map"), work))
    pages = load(work / "job.toml")
    assert (pages.model.task, pages.budget.max_drop, pages.metric.threshold) == ("segmentation", 0.01, 0.3)
    (work / "job.toml").write_text(ours.job_text(order(tmp_path, judge="boxes"), work))
    boxes = load(work / "job.toml")
    assert (boxes.model.task, boxes.metric.decoder, boxes.metric.bins) == ("detection", "nanodet", 11)
    for judge, db in (("embedding", 17.0), ("values", 20.0)):
        (work / "job.toml").write_text(ours.job_text(order(tmp_path, judge=judge), work))
        assert load(work / "job.toml").budget.sqnr_db == db
    (work / "job.toml").write_text(ours.job_text(order(tmp_path, bounded=False), work))
    assert load(work / "job.toml").budget.max_drop is None, "what was chosen before is made whatever it gives"


def test_labelled_photographs_are_among_those_that_our_build_judges_by(tmp_path: Path) -> None:
    asked = order(tmp_path)
    labelled = asked.folder / "validation-labelled"
    labelled.mkdir()
    np.savez(labelled / "00000.npz", x=np.zeros((1, 2), np.float32))
    (tmp_path / "job.toml").write_text(module("ours").job_text(asked, tmp_path / "work"))
    job = load(tmp_path / "job.toml")
    assert len(list(job.path(str(job.holdout)).glob("*.npz"))) == 5 + 1


def test_olive_is_told_priorities_without_a_gap_and_accuracy_only_of_classes(tmp_path: Path) -> None:
    workflow = module("olive_workflow")
    asked = order(tmp_path)
    (asked.folder / "validation.csv").write_text("path,label\nvalidation/00000.npz,1\n")
    metrics = workflow.config(asked, tmp_path)["evaluators"]["both"]["metrics"]
    assert {m["name"]: m["sub_types"][0]["priority"] for m in metrics} == {"accuracy": 1, "latency": 2}
    metrics = workflow.config(order(tmp_path, judge="map"), tmp_path)["evaluators"]["both"]["metrics"]
    assert [m["sub_types"][0]["priority"] for m in metrics] == [1]


def test_olives_log_says_why_there_is_no_model() -> None:
    reason = module("olive_workflow").reason
    log = f"[INFO] fine\nort.InvalidGraph: Load model from {ROOT}/x.onnx failed\n[WARNING] No output\n"
    assert reason(log) == "ort.InvalidGraph: Load model from x.onnx failed"
    assert reason("one\ntwo\n") == "two"
    assert reason("") == ""


def test_the_histogram_calibrators_reader_gives_stretches(tmp_path: Path) -> None:
    reader = module("contenders")._Reader(order(tmp_path, samples=4))
    assert len(reader) == 4
    reader.set_range(2, 4)
    seen = [reader.get_next(), reader.get_next()]
    assert [float(s["x"][0, 0]) for s in seen] == [2.0, 3.0]
    assert reader.get_next() is None


def test_unknown_names_are_refused_with_what_there_is() -> None:
    command = module("command")
    with pytest.raises(SystemExit, match="unknown model: resnet; there are a, b"):
        command.chosen("a, resnet", ("a", "b"), "model")
    assert command.chosen("b,a", ("a", "b"), "model") == ("a", "b")
    with pytest.raises(BadInput, match="nobody knows it"):
        module("scenes").prepare("resnet")
