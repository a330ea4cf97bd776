"""LSTM, GRU and RNN, one step after another: the sequence length is static, so the loop is unrolled.

Gate orders and equations are those of the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.node import Lowered, Node, Translate

MOST_STEPS = 512
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass(frozen=True)
class Cell:
    """One direction: ``step`` maps (x projected [B, G*H], state) to the next state, h [B, H] first."""

    hidden: int
    acts: list[Callable[[Tensor], Tensor]]
    linear_before_reset: bool

    def lstm(self, x: Tensor, state: tuple[Tensor, ...], w: dict[str, Any]) -> tuple[Tensor, ...]:
        h, c = state
        i, o, f, g = torch.split(x + functional.linear(h, w["R"]), self.hidden, 1)
        if w["P"] is not None:
            pi, po, pf = torch.split(w["P"], self.hidden, 0)
            i, f = i + pi * c, f + pf * c
        c = self.acts[0](f) * c + self.acts[0](i) * self.acts[1](g)
        o = o + po * c if w["P"] is not None else o
        return self.acts[0](o) * self.acts[2](c), c

    def gru(self, x: Tensor, state: tuple[Tensor, ...], w: dict[str, Any]) -> tuple[Tensor, ...]:
        (h,) = state
        n = self.hidden
        xz, xr, xh = torch.split(x, n, 1)
        gates = functional.linear(h, w["R"][: 2 * n], w["Rb"][: 2 * n])
        hz, hr = torch.split(gates, n, 1)
        z, r = self.acts[0](xz + hz), self.acts[0](xr + hr)
        last, bias = w["R"][2 * n :], w["Rb"][2 * n :]
        if self.linear_before_reset:
            new = self.acts[1](xh + r * functional.linear(h, last, bias))
        else:
            new = self.acts[1](xh + functional.linear(r * h, last, bias))
        return ((1 - z) * new + z * h,)

    def rnn(self, x: Tensor, state: tuple[Tensor, ...], w: dict[str, Any]) -> tuple[Tensor, ...]:
        return (self.acts[0](x + functional.linear(state[0], w["R"])),)


def recurrent(node: Node) -> Lowered:
    """LSTM, GRU or RNN in any direction and layout, unrolled."""
    kind = node.proto.op_type
    hidden, way = node.attribute("hidden_size"), node.attribute("direction", "forward")
    batch_first = bool(node.attribute("layout", 0))
    steps = node.shape(0)[1 if batch_first else 0]
    _refuse_rare(node, steps)
    count = 2 if way == "bidirectional" else 1
    named = node.attribute("activations") or DEFAULTS[kind] * count
    acts = [a.decode() if isinstance(a, bytes) else a for a in named]
    if any(a.lower() not in ACTIVATIONS for a in acts):
        node.refuse(f"its activations are {acts}")
    each = len(acts) // count
    chosen = [[ACTIVATIONS[a.lower()] for a in acts[d * each : (d + 1) * each]] for d in range(count)]
    cells = [Cell(hidden, chosen[d], bool(node.attribute("linear_before_reset", 0))) for d in range(count)]
    backwards = [way == "reverse", True][:count]
    backwards = [False, True] if way == "bidirectional" else backwards

    def run(*given: Tensor | None) -> tuple[Tensor, ...]:
        values: dict[str, Any] = dict(zip(("x", "W", "R", "B", "_", "h", "c", "P"), given, strict=False))
        x = values["x"].transpose(0, 1) if batch_first else values["x"]
        if batch_first:
            for name in ("h", "c"):
                if values.get(name) is not None:
                    values[name] = values[name].transpose(0, 1)
        done = [_direction(kind, c, d, x, values, backwards[d]) for d, c in enumerate(cells)]
        out = torch.stack([d[0] for d in done], 1)
        states = [torch.stack(parts, 0) for parts in zip(*(d[1] for d in done), strict=True)]
        if batch_first:
            return out.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in states)
        return out, *states

    return run, node.names


def _direction(
    kind: str, cell: Cell, d: int, x: Tensor, values: dict[str, Any], backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All outputs h [T, B, H] of one direction, and its last state. ``x`` is [T, B, I]."""
    width = GATES[kind] * cell.hidden
    both = values.get("B")
    zeros = torch.zeros(width, dtype=x.dtype)
    wb, rb = (zeros, zeros) if both is None else (both[d][:width], both[d][width:])
    bias = wb if kind == "GRU" else wb + rb
    peep = values.get("P")
    weights = {"R": values["R"][d], "Rb": rb, "P": None if peep is None else peep[d]}
    projected = functional.linear(x, values["W"][d], bias)
    blank = torch.zeros(x.shape[1], cell.hidden, dtype=x.dtype)
    names = ("h", "c") if kind == "LSTM" else ("h",)
    state = tuple(blank if values.get(n) is None else values[n][d] for n in names)
    step = {"LSTM": cell.lstm, "GRU": cell.gru, "RNN": cell.rnn}[kind]
    outputs = []
    for row in torch.unbind(projected.flip(0) if backwards else projected):
        state = step(row, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _refuse_rare(node: Node, steps: int) -> None:
    if steps > MOST_STEPS:
        node.refuse(f"it runs {steps} steps; more than {MOST_STEPS} are not unrolled")
    if node.has(4):
        lengths = node.needed(4, "the lengths of the sequences")
        if (lengths != steps).any():
            node.refuse("its sequences differ in length")
    if node.attribute("clip") or node.attribute("input_forget"):
        node.refuse("it clips its gates or couples input and forget")
    if node.attribute("activation_alpha") or node.attribute("activation_beta"):
        node.refuse("its activations have parameters")


OPS: dict[str, Translate] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
