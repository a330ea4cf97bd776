"""Making an artifact: each recipe in its target's form, once, and with a reason where it is not made."""

import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.make import DROP, MATMUL_SHARE, make, matmul_share, plan, searched_drop
from edgekiln.compile.targets import TARGETS
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load, load_catalogue
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.records import Budget
from fakes.trained_digits import TRAINED
from fakes.variants import model_of

PC = load("intel-n100")
VNNI = msgspec.structs.replace(PC, features=("avx2", "avx_vnni"))
JETSON = load("jetson-orin-nano-8gb")


class Data:
    """Calibration samples that count how often they were asked for."""

    def __init__(self, digits, n=40):
        self.rows, self.reads = digits.samples(0, n), 0

    def __call__(self):
        self.reads += 1
        return iter(self.rows)

    def calibration(self, name="data"):
        return Calibration(self, len(self.rows), name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def shop(digits, cache, data=None):
    calibration = None if data is None else data.calibration()
    return Workshop(digits.graph, sha256_file(digits.graph), calibration, cache, 1, model_of(digits.graph))


def identities(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns, sha256_file(p)) for p in files}


def run(folder, artifact, digits, n=60):
    runner = open_engine(artifact.proof_engine, artifact, folder, 1)
    try:
        rows = digits.samples(TRAINED, TRAINED + n)
        return np.concatenate([next(iter(runner(r).values())) for r in rows])
    finally:
        runner.close()


# ---------------------------------------------------------------- what is made


@pytest.mark.parametrize(
    ("target", "recipe", "arithmetic"),
    [
        ("onnxruntime", "fp32", "fp32"),
        ("onnxruntime", "fp16", "fp16"),
        ("onnxruntime", "int8-static-minmax", "int8"),
        ("onnxruntime", "int8-static-percentile-99.9", "int8"),
        ("onnxruntime", "int8-static-mse", "int8"),
        ("tensorrt", "fp16", "fp16"),
        ("tensorrt", "bf16", "bf16"),
        ("tensorrt", "int8-static-mse", "int8"),
        ("openvino", "fp32", "fp32"),
        ("openvino", "int8-nncf-mixed", "int8"),
    ],
)
def test_each_recipe_gives_an_artifact_that_still_reads_digits(digits, cache, target, recipe, arithmetic):
    device = JETSON if target == "tensorrt" else VNNI
    folder, artifact = make(shop(digits, cache, Data(digits)), device, target, recipe)
    assert (artifact.target, artifact.recipe) == (target, recipe)
    assert max(artifact.precisions, key=artifact.precisions.get) == arithmetic
    for file in artifact.files:
        assert sha256_file(folder / file.path) == file.sha256
        assert (folder / file.path).stat().st_size == file.size_bytes
    assert (folder / artifact.entry).is_file()
    labels = digits.labels[TRAINED : TRAINED + 60]
    assert (run(folder, artifact, digits).argmax(1) == labels).mean() > 0.85


def test_the_passes_say_what_was_done(digits, cache):
    data = Data(digits)
    _, artifact = make(shop(digits, cache, data), VNNI, "onnxruntime", "int8-static-mse")
    (report,) = artifact.passes
    assert report.name == "quantise-static"
    assert report.note.startswith("dialect ort: ")
    assert report.note.endswith("by mse from 40 samples")
    assert report.ops_after["QuantizeLinear"] > 0 == report.ops_before.get("QuantizeLinear", 0)
    _, plain = make(shop(digits, cache), VNNI, "onnxruntime", "fp32")
    assert plain.passes == ()


def test_a_device_without_vnni_gets_another_graph_than_one_with_it(digits, cache):
    plain = msgspec.structs.replace(PC, features=("avx2",))
    files = [
        make(shop(digits, cache, Data(digits)), d, "onnxruntime", "int8-static-minmax")[1].files[0].sha256
        for d in (plain, VNNI)
    ]
    assert files[0] != files[1]


# ---------------------------------------------------------------- once


def test_a_second_time_nothing_is_made_and_no_file_is_touched(digits, tmp_path):
    data = Data(digits)
    first = make(shop(digits, tmp_path, data), VNNI, "onnxruntime", "int8-static-mse")
    before, reads = identities(tmp_path), data.reads
    again = make(shop(digits, tmp_path, data), VNNI, "onnxruntime", "int8-static-mse")
    assert again == first
    assert identities(tmp_path) == before
    # once for the ranges, once for what each layer loses
    assert data.reads == reads == 2


def test_the_data_are_read_once_for_every_static_recipe_and_dialect(digits, tmp_path):
    data = Data(digits)
    for device, target in ((VNNI, "onnxruntime"), (JETSON, "tensorrt")):
        for recipe in ("int8-static-minmax", "int8-static-percentile-99.99", "int8-static-mse"):
            make(shop(digits, tmp_path, data), device, target, recipe)
    # ranges once for all; what the layers lose once per recipe and dialect, on the first samples
    assert data.reads == 1 + 6


