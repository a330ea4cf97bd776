"""Architectures that no package builds as they were published, drawn from their papers; and lazy imports."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def torchvision() -> Any:
    """torchvision, also beside a torch that its compiled operators were not built for: none is needed."""
    original = torch.library.register_fake

    def lenient(name: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return original(name, *rest, **more)

    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        torch.library.register_fake = lenient
        with contextlib.suppress(RuntimeError):
            torch.library.define(
                "torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        for name in [n for n in __import__("sys").modules if n.startswith("torchvision")]:
            del __import__("sys").modules[name]
        return importlib.import_module("torchvision")


def timm() -> Any:
    torchvision()
    return importlib.import_module("timm")


def transformers() -> Any:
    torchvision()
    return importlib.import_module("transformers")


def yolo(description: str) -> Callable[[], nn.Module]:
    """The network of an Ultralytics description, without its post-processing, as its exporter leaves it."""

    def make() -> nn.Module:
        torchvision()
        from ultralytics import YOLO

        network = YOLO(description, verbose=False).model.fuse()
        head = network.model[-1]
        head.export, head.format, head.dynamic = True, "onnx", False
        return network

    return make


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU6(),
    )


def quicksrnet(width: int, layers: int) -> nn.Module:
    """QuickSRNet (Berger et al. 2023, arXiv 2303.04336), four times larger."""
    middle = [m for _ in range(layers) for m in (nn.Conv2d(width, width, 3, 1, 1), nn.Hardtanh(0.0, 1.0))]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1),
        nn.Hardtanh(0.0, 1.0),
        *middle,
        nn.Conv2d(width, 48, 3, 1, 1),
        nn.PixelShuffle(4),
        nn.Hardtanh(0.0, 1.0),
    )


class Sesr(nn.Module):
    """SESR-M5 (Bhardwaj et al. 2022, arXiv 2103.09404) in its uncollapsed form, as published."""

    def __init__(self) -> None:
        super().__init__()

        def linear(cin: int, cout: int, kernel: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(cin, 256, kernel, 1, kernel // 2, bias=False), nn.Conv2d(256, cout, 1, bias=False)
            )

        self.first, self.last = linear(3, 16, 5), linear(16, 48, 5)
        self.middle = nn.ModuleList(linear(16, 16, 3) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = y = functional.relu(self.first(x))
        for block in self.middle:
            y = functional.relu(block(y) + y)
        last = self.last(y + start) + x.repeat(1, 16, 1, 1)
        return torch.clamp(functional.pixel_shuffle(last, 4), 0, 1)


class Srvgg(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN (Wang et al. 2021): 32 convolutions of 64 channels with PReLU."""

    def __init__(self) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1), nn.PReLU(64)]
        for _ in range(32):
            body += [nn.Conv2d(64, 64, 3, 1, 1), nn.PReLU(64)]
        self.body = nn.Sequential(*body, nn.Conv2d(64, 48, 3, 1, 1), nn.PixelShuffle(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + functional.interpolate(x, scale_factor=4, mode="nearest")


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(64 + 32 * i, 32 if i < 4 else 64, 3, 1, 1) for i in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        have = [x]
        for step in self.steps[:-1]:
            have.append(functional.leaky_relu(step(torch.cat(have, 1)), 0.2))
        return self.steps[-1](torch.cat(have, 1)) * 0.2 + x


class Rrdb(nn.Module):
    """RRDBNet of ESRGAN (Wang et al. 2018, arXiv 1809.00219): 23 blocks, four times larger."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, 1, 1)
        self.blocks = nn.ModuleList(nn.Sequential(_Dense(), _Dense(), _Dense()) for _ in range(23))
        self.body, self.up1, self.up2, self.high = (nn.Conv2d(64, 64, 3, 1, 1) for _ in range(4))
        self.last = nn.Conv2d(64, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = y = self.first(x)
        for block in self.blocks:
            y = block(y) * 0.2 + y
        y = start + self.body(y)
        for up in (self.up1, self.up2):
            y = functional.leaky_relu(up(functional.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
        return self.last(functional.leaky_relu(self.high(y), 0.2))


class Unet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with padded convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def double(cin: int, cout: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(cin, cout, 3, 1, 1, bias=False),
                nn.BatchNorm2d(cout),
                nn.ReLU(),
                nn.Conv2d(cout, cout, 3, 1, 1, bias=False),
                nn.BatchNorm2d(cout),
                nn.ReLU(),
            )

        widths = (64, 128, 256, 512, 1024)
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(double(a, b) for a, b in pairs)
        back = widths[::-1]
        self.lift = nn.ModuleList(nn.ConvTranspose2d(a, a // 2, 2, 2) for a in back[:-1])
        self.up = nn.ModuleList(double(a, a // 2) for a in back[:-1])
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for at, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if at else x)
            kept.append(x)
        for lift, block, side in zip(self.lift, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([side, lift(x)], 1))
        return self.head(x)


MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)


def mobilenet_v1(channels: int, tail: tuple[tuple[int, int], ...]) -> nn.Sequential:
    """MobileNet (Howard et al. 2017, arXiv 1704.04861): depthwise and pointwise in turn."""
    layers, have = [conv(channels, 32, 3, 2)], 32
    for width, stride in (*MOBILENET, *tail):
        layers += [conv(have, have, 3, stride, have), conv(have, width, 1)]
        have = width
    return nn.Sequential(*layers)


class Posenet(nn.Module):
    """PoseNet on MobileNet V1 at output stride 16 (Papandreou et al. 2018, arXiv 1803.08225)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v1(3, ((1024, 1), (1024, 1)))
        self.heads = nn.ModuleList(nn.Conv2d(1024, n, 1) for n in (17, 34, 32, 32))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.body(x)
        heat, *others = (head(y) for head in self.heads)
        return torch.sigmoid(heat), *others


class Yamnet(nn.Module):
    """YAMNet: MobileNet V1 over a log-mel patch, 521 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mobilenet_v1(1, ((1024, 2), (1024, 1))), nn.Linear(1024, 521)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.body(x).mean((2, 3))))


class DeeplabMobilenet(nn.Module):
    """DeepLab v3+ (Chen et al. 2018, arXiv 1802.02611) on MobileNet V2 at output stride 16."""

    def __init__(self) -> None:
        super().__init__()
        features = torchvision().models.mobilenet_v2().features
        for at in range(14, 18):
            for layer in features[at].modules():
                if isinstance(layer, nn.Conv2d):
                    if layer.stride == (2, 2):
                        layer.stride = (1, 1)
                    elif layer.kernel_size == (3, 3):
                        layer.dilation, layer.padding = (2, 2), (2, 2)
        self.low, self.high = features[:4], features[4:18]

        def branch(kernel: int, rate: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(320, 256, kernel, 1, rate if kernel > 1 else 0, rate, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(),
            )

        self.branches = nn.ModuleList([branch(1, 1), branch(3, 6), branch(3, 12), branch(3, 18)])
        self.pooled, self.merge = branch(1, 1), conv(1280, 256, 1)
        self.side = conv(24, 48, 1)
        self.head = nn.Sequential(conv(304, 256, 3), conv(256, 256, 3), nn.Conv2d(256, 21, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(x)
        high = self.high(low)
        pooled = functional.interpolate(self.pooled(high.mean((2, 3), keepdim=True)), high.shape[2:])
        merged = self.merge(torch.cat([*(b(high) for b in self.branches), pooled], 1))
        merged = functional.interpolate(merged, low.shape[2:], mode="bilinear", align_corners=True)
        out = self.head(torch.cat([merged, self.side(low)], 1))
        return functional.interpolate(out, x.shape[2:], mode="bilinear", align_corners=True)


class HrnetPose(nn.Module):
    """HRNet for poses (Sun et al. 2019, arXiv 1902.09212): the finest branch and one convolution."""

    def __init__(self, timm: Any, name: str) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, feature_location="", out_indices=(1,))
        self.head = nn.Conv2d(int(name[-2:]), 17, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[-1])


class HrnetFace(nn.Module):
    """HRNet for facial landmarks: all branches brought to the finest, then two convolutions."""

    def __init__(self, timm: Any, name: str) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
        width = 15 * int(name[-2:])
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 29, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine, *coarse = self.body(x)
        size = fine.shape[2:]
        lifted = [functional.interpolate(c, size, mode="bilinear", align_corners=False) for c in coarse]
        return self.head(torch.cat([fine, *lifted], 1))


class Detr(nn.Module):
    """DETR (Carion et al. 2020, arXiv 2005.12872) of transformers, without its downloads."""

    def __init__(self, t: Any, kind: str, backbone: str, dilation: bool) -> None:
        super().__init__()
        config = getattr(t, f"{kind}Config")(
            use_timm_backbone=True,
            use_pretrained_backbone=False,
            backbone=backbone,
            dilation=dilation,
            backbone_config=None,
        )
        self.inner = getattr(t, f"{kind}ForObjectDetection")(config)

    def forward(self, x: torch.Tensor) -> Any:
        found = self.inner(pixel_values=x, pixel_mask=torch.ones_like(x[:, 0]))
        return found.logits, found.pred_boxes


class Clip(nn.Module):
    """CLIP ViT-B/16 (Radford et al. 2021, arXiv 2103.00020): picture and text in one graph."""

    def __init__(self, t: Any) -> None:
        super().__init__()
        config = t.CLIPConfig()
        config.vision_config.patch_size = 16
        self.inner = t.CLIPModel(config)

    def forward(self, picture: torch.Tensor, text: torch.Tensor) -> Any:
        found = self.inner(input_ids=text, pixel_values=picture, attention_mask=torch.ones_like(text))
        return found.logits_per_image
