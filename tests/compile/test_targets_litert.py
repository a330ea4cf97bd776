"""``.tflite`` files: the model's names, NHWC pictures, each recipe's fidelity, metadata, honest placement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.recipes import QUANTISE_LITERT
from edgekiln.compile.targets import TARGETS
from edgekiln.compile.targets import litert_layout as layout
from edgekiln.compile.targets.litert import convert
from edgekiln.compile.targets.litert_float import compare, draft, require_same
from edgekiln.engines import litert as engine
from edgekiln.engines import onnxruntime as reference
from edgekiln.errors import BadInput, ConversionFailed, MissingExtra
from edgekiln.prove.parity import OutputParity
from edgekiln.records import Preprocess
from fakes.litert_files import Shop, labels, metadata, raw, shop, without_kernel
from fakes.networks import picture, sqnr_db
from fakes.trained_digits import TRAINED
from fakes.variants import PC, model_of, order

ALL = ("fp32", "fp16", *QUANTISE_LITERT)
LEAST_DB = {
    "fp32": 100,
    "fp16": 55,
    "int8-litert-dynamic": 33,
    "int8-litert-weight": 35,
    "int8-litert-static": 30,
    "a16w8-litert-static": 33,
    "int4-litert-dynamic": 12,
}
HEAVY = {"fp32": "fp32", "fp16": "fp32", "int8-litert-weight": "fp32", "a16w8-litert-static": "a16w8"}


@pytest.fixture(scope="module")
def digit_shop(digits, tmp_path_factory) -> Shop:
    known = msgspec.structs.replace(
        model_of(digits.graph),
        name="digits",
        task="classification",
        labels=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "neun & nüün"),
        preprocess=Preprocess(width=8, height=8, colour="GRAY", scale=1 / 255, mean=(0.2,), std=(0.5,)),
    )
    return shop(digits.graph, tmp_path_factory.mktemp("litert"), digits.samples(0, 48), known)


@pytest.fixture(scope="module")
def net_shop(net, tmp_path_factory) -> Shop:
    samples = [{"image": picture(seed)} for seed in range(8)]
    return shop(net, tmp_path_factory.mktemp("litert-net"), samples)


@pytest.mark.parametrize("recipe", ALL)
def test_each_recipe_keeps_names_and_float_io_and_the_model_s_meaning(recipe, digit_shop, digits) -> None:
    artifact, folder = digit_shop.made(recipe)
    signature = raw(folder / "model.tflite")
    found = [{n: (d["dtype"], tuple(d["shape"])) for n, d in side.items()} for side in (
        signature.get_input_details(), signature.get_output_details())]  # fmt: skip
    assert found == [{"x": (np.float32, (1, 8, 8, 1))}, {"y": (np.float32, (1, 10))}]

    native = reference.float_artifact(digits.graph.name, "float")
    expected = reference.open(native, digits.graph.parent, 1)
    runner = engine.open(artifact, folder, 1)
    samples = digits.samples(TRAINED, TRAINED + 150)
    ours, theirs = (np.concatenate([run(s)["y"] for s in samples]) for run in (runner, expected))
    assert sqnr_db(theirs, ours) > LEAST_DB[recipe]
    truth = digits.labels[TRAINED : TRAINED + 150]
    assert (ours.argmax(1) == truth).mean() > (theirs.argmax(1) == truth).mean() - 0.02


@pytest.mark.parametrize("recipe", ALL)
def test_the_arithmetic_and_the_size_are_those_of_the_recipe(recipe, digit_shop) -> None:
    artifact, folder = digit_shop.made(recipe)
    kind = HEAVY.get(recipe, recipe[:4])
    assert set(artifact.precisions) <= {kind, "fp32"}
    assert artifact.precisions[kind] >= 2
    assert sum(artifact.precisions.values()) == 3
    content = (folder / "model.tflite").read_bytes()
    assert all(
        word not in content for word in (bytes(digit_shop.folder), b"litert_torch", b"edgekiln.compile")
    )
    assert recipe == "fp32" or artifact.size_bytes < 0.8 * digit_shop.made("fp32")[0].size_bytes
    assert ("ai-edge-quantizer" in artifact.tools) == (recipe != "fp32")


def test_all_recipes_begin_with_one_float_file(digit_shop) -> None:
    for recipe in ALL:
        digit_shop.made(recipe)
    assert len(list((digit_shop.folder / "cache" / "litert-float").iterdir())) == 1


def test_the_table_names_recipes_that_exist() -> None:
    assert {name.split("+")[0] for name in TARGETS["litert"].recipes} <= set(ALL)


def test_the_file_takes_nhwc_and_the_runner_the_model_s_own_nchw(net_shop) -> None:
    artifact, folder = net_shop.made("fp32")
    x = picture(7)
    inside = raw(folder / "model.tflite")(image=x.transpose(0, 2, 3, 1).copy())["logits"]
    outside = engine.open(artifact, folder, 1)({"image": x})["logits"]
    mirrored = engine.open(artifact, folder, 1)({"image": x[:, :, :, ::-1].copy()})["logits"]
    assert np.array_equal(inside, outside)
    assert sqnr_db(outside, mirrored) < 30, "a picture that says nothing about the layout"
    assert artifact.options == {"layout.image": "NHWC"}
    expected = reference.open(reference.float_artifact("net.onnx", "f"), net_shop.graph.parent, 1)
    assert sqnr_db(expected({"image": x})["logits"], outside) > 100


def test_nhwc_costs_no_transpose_and_a_flatten_s_is_told(net_shop, digit_shop) -> None:
    for made, count in ((net_shop, 0), (digit_shop, 1)):
        artifact, folder = made.made("fp32")
        tree = layout.load((folder / "model.tflite").read_bytes())
        assert layout.operators(tree)["TRANSPOSE"] == count
        check = next(c for c in artifact.checks if c.name == "transposes")
        assert check.passed == (count == 0)
        assert check.detail.startswith(f"{count} TRANSPOSE in the file, 0 in the ONNX graph")


def test_two_processes_write_the_same_bytes(digit_shop, tmp_path) -> None:
    """The other process has another hash seed, another folder and no cache."""
    program = (
        "import sys, msgspec; from pathlib import Path\n"
        "from edgekiln.compile.targets import Conversion\n"
        "from edgekiln.compile.targets.litert import convert\n"
        "for line in Path(sys.argv[1]).read_bytes().splitlines():\n"
        "    order = msgspec.json.decode(line, type=Conversion)\n"
        "    convert(order, Path(sys.argv[1]).parent / order.variant.recipe.name)\n"
    )
    recipes = ("fp32", "int8-litert-static")
    orders = [
        order(
            tmp_path / f"v-{r}",
            digit_shop.graph,
            r,
            PC,
            model=digit_shop.model,
            calibration=str(digit_shop.calibration),
            cache=str(tmp_path / "cache"),
        )
        for r in recipes
    ]
    (tmp_path / "orders").write_bytes(b"\n".join(msgspec.json.encode(o) for o in orders))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": "src"}
    command = [sys.executable, "-c", program, str(tmp_path / "orders")]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    for recipe in recipes:
        there, here = tmp_path / recipe / "model.tflite", digit_shop.made(recipe)[1] / "model.tflite"
        assert there.read_bytes() == here.read_bytes()


# ---------------------------------------------------------------- metadata


@pytest.mark.parametrize("recipe", ["fp32", "int8-litert-static"])
def test_another_reader_finds_labels_and_normalisation(recipe, digit_shop, tmp_path) -> None:
    _, folder = digit_shop.made(recipe)
    path = folder / "model.tflite"
    assert labels(path) == list(digit_shop.model.labels)
    found = metadata(path, tmp_path)
    assert (found["name"], found["min_parser_version"]) == ("digits", "1.0.0")
    (graph,) = found["subgraph_metadata"]
    (x,), (y,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert (x["name"], y["name"]) == ("x", "y")
    image = x["content"]["content_properties"]
    assert image == {"color_space": 2, "default_size": {"width": 8, "height": 8}}
    normalised = x["process_units"][0]["options"]
    assert normalised["mean"] == pytest.approx([0.2 * 255])
    assert normalised["std"] == pytest.approx([0.5 * 255])
    assert x["stats"] == {"max": pytest.approx([1.6]), "min": pytest.approx([-0.4])}
    assert y["associated_files"][0]["name"] == "labels.txt"
    assert y["associated_files"][0]["type"] == 2, "TENSOR_AXIS_LABELS"


def test_a_model_without_labels_gets_no_archive_and_no_normalisation(net_shop, tmp_path) -> None:
    import zipfile

    artifact, folder = net_shop.made("fp32")
    assert not zipfile.is_zipfile(folder / "model.tflite")
    (graph,) = metadata(folder / "model.tflite", tmp_path)["subgraph_metadata"]
    (image,) = graph["input_tensor_metadata"]
    assert "process_units" not in image
    assert image["content"]["content_properties_type"] == "FeatureProperties"
    assert next(c for c in artifact.checks if c.name == "metadata").passed is True


# ---------------------------------------------------------------- where it runs


def test_xnnpack_takes_a_float_net_whole(net_shop) -> None:
    row = net_shop.made("fp32")[0].placement[0]
    assert (row.provider, row.how, row.partitions, row.fallback) == ("XNNPACK (CPU)", "measured", 1, {})
    assert row.operators == row.taken > 8


def test_constant_weights_unpacked_at_load_are_no_fallback(net_shop) -> None:
    full, half = (net_shop.made(r)[0].placement[0] for r in ("fp32", "fp16"))
    assert (half.operators, half.taken, half.fallback) == (full.operators, full.taken, {})


def test_a_fallback_is_counted_by_its_operators(digit_shop) -> None:
    wide, dynamic = (
        digit_shop.made(r)[0].placement[0] for r in ("a16w8-litert-static", "int8-litert-dynamic")
    )
    assert (wide.taken, wide.partitions) == (0, 0), "XNNPACK has no kernels of 16-bit activations"
    assert {"CONV_2D", "FULLY_CONNECTED"} <= set(wide.fallback)
    for row in (wide, dynamic):
        assert row.taken + sum(row.fallback.values()) == row.operators
    assert dynamic.fallback == {"DEPTHWISE_CONV_2D": 1}


def test_what_was_not_asked_says_so(net_shop) -> None:
    rows = net_shop.made("fp32")[0].placement[1:]
    assert [r.provider.split()[0] for r in rows] == ["GPU", "NPU", "NNAPI"]
    assert all(r.operators is None and r.taken is None and "not " in r.detail for r in rows)


# ---------------------------------------------------------------- other graphs


def graph_of(path: Path, nodes: list, inputs: dict, outputs: dict, held: dict | None = None) -> Path:
    """An ONNX file, opset 17. ``inputs`` and ``outputs`` map a name to (element type, shape)."""

    def infos(named: dict) -> list:
        return [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in named.items()]

    constants = [numpy_helper.from_array(v, n) for n, v in (held or {}).items()]
    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_64_bit_integers_come_and_go_as_the_model_says(tmp_path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], keepdims=0),
        helper.make_node("ArgMax", ["sum"], ["best"], axis=1, keepdims=0),
    ]
    held = {"table": table, "axis": np.array([1])}
    outputs = {"sum": (TensorProto.FLOAT, [1, 6]), "best": (TensorProto.INT64, [1])}
    path = graph_of(tmp_path / "ids.onnx", nodes, {"ids": (TensorProto.INT64, [1, 5])}, outputs, held)
    artifact = convert(order(tmp_path / "v", path, "fp32", PC), tmp_path / "out")
    assert artifact.options == {"dtype.ids": "int64", "dtype.best": "int64"}
    runner = engine.open(artifact, tmp_path / "out", 1)
    ids = np.array([[3, 1, 4, 1, 49]])
    found = runner({"ids": ids})
    assert found["sum"] == pytest.approx(table[ids[0]].sum(0)[None], abs=1e-5)
    assert found["best"].dtype == np.int64
    assert found["best"] == table[ids[0]].sum(0).argmax()
    with pytest.raises(BadInput, match="beyond int32"):
        runner({"ids": np.array([[3, 1, 4, 1, 2**40]])})


def test_several_outputs_keep_their_own_names_odd_ones_too(tmp_path) -> None:
    nodes = [
        helper.make_node("Relu", ["t/0"], ["args_0:up"]),
        helper.make_node("Neg", ["t/0"], ["t/1"]),
        helper.make_node("Exp", ["t/1"], ["größe"]),
    ]
    line = (TensorProto.FLOAT, [1, 4])
    outputs = {"größe": line, "t/1": line, "args_0:up": line}
    path = graph_of(tmp_path / "three.onnx", nodes, {"t/0": line}, outputs)
    artifact = convert(order(tmp_path / "v", path, "fp32", PC), tmp_path / "out")
    x = np.array([[-1, 2, -3, 4]], np.float32)
    found = engine.open(artifact, tmp_path / "out", 1)({"t/0": x})
    assert found["args_0:up"].tolist() == [[0, 2, 0, 4]]
    assert found["t/1"].tolist() == [[1, -2, 3, -4]]
    assert found["größe"] == pytest.approx(np.exp(-x), rel=1e-5)


def test_outputs_that_are_nan_in_the_graph_itself_are_named_and_the_others_judged(tmp_path) -> None:
    line = (TensorProto.FLOAT, [1, 8])
    nodes = [helper.make_node("Log", ["x"], ["log"]), helper.make_node("Exp", ["x"], ["exp"])]
    for outputs, judged in (({"log": line}, None), ({"log": line, "exp": line}, True)):
        path = graph_of(tmp_path / "log.onnx", nodes[: len(outputs)], {"x": line}, outputs)
        artifact = convert(order(tmp_path / "v", path, "fp32", PC), tmp_path / f"out{len(outputs)}")
        check = artifact.checks[0]
        assert (check.name, check.passed) == ("float file", judged)
        assert "the graph itself gives NaN or infinity at log" in check.detail
        assert ("dB" in check.detail) == (judged is True)


def test_an_operator_that_torch_lacks_is_named(net, tmp_path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "made.up"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Unheard"):
        convert(order(tmp_path / "v", tmp_path / "odd.onnx", "fp32", PC), tmp_path / "out")


def test_an_operator_that_litert_torch_refuses_is_named(tmp_path) -> None:
    nodes = [helper.make_node("BitShift", ["x", "by"], ["y"], direction="LEFT")]
    kind, held = (TensorProto.UINT8, [1, 9]), {"by": np.array([1], np.uint8)}
    path = graph_of(tmp_path / "shift.onnx", nodes, {"x": kind}, {"y": kind}, held)
    with pytest.raises(ConversionFailed, match=r"litert-torch: .*bitwise_left_shift") as caught:
        convert(order(tmp_path / "v", path, "fp32", PC), tmp_path / "out")
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_type_that_litert_lacks_is_named_without_paths_of_this_machine(tmp_path) -> None:
    kind = (TensorProto.DOUBLE, [4])
    path = graph_of(tmp_path / "f64.onnx", [helper.make_node("Exp", ["x"], ["y"])], {"x": kind}, {"y": kind})
    with pytest.raises(ConversionFailed, match=r"'tfl\.exp'.*f64") as caught:
        convert(order(tmp_path / "v", path, "fp32", PC), tmp_path / "out")
    assert ".py" not in str(caught.value)


def test_an_operator_without_a_kernel_is_named(net_shop, tmp_path) -> None:
    """The converter writes StableHLO operators for some graphs that the interpreter has no kernel for."""
    artifact, folder = net_shop.made("fp32")
    broken = without_kernel((folder / "model.tflite").read_bytes())
    asked = order(tmp_path / "v", net_shop.graph, "fp32", PC)
    with pytest.raises(ConversionFailed, match=r"LiteRT can't: .*STABLEHLO_SORT"):
        compare(broken, draft(asked, artifact.options), asked, {"image": picture(3)})


def test_a_file_of_another_net_is_noticed(net_shop, tmp_path) -> None:
    """What a converter that drops a layer would give: runs, has the right shapes, means something else."""
    model = onnx.load(net_shop.graph)
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.ndim == 4:
            weights.CopyFrom(numpy_helper.from_array(values * 1.01, weights.name))
    onnx.save(model, tmp_path / "other.onnx")
    artifact, folder = net_shop.made("fp32")
    asked = order(tmp_path / "v", tmp_path / "other.onnx", "fp32", PC)
    content = (folder / "model.tflite").read_bytes()
    found = compare(content, draft(asked, artifact.options), asked, {"image": picture(3)})
    with pytest.raises(ConversionFailed, match="another function than the graph: output 'logits'"):
        require_same(found, "other.onnx")


def test_an_output_without_scale_must_be_the_same_all_the_same() -> None:
    require_same(OutputParity(name="y", reason="zero throughout", max_abs_error=0.0), "g")
    with pytest.raises(ConversionFailed, match="zero throughout"):
        require_same(OutputParity(name="y", reason="zero throughout", max_abs_error=0.1), "g")


@pytest.mark.parametrize(
    ("recipe", "said"), [("bf16", "bfloat16"), ("int8-litert-static", "no calibration samples")]
)
def test_what_a_recipe_lacks_is_said(recipe, said, digit_shop, tmp_path) -> None:
    cache = str(digit_shop.folder / "cache")
    asked = order(tmp_path / "v", digit_shop.graph, recipe, PC, model=digit_shop.model, cache=cache)
    with pytest.raises(ConversionFailed, match=said):
        convert(asked, tmp_path / "out")


def test_a_dynamic_batch_is_refused_with_its_input(dynamic_net, tmp_path) -> None:
    with pytest.raises(ConversionFailed, match="'image' has dynamic axes: batchx3x32x32"):
        convert(order(tmp_path / "v", dynamic_net, "fp32", PC), tmp_path / "out")


@pytest.mark.parametrize("package", ["litert_torch", "ai_edge_litert", "ai_edge_quantizer"])
def test_without_a_package_the_extra_is_named(package, net, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"edgekiln\[litert\]"):
        convert(order(tmp_path / "v", net, "fp32", PC), tmp_path / "out")
