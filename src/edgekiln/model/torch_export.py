"""PyTorch to ONNX: two exporters, and the first whose graph gives what torch gives."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError, did_you_mean
from edgekiln.files import entry
from edgekiln.model.torch_source import build_module, load_weights, set_eval
from edgekiln.records import FileEntry

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

RELATIVE_TOLERANCE = 1e-3
"""Largest accepted |ONNX - torch|, as a share of the largest |torch| of the same output."""
LEGACY_OPSET = 17

Arrays = dict[str, NDArray[Any]]


class Export(NamedTuple):
    """A graph, the exporter that wrote it, and the largest absolute difference to torch."""

    proto: ModelProto
    exporter: str
    parity_max_error: float


# ---------------------------------------------------------------- what goes in and comes out


def flatten(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name or "", tensor) of everything in nested tuples, lists and dicts; None is left out."""
    import torch

    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            for name, tensor in flatten(inner):
                yield (f"{key}_{name}" if name else str(key)), tensor
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from flatten(inner)
    elif value is not None:
        raise BadInput(
            "reading the outputs of",
            "the model",
            f"it returns a {type(value).__name__}",
            "Return tensors, or tuples, lists or dicts of tensors.",
        )


def _examples(shapes: Mapping[str, tuple[int, ...]], whole: frozenset[str]) -> dict[str, torch.Tensor]:
    """Seeded inputs: normal numbers, or zeros and ones (indices, masks) for the names in ``whole``."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2, shape, generator=generator)
        if name in whole
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def named_shapes(
    module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """``shapes`` by parameter of ``forward``, in its order; the key "" is the only one. Raises BadInput."""
    doing = "finding the inputs of"
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    names = [p.name for p in parameters]
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    given = {(names[0] if k == "" and names else k): tuple(v) for k, v in shapes.items()}
    for name, shape in given.items():
        if name not in names:
            raise BadInput(
                doing, type(module).__name__, f"forward has no '{name}'", did_you_mean(name, names)
            )
        if any(d < 1 for d in shape):
            raise BadInput(doing, name, f"{shape} is no shape", "Give every axis a size of 1 or more.")
    if missing := [n for n in needed if n not in given]:
        cure = "Give --input-shape NAME=1x3x224x224 for each."
        raise BadInput(doing, type(module).__name__, f"no shape for {', '.join(missing)}", cure)
    ordered = {n: given[n] for n in names if n in given}
    if list(ordered) != names[: len(ordered)]:
        why = "an optional input is given without those before it"
        raise BadInput(doing, type(module).__name__, why, f"Give them in order: {', '.join(names)}.")
    return ordered


def example_inputs(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Seeded inputs that ``module`` accepts: floats, or int64 where floats are refused (token ids).

    Raises BadInput with what torch said where no combination works.
    """
    import torch

    names = list(shapes)
    counts = range(len(names) + 1) if len(names) <= 4 else (0, len(names))
    first: Exception | None = None
    for count in counts:
        for whole in itertools.combinations(names, count):
            inputs = _examples(shapes, frozenset(whole))
            try:
                with torch.no_grad():
                    module(*inputs.values())
            except Exception as error:  # the user's own code
                first = first or error
            else:
                return inputs
    shown = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in shapes.items())
    why = f"it fails on {shown}: {type(first).__name__}: {first}"
    raise BadInput("running the model", type(module).__name__, why, "Check --input-shape.") from first


def _other(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other seeded values of the same shapes: 0 to 1 for floats, the same numbers reversed for the rest.

    A traced branch or loop that depends on data agrees on the very input it was traced with, so an
    export has to agree on a second one too.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(t.shape, generator=generator).to(t.dtype)
        if t.is_floating_point()
        else t.flatten().flip(0).reshape(t.shape)
        for name, t in inputs.items()
    }


