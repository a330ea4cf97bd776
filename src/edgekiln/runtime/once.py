"""One bundle, some pictures: preprocess, infer, label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.bundle.unpack import Opened, opened
from edgekiln.engines import Runner, open_engine
from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.model.preprocess import apply, check, open_image
from edgekiln.model.signature import image_layout
from edgekiln.records import Record, Rejected, TensorSpec
from edgekiln.runtime.candidates import engine_here

TOP = 5


class Guess(Record, frozen=True, kw_only=True):
    """A class with its probability (softmax of the scores, or the scores where they sum to 1)."""

    label: str
    index: int
    probability: float


class OutputSummary(Record, frozen=True, kw_only=True):
    """An output that is no class score: its shape and extent."""

    spec: TensorSpec
    lowest: float
    highest: float
    mean: float


class Prediction(Record, frozen=True, kw_only=True):
    """One picture's answer. ``engine_note`` says where another engine stands in for the device's own."""

    path: str
    guesses: tuple[Guess, ...] = ()
    outputs: tuple[OutputSummary, ...] = ()
    engine_note: str = ""


def run(
    bundle: Path, images: Sequence[Path], threads: int = 2
) -> tuple[tuple[Prediction, ...], tuple[Rejected, ...]]:
    """Predictions for the pictures that could be read, and the others with their reasons.

    Raises BadInput for a bundle that is not sound or takes no pictures, NotRunnableHere where no engine
    on this machine can execute its artifact.
    """
    with opened(bundle) as held:
        spec = held.manifest.signature.inputs[0]
        preprocess = held.manifest.preprocess
        if preprocess is None or len(held.manifest.signature.inputs) != 1 or image_layout(spec) is None:
            raise BadInput(
                "running",
                bundle,
                "its model takes no single picture",
                "Open it from Python: edgekiln.bundle.unpack.opened and edgekiln.engines.open_engine",
            )
        check(preprocess, spec)  # a stranger's manifest: its figures come before any of its pictures
        runner, note = open_runner(held, threads)
        predictions, rejected = [], []
        try:
            for path in images:
                try:
                    picture = open_image(path)
                except (EdgekilnError, OSError) as error:
                    rejected.append(Rejected(path=str(path), reason=getattr(error, "why", str(error))))
                    continue
                outputs = runner({spec.name: apply(preprocess, picture)})
                if lost := _not_finite(outputs):
                    rejected.append(Rejected(path=str(path), reason=f"output '{lost}' holds NaN or infinity"))
                    continue
                predictions.append(_prediction(str(path), outputs, held, note))
        finally:
            runner.close()
    return tuple(predictions), tuple(rejected)


def open_runner(held: Opened, threads: int) -> tuple[Runner, str]:
    """The engine that a session would take (``engine_here``) opened, and a note where it stands in.

    Where the device's own is here and refuses the artifact, the one that proved it takes its place. Raises
    NotRunnableHere where neither is here.
    """
    artifact, folder = held.manifest.artifact, held.model_folder
    engine, note = engine_here(artifact, folder)
    try:
        return open_engine(engine, artifact, folder, threads), note
    except EdgekilnError as error:
        if engine == artifact.proof_engine:
            raise
        proof = artifact.proof_engine
        return open_engine(proof, artifact, folder, threads), f"emulated by {proof}: {error.why}"


def probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Shape (C,): ``scores`` as they are where they are a distribution, else their softmax."""
    flat = np.asarray(scores, np.float64).reshape(-1)
    if flat.min() >= 0 and abs(flat.sum() - 1) < 1e-3:
        return flat
    shifted = np.exp(flat - flat.max())
    return np.asarray(shifted / shifted.sum())


def _not_finite(outputs: dict[str, NDArray[Any]]) -> str | None:
    """The name of the first output with a NaN or an infinite value."""
    floats = {n: v for n, v in outputs.items() if np.issubdtype(np.asarray(v).dtype, np.floating)}
    return next((n for n, v in floats.items() if not np.isfinite(v).all()), None)


def _prediction(path: str, outputs: dict[str, NDArray[Any]], held: Opened, note: str) -> Prediction:
    if held.manifest.task == "classification":
        shares = probabilities(next(iter(outputs.values())))
        best = np.argsort(-shares, kind="stable")[:TOP]
        names = held.labels
        return Prediction(path=path, guesses=tuple(_guesses(best, shares, names)), engine_note=note)
    return Prediction(path=path, outputs=tuple(_summaries(outputs)), engine_note=note)


def _guesses(best: Iterable[Any], shares: NDArray[np.float64], names: Sequence[str]) -> Iterable[Guess]:
    for index in map(int, best):
        label = names[index] if index < len(names) else f"class {index}"
        yield Guess(label=label, index=index, probability=float(shares[index]))


def _summaries(outputs: dict[str, NDArray[Any]]) -> Iterable[OutputSummary]:
    for name, value in outputs.items():
        spec = TensorSpec(name=name, dtype=str(value.dtype), shape=tuple(value.shape))
        flat = np.asarray(value, np.float64)
        ends = (float(flat.min()), float(flat.max()), float(flat.mean())) if flat.size else (0.0, 0.0, 0.0)
        yield OutputSummary(spec=spec, lowest=ends[0], highest=ends[1], mean=ends[2])
