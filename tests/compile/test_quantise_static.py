"""Static INT8: each dialect is what its target asks for, and the quantised network still does its work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.observers import observe
from edgekiln.compile.quantise.static import DIALECTS, precisions, quantise_dynamic, quantise_static
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from fakes.trained_digits import TRAINED

RULES = {"minmax": {}, "percentile": {"percentile": 99.99}, "mse": {}, "entropy": {}}


@pytest.fixture(scope="module")
def seen(digits):
    return observe(digits.graph, digits.samples(0, 100), 1)


@pytest.fixture(scope="module")
def quantised(digits, seen, tmp_path_factory):
    """The path of each (rule, dialect), made once."""
    folder, made = tmp_path_factory.mktemp("quantised"), {}

    def get(rule, dialect):
        path = folder / f"{rule}-{dialect}.onnx"
        if (rule, dialect) not in made:
            made[rule, dialect] = quantise_static(
                digits.graph, seen, rule, RULES[rule], DIALECTS[dialect], path
            )
        return path, made[rule, dialect]

    return get


def initialisers(model):
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def dequantised_weights(model):
    """(node, weights, scales, zero points) of each DequantizeLinear over a constant of 2 axes or more."""
    held = initialisers(model)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held and held[node.input[0]].ndim > 1:
            yield node, held[node.input[0]], held[node.input[1]], held[node.input[2]]


def activation_zero_points(model):
    held = initialisers(model)
    return [held[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def run(path, images):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # a CPU without VNNI would saturate
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in images])


def sqnr(reference, found):
    return 10 * np.log10((reference**2).sum() / ((found - reference) ** 2).sum())


# ---------------------------------------------------------------- the dialects


def test_for_a_cpu_activations_are_u8_weights_s8_per_channel_and_biases_int32(quantised):
    model = onnx.load(quantised("minmax", "ort")[0])
    assert {z.dtype for z in activation_zero_points(model)} == {np.dtype(np.uint8)}
    weights = list(dequantised_weights(model))
    assert len(weights) == 3
    for node, values, scales, zeros in weights:
        assert values.dtype == np.int8
        axis = next(a.i for a in node.attribute if a.name == "axis")
        assert scales.shape == zeros.shape == (values.shape[axis],)
        assert scales.size > 1
        assert not zeros.any()
        assert np.abs(values).max() == 127
    held = initialisers(model)
    biases = [
        held[n.input[0]]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in held and held[n.input[0]].dtype == np.int32
    ]
    assert len(biases) == 3


def test_for_tensorrt_everything_is_s8_about_zero_and_biases_stay_float(quantised):
    model = onnx.load(quantised("minmax", "tensorrt")[0])
    zeros = activation_zero_points(model)
    assert {z.dtype for z in zeros} == {np.dtype(np.int8)}
    assert not any(z.any() for z in zeros)
    for _, values, scales, points in dequantised_weights(model):
        assert values.dtype == np.int8
        assert scales.size > 1
        assert not points.any()
    held = initialisers(model)
    assert not [a for a in held.values() if a.dtype == np.int32]
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            assert held[node.input[2]].dtype == np.float32
    assert {"Relu", "Clip"} <= {n.op_type for n in model.graph.node}


def test_without_vnni_weights_have_seven_bits(quantised):
    for _, values, _, _ in dequantised_weights(onnx.load(quantised("minmax", "ort-7bit")[0])):
        assert values.dtype == np.int8
        assert 60 <= np.abs(values.astype(int)).max() <= 64


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_dialect_is_a_valid_graph_with_its_heavy_nodes_in_int8(quantised, dialect, rule):
    path, held = quantised(rule, dialect)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert precisions(path) == {"int8": 3}
    assert all(low <= 0 <= high for low, high in held.values())


def test_the_scales_in_the_graph_are_those_of_the_ranges(quantised):
    path, held = quantised("percentile", "ort")
    model = onnx.load(path)
    constants = initialisers(model)
    makers = {o: n.op_type for n in model.graph.node for o in n.output}
    found = {
        n.input[0]: float(constants[n.input[1]])
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and makers.get(n.input[0], "input") in {"input", "Conv"}
    }
    # Relu and Clip are inside the range; what only moves values (a pool) takes over its input's scale.
    assert len(found) == 3
    assert "x" in found
    for name, scale in found.items():
        low, high = held[name]
        assert scale == pytest.approx((high - low) / 255, rel=1e-5)


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("rule", RULES)
def test_the_quantised_network_stays_close_to_the_float_one_on_images_it_never_saw(
    digits, quantised, rule, dialect
):
    images, labels = digits.images[TRAINED:], digits.labels[TRAINED:]
    reference, found = run(digits.graph, images), run(quantised(rule, dialect)[0], images)
    float_accuracy = (reference.argmax(1) == labels).mean()
    assert float_accuracy > 0.9
    assert (found.argmax(1) == labels).mean() >= float_accuracy - 0.02
    assert (found.argmax(1) == reference.argmax(1)).mean() > 0.97
    if dialect != "ort-7bit":
        assert sqnr(reference, found) > 20


def test_a_real_model_keeps_its_decisions(tmp_path):
    from importlib.util import find_spec

    from skimage import data

    from edgekiln.compile.graph import optimise

    source = Path(find_spec("rapidocr").origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    page = data.page().astype(np.float32)

    def line(top):
        crop = page[top : top + 24, :96].repeat(2, 0).repeat(2, 1)
        return np.repeat((crop / 127.5 - 1)[None, None], 3, axis=1).astype(np.float32)

    lines = [line(top) for top in range(0, 160, 8)]
    optimise(source, {"x": lines[0].shape}, {"x": lines[0]}, tmp_path / "g.onnx")
    watched = observe(tmp_path / "g.onnx", [{"x": v} for v in lines[::2]], 1)
    quantise_static(tmp_path / "g.onnx", watched, "mse", {}, DIALECTS["ort-7bit"], tmp_path / "q.onnx")
    assert precisions(tmp_path / "q.onnx")["int8"] > 50
    unseen = [v[0] for v in lines[1::2]]
    reference, found = run(tmp_path / "g.onnx", unseen), run(tmp_path / "q.onnx", unseen)
    assert sqnr(reference, found) > 10
    assert (tmp_path / "q.onnx").stat().st_size < (tmp_path / "g.onnx").stat().st_size * 0.6


def test_a_dead_activation_quantises_too(tmp_path):
    """A ReLU that never fires has the range [0, 0]."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(-np.abs(rng.standard_normal((4, 3, 3, 3))).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((2, 4, 3, 3)).astype(np.float32), "v"),
    ]
    path = conv_graph(tmp_path, weights)
    feed = [{"x": np.abs(rng.standard_normal((1, 3, 8, 8))).astype(np.float32)} for _ in range(3)]
    watched = observe(path, feed, 1)
    assert (watched["r"].lowest, watched["r"].highest) == (0, 0)
    for name, dialect in DIALECTS.items():
        quantise_static(path, watched, "mse", {}, dialect, tmp_path / f"{name}.onnx")
        found = run(tmp_path / f"{name}.onnx", [f["x"][0] for f in feed])
        assert np.abs(found).max() == 0


