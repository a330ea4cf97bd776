"""A small network of depthwise-separable blocks on scikit-learn's digits: its factory, and its trainer.

Run as a program it trains the float network and writes weights and pictures to build/qat-digits/. Two
channels of each hidden tensor are then scaled up and the layer behind them down by as much: the function
stays, and one grid per tensor no longer fits its channels. Told `table` it prints what a build found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

OUT = Path(__file__).resolve().parents[2] / "build" / "qat-digits"
TRAINED = 1200
BATCH = 64
SPREAD = 100.0


class Block(nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU6."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm1(self.depthwise(x)))
        return nn.functional.relu(self.norm2(self.pointwise(x)))


class Digits(nn.Module):
    """(n, 1, 8, 8), pixels from 0 to 1, to (n, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 24, 2), Block(24, 32, 2), Block(32, 32, 1))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.stem(x)))
        return self.head(torch.mean(self.blocks(x), (2, 3)))  # type: ignore[no-any-return]


def build() -> nn.Module:
    """The factory that job.toml names."""
    return Digits()


def digits() -> tuple[Tensor, Tensor]:
    """(n, 1, 8, 8) pixels from 0 to 1 and (n,) labels, shuffled; the first TRAINED are for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    pixels = np.clip(found.images[order] * 16, 0, 255).astype(np.uint8)
    return torch.from_numpy(pixels[:, None].astype(np.float32) / 255), torch.from_numpy(found.target[order])


def train(net: nn.Module, epochs: int, rate: float) -> float:
    """Train ``net`` in place on the first TRAINED digits, by Adam with a rate that falls to nothing; the last
    loss.
    """
    x, y = (part[:TRAINED] for part in digits())
    batches = TRAINED // BATCH
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    loss = torch.zeros(())
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED).chunk(batches):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return float(loss.detach())


def fine_tune(model: nn.Module, epochs: int, rate: float) -> float:
    """The trainer that job.toml names: a usual loop, in place, on the model that edgekiln hands over.

    It rounds to 8-bit grids as it computes, and is in training mode.
    """
    torch.set_num_threads(1)  # so small a network only waits for more of them
    return train(model, epochs, rate)


def spread(net: Digits, factor: float) -> None:
    """Scale two channels of each hidden tensor by ``factor``; the function of ``net`` stays the same."""
    generator = torch.Generator().manual_seed(1)
    pairs: list[tuple[nn.BatchNorm2d, nn.Conv2d]] = []
    before = net.norm
    for block in net.blocks:
        assert isinstance(block, Block)
        pairs += [(before, block.depthwise), (block.norm1, block.pointwise)]
        before = block.norm2
    with torch.no_grad():
        for norm, behind in pairs:
            scale = torch.ones(norm.num_features)
            scale[torch.randperm(norm.num_features, generator=generator)[:2]] = factor
            norm.weight.mul_(scale)
            norm.bias.mul_(scale)
            behind.weight.div_(scale.view(-1, 1, 1, 1) if behind.groups > 1 else scale.view(1, -1, 1, 1))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Digits()
    train(net, epochs=15, rate=5e-3)
    spread(net, SPREAD)
    x, y = digits()
    for name, start, stop in (("data", 0, 128), ("holdout", TRAINED, len(x)), ("eval", TRAINED, len(x))):
        for number in range(start, stop):
            folder = OUT / name / (str(int(y[number])) if name == "eval" else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (x[number, 0].numpy() * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (OUT / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    torch.save(net.state_dict(), OUT / "weights.pth")


def table() -> None:
    """Print what the build measured of each artifact on the digits that training never saw."""
    evidence = json.loads((OUT / "out" / "evidence.json").read_text())
    print(f"{'recipe':36} {'top-1':>6} {'agreement':>10}")
    for proof in evidence["proofs"]:
        found = {e["what"]: e["value"] for e in proof["evidence"]}
        print(f"{proof['artifact']['recipe']:36} {found['top1']:6.1%} {found['agreement']:10.1%}")


if __name__ == "__main__":
    table() if sys.argv[1:] == ["table"] else main()
