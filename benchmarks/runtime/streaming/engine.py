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
from edgekiln.records import Artifact, Record
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
        _rebatch(model.graph, size)
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


def _rebatch(graph: Any, size: int) -> None:
    """Let each Reshape to a leading 1 lead with ``size`` instead; ``check`` says whether that was all."""
    from onnx import numpy_helper

    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for held in graph.initializer:
        if held.name in shapes and (shape := numpy_helper.to_array(held).copy()).size and shape[0] == 1:
            shape[0] = size
            held.CopyFrom(numpy_helper.from_array(shape, held.name))


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
    single = [runner({name: x}) for x in inputs]
    for size in (*SIZES, 3):
        together = runner({name: np.concatenate(inputs[:size])})
        for key, value in together.items():
            expected = np.concatenate([one[key] for one in single[:size]])
            if not np.allclose(value, expected, rtol=1e-3, atol=1e-3):
                raise SystemExit(f"a batch of {size} gives other numbers than its frames alone")


class Alone(Record, frozen=True, kw_only=True):
    """The engine on inputs that lie ready: frames a second by batch size, and CPU milliseconds a frame of
    the best of them."""

    rates: dict[int, float]
    cpu_ms: float

    @property
    def best(self) -> int:
        return max(self.rates, key=self.rates.__getitem__)


def alone(runner: ByBatch, name: str, inputs: Sequence[NDArray[Any]], seconds: float) -> Alone:
    """Measure every batch size on inputs that lie ready, in turns, for ``seconds`` in all.

    A rate is all frames of a size over all the time of its calls, as that of the streams is: what slows the
    machine counts in both.
    """
    batches = {size: np.concatenate(inputs[:size]) for size in SIZES}
    spent, cpu, done = (dict.fromkeys(SIZES, 0.0) for _ in range(3))
    for batch in batches.values():
        runner({name: batch})
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for size, batch in batches.items():
            started, used = time.perf_counter(), time.process_time()
            # As many frames of each size in a turn, so that every size has its share of the time.
            for _ in range(max(SIZES) // size):
                runner({name: batch})
            spent[size] += time.perf_counter() - started
            cpu[size] += time.process_time() - used
            done[size] += max(SIZES)
    rates = {size: done[size] / spent[size] for size in SIZES}
    best = max(rates, key=rates.__getitem__)
    return Alone(rates=rates, cpu_ms=cpu[best] / done[best] * 1e3)


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
