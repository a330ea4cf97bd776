"""A graph in two parts: they are the whole again, and a cut that hides nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from edgekiln.compile.split import split_model
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.model.parts import SPLIT_FILE, coded_inputs, quantise_channels, read_split, tail_signature
from edgekiln.model.signature import signature


def outputs_of(path: Path, op: str) -> list[str]:
    return [n.output[0] for n in onnx.load(path).graph.node if n.op_type == op]


def good_cut(path: Path) -> str:
    """Where the last residual block ends: everything goes through it."""
    return outputs_of(path, "Add")[-1]


def sample(path: Path, seed: int = 0) -> dict[str, Any]:
    (spec,) = signature(onnx.load(path)).inputs
    return {spec.name: np.random.default_rng(seed).standard_normal(spec.shape).astype(np.float32)}


def run(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_head_and_tail_in_files_are_the_whole_again(net: Path, tmp_path: Path) -> None:
    cut = good_cut(net)
    made = split_model(net, [cut], [sample(net, n) for n in range(4)], tmp_path / "split")
    assert read_split(tmp_path / "split") == made
    assert made.parity_max_error < 1e-5
    assert made.quantised_sqnr_db is not None
    assert made.quantised_sqnr_db > 25
    fresh = sample(net, 99)
    middle = run(tmp_path / "split" / "head.onnx", fresh)
    assert list(middle) == [cut]
    answer = run(tmp_path / "split" / "tail.onnx", coded_inputs(middle, made.features))
    for name, wanted in run(net, fresh).items():
        assert np.abs(answer[name] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_same_cut_gives_the_same_bytes(net: Path, tmp_path: Path) -> None:
    cut = good_cut(net)
    first, second = (split_model(net, [cut], [sample(net)], tmp_path / name) for name in "ab")
    assert first == second


def test_a_cut_that_hides_nothing_or_cuts_nothing_is_refused(net: Path, tmp_path: Path) -> None:
    (given,) = sample(net)
    outputs = outputs_of(net, "Conv")
    for tensors, why in (
        ([given], "nothing is hidden"),
        ([outputs[0]], "nothing is hidden"),
        (["nowhere"], "no cut"),
        ([outputs[-1]], "no cut"),
        ([good_cut(net), outputs[0]], "nothing is hidden"),
    ):
        with pytest.raises(ConversionFailed, match=why):
            split_model(net, tensors, [sample(net)], tmp_path / "split")
    with pytest.raises(ConversionFailed, match="no sample"):
        split_model(net, [good_cut(net)], [], tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_a_smaller_picture_is_no_feature(tmp_path: Path) -> None:
    """Pooling makes the input smaller, but has no weights: what comes out is still a picture."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("AveragePool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["small"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 3, 1, 1]))
    ]
    graph = helper.make_graph(nodes, "pool", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "pool.onnx")
    with pytest.raises(ConversionFailed, match="no layer with weights"):
        split_model(tmp_path / "pool.onnx", ["small"], [sample(tmp_path / "pool.onnx")], tmp_path / "split")


