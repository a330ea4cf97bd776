"""Half precision: a float32 ONNX graph in float16 or bfloat16, and what that costs its weights.

Both conversions are strongly typed: every tensor's type is written in the graph, so an engine has
nothing left to choose. Inputs and outputs stay float32 behind Casts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.engines.emulate import element_types, emulate, refuse_subgraphs
from edgekiln.errors import ConversionFailed
from edgekiln.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FP16_MAX = 65504.0
"""Largest finite float16 (IEEE 754-2008 binary16)."""
FP16_TINY = 2.0**-24
"""Smallest positive (subnormal) float16."""

BF16_MAX = 2.0**128 - 2.0**120
"""Largest finite bfloat16: float32's exponent with 8 significant bits."""
BF16_TINY = 2.0**-133
"""Smallest positive (subnormal) bfloat16."""

NO_BFLOAT16_KERNEL = frozenset({"ConvTranspose"})
"""Operators that ONNX has in bfloat16 and TensorRT's builder refuses (seen with TensorRT-RTX 1.7)."""

_STAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX declares float32 whatever the data is (regions, scales)."""


class WeightLoss(Record, frozen=True, kw_only=True):
    """What a type's range does to the float32 constants of a graph; all fields count values.

    ``beyond`` exceed the largest finite value and are clamped to it, ``below`` are smaller than the
    smallest positive value and are replaced by it or by zero.
    """

    total: int
    beyond: int
    below: int

    def sentence(self) -> str:
        if not self.beyond and not self.below:
            return f"all {self.total} float constants are within range"
        return (
            f"of {self.total} float constants {self.beyond} are beyond the range and clamped, "
            f"{self.below} are below it"
        )


def _floats(model: ModelProto) -> Iterator[TensorProto]:
    """Every float32 constant: initializers and tensor attributes."""
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                yield attribute.t


def weight_loss(model: ModelProto, arithmetic: str) -> WeightLoss:
    """Count the constants of a float32 graph that ``fp16`` or ``bf16`` can't hold.

    bfloat16 has float32's exponent: only values that round past its largest finite one are beyond.
    """
    import numpy as np
    from onnx import numpy_helper

    top, tiny = (FP16_MAX, FP16_TINY) if arithmetic == "fp16" else (BF16_MAX, BF16_TINY)
    total = beyond = below = 0
    for tensor in _floats(model):
        size = np.abs(numpy_helper.to_array(tensor))
        total += size.size
        beyond += int(np.count_nonzero(np.isfinite(size) & (size > top)))
        below += int(np.count_nonzero((size > 0) & (size < tiny)))
    return WeightLoss(total=total, beyond=beyond, below=below)


def is_quantised(model: ModelProto) -> bool:
    return any(n.op_type in {"QuantizeLinear", "DequantizeLinear"} for n in model.graph.node)


def holds(model: ModelProto, arithmetic: str) -> bool:
    """Whether any constant or cast of the graph already has that half-precision type."""
    from onnx import TensorProto

    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[arithmetic]
    if any(t.data_type == kind for t in model.graph.initializer):
        return True
    return any(
        a.name == "to" and a.i == kind for n in model.graph.node if n.op_type == "Cast" for a in n.attribute
    )


def to_fp16(model: ModelProto, keep_io: bool = True) -> ModelProto:
    """``model`` in float16 (onnxruntime's converter). Ask ``weight_loss`` first for what gets clamped.

    Operators that have no float16 in ONNX or lose their meaning in it (Resize, NonMaxSuppression, Range,
    CumSum and the like: the converter's own list) stay float32 between Casts. Raises ConversionFailed for
    quantised graphs and for subgraphs.
    """
    from onnx import ModelProto, checker
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _refuse_quantised(model, "converting to float16")
    refuse_subgraphs(model, "converting to float16")
    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        result: ModelProto = convert_float_to_float16(copy, keep_io_types=keep_io)
        OnnxModel(result).topological_sort()
        del result.graph.value_info[:]
        checker.check_model(result)
    except Exception as error:
        cure = "Use another recipe, or report the graph"
        raise ConversionFailed("converting to float16", model.graph.name, str(error), cure) from error
    return result


def to_bf16(model: ModelProto) -> ModelProto:
    """``model`` strongly typed in bfloat16; inputs and outputs keep float32 behind Casts.

    Weights are rounded to nearest even. Operators that ONNX gives no bfloat16 in any version, and
    NO_BFLOAT16_KERNEL, stay float32 between Casts. The opset stays as it is, if it has bfloat16 at all
    (13): ONNX lists it for Conv and pooling only from opset 22, but TensorRT reads the types from the
    tensors, and before 10.15 it reads opsets only up to 20.
    Raises ConversionFailed for quantised graphs, subgraphs and types that can't be inferred.
    """
    from onnx import ModelProto, checker, version_converter

    _refuse_quantised(model, "converting to bfloat16")
    refuse_subgraphs(model, "converting to bfloat16")
    copy = ModelProto()
    copy.CopyFrom(model)
    try:
        if next(o.version for o in copy.opset_import if o.domain in {"", "ai.onnx"}) < 13:
            copy = version_converter.convert_version(copy, 13)
        _Bfloat16(copy, element_types(copy)).rewrite()
        checker.check_model(copy)
    except (checker.ValidationError, version_converter.ConvertError, RuntimeError) as error:
        cure = "Use another recipe, or report the graph"
        raise ConversionFailed("converting to bfloat16", model.graph.name, str(error), cure) from error
    return copy


def emulate_bf16(model: ModelProto) -> ModelProto:
    """A float32 graph that rounds to bfloat16 as ``to_bf16(model)`` would, for ONNX Runtime's CPU."""
    return emulate(to_bf16(model))


def _refuse_quantised(model: ModelProto, doing: str) -> None:
    if is_quantised(model):
        why = "the graph is quantised: its types are fixed by its Q/DQ pairs"
        raise ConversionFailed(doing, model.graph.name, why, "Convert the float32 model instead")


def _takes_bfloat16(op_type: str, domain: str) -> bool:
    """Whether ONNX's newest schema, and TensorRT, let the first float input or output be bfloat16."""
    import onnx

    if domain not in {"", "ai.onnx"} or op_type in NO_BFLOAT16_KERNEL:
        return False
    try:
        schema = onnx.defs.get_schema(op_type, domain="")
    except onnx.defs.SchemaError:
        return False
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for formal in (*schema.inputs, *schema.outputs):
        types = allowed.get(formal.type_str, [formal.type_str])
        if "tensor(float)" in types:
            return "tensor(bfloat16)" in types
    return True


class _Bfloat16:
    """One rewriting of one graph: tensor names to their present types, and the Casts made so far."""

    def __init__(self, model: ModelProto, types: dict[str, int]) -> None:
        from onnx import TensorProto

        self.graph: GraphProto = model.graph
        self.types = types
        self.float, self.low = int(TensorProto.FLOAT), int(TensorProto.BFLOAT16)
        self.now: dict[str, int] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def rewrite(self) -> None:
        from onnx import helper

        ends = self._rename_outputs()
        self._initializers()
        self.now.update({i.name: self.float for i in self.graph.input if self.types[i.name] == self.float})
        for node in self.graph.node:
            if node.op_type == "Constant":
                self._constant(node)
            else:
                self._node(node)
            self.nodes.append(node)
        for name, end in ends.items():
            if self.now[end] == self.float:
                self.nodes.append(helper.make_node("Identity", [end], [name]))
            else:
                self.nodes.append(helper.make_node("Cast", [end], [name], to=self.float))
        del self.graph.node[:]
        del self.graph.value_info[:]
        self.graph.node.extend(self.nodes)

    def _rename_outputs(self) -> dict[str, str]:
        """Float32 outputs get an inner name, so that a last Cast can give the old name back."""
        made = {name for node in self.graph.node for name in node.output}
        outputs = [o.name for o in self.graph.output if o.name in made and self.types[o.name] == self.float]
        ends = {name: f"{name}/end" for name in outputs}
        for node in self.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = ends.get(name, name)
        self.types.update(dict.fromkeys(ends.values(), self.float))
        return ends

    def _initializers(self) -> None:
        """Weights become bfloat16, unless only inputs that must be float32 read them."""
        kept = {
            node.input[i] for node in self.graph.node for i in self._float_inputs(node) if i < len(node.input)
        }
        for tensor in self.graph.initializer:
            if tensor.data_type == self.float:
                if tensor.name not in kept:
                    _round(tensor)
                self.now[tensor.name] = int(tensor.data_type)

    def _float_inputs(self, node: NodeProto) -> tuple[int, ...]:
        if not _takes_bfloat16(node.op_type, node.domain):
            return tuple(range(len(node.input)))
        return _STAYS_FLOAT.get(node.op_type, ())

    def _constant(self, node: NodeProto) -> None:
        from onnx import helper, numpy_helper

        value = node.attribute[0]
        if value.name in {"value_float", "value_floats"}:
            import numpy as np

            data = value.f if value.name == "value_float" else list(value.floats)
            tensor = numpy_helper.from_array(np.asarray(data, dtype=np.float32))
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", tensor))
        if self.types.get(node.output[0]) == self.float:
            _round(node.attribute[0].t)
            self.now[node.output[0]] = self.low

    def _node(self, node: NodeProto) -> None:
        keeps = self._float_inputs(node)
        for index, name in enumerate(node.input):
            if name in self.now:
                node.input[index] = self._as(name, self.float if index in keeps else self.low)
        low = _takes_bfloat16(node.op_type, node.domain)
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i == self.float and low:
                attribute.i = self.low
            if attribute.HasField("t") and attribute.t.data_type == self.float and low:
                _round(attribute.t)
        for name in node.output:
            kind = self.types.get(name)
            if name and kind is None:
                why = f"the element type of '{name}' can't be inferred"
                raise ConversionFailed("converting to bfloat16", node.op_type, why, "Use fp32 or fp16")
            if kind == self.float:
                self.now[name] = self.low if low else self.float

    def _as(self, name: str, kind: int) -> str:
        """``name`` in type ``kind``: itself, or the output of the one Cast that makes it."""
        from onnx import helper

        if self.now[name] == kind:
            return name
        if (name, kind) not in self.casts:
            self.casts[name, kind] = cast = f"{name}/{'float' if kind == self.float else 'bfloat16'}"
            self.nodes.append(helper.make_node("Cast", [name], [cast], to=kind))
        return self.casts[name, kind]


def _round(tensor: TensorProto) -> None:
    """A float32 tensor in place as bfloat16, to nearest even, clamped to the largest finite value."""
    import ml_dtypes
    import numpy as np
    from onnx import numpy_helper

    exact = numpy_helper.to_array(tensor)
    low = exact.astype(ml_dtypes.bfloat16)
    overflow = np.isinf(low) & np.isfinite(exact)
    low = np.where(overflow, np.copysign(BF16_MAX, exact).astype(ml_dtypes.bfloat16), low)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(low), tensor.name))
