"""The activation ranges that training settled on, put at the tensors of the ONNX graph.

The two graphs name their tensors differently, and passes fold and rename more: so a tensor is known by what
it holds. Each simulated grid leaves a mark, a few values of the tensor that it rounds, computed in float on
one input; the ONNX tensor of the same shape and values is the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.finetune.order import Mark
from edgekiln.engines import Arrays

if TYPE_CHECKING:
    import torch

VALUES = 64
TOLERANCE = 1e-3
"""Largest difference of a mark's values, as a share of the largest of them."""


def marks(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Mark, ...]:
    """A mark for each activation grid of the trained ``model`` (in evaluation mode), computed on ``inputs``.

    Empty where ``model`` is no graph with simulated grids.
    """
    import torch

    from edgekiln.compile.finetune.simulate import activation_grids, as_float

    if not isinstance(model, torch.fx.GraphModule):
        return ()
    found: list[Mark] = []

    def look(grid: Any, given: tuple[Any, ...]) -> None:
        scale, zero = float(grid.scale), int(grid.zero_point)
        low, high = (grid.quant_min - zero) * scale, (grid.quant_max - zero) * scale
        values = given[0].detach().cpu().numpy()
        found.append(Mark(shape=values.shape, values=_some(values), low=low, high=high))

    hooks = [grid.register_forward_pre_hook(look) for grid in activation_grids(model)]
    with torch.no_grad(), as_float(model):
        model(*inputs.values())
    for hook in hooks:
        hook.remove()
    return tuple(found)


def placed(graph: Path, found: Sequence[Mark], inputs: Arrays) -> dict[str, tuple[float, float]]:
    """The learned range (low, high) of each tensor of ``graph`` that one of the marks is of."""
    import onnx

    from edgekiln.compile.quantise.simulate import part, session

    model = onnx.load(graph)
    names = [o for node in model.graph.node for o in node.output if o]
    opened = session(part(model, names), 1)
    taken = {i.name for i in opened.get_inputs()}
    given = {name: value for name, value in inputs.items() if name in taken}
    tensors = dict(zip(names, opened.run(None, given), strict=True)) | given
    return {
        name: (mark.low, mark.high)
        for name, values in tensors.items()
        if values.dtype == np.float32 and (mark := _mark_of(values, found)) is not None
    }


def _mark_of(values: NDArray[Any], found: Sequence[Mark]) -> Mark | None:
    """The first mark of a tensor of this shape and these values."""
    mine = np.array(_some(values))
    for mark in found:
        if mark.shape == values.shape:
            theirs = np.array(mark.values)
            bound = TOLERANCE * max(float(np.abs(theirs).max(initial=0.0)), 1e-6)
            if np.abs(mine - theirs).max(initial=0.0) <= bound:
                return mark
    return None


def _some(values: NDArray[Any]) -> tuple[float, ...]:
    """At most VALUES of the values, at even distances."""
    at = np.linspace(0, values.size - 1, min(VALUES, values.size)).astype(np.int64)
    return tuple(float(v) for v in values.reshape(-1)[at])
