"""The fallback chain in virtual time: engines whose every call is scripted, a clock that they move.

Engines are whole fakes here, so that any sequence of failures can be tried; the same chain runs on real
engines and processes in ``test_faults_*``.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput, Corrupt, DeadlineMissed, EngineFault, NoAnswer, NotRunnableHere
from edgekiln.records import Artifact, TensorSpec
from edgekiln.runtime.degrade import Chain
from edgekiln.runtime.standing import Rules
from edgekiln.runtime.vocabulary import Answer, Candidate, Rung

RULES = Rules(hung_ms=500.0)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=(2,)),)
X = {"x": np.ones(2, np.float32)}


def candidate(name, expected_ms=None):
    artifact = Artifact(
        id=name, target="t", recipe="r", engine="e", proof_engine="e", entry="m", files=(), options={},
        tools={}, precisions={},
    )  # fmt: skip
    rung = Rung(id=name, artifact_id=name, quality=1.0, quality_of="test", expected_ms=expected_ms)
    return Candidate(rung=rung, artifact=artifact, folder="/nowhere", engine="e", threads=1)


@dataclass
class World:
    """Virtual seconds, and what each engine does next: (what, milliseconds). Afterwards it is well."""

    now_s: float = 10_000.0
    scripts: dict = field(default_factory=dict)
    usual_ms: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    events: list = field(default_factory=list)
    open_now: int = 0

    def chain(self, names, **more):
        return Chain(
            [candidate(n) for n in names],
            open=lambda c: Engine(self, c.rung.id),
            open_apart=lambda c: Engine(self, c.rung.id),
            outputs=OUTPUTS,
            rules=RULES,
            tell=self.events.append,
            clock=lambda: self.now_s,
            seating=lambda open, changed, apart: VirtualSeat(self, open),
            tending=False,
            **more,
        )

    def next_of(self, name):
        script = self.scripts.get(name)
        return script.pop(0) if script else ("well", self.usual_ms.get(name, 5.0))


class Engine:
    def __init__(self, world, name):
        self.world, self.name = world, name
        script = world.scripts.get(name)
        if script and script[0][0].startswith("open:"):
            kind = script.pop(0)[0]
            raise (
                Corrupt("opening", name, "bad hash", "-")
                if "corrupt" in kind
                else NotRunnableHere("opening", name, "no", "-")
            )
        world.open_now += 1

    def close(self):
        self.world.open_now -= 1


class VirtualSeat:
    """What ``Threaded`` is, in virtual time."""

    def __init__(self, world, open):
        self.world, self.broken, self.engine = world, None, None
        self.busy_until_s, self.began_s, self.alive = 0.0, None, True
        try:
            self.engine = open()
        except Exception as error:
            self.broken = error

    @property
    def ready(self):
        return self.engine is not None

    @property
    def stuck(self):
        return self.world.now_s < self.busy_until_s

    @property
    def since_s(self):
        return self.began_s if self.stuck else None

    def call(self, inputs, limit_s):
        name, world = self.engine.name, self.world
        world.asked.append(name)
        what, ms = world.next_of(name)
        if what == "hang" or ms / 1e3 > limit_s:
            self.began_s = world.now_s
            self.busy_until_s = float("inf") if what == "hang" else world.now_s + ms / 1e3
            world.now_s += max(0.0, limit_s)
            raise EngineFault("timeout", name, "late", "-")
        world.now_s += ms / 1e3
        if what in {"crashed", "memory", "refused", "accelerator-lost"}:
            raise EngineFault(what, name, what, "-")
        if what == "unexpected":
            raise ZeroDivisionError("nobody knows")
        value = np.full(3 if what == "shape" else 2, np.nan if what == "nan" else 1.0, np.float32)
        return {"y": value}

    def close(self):
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def join(self, timeout_s):
        pass


def ask(chain, deadline_ms=50.0, rung=None):
    """The answer, or the typed error."""
    try:
        return chain.answer(lambda c: X, deadline_ms, rung)
    except (NoAnswer, DeadlineMissed) as error:
        return error


FAULTS = (
    "well", "hang", "crashed", "memory", "refused", "accelerator-lost", "unexpected", "nan", "shape",
    "open:corrupt", "open:refused",
)  # fmt: skip
# Deadline (ms), seconds until the next call, whether the watchdog looks, and which rung is asked for.
CALL = st.tuples(st.floats(1, 200), st.floats(0, 1), st.booleans(), st.integers(0, 3))
CALLS = st.lists(CALL, min_size=1, max_size=20)
SCRIPT = st.lists(st.tuples(st.sampled_from(FAULTS), st.floats(0.1, 120)), max_size=12)


@settings(deadline=None, max_examples=200)
@given(
    scripts=st.lists(SCRIPT, min_size=1, max_size=4),
    calls=st.lists(
        st.tuples(st.floats(1, 200), st.floats(0, 1), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    ),
)
def test_whatever_fails_there_is_an_answer_or_an_error_in_time_and_the_best_comes_back(scripts, calls):
    names = [f"c{n}" for n in range(len(scripts))]
    world = World(scripts=dict(zip(names, map(list, scripts), strict=True)))
    chain = world.chain(names)
    for deadline_ms, wait_s, tends, which in calls:
        began = world.now_s
        rung = None if which >= len(names) else names[which]
        found = ask(chain, deadline_ms, rung)
        assert world.now_s <= began + deadline_ms / 1e3 + 1e-9, "never later than the deadline"
        if isinstance(found, Answer):
            assert not found.late
            assert np.isfinite(found.outputs["y"]).all()
            assert found.latency_ms == pytest.approx((world.now_s - began) * 1e3)
        world.now_s += wait_s
        if tends:
            chain.tend()
    # All scripts end; then nobody fails any more.
    for _ in range(600):
        found = ask(chain, 200.0)
        world.now_s += 7.0
        chain.tend()
    assert isinstance(found, Answer)
    assert found.rung == "c0", "the best is used again at last"
    chain.close()
    assert world.open_now == 0, "every engine that was opened is closed"


def test_when_all_is_well_the_first_answers_and_one_more_is_open():
    world = World()
    chain = world.chain(["a", "b", "c"])
    assert [ask(chain).rung for _ in range(5)] == ["a"] * 5
    assert world.open_now == 2
    chain.close()


@pytest.mark.parametrize(
    "what", ["crashed", "memory", "accelerator-lost", "nan", "shape", "refused", "unexpected"]
)
def test_the_next_one_answers_in_the_same_call(what):
    world = World(scripts={"a": [(what, 5.0)]})
    chain = world.chain(["a", "b"])
    found = ask(chain)
    assert (found.rung, found.hops, found.late) == ("b", ("a",), False)
    chain.tend()
    kinds = {e.kind for e in world.events if e.what == "a"}
    told = {"nan": "not-finite", "shape": "refused", "unexpected": "refused"}.get(what, what)
    assert {told, "fallback"} <= kinds
    chain.close()


def test_a_hang_leaves_the_next_one_the_time_it_needs():
    world = World(usual_ms={"a": 20.0, "b": 8.0})
    chain = world.chain(["a", "b"])
    for _ in range(60):
        ask(chain, rung="b")
        ask(chain)
    world.scripts["a"] = [("hang", 0)]
    found = ask(chain)
    assert found.rung == "b"
    assert 40 < found.latency_ms <= 50, "the first had all but what the second needs"
    chain.close()


def test_one_that_fails_rests_and_is_then_tried_again():
    world = World(scripts={"a": [("nan", 5.0)]})
    chain = world.chain(["a", "b"])
    ask(chain)
    world.asked.clear()
    ask(chain)
    assert world.asked == ["b"], "it rests"
    world.now_s += RULES.first_s
    assert ask(chain).rung == "a"
    chain.tend()
    assert "recovered" in {e.kind for e in world.events}
    chain.close()


def test_one_that_flaps_is_demoted_and_comes_back():
    world = World()
    chain = world.chain(["a", "b"])
    for _ in range(3):
        world.now_s += 1
        ask(chain)
        world.scripts["a"] = [("nan", 5.0)]
        ask(chain)
    world.now_s += 20
    assert ask(chain).rung == "b"
    world.now_s += 60
    assert ask(chain).rung == "a"
    chain.close()


def test_the_last_one_standing_is_asked_though_it_rests():
    world = World(scripts={"a": [("nan", 5.0)]})
    chain = world.chain(["a"])
    assert isinstance(ask(chain), NoAnswer)
    assert ask(chain).rung == "a"
    chain.close()


def test_an_engine_that_answers_with_nan_again_is_opened_anew():
    world = World(scripts={"a": [("nan", 5.0), ("nan", 5.0)]})
    chain = world.chain(["a"])
    first = chain._post["a"].seat
    for _ in range(2):
        assert isinstance(ask(chain), NoAnswer)
    world.now_s += 1
    chain.tend()
    chain.tend()
    assert chain._post["a"].seat is not first
    assert ask(chain).rung == "a"
    chain.close()


def test_a_frame_that_everybody_refuses_is_held_against_nobody():
    world = World(scripts={"a": [("refused", 1.0)], "b": [("refused", 1.0)]})
    chain = world.chain(["a", "b"])
    error = ask(chain)
    assert isinstance(error, NoAnswer)
    assert "a: refused" in error.why
    assert ask(chain).rung == "a"
    chain.close()


def test_the_callers_own_mistakes_are_the_callers():
    world = World(scripts={"a": [("nan", 1.0)]})
    chain = world.chain(["a", "b"])
    with pytest.raises(BadInput, match="holds NaN"):
        chain.answer(lambda c: {"x": np.array([np.nan])}, 50.0)
    with pytest.raises(KeyError):
        chain.answer(lambda c: {}["x"], 50.0)
    with pytest.raises(BadInput, match="Known: a, b"):
        chain.answer(lambda c: X, 50.0, "z")
    with pytest.raises(BadInput):
        Chain([])
    assert ask(chain).rung == "a"
    chain.close()


def test_an_engine_that_hangs_is_replaced_by_one_in_a_process():
    world = World(scripts={"a": [("hang", 0)]})
    chain = world.chain(["a", "b"])
    ask(chain)
    world.now_s += 1
    chain.tend()
    assert [e.kind for e in world.events if "its call has taken" in e.why] == ["hung"]
    world.now_s += 1
    chain.tend()
    chain.tend()
    assert [e.done for e in world.events if e.kind == "opened" and e.what == "a"][
        -1
    ] == "in a process of its own"
    assert ask(chain).rung == "a"
    chain.close()


def test_an_engine_that_does_not_open_is_opened_later_and_later():
    world = World(scripts={"a": [("open:corrupt", 0)] * 6})
    chain = world.chain(["a", "b"])
    times = []
    for _ in range(3000):
        world.now_s += 0.01
        chain.tend()
        times += [e.at_s for e in world.events if e.kind == "corrupt"]
        world.events.clear()
    gaps = np.diff(times)
    assert len(times) == 6
    assert (gaps[1:] > gaps[:-1] * 0.99).all() or gaps[-1] > 4 * gaps[0]
    assert ask(chain).rung == "a"
    chain.close()


def test_a_clock_that_is_set_back_changes_nothing_but_one_event():
    world = World(scripts={"a": [("crashed", 5.0)]})
    chain = world.chain(["a", "b"])
    ask(chain)
    world.now_s -= 3600
    began = world.now_s
    assert ask(chain).rung == "b"
    world.now_s += 1
    for _ in range(3):
        chain.tend()
    assert ask(chain).rung == "a", "the rest has ended in spite of it"
    assert world.now_s - began < 2
    chain.tend()
    assert [e.kind for e in world.events].count("clock") == 1
    chain.close()


def test_a_listener_that_raises_harms_nobody():
    world = World(scripts={"a": [("crashed", 5.0)]})

    def tell(event):
        raise OSError("no space left on the device")

    world.events = type("Listener", (), {"append": staticmethod(tell)})()
    chain = world.chain(["a", "b"])
    assert ask(chain).rung == "b"
    chain.tend()
    assert chain._journal.untold > 0
    chain.close()


def test_a_named_rung_that_is_late_does_not_rest_and_its_time_is_told():
    world = World(scripts={"a": [("well", 80.0)] * 3}, usual_ms={"b": 4.0})
    chain = world.chain(["a", "b"])
    ask(chain, rung="b")
    told = []
    for _ in range(3):
        found = chain.answer(lambda c: X, 50.0, "a", lambda *one: told.append(one))
        assert (found.rung, found.hops) == ("b", ("a",))
        world.now_s += 0.1  # what was cut off has ended
    assert [(name, fault) for name, _, fault in told] == [("a", "timeout"), ("b", None)] * 3
    assert all(30 < ms <= 50 for name, ms, _ in told if name == "a")
    assert ask(chain, rung="a").rung == "a"
    chain.tend()
    assert "fallback" not in {e.kind for e in world.events}, "no change, but three late frames"
    assert [e.kind for e in world.events].count("timeout") == 3
    chain.close()


def test_a_named_rung_that_still_computes_is_stood_in_for_without_an_event():
    world = World(scripts={"a": [("well", 400.0)]}, usual_ms={"b": 4.0})
    chain = world.chain(["a", "b"])
    ask(chain, rung="b")
    ask(chain, rung="a")
    told = []
    found = chain.answer(lambda c: X, 50.0, "a", lambda *one: told.append(one))
    assert (found.rung, [name for name, _, _ in told]) == ("b", ["b"])
    chain.tend()
    assert {e.kind for e in world.events} == {"opened", "timeout"}
    chain.close()


def test_one_that_the_chain_chose_itself_and_is_late_rests():
    world = World(scripts={"a": [("well", 80.0)]}, usual_ms={"b": 4.0})
    chain = world.chain(["a", "b"])
    ask(chain)
    world.now_s += 0.1
    world.asked.clear()
    assert ask(chain).rung == "b"
    assert world.asked == ["b"]
    chain.close()
