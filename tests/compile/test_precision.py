"""float16 and bfloat16 graphs: their numbers against torch's, their types, and what they lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, version_converter

from edgekiln.compile.precision import emulate_bf16, to_bf16, to_fp16, weight_loss
from edgekiln.engines.emulate import element_types, emulate
from edgekiln.errors import ConversionFailed
from fakes.networks import CLS, REC, classifier, ocr_model, picture, quantise, sqnr_db

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def run(model: ModelProto, array: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: array})[0]
    return result


def one_op(op: str, value: float, count: int = 2, **attributes: float) -> ModelProto:
    """y = op(x, value) on float32 vectors."""
    node = helper.make_node(op, ["x", "c"][:count], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32([value]), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_bf16_emulation_follows_torch_in_bfloat16_where_float32_does_not(net: Path) -> None:
    x = picture(1)
    low = classifier().bfloat16()(torch.from_numpy(x).bfloat16()).float().detach().numpy()
    model = onnx.load(net)
    emulated, full = run(emulate_bf16(model), x), run(model, x)
    assert 15 < sqnr_db(low, full) < 50, "bfloat16 must cost something for this test to mean anything"
    assert sqnr_db(low, emulated) > sqnr_db(low, full) + 6


def test_the_fp16_emulation_follows_torch_in_float16_where_float32_does_not(net: Path) -> None:
    x = picture(2)
    low = classifier().half()(torch.from_numpy(x).half()).float().detach().numpy()
    model = onnx.load(net)
    emulated, full = run(emulate(to_fp16(model)), x), run(model, x)
    assert 35 < sqnr_db(low, full) < 75
    assert sqnr_db(low, emulated) > sqnr_db(low, full) + 3


def test_every_float_tensor_between_the_casts_of_a_bf16_graph_is_bfloat16(net: Path) -> None:
    model = onnx.load(net)
    low = to_bf16(model)
    types = element_types(low)
    outside = {model.graph.input[0].name, model.graph.output[0].name}
    inner = {kind for name, kind in types.items() if name not in outside and kind in FLOATS}
    assert inner == {TensorProto.BFLOAT16}
    assert [types[name] for name in sorted(outside)] == [TensorProto.FLOAT] * 2


def test_the_types_of_a_bf16_graph_are_sound_by_onnx_own_full_check(net: Path) -> None:
    """From opset 22 ONNX lists bfloat16 for Conv, so there the strict check applies."""
    low = to_bf16(onnx.load(net))
    checker.check_model(version_converter.convert_version(low, 22), full_check=True)


@pytest.mark.parametrize(("name", "shape"), [(CLS, (1, 3, 48, 96)), (REC, (1, 3, 48, 64))])
@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_ocr_models_keep_their_meaning_in_half_precision(name, shape, convert) -> None:
    model, x = onnx.load(ocr_model(name)), picture(3, shape)
    low = convert(model)
    assert sqnr_db(run(model, x), run(emulate(low), x)) > (15 if convert is to_bf16 else 30)
    assert low.ByteSize() < model.ByteSize() * 0.7
    assert [o.name for o in low.graph.output] == [o.name for o in model.graph.output]


def test_what_overflows_float16_overflows_in_the_emulation_though_onnx_runtime_hides_it() -> None:
    model = to_fp16(one_op("Mul", 4.0))
    x = np.float32([20000, 100])
    assert run(model, x)[0] == 80000, "ONNX Runtime has float16 kernels now: the emulation can go"
    assert np.isinf(run(emulate(model), x)[0])
    assert run(emulate(model), x)[1] == 400


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_the_emulation_rounds_to_bfloat16_to_nearest_even(values: list[float]) -> None:
    x = np.float32(values)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    assert np.array_equal(run(emulate_bf16(one_op("Identity", 0.0, count=1)), x), expected)


def test_a_graph_without_half_precision_means_the_same_after_emulation(net: Path) -> None:
    model, x = onnx.load(net), picture(4)
    assert np.array_equal(run(emulate(model), x), run(model, x))


@pytest.mark.parametrize(("value", "loss"), [(70000.0, (1, 0)), (1e-9, (0, 1)), (0.0, (0, 0)), (1.5, (0, 0))])
def test_weights_out_of_float16_range_are_counted(value: float, loss: tuple[int, int]) -> None:
    found = weight_loss(one_op("Add", value), "fp16")
    assert (found.total, found.beyond, found.below) == (1, *loss)
    assert ("within range" in found.sentence()) is (loss == (0, 0))


def test_weights_beyond_range_are_clamped_and_stay_finite() -> None:
    for convert, value in ((to_fp16, 1e6), (to_bf16, 3.4e38)):
        low = convert(one_op("Add", value))
        stored = np.asarray(numpy_helper.to_array(low.graph.initializer[0]), dtype=np.float32)
        assert np.isfinite(stored).all()
        assert stored[0] > 6e4


def test_nothing_of_bfloat16_is_out_of_range_for_what_fits_it() -> None:
    assert weight_loss(one_op("Add", 1e30), "bf16").beyond == 0
    assert weight_loss(one_op("Add", 3.4e38), "bf16").beyond == 1


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_a_quantised_graph_is_refused(convert, net: Path, tmp_path: Path) -> None:
    quantised = onnx.load(quantise(net, tmp_path / "q.onnx", symmetric=True))
    with pytest.raises(ConversionFailed, match="quantised"):
        convert(quantised)


@pytest.mark.parametrize("convert", [to_fp16, to_bf16, emulate])
def test_a_graph_with_a_subgraph_is_refused_by_name(convert) -> None:
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], value_floats=[1.0])], "branch", [], [value]
    )
    node = helper.make_node("If", ["c"], ["y"], name="branching", then_branch=body, else_branch=body)
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph([node], "g", inputs, outputs))
    with pytest.raises(ConversionFailed, match="branching"):
        convert(model)


def test_operators_without_bfloat16_stay_float32_between_casts() -> None:
    """Shrink takes no bfloat16 in any ONNX version; the Mul before it does."""
    model = one_op("Mul", 0.1)
    model.graph.node[0].output[0] = "m"
    model.graph.node.append(helper.make_node("Shrink", ["m"], ["y"], lambd=0.15, bias=0.0))
    low = to_bf16(model)
    types = element_types(low)
    shrink = next(n for n in low.graph.node if n.op_type == "Shrink")
    assert types[shrink.input[0]] == TensorProto.FLOAT
    assert types["m"] == TensorProto.BFLOAT16
    found = run(emulate(low), np.float32([1, 2, 3, 4]))
    assert found[0] == 0
    assert np.allclose(found[1:], [0.2, 0.3, 0.4], rtol=0.01)
    assert not np.allclose(found[1:], [0.2, 0.3, 0.4], rtol=1e-6)


def test_shape_of_the_input_is_kept(dynamic_net: Path) -> None:
    low = emulate_bf16(onnx.load(dynamic_net))
    assert run(low, np.concatenate([picture(1), picture(2)])).shape == (2, 10)
    assert run(low, picture(1)).shape == (1, 10)