def test_other_data_make_another_artifact(digits, tmp_path):
    few, many = Data(digits, 2), Data(digits, 40)
    made = set()
    for name, data in (("few", few), ("many", many)):
        workshop = Workshop(
            digits.graph, "model", data.calibration(name), tmp_path, 1, model_of(digits.graph)
        )
        made.add(make(workshop, VNNI, "onnxruntime", "int8-static-minmax")[1].files[0].sha256)
    assert len(made) == 2


def test_a_float_recipe_does_not_depend_on_the_data(digits, tmp_path):
    data = Data(digits)
    with_data, _ = make(shop(digits, tmp_path, data), VNNI, "onnxruntime", "fp16")
    without, _ = make(shop(digits, tmp_path), VNNI, "onnxruntime", "fp16")
    assert with_data == without
    assert data.reads == 0


AGAIN = """
import sys
from pathlib import Path
import numpy as np
from edgekiln.compile.make import make
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load
from edgekiln.files import sha256_file
from edgekiln.records import Budget
graph, rows, cache = map(Path, sys.argv[1:])
images = np.load(rows)
data = Calibration(lambda: ({"x": i[None]} for i in images), len(images), "data")
import onnx
from edgekiln.model.signature import signature
from edgekiln.records import Model, Source
sig = signature(onnx.load(graph))
source = Source(kind="onnx", files=())
model = Model(name="m", path="m", sha256="", signature=sig, task="tensors", source=source)
shop = Workshop(graph, sha256_file(graph), data, cache, 1, model)
for target, recipe in (("onnxruntime", "fp16"), ("onnxruntime", "int8-static-mse"),
                       ("tensorrt", "int8-static-mse")):
    print(*(f.sha256 for f in make(shop, load("jetson-orin-nano-8gb"), target, recipe)[1].files))
"""


def test_the_same_input_gives_the_same_bytes_in_another_process_and_cache(digits, tmp_path):
    np.save(tmp_path / "rows.npy", digits.images[:20])

    def told(name):
        command = [sys.executable, "-c", AGAIN, str(digits.graph), str(tmp_path / "rows.npy")]
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = told("a")
    assert len(first.split()) >= 3
    assert told("b") == first


# ---------------------------------------------------------------- what is not made


@pytest.mark.parametrize(
    ("target", "recipe"), [("onnxruntime", "int8-static-mse"), ("openvino", "int8-nncf-mixed")]
)
def test_without_calibration_data_a_static_recipe_fails_with_the_cure(digits, tmp_path, target, recipe):
    with pytest.raises(ConversionFailed, match="no data was given") as caught:
        make(shop(digits, tmp_path), VNNI, target, recipe)
    assert "--data" in caught.value.cure
    assert list(tmp_path.rglob("*")) == []


def test_an_unknown_recipe_is_refused_before_any_work(digits, tmp_path):
    with pytest.raises(BadInput, match="no recipe has this name"):
        make(shop(digits, tmp_path), VNNI, "onnxruntime", "int8-static-best")
    assert list(tmp_path.rglob("*")) == []


def test_a_failed_calibration_leaves_no_step_behind(digits, tmp_path):
    data = Data(digits)
    data.rows[7]["x"] = np.full((1, 1, 8, 8), np.nan, np.float32)
    with pytest.raises(ConversionFailed, match="tensor 'x' holds NaN or infinity on sample 8"):
        make(shop(digits, tmp_path, data), VNNI, "onnxruntime", "int8-static-mse")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# ---------------------------------------------------------------- what is tried


def skipped(device, target, recipes=None, share=None):
    return {name: reason for name, reason in plan(device, target, recipes, share) if reason}


def test_every_recipe_of_a_target_is_tried_or_has_a_reason():
    for device in load_catalogue().values():
        for target in TARGETS:
            assert [name for name, _ in plan(device, target, None)] == list(TARGETS[target].recipes)


def test_every_device_of_the_catalogue_can_be_planned_for():
    for device in load_catalogue().values():
        for target in device.targets:
            for share in (None, 0.0, 1.0):
                rows = plan(device, target, None, share, samples=64, trainer=True)
                assert any(not reason for _, reason in rows), f"{device.name}: {target} has nothing to try"


def test_bfloat16_is_skipped_where_the_device_is_not_known_to_compute_in_it():
    assert "not known to compute in bfloat16" in skipped(PC, "openvino")["bf16"]
    for target, feature in (("openvino", "avx512_bf16"), ("openvino", "amx_bf16"), ("tensorrt", "bf16")):
        able = msgspec.structs.replace(PC, features=(feature,))
        assert "bf16" not in skipped(able, target)
    arm = msgspec.structs.replace(PC, arch="arm64", features=("bf16",))
    assert "by openvino" in skipped(arm, "openvino")["bf16"]


