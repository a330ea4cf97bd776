"""Weights alone in 4 or 8 bits: a scale and a zero point per block of a row; activations stay float.

The integers are decided once, and written in each target's own form (``weight_forms``). Three ways:

- ``rtn``: each weight to the nearest step;
- ``gptq``: the error of each column handed on to those still free, by the second moments of the inputs
  (Frantar et al. 2023), layer after layer on what the changed layers before it give;
- ``awq``: input channels that carry large activations are enlarged before rounding, by a power of their mean
  magnitude that is searched on the outputs' error (Lin et al. 2024), and made smaller again in front of the
  product. The power 0 is ``rtn``: it is never worse by its own measure.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.layers import Layer, layers
from edgekiln.compile.quantise.recover import Mask, affordable, mask_of, rows_shown
from edgekiln.compile.quantise.relay import Relay
from edgekiln.compile.quantise.rounding import BLOCK, inverse_factor
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed

Floats = NDArray[np.float64]
Method: TypeAlias = Literal["rtn", "gptq", "awq"]

VECTORS_PER_INPUT = 8
LEAST_POSITIONS = 32
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
DAMP = 0.01


@dataclass(frozen=True)
class Grid:
    """A row's blocks: ``scales`` and ``zeros`` of shape (rows, blocks); integers are 0 to 2**bits - 1."""

    bits: int
    block: int
    scales: Floats
    zeros: NDArray[np.uint8]

    def columns(self, start: int, stop: int) -> tuple[Floats, Floats]:
        """Scale and zero point of each weight of columns ``start`` to ``stop``, shape (rows, columns)."""
        of = np.arange(start, stop) // self.block
        return self.scales[:, of], self.zeros[:, of].astype(np.float64)

    def integers(self, weights: Floats, start: int = 0) -> NDArray[np.uint8]:
        scale, zero = self.columns(start, start + weights.shape[1])
        found = np.clip(np.rint(weights / scale) + zero, 0, 2**self.bits - 1)
        return np.asarray(found, np.uint8)

    def values(self, integers: NDArray[np.uint8], start: int = 0) -> Floats:
        scale, zero = self.columns(start, start + integers.shape[1])
        return np.asarray((integers - zero) * scale, np.float64)


@dataclass(frozen=True)
class Decided:
    """One product: ``integers`` (rows, depth) on ``grid``; ``levels`` divide its input, () where they are 1.

    ``error`` is the outputs' energy that is lost, as a share; ``nearest`` the same of plain rounding; None
    where no inputs were looked at.
    """

    layer: Layer
    grid: Grid
    integers: NDArray[np.uint8]
    levels: Floats
    error: float | None = None
    nearest: float | None = None

    def values(self) -> Floats:
        """The weights that the product has in effect, shape (rows, depth)."""
        found = self.grid.values(self.integers)
        return found / self.levels if self.levels.size else found


