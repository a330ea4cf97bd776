"""A torch module with the grids of 8-bit inference simulated in it, by torchao's pt2e.

Grids are those that the recipes write: weights symmetric per output channel, the scale following the largest
weight at every step; activations affine per tensor, by a moving average of what was seen. Batch norms stay
trainable: torchao folds them into the weights that it rounds (Krishnamoorthi 2018, "Quantizing deep
convolutional networks for efficient inference", section 3.2.2), as the exported graph has them.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekiln.errors import ConversionFailed, MissingExtra

if TYPE_CHECKING:
    import torch

_DOING = "fine-tuning"
_SMALLEST = 1e-12
"""Least scale: XNNPACK's own, 2^-12, is coarser than the grid of a channel of small weights."""


class Prepared(NamedTuple):
    """``model`` with simulated grids, the number of them on weights and on activations, and a remark."""

    model: torch.fx.GraphModule
    weights: int
    activations: int
    remark: str


def prepared(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], most: int, source: str) -> Prepared:
    """``module`` (in evaluation mode) exported with an open batch and given simulated grids, ready to train.

    The names of its parameters stay. ``model.train()`` and ``model.eval()`` switch batch norms and dropout.
    Raises MissingExtra without torchao or ExecuTorch's quantiser, ConversionFailed where torch.export refuses
    the model or nothing in it can be quantised.
    """
    try:
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        quantiser = _quantiser(most)
    except ImportError as error:
        raise MissingExtra(_DOING, source, "executorch") from error
    exported, remark = _exported(module, inputs, source)
    literals = _literals(exported)
    try:
        model = prepare_qat_pt2e(exported, quantiser)
    except Exception as error:  # torchao raises anything at all
        why = f"torchao could not prepare it: {type(error).__name__}: {_first_line(error)}"
        cure = "Leave +qat out, or rewrite the layer that the message names"
        raise ConversionFailed(_DOING, source, why, cure) from error
    _drop_unwritten(model)
    switchable(model, literals)
    grids = list(fake_quantised(model))
    weights = sum(_of_weight(node) for node in grids)
    if not weights:
        why = "no layer of it can be quantised by XNNPACK's quantiser, whose grids are simulated"
        raise ConversionFailed(_DOING, source, why, "Leave +qat out")
    return Prepared(model, weights, len(grids) - weights, remark)


def _exported(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], source: str
) -> tuple[torch.fx.GraphModule, str]:
    """The module as a graph that takes batches of any size, or of the one given where it refuses others."""
    import torch

    # An axis of 1 is taken as fixed by torch.export, whatever is asked for.
    pairs = {n: torch.cat([t, t]) if t.dim() and t.shape[0] == 1 else t for n, t in inputs.items()}
    free = tuple({0: torch.export.Dim.DYNAMIC} if t.dim() else None for t in pairs.values())
    try:
        return torch.export.export(module, tuple(pairs.values()), dynamic_shapes=free).module(), ""
    except Exception as first:  # the user's own code
        try:
            program = torch.export.export(module, tuple(inputs.values()))
        except Exception:
            why = f"torch.export refused it: {type(first).__name__}: {_first_line(first)}"
            cure = "Rewrite what the message names with plain tensor operations, or leave +qat out"
            raise ConversionFailed(_DOING, source, why, cure) from first
        size = next((t.shape[0] for t in inputs.values() if t.dim()), 1)
        return program.module(), f"it was trained in batches of {size}, because the model fixes that size"


