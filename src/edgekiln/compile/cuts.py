"""Where a graph may be cut in two at a single tensor, and what each place means for a device and its link.

A tensor is a cut where nothing else that comes from the input is still wanted: after the node that makes it,
in any order of the graph, it alone is alive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.compile.split import WEIGHTED
from edgekiln.model.arithmetic import Operands, Unknown, work
from edgekiln.model.cost import constants
from edgekiln.model.shapes import Known, infer
from edgekiln.records import Record

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


class Cut(Record, frozen=True, kw_only=True):
    """A tensor at which the graph falls in two.

    ``share`` is its numbers over those of the input. ``macs_share`` and ``weights_share`` are the parts of
    the multiply-accumulates and of the weights' numbers that lie before it, so in the head.
    """

    tensor: str
    op: str
    shape: tuple[int, ...]
    share: float
    macs_share: float
    weights_share: float


NEAR = 0.05
"""A place is no choice where a later one has less to send for so little more of all work."""


def activations(graph: Path) -> tuple[str, ...]:
    """Every tensor that comes from the graph's inputs, in order."""
    import onnx

    proto = onnx.load(graph, load_external_data=False)
    fixed = constants(proto)
    made = (o for node in proto.graph.node for o in node.output if o and o not in fixed)
    return (*(i.name for i in proto.graph.input if i.name not in fixed), *made)


def cuts(graph: Path) -> tuple[Cut, ...]:
    """Where ``graph`` (static shapes) can be cut for a server to go on, from the front to the back.

    Those that ``split_model`` would refuse are left out, and so are those behind the last multiplication:
    nothing would be left to compute. Of tensors of one size with no weights in between the last is given, and
    none where a smaller one follows for NEAR more work.
    """
    import onnx

    proto = onnx.load(graph, load_external_data=False)
    known, fixed = infer(proto), constants(proto)
    inputs = [i.name for i in proto.graph.input if i.name not in fixed]
    before = sum(math.prod(known.fixed(name) or ()) for name in inputs)
    nodes = [node for node in proto.graph.node if not all(o in fixed for o in node.output if o)]
    alone = _alone(proto, nodes, inputs, fixed)
    costs = [(_macs(node, known), _weights(node, known, fixed)) for node in nodes]
    all_macs, all_weights = (max(1, sum(column)) for column in zip(*costs, strict=True)) if costs else (1, 1)
    found: dict[tuple[int, int], Cut] = {}
    macs = weights = layers = 0
    for node, (own, held) in zip(nodes, costs, strict=True):
        macs, weights, layers = macs + own, weights + held, layers + (node.op_type in WEIGHTED)
        name = alone.get(node.output[0], "")
        shape = known.fixed(name) if name else None
        if not shape or layers == 0 or macs >= all_macs or not _sendable(name, shape, known, before):
            continue
        numbers = math.prod(shape)
        found[layers, numbers] = Cut(
            tensor=name,
            op=node.op_type,
            shape=shape,
            share=numbers / before,
            macs_share=macs / all_macs,
            weights_share=weights / all_weights,
        )
    places = tuple(found.values())
    return tuple(one for number, one in enumerate(places) if not _beaten(one, places[number + 1 :]))


def _beaten(one: Cut, later: Sequence[Cut]) -> bool:
    return any(c.share < one.share and c.macs_share - one.macs_share <= NEAR for c in later)


def _sendable(name: str, shape: tuple[int, ...], known: Known, before: int) -> bool:
    """Whether ``split_model`` takes it: float32 [1, C, ...], fewer numbers than the input."""
    is_float = known.dtypes.get(name) == 1
    return is_float and len(shape) >= 2 and shape[0] == 1 and math.prod(shape) < before


def _alone(proto: ModelProto, nodes: list[NodeProto], inputs: list[str], fixed: set[str]) -> dict[str, str]:
    """By the first output of a node: the tensor that alone is alive after it, where there is one."""
    ends = {o.name for o in proto.graph.output}
    last = {name: number for number, node in enumerate(nodes) for name in _read(node) if name not in fixed}
    alive = {name for name in inputs if name in last}
    found = {}
    for number, node in enumerate(nodes):
        alive = {name for name in alive if last[name] > number or name in ends}
        alive |= {o for o in node.output if o in last or o in ends}
        if len(alive) == 1 and not alive & ends:
            (found[node.output[0]],) = alive
    return found


def _read(node: NodeProto) -> set[str]:
    """What a node reads, its branches too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            names |= {name for one in inner.node for name in _read(one)}
    return names


def _macs(node: NodeProto, known: Known) -> int:
    try:
        return work(node, Operands(node, known))[0]
    except Unknown:
        return 0


def _weights(node: NodeProto, known: Known, fixed: set[str]) -> int:
    """Numbers of the constants that ``node`` reads, those of weighted layers alone."""
    if node.op_type not in WEIGHTED:
        return 0
    return sum(math.prod(known.fixed(name) or (0,)) for name in node.input if name in fixed)
