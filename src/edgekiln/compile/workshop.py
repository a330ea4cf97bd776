"""What every artifact of one build is made from: the float graph, the data, the cache."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.compile.finetune.order import NoTraining, Training
from edgekiln.compile.quantise.histogram import Observation
from edgekiln.prove.metrics import Metric
from edgekiln.records import Model

TOOLS = (
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx",
    "numpy",
    "torch",
    "torchao",
    "coremltools",
    "onnx2coreml",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "executorch",
    "onnxruntime-qnn",
)


NO_TRAINING = NoTraining(
    why="the job names no trainer",
    cure='Give [qat] with trainer = "package.module:function" in the job file, or leave +qat out',
)


@dataclass(frozen=True)
class Calibration:
    """Samples to find ranges on, as often as asked for; ``sha256`` names them in the cache.

    ``remark`` is what a reader of the ranges should know of the samples (their size, of several). ``kept``
    holds observations of an earlier run by the hash of their graph: that graph is not observed again.
    ``ranges_alone``: there are no samples beside them, and asking for some raises ConversionFailed.
    ``processes`` observe at a time.
    """

    samples: Callable[[], Iterable[dict[str, NDArray[Any]]]]
    n: int
    sha256: str
    remark: str = ""
    kept: Mapping[str, Mapping[str, Observation]] = field(default_factory=dict)
    ranges_alone: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Validation:
    """What a search for mixed precision holds its bound on.

    ``samples`` are neither calibrated on nor, if the user kept them apart, judged on; None: a part of the
    calibration samples is kept back. ``truths`` are their labels in the form of ``metric``; without them the
    float model's own answers are the truth. ``sha256`` names samples, truths and how both are read.
    """

    samples: Callable[[], Iterable[dict[str, NDArray[Any]]]] | None = None
    n: int = 0
    sha256: str = ""
    truths: tuple[Any, ...] = ()
    metric: Metric | None = None


@dataclass(frozen=True)
class Workshop:
    """What every artifact of one build is made from: the float graph, the data, the cache.

    ``model_sha256`` is the hash of ``graph``: it names the graph in the cache. ``model`` is what the
    bundle will say of it: signature, preprocessing, labels. ``sizes`` are the (height, width) that a graph
    with symbolic height and width is made for. ``validation`` None: the model has no metric, no samples of
    its own. ``training`` is what fine-tunes it, or why nothing can.
    """

    graph: Path
    model_sha256: str
    calibration: Calibration | None
    cache: Path
    threads: int
    model: Model
    sizes: tuple[tuple[int, int], ...] = ()
    validation: Validation | None = None
    training: Training | NoTraining = NO_TRAINING


def tools() -> dict[str, str]:
    """The versions of every tool that shapes a variant or an artifact: part of each step's name."""
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            found[tool] = "absent"
    return found