def _reference(run: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> Arrays:
    """Outputs of ``run`` by name, asked twice: a model that answers differently is still training."""
    import torch

    doing = "running the model"

    def once() -> Arrays:
        try:
            with torch.no_grad():
                found = list(flatten(run(*(v.clone() for v in inputs.values()))))
        except EdgekilnError:
            raise
        except Exception as error:  # the user's own code
            why = f"it raised {type(error).__name__}: {error}"
            raise BadInput(doing, "in torch", why, "It has to accept any numbers of this shape.") from error
        names = _output_names([name for name, _ in found])
        return {n: t.detach().cpu().numpy() for n, (_, t) in zip(names, found, strict=True)}

    reference, again = once(), once()
    for name, value in reference.items():
        if not np.allclose(value, again[name], rtol=1e-4, atol=1e-6, equal_nan=True):
            why = f"two equal calls differ in '{name}': it draws random numbers, or is in training mode"
            raise BadInput(doing, "in torch", why, "Take out dropout that ignores eval(), and the like.")
    return reference


def _output_names(names: list[str]) -> list[str]:
    """Dictionary keys where they are sound and distinct, else ``output`` or ``output_0``, ``output_1`` ..."""
    sound = all(re.fullmatch(r"\w+", n) for n in names) and len(set(names)) == len(names)
    if sound and names:
        return names
    return ["output"] if len(names) == 1 else [f"output_{i}" for i in range(len(names))]


# ---------------------------------------------------------------- export and comparison


def run_onnx(proto: ModelProto, inputs: Mapping[str, torch.Tensor]) -> list[NDArray[Any]]:
    """The graph's outputs in order, by ONNX Runtime on one thread. Raises ValueError for other inputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {n: t.detach().cpu().numpy() for n, t in zip(inputs, inputs.values(), strict=True) if n in names}
    if len(names) != len(feed):
        raise ValueError(f"the graph takes {', '.join(names)}, the model {', '.join(inputs)}")
    found: list[NDArray[Any]] = session.run(None, feed)
    return found


def compare(reference: Arrays, found: list[NDArray[Any]]) -> tuple[float, str]:
    """(largest absolute difference, "" or what is wrong). Outputs are compared in order.

    A float output may differ by RELATIVE_TOLERANCE of its largest value (at least 1e-5); of a whole
    number output one value in a hundred (an arg-max between equals).
    """
    if len(found) != len(reference):
        return float("inf"), f"it has {len(found)} outputs instead of {len(reference)}"
    worst, wrong = 0.0, ""
    for (name, want), got in zip(reference.items(), found, strict=True):
        if want.shape != got.shape:
            return float("inf"), f"'{name}' is {got.shape} instead of {want.shape}"
        if want.size == 0:
            continue
        a, b = want.astype(np.float64), got.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
        error = float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max())
        worst = max(worst, error)
        finite = np.abs(a[np.isfinite(a)])
        bound = max(1e-5, RELATIVE_TOLERANCE * float(finite.max(initial=0.0)))
        bad = error > bound if want.dtype.kind == "f" else float(np.mean(~same)) > 0.01
        if bad and not wrong:
            wrong = f"'{name}' differs from torch by {error:.3g}"
    return worst, wrong


def _quiet(export: Callable[[], ModelProto]) -> ModelProto:
    """Exporters talk to stdout and warn a great deal; what matters comes as an exception."""
    quiet = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export()
    finally:
        logging.disable(before)


Axes = dict[str, dict[int, str]]
"""Names of the axes that stay symbolic, by input and position."""


def _open_axes(shape: Mapping[str, tuple[int, ...]], others: Sequence[Mapping[str, tuple[int, ...]]]) -> Axes:
    """Every axis in which the shapes differ."""
    found: Axes = {}
    for other in others:
        for name, sides in shape.items():
            if len(sides) != len(other[name]):
                why = "its shapes have different numbers of axes"
                raise BadInput("exporting to ONNX", name, why, "Give shapes that differ in size alone.")
            for axis, (a, b) in enumerate(zip(sides, other[name], strict=True)):
                if a != b:
                    found.setdefault(name, {})[axis] = f"{name}_{axis}"
    return found


def _dynamo(
    model: Any, inputs: Mapping[str, torch.Tensor] | None, outputs: list[str], axes: Axes | None = None
) -> ModelProto:
    import torch

    args = () if inputs is None else tuple(inputs.values())
    names = None if inputs is None else list(inputs)
    # DYNAMIC, unlike AUTO, is an error where the model fixes the axis after all.
    dynamic = [dict.fromkeys((axes or {}).get(n, {}), torch.export.Dim.DYNAMIC) for n in names or ()]
    program = torch.onnx.export(
        model,
        args,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=outputs,
        external_data=False,
        dynamic_shapes=tuple(dynamic) if axes else None,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    proto: ModelProto = program.model_proto
    return proto


def _legacy(
    model: Any, inputs: Mapping[str, torch.Tensor], outputs: list[str], axes: Axes | None = None
) -> ModelProto:
    import onnx
    import torch

    out = io.BytesIO()
    torch.onnx.export(
        model,
        tuple(inputs.values()),
        out,  # type: ignore[arg-type]  # a file object is documented for this exporter
        dynamo=False,
        input_names=list(inputs),
        output_names=outputs,
        opset_version=LEGACY_OPSET,
        dynamic_axes=axes or None,
    )
    return onnx.load_from_string(out.getvalue())


class Case(NamedTuple):
    """Inputs by name and what torch gives for them."""

    inputs: dict[str, torch.Tensor]
    outputs: Arrays


def _cases(run: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> list[Case]:
    """Two cases of other numbers. Raises BadInput where both give NaN, as broken weights do."""
    cases = [Case(given, _reference(run, given)) for given in (inputs, _other(inputs))]
    for name, value in cases[0].outputs.items():
        both = (value, cases[1].outputs[name])
        if all(v.dtype.kind == "f" and np.isnan(v).any() for v in both):
            cure = "Check that the weights are whole and of this architecture."
            raise BadInput("running the model", "in torch", f"output '{name}' is NaN on random input", cure)
    return cases


def _case_at(
    run: Callable[..., Any], like: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Case:
    """A case of other ``shapes``, in the types of ``like``. Raises BadInput where the model refuses them."""
    whole = frozenset(n for n, t in like.items() if not t.is_floating_point())
    inputs = _examples(shapes, whole)
    try:
        return Case(inputs, _reference(run, inputs))
    except BadInput as error:
        shown = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in shapes.items())
        cure = "Ask only for sizes that the model takes: one that flattens its features has a single one."
        raise BadInput("running the model", f"at {shown}", error.why, cure) from error


def _agree(proto: ModelProto, cases: list[Case]) -> tuple[float, str]:
    """(largest absolute difference over all cases, "" or the first thing that is wrong)."""
    found = [compare(case.outputs, run_onnx(proto, case.inputs)) for case in cases]
    return max(error for error, _ in found), next((wrong for _, wrong in found if wrong), "")


def _first_good(ways: dict[str, Callable[[], ModelProto]], cases: list[Case], name: str) -> Export:
    """The first export that gives what torch gives. Raises ConversionFailed with what each one did."""
    refused: list[str] = []
    for exporter, export in ways.items():
        try:
            proto = _quiet(export)
            error, wrong = _agree(proto, cases)
        except Exception as failure:  # exporters raise nearly anything
            told = str(failure).strip().splitlines() or [type(failure).__name__]
            refused.append(f"{exporter}: {told[0][:300]}")
            continue
        if not wrong:
            return Export(proto, exporter, error)
        refused.append(f"{exporter}: {wrong}")
    cure = "Rewrite what the message names with plain tensor operations, or export to ONNX yourself."
    raise ConversionFailed("exporting to ONNX", name, "; ".join(refused), cure)


def export_factory(
    source: str,
    weights: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    search_path: tuple[Path, ...],
    others: Sequence[Mapping[str, tuple[int, ...]]] = (),
) -> tuple[Export, tuple[FileEntry, ...]]:
    """Build, load, set to evaluation, export, compare. Returns the export and the weights file's entry.

    ``others`` are further shapes that the one graph has to take: the axes in which they differ stay
    symbolic, and the graph is compared with torch at each of them too.
    """
    import torch

    module = build_module(source, search_path)
    if weights is not None:
        load_weights(module, weights)
    set_eval(module)
    named = named_shapes(module, shapes)
    further = [named_shapes(module, other) for other in others]
    axes = _open_axes(named, further)
    inputs = example_inputs(module, named)
    set_eval(module)  # the user's forward may have switched modes
    cases = [*_cases(module, inputs), *(_case_at(module, inputs, shape) for shape in further)]
    names = list(cases[0].outputs)
    with torch.no_grad():
        # In this order: a dynamo export after a legacy export of the same object can fail.
        export = _first_good(
            {
                f"torch {torch.__version__} dynamo": lambda: _dynamo(module, inputs, names, axes),
                f"torch {torch.__version__} torchscript": lambda: _legacy(module, inputs, names, axes),
            },
            cases,
            source,
        )
    files = () if weights is None else (entry(weights.parent, weights),)
    return export, files


def export_program(path: Path) -> tuple[Export, tuple[FileEntry, ...]]:
    """Open a ``.pt2`` file safely, export it and compare it. Float inputs are drawn anew, from a seed."""
    import torch

    from edgekiln.model.exported_program import open_program

    program = open_program(path)
    held = list(flatten(program.example_inputs or ()))
    names = list(program.graph_signature.user_inputs)
    if len(held) != len(names):
        cure = "Save it with plain tensors as inputs."
        raise BadInput("reading the exported program", path, "its sample inputs do not fit its graph", cure)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        str(n): torch.randn(t.shape, generator=generator).to(t.dtype) if t.is_floating_point() else t
        for n, (_, t) in zip(names, held, strict=True)
    }
    args, kwargs = program.example_inputs or ((), {})
    if kwargs:
        cure = "Export it with positional inputs only."
        raise BadInput("reading the exported program", path, "it takes keyword inputs", cure)
    if len(args) != len(held):
        cure = "Export it with one tensor per input."
        raise BadInput("reading the exported program", path, "it takes nested inputs", cure)
    module = program.module()
    cases = _cases(module, inputs)
    exporter = f"torch {torch.__version__} dynamo"
    ways = {exporter: lambda: _dynamo(program, None, list(cases[0].outputs))}
    return _first_good(ways, cases, path.name), (entry(path.parent, path),)
