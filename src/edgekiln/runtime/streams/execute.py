"""Several calls of one artifact at once, where its engine can and a measurement says that it pays.

OpenVINO gives each call an inference request and a stream of its own, ONNX Runtime runs one session from
several threads, TensorRT gets an execution context with its own CUDA stream per call. All release Python's
lock while they compute, so the threads that call are all the machinery there is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner
from edgekiln.errors import BadInput, EdgekilnError

CALLS = (1, 2, 4)
Seen: TypeAlias = Callable[[int, float], None]


class Concurrent:
    """As many calls at once as there are ``runners``; a further one waits for its turn. A Runner itself.

    ``seen(frames, latency_ms)`` is told how long each call was with the engine, waiting left out.
    """

    def __init__(self, runners: Sequence[Runner], seen: Seen | None = None) -> None:
        if not runners:
            raise BadInput("opening", "an executor", "it has no runner", "Give one or more")
        self._runners = tuple(runners)
        self._free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        for runner in runners:
            self._free.put(runner)
        self._seen = seen

    @property
    def calls(self) -> int:
        """How many calls it can run at once."""
        return len(self._runners)

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        runner = self._free.get()
        started = time.perf_counter()
        try:
            outputs = runner(inputs)
            took_ms = (time.perf_counter() - started) * 1e3
        finally:
            self._free.put(runner)
        if self._seen is not None:
            self._seen(len(next(iter(inputs.values()), ())), took_ms)
        return outputs

    def close(self) -> None:
        """Close the runners, each as soon as its call has ended."""
        for _ in self._runners:
            self._free.get().close()


Opener: TypeAlias = Callable[[int], Sequence[Runner]]
"""From a number of calls at once to so many runners: ``engines.open_concurrent`` with the rest filled in."""


def measure_calls(
    opener: Opener, inputs: Arrays, counts: Sequence[int] = CALLS, seconds: float = 0.5, rounds: int = 3
) -> dict[int, float]:
    """Calls a second, by the number of calls at once: the median of ``rounds`` turns of ``seconds`` each.

    The numbers are measured in turns, so that what slows the machine slows all. A number that the engine
    does not offer is left out; raises what ``opener`` raises where none is offered.
    """
    opened: dict[int, Concurrent] = {}
    refused: EdgekilnError | None = None
    try:
        for calls in counts:
            try:
                opened[calls] = Concurrent(opener(calls))
            except EdgekilnError as error:
                refused = error
        if not opened:
            assert refused is not None
            raise refused
        for executor in opened.values():
            _rate(executor, inputs, 0.0)  # one call of each runner: warm
        rates: dict[int, list[float]] = {calls: [] for calls in opened}
        for _ in range(rounds):
            for calls, executor in opened.items():
                rates[calls].append(_rate(executor, inputs, seconds))
        return {calls: sorted(found)[len(found) // 2] for calls, found in rates.items()}
    finally:
        for executor in opened.values():
            executor.close()


def _rate(executor: Concurrent, inputs: Arrays, seconds: float) -> float:
    """Calls a second from as many threads as it has runners. Raises what a call raises."""
    done: list[int] = []
    failed: list[BaseException] = []
    started = time.perf_counter()

    def work() -> None:
        count = 0
        try:
            while count == 0 or time.perf_counter() - started < seconds:
                executor(inputs)
                count += 1
        except BaseException as error:
            failed.append(error)
        done.append(count)

    threads = [threading.Thread(target=work, name="edgekiln-measure") for _ in range(executor.calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(done) / (time.perf_counter() - started)
