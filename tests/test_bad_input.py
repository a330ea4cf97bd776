"""What bad input gets: a clear error with its cure, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.records import Build
from fakes import digits
from fakes.command import Done, Kiln, contents

QUICK = ("--target", "onnxruntime", "--recipe", "fp32", "--threads", "1", "--samples", "20")


@pytest.fixture
def work(kiln: Kiln, digit_files: Path) -> Kiln:
    """A command line whose folder holds copies of the digits' files, to be spoilt."""
    shutil.copytree(digit_files, kiln.folder, dirs_exist_ok=True)
    return kiln


def build(work: Kiln, *arguments: object, model: str = "digits.onnx") -> Done:
    done = work("build", model, *QUICK, "--out", "out", *arguments)
    if done.code == 2:
        assert not (work.folder / "out").exists()
    assert not list(work.folder.rglob(".*.onnx*"))
    return done


def evidence(work: Kiln) -> Build:
    return msgspec.json.decode((work.folder / "out" / "evidence.json").read_bytes(), type=Build)


# ---------------------------------------------------------------- models


def test_a_text_file_named_onnx(work: Kiln) -> None:
    (work.folder / "notes.onnx").write_text("these are not the weights you are looking for\n")
    build(work, model="notes.onnx").refused("notes.onnx", "text file")
    work("inspect", "notes.onnx").refused("notes.onnx", "text file")
    work("bench", "notes.onnx").refused("notes.onnx", "text file")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_model(work: Kiln, share: float) -> None:
    whole = (work.folder / "digits.onnx").read_bytes()
    (work.folder / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    build(work, model="cut.onnx").refused("cut.onnx", "part of one", "again")


@pytest.mark.parametrize("name", ["", "model.pt", "model.tflite", "model.h5"])
def test_a_model_that_is_not_there_or_of_another_format(work: Kiln, name: str) -> None:
    (work.folder / "model.pt").write_bytes(b"PK\x03\x04")
    (work.folder / "model.tflite").write_bytes(b"TFL3")
    (work.folder / "model.h5").write_bytes(b"\x89HDF")
    build(work, model=name or "none.onnx").refused(name or "none.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_external_data_outside_the_models_folder(work: Kiln, location: str) -> None:
    inner = work.folder / "inner"
    inner.mkdir()
    (work.folder / "secret.bin").write_bytes(bytes(4096))
    (inner / "link.bin").symlink_to(work.folder / "secret.bin")
    model = onnx.load(work.folder / "digits.onnx")
    weight = next(i for i in model.graph.initializer if i.name == "6.bias")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (inner / "model.onnx").write_bytes(model.SerializeToString())
    build(work, model="inner/model.onnx").refused(location, "folder" if "link" not in location else "link")


def test_external_data_that_changes_is_read_again(work: Kiln) -> None:
    model = onnx.load(work.folder / "digits.onnx")
    onnx.save(model, work.folder / "two.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    work.cache = work.folder / "cache"
    data = digits.data_arguments(work.folder)
    assert build(work, *data, model="two.onnx").code == 0
    first = evidence(work)
    spoilt = np.frombuffer((work.folder / "w.bin").read_bytes(), np.float32) * np.float32(0.5)
    (work.folder / "w.bin").write_bytes(spoilt.tobytes())
    build(work, *data, model="two.onnx")
    assert evidence(work).model.sha256 != first.model.sha256


# ---------------------------------------------------------------- data


def test_missing_and_unreadable_pictures_among_good_ones_are_rows_of_the_report(work: Kiln) -> None:
    (work.folder / "data" / "torn.png").write_bytes((work.folder / "data" / "1500.png").read_bytes()[:60])
    (work.folder / "data" / "text.jpg").write_text("no picture")
    (work.folder / "data" / "gone.png").symlink_to("nowhere.png")
    table = [f"{p.relative_to(work.folder / 'eval')},{p.parent.name}" for p in work.folder.rglob("eval/*/*")]
    (work.folder / "eval" / "all.csv").write_text("\n".join(["path,label", *table, "zero/lost.png,zero"]))
    done = build(work, *digits.data_arguments(work.folder))
    assert done.code == 0, done.stderr
    found = evidence(work)
    assert found.calibration is not None
    assert found.evaluation is not None
    rejected = {r.path: r.reason for r in found.calibration.rejected}
    assert set(rejected) == {"torn.png", "text.jpg", "gone.png"}
    assert "no such file" in rejected["gone.png"]
    assert "known format" in rejected["text.jpg"]
    assert [r.path for r in found.evaluation.rejected] == ["zero/lost.png"]
    assert len(found.evaluation.samples) == 60
    page = (work.folder / "out" / "report.html").read_text()
    assert all(name in page for name in (*rejected, "zero/lost.png"))


def test_an_empty_data_folder(work: Kiln) -> None:
    (work.folder / "empty").mkdir()
    build(work, "--data", "empty").refused("empty", "it is empty", "pictures")
    build(work, "--data", "nowhere").refused("nowhere", "no such folder")
    build(work, "--eval", "empty", "--labels", "labels.txt").refused("empty", "it is empty")


def test_a_folder_of_files_that_are_no_data(work: Kiln) -> None:
    (work.folder / "notes").mkdir()
    (work.folder / "notes" / "a.txt").write_text("a")
    build(work, "--data", "notes").refused("a.txt", "none of its 1 files can be used")


def test_a_label_with_no_class(work: Kiln) -> None:
    (work.folder / "eval" / "three").rename(work.folder / "eval" / "thre")
    build(work, *digits.data_arguments(work.folder)).refused("'thre'", "no class", "Did you mean 'three'")


def test_an_index_that_is_no_class(work: Kiln) -> None:
    picture = next(work.folder.rglob("eval/*/*.png"))
    (work.folder / "t").mkdir()
    shutil.copy(picture, work.folder / "t" / "a.png")
    (work.folder / "t" / "t.csv").write_text("path,label\na.png,10\n")
    build(work, "--eval", "t").refused("10", "classes")
    build(work, "--eval", "t", "--labels", "labels.txt").refused("10 classes", "0 to 9")


def test_as_many_labels_as_classes(work: Kiln) -> None:
    (work.folder / "labels.txt").write_text("a\nb\n")
    build(work, "--labels", "labels.txt").refused("2 labels for 10 classes")
    (work.folder / "labels.txt").write_text("\n")
    build(work, "--labels", "labels.txt").refused("labels.txt", "empty")
    (work.folder / "labels.txt").write_bytes(b"\xff\xfe\x00")
    build(work, "--labels", "labels.txt").refused("labels.txt", "UTF-8")


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("1x3x8x8", "does not fit"),
        ("1x8x8", "3 axes"),
        ("1x1x9x8", "does not fit"),
        ("1x1xeightx8", "not like"),
        ("0x1x8x8", "not like"),
        ("y=1x1x8x8", "no input has this name"),
    ],
)
def test_input_shapes_that_do_not_fit(work: Kiln, shape: str, why: str) -> None:
    build(work, "--input-shape", shape).refused(why)
    work("inspect", "digits.onnx", "--input-shape", shape).refused(why)
    work("bench", "digits.onnx", "--input-shape", shape).refused(why)


def test_tensor_files_of_another_shape_name_or_type_are_rows_and_all_of_them_are_an_error(work: Kiln) -> None:
    folder = work.folder / "arrays"
    folder.mkdir()
    good = np.zeros((1, 1, 8, 8), np.float32)
    np.savez(folder / "shape.npz", x=good[:, :, :7])
    np.savez(folder / "name.npz", y=good)
    np.savez(folder / "type.npz", x=good.astype(np.float64))
    np.save(folder / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    build(work, "--data", "arrays").refused("none of its 3 samples fits")
    for number in range(3):
        np.savez(folder / f"good{number}.npz", x=good + number)
    assert build(work, "--data", "arrays").code == 0
    found = evidence(work)
    assert found.calibration is not None
    assert {r.path for r in found.calibration.rejected} == {
        "shape.npz",
        "name.npz",
        "type.npz",
        "pickled.npy",
    }


def test_a_preprocessing_that_does_not_fit_the_model(work: Kiln) -> None:
    job = '[preprocess]\nwidth = 9\nheight = 8\ncolour = "GRAY"\nmean = [0.0]\nstd = [1.0]\n'
    (work.folder / "job.toml").write_text('out = "out"\n[model]\nsource = "digits.onnx"\n' + job)
    work("build", "job.toml").refused("1x1x8x9", "batchx1x8x8")
    assert not (work.folder / "out").exists()


# ---------------------------------------------------------------- outputs


def test_a_model_whose_outputs_are_nan(work: Kiln) -> None:
    model = onnx.load(work.folder / "digits.onnx")
    bias = next(i for i in model.graph.initializer if i.name == "6.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), "6.bias"))
    onnx.save(model, work.folder / "nan.onnx")
    build(work, "--data", "data", model="nan.onnx").refused("scores", "NaN", "before any change")


def test_an_artifact_whose_outputs_overflow_is_a_failed_row_and_the_others_go_on(work: Kiln) -> None:
    _overflowing(work.folder / "wide.onnx")
    arguments = ["--device", "jetson-orin-nano-8gb", "--target", "tensorrt", "--recipe", "fp16"]
    done = build(work, "--data", "data", *arguments, model="wide.onnx")
    assert done.code == 0, done.stderr
    found = evidence(work)
    rows = [f for f in found.failures if f.kind == "failed"]
    assert {(f.target, f.recipe, f.stage) for f in rows} == {
        ("tensorrt", "fp16", "prove"),
        ("onnxruntime", "fp16", "prove"),
    }
    assert all("NaN" in f.reason and "fp32 or bf16" in f.cure for f in rows)
    assert {p.artifact.recipe for p in found.proofs} == {"fp32"}


def _overflowing(path: Path) -> None:
    """Sums of about 1e6: fine in float32, infinite in float16."""
    weights = [
        numpy_helper.from_array(np.full((4, 1, 3, 3), 2e4, np.float32), "w"),
        numpy_helper.from_array(np.full((4, 4, 1, 1), 1e4, np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Conv", ["a", "v"], ["y"], name="sum"),
    ]
    shape: list[Any] = [1, 1, 8, 8]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


# ---------------------------------------------------------------- jobs and options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('devcies = ["host"]\n[model]\nsource = "digits.onnx"', ("'devcies'", "Did you mean 'devices'")),
        ('[model]\nsorce = "digits.onnx"', ("'sorce' in [model]", "Did you mean 'source'")),
        ('[model]\nsource = "m.onnx"\n[budget]\nlatency = 5', ("'latency' in [budget]", "'latency_ms'")),
        ('[model]\nsource = "m.onnx"\n[preprocess]\nwidht = 5', ("'widht'", "'width'")),
        ('base = "/"\n[model]\nsource = "m.onnx"', ("'base'",)),
        ('[model]\nsource = 5', ("model.source",)),
        ('[model\nsource = "x"', ("not valid TOML", "line 1")),
        ('[model]\nsource = "m.onnx"\n[budget]\nmax_drop = 2', ("max_drop", "between 0 and 1")),
        ('[model]\nsource = "m.onnx"\n[budget]\nmemory_mb = inf', ("memory_mb", "finite")),
        ('[model]\nsource = "m.onnx"\n[budget]\nsqnr_db = nan', ("sqnr_db", "finite")),
        ('devices = []\n[model]\nsource = "m.onnx"', ("no device", "--device")),
        ("", ("model",)),
    ],
)  # fmt: skip
def test_a_job_file_with_an_unknown_key_or_value(work: Kiln, text: str, words: tuple[str, ...]) -> None:
    (work.folder / "job.toml").write_text(text)
    work("build", "job.toml").refused("job.toml", *words)


def test_a_job_file_that_is_not_there(work: Kiln) -> None:
    work("build", "jbo.toml").refused("jbo.toml", "no such file")


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        ("--device", "jetson-orin-nano", ("jetson-orin-nano-8gb",)),
        ("--device", "rasberry-pi-5", ("raspberry-pi-5",)),
        ("--device", "jetson", ("jetson-agx-orin-32gb", "jetson-agx-orin-64gb")),
        ("--device", "../../etc/passwd", ("no such device",)),
        ("--target", "tensort", ("Did you mean 'tensorrt'",)),
        ("--target", "corml", ("coreml",)),
        ("--recipe", "int8-static-minmx", ("Did you mean 'int8-static-minmax'",)),
        ("--latency-ms", "-1", ("not positive",)),
        ("--latency-ms", "nan", ("finite",)),
        ("--max-drop", "1.5", ("between 0 and 1",)),
        ("--agreement", "97", ("above 1",)),
    ],
)
def test_an_unknown_name_gets_the_near_ones_and_an_odd_figure_its_meaning(
    work: Kiln, option: str, given: str, words: tuple[str, ...]
) -> None:
    build(work, option, given).refused(given if option != "--agreement" else "agreement", *words)


def test_devices_gives_the_near_names(work: Kiln) -> None:
    work("devices", "iphone").refused("iphone", "Did you mean 'iphone-15-pro' or 'iphone-16-pro'")


def test_pictures_that_would_be_read_from_the_output_folder(work: Kiln) -> None:
    build_in_data = work("build", "digits.onnx", *QUICK, "--data", "data", "--out", "data")
    build_in_data.refused("data", "output folder", "--out")
    assert sorted(contents(work.folder / "data")) == sorted(f"{n}.png" for n in range(1497, 1521))


# ---------------------------------------------------------------- the disk


def limited(bytes_a_file: int) -> Callable[[], None]:
    """A limit on the size of files makes writes fail as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))


def test_no_disk_space_for_the_first_step(work: Kiln) -> None:
    work.cache = work.folder / "cache"
    done = work("build", "digits.onnx", *QUICK, "--out", "out", before=limited(4096))
    done.refused("model.onnx", "no space is left on the disk", "Free some space")
    assert not (work.folder / "out").exists()
    assert not list(work.folder.rglob(".*"))


def test_no_disk_space_for_the_bundle_leaves_no_result(
    work: Kiln, digit_files: Path, digit_build: Path
) -> None:
    """With every step in the cache only the results are written, the bundle first; it is the largest."""
    arguments = [*digits.build_arguments(digit_files), "--out", "out"]
    whole = contents(digit_build)
    done = work(*arguments, before=limited(len(whole["bundles/host.edgekiln"]) - 1))
    done.refused("bundles/host.edgekiln", "no space is left on the disk", "Free some space")
    # what was observed is no result: it is whole, and serves the next run
    assert set(contents(work.folder / "out")) == {"calibration.npz"}
    assert work(*arguments).code == 0
    assert contents(work.folder / "out") == whole


def test_no_disk_space_for_a_result_leaves_those_before_it_whole(work: Kiln, digit_files: Path) -> None:
    """No artifact is that small, so there is no bundle: evidence and report are written, each larger."""
    arguments = [*digits.build_arguments(digit_files), "--size-mb", "0.0001"]
    assert work(*arguments, "--out", "whole").code == 1
    whole = contents(work.folder / "whole")
    for name, before in (("evidence.json", set()), ("report.html", {"evidence.json", "decision.json"})):
        done = work(*arguments, "--out", "out", before=limited(len(whole[name]) - 1))
        done.refused(name, "no space is left on the disk", "Free some space")
        found = contents(work.folder / "out")
        assert set(found) == before | {"calibration.npz"}
        assert all(data == whole[path] for path, data in found.items())
    assert work(*arguments, "--out", "out").code == 1
    assert contents(work.folder / "out") == whole


@pytest.mark.parametrize("variable", ["TMPDIR", "EDGEKILN_CACHE"])
def test_a_full_disk_for_temporary_files_or_the_cache(work: Kiln, variable: str) -> None:
    """Converters write temporary files in native code, which has its own words for a full disk."""
    tiny = work.folder / "tiny"
    tiny.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tiny)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        fixed = ["--target", "openvino", "--threads", "1", "--samples", "20", "--out", "out"]
        environment = {
            **work.environment(),
            "EDGEKILN_CACHE": str(work.folder / "cache"),
            variable: str(tiny),
        }
        command = work.command("build", "digits.onnx", *fixed, "--data", "data")
        done = subprocess.run(
            command, cwd=work.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        Done(done.returncode, done.stdout, done.stderr).refused("tiny", "no space is left on the disk")
        assert not (work.folder / "out").exists()
        assert not list(tiny.rglob(".*"))
    finally:
        subprocess.run(["umount", str(tiny)], check=True)
