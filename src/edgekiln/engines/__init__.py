"""How an artifact runs, wherever it is: one file per engine, each with a function ``open``.

A runner maps named arrays to named arrays. ``open`` raises NotRunnableHere with the reason where the
machine can't execute the artifact, and MissingExtra where only a package is absent.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Artifact

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

ENGINES = {
    "onnxruntime": "edgekiln.engines.onnxruntime",
    "openvino": "edgekiln.engines.openvino",
    "tensorrt": "edgekiln.engines.tensorrt",
    "coreml": "edgekiln.engines.coreml",
    "litert": "edgekiln.engines.litert",
    "executorch": "edgekiln.engines.executorch",
    "qnn": "edgekiln.engines.qnn",
    "web": "edgekiln.engines.web",
}


class Runner(Protocol):
    """A loaded artifact. Arrays keep the artifact's own names, shapes and dtypes."""

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...


def open_engine(name: str, artifact: Artifact, folder: Path, threads: int) -> Runner:
    """Load ``artifact`` (its files lie in ``folder``) with engine ``name`` on ``threads`` threads.

    Raises NotRunnableHere, MissingExtra, or BadInput for an engine nobody knows.
    """
    if name not in ENGINES:
        raise BadInput("opening", artifact.entry, f"unknown engine '{name}'", did_you_mean(name, ENGINES))
    runner: Runner = importlib.import_module(ENGINES[name]).open(artifact, folder, threads)
    return runner


__all__ = ["ENGINES", "Arrays", "Runner", "open_engine"]
