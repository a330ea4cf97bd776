"""Real, small models for the compile and engine tests: a MobileNet-like classifier exported by torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIZE = 32
SHAPE = (1, 3, SIZE, SIZE)


class Block(nn.Module):
    """Inverted residual: 1×1 expand, 3×3 depthwise, 1×1 project, ReLU6, and the input added where it fits."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = inside * 4
        self.adds = stride == 1 and inside == outside
        self.layers = nn.Sequential(
            *conv(inside, wide, 1), *conv(wide, wide, 3, stride, wide), *conv(wide, outside, 1)[:2]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


def conv(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outside), nn.ReLU6()]


def classifier() -> nn.Sequential:
    """Input (N, 3, 32, 32), output (N, 10). Batch norms hold statistics, and are fused into the convs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *conv(3, 16, 3, 2),
        Block(16, 24, 2),
        Block(24, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 3, SIZE, SIZE))
        net[-1].weight.mul_(8)
    net.eval()
    for part in (net, net[3].layers, net[4].layers):
        fuse(part)
    return net


def fuse(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        if isinstance(layers[index], nn.Conv2d) and isinstance(layers[index + 1], nn.BatchNorm2d):
            layers[index] = fuse_conv_bn_eval(layers[index], layers[index + 1])
            layers[index + 1] = nn.Identity()


def export(path: Path, dynamic_batch: bool) -> Path:
    """The classifier as ONNX, opset 17, input ``image``, output ``logits``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            classifier(),
            (torch.zeros(SHAPE),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None,
            opset_version=17,
        )
    return path


def any_size(source: Path, into: Path) -> Path:
    """``source`` with symbolic height and width; what exporters noted of inner shapes goes."""
    model = onnx.load(source)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, into)
    return into


def picture(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Noise with structure: not the same in every channel and place."""
    made = np.random.default_rng(seed)
    wave = np.sin(np.linspace(0, 6, shape[-1]) * (1 + seed % 5))
    return (made.standard_normal(shape) + wave).astype(np.float32)


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.left: Iterator[dict[str, NDArray[np.float32]]] = iter(
            [{name: picture(k, shape)} for k in range(4)]
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.left, None)


def quantise(source: Path, into: Path, symmetric: bool, shape: tuple[int, ...] = SHAPE) -> Path:
    """Q/DQ by ONNX Runtime: its default dialect, or the symmetric one that TensorRT takes."""
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        source,
        into,
        Pictures(name, shape),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=extra if symmetric else {},
    )
    return into


def sqnr_db(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    noise = float(((reference - other) ** 2).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float((reference**2).sum()) / noise)


def ocr_model(name: str) -> Path:
    """A PP-OCR model that lies inside the rapidocr package."""
    from importlib.util import find_spec

    spec = find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / name


CLS, REC = "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "PP-OCRv6_rec_small.onnx"
DET = "PP-OCRv6_det_small.onnx"
