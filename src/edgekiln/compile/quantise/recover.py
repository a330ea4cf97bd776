"""A float graph made ready for 8 bits: its weights on their grids, its biases corrected.

The result is a float graph again, of the same nodes: every target's quantiser that takes a weight's scale
from its largest value (ONNX Runtime's, LiteRT's, NNCF's, Core ML's linear one) finds the integers that were
decided here. So rounding is decided once, and written in each target's own form.

Layers are taken in the graph's order, each on the inputs that the quantised layers before it give:

- ``round``: weights by second-order statistics of these inputs (``rounding``), else the nearest step;
- ``bias``: the mean of each output channel is brought back to the float model's (Nagel et al. 2019,
  "Data-free quantization", section 4.2, with means measured instead of derived). Rounding errors that are
  alike at every position, as in a white background, are corrected exactly.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.layers import Layer, layers
from edgekiln.compile.quantise.observers import Ranges
from edgekiln.compile.quantise.relay import Relay
from edgekiln.compile.quantise.rounding import Moments, nearest, rounded
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed

MOST_SAMPLES = 64
VECTORS_PER_INPUT = 8
"""Input vectors taken for each unknown of a layer's system, over all samples: more say much the same."""
LEAST_POSITIONS = 64
JUDGED = 12
"""Samples on which the outputs' error is compared before and after."""
SCRATCH_BYTES = 1 << 30
"""What the activations of all samples may take on disk at once; larger ones are kept of fewer samples."""


@dataclass(frozen=True)
class Recovery:
    """What to do. ``most`` is the end of the weights' grid (127, or 63 where products would saturate)."""

    round: bool
    bias: bool
    symmetric: bool
    most: int = 127
    bits: int = 8


