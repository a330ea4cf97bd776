"""Several calls of one artifact at once, with real engines: same numbers, each runner used by one call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekiln.engines import Arrays, open_concurrent, open_engine
from edgekiln.errors import BadInput, MachineFault, NotRunnableHere
from edgekiln.records import Artifact
from edgekiln.runtime.streams.execute import Concurrent, measure_calls
from edgekiln.runtime.streams.schedule import choose_calls
from fakes.networks import picture
from fakes.variants import artifact


@pytest.fixture(scope="module")
def place(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Artifact, Path]]:
    def made(engine: str) -> tuple[Artifact, Path]:
        if engine == "onnxruntime":
            return artifact(net.name, engine), net.parent
        openvino = pytest.importorskip("openvino")
        folder = tmp_path_factory.mktemp("ir")
        openvino.save_model(openvino.convert_model(net), folder / "model.xml", compress_to_fp16=False)
        return artifact("model.xml", engine), folder

    return made


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_concurrent_calls_give_what_one_call_gives(engine: str, calls: int, place: Any) -> None:
    made, folder = place(engine)
    one = open_engine(engine, made, folder, 1)
    pictures = [picture(k) for k in range(24)]
    expected = [one({"image": x})["logits"] for x in pictures]
    one.close()
    executor = Concurrent(open_concurrent(engine, made, folder, 2, calls))
    assert executor.calls == calls
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda x: executor({"image": x})["logits"], pictures))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    executor.close()


def test_openvino_has_a_stream_per_call(place: Any) -> None:
    made, folder = place("openvino")
    runners = open_concurrent("openvino", made, folder, 2, 2)
    compiled = runners[0]._request.get_compiled_model()  # type: ignore[attr-defined]
    assert int(compiled.get_property("NUM_STREAMS")) == 2
    assert int(compiled.get_property("INFERENCE_NUM_THREADS")) == 2
    for runner in runners:
        runner.close()


def test_bound_sessions_have_bindings_of_their_own(place: Any) -> None:
    made, folder = place("onnxruntime")
    bound = artifact(made.entry, "onnxruntime", io_binding=True)
    one, two = open_concurrent("onnxruntime", bound, folder, 2, 2)
    first = one({"image": picture(1)})["logits"]
    two({"image": picture(2)})
    assert np.array_equal(one({"image": picture(1)})["logits"], first)
    assert one._binding is not two._binding  # type: ignore[attr-defined]


def test_an_engine_of_one_call_says_so(place: Any) -> None:
    made, folder = place("onnxruntime")
    with pytest.raises(NotRunnableHere, match="one call at a time"):
        open_concurrent("qnn", made, folder, 2, 2)
    with pytest.raises(BadInput, match="unknown engine"):
        open_concurrent("abacus", made, folder, 2, 2)


class Counting:
    """A runner that takes a moment and knows how many calls it is in."""

    inside = most = 0
    lock = threading.Lock()

    def __init__(self, seconds: float = 0.01) -> None:
        self.busy, self.seconds, self.closed = threading.Lock(), seconds, False

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        assert self.busy.acquire(blocking=False), "two calls in one runner"
        with Counting.lock:
            Counting.inside += 1
            Counting.most = max(Counting.most, Counting.inside)
        time.sleep(self.seconds)
        with Counting.lock:
            Counting.inside -= 1
        self.busy.release()
        if (inputs["x"] < 0).any():
            raise MachineFault("running", "a test", "it was told to", "Don't")
        return dict(inputs)

    def close(self) -> None:
        assert not self.busy.locked()
        self.closed = True


def test_a_runner_serves_one_call_and_the_next_waits() -> None:
    Counting.most = 0
    runners, seen = [Counting(), Counting()], []
    executor = Concurrent(runners, lambda frames, ms: seen.append((frames, ms)))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: executor({"x": np.ones((n, 2))}), [1, 2, 3] * 8))
    assert Counting.most == 2
    assert sorted(frames for frames, _ in seen) == sorted([1, 2, 3] * 8)
    assert all(ms >= 9 for _, ms in seen)
    executor.close()
    assert all(runner.closed for runner in runners)


def test_a_call_that_raises_gives_its_runner_back() -> None:
    seen: list[int] = []
    executor = Concurrent([Counting()], lambda frames, _: seen.append(frames))
    for _ in range(3):
        with pytest.raises(MachineFault):
            executor({"x": -np.ones((1, 2))})
    assert executor({"x": np.ones((1, 2))})
    assert seen == [1], "a call that failed has no latency"


def test_calls_at_once_are_chosen_by_measurement() -> None:
    opened: list[Counting] = []

    def opener(calls: int) -> list[Counting]:
        if calls > 2:
            raise NotRunnableHere("opening", "a test", "two streams at most", "Ask for fewer")
        made = [Counting(0.005) for _ in range(calls)]  # sleeping: two at once are twice as fast
        opened.extend(made)
        return made

    rates = measure_calls(opener, {"x": np.ones((1, 2))}, seconds=0.1)
    assert set(rates) == {1, 2}
    assert rates[2] > rates[1]
    assert all(runner.closed for runner in opened)
    assert choose_calls(rates) == 2


def test_what_a_measured_call_raises_is_raised_and_all_is_closed() -> None:
    opened: list[Counting] = []

    def opener(calls: int) -> list[Counting]:
        opened.extend(made := [Counting() for _ in range(calls)])
        return made

    with pytest.raises(MachineFault):
        measure_calls(opener, {"x": -np.ones((1, 2))}, seconds=0.05)
    assert opened
    assert all(runner.closed for runner in opened)
    with pytest.raises(BadInput):
        Concurrent([])
