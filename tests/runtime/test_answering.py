"""What the steering is told of the calls behind an answer, and whose turn it is with the engine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgekiln.bundle.unpack import opened
from edgekiln.runtime.answering import Answering, Missed, calls_told
from edgekiln.runtime.candidates import survey
from edgekiln.runtime.slots import slots_of
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.vocabulary import Answer, Setting
from fakes.guarded import eventually
from fakes.runtime_bundle import runtime_bundle


def told(asked, rung="a"):
    return [(c.rung, c.latency_ms, c.ok) for c in calls_told(asked, rung, 1, 9.0, 40.0)]


def test_a_call_that_was_cut_off_counts_as_all_that_was_left():
    assert told([("a", 30.0, "timeout"), ("b", 5.0, None)]) == [("a", 40.0, True), ("b", 5.0, True)]


def test_a_call_that_failed_is_told_as_failed():
    assert told([("a", 3.0, "crashed"), ("b", 5.0, None)]) == [("a", 3.0, False), ("b", 5.0, True)]


def test_a_rung_that_could_not_be_asked_has_failed():
    assert told([("b", 5.0, None)]) == [("a", 0.0, False), ("b", 5.0, True)]


def test_where_nobody_was_asked_nothing_is_known():
    assert told([]) == []


class Held:
    """A chain whose calls wait until they are let go, on the rung that was asked for or on another."""

    def __init__(self, instead=""):
        self.go, self.inside, self.most, self.prepared = threading.Semaphore(0), 0, 0, 0
        self.instead, self.lock = instead, threading.Lock()

    def answer(self, inputs_for, deadline_ms, rung, asked):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        began = time.monotonic()
        assert self.go.acquire(timeout=20)
        with self.lock:
            self.inside -= 1
        name = self.instead or rung
        asked(name, (time.monotonic() - began) * 1e3, None)
        return Answer({"y": np.zeros((1, 10), np.float32)}, name, "edge", 0.0)


class Heard:
    """What a steering hears."""

    def __init__(self):
        self.calls, self.overheads, self.health = [], [], None

    def called(self, call, overhead_ms=None, *, learned=True):
        self.calls.append((call.rung, call.latency_ms, call.ok, learned))
        self.overheads.append(overhead_ms)


@pytest.fixture
def slots(tmp_path):
    path = tmp_path / "b.edgekiln"
    runtime_bundle(path)
    with opened(path) as held:
        found, _ = survey(held, 1)
        yield slots_of(held.manifest, found)


def frame(at=0):
    return Frame("gate", at, time.monotonic(), np.zeros((48, 64, 3), np.uint8))


def answering(chain, slots, heard, deadline_ms=10_000.0, **more):
    return Answering(chain, slots, heard, deadline_ms, {"gate": True}, **more)


@pytest.mark.parametrize("calls", [1, 2])
def test_the_next_frame_is_prepared_meanwhile_and_its_wait_is_not_the_engines_time(slots, calls):
    chain, heard, rung = Held(), Heard(), next(iter(slots))
    ask = answering(chain, slots, heard, calls=calls)
    assert ask.idle
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(ask, [frame(at)], Setting(rung=rung)) for at in range(3)]
        eventually(lambda: chain.inside == calls and ask._inside == 3)
        time.sleep(1.0)
        assert not ask.idle
        chain.go.release(3)
        found = [d.result(20)[0] for d in done]
    assert all(isinstance(f, Answer) and not f.late for f in found)
    assert chain.most == calls
    waited_ms, last_ms = max(zip(heard.overheads, (ms for _, ms, _, _ in heard.calls), strict=True))
    assert last_ms < 1000 <= waited_ms
    assert ask.idle


def test_a_frame_whose_turn_does_not_come_is_missed_in_time(slots):
    chain, heard, rung = Held(), Heard(), next(iter(slots))
    ask = answering(chain, slots, heard, deadline_ms=300.0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, [frame()], Setting(rung=rung))
        eventually(lambda: chain.inside == 1)
        began = time.monotonic()
        (found,) = ask([frame(1)], Setting(rung=rung))
        assert time.monotonic() - began < 5
        assert isinstance(found, Missed)
        assert "earlier frames" in found.why
        assert found.kind == "no answer in time"
        chain.go.release()
        first.result(20)


def test_a_rung_that_stands_in_is_counted_and_not_learned_from(slots):
    wanted, other, *_ = slots
    chain, heard = Held(instead=other), Heard()
    chain.go.release()
    answering(chain, slots, heard)([frame()], Setting(rung=wanted))
    (refused, stood_in) = heard.calls
    assert refused == (wanted, 0.0, False, True)
    assert (stood_in[0], stood_in[2:]) == (other, (True, False))
