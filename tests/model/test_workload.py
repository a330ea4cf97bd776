"""Layers as engines run them: what fuses, what costs nothing, what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekiln.model.cost import cost
from edgekiln.model.workload import workload
from fakes import networks


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], shape: list[int]
) -> onnx.ModelProto:
    data = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights.items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        data,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


def test_an_activation_joins_its_convolution_and_a_residual_sum_reads_the_other_branch() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    found = workload(graph(nodes, {"w": (8, 8, 3, 3)}, [1, 8, 10, 10]))
    (layer,) = found.layers
    assert layer.kind == "conv"
    assert layer.macs == 8 * 8 * 9 * 100
    assert (layer.reads, layer.writes, layer.weights) == (800 + 800, 800, 576)
    assert (layer.channels_in, layer.channels_out, layer.places, layer.kernel) == (8, 8, 100, 9)


def test_views_cost_nothing_and_tables_are_read_where_they_are_asked() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    found = workload(graph(nodes, {"table": (50_000, 16)}, [1, 7]))
    (layer,) = found.layers
    assert layer.kind == "gather"
    assert layer.weights == 0
    assert layer.writes == 7 * 16


def test_depthwise_pointwise_and_dense_are_told_apart() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "d"], ["a"], group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "p"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["e"]),
        helper.make_node("Gemm", ["e", "w"], ["y"]),
    ]
    found = workload(graph(nodes, {"d": (4, 1, 3, 3), "p": (6, 4, 1, 1), "w": (6, 10)}, [1, 4, 5, 5]))
    assert [x.kind for x in found.layers] == ["depthwise", "pointwise", "reduce", "dense"]
    assert found.layers[-1].channels_in == 6


def test_equal_layers_are_counted_together_and_the_work_is_that_of_cost(tmp_path: Path) -> None:
    proto = onnx.load(networks.export(tmp_path / "m.onnx", dynamic_batch=False))
    found, counted = workload(proto), cost(proto)
    assert found.macs == counted.macs
    assert found.unresolved == 0
    assert 4 * found.peak == counted.peak_activation_bytes


def test_a_product_of_two_activations_is_no_dense_layer() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    found = workload(graph(nodes, {}, [1, 6, 32]))
    assert [x.kind for x in found.layers] == ["move", "matmul"]
    assert found.layers[1].macs == 6 * 6 * 32
