"""Simulated grids are those that recipes write, and the author's own numbers survive torchao's rewriting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekiln.compile.finetune.simulate import Prepared, activation_grids, as_float, fake_quantised, prepared
from edgekiln.errors import ConversionFailed


class Net(nn.Module):
    """Numbers that differ from torch's defaults wherever torchao writes defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=1e-2, momentum=0.5)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.norm(self.conv(x)))
        return self.head(self.drop(x.mean((2, 3))))


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    with torch.no_grad():
        made.norm.running_var.copy_(torch.tensor([0.01, 0.5, 1.0, 2.0]))
        made.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
        made.conv.weight[0] *= 1e-4  # a channel whose grid is finer than XNNPACK's least scale
    return made.eval()


X = {"x": torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)}


@pytest.fixture(scope="module")
def ready() -> Prepared:
    return prepared(net(), X, 63, "model:build")


def switched(ready: Prepared, on: bool) -> None:
    for module in ready.model.modules():
        if hasattr(module, "enable_fake_quant"):
            module.enable_fake_quant(on)


def test_without_its_grids_the_model_is_the_author_s_own_even_after_training_mode(ready: Prepared) -> None:
    switched(ready, False)
    ready.model.train()
    ready.model.eval()
    with torch.no_grad():
        assert torch.allclose(ready.model(X["x"]), net()(X["x"]), atol=1e-5)
    ready.model.train()
    norms = [n for n in ready.model.graph.nodes if "batch_norm" in str(n.target)]
    drops = [n for n in ready.model.graph.nodes if "dropout" in str(n.target)]
    assert [n.args[5:8] for n in norms] == [(True, 0.5, 1e-2)]
    assert [n.args[1:] for n in drops] == [(0.25, True)]


def test_a_weight_s_scale_is_its_largest_folded_value_over_the_grid_s_end(ready: Prepared) -> None:
    switched(ready, True)
    own = net()
    ready.model.eval()
    with torch.no_grad():
        ready.model(X["x"])
        gain = own.norm.weight / torch.sqrt(own.norm.running_var + own.norm.eps)
        folded = own.conv.weight * gain.view(-1, 1, 1, 1)
    scales = [ready.model.get_submodule(str(n.target)).scale for n in fake_quantised(ready.model)]
    of_conv = next(s for s in scales if s.shape == (4,))
    assert torch.allclose(of_conv, folded.abs().amax((1, 2, 3)) / 63, rtol=1e-5)


def test_no_grid_before_a_clamp_and_none_on_the_scores(ready: Prepared) -> None:
    for node in fake_quantised(ready.model):
        readers = [str(user.target) for user in node.users]
        assert not any("hardtanh" in r or "relu" in r for r in readers), readers
        assert "output" not in readers
    assert ready.weights == 2
    assert ready.activations >= 2


def test_what_passes_as_float_leaves_no_range_behind(ready: Prepared) -> None:
    switched(ready, True)

    def largest() -> list[float]:
        with torch.no_grad():
            return [float(grid.activation_post_process.max_val) for grid in activation_grids(ready.model)]

    ready.model(X["x"])
    before = largest()
    with torch.no_grad(), as_float(ready.model):
        ready.model(X["x"] * 100)
    assert largest() == before
    with torch.no_grad():
        ready.model(X["x"] * 100)
    assert max(largest()) > max(before)


def test_it_takes_batches_of_any_size(ready: Prepared) -> None:
    assert ready.remark == ""
    assert ready.model(X["x"].repeat(5, 1, 1, 1)).shape == (5, 3)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(1, 64))


class Branching(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if float(x.sum()) > 0 else -x)


def test_a_model_of_a_fixed_batch_is_trained_at_that_and_says_so() -> None:
    ready = prepared(Fixed().eval(), X, 127, "model:build")
    assert "batches of 1" in ready.remark


def test_what_torch_export_refuses_is_named() -> None:
    with pytest.raises(ConversionFailed, match=r"torch\.export refused it"):
        prepared(Branching().eval(), X, 127, "model:build")
