"""Core ML packages of several functions that share their weights, and packages that keep a state.

Neither can be said in ONNX. ``merge_functions`` joins packages that exist; ``convert_stateful`` starts from a
PyTorch module whose buffers change as it runs, like the key-value cache of a language model. Both need
iOS 18 (macOS 15).
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekiln import __version__, files
from edgekiln.compile.targets.coreml_io import NAME, in_package
from edgekiln.compile.targets.coreml_package import ENTRY, SPEC, quiet, read_spec, write
from edgekiln.errors import BadInput, ConversionFailed, MissingExtra, did_you_mean
from edgekiln.records import Artifact, Check, Scalar, TensorSpec

_MERGING, _KEEPING = "merging Core ML functions", "converting a stateful module for Core ML"
TARGET = "iOS18"


def merge_functions(
    parts: Mapping[str, tuple[Artifact, Path]], into: Path, default: str | None = None
) -> Artifact:
    """One ``model.mlpackage`` in ``into`` with a function for each part, equal weights held once.

    ``parts`` are Core ML artifacts of one function each with the folders they lie in, by the name that the
    function gets; ``default`` runs where none is named (else the first). ``function`` gives the artifact
    for another one. The check "shared weights" says the size against the sum of the parts: what is equal
    bit by bit is shared, so export the parts from one set of weights and give them one recipe. Raises
    MissingExtra; BadInput for a name or folder that can't be used; ConversionFailed with coremltools' words.
    """
    _require(_MERGING, into)
    first = default or next(iter(parts), "")
    if first not in parts:
        cure = did_you_mean(first, parts) if parts else "Give at least one part"
        raise BadInput(_MERGING, first, "no part has this name", cure)
    packages = {name: files.inside(at, part.entry, _MERGING) for name, (part, at) in parts.items()}
    for name, package in packages.items():
        _require_function(name, package)
    from coremltools.models import MLModel, utils

    try:
        with quiet(), tempfile.TemporaryDirectory() as scratch:
            plan = utils.MultiFunctionDescriptor()
            for name, package in packages.items():
                plan.add_function(str(package), src_function_name="main", target_function_name=name)
            plan.default_function_name = first
            merged = Path(scratch) / ENTRY
            utils.save_multifunction(plan, str(merged))
            model = MLModel(str(merged), skip_model_load=True)
            write(model, into / ENTRY, _about(f"functions {', '.join(parts)}"), {}, {})
    except Exception as error:  # coremltools raises whatever its passes meet
        why, cure = f"{type(error).__name__}: {error}", "Merge packages that coremltools made"
        raise ConversionFailed(_MERGING, into.name, why, cure) from error
    each = {name: {**part.options, "function": name} for name, (part, _) in parts.items()}
    units = "CPU_AND_GPU" if any(o.get("compute_precision") == "fp32" for o in each.values()) else "ALL"
    kept = {k: v for k, v in each[first].items() if k not in {"minimum_deployment_target", "compute_units"}}
    own = json.dumps(each, sort_keys=True)
    made = _artifact("functions", into, {**kept, "compute_units": units, "functions": own})
    apart = sum(part.size_bytes for part, _ in parts.values())
    detail = f"{len(parts)} functions in {made.size_bytes} bytes; {apart} bytes in a package each"
    shared = Check(name="shared weights", passed=made.size_bytes < apart, detail=detail)
    return msgspec.structs.replace(made, checks=(shared,))


def function(merged: Artifact, name: str) -> Artifact:
    """The artifact that ``merge_functions`` made, for an engine that is to run another of its functions.

    Raises BadInput where it has no such function.
    """
    each = json.loads(str(merged.options.get("functions", "{}")))
    if name not in each:
        raise BadInput("choosing a Core ML function", name, "it is not there", did_you_mean(name, each))
    own = {"functions": merged.options["functions"], **each[name]}
    own |= {k: merged.options[k] for k in ("minimum_deployment_target", "compute_units")}
    return msgspec.structs.replace(merged, options=own)


def convert_stateful(
    module: Any, inputs: Sequence[TensorSpec], outputs: Sequence[str], into: Path
) -> Artifact:
    """One ``model.mlpackage`` in ``into`` of a ``torch.nn.Module`` whose float buffers change as it runs.

    ``inputs`` give name, dtype and fixed shape of each argument of ``forward``, in order; ``outputs`` name
    what it returns. Every buffer that ``forward`` writes becomes a state of that name, in float16 (Core ML
    has no other) and zero at the start; write it in place with an index (``self.cache[:, position] =
    value``). Arithmetic is float16. Raises MissingExtra; BadInput where no buffer changes or one does not
    start at zero; ConversionFailed with the words of torch.export or coremltools.
    """
    _require(_KEEPING, into)
    import coremltools
    import torch

    name = type(module).__name__
    zeros = tuple(torch.zeros([int(n) for n in i.shape], dtype=getattr(torch, i.dtype)) for i in inputs)
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(module.eval(), zeros).run_decompositions({})
            states = _states(exported, module)
            model = coremltools.convert(
                exported,
                convert_to="mlprogram",
                inputs=[_tensor(i) for i in inputs],
                outputs=[coremltools.TensorType(name=output) for output in outputs],
                states=states,
                minimum_deployment_target=getattr(coremltools.target, TARGET),
                compute_units=coremltools.ComputeUnit.CPU_ONLY,
                skip_model_load=True,
            )
            write(model, into / ENTRY, _about(f"{name} with states"), {}, {})
    except BadInput:
        raise
    except Exception as error:  # torch.export and coremltools raise whatever they meet
        why = " ".join(f"{type(error).__name__}: {error}".split())[:600]
        cure = "Change the module at that operator; write states in place with an index"
        raise ConversionFailed(_KEEPING, name, why, cure) from error
    return _artifact("stateful", into, {})


def _states(exported: Any, module: Any) -> list[Any]:
    import coremltools
    import numpy as np

    held = dict(module.named_buffers())
    changed = sorted(set(exported.graph_signature.buffers_to_mutate.values()))
    if not changed:
        why, cure = "forward changes no buffer", "Use the target coreml for a model without states"
        raise BadInput(_KEEPING, type(module).__name__, why, cure)
    for name in changed:
        if not held[name].is_floating_point() or bool(held[name].count_nonzero()):
            why, cure = "a state starts as zeros of floating point", "Register such a buffer"
            raise BadInput(_KEEPING, name, why, cure)
    return [
        coremltools.StateType(
            coremltools.TensorType(shape=tuple(held[name].shape), dtype=np.float16), name=name
        )
        for name in changed
    ]


def _tensor(one: TensorSpec) -> Any:
    import coremltools

    return coremltools.TensorType(name=one.name, shape=one.shape, dtype=in_package(one.dtype))


def _artifact(what: str, into: Path, more: dict[str, Scalar]) -> Artifact:
    settings: dict[str, Scalar] = {"minimum_deployment_target": TARGET, "compute_units": "ALL", **more}
    return Artifact(
        id=f"any.coreml.{what}",
        target="coreml",
        recipe="fp16",
        engine="coreml",
        proof_engine="coreml",
        entry=ENTRY,
        files=files.entries(into),
        options=settings,
        tools={"coremltools": importlib.metadata.version("coremltools")},
        precisions={},
    )


def _about(text: str) -> dict[str, str]:
    return {"author": f"converted by edgekiln {__version__}", "shortDescription": text}


def _require(doing: str, to: Path) -> None:
    try:
        with quiet():
            import coremltools
            import torch
    except ImportError as error:
        raise MissingExtra(doing, to.name, "coreml") from error
    del coremltools, torch


def _require_function(name: str, package: Path) -> None:
    """Raise BadInput for a name that an ML Program forbids, or a folder that is not of one function."""
    if not NAME.fullmatch(name):
        why, cure = "an ML Program allows letters, digits and underscores", "Choose such a name"
        raise BadInput(_MERGING, name, why, cure)
    if not (package / SPEC).is_file():
        raise BadInput(_MERGING, package.name, "it is no .mlpackage", "Give the folder of a package")
    with quiet():
        found = [f.name for f in read_spec(package).description.functions]
    if found:
        why, cure = f"it has functions already: {', '.join(found)}", "Give packages of one function"
        raise BadInput(_MERGING, package.name, why, cure)
