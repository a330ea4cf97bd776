"""MobileNetV3-Large with seeded random weights.

Source: Howard et al., "Searching for MobileNetV3" (ICCV 2019), table 1 and section 5: squeeze-and-excitation
with a hard sigmoid, hard swish in the deeper half, the last stage computed after the pooling.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

# kernel, expanded channels, output channels, squeeze-and-excitation, hard swish, stride
ROWS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def _eight(channels: float) -> int:
    """The nearest multiple of eight that is not below nine tenths of ``channels``."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Excite(nn.Module):
    """Scale each channel by a gate computed from all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _eight(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.gate(x))


class Block(nn.Module):
    """Expand, filter each channel, gate, project; added to its input where the shapes agree."""

    def __init__(
        self, kernel: int, inputs: int, expanded: int, outputs: int, gated: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers += [*_conv(inputs, expanded, 1, 1), act()]
        layers += [*_conv(expanded, expanded, kernel, stride, groups=expanded)]
        layers += [Excite(expanded)] if gated else []
        layers += [act(), *_conv(expanded, outputs, 1, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.layers(x))
        return x + y if self.residual else y


def mobilenet_v3_large(classes: int = 1000) -> nn.Module:
    """(N, 3, 224, 224) to (N, ``classes``) logits; the same random weights at every call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [*_conv(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for kernel, expanded, outputs, gated, swish, stride in ROWS:
        layers.append(Block(kernel, channels, expanded, outputs, gated, swish, stride))
        channels = outputs
    layers += [*_conv(channels, 960, 1, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers).eval()
