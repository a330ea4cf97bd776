"""Rules that hold for any attributes: windows, resizing and slices mean what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.torch_graph import check_against, load

QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def differs(folder: Path, node: onnx.NodeProto, shape: list[int], constants: dict[str, Any]) -> float:
    """The largest difference to ONNX Runtime of a graph of one node with input x and output y."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return check_against(path, load(path)).max_error


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    pads = [draw(st.integers(0, k - 1)) for k in kernel + kernel]
    return {
        "kernel_shape": kernel,
        "strides": draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)),
        "pads": pads,
    }


sizes = st.lists(st.integers(4, 9), min_size=2, max_size=2)


@QUICK
@given(windows(), sizes, st.booleans(), st.booleans())
def test_average_pools(
    tmp_path: Path, window: dict[str, Any], size: list[int], ceil: bool, all_: bool
) -> None:
    more = {"ceil_mode": int(ceil), "count_include_pad": int(all_)}
    node = helper.make_node("AveragePool", ["x"], ["y"], **window, **more)
    assert differs(tmp_path, node, [1, 2, *size], {}) < 1e-5


@QUICK
@given(windows(), sizes, st.booleans())
def test_max_pools(tmp_path: Path, window: dict[str, Any], size: list[int], ceil: bool) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], **window, ceil_mode=int(ceil))
    assert differs(tmp_path, node, [1, 2, *size], {}) == 0


@QUICK
@given(windows(), sizes, st.sampled_from([1, 2]), st.booleans())
def test_convolutions_and_their_transposes(
    tmp_path: Path, window: dict[str, Any], size: list[int], dilation: int, turned: bool
) -> None:
    window = {**window, "dilations": [dilation, dilation]}
    weights = np.random.default_rng(0).standard_normal((4, 4, *window["kernel_shape"])).astype(np.float32)
    size = [n + 4 for n in size]
    node = helper.make_node("ConvTranspose" if turned else "Conv", ["x", "w"], ["y"], **window)
    assert differs(tmp_path, node, [1, 4, *size], {"w": weights}) < 1e-4


@QUICK
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    sizes,
    st.lists(st.integers(2, 19), min_size=2, max_size=2),
)
def test_resizing(
    tmp_path: Path, mode: str, placed: str, rounding: str, size: list[int], made: list[int]
) -> None:
    node = helper.make_node(
        "Resize",
        ["x", "", "", "sizes"],
        ["y"],
        mode=mode,
        coordinate_transformation_mode=placed,
        nearest_mode=rounding,
    )
    assert differs(tmp_path, node, [1, 2, *size], {"sizes": np.array([1, 2, *made], np.int64)}) < 1e-4


@QUICK
@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.sampled_from([-3, -2, -1, 1, 2, 3]),
    st.sampled_from([-1, 0, 1]),
)
def test_slices(tmp_path: Path, start: int, end: int, step: int, axis: int) -> None:
    if len(range(*slice(start, end, step).indices(6))) == 0:
        return
    node = helper.make_node("Slice", ["x", "b", "e", "a", "s"], ["y"])
    given = {"b": [start], "e": [end], "a": [axis], "s": [step]}
    constants = {k: np.array(v, np.int64) for k, v in given.items()}
    assert differs(tmp_path, node, [6, 6], constants) == 0


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(op: str, direction: str, tmp_path: Path) -> None:
    random, gates = np.random.default_rng(1), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    ways, hidden, features = 1 + (direction == "bidirectional"), 5, 3
    constants = {
        "w": random.standard_normal((ways, gates * hidden, features)),
        "r": random.standard_normal((ways, gates * hidden, hidden)),
        "b": random.standard_normal((ways, 2 * gates * hidden)),
    }
    for after in (0, 1) if op == "GRU" else (None,):
        more = {} if after is None else {"linear_before_reset": after}
        node = helper.make_node(
            op, ["x", "w", "r", "b"], ["y"], hidden_size=hidden, direction=direction, **more
        )
        given = {k: v.astype(np.float32) for k, v in constants.items()}
        assert differs(tmp_path, node, [7, 2, features], given) < 1e-5