def grid_of(weights: Floats, bits: int, block: int) -> Grid:
    """The grid from the least to the greatest weight of each block; zero is exact. ``weights`` (rows, depth).

    Scales are held in float32, as they will be stored.
    """
    rows, depth = weights.shape
    count = -(-depth // block)
    padded = np.zeros((rows, count * block))
    padded[:, :depth] = weights
    parts = padded.reshape(rows, count, block)
    low, high = np.minimum(parts.min(2), 0.0), np.maximum(parts.max(2), 0.0)
    steps = 2**bits - 1
    scales = np.asarray(np.float32((high - low) / steps), np.float64)
    scales = np.where(scales > 0, scales, 1.0)
    zeros = np.clip(np.rint(-low / scales), 0, steps).astype(np.uint8)
    return Grid(bits, block, scales, zeros)


def compressed(
    graph: Path,
    bits: int,
    block: int,
    method: str,
    samples: Callable[[], Iterable[Arrays]] | None,
    threads: int,
) -> tuple[tuple[Decided, ...], str]:
    """Every MatMul and Gemm of the ONNX file ``graph`` with constant weights of its own, decided; and a note.

    ``samples`` None: only ``rtn`` can be done, and errors are not known. Raises ConversionFailed where there
    is no such product whose inputs can be cut into blocks.
    """
    import onnx

    model = onnx.load(graph)
    depths = {i.name: tuple(i.dims) for i in model.graph.initializer}
    products = [layer for layer in layers(model, own_bias=False) if layer.op != "Conv"]
    found = [p for p in products if depths[p.weight][1 if p.transposed else 0] % block == 0]
    uncut, other = len(products) - len(found), _of_no_form(model, products)
    if not found:
        why = "it has no matrix product with constant weights of its own"
        if uncut:
            why = f"none of its {uncut} products has inputs that can be cut into blocks of {block}"
        cure = f"{'Use a smaller block, or' if uncut else 'Use'} a static recipe"
        raise ConversionFailed("compressing the weights of", graph.name, why, cure)
    how: Method = "gptq" if method == "gptq" else "awq" if method == "awq" else "rtn"
    if samples is None:
        made = _by_themselves(model, found, bits, block)
    else:
        made = _by_inputs(model, found, bits, block, how, samples, threads)
    told = [_note(made, how)]
    if uncut:
        told.append(f"{uncut} stay float: not to be cut into blocks of {block}")
    if other:
        told.append(f"{other} stay float: their weights are shared, scaled or no matrix")
    return made, "; ".join(told)


def _of_no_form(model: Any, products: Sequence[Layer]) -> int:
    """How many MatMul and Gemm with constant weights are none of ``products``."""
    held = {i.name for i in model.graph.initializer}
    known = {p.output for p in products}
    return sum(
        node.op_type in {"MatMul", "Gemm"} and node.input[1] in held and node.output[0] not in known
        for node in model.graph.node
    )


def _weights(model: Any) -> Callable[[Layer], Floats]:
    from onnx import numpy_helper

    held = {i.name: i for i in model.graph.initializer}

    def matrix(layer: Layer) -> Floats:
        return np.asarray(layer.matrix(numpy_helper.to_array(held[layer.weight]))[0], np.float64)

    return matrix


def _by_themselves(model: Any, found: Sequence[Layer], bits: int, block: int) -> tuple[Decided, ...]:
    matrix = _weights(model)
    return tuple(_plain(layer, matrix(layer), bits, block) for layer in found)


def _by_inputs(
    model: Any,
    found: Sequence[Layer],
    bits: int,
    block: int,
    method: Method,
    samples: Callable[[], Iterable[Arrays]],
    threads: int,
) -> tuple[Decided, ...]:
    """Product after product, each on the inputs that the changed ones before it give."""
    matrix, decided = _weights(model), list[Decided]()
    current = simulate.part(model, [o.name for o in model.graph.output])
    with tempfile.TemporaryDirectory(prefix="edgekiln-relay-") as scratch:
        count = affordable(model, samples)
        masks = [mask_of(sample) for sample in itertools.islice(samples(), count)]
        relay = Relay(lambda: current, itertools.islice(samples(), count), Path(scratch), threads)
        for group in _by_input(found):
            weights = [matrix(layer) for layer in group]
            seen = _moments(relay, group[0], weights[0].shape[1], masks)
            made = _decided(group, weights, seen, bits, block, method)
            changed = {}
            for one in made:
                like = one.values().astype(np.float32)
                changed[one.layer.weight] = np.ascontiguousarray(like if one.layer.transposed else like.T)
            simulate.with_weights(current, changed)
            decided += made
    return tuple(decided)


def _note(decided: Sequence[Decided], method: Method) -> str:
    """What was done, in words, with the mean share of the outputs' energy that is lost."""
    grid = decided[0].grid
    how = {
        "rtn": "to the nearest step",
        "gptq": "by their inputs (GPTQ)",
        "awq": "with levelled inputs (AWQ)",
    }
    told = f"{len(decided)} products' weights in {grid.bits} bits, blocks of {grid.block}, {how[method]}"
    errors = [(d.error, d.nearest) for d in decided if d.error is not None and d.nearest is not None]
    if not errors:
        return told
    mean, plain = (float(np.mean([e[k] for e in errors])) for k in (0, 1))
    if method == "awq":
        told += f"; {sum(bool(d.levels.size) for d in decided)} of them behind a Mul by channel"
    return f"{told}; outputs lose {mean:.2g} of their energy, {plain:.2g} to the nearest step"


def _plain(layer: Layer, weights: Floats, bits: int, block: int) -> Decided:
    grid = grid_of(weights, bits, block)
    return Decided(layer, grid, grid.integers(weights), np.empty(0))


def _by_input(found: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Products that read the same tensor share its levels."""
    groups: dict[str, list[Layer]] = {}
    for layer in found:
        groups.setdefault(layer.input, []).append(layer)
    yield from groups.values()


@dataclass(frozen=True)
class _Seen:
    """``products`` (depth, depth): the mean of x x^T; ``magnitude`` (depth,): the mean of |x|."""

    products: Floats
    magnitude: Floats
    count: int


def _moments(relay: Relay, layer: Layer, depth: int, masks: Sequence[Mask]) -> _Seen:
    """Over the positions that count: of a short sentence most are padding, alike and read by nobody."""
    positions = max(LEAST_POSITIONS, VECTORS_PER_INPUT * depth // max(relay.count, 1))
    products, magnitude, count = np.zeros((depth, depth)), np.zeros(depth), 0
    for number, values in enumerate(relay.reach(layer.input)):
        (vectors,) = layer.patches(rows_shown(values, masks[number]), positions, number)
        products += vectors.T @ vectors
        magnitude += np.abs(vectors).sum(0, dtype=np.float64)
        count += len(vectors)
    return _Seen(products / max(count, 1), magnitude / max(count, 1), count)


def _decided(
    group: Sequence[Layer], weights: Sequence[Floats], seen: _Seen, bits: int, block: int, method: Method
) -> list[Decided]:
    plain = [_plain(layer, w, bits, block) for layer, w in zip(group, weights, strict=True)]
    lost = [_lost(w, p.values(), seen) for w, p in zip(weights, plain, strict=True)]
    if method == "gptq":
        made = [_gptq(layer, w, seen, bits, block) for layer, w in zip(group, weights, strict=True)]
    elif method == "awq":
        made = _awq(group, weights, seen, bits, block)
    else:
        made = plain
    told = []
    for one, w, first, nearest in zip(made, weights, plain, lost, strict=True):
        error = _lost(w, one.values(), seen)
        better = first if error > nearest else one  # a step that helps on average may harm one layer
        told.append(
            Decided(better.layer, better.grid, better.integers, better.levels, min(error, nearest), nearest)
        )
    return told


def _lost(weights: Floats, other: Floats, seen: _Seen) -> float:
    """The share of the outputs' energy that the difference of two weights makes."""
    signal = float(np.einsum("rd,de,re->", weights, seen.products, weights, optimize=True))
    d = weights - other
    return float(np.einsum("rd,de,re->", d, seen.products, d, optimize=True)) / max(signal, 1e-30)


def _gptq(layer: Layer, weights: Floats, seen: _Seen, bits: int, block: int) -> Decided:
    """Column after column; a block's grid is laid by what its weights are when its first column comes."""
    rows, depth = weights.shape
    upper = inverse_factor(seen.products[None], max(DAMP, depth / max(seen.count, 1)))[0]
    left, count = weights.copy(), -(-depth // block)
    scales, zeros = np.ones((rows, count)), np.zeros((rows, count), np.uint8)
    integers = np.zeros((rows, depth), np.uint8)
    stride = BLOCK if block % BLOCK == 0 else block
    for start in range(0, depth, stride):
        stop = min(start + stride, depth)
        if start % block == 0:
            own = grid_of(left[:, start : start + block], bits, block)
            scales[:, start // block], zeros[:, start // block] = own.scales[:, 0], own.zeros[:, 0]
        grid = Grid(bits, block, scales, zeros)
        errors = np.empty((rows, stop - start))
        for j in range(start, stop):
            column = left[:, j : j + 1]
            integers[:, j : j + 1] = grid.integers(column, j)
            errors[:, j - start] = (column - grid.values(integers[:, j : j + 1], j))[:, 0] / upper[j, j]
            left[:, j + 1 : stop] -= errors[:, j - start, None] * upper[None, j, j + 1 : stop]
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return Decided(layer, Grid(bits, block, scales, zeros), integers, np.empty(0))


def _awq(
    group: Sequence[Layer], weights: Sequence[Floats], seen: _Seen, bits: int, block: int
) -> list[Decided]:
    """The power of the inputs' mean magnitude that loses least over all products that read them."""
    known = np.maximum(seen.magnitude, 1e-8 * max(float(seen.magnitude.max()), 1e-30))
    best: list[Decided] = []
    least = np.inf
    for power in POWERS:
        levels = known**power
        levels = np.asarray(np.float32(levels / np.sqrt(levels.max() * levels.min())), np.float64)
        made, total = [], 0.0
        for layer, w in zip(group, weights, strict=True):
            grid = grid_of(w * levels, bits, block)
            integers = grid.integers(w * levels)
            made.append(Decided(layer, grid, integers, levels if power else np.empty(0)))
            total += _lost(w, made[-1].values(), seen)
        if total < least:
            best, least = made, total
    return best


__all__ = ["Decided", "Grid", "Method", "compressed", "grid_of"]
