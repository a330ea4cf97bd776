"""Engines on the caller's own memory: the same numbers, nothing copied, shapes that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekiln.engines import Runner, bind, build_command, open_engine
from edgekiln.errors import BadInput
from fakes.runtime_bundle import Part, network, picture, write

ENGINES = ("onnxruntime", "openvino")


def opened(folder: Path, engine: str, **given: Any) -> Runner:
    return open_engine(engine, write(Part("fp32", engine=engine, **given), folder), folder, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_computes_what_the_runner_computes_bit_for_bit(engine: str, tmp_path: Path) -> None:
    plain, other = opened(tmp_path / "a", engine), opened(tmp_path / "b", engine)
    bound = bind(other)
    assert bound is not None
    assert dict(bound.takes) == {"x": (1, 3, 32, 32)}
    for seed in range(3):
        x = picture(seed=seed)
        assert np.array_equal(bound({"x": x})["y"], plain({"x": x})["y"])


@pytest.mark.parametrize("engine", ENGINES)
def test_it_reads_the_array_where_it_lies_and_leaves_outputs_where_they_are(
    engine: str, tmp_path: Path
) -> None:
    plain, other = opened(tmp_path / "a", engine), opened(tmp_path / "b", engine)
    bound = bind(other)
    assert bound is not None
    x = picture(seed=1)
    first = bound({"x": x})["y"]
    kept = first.copy()
    x[:] = picture(seed=2)  # the same array, which is bound already
    second = bound({"x": x})["y"]
    assert np.array_equal(second, plain({"x": picture(seed=2)})["y"])
    assert not np.array_equal(second, kept)
    assert second.ctypes.data == first.ctypes.data


@pytest.mark.parametrize("engine", ENGINES)
def test_open_axes_take_another_length_each_call(engine: str, tmp_path: Path) -> None:
    shapes = {"sizes": ((32, 32), (24, 40)), "batch": "batch"}
    plain, other = opened(tmp_path / "a", engine, **shapes), opened(tmp_path / "b", engine, **shapes)
    bound = bind(other)
    assert bound is not None
    assert dict(bound.takes) == {"x": (None, 3, None, None)}
    for size, batch in (((32, 32), 1), ((24, 40), 3), ((32, 32), 2)):
        x = picture(size, seed=batch, batch=batch)
        found = bound({"x": x})["y"]
        assert found.shape == (batch, 10)
        assert np.array_equal(found, plain({"x": x})["y"])


def test_outputs_whose_shape_the_data_give_stand_beside_fixed_ones(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("NonZero", ["x"], ["where"]),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [
            value("where", TensorProto.INT64, [2, "n"]),
            value("y", TensorProto.FLOAT, [1, 4]),
            value("sum", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bound = bind(opened(tmp_path, "onnxruntime", graph=graph))
    assert bound is not None
    kept = []
    for row in ([1, 0, -2, 0], [1, 1, 1, 1]):
        found = bound({"x": np.array([row], np.float32)})
        kept.append(found["where"])
        assert found["where"].tolist() == [[0] * np.count_nonzero(row), np.nonzero(row)[0].tolist()]
        assert found["y"].tolist() == [[max(0, n) for n in row]]
        assert found["sum"] == sum(row)
    assert kept[0].tolist() == [[0, 0], [0, 2]], (
        "ONNX Runtime's own buffers stay for as long as they are held"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_output_that_is_an_input_or_another_output_is_memory_of_its_own(
    engine: str, tmp_path: Path
) -> None:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Identity", ["y"], ["again"]),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value(n, TensorProto.FLOAT, [1, 4]) for n in ("same", "y", "again")]
        + [value("sum", TensorProto.FLOAT, [])],
    )
    graph = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bound = bind(opened(tmp_path, engine, graph=graph))
    assert bound is not None
    for row in ([1, -2, 3, 4], [-1, 2, 0, 5]):
        x = np.array([row], np.float32)
        found = bound({"x": x})
        assert found["same"].tolist() == [row]
        assert found["y"].tolist() == found["again"].tolist() == [[max(0, n) for n in row]]
        assert found["sum"] == sum(row)
        found["same"][:] = 7
        assert x.tolist() == [row]


def test_a_tensor_that_is_no_array_of_numbers_has_no_such_path(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Identity", ["x"], ["y"])
    made = helper.make_graph(
        [node], "g", [value("x", TensorProto.STRING, [1])], [value("y", TensorProto.STRING, [1])]
    )
    graph = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(graph, tmp_path / "text.onnx")
    assert bind(opened(tmp_path / "a", "onnxruntime", graph=graph)) is None


def test_openvino_says_which_shape_is_outside_of_its_bounds(tmp_path: Path) -> None:
    bound = bind(opened(tmp_path, "openvino", graph=network("h", "w")))
    assert bound is not None
    with pytest.raises(BadInput, match="outside"):
        bound({"x": np.zeros((2, 3, 32, 32), np.float32)})
    assert bound({"x": picture()})["y"].shape == (1, 10)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_has_to_be_built_before_these_open(engine: str, tmp_path: Path) -> None:
    assert build_command(engine, write(Part("fp32", engine=engine), tmp_path), tmp_path) is None
