"""A translated module held against ONNX Runtime on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekiln.compile.torch_graph.loading import Translated
from edgekiln.errors import ConversionFailed

DOING = "checking the translation to PyTorch"
CURE = "This is a fault of edgekiln: please report it with the model; other targets are not affected"
PEAK = 1e-3
POWER = 1e-4
FLIPS = 1e-3
"""Limits: the largest error against the largest value, the root mean square of the error against that of
the values (1e-4 is 80 dB), and the share of integers that may differ where two values were nearly equal."""


@dataclass(frozen=True)
class Parity:
    """The worst over all outputs and samples; ``sqnr_db`` is infinite where nothing differs."""

    max_error: float
    sqnr_db: float
    samples: int


def check_against(
    path: Path, module: Translated, samples: Sequence[Mapping[str, NDArray[Any]]] | None = None
) -> Parity:
    """Run ``module`` and ONNX Runtime on ``samples`` (or two drawn ones) and compare all outputs.

    Drawn floats are standard normal, drawn integers 0 or 1. Raises ConversionFailed where an output
    differs in shape or by more than the limits above, or where either of them can't run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        chosen = samples or [_drawn(session.get_inputs(), seed) for seed in range(2)]
        worst = Parity(0.0, float("inf"), len(chosen))
        for sample in chosen:
            expected = session.run(None, dict(sample))
            with torch.no_grad():
                found = module(*(torch.from_numpy(np.array(sample[n])) for n in module.inputs))
            found = found if isinstance(found, tuple) else (found,)
            for name, reference, tensor in zip(module.outputs, expected, found, strict=True):
                worst = _worse(worst, _compare(name, np.asarray(reference), tensor.numpy()))
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise ConversionFailed(DOING, path.name, str(error).strip().splitlines()[0], CURE) from error
    return worst


def _drawn(inputs: Sequence[Any], seed: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    drawn: dict[str, NDArray[Any]] = {}
    for one in inputs:
        if one.type in kinds:
            drawn[one.name] = np.asarray(random.standard_normal(one.shape), kinds[one.type])
        else:
            kind = np.bool_ if one.type == "tensor(bool)" else np.dtype(one.type[7:-1])
            drawn[one.name] = np.asarray(random.integers(0, 2, one.shape)).astype(kind)
    return drawn


def _worse(one: Parity, other: Parity) -> Parity:
    return Parity(max(one.max_error, other.max_error), min(one.sqnr_db, other.sqnr_db), one.samples)


def _compare(name: str, reference: NDArray[Any], found: NDArray[Any]) -> Parity:
    """Raises ConversionFailed where ``found`` is not what ``reference`` is."""
    if reference.shape != found.shape or reference.dtype != found.dtype:
        here, there = (f"{a.dtype} {list(a.shape)}" for a in (found, reference))
        why = f"it is {here} where ONNX Runtime gives {there}"
        raise ConversionFailed(DOING, f"output '{name}'", why, CURE)
    if reference.dtype.kind != "f":
        share = float((reference != found).mean()) if reference.size else 0.0
        if share > FLIPS:
            raise ConversionFailed(DOING, f"output '{name}'", f"{share:.2%} of its elements differ", CURE)
        return Parity(0.0, float("inf"), 0)
    a, b = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        raise ConversionFailed(DOING, f"output '{name}'", "infinite or missing values differ", CURE)
    a, b = a[finite], b[finite]
    error = np.abs(a - b)
    worst, peak = float(error.max(initial=0.0)), float(np.abs(a).max(initial=0.0))
    noise, power = float((error**2).sum()), float((a**2).sum())
    if worst > max(PEAK * peak, 1e-6) or (noise > POWER**2 * power and worst > 1e-6):
        why = f"it differs from ONNX Runtime by {worst:.3g} where the largest value is {peak:.3g}"
        raise ConversionFailed(DOING, f"output '{name}'", why, CURE)
    return Parity(worst, 10 * float(np.log10(power / noise)) if noise and power else float("inf"), 0)
