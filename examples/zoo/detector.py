"""A single-stage detector of the shape of YOLO11n, with seeded random weights.

What makes exporters stumble is here: SiLU, channel splits and concatenations, chained max pools, nearest
upsampling, an attention block between convolutions, three scales, and boxes decoded inside the graph from
distributions over distances. Written from published descriptions: Redmon et al. (2016) for the single
stage; Wang et al., "CSPNet" (2020) for split stages; Li et al., "Generalized Focal Loss" (2020) for the
distributions; He et al. (2015) for pyramid pooling. Widths follow the "nano" size, 2.6 M parameters.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

BINS = 16
STRIDES = (8, 16, 32)


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.norm(self.conv(x))))


class Residual(nn.Module):
    """Two 3x3 convolutions around half the channels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Conv(channels, channels // 2, 3), Conv(channels // 2, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.layers(x))


class Split(nn.Module):
    """Half the channels pass by, the other half go through ``inner``; all stages are concatenated."""

    def __init__(self, inputs: int, outputs: int, inner: nn.Module, hidden: int) -> None:
        super().__init__()
        self.first = Conv(inputs, 2 * hidden)
        self.inner = inner
        self.last = Conv(3 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return cast(Tensor, self.last(torch.cat((a, b, self.inner(b)), 1)))


class Pyramid(nn.Module):
    """The same 5x5 max pool three times, its stages concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = Conv(channels, channels // 2), Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        stages = [cast(Tensor, self.first(x))]
        for _ in range(3):
            stages.append(functional.max_pool2d(stages[-1], 5, 1, 2))
        return cast(Tensor, self.last(torch.cat(stages, 1)))


class Attention(nn.Module):
    """Self-attention over pixels with a depthwise convolution for position, then a two-layer network."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.dim = heads, channels // heads
        self.qkv = Conv(channels, channels * 2, act=False)
        self.place = Conv(channels, channels, 3, groups=channels, act=False)
        self.out = Conv(channels, channels, act=False)
        self.feed = nn.Sequential(Conv(channels, channels * 2), Conv(channels * 2, channels, act=False))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mixed = cast(Tensor, self.qkv(x)).view(n, self.heads, 2 * self.dim, h * w)
        q, k, v = torch.split(mixed, [self.dim // 2, self.dim // 2, self.dim], 2)
        weights = (q.transpose(-2, -1) @ k * (self.dim // 2) ** -0.5).softmax(-1)
        seen = (v @ weights.transpose(-2, -1)).reshape(n, c, h, w)
        x = x + cast(Tensor, self.out(seen + self.place(v.reshape(n, c, h, w))))
        return x + cast(Tensor, self.feed(x))


class Head(nn.Module):
    """One scale's class scores and, per side of the box, a distribution over distances."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.sides = nn.Sequential(Conv(channels, 64, 3), Conv(64, 64, 3), nn.Conv2d(64, 4 * BINS, 1))
        self.scores = nn.Sequential(
            Conv(channels, channels, 3, groups=channels),
            Conv(channels, 80),
            Conv(80, 80, 3, groups=80),
            Conv(80, 80),
            nn.Conv2d(80, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.sides(x), self.scores(x)), 1).flatten(2)


class Detector(nn.Module):
    """(N, 3, S, S) to (N, 4 + classes, boxes): centre, size in pixels and class probabilities."""

    anchors: Tensor
    strides: Tensor
    bins: Tensor

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.early = nn.Sequential(
            Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), _stage(32, 64), Conv(64, 64, 3, 2), _stage(64, 128)
        )
        self.middle = nn.Sequential(Conv(128, 128, 3, 2), _stage(128, 128))
        deep = [Conv(128, 256, 3, 2), _stage(256, 256), Pyramid(256)]
        self.deep = nn.Sequential(*deep, Split(256, 256, Attention(128), 128))
        self.up_middle, self.up_early = _stage(256 + 128, 128), _stage(128 + 128, 64)
        self.down_middle, self.down_deep = Conv(64, 64, 3, 2), Conv(128, 128, 3, 2)
        self.out_middle, self.out_deep = _stage(64 + 128, 128), _stage(128 + 256, 256)
        self.heads = nn.ModuleList(Head(c, classes) for c in (64, 128, 256))
        anchors, strides = _anchors(size)
        self.register_buffer("anchors", anchors)
        self.register_buffer("strides", strides)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        early = cast(Tensor, self.early(x))
        middle = cast(Tensor, self.middle(early))
        deep = cast(Tensor, self.deep(middle))
        a = self.up_middle(torch.cat((_up(deep), middle), 1))
        small = self.up_early(torch.cat((_up(a), early), 1))
        medium = self.out_middle(torch.cat((self.down_middle(small), a), 1))
        large = self.out_deep(torch.cat((self.down_deep(medium), deep), 1))
        found = torch.cat([h(f) for h, f in zip(self.heads, (small, medium, large), strict=True)], 2)
        sides, scores = torch.split(found, [4 * BINS, found.shape[1] - 4 * BINS], 1)
        spread = sides.view(sides.shape[0], 4, BINS, -1).transpose(1, 2).softmax(1)
        left_top, right_bottom = (spread * self.bins).sum(1).chunk(2, 1)
        low, high = self.anchors - left_top, self.anchors + right_bottom
        boxes = torch.cat(((low + high) / 2, high - low), 1) * self.strides
        return torch.cat((boxes, scores.sigmoid()), 1)


def _stage(inputs: int, outputs: int) -> nn.Module:
    hidden = outputs // 2
    return Split(inputs, outputs, Residual(hidden), hidden)


def _up(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _anchors(size: int) -> tuple[Tensor, Tensor]:
    """Centres of all cells in units of their stride, (1, 2, boxes), and the strides, (1, 1, boxes)."""
    centres, strides = [], []
    for stride in STRIDES:
        ticks = torch.arange(size // stride, dtype=torch.float32) + 0.5
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        centres.append(torch.stack((x, y)).flatten(1))
        strides.append(torch.full((1, x.numel()), float(stride)))
    return torch.cat(centres, 1)[None], torch.cat(strides, 1)[None]


def detector(size: int = 320, classes: int = 80) -> nn.Module:
    """The detector for square pictures of ``size`` pixels; the same random weights at every call."""
    torch.manual_seed(0)
    return Detector(size, classes).eval()
