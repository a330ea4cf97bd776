"""A seat for several calls at once, with engines whose every call is held by the test."""

import threading
import time

import numpy as np
import pytest

from edgekiln.errors import EngineFault
from edgekiln.runtime.seats import Several
from fakes.guarded import eventually

X = {"x": np.ones(1)}


class Gated:
    """Calls wait until they are let go; counts how many are inside at once."""

    def __init__(self):
        self.go, self.lock = threading.Semaphore(0), threading.Lock()
        self.inside = self.most = self.closed = self.opened = 0

    def open(self):
        self.opened += 1
        return self

    def __call__(self, inputs):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.go.acquire()
        with self.lock:
            self.inside -= 1
        return {"y": inputs["x"] + 1}

    def close(self):
        self.closed += 1


@pytest.fixture
def engine():
    made = Gated()
    yield made
    made.go.release(100)


def several(engine, calls=2):
    changed = []
    seat = Several(engine.open, lambda: changed.append(1), calls)
    eventually(lambda: seat.ready)
    return seat


def start(seat, found, limit_s=10.0):
    def call():
        try:
            found.append(seat.call(X, limit_s))
        except EngineFault as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_as_many_calls_run_at_once_as_were_asked_for_and_no_more(engine):
    seat, found = several(engine), []
    threads = [start(seat, found) for _ in range(5)]
    eventually(lambda: engine.inside == 2)
    time.sleep(0.05)
    assert engine.inside == 2
    engine.go.release(5)
    for thread in threads:
        thread.join(10)
    assert [f["y"][0] for f in found] == [2.0] * 5
    assert engine.most == 2
    seat.close()


def test_it_is_opened_once_and_closed_once_after_its_last_call(engine):
    seat, found = several(engine), []
    thread = start(seat, found)
    eventually(lambda: engine.inside == 1)
    assert seat.since_s is not None
    seat.close()
    time.sleep(0.05)
    assert engine.closed == 0, "a call is still inside"
    engine.go.release()
    thread.join(10)
    eventually(lambda: engine.closed == 1)
    assert (engine.opened, len(found), seat.ready) == (1, 1, False)


def test_a_call_that_is_cut_off_leaves_the_other_thread_free_and_comes_back(engine):
    seat, found = several(engine), []
    start(seat, found, 0.05).join(10)
    assert isinstance(found.pop(), EngineFault)
    assert not seat.stuck
    thread = start(seat, found)
    eventually(lambda: engine.inside == 2)
    with pytest.raises(EngineFault, match="busy with other calls"):
        seat.call(X, 0.05)
    engine.go.release(2)
    thread.join(10)
    eventually(lambda: engine.inside == 0)
    eventually(lambda: seat.since_s is None)
    threads = [start(seat, found) for _ in range(2)]
    eventually(lambda: engine.inside == 2)
    engine.go.release(2)
    for thread in threads:
        thread.join(10)
    assert len(found) == 3
    seat.close()


def test_both_cut_off_it_is_stuck(engine):
    seat, found = several(engine), []
    threads = [start(seat, found, 0.05) for _ in range(2)]
    for thread in threads:
        thread.join(10)
    assert seat.stuck
    engine.go.release(2)
    eventually(lambda: not seat.stuck)
    seat.close()


def test_one_that_does_not_open_is_broken_for_all_and_was_tried_once():
    tried = []

    def refuse():
        tried.append(1)
        raise ValueError("no")

    seat = Several(refuse, lambda: None, 3)
    eventually(lambda: seat.broken is not None and seat.since_s is None)
    assert (len(tried), seat.ready, str(seat.broken)) == (1, False, "no")
