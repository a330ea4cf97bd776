"""A small fully convolutional classifier of any input size, and photographs to run it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = 10


def graph(height: int | str = "h", width: int | str = "w") -> onnx.ModelProto:
    """``x`` (1, 3, h, w) to ``y`` (1, 10): two convolutions, a global average, a matrix product."""
    rng = np.random.default_rng(0)
    shapes = {"c1": (8, 3, 3, 3), "b1": (8,), "c2": (16, 8, 3, 3), "b2": (16,), "m": (CLASSES, 16)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) * (0.3 if len(s) > 1 else 0.1)).astype("f4"), n)
        for n, s in shapes.items()
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "c1", "b1"], ["a"], name="first", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a"], ["b"], name="relu1"),
        node("Conv", ["b", "c2", "b2"], ["c"], name="second", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c"], ["d"], name="relu2"),
        node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        node("Flatten", ["e"], ["f"], name="flatten"),
        node("Gemm", ["f", "m"], ["y"], name="scores", transB=1),
    ]
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "any size",
            [value("x", TensorProto.FLOAT, [1, 3, height, width])],
            [value("y", TensorProto.FLOAT, [1, CLASSES])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def photographs(into: Path, count: int, labelled: bool = False) -> Path:
    """``count`` odd-sized parts of scikit-learn's two photographs; ``labelled``: in folders by class."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(len(into.name))
    images: list[Any] = load_sample_images().images
    for number in range(count):
        top, left = rng.integers(0, 200, 2)
        part = images[number % 2][top : top + 90 + number, left : left + 120]
        folder = into / str(number % CLASSES) if labelled else into
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part).save(folder / f"{number:02d}.png")
    return into
