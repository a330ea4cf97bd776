"""Several nodes that are one layer, joined before they are translated: delegates know the layer.

GELU written with Erf, hard swish written with HardSigmoid, and a product with constant weights
followed by a constant bias. What does not match exactly is left as it is.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import onnx

GAIN = "edgekiln_gain"
"""An attribute of a joined Gelu: what its result is multiplied with."""
HALF_ROOT = math.sqrt(0.5)


class Wiring:
    """Who makes and who reads each value of a graph, and its constants of one element."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.maker = {o: n for n in graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        self.fixed = {o.name for o in graph.output} | {i for g in inner for n in g.node for i in n.input}
        self.fixed |= {o.name for g in inner for o in g.output}
        self.constants = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def number(self, name: str) -> float | None:
        """The value of a float constant of one element."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) != 1:
            return None
        return float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])

    def only_reader(self, name: str, op: str) -> onnx.NodeProto | None:
        """The one node that reads ``name``, if it is an ``op`` and nothing else sees the value."""
        found = self.readers[name]
        return found[0] if len(found) == 1 and found[0].op_type == op and name not in self.fixed else None

    def other(self, node: onnx.NodeProto, name: str) -> str:
        return str(node.input[1] if node.input[0] == name else node.input[0])

    def scaled(self, name: str, by: float) -> tuple[str, list[onnx.NodeProto]] | None:
        """(x, the nodes) where ``name`` is ``x * by``, as Mul or Div."""
        node = self.maker.get(name)
        if node is None or node.op_type not in {"Mul", "Div"}:
            return None
        factor = self.number(node.input[1])
        if factor and _near(1 / factor if node.op_type == "Div" else factor, by):
            return node.input[0], [node]
        if node.op_type == "Mul" and _near(self.number(node.input[0]), by):
            return node.input[1], [node]
        return None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) < 1e-6


def join(graph: onnx.GraphProto) -> None:
    """Join what can be joined, in place. The nodes stay in an order in which each follows its inputs."""
    for kind in (_gelu, _hard_swish, _linear):
        wiring = Wiring(graph)
        gone: set[int] = set()
        for node in list(graph.node):
            if id(node) not in gone:
                gone |= kind(node, wiring)
        kept = [n for n in graph.node if id(n) not in gone]
        if gone:
            del graph.node[:]
            graph.node.extend(kept)


def _become(last: onnx.NodeProto, op: str, inputs: list[str], gone: list[onnx.NodeProto]) -> set[int]:
    """Turn the last node of a pattern into ``op``; the ids of the others."""
    last.op_type = op
    last.input[:] = inputs
    del last.attribute[:]
    return {id(n) for n in gone if n is not last}


def _gelu(erf: onnx.NodeProto, wiring: Wiring) -> set[int]:
    """x * 0.5 * (1 + erf(x / sqrt 2)), the factors in any order.

    Where the half is not there (an optimiser moved it into the next weights) the GELU has a gain of 2.
    """
    if erf.op_type != "Erf":
        return set()
    inner = wiring.scaled(erf.input[0], HALF_ROOT)
    plus = wiring.only_reader(erf.output[0], "Add")
    if inner is None or plus is None or wiring.only_reader(erf.input[0], "Erf") is None:
        return set()
    if wiring.number(wiring.other(plus, erf.output[0])) != 1.0:
        return set()
    x, gone = inner[0], [*inner[1], erf, plus]
    at, factors = plus.output[0], list[str]()
    while len(factors) < 2:
        product = wiring.only_reader(at, "Mul")
        if product is None or (factors == [x] and 0.5 not in map(wiring.number, product.input)):
            break
        other = wiring.other(product, at)
        half = wiring.scaled(other, 0.5)
        if half is not None and half[0] == x and wiring.only_reader(other, "Mul") is not None:
            factors += [x, "0.5"]
            gone += half[1]
        else:
            factors.append("0.5" if wiring.number(other) == 0.5 else other)
        gone.append(product)
        at = product.output[0]
    if sorted(factors) not in ([x], sorted([x, "0.5"])):
        return set()
    others = _become(gone[-1], "Gelu", [x], gone)
    gone[-1].attribute.append(onnx.helper.make_attribute(GAIN, float(3 - len(factors))))
    return others


def _hard_swish(gate: onnx.NodeProto, wiring: Wiring) -> set[int]:
    """x * HardSigmoid(x) with a slope of one sixth."""
    if gate.op_type != "HardSigmoid":
        return set()
    given = {a.name: a.f for a in gate.attribute}
    product = wiring.only_reader(gate.output[0], "Mul")
    if product is None or not _near(given.get("alpha", 0.2), 1 / 6) or given.get("beta", 0.5) != 0.5:
        return set()
    x = gate.input[0]
    if wiring.other(product, gate.output[0]) != x:
        return set()
    return _become(product, "HardSwish", [x], [gate])


def _linear(product: onnx.NodeProto, wiring: Wiring) -> set[int]:
    """MatMul with constant weights [K, N] and Add of a constant [N]: a Gemm, of any rank here."""
    weight = wiring.constants.get(product.input[1]) if product.op_type == "MatMul" else None
    if weight is None or len(weight.dims) != 2 or product.input[0] in wiring.constants:
        return set()
    plus = wiring.only_reader(product.output[0], "Add")
    if plus is None:
        return set()
    name = wiring.other(plus, product.output[0])
    bias = wiring.constants.get(name)
    if bias is None or list(bias.dims) != [weight.dims[1]] or not np.prod(bias.dims):
        return set()
    return _become(plus, "Gemm", [product.input[0], product.input[1], name], [product])
