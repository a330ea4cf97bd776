"""What can't be quantised is refused or named: graphs on a grid already, operators without a form."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.make import make
from edgekiln.compile.quantise.observers import observe
from edgekiln.compile.quantise.operators import refuse_quantised, unknown_operators
from edgekiln.compile.quantise.static import DIALECTS, quantise_static
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from fakes.variants import model_of


@pytest.fixture(scope="module")
def quantised(digits, tmp_path_factory):
    """The digits as somebody else's quantiser left them."""
    path = tmp_path_factory.mktemp("quantised") / "q.onnx"
    seen = observe(digits.graph, digits.samples(0, 20), 1)
    quantise_static(digits.graph, seen, "minmax", {}, DIALECTS["ort"], path)
    return path


def shop_of(path, digits, cache):
    data = Calibration(lambda: iter(digits.samples(0, 20)), 20, "data")
    return Workshop(path, sha256_file(path), data, cache, 1, model_of(path))


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("onnxruntime", "int8-static-mse"),
        ("onnxruntime", "int8-static-mse+round"),
        ("onnxruntime", "int8-static-mse+equalise"),
        ("onnxruntime", "int8-dynamic"),
        ("openvino", "int8-nncf-mixed"),
    ],
)
def test_a_graph_that_is_quantised_already_is_refused_with_the_cure(
    digits, quantised, tmp_path, target, recipe
):
    with pytest.raises(ConversionFailed, match=r"quantised already \(DequantizeLinear \d+, QuantizeLinear"):
        make(shop_of(quantised, digits, tmp_path), load("intel-n100"), target, recipe)


def test_a_float_recipe_ships_it_as_it_is(digits, quantised, tmp_path):
    shop = shop_of(quantised, digits, tmp_path)
    folder, artifact = make(shop, load("intel-n100"), "onnxruntime", "fp32")
    assert artifact.precisions == {"int8": 3}
    made = onnx.load(folder / artifact.entry)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in made.graph.node}


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearAdd", "MatMulNBits", "ConvInteger"])
def test_every_form_of_a_quantised_graph_is_known(op):
    with pytest.raises(ConversionFailed, match=f"{op} 2") as caught:
        refuse_quantised({"Conv": 1, op: 2}, "m.onnx")
    assert "float model" in caught.value.cure
    refuse_quantised({"Conv": 1, "Quick": 3, "Relu": 2}, "m.onnx")


def test_an_operator_of_another_domain_stays_float_and_is_named_in_the_note(tmp_path):
    """Gelu of com.microsoft, which ONNX Runtime computes and its quantiser does not know."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m"),
        helper.make_node("Gelu", ["a"], ["b"], name="g", domain="com.microsoft"),
        helper.make_node("Erf", ["b"], ["c"], name="e"),
        helper.make_node("MatMul", ["c", "v"], ["y"], name="n"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 64))],
        [
            numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "v"),
        ],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    assert unknown_operators(path) == {"Erf": 1, "com.microsoft.Gelu": 1}
    rows = [{"x": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(8)]
    shop = Workshop(
        path,
        sha256_file(path),
        Calibration(lambda: iter(rows), 8, "d"),
        tmp_path / "cache",
        1,
        model_of(path),
    )
    _, artifact = make(shop, load("intel-n100"), "onnxruntime", "int8-static-minmax")
    assert artifact.precisions == {"int8": 2}
    note = artifact.passes[-1].note
    assert "in float, without a quantised form: Erf 1, com.microsoft.Gelu 1" in note
