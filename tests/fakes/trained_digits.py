"""A small convolutional network, really trained on scikit-learn's 1,797 scanned digits, as an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.graph import optimise


@dataclass(frozen=True)
class Digits:
    """``graph`` takes x [1, 1, 8, 8] and gives y [1, 10]; it is optimised as a build would do it."""

    graph: Path
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def samples(self, start: int, stop: int) -> list[dict[str, NDArray[Any]]]:
        return [{"x": self.images[i : i + 1]} for i in range(start, stop)]


TRAINED = 1400
"""The first images are trained on, the rest are for tests."""


def build(folder: Path) -> Digits:
    """Train for a few seconds on one thread's worth of work, export, optimise."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for more of them
    torch.manual_seed(0)
    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    x, y = torch.from_numpy(images[:TRAINED]), torch.from_numpy(data.target[:TRAINED])
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(TRAINED).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    torch.set_num_threads(threads)
    source = folder / "source.onnx"
    torch.onnx.export(
        net.eval(),
        (x[:1],),
        source,
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        opset_version=17,
    )
    optimise(source, {"x": (1, 1, 8, 8)}, {"x": images[:1]}, folder / "graph.onnx")
    return Digits(folder / "graph.onnx", images, data.target)