def conv_graph(folder, weights, tail=()):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c"),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "v"], ["y"], name="d"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 4, 4))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "conv.onnx")
    return folder / "conv.onnx"


# ---------------------------------------------------------------- reproducible

AGAIN = """
import sys
from pathlib import Path
from edgekiln.compile.quantise.observers import load
from edgekiln.compile.quantise.static import DIALECTS, quantise_static
graph, seen, into = map(Path, sys.argv[1:])
for name, dialect in DIALECTS.items():
    quantise_static(graph, load(seen), "mse", {}, dialect, into / f"{name}.onnx")
"""


def test_the_same_input_gives_the_same_bytes_in_any_process(digits, seen, quantised, tmp_path):
    from edgekiln.compile.quantise.observers import save

    save(seen, tmp_path / "seen.npz")
    command = [sys.executable, "-c", AGAIN, str(digits.graph), str(tmp_path / "seen.npz"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for dialect in DIALECTS:
        first, again = quantised("mse", dialect)[0], tmp_path / f"{dialect}.onnx"
        assert sha256_file(first) == sha256_file(again)


def test_the_quantisers_advice_does_not_reach_the_user(digits, seen, tmp_path, capfd, caplog):
    quantise_static(digits.graph, seen, "minmax", {}, DIALECTS["ort"], tmp_path / "q.onnx")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# ---------------------------------------------------------------- dynamic


def matmul_graph(folder):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m"),
        helper.make_node("Relu", ["h"], ["r"], name="r"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="n"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 32))],
        [
            numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.standard_normal((64, 32)).astype(np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_dynamic_quantisation_takes_matrix_products_and_stays_close(tmp_path):
    path = matmul_graph(tmp_path)
    quantise_dynamic(path, tmp_path / "q.onnx")
    assert precisions(tmp_path / "q.onnx") == {"int8": 2}
    rows = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    assert sqnr(run(path, rows), run(tmp_path / "q.onnx", rows)) > 25
    quantise_dynamic(path, tmp_path / "again.onnx")
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_dynamic_quantisation_leaves_convolutions_in_float(digits, tmp_path):
    quantise_dynamic(digits.graph, tmp_path / "q.onnx")
    assert precisions(tmp_path / "q.onnx") == {"fp32": 2, "int8": 1}


def test_dynamic_quantisation_refuses_a_graph_of_convolutions_alone(tmp_path):
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((2, 4, 3, 3)).astype(np.float32), "v"),
    ]
    with pytest.raises(ConversionFailed, match="no MatMul or Gemm with constant weights") as caught:
        quantise_dynamic(conv_graph(tmp_path, weights), tmp_path / "q.onnx")
    assert "static" in caught.value.cure


# ---------------------------------------------------------------- what can't be quantised


def elementwise_graph(folder):
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Sin", ["e"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "e.onnx")
    return folder / "e.onnx"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_graph_with_nothing_to_quantise_is_a_failed_conversion(tmp_path, dialect):
    path = elementwise_graph(tmp_path)
    watched = observe(path, [{"x": np.ones((1, 4), np.float32)}], 1)
    with pytest.raises(ConversionFailed) as caught:
        quantise_static(path, watched, "minmax", {}, DIALECTS[dialect], tmp_path / "q.onnx")
    assert "float recipe" in caught.value.cure


def test_a_missing_range_is_a_failed_conversion_with_the_quantisers_words(digits, seen, tmp_path):
    fewer = {n: o for n, o in seen.items() if n != "x"}
    with pytest.raises(ConversionFailed, match="quantiser refused it") as caught:
        quantise_static(digits.graph, fewer, "minmax", {}, DIALECTS["ort"], tmp_path / "q.onnx")
    assert caught.value.to == "graph.onnx"


def test_precisions_count_the_heavy_nodes_by_their_arithmetic(digits, tmp_path):
    from edgekiln.compile.precision import to_bf16, to_fp16

    assert precisions(digits.graph) == {"fp32": 3}
    for name, convert in (("fp16", to_fp16), ("bf16", to_bf16)):
        onnx.save(convert(onnx.load(digits.graph)), tmp_path / f"{name}.onnx")
        assert precisions(tmp_path / f"{name}.onnx") == {name: 3}
