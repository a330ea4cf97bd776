"""Two real classifiers of handwritten digits, one better than the other, and labelled frames.

Both are random convolution features with a trained readout; the server's has learnt from ten times as many
samples. What they cost is the same, and small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD_BACK = 500
EDGE_SAMPLES, CLOUD_SAMPLES = 100, 1000
SIDE = 64
_CHANNELS = 16


@dataclass(frozen=True)
class Digits:
    """``edge`` and ``cloud`` take ``image`` float32 [1, 1, SIDE, SIDE] and give ``scores`` [1, 10].

    The frames are the HELD_BACK digits that neither has seen.
    """

    edge: Path
    cloud: Path
    frames: NDArray[np.float32]
    labels: NDArray[np.int64]


def digits(folder: Path) -> Digits:
    """Train and write both into ``folder``."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grown = np.kron(found.images / 16, np.ones((SIDE // 8, SIDE // 8)))[:, None].astype(np.float32)
    labels = found.target.astype(np.int64)
    features = _features(grown)
    for name, samples in (("edge", EDGE_SAMPLES), ("cloud", CLOUD_SAMPLES)):
        _write(folder / f"{name}.onnx", *_readout(features[:samples], labels[:samples]))
    return Digits(folder / "edge.onnx", folder / "cloud.onnx", grown[-HELD_BACK:], labels[-HELD_BACK:])


def _kernels() -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    shapes = ((_CHANNELS, 1, 9, 9), (_CHANNELS, _CHANNELS, 3, 3))
    return [(random.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for s in shapes]


def _body() -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    kernels = [numpy_helper.from_array(k, f"k{i}") for i, k in enumerate(_kernels())]
    nodes = [
        helper.make_node("Conv", ["image", "k0"], ["a"], strides=[2, 2], pads=[4, 4, 4, 4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("AveragePool", ["d"], ["e"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["e"], ["features"]),
    ]
    return nodes, kernels


def _model(nodes: list[Any], weights: list[Any], output: str, size: int) -> Any:
    from onnx import TensorProto, checker, helper

    ends = [("image", [1, 1, SIDE, SIDE]), (output, [1, size])]
    given, got = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in ends)
    graph = helper.make_graph(nodes, "digits", [given], [got], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model


def _features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime as ort

    model = _model(*_body(), "features", _CHANNELS * 16)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def _readout(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [10, features] and bias [10] of a logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    found = LogisticRegression(max_iter=500).fit(scaler.transform(features), labels)
    weights = found.coef_ / scaler.scale_
    return weights.astype(np.float32), (found.intercept_ - weights @ scaler.mean_).astype(np.float32)


def _write(path: Path, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    from onnx import helper, numpy_helper

    nodes, kernels = _body()
    more = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "bias")]
    nodes.append(helper.make_node("Gemm", ["features", "w", "bias"], ["scores"], transB=1))
    path.write_bytes(_model(nodes, [*kernels, *more], "scores", 10).SerializeToString())
