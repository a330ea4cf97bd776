"""An engine in a process of its own: the same numbers, and whatever happens to it is a typed error here."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekiln.engines import open_engine
from edgekiln.errors import BadInput, EngineFault, NotRunnableHere
from edgekiln.runtime.faults import not_finite
from edgekiln.runtime.isolated import STDERR_BYTES, Isolated
from fakes.guard_engine import NAME, WORKER
from fakes.guarded import (
    candidate,
    children,
    eventually,
    held,
    is_running,
    model_of,
    nothing_more,
    order,
    outer,
    picture,
)

guarded = partial(Isolated, command=WORKER)


@pytest.fixture
def running(tmp_path):
    """A misbehaving engine in its process, and its candidate."""
    one = candidate(tmp_path, engine=NAME)
    runner = guarded(one, limit_s=1.0)
    yield runner, one
    runner.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_it_gives_what_the_engine_gives_in_this_process(tmp_path, engine):
    one = candidate(tmp_path, engine=engine)
    here = open_engine(engine, one.artifact, Path(one.folder), 1)
    there = Isolated(one)
    for value in (0.1, 0.7):
        for name, output in here(picture(value)).items():
            np.testing.assert_array_equal(there(picture(value))[name], output)
    there.close()


def test_outputs_stay_as_they_are_when_the_next_call_comes(running):
    runner, _ = running
    first = runner(picture(0.1))["y"]
    kept = first.copy()
    runner(picture(0.9))
    np.testing.assert_array_equal(first, kept)


def test_inputs_of_any_size_find_room(tmp_path):
    runner = Isolated(candidate(tmp_path, graph=outer()))
    for n in (1, 1000, 10, 2000):
        assert runner({"x": np.ones((n, 1), np.float32)})["y"] == pytest.approx(n * n)
    runner.close()


def test_what_the_engine_refuses_is_refused_here_and_it_goes_on(running):
    runner, one = running
    with pytest.raises(EngineFault, match="Expected: 32"):
        runner({"x": np.ones((1, 3, 5, 5), np.float32)})
    with pytest.raises(BadInput, match="plain numbers"):
        runner({"x": np.array(["a"])})
    order(one, "raise")
    with pytest.raises(EngineFault, match="something nobody expected") as caught:
        runner(picture())
    assert caught.value.kind == "refused"
    order(one, "")
    assert np.isfinite(runner(picture())["y"]).all()


def test_a_file_that_is_no_model_is_refused_at_the_opening(tmp_path):
    one = candidate(tmp_path)
    model_of(one).write_bytes(b"no model")
    before = held()
    with pytest.raises(NotRunnableHere):
        Isolated(one)
    eventually(lambda: nothing_more(before))


@pytest.mark.parametrize(("what", "says"), [("segv", "SIGSEGV"), ("exit", "exit code 7")])
def test_a_crash_is_an_error_that_names_the_end(running, what, says):
    runner, one = running
    order(one, what)
    with pytest.raises(EngineFault, match=says) as caught:
        runner(picture())
    assert caught.value.kind == "crashed"
    assert not runner.alive()
    with pytest.raises(EngineFault):
        runner(picture())


def test_killed_in_mid_call(running):
    runner, one = running
    order(one, "hang")
    threading.Timer(0.2, os.kill, (runner.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineFault, match="SIGKILL") as caught:
        runner(picture())
    assert caught.value.kind == "crashed"


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_no_answer_within_the_limit_kills_it(running, how):
    runner, one = running
    if how == "stop":
        os.kill(runner.pid, signal.SIGSTOP)
    else:
        order(one, "hang")
    began = time.monotonic()
    with pytest.raises(EngineFault, match="no answer within 1 s") as caught:
        runner(picture())
    assert 0.9 < time.monotonic() - began < 5
    assert caught.value.kind == "hung"
    assert not is_running(runner.pid)


def test_an_opening_that_hangs_is_killed(tmp_path):
    one = candidate(tmp_path, engine=NAME)
    order(one, "hang at opening")
    before = held()
    with pytest.raises(EngineFault, match="no answer within 2 s"):
        guarded(one, start_s=2.0)
    eventually(lambda: nothing_more(before))


def test_out_of_memory_is_an_error_and_it_goes_on(tmp_path):
    runner = Isolated(candidate(tmp_path, graph=outer()), memory_bytes=600 << 20)
    for _ in range(2):
        assert runner({"x": np.ones((1000, 1), np.float32)})["y"] == pytest.approx(1e6)
        with pytest.raises(EngineFault) as caught:
            runner({"x": np.ones((20000, 1), np.float32)})  # 1.6 GB of activations
        assert caught.value.kind == "memory", caught.value.why
    runner.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_what_openvino_gives_when_memory_runs_out_is_no_answer(tmp_path, threads):
    """On one thread it raises nothing and leaves the last outputs there: its engine spoils those before."""
    one = msgspec.structs.replace(candidate(tmp_path, graph=outer(), engine="openvino"), threads=threads)
    runner = Isolated(one, memory_bytes=600 << 20)
    assert runner({"x": np.ones((1000, 1), np.float32)})["y"] == pytest.approx(1e6)
    fault = None
    try:
        found = runner({"x": np.ones((20000, 1), np.float32)})
    except EngineFault as error:
        fault = error
    assert fault.kind == "memory" if fault else not_finite(found) == "y"
    runner.close()


def test_a_talkative_library_neither_mixes_with_answers_nor_fills_the_memory(running):
    runner, one = running
    order(one, "chatty")
    for _ in range(600):
        runner(picture())
    assert "and from Python" in runner.last_words()
    assert os.fstat(runner._said.fileno()).st_size < STDERR_BYTES + 256 * 30_000


def test_nothing_is_left_of_it(tmp_path):
    one = candidate(tmp_path, engine=NAME)
    before = held()
    for what in ("", "segv", "hang"):
        order(one, "")
        runner = guarded(one, limit_s=0.3)
        runner(picture())
        order(one, what)
        if what:
            with pytest.raises(EngineFault):
                runner(picture())
        runner.close()
        runner.close()
    eventually(lambda: nothing_more(before))


def test_it_lives_on_when_the_thread_that_started_it_ends(tmp_path):
    one, made = candidate(tmp_path), []
    thread = threading.Thread(target=lambda: made.append(Isolated(one)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert np.isfinite(made[0](picture())["y"]).all()
    made[0].close()


PARENT = """
    import sys, time
    from fakes.guard_engine import WORKER
    from fakes.guarded import picture
    import msgspec
    from edgekiln.runtime.isolated import Isolated
    from edgekiln.runtime.vocabulary import Candidate
    runner = Isolated(msgspec.json.decode(sys.argv[1], type=Candidate), command=WORKER)
    print(runner.pid, flush=True)
    try:
        runner(picture())
        print("answered", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", runner.alive(), flush=True)
        print("finite", bool((runner(picture())["y"] == runner(picture())["y"]).all()), flush=True)
"""


def parent(one):
    """A process that runs ``one`` isolated and sleeps; and the pid of the engine's process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", textwrap.dedent(PARENT), msgspec.json.encode(one).decode()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("engine", ["idle", "hangs", "stopped"])
def test_it_ends_with_a_parent_that_is_killed(tmp_path, engine):
    one = candidate(tmp_path, engine=NAME)
    if engine == "hangs":
        order(one, "hang")
    process, pid = parent(one)
    if engine != "hangs":
        assert process.stdout.readline() == "answered\n"
    if engine == "stopped":
        os.kill(pid, signal.SIGSTOP)
    assert is_running(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not is_running(pid), 5)


def test_ctrl_c_goes_to_the_parent_alone(tmp_path):
    process, _ = parent(candidate(tmp_path, engine=NAME))
    assert process.stdout.readline() == "answered\n"
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.stdout.read().split("\n")[:2] == ["interrupted True", "finite True"]
    assert process.wait(10) == 0
    process.stdout.close()


def test_a_machine_without_memfd_uses_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    before = held(), children()
    runner = Isolated(candidate(tmp_path))
    assert np.isfinite(runner(picture())["y"]).all()
    runner.close()
    assert (held(), children()) == before
