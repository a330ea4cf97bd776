"""The graph room: what is done to a float graph before any recipe, pass by pass.

Each pass is a function from graph to graph. It is kept when it changed something for the better, its
result is a valid graph, and ONNX Runtime gives the same outputs as before it; otherwise it is undone,
and its report says why. onnxslim and onnxsim both try the same work; the better result is kept.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.simplify import TOOLS, simplified, simplifying
from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.model.onnx_file import all_nodes
from edgekiln.records import Outcome, PassReport

MIN_OPSET = 17  # per-channel DequantizeLinear needs 13, LayerNormalization 17
AT_ONCE_BYTES = 200_000_000
PARITY = 1e-3  # largest error that a pass may bring, as a share of the output's largest magnitude


class Known(NamedTuple):
    """A sample, and what the untouched graph gives for it."""

    probe: Arrays
    expected: dict[str, NDArray[Any]]


def optimise(
    source: Path,
    shapes: Mapping[str, tuple[int | str, ...]],
    probe: Arrays,
    into: Path,
    others: Sequence[Arrays] = (),
) -> tuple[PassReport, ...]:
    """Run every pass over the ONNX file ``source`` and write the result to ``into``.

    ``shapes`` fixes the inputs' shapes; an axis that it names by a string stays symbolic, under that name.
    ``probe`` is one real sample, on which each pass is checked; ``others`` are samples of other sizes that
    the symbolic axes have to take, so that a pass which bakes one size in is undone. Raises BadInput where
    the shapes do not fit the graph, the graph refuses a size, or its outputs hold NaN.
    """
    import onnx

    model = onnx.load(source)
    reports = []
    model, report = _static_shapes(model, shapes)
    reports.append(report)
    expected = _run(model, probe, source.name)
    _check_finite(expected, source.name)
    known = [Known(probe, expected), *(_at_size(model, other, source.name) for other in others)]
    model, report = _checked("opset-upgrade", _upgrade_opset, model, known)
    reports.append(report)
    model, both = _better(model, _simplified(model, known))
    reports += both
    reports.append(_runtime_fusion(model))
    model = onnx.shape_inference.infer_shapes(model)
    _write(model, into)
    return tuple(reports)


# ---------------------------------------------------------------- passes


def _static_shapes(model: Any, shapes: Mapping[str, tuple[int | str, ...]]) -> tuple[Any, PassReport]:
    import onnx

    started, before = time.perf_counter(), _nodes(model)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    held = {i.name for i in fixed.graph.initializer}
    notes = []
    for info in fixed.graph.input:
        if info.name in held or info.name not in shapes:
            continue
        shape = shapes[info.name]
        axes = info.type.tensor_type.shape.dim
        # Paddle's exports say -1 where others leave the axis open or name it.
        said = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in axes]
        wrong = len(axes) != len(shape) or any(
            d.dim_value > 0 and d.dim_value != n for d, n in zip(axes, shape, strict=False)
        )
        if wrong:
            raise BadInput(
                "fixing the shape of input",
                info.name,
                f"{_x(shape)} does not fit the model's {_x(said)}",
                "Give --input-shape with numbers that fit, or leave it out",
            )
        if said != list(shape):
            notes.append(f"{info.name}: {_x(said)} → {_x(shape)}")
        for axis, n in zip(axes, shape, strict=True):
            if isinstance(n, str):
                axis.dim_param = n
            else:
                axis.dim_value = n
    if notes:
        # Recorded shapes of inner tensors may still name the old axes.
        del fixed.graph.value_info[:]
    report = PassReport(
        name="static-shapes",
        outcome="kept" if notes else "unneeded",
        seconds=time.perf_counter() - started,
        nodes_before=before,
        nodes_after=_nodes(fixed),
        note="; ".join(notes) or "every input shape was static already",
    )
    return fixed, report


def _upgrade_opset(model: Any) -> tuple[Any, str]:
    import onnx

    version = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    if version >= MIN_OPSET:
        return model, f"opset {version} is new enough"
    return onnx.version_converter.convert_version(model, MIN_OPSET), f"opset {version} → {MIN_OPSET}"


def _runtime_fusion(model: Any) -> PassReport:
    """What ONNX Runtime would fuse when it loads the graph; the portable graph stays as it is."""
    import tempfile

    import onnx
    import onnxruntime as ort

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = f"{scratch}/fused.onnx"
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        before = after = ops(model)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            after = ops(onnx.load(options.optimized_model_filepath, load_external_data=False))
            names = sorted(set(after) - set(before))
            made = ", ".join(f"{after[n]} {n}" for n in names) or "nothing new"
        except Exception as problem:  # a look ahead for the report, which nothing rests on
            made = f"not to be seen here ({str(problem).strip()[:200]})"
    return PassReport(
        name="runtime-fusion",
        outcome="runtime",
        seconds=time.perf_counter() - started,
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        ops_before=before,
        ops_after=after,
        note=f"left to the runtime, which fuses activations when it loads the graph: {made}",
    )


# ---------------------------------------------------------------- judging a pass


def _checked(
    name: str,
    function: Callable[[Any], tuple[Any, str]],
    model: Any,
    known: Sequence[Known],
) -> tuple[Any, PassReport]:
    """Run one pass; give back its graph, or ``model`` again with the reason in the report.

    The error that is reported is the largest over all of ``known``.
    """
    import onnx

    started = time.perf_counter()
    before = ops(model)
    error = None
    try:
        changed, note = function(model)
        onnx.checker.check_model(changed)
        found = [_run(changed, one.probe, name) for one in known]
        error = max(_max_error(one.expected, f) for one, f in zip(known, found, strict=True))
        moves = [_moved(one.expected, f) for one, f in zip(known, found, strict=True)]
        moved = next((m for m in moves if m is not None), None)
        kept = moved is None
        if moved is not None:
            note += f"; undone: output {moved} moved by {error:.3g}"
    except Exception as problem:
        changed, kept = model, False
        note = f"undone: {type(problem).__name__}: {str(problem).strip()[:300]}"
    after = ops(changed)
    idle = kept and changed.SerializeToString() == model.SerializeToString()
    report = PassReport(
        name=name,
        outcome="unneeded" if idle else "kept" if kept else "undone",
        seconds=time.perf_counter() - started,
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        ops_before=before,
        ops_after=after,
        parity_max_error=error,
        note=f"{note}; {_told(before, after)}" if kept else note,
    )
    return (changed if kept else model), report


def _simplified(model: Any, known: Sequence[Known]) -> list[tuple[Any, PassReport]]:
    """The graph of each tool. Both work at once, because half of either's time is its start; not on a large
    graph, which takes several times its size in memory."""
    if model.ByteSize() <= AT_ONCE_BYTES:
        # A disk that is full ends neither: each says so below, where it is a pass that was not kept.
        with contextlib.suppress(OSError), contextlib.ExitStack() as running:
            made = [(tool, running.enter_context(simplifying(tool, model))) for tool in TOOLS]
            return [_checked(f"simplify-{t}", _waiting(wait), model, known) for t, wait in made]
    return [_checked(f"simplify-{t}", functools.partial(simplified, t), model, known) for t in TOOLS]


def _waiting(wait: Callable[[], tuple[Any, str]]) -> Callable[[Any], tuple[Any, str]]:
    return lambda _model: wait()


def _better(model: Any, tried: list[tuple[Any, PassReport]]) -> tuple[Any, list[PassReport]]:
    """The tried graph with the fewest nodes, then the least bytes; ``model`` where none is smaller."""
    sound = [i for i, (_, report) in enumerate(tried) if report.kept]
    sizes = {i: (tried[i][1].nodes_after, tried[i][0].ByteSize()) for i in sound}
    before = (_nodes(model), model.ByteSize())
    best = min(sound, key=lambda i: sizes[i], default=None)
    if best is not None and sizes[best] >= before:
        best = None
    reports = []
    for i, (_, report) in enumerate(tried):
        if not report.kept or i == best:
            reports.append(report)
            continue
        why = "the graph was no smaller" if best is None else "the other's graph is smaller"
        if best is not None and sizes[i] == sizes[best]:
            why = "the other's graph is equal"
        reports.append(_amended(report, "undone", f"{report.note}; undone: {why}"))
    return (model if best is None else tried[best][0]), reports


def _amended(report: PassReport, outcome: Outcome, note: str) -> PassReport:
    import msgspec

    return msgspec.structs.replace(report, outcome=outcome, note=note)


def _told(before: dict[str, int], after: dict[str, int]) -> str:
    """The named works of a simplifier, read from the operators that are gone."""
    gone = {op: before[op] - after.get(op, 0) for op in before if before[op] > after.get(op, 0)}
    told = []
    if gone.get("BatchNormalization"):
        told.append(f"{gone.pop('BatchNormalization')} batch normalisations folded into their convolutions")
    if gone.get("Constant"):
        told.append(f"{gone.pop('Constant')} constants made initialisers")
    rest = {op: n for op, n in gone.items() if n > 0}
    if rest:
        told.append("folded or dead: " + ", ".join(f"{n} {op}" for op, n in sorted(rest.items())))
    return "; ".join(told) or "nothing to do"


def ops(model: Any) -> dict[str, int]:
    """Operators of the graph and of its subgraphs by type, by name."""
    return dict(sorted(Counter(n.op_type for n in all_nodes(model)).items()))


def _nodes(model: Any) -> int:
    """Subgraphs included: resolving an If shows more nodes at the top and leaves fewer in all."""
    return sum(1 for _ in all_nodes(model))


def _run(model: Any, probe: Arrays, name: str) -> dict[str, NDArray[Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(probe)), strict=True))
    except Exception as error:
        raise BadInput(
            "running the model",
            name,
            str(error).strip().splitlines()[-1][:300],
            "Check that the shapes and the data fit the model (edgekiln inspect shows its signature)",
        ) from error


def _at_size(model: Any, probe: Arrays, name: str) -> Known:
    """``probe`` of another size with its outputs. Raises BadInput where the graph refuses that size."""
    size = ", ".join(f"{n} {_x(np.shape(v))}" for n, v in probe.items())
    try:
        expected = _run(model, probe, name)
        _check_finite(expected, name)
    except BadInput as error:
        cure = "Ask only for sizes that the model takes: one that flattens its features has a single one"
        raise BadInput("running the model at", size, error.why, cure) from error
    return Known(probe, expected)


def _check_finite(outputs: dict[str, NDArray[Any]], name: str) -> None:
    for output, value in outputs.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise BadInput(
                "running the model",
                name,
                f"output '{output}' holds NaN or infinity on a real sample, before any change",
                "Mend the model or its preprocessing: no artifact made from it can be judged",
            )


def _max_error(expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]]) -> float:
    """Largest absolute difference over all outputs; infinite where names, shapes or types differ."""
    return max((_error(value, found.get(name)) for name, value in expected.items()), default=0.0)


def _moved(expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]]) -> str | None:
    """The first output beyond ``PARITY`` of its own magnitude: scores stand beside boxes in pixels."""
    for name, value in expected.items():
        largest = float(np.abs(value).max()) if value.size else 0.0
        # Written so that NaN has moved too.
        if not _error(value, found.get(name)) <= PARITY * max(largest, 1e-3):
            return f"'{name}'"
    return None


def _error(value: NDArray[Any], other: NDArray[Any] | None) -> float:
    if other is None or other.shape != value.shape or other.dtype != value.dtype:
        return float("inf")
    if not value.size:
        return 0.0
    worst = float(np.abs(value.astype(np.float64) - other.astype(np.float64)).max())
    return float("inf") if np.isnan(worst) else worst


def _write(model: Any, into: Path) -> None:
    from edgekiln.files import write_bytes

    taken = {n.name for n in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:  # rules that keep single nodes in float, and reports, need a name
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    _strip(model)
    model.producer_name, model.producer_version = "edgekiln", ""
    write_bytes(into, model.SerializeToString(deterministic=True))


def _strip(model: Any) -> None:
    """Remove what exporters note beside the graph: stack traces hold paths of the machine they ran on."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        parts = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
        for part in parts:
            part.doc_string = ""
            del part.metadata_props[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _x(shape: Any) -> str:
    return "x".join(str(n) for n in shape)
