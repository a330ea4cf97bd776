"""Frames answered by a real server, by this machine or by the first of both.

Over real sockets, with a network that is made bad on purpose.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest

from edgekiln.errors import BadInput, DeviceFault, ServerFault
from edgekiln.records import TensorSpec
from edgekiln.runtime.hybrid.breaker import BreakerRules
from edgekiln.runtime.hybrid.client import Client, Server
from edgekiln.runtime.hybrid.offload import Offloader, OffloadRules
from edgekiln.runtime.hybrid.privacy import Privacy, Raw
from edgekiln.runtime.hybrid.remote import RemoteModel
from edgekiln.runtime.vocabulary import Answer, Event, Health
from fakes.serving import (
    ChaosProxy,
    Condition,
    chaos_proxy,
    misbehaving,
    read_request,
    response,
    served,
    serving,
)

DEADLINE_MS = 300.0
EDGE = {"edge": np.ones(1, np.float32)}
FAST = BreakerRules(wait_s=0.2, most_wait_s=0.2)


def edge() -> Mapping[str, Any]:
    time.sleep(0.01)
    return EDGE


@dataclass
class Scene:
    """An offloader before a network before a server of ``net``, and all that it told."""

    proxy: ChaosProxy
    offloader: Offloader
    raw: Raw
    wanted: Mapping[str, Any]
    events: list[Event] = field(default_factory=list)

    def answer(self, edge: Callable[[], Mapping[str, Any]] = edge, **more: Any) -> Answer:
        return self.offloader.answer(self.raw, edge, DEADLINE_MS, **more)

    def warm(self, calls: int = 8) -> None:
        """The first answers open connections and teach the offloader how long each side takes."""
        for _ in range(calls):
            self.answer()
            self.settle()

    def settle(self) -> None:
        until_s = time.monotonic() + 5
        while self.offloader._probes and time.monotonic() < until_s:
            time.sleep(0.005)

    def kinds(self) -> list[str]:
        return [e.kind for e in self.events]

    def matches(self, answer: Answer) -> bool:
        return all(np.array_equal(answer.outputs[n], v) for n, v in self.wanted.items())


@contextlib.contextmanager
def scene(net: Path, **rules: Any) -> Iterator[Scene]:
    model = served(net)
    (given,) = model.session.get_inputs()
    x = {given.name: np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)}
    wanted = model.run(x)
    specs = tuple(TensorSpec(name=n, dtype="float32", shape=v.shape) for n, v in wanted.items())
    with serving({"net": model}) as server, chaos_proxy(("127.0.0.1", server.server_address[1])) as proxy:
        client = Client(Server(url=proxy.url))
        remote = RemoteModel(client, "net", specs)
        told: list[Event] = []
        chosen = OffloadRules(**{"gain": 0.1, "breaker": FAST, "probe_s": 0.1, **rules})
        offloader = Offloader(remote, Privacy(rule="raw"), chosen, told.append)
        try:
            yield Scene(proxy, offloader, Raw(x), wanted, told)
        finally:
            offloader.close()
            client.close()


@pytest.mark.parametrize("mode", ["edge", "fixed"])
def test_in_edge_mode_nothing_leaves(net: Path, mode: str) -> None:
    with scene(net, mode=mode) as here:
        assert here.answer().place == "edge"
        assert here.proxy.connections == 0


@pytest.mark.parametrize("mode", ["cloud", "adaptive"])
def test_over_a_good_link_the_server_answers_and_the_edge_need_not_work(net: Path, mode: str) -> None:
    ran = []

    def counted() -> Mapping[str, Any]:
        ran.append(1)
        return edge()

    with scene(net, mode=mode) as here:
        here.warm()
        ran.clear()
        answers = [here.answer(counted) for _ in range(20)]
        cloud = [a for a in answers if a.place == "cloud"]
        assert len(cloud) >= 15, "a busy machine may lose some"
        assert all(here.matches(a) and a.rung == "cloud" and a.hops == () for a in cloud)
        assert len(ran) <= 5
        told = here.offloader.link()
        assert told.usable
        assert told.round_trip_ms is not None


@pytest.mark.parametrize("fault", ["refuse", "stall", "reset", "half-close"])
@pytest.mark.parametrize("mode", ["cloud", "adaptive"])
def test_whatever_the_network_does_each_frame_is_answered_and_the_link_comes_back(
    net: Path, mode: str, fault: str
) -> None:
    with scene(net, mode=mode) as here:
        here.warm()
        here.proxy.set(Condition(fault=fault))
        answers = [here.answer() for _ in range(6)]
        assert all(a.place == "edge" and a.outputs is EDGE for a in answers)
        assert sum(a.late for a in answers) <= 1, [a.latency_ms for a in answers]
        fallbacks = [e for e in here.events if e.kind == "fallback"]
        assert fallbacks
        assert all(e.why and "edge" in e.done for e in fallbacks)
        assert "link-down" in here.kinds()
        assert answers[0].hops == ("cloud",)
        assert not here.offloader.link().usable
        here.proxy.set(Condition())
        until_s = time.monotonic() + 10
        while "link-up" not in here.kinds() and time.monotonic() < until_s:
            here.answer()
            here.settle()
        assert "link-up" in here.kinds()
        here.warm(3)
        assert any(here.answer().place == "cloud" for _ in range(10))


def test_an_open_breaker_sends_nothing_and_costs_no_time(net: Path) -> None:
    with scene(net, mode="cloud", breaker=BreakerRules(wait_s=60.0, most_wait_s=60.0)) as here:
        here.warm()
        here.proxy.set(Condition(fault="stall"))
        while "link-down" not in here.kinds():
            here.answer()
        connections = here.proxy.connections
        answers = [here.answer() for _ in range(10)]
        assert min(a.latency_ms for a in answers) < DEADLINE_MS / 3
        assert here.proxy.connections == connections
        assert all(a.hops == () for a in answers)


def test_a_link_slower_than_the_deadline_is_only_tried_now_and_then(net: Path) -> None:
    with scene(net, mode="adaptive") as here:
        here.warm()
        here.proxy.set(Condition(latency_ms=DEADLINE_MS))
        for _ in range(8):
            here.answer()
        connections = here.proxy.connections
        quick = [here.answer() for _ in range(20)]
        assert all(a.place == "edge" and not a.late for a in quick)
        assert min(a.latency_ms for a in quick) < DEADLINE_MS / 3
        assert here.proxy.connections - connections <= 8


def test_the_first_good_answer_wins_also_against_a_running_edge_which_is_cancelled(net: Path) -> None:
    """The edge is an ONNX Runtime session that its RunOptions can end; here it waits for just that."""
    ended = threading.Event()

    def slow() -> Mapping[str, Any]:
        ended.wait(20)
        return EDGE

    with scene(net, mode="cloud", edge_ms=DEADLINE_MS) as here:
        answer = here.answer(slow, cancel_edge=ended.set)
        assert answer.place == "cloud"
        assert here.matches(answer)
        assert ended.wait(5)


def test_onnx_runtime_s_own_end_of_a_run_frees_the_edge(net: Path) -> None:
    from onnx import TensorProto, helper

    # A loop that would take minutes.
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Sin", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1000]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, [1000]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "go", "x"], ["y"], body=body)],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])],
        [
            helper.make_tensor("n", TensorProto.INT64, [], [10**9]),
            helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    options = ort.RunOptions()
    ended = threading.Event()

    def run() -> Mapping[str, Any]:
        try:
            return {"y": session.run(None, {"x": np.ones(1000, np.float32)}, options)[0]}
        finally:
            ended.set()

    def cancel() -> None:
        options.terminate = True

    with scene(net, mode="cloud", edge_ms=DEADLINE_MS) as here:
        assert here.answer(run, cancel_edge=cancel).place == "cloud"
        assert ended.wait(10)


def test_an_edge_that_fails_leaves_the_frame_to_the_server_and_both_failing_tells_the_edge_s_error(
    net: Path,
) -> None:
    def broken() -> Mapping[str, Any]:
        raise DeviceFault("running", "the edge", "it is broken", "Mend it")

    with scene(net, mode="cloud", edge_ms=DEADLINE_MS) as here:
        assert here.answer(broken).place == "cloud"
        here.proxy.set(Condition(fault="refuse"))
        with pytest.raises(DeviceFault, match="it is broken"):
            here.answer(broken)


def test_nobody_answers_and_the_caller_still_gets_an_error_in_bounded_time(net: Path) -> None:
    release = threading.Event()

    def hangs() -> Mapping[str, Any]:
        release.wait(30)
        return EDGE

    with scene(net, mode="cloud", edge_ms=10.0) as here:
        here.proxy.set(Condition(fault="stall"))
        started_s = time.monotonic()
        with pytest.raises(ServerFault, match="neither it nor the edge"):
            here.answer(hangs)
        assert time.monotonic() - started_s < 10
        release.set()


WRONG = {
    "shape": response(b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1,2]}]}'),
    "dtype": response(b'{"outputs":[{"name":"y","datatype":"INT32","shape":[1],"data":[1]}]}'),
    "name": response(b'{"outputs":[{"name":"z","datatype":"FP32","shape":[1],"data":[1]}]}'),
    "none": response(b'{"outputs":[]}'),
    "status": response(b'{"error":"no"}', "500 No"),
    "garbage": b"\x00\x01\x02\r\n\r\n",
    "huge": response(b"", length=10**12),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_no_answer(what: str) -> None:
    def serve(connection: Any) -> None:
        while read_request(connection):
            connection.sendall(WRONG[what])

    specs = (TensorSpec(name="y", dtype="float32", shape=(1,)),)
    told: list[Event] = []
    with misbehaving(serve) as url:
        client = Client(Server(url=url))
        rules = OffloadRules(mode="cloud", edge_ms=10.0, breaker=BreakerRules(wait_s=60.0))
        offloader = Offloader(RemoteModel(client, "m", specs), Privacy(rule="raw"), rules, told.append)
        for _ in range(4):
            assert offloader.answer(Raw({"x": np.ones(1)}), edge, 500.0).place == "edge"
        assert [e.kind for e in told].count("link-down") == 1
        offloader.close()
        client.close()


def test_a_server_that_says_it_is_overrun_is_left_alone_for_as_long_as_it_says() -> None:
    asked = []

    def serve(connection: Any) -> None:
        while read_request(connection):
            asked.append(1)
            connection.sendall(response(b"", "429 Too Many Requests", Retry_After="60"))

    with misbehaving(serve) as url:
        client = Client(Server(url=url))
        rules = OffloadRules(mode="cloud", edge_ms=10.0, breaker=BreakerRules(wait_s=0.01, most_wait_s=0.01))
        offloader = Offloader(RemoteModel(client, "m"), Privacy(rule="raw"), rules)
        for _ in range(5):
            offloader.answer(Raw({"x": np.ones(1)}), edge, 500.0)
            time.sleep(0.02)
        assert len(asked) == 1
        offloader.close()
        client.close()


def test_frames_are_made_only_where_they_are_sent_and_refused_where_they_may_not_leave(net: Path) -> None:
    made = []
    with scene(net, mode="edge") as here:
        here.offloader.answer(lambda: made.append(1) or here.raw, edge, DEADLINE_MS)  # type: ignore[func-returns-value]
        assert not made
        here.offloader.privacy = Privacy(rule="reduced")
        with pytest.raises(BadInput, match="may not leave"):
            here.answer()


def test_a_low_battery_keeps_frames_here(net: Path) -> None:
    with scene(net, mode="adaptive") as here:
        here.warm()
        low = Health(at_s=0.0, on_battery=True, battery_share=0.05)
        assert [here.answer(health=low).place for _ in range(5)] == ["edge"] * 5


def test_a_thousand_frames_over_a_flapping_link_leave_nothing_behind(net: Path) -> None:
    process = psutil.Process()

    def quick() -> Mapping[str, Any]:
        return EDGE

    with scene(net, mode="adaptive") as here:
        here.warm()
        files, threads = process.num_fds(), threading.active_count()
        good, bad = Condition(), [Condition(fault=f) for f in ("refuse", "reset", "stall")]
        here.proxy.play([(0.1, c) for b in bad for c in (good, b)], again=True)
        places = [here.offloader.answer(here.raw, quick, 40.0).place for _ in range(1000)]
        assert set(places) == {"edge", "cloud"}
        here.proxy.set(Condition())
        time.sleep(0.5)
        assert process.num_fds() <= files + 12
        assert threading.active_count() <= threads + 6


def test_a_frame_that_takes_longer_to_make_than_the_edge_can_wait_stays_here(net: Path) -> None:
    made = []

    def slowly(raw: Raw) -> Raw:
        made.append(1)
        time.sleep(1.0)
        return raw

    def slow_edge() -> Mapping[str, Any]:
        time.sleep(0.2)
        return EDGE

    with scene(net, mode="adaptive", probe_s=1e6, edge_ms=200.0) as here:
        ask = lambda: here.offloader.answer(lambda: slowly(here.raw), slow_edge, 1000.0)  # noqa: E731
        ask()  # the link is not known yet: a probe
        here.settle()
        assert [ask().place for _ in range(3)] == ["edge"] * 3
        assert len(made) == 1, "its cost is known from the first"
