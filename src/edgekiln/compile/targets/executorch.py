"""ExecuTorch: one ``.pte`` with the XNNPACK delegate for the CPU of phones and boards.

The graph becomes a torch module, is exported, quantised by ExecuTorch's own XNNPACK quantiser where the
recipe says so, lowered, and then run: a file that lowers can still fail when it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln import files
from edgekiln.compile.targets import Conversion
from edgekiln.engines.executorch import open as open_pte
from edgekiln.engines.executorch import spoken
from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact, Check, PassReport, Placement, Scalar

DOING = "converting for ExecuTorch"
CURE = "Choose another recipe or target, or change the model at that node"
ENTRY = "model.pte"
MOST_SAMPLES = 16
"""More would calibrate better, but the quantiser's histograms cost seconds a sample on a real network."""
_QUANTISERS = ("quantize", "dequantize", "choose_qparams")

Samples = list[dict[str, NDArray[Any]]]


def convert(order: Conversion, into: Path) -> Artifact:
    """The ``.pte`` of the variant, run once here, into ``into``.

    fp32 is the graph as it is; int8-xnnpack-static quantises weights (per channel) and activations with
    ranges seen on ``order.calibration``; int8-xnnpack-dynamic quantises linear layers alone, activations
    at run time. Raises MissingExtra, and ConversionFailed with torch's or the runtime's own message.
    """
    path = order.graph(DOING)
    with _quiet():
        torch_graph = _imports(order)
        module = torch_graph.load(path)
        samples = _samples(order)
        parity = torch_graph.check_against(path, module, samples[:2] or None)
        recipe = next((p for p in order.variant.recipe.passes if p.name == "quantise-xnnpack"), None)
        drawn = samples or [_drawn(module, order)]
        dynamic = None if recipe is None else bool(recipe.params["dynamic"])
        try:
            program, layers, precisions = _exported(module, drawn, dynamic)
            data, placement = _lowered(program)
        except EdgekilnError:
            raise
        except Exception as error:  # exporter and lowering raise anything at all
            why = str(error).strip() or repr(error)
            raise ConversionFailed(DOING, order.variant.path, why[-1500:], CURE) from error
    files.write_bytes(into / ENTRY, data)
    options: dict[str, Scalar] = {
        "backend": "xnnpack",
        "inputs": json.dumps(module.inputs),
        "outputs": json.dumps(module.outputs),
    }
    artifact = Artifact(
        id=f"{order.device.name}.executorch.{order.variant.recipe.name}",
        target="executorch",
        recipe=order.variant.recipe.name,
        engine="executorch",
        proof_engine="executorch",
        entry=ENTRY,
        files=files.entries(into),
        options=options,
        tools={name: importlib.metadata.version(name) for name in ("executorch", "torch", "torchao")},
        precisions=precisions or order.variant.precisions,
        passes=tuple(_told(p, layers, len(samples), recipe is not None) for p in order.variant.passes),
        placement=(placement,),
    )
    detail = f"the torch module differs from ONNX Runtime by at most {parity.max_error:.3g}"
    same = Check(name="same as the ONNX graph", passed=True, detail=detail)
    checks = (same, _run(artifact, into, drawn[0]))
    return msgspec.structs.replace(artifact, checks=checks)


def _imports(order: Conversion) -> Any:
    try:
        importlib.import_module("executorch.exir")
        importlib.import_module("torchao.quantization.pt2e")
        from edgekiln.compile import torch_graph
    except ImportError as error:
        raise MissingExtra(DOING, order.variant.path, "executorch") from error
    return torch_graph


def _told(report: PassReport, layers: int, samples: int, quantised: bool) -> PassReport:
    """The pass that was left to this target, with what became of it."""
    if not quantised or report.name != "quantise-xnnpack":
        return report
    note = f"XNNPACKQuantizer: {layers} layers with int8 weights, {samples} samples"
    return msgspec.structs.replace(report, note=note)


