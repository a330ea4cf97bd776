"""A graph as a few amounts that time is paid for: the terms of the cost model.

    milliseconds = sum over terms of (amount x coefficient of the device, runtime and precision)

An additive form over layer classes, after the linear cost models of Braun, Nikas, Song, Heuveline and
Froening (2021, arXiv 2001.07104) and the per-layer view of nn-Meter (Zhang et al. 2021). A per-layer
roofline, which takes the larger of compute and traffic, was tried and was worse on held-out families:
docs/prediction.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekiln.model.workload import Workload

MILLION = 1e6
_CLASS = {
    "conv": "conv",
    "pointwise": "conv",
    "deconv": "conv",
    "conv3d": "conv",
    "grouped": "grouped",
    "depthwise": "depthwise",
    "dense": "dense",
    "recurrent": "dense",
    "matmul": "matmul",
    "softmax": "softmax",
    "norm": "norm",
    "move": "move",
    "resize": "resize",
    "gather": "gather",
    "pool": "pool",
    "reduce": "elementwise",
    "elementwise": "elementwise",
    "other": "elementwise",
}
_MULTIPLY = ("conv", "grouped", "depthwise", "dense", "matmul")
_CLASSES = tuple(dict.fromkeys(_CLASS.values()))
FULL = (
    *(f"macs.{c}" for c in _MULTIPLY),
    "macs.narrow",
    "weights.conv",
    "weights.dense",
    *(f"traffic.{c}" for c in _CLASSES),
    "layers.multiply",
    "layers.other",
    "inputs",
    "outputs",
    "call",
)
"""Millions of multiply-accumulates, weights, activation elements read and written; layers; millions of
elements in and out; and 1 for the call itself. ``macs.narrow`` is what products over few channels compute
in vain on a unit that takes ``VECTOR`` at once: attention with small heads."""

VECTOR = 32

SHORT = ("macs", "traffic", "layers", "call")
"""For tables of a few models, where the fine terms can't be told apart."""

TILED = ("macs.tiles", "traffic", "weights", "layers", "call")
"""The same for tensor cores, which compute whole tiles: ``macs.tiles`` counts what they compute in vain,
too."""

TILE = (64, 32)
"""Output channels and products of a tile."""


def amounts(work: Workload) -> dict[str, float]:
    """Every term of ``FULL``, ``SHORT`` and ``TILED`` by name."""
    found = dict.fromkeys((*FULL, *SHORT, *TILED), 0.0)
    for layer in work.layers:
        kind, n = _CLASS[layer.kind], layer.count
        traffic = n * (layer.reads + layer.writes) / MILLION
        found[f"traffic.{kind}"] += traffic
        found["traffic"] += traffic
        found["layers.multiply" if layer.macs else "layers.other"] += n
        if layer.macs:
            found[f"macs.{kind}"] += n * layer.macs / MILLION
            found["weights.dense" if kind == "dense" else "weights.conv"] += n * layer.weights / MILLION
            found["weights"] += n * layer.weights / MILLION
            if kind == "matmul":
                found["macs.narrow"] += n * layer.macs / MILLION * (_up(layer.channels_in, VECTOR) - 1)
            if layer.kind != "depthwise":
                shared = layer.channels_in * layer.kernel
                padded = _up(layer.channels_out, TILE[0]) * _up(shared, TILE[1])
                found["macs.tiles"] += n * layer.macs / MILLION * padded
    found["macs"] = sum(found[f"macs.{c}"] for c in _MULTIPLY)
    found["layers"] = found["layers.multiply"] + found["layers.other"]
    found["inputs"], found["outputs"] = work.inputs / MILLION, work.outputs / MILLION
    found["call"] = 1.0
    return found


def vector(amounts_of: Mapping[str, float], terms: Sequence[str]) -> NDArray[np.float64]:
    """The amounts of ``terms``, in their order: shape [terms]."""
    return np.array([amounts_of[t] for t in terms], dtype=np.float64)


def _up(size: int, tile: int) -> float:
    """How many times its work a size of ``size`` costs in whole tiles."""
    return -(-size // tile) * tile / max(1, size)
