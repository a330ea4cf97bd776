"""Golden outputs: what an artifact gave here, so that any machine can tell whether it still does.

The tolerance follows the artifact's coarsest arithmetic, as a share of each output's range (largest less
smallest value over the recorded samples), because machines of one arithmetic differ by it:

    fp32  0.1 %   sums in another order; about 4e-6 absolute in the trial that int8 speaks of
    fp16  1 %     11 bits of mantissa through tens of layers
    bf16  5 %     8 bits of mantissa
    int8  5 %     about 13 steps of an 8-bit output: a sum that rounds the other way moves one step in each
                  layer; in a trial EfficientNet-Lite0's INT8 outputs differed by up to 0.118 between
                  x86 and emulated arm64 (not reproduced by this repository)
    int4  5 %     weights only; the arithmetic is int8's or a float's

An output that a quantised node makes may pass the size of its step, and gets at least two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner
from edgekiln.errors import BadInput
from edgekiln.files import inside, write_bytes
from edgekiln.prove.arrays import npz_bytes, read_npz
from edgekiln.records import Artifact, Golden

SHARE_OF_RANGE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2, "int4": 5e-2}
INPUTS = "golden-inputs.npz"
OUTPUTS = "golden-outputs.npz"
_SPELLINGS = {
    "fp32": ("fp32", "float32", "float64", "f32"),
    "fp16": ("fp16", "float16", "f16"),
    "bf16": ("bf16", "bfloat16"),
    "int8": ("int8", "uint8", "u8", "s8", "i8", "int16", "uint16", "fp8", "float8e4m3fn"),
    "int4": ("int4", "uint4", "u4", "i4", "nf4"),
}


def arithmetic_of(precisions: Mapping[str, int]) -> str:
    """The coarsest arithmetic that any node of the artifact computes in.

    A name that is not known counts as int8: a wrong guess must not fail a sound machine.
    """
    by_name = {spelling: kind for kind, spellings in _SPELLINGS.items() for spelling in spellings}
    kinds = {by_name.get(name.lower(), "int8") for name, nodes in precisions.items() if nodes > 0}
    return max(kinds, key=list(SHARE_OF_RANGE).index, default="fp32")


def tolerances(
    outputs: Sequence[Arrays], arithmetic: str, steps: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Absolute tolerance by output name. ``steps`` gives the quantisation step of outputs that have one."""
    found = {}
    for name in outputs[0]:
        values = np.concatenate([np.asarray(o[name], np.float64).ravel() for o in outputs])
        extent = float(values.max() - values.min()) if values.size else 0.0
        if extent == 0:  # a constant output: its size is the only scale there is
            extent = float(np.abs(values).max()) if values.size and values.any() else 1.0
        found[name] = max(SHARE_OF_RANGE[arithmetic] * extent, 2 * (steps or {}).get(name, 0.0))
    return found


def record(
    runner: Runner,
    artifact: Artifact,
    inputs: Sequence[Arrays],
    into: Path,
    steps: Mapping[str, float] | None = None,
) -> Golden:
    """Run ``inputs`` and write both sides into the folder ``into``; the same arrays are the same bytes.

    Raises BadInput without inputs, or where an output is not finite: it could never be compared.
    """
    doing, subject = "recording golden outputs of", artifact.id
    if not inputs:
        raise BadInput(doing, subject, "there is no input", "Give at least one sample")
    outputs = [{name: np.asarray(v) for name, v in runner(sample).items()} for sample in inputs]
    for output in outputs:
        for name, values in output.items():
            if values.dtype.kind not in "fiub":
                cure = "End the graph before the operator that makes it"
                raise BadInput(doing, subject, f"output '{name}' is not numeric", cure)
            if not np.isfinite(np.asarray(values, np.float64)).all():
                cure = "Use another recipe; this artifact must not ship"
                raise BadInput(doing, subject, f"output '{name}' holds NaN or infinite values", cure)
    atol = tolerances(outputs, arithmetic_of(artifact.precisions), steps)
    write_bytes(into / INPUTS, npz_bytes(_numbered(inputs)))
    write_bytes(into / OUTPUTS, npz_bytes(_numbered(outputs)))
    return Golden(inputs=INPUTS, outputs=OUTPUTS, engine=artifact.proof_engine, atol=atol)


def check(golden: Golden, folder: Path, runner: Runner) -> list[str]:
    """Run the recorded inputs again; one sentence for each output that is not as recorded, [] if all are.

    Raises BadInput where the recorded files can't be read or name nothing to compare.
    """
    doing = "checking golden outputs in"
    inputs = _samples(read_npz(inside(folder, golden.inputs, doing)))
    expected = _samples(read_npz(inside(folder, golden.outputs, doing)))
    if not inputs or set(inputs) != set(expected):
        why = "inputs and outputs do not name the same samples"
        raise BadInput(doing, golden.outputs, why, "Fetch the bundle again; it is damaged")
    problems = []
    for number in sorted(inputs):
        found = runner(inputs[number])
        for name in sorted({*expected[number], *golden.atol}):
            problem = _problem(expected[number].get(name), found.get(name), golden.atol.get(name))
            if problem:
                problems.append(f"sample {number}, output '{name}': {problem}")
    return problems


def _problem(expected: NDArray[Any] | None, found: NDArray[Any] | None, atol: float | None) -> str | None:
    if expected is None or atol is None:
        return "the bundle records no " + ("values" if expected is None else "tolerance") + " for it"
    if found is None:
        return "the engine does not give it"
    if np.shape(found) != expected.shape:
        return f"its shape is {np.shape(found)}, recorded was {expected.shape}"
    values, wanted = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not np.isfinite(values).all():
        return "it holds NaN or infinite values"
    worst = float(np.abs(values - wanted).max()) if values.size else 0.0
    # Written so that a NaN tolerance or recording fails too.
    return None if worst <= atol else f"it differs by {worst:.3g}, more than the tolerance {atol:.3g}"


def _numbered(samples: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {f"{i}/{name}": np.asarray(v) for i, sample in enumerate(samples) for name, v in sample.items()}


def _samples(arrays: Mapping[str, NDArray[Any]]) -> dict[int, dict[str, NDArray[Any]]]:
    found: dict[int, dict[str, NDArray[Any]]] = {}
    for key, values in arrays.items():
        number, _, name = key.partition("/")
        if not number.isdecimal():
            why = f"unknown entry '{key}'"
            raise BadInput("checking golden outputs in", key, why, "Fetch the bundle again; it is damaged")
        found.setdefault(int(number), {})[name] = values
    return found
