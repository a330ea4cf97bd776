"""An engine on its own thread: answers, time limits, closing; with plain functions for engines."""

import threading
import time

import numpy as np
import pytest

from edgekiln.errors import EngineFault
from edgekiln.runtime.seat import Threaded
from fakes.guarded import count, eventually


class Engine:
    """Doubles its input after ``seconds``; counts who is inside."""

    def __init__(self, seconds=0.0):
        self.seconds, self.inside, self.most, self.closed, self.calls = seconds, 0, 0, 0, 0

    def __call__(self, inputs):
        self.inside += 1
        self.calls += 1
        self.most = max(self.most, self.inside)
        time.sleep(self.seconds)
        self.inside -= 1
        if inputs["x"] is None:
            raise ZeroDivisionError("asked for")
        return {"y": inputs["x"] * 2}

    def close(self):
        assert self.inside == 0, "closed in mid-call"
        self.closed += 1


@pytest.fixture(params=[False, True], ids=["threaded", "direct"])
def seated(request):
    def seat(engine):
        made = Threaded(lambda: engine, direct=request.param)
        eventually(lambda: made.ready)
        return made

    return seat


def test_it_answers_and_raises_what_the_engine_raises(seated):
    seat = seated(Engine())
    for n in range(100):
        assert seat.call({"x": n}, 1.0) == {"y": 2 * n}
    with pytest.raises(ZeroDivisionError, match="asked for"):
        seat.call({"x": None}, 1.0)
    assert seat.call({"x": 1}, 1.0) == {"y": 2}
    seat.close()


def test_an_engine_that_does_not_open_is_broken():
    told = threading.Event()

    def no():
        raise MemoryError("no room")

    seat = Threaded(no, told.set)
    assert told.wait(5)
    assert isinstance(seat.broken, MemoryError)
    assert not seat.ready
    seat.close()


def test_a_late_answer_goes_to_nobody_else():
    engine = Engine(0.3)
    seat = Threaded(lambda: engine)
    eventually(lambda: seat.ready)
    with pytest.raises(EngineFault, match=r"did not answer within 50\.0 ms") as caught:
        seat.call({"x": 1}, 0.05)
    assert caught.value.kind == "timeout"
    assert seat.stuck
    assert seat.since_s is not None
    with pytest.raises(EngineFault, match="busy with another call"):
        seat.call({"x": 2}, 0.05)
    assert seat.call({"x": 3}, 5.0) == {"y": 6}
    assert not seat.stuck
    assert engine.calls == 2, "who only waited for his turn never got to the engine"
    seat.close()


def test_threads_take_turns_and_each_gets_its_own(seated):
    engine, wrong = Engine(0.0005), []
    seat = seated(engine)

    def call(start):
        for n in range(start, start + 100):
            found = seat.call({"x": n}, 10.0)
            wrong.extend([n] * (found != {"y": 2 * n}))

    threads = [threading.Thread(target=call, args=(1000 * t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert engine.most == 1
    seat.close()
    eventually(lambda: engine.closed == 1)


def test_closing_under_fire_closes_once_ends_the_thread_and_leaves_no_caller_waiting(seated):
    threads_before = count("/proc/self/task")
    for _ in range(30):
        engine, outcomes = Engine(0.0005), []
        seat = seated(engine)

        def call(seat=seat, outcomes=outcomes):
            try:
                while True:
                    seat.call({"x": np.ones(1)}, 5.0)
            except EngineFault as error:
                outcomes.append(error.kind)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(0.003)
        seat.close()
        seat.close()
        for caller in callers:
            caller.join(4.0)
        assert outcomes == ["closed"] * 3
        eventually(lambda engine=engine: engine.closed == 1)
    eventually(lambda: count("/proc/self/task") == threads_before)


@pytest.mark.parametrize("direct", [False, True])
def test_a_call_that_begins_while_it_closes_starts_no_engine_that_nobody_kills(direct):
    """Closed at the moment at which the call notes when it began, before it hands its input over."""
    engine, reads = Engine(), []

    def clock():
        reads.append(0)
        if len(reads) == 3:  # the first was the opening's, the second the call's for its limit
            seat.close()
        return time.monotonic()

    seat = Threaded(lambda: engine, direct=direct, clock=clock)
    eventually(lambda: seat.ready)
    with pytest.raises(EngineFault) as caught:
        seat.call({"x": 1}, 1.0)
    assert caught.value.kind == "closed"
    assert engine.calls == 0
    eventually(lambda: engine.closed == 1)
