"""EfficientNet-Lite: the mobile EfficientNets without squeeze-and-excitation and with ReLU6.

Sources: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML
2019) for the block table and the compound scaling; the EfficientNet-Lite release notes of the TensorFlow
TPU models for what the Lite family changes: no squeeze-and-excitation, ReLU6 for swish, stem and head of
fixed width, first and last stage of fixed depth.

Module names follow the published state dicts (``_blocks.0._bn1.weight``), so that these load strictly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Scale:
    """How a member of the family differs: multipliers of width and depth, side of the input in pixels."""

    width: float
    depth: float
    size: int
    dropout: float


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks before scaling; only the first one strides and changes the channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


SCALES = {
    "efficientnet-lite0": Scale(1.0, 1.0, 224, 0.2),
    "efficientnet-lite1": Scale(1.0, 1.1, 240, 0.2),
    "efficientnet-lite2": Scale(1.1, 1.2, 260, 0.3),
    "efficientnet-lite3": Scale(1.2, 1.4, 280, 0.3),
    "efficientnet-lite4": Scale(1.4, 1.8, 300, 0.3),
}
STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01


def scaled_channels(channels: int, width: float) -> int:
    """``channels * width`` rounded to a multiple of 8, never more than a tenth below the product."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis of ``size`` pixels, as TensorFlow's SAME lays them.

    The output has ``ceil(size / stride)`` pixels; an odd zero goes behind, so a stride of 2 pads (0, 1)
    where PyTorch's own ``padding=1`` would pad (1, 1) and shift the picture by a pixel.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with SAME padding worked out once for square inputs of ``size``, so exports are static.

    Even padding goes into the convolution; uneven padding becomes one Pad in front of it.
    """

    def __init__(self, size: int, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        before, after = same_padding(size, kernel, stride)
        even = before if before == after else 0
        super().__init__(inputs, outputs, kernel, stride, padding=even, groups=groups, bias=False)
        self.uneven = (before, after, before, after) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, size, size] to [N, outputs, ceil(size / stride), ceil(size / stride)]."""
        return super().forward(x if self.uneven is None else functional.pad(x, self.uneven))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


class Block(nn.Module):
    """Inverted bottleneck: expand by a 1x1 (unless ``expand`` is 1), depthwise, project back linearly."""

    def __init__(self, size: int, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        middle = inputs * expand
        self.expands = expand != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _batch_norm(middle)
        self._depthwise_conv = SameConv2d(size, middle, middle, kernel, stride, groups=middle)
        self._bn1 = _batch_norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, size, size] to [N, outputs, size / stride, size / stride], rounded up."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return cast(Tensor, x + y if self.shortcut else y)


def _blocks(scale: Scale, size: int) -> tuple[list[Block], int]:
    """All blocks after the stem's ``size`` x ``size`` output, and the channels of the last one."""
    blocks = []
    channels = STEM_CHANNELS
    for number, stage in enumerate(STAGES):
        fixed_depth = number in {0, len(STAGES) - 1}
        repeats = stage.repeats if fixed_depth else math.ceil(stage.repeats * scale.depth)
        outputs = scaled_channels(stage.outputs, scale.width)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            blocks.append(Block(size, channels, outputs, stage.kernel, stride, stage.expand))
            size, channels = math.ceil(size / stride), outputs
    return blocks, channels


class EfficientNetLite(nn.Module):
    """A member of the family for square inputs of ``scale.size``; the output is logits, no softmax."""

    def __init__(self, scale: Scale, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(scale.size, 3, STEM_CHANNELS, kernel=3, stride=2, groups=1)
        self._bn0 = _batch_norm(STEM_CHANNELS)
        blocks, channels = _blocks(scale, math.ceil(scale.size / 2))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _batch_norm(HEAD_CHANNELS)
        self._dropout = nn.Dropout(scale.dropout)
        self._fc = nn.Linear(HEAD_CHANNELS, classes)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, size, size], RGB as ``(pixel - 127) / 128``, to logits [N, classes]."""
        x = functional.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        x = torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)
        return cast(Tensor, self._fc(self._dropout(x)))


def efficientnet_lite(name: str, classes: int = 1000) -> EfficientNetLite:
    """The member ``name`` (a key of ``SCALES``) with random weights, in evaluation mode."""
    return EfficientNetLite(SCALES[name], classes).eval()


def build() -> nn.Module:
    """EfficientNet-Lite0 for 224 x 224 pictures and the 1000 ImageNet classes: the demo's factory."""
    return efficientnet_lite("efficientnet-lite0")
