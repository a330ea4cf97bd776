"""Recurrent layers over (sequence, batch, features), step by step as MIL's formulas say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgekiln.engines.mil.values import Function, flag, number

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name} is unknown")
    return _ACTIVATIONS[name]


def _unrolled(
    x: Tensor, state: tuple[Tensor, ...], step: Step, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states of every step, in the order of ``x``, and the last state."""
    hidden = []
    for item in reversed(x.unbind(0)) if reverse else x.unbind(0):
        state = step(item, state)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


def _sequence(hidden: Tensor, last: Tensor, whole: Tensor | None) -> Tensor:
    return hidden if flag(whole) else last[None]


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """A plain recurrent layer, one bias for both products."""
    act = _activation(activation)
    shift = torch.zeros(1) if bias is None else bias

    def step(item: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (act(item @ weight_ih.T + state[0] @ weight_hh.T + shift),)

    hidden, (last,) = _unrolled(x, (initial_h,), step, direction == "reverse")
    return _sequence(hidden, last, output_sequence), last


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update. ``reset_after``: the reset gate is applied to the product
    with the hidden state, else to the hidden state before it."""
    gate, act = _activation(recurrent_activation), _activation(activation)
    size = weight_hh.shape[1]
    none = torch.zeros(3 * size)
    into, over = (none if input_bias is None else input_bias), (none if bias is None else bias)
    after = flag(reset_after)
    w_o, b_o = weight_hh[size : 2 * size], over[size : 2 * size]

    def step(item: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h = state[0]
        ir, io, iz = torch.split(item @ weight_ih.T + into, size, dim=-1)
        hr, ho, hz = torch.split(h @ weight_hh.T + over, size, dim=-1)
        r, z = gate(ir + hr), gate(iz + hz)
        o = act(io + r * ho) if after else act(io + (r * h) @ w_o.T + b_o)
        return ((1 - z) * o + z * h,)

    hidden, (last,) = _unrolled(x, (initial_h,), step, direction == "reverse")
    return _sequence(hidden, last, output_sequence), last


def _lstm_step(
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    names: tuple[str, str, str],
    clip: float | None,
) -> Step:
    """Gates in the order input, forget, output, cell; peepholes in the order input, forget, output."""
    w_ih, w_hh, bias, peephole = weights
    gate, cell, act = (_activation(name) for name in names)
    size = w_hh.shape[1]
    shift = torch.zeros(4 * size) if bias is None else bias
    peep = torch.split(torch.zeros(3 * size) if peephole is None else peephole, size)

    def step(item: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        i, f, o, z = torch.split(item @ w_ih.T + h @ w_hh.T + shift, size, dim=-1)
        if clip is not None:
            i, f, o, z = (v.clamp(-clip, clip) for v in (i, f, o, z))
        c = gate(f + peep[1] * c) * c + gate(i + peep[0] * c) * cell(z)
        return gate(o + peep[2] * c) * act(c), c

    return step


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction or both; states of both directions lie side by side."""
    names = (recurrent_activation, cell_activation, activation)
    limit = None if clip is None else number(clip)
    step = _lstm_step((weight_ih, weight_hh, bias, peephole), names, limit)
    if direction != "bidirectional":
        hidden, (h, c) = _unrolled(x, (initial_h, initial_c), step, direction == "reverse")
        return _sequence(hidden, h, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm lacks its backward weights")
    size = weight_hh.shape[1]
    back = _lstm_step((weight_ih_back, weight_hh_back, bias_back, peephole_back), names, limit)
    (h0, h1), (c0, c1) = torch.split(initial_h, size, dim=-1), torch.split(initial_c, size, dim=-1)
    there, (h_there, c_there) = _unrolled(x, (h0, c0), step, reverse=False)
    again, (h_again, c_again) = _unrolled(x, (h1, c1), back, reverse=True)
    h, c = torch.cat([h_there, h_again], dim=-1), torch.cat([c_there, c_again], dim=-1)
    return _sequence(torch.cat([there, again], dim=-1), h, output_sequence), h, c


OPS: dict[str, Function] = {"gru": gru, "lstm": lstm, "rnn": rnn}
