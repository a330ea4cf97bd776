"""What each layer loses to 8 bits: alone, and with all that was lost before it. One pass over the samples.

One graph holds the float model, the quantised one, and each layer once more on the float model's own input:
its outputs are three sums per layer, so a sample's tensors are let go as the runtime goes on.

- isolated: the layer with quantised input and weights, where everything before it is float;
- cumulative: the same output in the wholly quantised model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.layers import Layer, layers
from edgekiln.compile.quantise.observers import Ranges
from edgekiln.engines import Arrays
from edgekiln.records import LayerLoss

SAMPLES = 16
CAP_DB = 200.0
_QUANTISED, _ALONE, _INPUT = "edgekiln_q/", "edgekiln_alone/", "edgekiln_input/"


def layer_losses(
    original: Any,
    quantised: Any,
    ranges: Ranges,
    symmetric: bool,
    samples: Iterable[Arrays],
    threads: int,
    keep_float: Collection[str] = (),
    only: Collection[str] | None = None,
    bits: int = 8,
) -> tuple[LayerLoss, ...]:
    """The losses of every layer with constant weights, in graph order, over at most ``SAMPLES`` samples.

    ``original`` is the float model, ``quantised`` the same graph with the weights that the integers stand
    for; ``keep_float`` names the nodes that stay float in it.
    """
    found = layers(original)
    if not found:
        return ()
    held = simulate.quantised_activations(quantised, ranges, keep_float, only)
    together, names = _together(original, quantised, found, held, ranges, symmetric, bits)
    runner = simulate.session(together, threads)
    inputs = {i.name for i in runner.get_inputs()}
    sums = np.zeros(len(names))
    count = 0
    for sample in itertools.islice(samples, SAMPLES):
        values = runner.run(names, {k: v for k, v in sample.items() if k in inputs})
        sums += [float(np.asarray(v).reshape(-1)[0]) for v in values]
        count += 1
    rows = sums.reshape(len(found), 3)
    return tuple(
        LayerLoss(
            node=layer.node,
            op=layer.op,
            output=layer.output,
            isolated_db=_db(signal, alone),
            cumulative_db=_db(signal, error),
            n=count,
            in_float=layer.node in keep_float or (only is not None and layer.node not in only),
        )
        for layer, (signal, error, alone) in zip(found, rows, strict=True)
    )


def _db(signal: float, error: float) -> float | None:
    """Signal over error; None where the output is zero throughout, or not finite."""
    if not math.isfinite(signal + error) or signal <= 0:
        return None
    return CAP_DB if error <= 0 else min(CAP_DB, 10 * math.log10(signal / error))


def _together(
    original: Any,
    quantised: Any,
    found: Sequence[Layer],
    held: Sequence[str],
    ranges: Ranges,
    symmetric: bool,
    bits: int,
) -> tuple[Any, list[str]]:
    """The three graphs as one, and the names of its outputs: signal, cumulative and isolated error per
    layer.
    """
    from onnx import helper

    outputs = [layer.output for layer in found]
    ours = simulate.part(original, outputs)
    fake = simulate.fake_quantised(quantised, held, ranges, symmetric, bits)
    theirs = simulate.part(fake, outputs)
    inputs = {i.name for i in ours.graph.input} | {i.name for i in theirs.graph.input}
    _prefixed(theirs, _QUANTISED, inputs)
    ours.graph.node.extend(theirs.graph.node)
    ours.graph.initializer.extend(theirs.graph.initializer)
    have = {i.name for i in ours.graph.input}
    ours.graph.input.extend(i for i in theirs.graph.input if i.name not in have)
    for needed in theirs.opset_import:
        if not any(o.domain == needed.domain for o in ours.opset_import):
            ours.opset_import.append(needed)
    _add_alone(ours, quantised, found, held, ranges, symmetric, bits)
    del ours.graph.output[:]
    names: list[str] = []
    for place, layer in enumerate(found):
        for what, other in (
            ("signal", ""),
            ("error", _QUANTISED + layer.output),
            ("alone", _ALONE + layer.output),
        ):
            names.append(_energy(ours, layer.output, other, f"edgekiln_{what}_{place}"))
    ours.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in names)
    return ours, names


def _prefixed(model: Any, prefix: str, left: Collection[str]) -> None:
    """Rename every tensor and node of ``model`` but those in ``left``."""
    for node in model.graph.node:
        node.name = node.name and prefix + node.name
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and name not in left:
                    names[place] = prefix + name
    for tensor in model.graph.initializer:
        if tensor.name not in left:
            tensor.name = prefix + tensor.name


def _add_alone(
    model: Any,
    quantised: Any,
    found: Sequence[Layer],
    held: Sequence[str],
    ranges: Ranges,
    symmetric: bool,
    bits: int,
) -> None:
    """Each layer with the quantised weights on the float model's input, rounded where it is held in 8
    bits.
    """
    import onnx
    from onnx import helper

    nodes = {n.name: n for n in quantised.graph.node}
    sources = {layer.input: simulate.held_source(quantised, layer.input, held) for layer in found}
    wanted = {name: source for name, source in sources.items() if source is not None}
    grids = onnx.ModelProto()
    grids.CopyFrom(model)
    del grids.graph.node[:]
    del grids.graph.initializer[:]
    del grids.graph.output[:]
    for name in wanted:  # an Identity per input: its fake quantisation is what is read
        grids.graph.node.append(helper.make_node("Identity", [name], [_INPUT + name]))
    made = simulate.fake_quantised(
        grids,
        [_INPUT + n for n in wanted],
        {_INPUT + n: ranges[source] for n, source in wanted.items()},
        symmetric,
        bits,
    )
    model.graph.node.extend(made.graph.node)
    model.graph.initializer.extend(made.graph.initializer)
    for layer in found:
        node = onnx.NodeProto()
        node.CopyFrom(nodes[layer.node])
        node.name = _ALONE + node.name
        node.input[0] = _INPUT + layer.input + simulate.FAKE if layer.input in wanted else layer.input
        for place in range(1, len(node.input)):
            if node.input[place]:
                node.input[place] = _QUANTISED + node.input[place]
        node.output[0] = _ALONE + layer.output
        model.graph.node.append(node)


def _energy(model: Any, one: str, other: str, name: str) -> str:
    """Add the sum of squares of ``one``, or of its difference to ``other``; the name of the sum."""
    from onnx import helper

    source = one
    if other:
        source = f"{name}_difference"
        model.graph.node.append(helper.make_node("Sub", [one, other], [source]))
    model.graph.node.append(helper.make_node("ReduceSumSquare", [source], [name], keepdims=0))
    return name