def _samples(order: Conversion) -> Samples:
    """The calibration samples, at most ``MOST_SAMPLES`` spread over all; none where none were given."""
    if order.calibration is None:
        return []
    paths = sorted(Path(order.calibration).glob("*.npz"))
    chosen = [paths[i * len(paths) // MOST_SAMPLES] for i in range(MOST_SAMPLES)]
    chosen = paths if len(paths) <= MOST_SAMPLES else chosen
    samples = []
    for path in chosen:
        with np.load(path, allow_pickle=False) as arrays:
            samples.append({name: arrays[name] for name in arrays.files})
    return samples


def _drawn(module: Any, order: Conversion) -> dict[str, NDArray[Any]]:
    """Noise for floats and zeros for the rest, by the signature that the graph itself states."""
    import onnx

    from edgekiln.model.signature import signature

    random = np.random.default_rng(0)
    specs = {s.name: s for s in signature(onnx.load(order.graph(DOING), load_external_data=False)).inputs}
    drawn: dict[str, NDArray[Any]] = {}
    for name in module.inputs:
        shape, kind = [int(n) for n in specs[name].shape], np.dtype(specs[name].dtype)
        made = random.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        drawn[name] = made.astype(kind)
    return drawn


def _exported(module: Any, samples: Samples, dynamic: bool | None) -> tuple[Any, int, dict[str, int]]:
    """The exported program, quantised unless ``dynamic`` is None, how many layers have int8 weights, and
    how many nodes compute in which precision (nothing where it is not quantised)."""
    import torch

    def tensors(sample: dict[str, NDArray[Any]]) -> tuple[torch.Tensor, ...]:
        missing = [n for n in module.inputs if n not in sample]
        if missing:
            why = f"a calibration sample lacks the input '{missing[0]}'"
            raise BadInput(DOING, ENTRY, why, "Prepare the data for this model")
        return tuple(torch.from_numpy(np.array(sample[n])) for n in module.inputs)

    given = tensors(samples[0])
    program = torch.export.export(module, given, strict=False)
    if dynamic is None:
        return program, 0, {}
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(program.module(), _quantiser(dynamic))
    with torch.no_grad():
        for sample in samples:
            prepared(*tensors(sample))
    quantised = torch.export.export(convert_pt2e(prepared), given, strict=False)
    layers = sum(_name(n).startswith("dequantize_per_channel") for n in _calls(quantised.graph))
    if not layers:
        which = "linear layer" if dynamic else "layer"
        why, cure = f"the graph has no {which} that XNNPACK's quantiser takes", "Use the fp32 recipe"
        raise ConversionFailed(DOING, ENTRY, why, cure)
    return quantised, layers, _precisions(quantised.graph, dynamic)


def _precisions(graph: Any, dynamic: bool) -> dict[str, int]:
    """A node computes in int8 where an input comes from a dequantise or, unless the ranges are found at
    run time, its result goes to a quantise."""
    counted = Counter[str]()
    for node in _calls(graph):
        if not _name(node).startswith(_QUANTISERS):
            before = any(_name(n).startswith("dequantize") for n in node.all_input_nodes)
            after = not dynamic and any(_name(n).startswith("quantize") for n in node.users)
            counted["int8" if before or after else "float32"] += 1
    return dict(sorted(counted.items()))


def _quantiser(dynamic: bool) -> Any:
    """Dynamic quantisation is for linear layers: of convolutions the runtime refuses some when it runs."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    if dynamic:
        return XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, config)
    return XNNPACKQuantizer().set_global(config)


def _lowered(program: Any) -> tuple[bytes, Placement]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import get_xnnpack_edge_compile_config
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program,
        transform_passes=[_without_expands],
        partitioner=[XnnpackPartitioner()],
        compile_config=get_xnnpack_edge_compile_config(),
    )
    placement = _placement(edge.exported_program())
    return bytes(edge.to_executorch().buffer), placement


def _without_expands(graph_module: Any) -> Any:
    """A pass that takes out what torch.matmul leaves around each product: expanding a tensor to the shape
    it has already. No delegate takes an expand, so each would end a partition."""
    from torch.fx.passes.infra.pass_base import PassResult

    changed = False
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and _name(node) == "expand_copy":
            source = node.args[0]
            if source.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(source)
                graph_module.graph.erase_node(node)
                changed = True
    graph_module.recompile()
    return PassResult(graph_module, changed)


def _placement(program: Any) -> Placement:
    """What the partitioner gave to the delegate, and what stays with the portable kernels."""
    inside, partitions, outside = 0, 0, Counter[str]()
    for node in _calls(program.graph):
        if _name(node) == "executorch_call_delegate":
            partitions += 1
            lowered = getattr(program.graph_module, node.args[0].target)
            names = [_name(n) for n in _calls(lowered.original_module.graph)]
            inside += sum(not n.startswith(_QUANTISERS) for n in names)
        else:
            outside[_name(node)] += 1
    return Placement(
        provider="XnnpackBackend",
        how="measured",
        operators=inside + outside.total(),
        taken=inside,
        partitions=partitions,
        fallback=dict(sorted(outside.items())),
        detail="by XnnpackPartitioner; quantise and dequantise inside the delegate are not counted",
    )


def _calls(graph: Any) -> list[Any]:
    """The operator nodes of a graph; picking one of several results is none."""
    return [n for n in graph.nodes if n.op == "call_function" and _name(n) != "getitem"]


def _name(node: Any) -> str:
    """``conv2d`` for aten.conv2d.default, in any dialect."""
    target = node.target
    schema = getattr(target, "_schema", None) or getattr(getattr(target, "_op", None), "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    return str(schema.name).split("::")[-1]


def _run(artifact: Artifact, folder: Path, sample: dict[str, NDArray[Any]]) -> Check:
    """Load and run the file. Raises ConversionFailed with the runtime's message."""
    with spoken() as said:
        try:
            runner = open_pte(artifact, folder, 1)
            found = runner(sample)
            runner.close()
        except (NotRunnableHere, BadInput) as error:
            why = "; ".join(["it lowers, but does not run: " + error.why, *said()])
            raise ConversionFailed(DOING, artifact.recipe, why, CURE) from error
    broken = [n for n, a in found.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    if broken:
        why = f"it runs, but its output '{broken[0]}' is not finite"
        raise ConversionFailed(DOING, artifact.recipe, why, CURE)
    return Check(name="runs here", passed=True, detail="loaded and run once, all outputs finite")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools' warnings about their own inner workings stay out of the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
