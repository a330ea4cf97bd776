"""The usability rules of ONNX Runtime's providers on graphs whose answer is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.targets.ort_placement import usability
from edgekiln.compile.targets.ort_providers import COREML, CPU, NNAPI, XNNPACK, Provider, ranked
from edgekiln.records import Placement
from fakes.networks import quantise

SHAPE = (1, 4, 8, 8)


def graph(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = SHAPE) -> onnx.ModelProto:
    """From x to y of one shape, with a 3×3 kernel ``w`` of 4 channels."""
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    made = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "w")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def node(op: str, before: str, after: str, **more: object) -> onnx.NodeProto:
    inputs = [before, "w"] if op == "Conv" else [before]
    return helper.make_node(op, inputs, [after], **({"pads": [1] * 4} if op == "Conv" else {}), **more)


def test_a_foreign_operator_in_the_middle_makes_two_partitions() -> None:
    model = graph(node("Conv", "x", "a"), node("Erf", "a", "b"), node("Conv", "b", "y"))
    for rule in (NNAPI, "NeuralNetwork", XNNPACK):
        count = usability(model, rule)
        assert (count.operators, count.taken, count.partitions) == (3, 2, 2)
        assert count.fallback == {"Erf": 1}


def test_xnnpack_takes_an_activation_behind_a_convolution_and_no_other() -> None:
    behind = graph(node("Conv", "x", "a"), node("Relu", "a", "y"))
    alone = graph(node("Relu", "x", "a"), node("Conv", "a", "y"))
    assert usability(behind, XNNPACK).fallback == {}
    assert usability(alone, XNNPACK).fallback == {"Relu": 1}


def test_xnnpack_wants_constant_weights() -> None:
    matmul = helper.make_node("MatMul", ["x", "x"], ["y"])
    assert usability(graph(matmul, shape=(8, 8)), XNNPACK).taken == 0


def test_xnnpack_takes_quantised_convolutions_with_their_q_and_dq(net: Path, tmp_path: Path) -> None:
    model = onnx.load(quantise(net, tmp_path / "q.onnx", symmetric=False))
    count = usability(model, XNNPACK)
    convs = sum(n.op_type == "Conv" for n in model.graph.node)
    assert convs > 3
    assert "Conv" not in count.fallback
    assert count.fallback["Gemm"] == 1
    assert count.taken > 4 * convs  # input, weight and bias dequantised, output quantised


def test_core_ml_takes_no_q_and_dq_and_falls_to_pieces_on_them(net: Path, tmp_path: Path) -> None:
    whole = usability(onnx.load(net), "NeuralNetwork")
    pieces = usability(onnx.load(quantise(net, tmp_path / "q.onnx", symmetric=False)), "NeuralNetwork")
    assert whole.partitions == 1
    assert pieces.partitions > 5
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(pieces.fallback)


def test_unknown_sizes_are_not_taken() -> None:
    model = graph(node("Conv", "x", "a"), node("Relu", "a", "y"), shape=("batch", 4, "height", "width"))
    assert usability(model, NNAPI).taken == 0


@given(st.lists(st.sampled_from(["Conv", "Relu", "Erf", "Sigmoid", "Softmax"]), min_size=1, max_size=7))
def test_what_is_taken_and_what_falls_back_make_up_the_graph(kinds: list[str]) -> None:
    names = ["x", *(f"t{i}" for i in range(len(kinds) - 1)), "y"]
    model = graph(*(node(k, a, b) for k, a, b in zip(kinds, names[:-1], names[1:], strict=True)))
    for rule in (NNAPI, "MLProgram", "NeuralNetwork", XNNPACK):
        count = usability(model, rule)
        assert count.operators == len(kinds)
        assert count.taken + sum(count.fallback.values()) == count.operators
        # In a chain, pieces lie between what falls back.
        assert count.partitions <= sum(count.fallback.values()) + 1
        assert (count.partitions == 0) is (count.taken == 0)


def placed(name: str, taken: int, partitions: int) -> Placement:
    return Placement(provider=name, how="emulated", operators=100, taken=taken, partitions=partitions)


@pytest.mark.parametrize(
    ("taken", "partitions", "before"), [(100, 1, True), (80, 2, True), (80, 3, False), (75, 1, False)]
)
def test_an_accelerator_stands_before_the_cpu_where_it_takes_most_in_few_pieces(
    taken: int, partitions: int, before: bool
) -> None:
    found = (Provider(name=CPU), Provider(name=COREML))
    order = ranked(found, (placed(f"{COREML} (MLProgram)", taken, partitions), placed(CPU, 100, 1)))
    assert (order[0].name == COREML) is before


def test_nnapi_is_last_even_where_it_takes_everything() -> None:
    found = (Provider(name=NNAPI), Provider(name=CPU), Provider(name=XNNPACK))
    rows = (placed(NNAPI, 100, 1), placed(XNNPACK, 100, 12), placed(CPU, 100, 1))
    assert [p.name for p in ranked(found, rows)] == [XNNPACK, CPU, NNAPI]


def test_a_row_without_figures_is_no_reason_to_come_first() -> None:
    found = (Provider(name=COREML), Provider(name=CPU))
    assert ranked(found, (Placement(provider=COREML, how="emulated"),))[0].name == CPU