def test_dynamic_quantisation_is_skipped_for_convolutional_graphs_and_the_share_is_named(digits):
    share = matmul_share(digits.graph)
    # 8x8x16x9 and 4x4x32x16x9 multiply-adds in the convolutions, 128x10 in the head.
    assert share == pytest.approx(1280 / (1280 + 9216 + 73728))
    why = "for matmul-heavy graphs; MatMul and Gemm do 1.5% of this one's work"
    products = "int8-static-minmax+round+bias+layers"
    weights = ("w8-block64", "w8-block128")
    assert skipped(PC, "onnxruntime", None, share) == dict.fromkeys(("int8-dynamic", products, *weights), why)
    searched = skipped(PC, "onnxruntime", None, MATMUL_SHARE)
    assert set(searched) == {"int8-static-mse+round+bias", "int8-mixed-0.01"}
    assert searched["int8-mixed-0.01"].startswith("for graphs of convolutions; MatMul and Gemm do 50.0%")
    assert skipped(PC, "onnxruntime", None, None) == {}


def matmuls(folder, shape):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 16))],
        [numpy_helper.from_array(np.ones((8, 16), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_the_share_of_matrix_products_is_the_whole_in_a_graph_of_them_alone(tmp_path):
    assert matmul_share(matmuls(tmp_path, (4, 8))) == 1.0


def test_only_the_recipes_that_were_asked_for_are_tried():
    assert plan(PC, "onnxruntime", ["fp16", "fp32"]) == [("fp16", ""), ("fp32", "")]


def test_another_percentile_can_be_asked_for():
    name = "int8-static-percentile-99.5"
    assert plan(PC, "onnxruntime", [name]) == [(name, "")]
    assert plan(PC, "openvino", [name]) == [(name, "")]
    assert "no such recipe" in skipped(PC, "executorch", [name])[name]


def test_the_bound_of_a_mixed_recipe_is_the_budgets():
    names = [name for name, _ in plan(VNNI, "openvino", None, None, 0.025)]
    assert "int8-mixed-0.025" in names
    assert "int8-mixed-0.01" not in names


def test_where_a_device_computes_in_bfloat16_mixed_recipes_use_it():
    able = msgspec.structs.replace(VNNI, features=(*VNNI.features, "amx_bf16"))
    assert "int8-mixed-0.01+bf16 is tried instead" in skipped(able, "openvino")["int8-mixed-0.01"]
    assert "not known to compute in bfloat16" in skipped(VNNI, "openvino")["int8-mixed-0.01+bf16"]


def test_a_recipe_that_a_target_does_not_have_is_a_row_with_the_reason():
    rows = dict(plan(PC, "onnxruntime", ["fp32", "int8-nncf-mixed"]))
    assert rows["fp32"] == ""
    assert rows["int8-nncf-mixed"].startswith("onnxruntime has no such recipe; it takes fp32, fp16")


@pytest.mark.parametrize(
    ("target", "device", "taken", "refused"),
    [
        ("onnxruntime", PC, ["int8-static-entropy", "int8-static-percentile-99.5"], ["a16w8-static-mse"]),
        ("tensorrt", JETSON, ["int8-static-entropy"], ["a16w8-static-mse"]),
        ("web", load("browser"), ["int8-static-entropy"], ["a16w8-static-mse"]),
        ("qnn", load("galaxy-s24"), ["int8-static-entropy", "a16w8-static-mse"], []),
        ("litert", load("raspberry-pi-5"), [], ["int8-static-entropy", "a16w8-static-mse"]),
    ],
)
def test_any_range_rule_of_a_kind_that_a_target_takes_can_be_asked_for(target, device, taken, refused):
    rows = dict(plan(device, target, [*taken, *refused]))
    assert [name for name, reason in rows.items() if not reason] == taken
    assert all(target in rows[name] for name in refused)


@pytest.mark.parametrize(
    ("budget", "labelled", "drop"),
    [
        (Budget(), False, DROP),
        (Budget(accuracy_drop=0.02), False, 0.02),
        (Budget(agreement=0.95), True, 0.05),
        (Budget(accuracy_drop=0.01, agreement=0.95), False, 0.05),  # decisions are what it can judge
        (Budget(accuracy_drop=0.01, agreement=0.95), True, 0.01),
    ],
)
def test_a_search_holds_what_the_budget_says_of_the_figure_that_it_can_judge(budget, labelled, drop):
    assert searched_drop(budget, labelled) == pytest.approx(drop)
