"""Timing and running the models that a search writes, in the engine that the dialect is for.

These figures rank the search's own candidates among each other; what an artifact takes is measured later,
each in a process of its own (``prove.timing``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekiln.engines import Arrays, open_engine
from edgekiln.engines.onnxruntime import float_artifact

ROUNDS = 12
CALLS = 3


def engine_of(form: str) -> str | None:
    """The engine that times models of dialect ``form`` here; None where it is another machine's."""
    if form.startswith("openvino"):
        return "openvino"
    return "onnxruntime" if form in {"ort", "ort-7bit"} else None


def runner(form: str, threads: int) -> Callable[[Path], Callable[[Arrays], dict[str, Any]]]:
    """Opens a written model: in its own engine where that runs here, else in ONNX Runtime."""
    engine = engine_of(form) or "onnxruntime"

    def opened(path: Path) -> Callable[[Arrays], dict[str, Any]]:
        plain = float_artifact(path.name, "candidate")
        artifact = msgspec.structs.replace(plain, engine=engine, proof_engine=engine)
        return open_engine(engine, artifact, path.parent, threads)

    return opened


def timer(form: str, threads: int, sample: Arrays) -> Callable[[Sequence[Path]], Sequence[float] | None]:
    """Median latencies in ms of several models, in turns; None where the dialect's engine is not here."""

    def timed(files: Sequence[Path]) -> Sequence[float] | None:
        if engine_of(form) is None:
            return None
        opened = [runner(form, threads)(path) for path in files]
        taken: list[list[float]] = [[] for _ in opened]
        order = np.random.default_rng(0)
        for run in opened:
            run(sample)
        for _ in range(ROUNDS):
            for place in order.permutation(len(opened)):
                opened[place](sample)  # the others emptied the caches
                for _ in range(CALLS):
                    started = time.perf_counter()
                    opened[place](sample)
                    taken[place].append((time.perf_counter() - started) * 1e3)
        return [statistics.median(t) for t in taken]

    return timed
