"""Which operators each of ONNX Runtime's providers would take of a graph.

NNAPI and Core ML by ONNX Runtime's own tool, which applies the published lists of operators; QNN by the
provider itself on its simulator; XNNPACK by the rules of its source, restated here. The lists go by operator
type: limits that depend on attributes or constants may cost further operators on the device.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.compile.targets import qnn
from edgekiln.compile.targets.ort_providers import COREML, CPU, NNAPI, NNAPI_NOTE, XNNPACK, Provider
from edgekiln.compile.targets.qnn_compile import MODEL, Order, ask
from edgekiln.devices import Device
from edgekiln.engines.qnn import PROVIDER as QNN
from edgekiln.errors import ConversionFailed
from edgekiln.records import How, Placement

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_CORE_ML_LISTS = {
    "MLProgram": "coreml_supported_mlprogram_ops.md",
    "NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
}


@dataclass(frozen=True)
class Count:
    """How many operators a provider takes of a graph, in how many pieces, and the others by type."""

    operators: int
    taken: int
    partitions: int
    fallback: dict[str, int]

    def sentence(self) -> str:
        return f"{self.taken} of {self.operators} operators in {self.partitions} partitions"


def rows(
    device: Device, found: tuple[Provider, ...], file: Path, shipped: ModelProto, plain: ModelProto | None
) -> tuple[Placement, ...]:
    """A row for each of ``found``, in that order (two for Core ML: one for each of its formats).

    ``shipped`` is the graph as ``file`` holds it. ``plain`` is the graph before ONNX Runtime's fusions where
    the file holds them: what a provider would have taken of it stands in the detail.
    """
    made: list[Placement] = []
    for name in (p.name for p in found):
        if name == CPU:
            made.append(_cpu(file, shipped))
        elif name == QNN:
            made.append(_qnn(device, shipped, plain))
        elif name == COREML:
            made += [_listed(f"{COREML} ({kind})", kind, shipped, plain) for kind in _CORE_ML_LISTS]
        else:
            made.append(_listed(name, name, shipped, plain))
    return tuple(made)


def _cpu(file: Path, shipped: ModelProto) -> Placement:
    """What ONNX Runtime assigns to the CPU with no other provider there. For the mobile format it records no
    assignment, but opens only what has a kernel for every operator."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(file), options, providers=[CPU])
    assigned = [n.op_type for p in session.get_provider_graph_assignment_info() for n in p.get_nodes()]
    count = len(assigned) or len(shipped.graph.node)
    how = "ONNX Runtime assigned them" if assigned else "the file opened"
    return Placement(
        provider=CPU,
        how="measured",
        operators=count,
        taken=count,
        partitions=1,
        detail=f"{how} with this provider alone, here on {platform.machine()}",
    )


def _listed(name: str, rule: str, shipped: ModelProto, plain: ModelProto | None) -> Placement:
    count = usability(shipped, rule)
    how: How = "predicted" if rule == XNNPACK else "emulated"
    version = importlib.metadata.version("onnxruntime")
    detail = f"by operator type, from the list in onnxruntime {version}; limits by attribute not applied"
    if rule == XNNPACK:
        detail = "by operator type, from the rules in the provider's source"
    if rule == NNAPI:
        detail += f"; {NNAPI_NOTE}"
    return _row(name, how, count, detail + _before(plain, rule))


def _before(plain: ModelProto | None, rule: str) -> str:
    if plain is None:
        return ""
    return f"; before ONNX Runtime's fusions, which the file holds: {usability(plain, rule).sentence()}"


def _row(name: str, how: How, count: Count, detail: str) -> Placement:
    return Placement(
        provider=name,
        how=how,
        operators=count.operators,
        taken=count.taken,
        partitions=count.partitions,
        fallback=count.fallback,
        detail=detail,
    )


