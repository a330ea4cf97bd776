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
from edgekiln.model.parts import SPLIT_FILE, coded_inputs, quantise_channels, read_split
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