def recover(
    model: Any,
    ranges: Ranges,
    samples: Callable[[], Iterable[Arrays]],
    what: Recovery,
    threads: int,
    only: frozenset[str] | None = None,
) -> tuple[Any, str]:
    """A copy of ``model`` (onnx) with weights on their grids and biases corrected, and a note.

    ``ranges`` are the activations' ranges that the quantised model will have; ``only`` names the nodes that
    will be quantised (all where it is None). Raises ConversionFailed where no layer has constant weights.
    """
    import onnx
    from onnx import numpy_helper

    found = [layer for layer in layers(model) if only is None or layer.node in only]
    if not found:
        why = "it has no convolution or matrix product with constant weights"
        raise ConversionFailed("recovering the accuracy of", model.graph.name, why, "Use a plain recipe")
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    held = simulate.quantised_activations(model, ranges, only=only)
    left = frozenset() if only is None else frozenset(n.name for n in model.graph.node if n.name not in only)
    current = simulate.fake_quantised(model, held, ranges, what.symmetric, what.bits)
    changed: dict[str, NDArray[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgekiln-relay-") as scratch:
        count = affordable(model, samples)
        masks = [mask_of(sample) for sample in itertools.islice(samples(), count)]
        means = _means(model, found, itertools.islice(samples(), count), masks, threads) if what.bias else {}
        relay = Relay(lambda: current, itertools.islice(samples(), count), Path(scratch), threads)
        for layer in found:
            name = layer.input + simulate.FAKE if layer.input in held else layer.input
            matrix = layer.matrix(weights[layer.weight])
            made = _on_grid(matrix, layer, relay, name, what, masks)
            new = {layer.weight: layer.unmatrix(made, weights[layer.weight])}
            simulate.with_weights(current, new)
            if what.bias and layer.bias:
                shift = means[layer.node] - _mean(layer, relay.outputs(layer.output), masks)
                new[layer.bias] = (weights[layer.bias] + shift).astype(np.float32)
                simulate.with_weights(current, {layer.bias: new[layer.bias]})
            changed |= new
        count = relay.count
    result = onnx.ModelProto()
    result.CopyFrom(model)
    simulate.with_weights(result, changed)
    plain, better = (
        _output_error(model, simulate.on_grids(m, what.most, left), held, ranges, what, samples, threads)
        for m in (model, result)
    )
    if better > plain:
        worse = f"the outputs' error would grow from {plain:.3g} to {better:.3g} of the signal"
        return model, f"undone: {_note(found, what, count)}, but {worse}"
    return result, _note(found, what, count)


def _output_error(
    original: Any,
    decided: Any,
    held: Sequence[str],
    ranges: Ranges,
    what: Recovery,
    samples: Callable[[], Iterable[Arrays]],
    threads: int,
) -> float:
    """Error energy over signal energy at the outputs of the simulated model, over a few samples.

    Layer by layer every step is an improvement; through a Softmax that lives on one huge value it need not
    be.
    """
    fake = simulate.fake_quantised(decided, held, ranges, what.symmetric, what.bits)
    runners = [simulate.session(m, threads) for m in (original, fake)]
    total = []
    for sample in itertools.islice(samples(), JUDGED):
        truth, found = (
            r.run(None, {i.name: sample[i.name] for i in r.get_inputs() if i.name in sample}) for r in runners
        )
        for a, b in zip(truth, found, strict=True):
            signal = float((np.asarray(a, np.float64) ** 2).sum())
            total.append(float(((np.asarray(a, np.float64) - b) ** 2).sum()) / max(signal, 1e-30))
    return float(np.mean(total))


def _on_grid(
    matrix: NDArray[Any],
    layer: Layer,
    relay: Relay,
    name: str,
    what: Recovery,
    masks: Sequence[Mask],
) -> NDArray[np.float64]:
    if not what.round:
        return nearest(matrix, what.most)
    seen: Moments | None = None
    positions = max(LEAST_POSITIONS, VECTORS_PER_INPUT * matrix.shape[2] // max(relay.count, 1))
    for number, values in enumerate(relay.reach(name)):
        shown = values if layer.op == "Conv" else rows_shown(values, masks[number])
        vectors = layer.patches(shown, positions, number)
        if seen is None:
            seen = Moments(vectors.shape[0], vectors.shape[2])
        seen.add(vectors)
    assert seen is not None  # a relay holds at least one sample
    return rounded(matrix, seen, what.most)


def affordable(model: Any, samples: Callable[[], Iterable[Arrays]]) -> int:
    """How many samples' activations fit ``SCRATCH_BYTES``, by the largest tensor twice."""
    import onnx

    sizes = [
        4 * int(np.prod([max(d.dim_value, 1) for d in v.type.tensor_type.shape.dim], dtype=np.int64))
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    ]
    return max(4, min(MOST_SAMPLES, SCRATCH_BYTES // max(2 * max(sizes, default=1), 1)))


Mask: TypeAlias = NDArray[np.bool_] | None


def mask_of(sample: Arrays) -> Mask:
    """Which positions of a sample count, shape (length,): those that its attention mask shows.

    Padding is most of a short sentence's positions, and nobody reads what the network makes of it.
    """
    for name, value in sample.items():
        array = np.asarray(value)
        if "mask" in name.lower() and array.ndim == 2 and array.shape[0] == 1 and array.any():
            return np.asarray(array[0] != 0)
    return None


def rows_shown(value: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """The rows of (..., length, channels) that count, as (rows, channels)."""
    flat = value.reshape(-1, value.shape[-1])
    return flat if mask is None or len(flat) != len(mask) else flat[mask]


def _means(
    model: Any, found: Sequence[Layer], samples: Iterable[Arrays], masks: Sequence[Mask], threads: int
) -> dict[str, NDArray[np.float64]]:
    """The float model's mean of each layer's output channels, shape (channels,) by node."""
    if any(mask is not None for mask in masks):
        return _masked_means(model, found, samples, masks, threads)
    averaged, names = _averaging(model, found)
    runner = simulate.session(averaged, threads)
    inputs = {i.name for i in runner.get_inputs()}
    total: dict[str, NDArray[np.float64]] = {}
    count = 0
    for sample in samples:
        values = runner.run(list(names.values()), {k: v for k, v in sample.items() if k in inputs})
        count += 1
        for node, value in zip(names, values, strict=True):
            total[node] = total.get(node, 0.0) + np.asarray(value, np.float64).reshape(-1)
    return {node: value / max(count, 1) for node, value in total.items()}


def _masked_means(
    model: Any, found: Sequence[Layer], samples: Iterable[Arrays], masks: Sequence[Mask], threads: int
) -> dict[str, NDArray[np.float64]]:
    names = [layer.output for layer in found]
    runner = simulate.session(simulate.part(model, names), threads)
    inputs = {i.name for i in runner.get_inputs()}
    total: dict[str, Any] = {layer.node: 0.0 for layer in found}
    for sample, mask in zip(samples, masks, strict=True):
        values = runner.run(names, {k: v for k, v in sample.items() if k in inputs})
        for layer, value in zip(found, values, strict=True):
            total[layer.node] = total[layer.node] + _mean(layer, [value], [mask])
    return {node: np.asarray(value / max(len(masks), 1)) for node, value in total.items()}


def _averaging(model: Any, found: Sequence[Layer]) -> tuple[Any, dict[str, str]]:
    """A graph that gives each layer's output averaged over all but its channels: no tensor is kept for
    long.
    """
    from onnx import TensorProto, helper, numpy_helper

    made = simulate.part(model, [layer.output for layer in found])
    del made.graph.output[:]
    names = {}
    for place, layer in enumerate(found):
        name = f"edgekiln_mean_{place}"
        flat = f"{name}_flat"
        # (batch, channels, positions) or (everything, channels)
        if layer.op == "Conv":
            shape = numpy_helper.from_array(np.array([0, 0, -1]), f"{name}_shape")
            axes = [0, 2]
        else:
            shape = numpy_helper.from_array(np.array([-1, _width(model, layer)]), f"{name}_shape")
            axes = [0]
        made.graph.initializer.append(shape)
        made.graph.node.append(helper.make_node("Reshape", [layer.output, f"{name}_shape"], [flat]))
        made.graph.node.append(_reduce(made, flat, name, axes))
        made.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        names[layer.node] = name
    return made, names


def _reduce(model: Any, source: str, name: str, axes: list[int]) -> Any:
    """ReduceMean, whose axes became an input in opset 18."""
    from onnx import helper, numpy_helper

    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    if opset < 18:
        return helper.make_node("ReduceMean", [source], [name], axes=axes, keepdims=0)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{name}_axes"))
    return helper.make_node("ReduceMean", [source, f"{name}_axes"], [name], keepdims=0)


def _width(model: Any, layer: Layer) -> int:
    weight = next(i for i in model.graph.initializer if i.name == layer.weight)
    return int(weight.dims[0] if layer.transposed else weight.dims[1])


def _mean(layer: Layer, values: Iterable[NDArray[Any]], masks: Sequence[Mask]) -> NDArray[np.float64]:
    """The mean of each output channel over samples and the positions that count, shape (channels,)."""
    total: Any = 0.0
    for value, mask in zip(values, masks, strict=True):
        if layer.op == "Conv":
            total = total + value.mean(axis=(0, *range(2, value.ndim)), dtype=np.float64)
        else:
            total = total + rows_shown(value, mask).mean(axis=0, dtype=np.float64)
    return np.asarray(total / max(len(masks), 1), np.float64)


def _note(found: list[Layer], what: Recovery, count: int) -> str:
    done = [f"{len(found)} layers' weights {'rounded by the inputs they see' if what.round else 'rounded'}"]
    if what.bias:
        done.append(f"{sum(bool(layer.bias) for layer in found)} biases corrected")
    return f"{', '.join(done)}, on {count} samples"