def _quantiser(most: int) -> Any:
    """ExecuTorch's XNNPACK quantiser, which knows where grids belong, with the grids of the recipes."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import FakeQuantize, FusedMovingAvgObsFakeQuantize
    from torchao.quantization.pt2e.observer import MovingAveragePerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(eps=_SMALLEST),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-most,
        quant_max=most,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        is_dynamic=False,
        # Not the fused one: its kernel makes the grid one step longer below zero, and the scale 0.4 % larger.
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver,
            averaging_constant=1.0,  # of the present weights alone: so the scale is found in the end
            eps=_SMALLEST,
        ),
    )
    return XNNPACKQuantizer().set_global(QuantizationConfig(activation, activation, weight, None, True))


# ---------------------------------------------------------------- what torchao leaves to be mended


class _Literals(NamedTuple):
    """Numbers that a model's author chose: (momentum, eps) by the batch norm's running mean and variance,
    and the dropouts' shares in the graph's order."""

    norms: dict[str, tuple[float, float]]
    dropouts: list[float]


def _literals(model: torch.fx.GraphModule) -> _Literals:
    norms, dropouts = {}, []
    for node in model.graph.nodes:
        if _is(node, "batch_norm"):
            for statistic in node.args[3:5]:
                if getattr(statistic, "op", "") == "get_attr":
                    norms[str(statistic.target)] = (float(node.args[6]), float(node.args[7]))
        elif _is(node, "dropout"):
            dropouts.append(float(node.args[1]))
    return _Literals(norms, dropouts)


def _restore(model: torch.fx.GraphModule, literals: _Literals) -> None:
    """Write the author's numbers back: torchao 0.18 rewrites batch norms with eps 1e-5 and momentum 0.1, and
    dropouts with a share of a half, whatever the model said."""
    shares = iter(literals.dropouts)
    for node in model.graph.nodes:
        if _is(node, "batch_norm") and (own := literals.norms.get(str(getattr(node.args[3], "target", "")))):
            node.args = (*node.args[:6], *own, *node.args[8:])
        elif _is(node, "add") and (own := literals.norms.get(str(getattr(node.args[0], "target", "")))):
            node.args = (node.args[0], own[1])
        elif _is(node, "dropout") and (share := next(shares, None)) is not None:
            node.args = (node.args[0], share, *node.args[2:])
    model.recompile()


def switchable(model: torch.fx.GraphModule, literals: _Literals) -> None:
    """Let ``train()`` and ``eval()`` work on ``model``, which torch.export forbids, and start training."""
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train

    def train(self: torch.fx.GraphModule, mode: bool = True) -> torch.fx.GraphModule:
        (move_exported_model_to_train if mode else move_exported_model_to_eval)(self)
        _restore(self, literals)
        return self

    def evaluate(self: torch.fx.GraphModule) -> torch.fx.GraphModule:
        return train(self, False)

    model.train = types.MethodType(train, model)  # type: ignore[method-assign]
    model.eval = types.MethodType(evaluate, model)  # type: ignore[method-assign]
    model.train()


def _drop_unwritten(model: torch.fx.GraphModule) -> None:
    """Take out the grids that no recipe writes: before a clamp, which the grid behind it does the work of,
    and on an output that a matrix product gives, which stays float."""
    for node in list(fake_quantised(model)):
        made, readers = node.all_input_nodes[0], list(node.users)
        clamped = len(readers) == 1 and any(_is(readers[0], n) for n in _CLAMPS)
        given = all(reader.op == "output" for reader in readers) and any(_is(made, n) for n in _PRODUCTS)
        if clamped or given:
            node.replace_all_uses_with(made)
            model.graph.erase_node(node)
    model.recompile()


_CLAMPS = ("relu", "relu_", "hardtanh", "hardtanh_", "relu6", "clamp")
_PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm")


def activation_grids(model: torch.fx.GraphModule) -> list[Any]:
    """The modules that round activations, each once."""
    targets = dict.fromkeys(str(n.target) for n in fake_quantised(model) if not _of_weight(n))
    return list(dict.fromkeys(model.get_submodule(target) for target in targets))


@contextlib.contextmanager
def as_float(model: torch.nn.Module) -> Iterator[None]:
    """Meanwhile ``model`` rounds nothing, and its grids don't see what passes."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    grids: list[Any] = [m for m in model.modules() if isinstance(m, FakeQuantizeBase)]
    before = [(g.fake_quant_enabled.clone(), g.observer_enabled.clone()) for g in grids]
    for grid in grids:
        grid.disable_fake_quant()
        grid.disable_observer()
    try:
        yield
    finally:
        for grid, (rounds, sees) in zip(grids, before, strict=True):
            grid.fake_quant_enabled.copy_(rounds)
            grid.observer_enabled.copy_(sees)


def fake_quantised(model: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """The nodes that round to a grid."""
    from torchao.quantization.pt2e import FakeQuantizeBase

    for node in model.graph.nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), FakeQuantizeBase):
            yield node


def _of_weight(node: Any) -> bool:
    """Whether the grid is one of weights: its values come from parameters alone, folded or not."""
    before = list(node.all_input_nodes)
    while before:
        one = before.pop()
        if one.op in {"placeholder", "call_module"}:
            return False
        before += one.all_input_nodes
    return True


def _is(node: Any, name: str) -> bool:
    """Whether ``node`` calls the operator aten::``name``."""
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return getattr(node, "op", "") == "call_function" and str(getattr(schema, "name", "")) == f"aten::{name}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else repr(error))[:300]
