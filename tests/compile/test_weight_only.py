"""Weights alone in 4 and 8 bits: one decision, two forms, the same function in both engines."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edgekiln.compile.make import make, plan
from edgekiln.compile.quantise import weight_forms
from edgekiln.compile.quantise.weight_only import compressed, grid_of
from edgekiln.compile.recipes import needs_calibration, recipe
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load as load_device
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.model.signature import signature
from edgekiln.records import Model, Source

HERE = load_device("host")
HOST = msgspec.structs.replace(HERE, features=("avx2", "avx512_vnni"))
WIDTH = 256


def products(path: Path, outliers: float) -> Path:
    """Random features of the digits and a fitted head: a Gemm with transposed weights and a MatMul.

    One of the features in ten is so many times larger, as a transformer's outlier channels are.
    """
    random = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    x = images.astype(np.float32) / 16
    first = random.standard_normal((WIDTH, 64)).astype(np.float32) / 8
    first[::10] *= outliers
    bias = random.standard_normal(WIDTH).astype(np.float32) / 10
    hidden = np.maximum(x @ first.T + bias, 0)
    wanted = np.eye(10)[labels]
    head = np.linalg.solve(hidden.T @ hidden + 1e-2 * np.eye(WIDTH), hidden.T @ wanted).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(a, n) for a, n in ((first, "w1"), (bias, "b1"), (head, "w2"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return products(tmp_path_factory.mktemp("outliers") / "graph.onnx", 100)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    """Without outliers: engines that round activations by the block keep its decisions."""
    return products(tmp_path_factory.mktemp("even") / "graph.onnx", 1)


IMAGES, LABELS = load_digits(return_X_y=True)


def samples(count: int, start: int = 0):
    return [{"x": (row[None] / 16).astype(np.float32)} for row in IMAGES[start : start + count]]


def run(path: Path, feeds) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def in_float(network: Path, found, into: Path) -> Path:
    """The float graph with the weights that were decided, levels taken out."""
    model = onnx.load(network)
    for one in found:
        values = one.values().astype(np.float32)
        held = next(i for i in model.graph.initializer if i.name == one.layer.weight)
        held.CopyFrom(numpy_helper.from_array(values if one.layer.transposed else values.T, held.name))
    onnx.save(model, into)
    return into


def shop(network: Path, cache: Path, count: int = 48) -> Workshop:
    own = signature(onnx.load(network))
    about = {"name": "m", "path": "graph.onnx", "sha256": "", "signature": own, "task": "classification"}
    model = Model(**about, source=Source(kind="onnx", files=()))
    data = Calibration(lambda: iter(samples(count)), count, f"{count} digits") if count else None
    return Workshop(network, sha256_file(network), data, cache, 1, model)


# ---------------------------------------------------------------- grids and bytes


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.floats(-1e3, 1e3)),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32]),
)
@settings(max_examples=80, deadline=None)
def test_every_weight_is_within_a_step_of_its_own_and_zero_is_exact(weights, bits, block):
    weights = np.float32(weights).astype(np.float64)
    grid = grid_of(weights, bits, block)
    scale, _ = grid.columns(0, weights.shape[1])
    back = grid.values(grid.integers(weights))
    # half a step for the weight, half a step because the zero point is whole
    assert (np.abs(back - weights) <= scale * 1.001).all()
    assert (back[weights == 0] == 0).all()
    assert (grid.scales == np.float32(grid.scales)).all()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(0, 15)))
def test_two_values_lie_in_one_byte_the_first_in_its_low_half(values):
    held = weight_forms.packed(values, 4)
    assert held.shape == (len(values), -(-values.shape[1] // 2))
    back = np.stack([held & 15, held >> 4], axis=-1).reshape(len(values), -1)
    assert (back[:, : values.shape[1]] == values).all()


# ---------------------------------------------------------------- deciding


def test_what_is_decided_by_the_inputs_loses_less_than_the_nearest_step(network):
    lost = {}
    for method in ("rtn", "gptq", "awq"):
        found, note = compressed(network, 4, 32, method, lambda: samples(64), 1)
        lost[method] = [d.error for d in found]
        assert all(d.error <= d.nearest for d in found)
        assert "2 products' weights in 4 bits, blocks of 32" in note
    assert sum(lost["gptq"]) < 0.8 * sum(lost["rtn"])
    assert sum(lost["awq"]) < sum(lost["rtn"])


def test_the_loss_that_is_told_is_the_one_that_unseen_samples_show(network, tmp_path):
    unseen = samples(200, start=1500)
    truth = run(network, unseen)
    errors = {}
    for method in ("rtn", "gptq"):
        found, _ = compressed(network, 4, 32, method, lambda: samples(400), 1)
        made = run(in_float(network, found, tmp_path / f"{method}.onnx"), unseen)
        errors[method] = ((made - truth) ** 2).sum()
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_inputs_that_no_block_divides_stay_float_and_the_note_says_so(network, tmp_path):
    found, note = compressed(network, 8, 128, "rtn", None, 1)
    assert [d.layer.node for d in found] == ["head"]  # the first has 64 inputs
    assert "1 stay float: not to be cut into blocks of 128" in note
    weight_forms.write_onnx(network, found, tmp_path / "q.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node] == ["Gemm", "Relu", "MatMulNBits"]


def masked(into: Path, width: int = 64) -> Path:
    """A product over the positions of a sentence, of which a mask shows some."""
    random = np.random.default_rng(3)
    w = random.standard_normal((width, 32)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Mul", ["h", "shown"], ["y"], "mask"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "masked",
        [info("x", TensorProto.FLOAT, [1, 24, width]), info("shown", TensorProto.FLOAT, [1, 24, 1])],
        [info("y", TensorProto.FLOAT, [1, 24, 32])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), into)
    return into


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_padding_holds_says_nothing_of_the_weights(tmp_path, method):
    network = masked(tmp_path / "graph.onnx")
    mask = np.arange(24) < 10

    def sentences(padding: float):
        random = np.random.default_rng(5)
        for _ in range(12):
            x = random.standard_normal((1, 24, 64)).astype(np.float32)
            x[:, ~mask] *= padding
            shown = mask.astype(np.float32)[None]
            yield {"x": x, "shown": shown[..., None], "attention_mask": shown}

    kept = [compressed(network, 4, 32, method, lambda p=p: sentences(p), 1) for p in (0.1, 50.0)]
    (first,), (second,) = (found for found, _ in kept)
    assert np.array_equal(first.integers, second.integers)
    assert first.error == second.error


def test_products_of_another_form_stay_float_and_are_counted(tmp_path):
    random = np.random.default_rng(1)
    weights = {n: random.standard_normal(s) for n, s in (("shared", (64, 64)), ("own", (64, 32)))}
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "shared"], ["b"], "again"),
        helper.make_node("Gemm", ["b", "scaled"], ["c"], "halved", alpha=0.5),
        helper.make_node("MatMul", ["c", "own"], ["y"], "last"),
    ]
    weights["scaled"] = random.standard_normal((64, 64))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "forms",
        [info("x", TensorProto.FLOAT, [1, 64])],
        [info("y", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "graph.onnx")
    found, note = compressed(tmp_path / "graph.onnx", 4, 32, "rtn", None, 1)
    assert [d.layer.node for d in found] == ["last"]
    assert "3 stay float: their weights are shared, scaled or no matrix" in note


def test_a_bias_that_is_shared_or_computed_is_no_reason_to_stay_float(tmp_path):
    import openvino as ov

    random = np.random.default_rng(2)
    weights = {n: random.standard_normal((64, 64)).astype(np.float32) / 8 for n in ("w1", "w2", "w3")}
    weights["b"] = random.standard_normal(64).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "w2", "b"], ["k"], "second"),
        helper.make_node("Gemm", ["k", "w3", "h"], ["y"], "third"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "biases",
        [info("x", TensorProto.FLOAT, [1, 64])],
        [info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "graph.onnx")
    found, note = compressed(tmp_path / "graph.onnx", 8, 32, "rtn", None, 1)
    assert [d.layer.node for d in found] == ["first", "second", "third"]
    assert "stay float" not in note
    wanted = run(in_float(tmp_path / "graph.onnx", found, tmp_path / "float.onnx"), samples(4))
    weight_forms.write_onnx(tmp_path / "graph.onnx", found, tmp_path / "q.onnx", weight_forms.EXACT)
    assert np.allclose(run(tmp_path / "q.onnx", samples(4)), wanted, atol=1e-4)
    xml = weight_forms.write_openvino(tmp_path / "graph.onnx", found, tmp_path)
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(xml, "CPU", config)
    assert np.allclose(np.concatenate([compiled(s)[0] for s in samples(4)]), wanted, atol=1e-4)


def test_the_cure_speaks_of_blocks_only_where_a_smaller_one_would_help(network):
    with pytest.raises(ConversionFailed, match="can be cut into blocks of 512") as caught:
        compressed(network, 4, 512, "rtn", None, 1)
    assert "smaller block" in caught.value.cure


# ---------------------------------------------------------------- the forms


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_both_engines_compute_what_was_decided(network, tmp_path, bits, method):
    import openvino as ov

    found, _ = compressed(network, bits, 32, method, lambda: samples(32), 1)
    unseen = samples(20, start=1000)
    wanted = run(in_float(network, found, tmp_path / "float.onnx"), unseen)
    weight_forms.write_onnx(network, found, tmp_path / "q.onnx", accuracy_level=1)
    assert np.allclose(run(tmp_path / "q.onnx", unseen), wanted, atol=1e-3 * np.abs(wanted).max())
    xml = weight_forms.write_openvino(network, found, tmp_path)
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(xml, "CPU", config)
    made = np.concatenate([compiled(feed)[0] for feed in unseen])
    assert np.allclose(made, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("name", "bits", "least"), [("w8-block64", 8, 0.99), ("w4-block32+gptq", 4, 0.95)])
def test_an_artifact_is_small_and_decides_as_the_float_model(even, tmp_path, target, name, bits, least):
    folder, artifact = make(shop(even, tmp_path), HOST, target, name)
    assert artifact.precisions == {f"w{bits}": 2}
    runner = open_engine(target, artifact, folder, 1)
    unseen = samples(150, start=1600)
    found = np.concatenate([next(iter(runner(s).values())) for s in unseen])
    assert (found.argmax(1) == run(even, unseen).argmax(1)).mean() >= least
    weights = 4 * (64 + 10) * WIDTH
    grids = 5 * (64 + 10) * WIDTH / (64 if bits == 8 else 32)
    spare = 16_000 if target == "openvino" else 6_000  # the graph itself, as XML or protobuf
    assert sum(f.size_bytes for f in artifact.files) < weights * bits / 32 + grids + spare


def test_openvino_is_asked_to_round_activations_in_groups_of_the_weights_own(network, tmp_path):
    _, artifact = make(shop(network, tmp_path), HOST, "openvino", "w8-block32")
    assert artifact.options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 32


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_exact_activations_survive_outliers_that_rounding_them_drowns(network, tmp_path, target):
    """ONNX Runtime rounds activations everywhere, OpenVINO only on a CPU that has products of bytes."""
    rounds = target == "onnxruntime" or {"avx_vnni", "avx512_vnni", "amx_int8"} & set(HERE.features)
    unseen = samples(60, start=1600)
    truth, lost = run(network, unseen), {}
    for name in ("w8-block32", "w8-block32+exact"):
        folder, artifact = make(shop(network, tmp_path), HOST, target, name)
        runner = open_engine(target, artifact, folder, 1)
        found = np.concatenate([next(iter(runner(s).values())) for s in unseen])
        lost[name] = float(((found - truth) ** 2).sum() / (truth**2).sum())
        assert artifact.precisions == {"w8": 2}
    if rounds:
        assert lost["w8-block32+exact"] < 0.5 * lost["w8-block32"], lost
    else:
        assert lost["w8-block32+exact"] == pytest.approx(lost["w8-block32"], rel=1e-3), lost


# ---------------------------------------------------------------- recipes and refusals


@pytest.mark.parametrize(
    "name", ["w4-block32+gptq", "w8-block128", "w4-block16+awq+bf16", "w4-block32+awq+exact"]
)
def test_a_name_is_read_back_from_its_passes(name):
    found = recipe(name)
    last = found.passes[-1].params
    again = f"w{last['bits']}-block{last['block']}"
    again += f"+{last['method']}" if "method" in last else ""
    again += "+exact" if last.get("exact") else ""
    assert again + ("+bf16" if len(found.passes) == 2 else "") == name
    assert needs_calibration(found) == ("method" in last)


@pytest.mark.parametrize(
    "name", ["w5-block32", "w4-block33", "w4-block32+round", "w4-block32+bf16+gptq", "w8-block64+exact+bf16"]
)
def test_a_name_of_no_such_grid_is_refused(name):
    with pytest.raises(BadInput, match="no recipe has this name"):
        recipe(name)


def test_the_inputs_are_needed_and_the_cure_says_which(network, tmp_path):
    with pytest.raises(ConversionFailed, match="no data was given") as caught:
        make(shop(network, tmp_path, count=0), HOST, "onnxruntime", "w4-block32+gptq")
    assert "--data" in caught.value.cure
    _, artifact = make(shop(network, tmp_path, count=0), HOST, "onnxruntime", "w4-block32")
    assert artifact.precisions == {"w4": 2}


def test_a_graph_of_convolutions_has_nothing_to_compress_and_is_not_tried(digits, tmp_path):
    model = onnx.load(digits.graph)
    del model.graph.node[next(k for k, n in enumerate(model.graph.node) if n.op_type == "Gemm") :]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.node[-1].output[0], TensorProto.FLOAT, None)
    )
    onnx.save(model, tmp_path / "convolutions.onnx")
    with pytest.raises(ConversionFailed, match="no matrix product") as caught:
        compressed(tmp_path / "convolutions.onnx", 4, 32, "rtn", None, 1)
    assert caught.value.cure == "Use a static recipe"
    (row,) = plan(HOST, "onnxruntime", ["w4-block32"], matmul_share=0.1)
    assert row[1].startswith("for matmul-heavy graphs")


def test_weights_that_are_quantised_already_are_refused(network, tmp_path):
    workshop = shop(network, tmp_path / "first")
    folder, artifact = make(workshop, HOST, "onnxruntime", "int8-static-minmax")
    again = shop(folder / artifact.entry, tmp_path / "second")
    with pytest.raises(ConversionFailed):
        make(again, HOST, "onnxruntime", "w4-block32")
