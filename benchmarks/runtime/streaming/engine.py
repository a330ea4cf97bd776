"""One network at several batch sizes as one runner, and its rate on inputs that are ready."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner, open_concurrent
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.records import Artifact
from edgekiln.runtime.streams.execute import Concurrent, measure_calls

SIZES = (1, 2, 4, 8)
Artifacts = Mapping[int, tuple[Artifact, Path]]


def write_sizes(graph: Path, engine: str, into: Path) -> Artifacts:
    """The graph of batch 1 at each batch size of SIZES, in the engine's own format, in float32."""
    import onnx

    made = {}
    for size in SIZES:
        model = onnx.load(graph)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size
        del model.graph.value_info[:]
        path = into / f"batch-{size}.onnx"
        onnx.save(model, path)
        entry = path.name
        if engine == "openvino":
            import openvino

            entry = f"batch-{size}.xml"
            openvino.save_model(openvino.convert_model(path), into / entry, compress_to_fp16=False)
        artifact = msgspec.structs.replace(
            float_artifact(entry, f"batch-{size}"), engine=engine, target=engine, proof_engine=engine
        )
        made[size] = (artifact, into)
    return made


class ByBatch:
    """A runner for any number of frames: the largest sizes that fit, one call each."""

    def __init__(self, runners: Mapping[int, Runner]) -> None:
        self._runners = dict(sorted(runners.items(), reverse=True))

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        ((name, batch),) = inputs.items()
        if (exact := self._runners.get(len(batch))) is not None:
            return exact({name: batch})
        parts, at = [], 0
        while at < len(batch):
            size = next(s for s in self._runners if s <= len(batch) - at)
            parts.append(self._runners[size]({name: batch[at : at + size]}))
            at += size
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


def open_sizes(engine: str, artifacts: Artifacts, threads: int) -> ByBatch:
    """All sizes opened for one call at a time."""
    return ByBatch(
        {size: open_concurrent(engine, *where, threads, 1)[0] for size, where in artifacts.items()}
    )


def check(runner: ByBatch, name: str, inputs: Sequence[NDArray[Any]]) -> None:
    """Raise SystemExit where a batch does not give what its frames give alone: the figures would be void."""
    alone = [runner({name: x}) for x in inputs]
    for size in (*SIZES, 3):
        together = runner({name: np.concatenate(inputs[:size])})
        for key, value in together.items():
            expected = np.concatenate([one[key] for one in alone[:size]])
            if not np.allclose(value, expected, rtol=1e-3, atol=1e-3):
                raise SystemExit(f"a batch of {size} gives other numbers than its frames alone")


def best_rate(runner: ByBatch, name: str, inputs: Sequence[NDArray[Any]], seconds: float) -> dict[int, float]:
    """Frames a second of each batch size on inputs that lie ready, sizes in turns for ``seconds`` in all.

    The rate of a size is by its median call.
    """
    batches = {size: np.concatenate(inputs[:size]) for size in SIZES}
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for batch in batches.values():
        runner({name: batch})
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for size, batch in batches.items():
            # As many frames of each size in a turn, so that every size has its share of the time.
            for _ in range(max(SIZES) // size):
                started = time.perf_counter()
                runner({name: batch})
                times[size].append(time.perf_counter() - started)
    return {size: size / float(np.median(found)) for size, found in times.items()}


def concurrency(
    engine: str, artifacts: Artifacts, threads: int, name: str, inputs: Sequence[NDArray[Any]], seconds: float
) -> dict[int, float]:
    """Frames a second at batch 1 by calls at once, the same ``threads`` shared out among the calls."""
    artifact, folder = artifacts[1]
    return measure_calls(
        lambda calls: open_concurrent(engine, artifact, folder, threads, calls),
        {name: inputs[0]},
        counts=(1, 2),
        seconds=seconds / 6,
    )


def gated(runner: ByBatch, seen: Any) -> Concurrent:
    """One call at a time, each told to ``seen``."""
    return Concurrent([runner], seen)