def _qnn(device: Device, shipped: ModelProto, plain: ModelProto | None) -> Placement:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        why = "onnxruntime-qnn is not installed: pip install 'edgekiln[qnn]'"
        return Placement(provider=QNN, how="emulated", detail=why)
    try:
        count = _simulated(device, shipped)
        before = None if plain is None else _simulated(device, plain)
    except ConversionFailed as error:
        return Placement(provider=QNN, how="emulated", detail=error.why)
    detail = (
        f"partitioned by onnxruntime-qnn {importlib.metadata.version('onnxruntime-qnn')} on its simulator"
    )
    if before is not None:
        detail += f"; before ONNX Runtime's fusions, which the file holds: {before.sentence()}"
    return _row(QNN, "emulated", count, detail)


def _simulated(device: Device, model: ModelProto) -> Count:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        told = {name: str(value) for name, value in qnn.provider_options(qnn.soc(device)).items()}
        # The least effort: only the partition is asked for.
        told["htp_graph_finalization_optimization_mode"] = "1"
        verdict = ask(Path(scratch), Order(provider=told, compile=False))
    operators = verdict.taken + sum(verdict.fallback.values())
    return Count(operators, verdict.taken, verdict.partitions, verdict.fallback)


# ---------------------------------------------------------------- by lists of operators


def usability(model: ModelProto, rule: str) -> Count:
    """Count by ONNX Runtime's mobile usability tool. ``rule`` is NNAPI, XNNPACK, or a format of Core ML.

    Operators with inputs of unknown size are not taken, as these providers want static shapes.
    """
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker as tool

    model = onnx.shape_inference.infer_shapes(model)
    if not model.graph.value_info:
        model.graph.value_info.extend(model.graph.input)  # the tool refuses a graph without any
    for number, node in enumerate(model.graph.node):
        node.name = str(number)
    if rule == XNNPACK:
        info = tool.check_partitioning(model.graph, _Xnnpack(model), require_fixed_input_sizes=True)
    elif rule == NNAPI:
        info = tool.check_nnapi_partitions(model, True)
    else:
        info = tool.check_coreml_partitions(model, True, _CORE_ML_LISTS[rule])
    taken = {node.name for group in info.supported_groups for node in group}
    fallback = Counter(n.op_type for n in model.graph.node if n.name not in taken)
    return Count(len(model.graph.node), len(taken), info.num_partitions, dict(sorted(fallback.items())))


_XNNPACK_OPS = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Softmax", "Resize", "Gemm", "MatMul", "QLinearConv"}
)
_XNNPACK_QDQ = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Softmax", "Resize"})
_XNNPACK_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_XNNPACK_FUSES = frozenset({"Conv", "MaxPool", "AveragePool"})


class _Xnnpack:
    """The rules of XNNPACK's node_support_checker.cc, as the tool asks for them.

    An operator of its list in the domain ai.onnx, with constant weights; a Clip or Relu directly behind a
    convolution or a pool; and Q/DQ around an operator that it takes in quantised form.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._makers = {o: n for n in graph.node for o in n.output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._constants = {i.name for i in graph.initializer}
        self._taken: set[str] = set()
        for node in graph.node:
            if node.domain in {"", "ai.onnx"}:
                self._consider(node)

    def _consider(self, node: NodeProto) -> None:
        before = [self._makers[i] for i in node.input if i in self._makers]
        if node.op_type in {"Clip", "Relu"}:
            fused = before and before[0].op_type in _XNNPACK_FUSES and before[0].name in self._taken
            quantised = any(
                n.op_type == "QuantizeLinear" for o in node.output for n in self._users.get(o, [])
            )
            if fused and not quantised:
                self._taken.add(node.name)
            return
        dequantisers = [n for n in before if n.op_type == "DequantizeLinear"]
        takes = _XNNPACK_QDQ if dequantisers else _XNNPACK_OPS
        weight = node.input[1] if node.op_type in _XNNPACK_WEIGHTS else None
        if node.op_type not in takes or not (weight is None or self._constant(weight)):
            return
        self._taken.add(node.name)
        if dequantisers:
            after = [n for o in node.output for n in self._users.get(o, [])]
            quantisers = [n for n in after if n.op_type == "QuantizeLinear"]
            self._taken |= {n.name for n in [*dequantisers, *quantisers]}

    def _constant(self, name: str) -> bool:
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return name in self._constants

    def is_op_supported(self, node: NodeProto) -> bool:
        return node.name in self._taken

    def get_caveats(self) -> list[Any]:
        return []