def test_a_split_that_was_changed_is_refused(net: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    split_model(net, [good_cut(net)], [sample(net)], folder)
    told = (folder / SPLIT_FILE).read_text()
    (folder / SPLIT_FILE).write_text(told.replace('"head.onnx"', '"../head.onnx"'))
    with pytest.raises(BadInput):
        read_split(folder)
    (folder / SPLIT_FILE).write_text(told)
    (folder / "head.onnx").write_bytes((folder / "tail.onnx").read_bytes())
    with pytest.raises(BadInput, match="not the file"):
        read_split(folder)
    (folder / SPLIT_FILE).write_text("{}")
    with pytest.raises(BadInput):
        read_split(folder)


@given(stn.arrays(np.float32, (1, 3, 4, 4), elements=st.floats(-1e6, 1e6, width=32)))
@settings(deadline=None)
def test_coded_features_are_off_by_at_most_half_a_step(values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    coded, scale, offset = quantise_channels(values)
    back = coded.astype(np.float64) * scale[:, None, None] + offset[:, None, None]
    # float32 rounds where the extent is tiny against the offset.
    allowed = 0.501 * scale[:, None, None] + 4e-7 * np.abs(values).max()
    assert (np.abs(back - values) <= allowed).all()


@pytest.mark.parametrize("extent", [0.0, 1e-45, 300e-45, 1e-40, 1e-37, 1e-30])
def test_features_of_hardly_any_extent_are_coded_as_numbers(extent: float) -> None:
    values = np.linspace(0, extent, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    with np.errstate(all="raise", under="ignore"):
        coded, scale, offset = quantise_channels(values)
    assert scale[0] > 0
    back = coded.astype(np.float64) * scale[0] + offset[0]
    assert np.abs(back - values).max() <= max(0.501 * extent / 255, 3e-36)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        quantise_channels(np.full((1, 2, 2), np.nan, np.float32))
    with pytest.raises(BadInput, match="span"):
        quantise_channels(np.array([[[-3e38, 3e38]]], np.float32))


def asked_about_a_picture(path: Path) -> Path:
    """A picture (1, 4, 8, 8) and a question (1, 5): a convolution and a pool of one, a product of both."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (6, 4, 4, 4)), ("v", (5, 24)))
    ]
    weights.append(numpy_helper.from_array(np.array([1, 24], np.int64), "flat"))
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["features"], strides=[4, 4]),
        helper.make_node("Reshape", ["features", "flat"], ["seen"]),
        helper.make_node("MatMul", ["question", "v"], ["asked"]),
        helper.make_node("Mul", ["seen", "asked"], ["answer"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("picture", [1, 4, 8, 8]), ("question", [1, 5]), ("answer", [1, 24]))
    }
    ends = [values["picture"], values["question"]], [values["answer"]]
    graph = helper.make_graph(nodes, "asked", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_question_goes_beside_the_features_as_it_is_and_a_picture_does_not(tmp_path: Path) -> None:
    whole = asked_about_a_picture(tmp_path / "asked.onnx")
    rng = np.random.default_rng(1)
    given = {
        "picture": rng.standard_normal((1, 4, 8, 8)).astype(np.float32),
        "question": rng.standard_normal((1, 5)).astype(np.float32),
    }
    with pytest.raises(ConversionFailed, match="no cut"):
        split_model(whole, ["features"], [given], tmp_path / "split")
    made = split_model(whole, ["features"], [given], tmp_path / "split", beside=["question"])
    assert read_split(tmp_path / "split") == made
    assert (made.beside, made.inputs_elements, made.features_elements) == (("question",), 256, 24)
    assert [s.name for s in tail_signature(made).inputs][-1] == "question"
    middle = run(tmp_path / "split" / "head.onnx", given)
    sent = {**coded_inputs(middle, made.features), "question": given["question"]}
    found, wanted = run(tmp_path / "split" / "tail.onnx", sent)["answer"], run(whole, given)["answer"]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    for name, why in (("picture", "may be a picture"), ("nothing", "none of its inputs")):
        with pytest.raises(ConversionFailed, match=why):
            split_model(whole, ["features"], [given], tmp_path / "other", beside=[name])
    told = (tmp_path / "split" / SPLIT_FILE).read_text()
    for changed, why in (('"picture"', "may be a picture"), ('"nothing"', "not some of its inputs")):
        at = told.index('"beside"')
        (tmp_path / "split" / SPLIT_FILE).write_text(told[:at] + told[at:].replace('"question"', changed, 1))
        with pytest.raises(BadInput, match=why):
            read_split(tmp_path / "split")


def test_a_head_hands_on_what_goes_beside_and_checks_it(tmp_path: Path) -> None:
    from edgekiln.runtime.hybrid.privacy import open_head

    whole = asked_about_a_picture(tmp_path / "asked.onnx")
    given = {"picture": np.ones((1, 4, 8, 8), np.float32), "question": np.ones((1, 5), np.float32)}
    split_model(whole, ["features"], [given], tmp_path / "split", beside=["question"])
    head = open_head(tmp_path / "split")
    try:
        assert np.array_equal(head(given).tensors["question"], given["question"])
        assert "picture" not in head(given).tensors
        with pytest.raises(BadInput, match="'question'"):
            head.coded(head.float_features(given), {"question": np.ones((1, 6), np.float32)})
        with pytest.raises(BadInput, match="'question'"):
            head.coded(head.float_features(given))
    finally:
        head.close()
