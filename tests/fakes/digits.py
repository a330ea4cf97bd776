"""A real small classifier and real labelled pictures: scikit-learn's handwritten digits.

Training takes about two seconds. The graph is written with ``onnx.helper``, as an exporter would leave it:
batch normalisation unfolded, an open batch axis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = tuple("zero one two three four five six seven eight nine".split())
HELD_BACK = 300


def pictures() -> tuple[NDArray[Any], NDArray[Any]]:
    """(n, 8, 8) bytes and (n,) labels; the last HELD_BACK are never trained on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.clip(found.images * 16, 0, 255).astype(np.uint8), found.target


def train() -> Any:
    """A convolutional network on x / 255, (n, 1, 8, 8) to (n, 10); about 98 % right on held-back digits."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    images, labels = pictures()
    x = torch.from_numpy(images[:-HELD_BACK, None].astype(np.float32) / 255)
    y = torch.from_numpy(labels[:-HELD_BACK].astype(np.int64))
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(8):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    return net.eval()


def graph(weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """The network of ``train`` as ONNX: input ``x`` (batch, 1, 8, 8), output ``scores`` (batch, 10)."""
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"]
    names += ["6.weight", "6.bias"]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "0.weight"], ["a"], name="conv1", kernel_shape=[3, 3], pads=[1] * 4),
        node("BatchNormalization", ["a", *names[1:5]], ["b"], name="bn"),
        node("Relu", ["b"], ["c"], name="relu1"),
        node("Conv", ["c", "3.weight", "3.bias"], ["d"], name="conv2", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["d"], ["e"], name="relu2"),
        node("Flatten", ["e"], ["f"], name="flatten"),
        node("Gemm", ["f", "6.weight", "6.bias"], ["scores"], name="gemm", transB=1),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "digits",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
            [numpy_helper.from_array(weights[name], name) for name in names],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def save_pictures(into: Path, labelled: bool, first: int, count: int) -> None:
    """``count`` held-back digits from number ``first`` on, as PNG files, in class folders if ``labelled``."""
    images, labels = pictures()
    start = len(images) - HELD_BACK + first
    for number in range(start, start + count):
        folder = into / CLASSES[labels[number]] if labelled else into
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(folder / f"{number}.png")
