"""The streams of the benchmark: sources, what answers them, and one measured window of a pump."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekiln.model.preprocess import apply
from edgekiln.records import Preprocess, Record
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.streams.pump import Pump, StreamCounts
from edgekiln.runtime.streams.schedule import Batches
from edgekiln.runtime.streams.sources import Source, open_source
from edgekiln.runtime.vocabulary import Setting
from runtime.streaming.engine import SIZES, ByBatch, gated

FPS = 30.0
FAST = 4
WARM_S = 0.5
LATENCIES = 4000


class Window(Record, frozen=True, kw_only=True):
    """What ``seconds`` of a running pump brought: per stream, and the latency from capture to answer.

    ``cpu_ms`` is the CPU time of the whole process, per answered frame."""

    seconds: float
    cpu_ms: float
    came: tuple[int, ...]
    answered: tuple[int, ...]
    dropped: tuple[int, ...]
    failed: int
    mean_batch: float
    p50_ms: float
    p95_ms: float

    @property
    def rate(self) -> float:
        """Frames answered a second, all streams together."""
        return sum(self.answered) / self.seconds


class Ready:
    """Frames that are in memory, at ``fps``: no decoder, no file."""

    live = True

    def __init__(self, name: str, fps: float) -> None:
        self.name, self.fps = name, fps
        self._pixels = np.zeros((8, 8, 3), np.uint8)
        self._stopped = threading.Event()
        self._begun_s = time.monotonic()
        self._index = 0

    def read(self) -> Frame | None:
        due_s = self._begun_s + self._index / self.fps
        if self._stopped.wait(max(0.0, due_s - time.monotonic())):
            return None
        self._index += 1
        return Frame(self.name, self._index - 1, time.monotonic(), self._pixels)

    def skip(self) -> bool:
        return self.read() is not None

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()


class Stalling:
    """``source``, silent from ``from_s`` to ``until_s`` after its first frame: a camera that hangs."""

    live = True

    def __init__(self, source: Source, from_s: float, until_s: float) -> None:
        self.name, self.fps = source.name, source.fps
        self._source, self._span = source, (from_s, until_s)
        self._stopped = threading.Event()
        self._begun_s: float | None = None

    def read(self) -> Frame | None:
        now = time.monotonic()
        self._begun_s = self._begun_s or now
        from_s, until_s = self._span
        if from_s <= now - self._begun_s < until_s:
            self._stopped.wait(until_s - (now - self._begun_s))
        return self._source.read()

    def skip(self) -> bool:
        return self._source.skip()

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        self._source.close()


def sources(scene: str, video: Path, streams: int, seconds: float) -> list[Source]:
    """The sources of a scene: ``ready``, ``equal``, ``one fast`` (the first) or ``one stalls`` (the first).

    Each reads its own copy of the video in a loop, at 30 frames a second (the fast one at 120).
    """
    if scene == "ready":
        return [Ready(f"stream {i}", FPS) for i in range(streams)]
    made: list[Source] = []
    for i in range(streams):
        pace = FPS * FAST if scene == "one fast" and i == 0 else FPS
        source = open_source(str(video), pace=pace, loop=True, name=f"stream {i}")
        if scene == "one stalls" and i == 0:
            source = Stalling(source, WARM_S + seconds / 3, WARM_S + 2 * seconds / 3)
        made.append(source)
    return made


Answer = Callable[[Sequence[Frame], Setting], Sequence[Any]]


def answering(
    runner: ByBatch, name: str, spec: Preprocess | None, ready: NDArray[Any]
) -> tuple[Answer, Batches]:
    """Prepare the frames (or take ``ready`` inputs, where ``spec`` is None), infer, give the outputs.

    The batch sizes' latencies are the engine's own; waiting for it and preparing are left out.
    """
    batches = Batches(SIZES)
    engine = gated(runner, batches.observe)

    def answer(frames: Sequence[Frame], setting: Setting) -> list[Any]:
        if spec is None:
            inputs = ready[: len(frames)]
        else:
            inputs = np.concatenate([apply(spec, Image.fromarray(f.pixels)) for f in frames])
        outputs = next(iter(engine({name: inputs}).values()))
        return [outputs[i : i + 1] for i in range(len(frames))]

    return answer, batches


def window(made: list[Source], answer: Answer, batches: Batches, seconds: float) -> Window:
    """Run the pump until it is warm, then for ``seconds``, then close it.

    Two workers: while the engine computes the frames of one call, the other prepares the next.
    """
    with Pump(
        made, answer, lambda: Setting(rung="only", batch=batches.choose(max(SIZES))), workers=2
    ) as pump:
        _drain(pump, WARM_S)
        before, begun, used = pump.counts(), time.monotonic(), time.process_time()
        sizes, latencies = _drain(pump, seconds)
        after, ended, used = pump.counts(), time.monotonic(), time.process_time() - used
    answered = _grown(before, after, "answered")
    p50, p95 = np.quantile(latencies, [0.5, 0.95]) if latencies else (0.0, 0.0)
    return Window(
        seconds=ended - begun,
        cpu_ms=used / max(1, sum(answered)) * 1e3,
        came=_grown(before, after, "came"),
        answered=answered,
        dropped=_grown(before, after, "dropped"),
        failed=sum(_grown(before, after, "failed")),
        mean_batch=float(np.mean(sizes)) if sizes else 0.0,
        p50_ms=float(p50),
        p95_ms=float(p95),
    )


def _drain(pump: Pump, seconds: float) -> tuple[list[int], list[float]]:
    """Take results for ``seconds``: the batch and the latency of each."""
    until, sizes, latencies = time.monotonic() + seconds, [], []
    while (left := until - time.monotonic()) > 0:
        if (result := pump.result(left)) is not None:
            sizes.append(result.batch)
            latencies.append(result.waited_ms + result.took_ms)
    return sizes, latencies[-LATENCIES:]


def _grown(before: Sequence[StreamCounts], after: Sequence[StreamCounts], what: str) -> tuple[int, ...]:
    return tuple(getattr(b, what) - getattr(a, what) for a, b in zip(before, after, strict=True))


def costs(video: Path, spec: Preprocess, frames: int) -> dict[str, float]:
    """CPU milliseconds a frame, one thread, alone: of decoding (with the turn to RGB) and of preparing."""
    source = open_source(str(video), pace="fast", loop=True)
    kept: list[NDArray[np.uint8]] = []
    started = time.process_time()
    for _ in range(frames):
        frame = source.read()
        assert frame is not None
        if len(kept) < 8:
            kept.append(frame.pixels.copy())
        frame.release()
    decode_ms = (time.process_time() - started) / frames * 1e3
    source.close()
    started = time.process_time()
    for i in range(frames):
        apply(spec, Image.fromarray(kept[i % len(kept)]))
    return {"decode_ms": decode_ms, "prepare_ms": (time.process_time() - started) / frames * 1e3}
