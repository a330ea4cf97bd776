"""What an engine has to do for one inference, layer by layer: the input of a prediction of its time.

Engines fuse: a convolution takes its bias, normalisation and activation with it. So nodes are gathered into
layers. A node that multiplies (convolution, matrix product), moves, pools or reduces begins a layer; an
element-wise node joins the layer that made its input, and reads what comes from elsewhere (the other branch
of a residual sum). Views cost nothing. Sizes are in elements: bytes follow from the precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.model.arithmetic import FREE, VIEWS, Operands, Unknown, work
from edgekiln.model.cost import constants, peak_elements, prepared
from edgekiln.model.shapes import Known, infer
from edgekiln.records import Record

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

KINDS = (
    "conv",
    "pointwise",
    "depthwise",
    "grouped",
    "conv3d",
    "deconv",
    "dense",
    "matmul",
    "elementwise",
    "softmax",
    "norm",
    "pool",
    "reduce",
    "move",
    "resize",
    "gather",
    "recurrent",
    "other",
)
"""``pointwise``: a 1x1 convolution; ``dense``: a product with a constant; ``matmul``: of two activations;
``move``: Transpose, Concat, Slice, Split, Pad and the like."""

_OPERATORS = {
    "dense": "Gemm MatMulNBits",
    "matmul": "Attention",
    "deconv": "ConvTranspose",
    "softmax": "Softmax LogSoftmax",
    "resize": "Resize Upsample",
    "recurrent": "LSTM GRU RNN",
    "pool": "MaxPool AveragePool LpPool QLinearAveragePool",
    "gather": "Gather GatherElements GatherND GridSample Scatter ScatterElements ScatterND OneHot",
    "norm": """LayerNormalization SkipLayerNormalization InstanceNormalization GroupNormalization
        LpNormalization LRN RMSNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization""",
    "reduce": """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare GlobalAveragePool GlobalMaxPool QLinearGlobalAveragePool ArgMax ArgMin
        CumSum TopK NonZero""",
    "move": """Concat DepthToSpace SpaceToDepth Expand Pad QLinearConcat Slice Split Tile Transpose Trilu
        ReverseSequence""",
}
_KIND_OF = {op: kind for kind, operators in _OPERATORS.items() for op in operators.split()}
_CONVS = frozenset({"Conv", "FusedConv", "ConvInteger", "QLinearConv"})
_PRODUCTS = frozenset({"MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}) | {
    "FusedMatMul",
    "QLinearMatMul",
    "Einsum",
}
_SILENT = VIEWS | FREE.looks | {"QuantizeLinear", "DequantizeLinear", "Cast", "CastLike", "Constant"}


class Layer(Record, frozen=True, kw_only=True):
    """``count`` layers of equal work. All sizes are elements of one of them.

    ``reads`` and ``writes`` are activations, ``weights`` constants; ``channels_in`` and ``channels_out`` are
    of one group (of a product: the shared axis and the columns), ``places`` the output elements per channel,
    ``kernel`` the taps of a window. Where they mean nothing they are 1.
    """

    kind: str
    macs: int
    flops: int
    reads: int
    writes: int
    weights: int
    channels_in: int = 1
    channels_out: int = 1
    places: int = 1
    kernel: int = 1
    count: int = 1


class Workload(Record, frozen=True, kw_only=True):
    """All layers of a graph, equal ones counted together; ``unresolved`` nodes are in none of them.

    ``peak`` is the least number of activation elements alive at once, in the order of the graph.
    """

    layers: tuple[Layer, ...]
    nodes: int
    unresolved: int
    inputs: int
    outputs: int
    peak: int

    @property
    def macs(self) -> int:
        return sum(x.count * x.macs for x in self.layers)

    @property
    def weights(self) -> int:
        return sum(x.count * x.weights for x in self.layers)


def workload(model: Path | ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Workload:
    """The layers of ``model`` at the input ``shapes`` (as ``cost`` takes them; raises as ``cost`` does)."""
    proto = prepared(model, shapes or {})
    known, fixed = infer(proto), constants(proto)
    gathered = _Gathered(known, fixed)
    unresolved = nodes = 0
    for node in proto.graph.node:
        if all(o in fixed for o in node.output if o):
            continue
        nodes += 1
        try:
            gathered.add(node)
        except Unknown:
            unresolved += 1
    inputs = [i.name for i in proto.graph.input if i.name not in fixed]
    return Workload(
        layers=_together(gathered.layers()),
        nodes=nodes,
        unresolved=unresolved,
        inputs=sum(gathered.elements(i) for i in inputs),
        outputs=sum(gathered.elements(o.name) for o in proto.graph.output),
        peak=peak_elements(proto, known, fixed),
    )


class _Gathered:
    """Layers under construction, and which layer made each value."""

    def __init__(self, known: Known, fixed: set[str]) -> None:
        self._known, self._fixed = known, fixed
        self._made_by: dict[str, int] = {}
        self._open: list[dict[str, int | str]] = []

    def elements(self, name: str) -> int:
        """Elements of an activation. Raises Unknown."""
        dims = self._known.fixed(name)
        if dims is None:
            raise Unknown(f"the shape of '{name}' is not known")
        return math.prod(dims)

    def layers(self) -> list[Layer]:
        return [Layer(**found) for found in self._open]  # type: ignore[arg-type]

    def add(self, node: NodeProto) -> None:
        """Put ``node`` into a layer, an old or a new one. Raises Unknown for what can't be counted."""
        ins = list(dict.fromkeys(i for i in node.input if i and i not in self._fixed))
        makers = {self._made_by.get(i, -1) for i in ins}
        if node.op_type in _SILENT or not ins:
            self._belongs(node, max(makers, default=-1))
            return
        joins = node.op_type in FREE.in_place and node.op_type not in _KIND_OF and max(makers) >= 0
        if joins:
            self._join(node, ins, max(makers))
        else:
            self._open.append(self._begun(node, ins))
            self._belongs(node, len(self._open) - 1)

    def _join(self, node: NodeProto, ins: list[str], at: int) -> None:
        layer = self._open[at]
        _, flops = work(node, Operands(node, self._known))
        extra = sum(self.elements(i) for i in ins if self._made_by.get(i, -1) != at)
        layer["flops"] = int(layer["flops"]) + flops
        layer["reads"] = int(layer["reads"]) + extra
        layer["writes"] = max(self.elements(o) for o in node.output if o)
        self._belongs(node, at)

    def _belongs(self, node: NodeProto, layer: int) -> None:
        self._made_by.update((o, layer) for o in node.output if o)

    def _begun(self, node: NodeProto, ins: list[str]) -> dict[str, int | str]:
        of = Operands(node, self._known)
        macs, flops = work(node, of)
        kind, form = self._form(node, of)
        # A table that is looked up is read where it is asked, as much as comes out of it.
        stored = () if kind == "gather" else node.input
        return {
            "kind": kind,
            "macs": macs,
            "flops": flops,
            "reads": sum(self.elements(i) for i in ins),
            "writes": sum(self.elements(o) for o in node.output if o),
            "weights": sum(self.elements(i) for i in stored if i in self._fixed and self._counts(i)),
            **form,
        }

    def _counts(self, name: str) -> bool:
        return self._known.fixed(name) is not None

    def _form(self, node: NodeProto, of: Operands) -> tuple[str, dict[str, int | str]]:
        """The kind of the layer that ``node`` begins, and its channels, places and taps."""
        if node.op_type in _CONVS:
            return _convolution(of.input(3 if node.op_type == "QLinearConv" else 1), of)
        if node.op_type in _PRODUCTS or node.op_type == "Gemm":
            left, out = of.input(0), of.output()
            constant = any(i in self._fixed for i in node.input[:2])
            kind = "dense" if constant or node.op_type == "Gemm" else "matmul"
            shared, columns = (left[-1] if left else 1), (out[-1] if out else 1)
            places = math.prod(out) // max(1, columns)
            return kind, {"channels_in": shared, "channels_out": columns, "places": places}
        if node.op_type == "ConvTranspose":
            weight, out = of.input(1), of.output()
            form = {"channels_in": weight[0], "channels_out": weight[1], "kernel": math.prod(weight[2:])}
            return "deconv", {**form, "places": math.prod(out[2:])}
        kind = _KIND_OF.get(node.op_type, "elementwise" if node.op_type in FREE.in_place else "other")
        taps = of.attribute("kernel_shape", None) if kind == "pool" else None
        return kind, {"kernel": math.prod(taps)} if taps else {}


def _convolution(weight: tuple[int, ...], of: Operands) -> tuple[str, dict[str, int | str]]:
    """``weight`` is [out, in of a group, *kernel]."""
    groups, taps = int(of.attribute("group", 1)), math.prod(weight[2:])
    form: dict[str, int | str] = {
        "channels_in": weight[1],
        "channels_out": weight[0] // max(1, groups),
        "places": math.prod(of.output()[2:]),
        "kernel": taps,
    }
    if len(weight) > 4:
        return "conv3d", form
    if groups > 1:
        return ("depthwise" if weight[1] == 1 else "grouped"), form
    return ("pointwise" if taps == 1 else "conv"), form


def _together(layers: list[Layer]) -> tuple[Layer, ...]:
    """Equal layers counted once, in the order in which each kind of work comes first."""
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(
        Layer(**{f: getattr(x, f) for f in Layer.__struct_fields__ if f != "count"}, count=n)
        for x, n in counts.items()
    )
