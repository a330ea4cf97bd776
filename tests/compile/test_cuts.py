"""Where a graph can be cut: what is listed can be cut, and what is left out has its reason."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekiln.compile.cuts import activations, cuts
from edgekiln.compile.split import split_model
from edgekiln.model.cost import cost
from edgekiln.model.signature import signature
from fakes.trained_efficientnet import build


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("efficientnet"))


def test_every_place_that_is_listed_can_be_cut_and_costs_what_it_says(net: Path, tmp_path: Path) -> None:
    (spec,) = signature(onnx.load(net)).inputs
    x = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    found = cuts(net)
    assert len(found) >= 2
    for number, cut in enumerate(found):
        into = tmp_path / str(number)
        made = split_model(net, [cut.tensor], [{spec.name: x}], into)
        assert made.features[0].shape == cut.shape
        assert made.features_elements / made.inputs_elements == pytest.approx(cut.share)
        assert cost(into / "head.onnx").macs / cost(net).macs == pytest.approx(cut.macs_share)


def test_the_places_of_a_trained_network_are_its_blocks_from_the_front_to_the_back(
    efficientnet: Path,
) -> None:
    found = {cut.tensor: cut for cut in cuts(efficientnet)}
    assert "/_blocks.7/Add_output_0" in found
    shares = [cut.macs_share for cut in found.values()]
    assert shares == sorted(shares)
    assert all(0 < cut.share < 1 and 0 < cut.macs_share < 1 for cut in found.values())
    assert all(0 < cut.weights_share <= 1 for cut in found.values())
    # Inside a block that adds its input at the end, two tensors are alive.
    assert not [name for name in found if name.startswith("/_blocks.7/") and "Add" not in name]
    # The wide middle of a block is no choice where its narrow end follows at once.
    assert math.prod(found["/_blocks.8/_project_conv/Conv_output_0"].shape) == 112 * 14 * 14
    assert not [name for name in found if "/_blocks.8/Clip" in name]


def test_a_network_that_widens_has_no_place(digit_files: Path, tmp_path: Path) -> None:
    model = onnx.load(digit_files / "digits.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "static.onnx")
    assert cuts(tmp_path / "static.onnx") == ()


def test_a_tensor_beside_which_another_is_alive_is_no_place(tmp_path: Path) -> None:
    """The input is added again at the end: it leaves with whatever is cut."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "m"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["y"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w", (2, 3, 1, 1)), ("w2", (2, 2, 1, 1)))
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 2, 4, 4]))
    ]
    graph = helper.make_graph(nodes, "beside", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "beside.onnx")
    assert [cut.tensor for cut in cuts(tmp_path / "beside.onnx")] == ["c"]
    assert activations(tmp_path / "beside.onnx") == ("x", "a", "m", "b", "c", "y")
