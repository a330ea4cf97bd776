"""Palettes that differ per layer: each weight tensor holds few values, how many follows from what it costs.

1. For each layer and width the palette of least weighted squared error (k-means in one dimension, Lloyd 1982;
   a weight counts by the variance of the input it meets), and the share of the layer's output that it loses.
2. What the model's outputs lose for the share that one layer loses: measured, each layer alone in ``PROBE``
   bits.
3. All layers start at the most bits; the step down that costs the outputs least for the bits it saves is
   taken until the mean number of bits holds.
4. In the widths chosen, every weight goes to its palette's nearest value and hands its error on to those
   still free (as GPTQ does); what is constant in the output goes into the bias.

The result is a float graph again: a target that looks for repeated values finds the palettes that were
decided here, at the width of each.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.layers import Layer, layers
from edgekiln.compile.quantise.relay import Relay
from edgekiln.compile.quantise.rounding import DAMP, Moments, inverse_factor
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed

Floats = NDArray[np.float64]

WIDTHS = (2, 4, 6, 8)
"""Bits that a Core ML palette may have from iOS 17 on (3 came with iOS 18)."""
FLOAT = 16
"""A tensor left as it is, in float16: for small ones with many scales in them, such as depthwise weights."""
LEAST_ELEMENTS = 2048
"""Smaller tensors stay float16: coremltools' own rule, and a palette of 8 bits would be most of them."""
PROBE = 4
PROBES = 6
MOST_SAMPLES = 32
LEAST_POSITIONS = 32
VECTORS_PER_INPUT = 4
ITERATIONS = 60
BINS = 4096


@dataclass(frozen=True)
class _Option:
    """One width of one tensor: its palette (empty: none), and the share of the layer's output it loses."""

    bits: int
    values: Floats
    lost: float


@dataclass(frozen=True)
class _Tensor:
    """``layer`` None: a constant that is no product's own; it stays as it is."""

    name: str
    elements: int
    options: tuple[_Option, ...]
    layer: Layer | None = None
    seen: Moments | None = None
    weight_in_outputs: float = 0.0


def palette(values: Floats, importance: Floats, count: int) -> Floats:
    """At most ``count`` sorted values of least importance-weighted squared error to ``values`` (flat arrays).

    Lloyd's iteration from the density that is best for many values, the third root of the weights' own
    (Panter and Dite 1951): from quantiles it would not find the way to the tails. In one dimension a cluster
    is an interval of the sorted values, so sums over clusters are differences of running sums.
    """
    order = np.argsort(values, kind="stable")
    x, w = values[order], np.maximum(importance[order], 1e-12 * max(float(importance.max()), 1e-30))
    mass, moment = np.r_[0.0, np.cumsum(w)], np.r_[0.0, np.cumsum(w * x)]
    centres = _spread(x, w, count)
    for _ in range(ITERATIONS):
        ends = np.r_[0, np.searchsorted(x, (centres[1:] + centres[:-1]) / 2), len(x)]
        m = mass[ends[1:]] - mass[ends[:-1]]
        full = m > 0
        moved = ((moment[ends[1:]] - moment[ends[:-1]])[full]) / m[full]
        if len(moved) == len(centres) and np.allclose(moved, centres, rtol=1e-6, atol=0):
            break
        centres = moved
    return np.unique(np.asarray(np.float16(centres), np.float64))


def _spread(x: Floats, w: Floats, count: int) -> Floats:
    """Sorted starting values, as dense as the third root of the mass ``w`` at the sorted ``x``."""
    if x[-1] <= x[0]:
        return x[:1]
    found, edges = np.histogram(x, bins=BINS, weights=w)
    dense = np.r_[0.0, np.cumsum(np.cbrt(found))]
    return np.unique(np.interp((np.arange(count) + 0.5) / count * dense[-1], dense, edges))


def nearest(values: Floats, centres: Floats) -> Floats:
    """Each value's nearest of the sorted ``centres``, same shape."""
    return np.asarray(centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)], np.float64)


def allot(sizes: Sequence[int], costs: Sequence[Mapping[int, float]], mean_bits: float) -> tuple[int, ...]:
    """The width of each tensor so that the mean over all elements is at most ``mean_bits``.

    ``costs`` gives for each tensor what each width costs. Raises ValueError where even the least widths take
    more.
    """
    chosen = [max(cost) for cost in costs]
    spare = mean_bits * sum(sizes)
    while sum(n * b for n, b in zip(sizes, chosen, strict=True)) > spare + 1e-6:
        steps = []
        for place, (size, cost) in enumerate(zip(sizes, costs, strict=True)):
            now = chosen[place]
            for bits in cost:
                if bits < now:
                    rate = (cost[bits] - cost[now]) / (size * (now - bits))
                    steps.append((rate, -size, place, bits))
        if not steps:
            raise ValueError(
                f"the least widths take {sum(n * b for n, b in zip(sizes, chosen, strict=True))}"
            )
        _, _, place, bits = min(steps)
        chosen[place] = bits
    return _filled(sizes, costs, chosen, spare)


def _filled(
    sizes: Sequence[int], costs: Sequence[Mapping[int, float]], chosen: list[int], spare: float
) -> tuple[int, ...]:
    """The last step down may have freed more than was needed: what fits goes up again, the best first."""
    while True:
        left = spare - sum(n * b for n, b in zip(sizes, chosen, strict=True))
        steps = [
            ((cost[chosen[place]] - cost[bits]) / (size * (bits - chosen[place])), place, bits)
            for place, (size, cost) in enumerate(zip(sizes, costs, strict=True))
            for bits in cost
            if bits > chosen[place] and size * (bits - chosen[place]) <= left + 1e-6
        ]
        gain, place, bits = max(steps, default=(0.0, 0, 0))
        if gain <= 0:
            return tuple(chosen)
        chosen[place] = bits


def palettised(
    model: Any, mean_bits: float, samples: Callable[[], Iterable[Arrays]], threads: int
) -> tuple[Any, str]:
    """A copy of ``model`` (a ModelProto) whose larger weights hold few values each, and a note.

    Raises ConversionFailed where it has no such weights, or ``mean_bits`` can't be held.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekiln-relay-") as scratch:
        some = itertools.islice(samples(), MOST_SAMPLES)
        relay = Relay(lambda: model, some, Path(scratch), threads)
        tensors = _tensors(model, relay)
    if not tensors:
        why = f"it has no weights of more than {LEAST_ELEMENTS} elements"
        raise ConversionFailed("making palettes for", model.graph.name, why, "Use fp16")
    tensors = _weighed(model, tensors, samples, threads)
    costs = [{o.bits: o.lost * t.weight_in_outputs for o in t.options} for t in tensors]
    try:
        chosen = allot([t.elements for t in tensors], costs, mean_bits)
    except ValueError:
        least = min(WIDTHS)
        why = f"{mean_bits:g} bits a weight are fewer than the {least} of the smallest palette"
        raise ConversionFailed("making palettes for", model.graph.name, why, "Allow more bits") from None
    made = onnx.ModelProto()
    made.CopyFrom(model)
    changed: dict[str, NDArray[Any]] = {}
    for tensor, bits in zip(tensors, chosen, strict=True):
        if bits != FLOAT:
            option = next(o for o in tensor.options if o.bits == bits)
            changed |= _on_palette(model, tensor, option.values)
    simulate.with_weights(made, changed)
    return made, _note(tensors, chosen)


def _note(tensors: Sequence[_Tensor], chosen: Sequence[int]) -> str:
    elements = sum(t.elements for t in tensors)
    mean = sum(t.elements * b for t, b in zip(tensors, chosen, strict=True)) / elements
    counts = Counter(chosen)
    told = ", ".join(f"{counts[b]} in {b} bits" for b in sorted(counts) if b != FLOAT)
    left = [t.layer.node if t.layer else t.name for t, b in zip(tensors, chosen, strict=True) if b == FLOAT]
    rest = f"; {len(left)} stay float16: {', '.join(left[:6])}{' and more' if len(left) > 6 else ''}"
    return f"palettes: {told or 'none'}; {mean:.2f} bits a weight in the mean{rest if left else ''}"


# ---------------------------------------------------------------- what each width costs


def _arrays(model: Any) -> dict[str, NDArray[Any]]:
    from onnx import TensorProto, numpy_helper

    return {
        i.name: numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.data_type == TensorProto.FLOAT and np.prod(i.dims, dtype=np.int64) > LEAST_ELEMENTS
    }


def _tensors(model: Any, relay: Relay) -> list[_Tensor]:
    held = _arrays(model)
    found = []
    for layer in layers(model):
        if layer.weight not in held:
            continue
        matrix = np.asarray(layer.matrix(held.pop(layer.weight)), np.float64)
        seen = _moments(layer, matrix, relay)
        covariance = seen.covariance()
        importance = np.broadcast_to(np.diagonal(covariance, axis1=1, axis2=2)[:, None, :], matrix.shape)
        signal = max(_output_energy(matrix, covariance), 1e-30)
        options = [_Option(FLOAT, np.empty(0), 0.0)]
        for bits in WIDTHS:
            centres = palette(matrix.ravel(), np.ravel(importance), 2**bits)
            lost = _output_energy(matrix - nearest(matrix, centres), covariance)
            options.append(_Option(bits, centres, lost / signal))
        found.append(_Tensor(layer.weight, matrix.size, tuple(options), layer, seen))
    for name, values in held.items():
        found.append(_Tensor(name, values.size, (_Option(FLOAT, np.empty(0), 0.0),)))
    return found


def _output_energy(weights: Floats, covariance: Floats) -> float:
    """The variance of the outputs that ``weights`` (groups, rows, depth) make, summed over them."""
    return max(float(np.einsum("grd,gde,gre->", weights, covariance, weights, optimize=True)), 0.0)


def _moments(layer: Layer, matrix: Floats, relay: Relay) -> Moments:
    positions = max(LEAST_POSITIONS, VECTORS_PER_INPUT * matrix.shape[2] // max(relay.count, 1))
    seen = Moments(matrix.shape[0], matrix.shape[2])
    for number, values in enumerate(relay.reach(layer.input)):
        seen.add(layer.patches(values, positions, number))
    return seen


def _weighed(
    model: Any, tensors: Sequence[_Tensor], samples: Callable[[], Iterable[Arrays]], threads: int
) -> list[_Tensor]:
    """The tensors with what the model's outputs lose for each share that the layer's own output loses."""
    import onnx
    from onnx import numpy_helper

    probes = list(itertools.islice(samples(), PROBES))
    truth = _outputs(model, probes, threads)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = []
    for tensor in tensors:
        option = next((o for o in tensor.options if o.bits == PROBE), None)
        if tensor.layer is None or option is None or option.lost <= 0:
            found.append(tensor)
            continue
        simulate.with_weights(changed, _on_palette(model, tensor, option.values, nearest_alone=True))
        error = _energy(truth, _outputs(changed, probes, threads))
        back = {n: held[n] for n in (tensor.layer.weight, tensor.layer.bias) if n}
        simulate.with_weights(changed, back)
        share = error / option.lost
        found.append(_Tensor(tensor.name, tensor.elements, tensor.options, tensor.layer, tensor.seen, share))
    return found


def _outputs(model: Any, probes: Sequence[Arrays], threads: int) -> list[list[NDArray[Any]]]:
    runner = simulate.session(model, threads)
    taken = {i.name for i in runner.get_inputs()}
    return [runner.run(None, {k: v for k, v in p.items() if k in taken}) for p in probes]


def _energy(truth: Sequence[Sequence[NDArray[Any]]], found: Sequence[Sequence[NDArray[Any]]]) -> float:
    """Error over signal, summed over outputs."""
    total = 0.0
    for place in range(len(truth[0])):
        a = np.concatenate([np.asarray(t[place], np.float64).ravel() for t in truth])
        b = np.concatenate([np.asarray(f[place], np.float64).ravel() for f in found])
        total += float(((a - b) ** 2).sum() / max(float((a**2).sum()), 1e-30))
    return total


# ---------------------------------------------------------------- the weights


def _on_palette(
    model: Any, tensor: _Tensor, centres: Floats, nearest_alone: bool = False
) -> dict[str, NDArray[Any]]:
    """The tensor's values on its palette, and its layer's bias with what became constant."""
    from onnx import numpy_helper

    held = {i.name: i for i in model.graph.initializer}
    like = numpy_helper.to_array(held[tensor.name])
    layer, seen = tensor.layer, tensor.seen
    assert layer is not None  # what is no product's own has no palette
    assert seen is not None
    matrix = np.asarray(layer.matrix(like), np.float64)
    made = nearest(matrix, centres) if nearest_alone else _handed_on(matrix, centres, seen)
    new = {layer.weight: layer.unmatrix(made, like)}
    if layer.bias:
        mean = seen.mean()
        shift = np.einsum("grd,gd->gr", matrix - made, mean).ravel()
        bias = numpy_helper.to_array(held[layer.bias])
        new[layer.bias] = np.asarray(bias + shift, np.float32)
    return new


def _handed_on(weights: Floats, centres: Floats, seen: Moments) -> Floats:
    """Column after column to the nearest value; the error goes to the columns still free."""
    depth = weights.shape[2]
    upper = inverse_factor(seen.covariance(), max(DAMP, depth / max(seen.count, 1)))
    left, made = weights.copy(), np.empty_like(weights)
    block = 64
    for start in range(0, depth, block):
        stop = min(start + block, depth)
        errors = np.empty((*weights.shape[:2], stop - start))
        for j in range(start, stop):
            made[:, :, j] = nearest(left[:, :, j], centres)
            errors[:, :, j - start] = (left[:, :, j] - made[:, :, j]) / upper[:, j, j][:, None]
            left[:, :, j + 1 : stop] -= errors[:, :, j - start, None] * upper[:, None, j, j + 1 : stop]
        left[:, :, stop:] -= np.matmul(errors, upper[:, start:stop, stop:])
    return made


__all__ = ["FLOAT", "LEAST_ELEMENTS", "WIDTHS", "allot", "nearest", "palette", "palettised"]
