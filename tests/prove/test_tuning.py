"""The search for engine options: its rules against a fake machine, and the whole of it in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.prove.statistics import TIE_MARGIN, ratio_of_medians
from edgekiln.prove.timing import Contender
from edgekiln.prove.tuning import CONTENDED, Options, alike, search, space, tune
from fakes.networks import picture
from fakes.variants import artifact


class Machine:
    """A machine whose latencies are known: ``factors`` by option and value, ``loaded`` those beside a busy
    process. ``now`` counts the seconds of sampling."""

    def __init__(
        self,
        factors: dict[tuple[str, Any], float],
        loaded: dict[tuple[str, Any], float] | None = None,
        noise: float = 0.01,
        rounds: int = 12,
        broken: tuple[Options, ...] = (),
    ) -> None:
        self.factors, self.loaded, self.noise = factors, loaded or {}, noise
        self.rounds, self.broken = rounds, broken
        self.now, self.runs = 0.0, list[tuple[list[Options], bool]]()
        self.random = np.random.default_rng(0)

    def __call__(self, changes: Any, seconds: float, loaded: bool) -> list[tuple[tuple[float, ...], ...]]:
        assert seconds > 0
        self.now += seconds
        self.runs.append((list(changes), loaded))
        mood = self.random.normal(1, 0.05, self.rounds)
        made = []
        for change in changes:
            factor = 1.0
            for pair in change.items():
                idle = self.factors.get(pair, 1.0)
                factor *= self.loaded.get(pair, idle) if loaded else idle
            noise = self.random.normal(1, self.noise, (self.rounds, 8))
            blocks = 10 * factor * mood[:, None] * np.abs(noise)
            made.append(() if change in self.broken else tuple(tuple(map(float, b)) for b in blocks))
        return made


def searched(machine: Machine, changes: list[Options], seconds: float = 20, same: Any = None) -> Any:
    return search("host.x", changes, machine, same or (lambda _: True), seconds)


A, B, SPIN = {"arena": False}, {"io_binding": True}, {"spinning": True}


def test_a_clear_gain_is_taken_and_stands_in_the_rows() -> None:
    found = searched(Machine({("arena", False): 0.8}), [A, B])
    assert found.options == A
    (taken,) = [t for t in found.trials if t.taken]
    assert (taken.stage, taken.options, taken.artifact_id) == ("confirm", A, "host.x")
    assert taken.ratio == pytest.approx(0.8, abs=0.02)
    tried = [t.options for t in found.trials if t.stage == "screen"]
    assert tried == [A, B]


def test_two_gains_are_taken_together() -> None:
    found = searched(Machine({("arena", False): 0.8, ("io_binding", True): 0.85}), [A, B])
    assert found.options == {**A, **B}


def test_what_only_luck_made_promising_is_left_out() -> None:
    class Lucky(Machine):
        def __call__(self, changes: Any, seconds: float, loaded: bool) -> Any:
            self.factors["io_binding", True] = 1.0 if self.runs else 0.9
            return super().__call__(changes, seconds, loaded)

    found = searched(Lucky({("arena", False): 0.7}, noise=0.001), [A, B])
    assert [t.options for t in found.trials if t.stage == "confirm"] == [A, B, {**A, **B}]
    assert found.options == A


def test_a_gain_within_the_tie_margin_is_not_taken() -> None:
    found = searched(Machine({("arena", False): 0.99}, noise=0.0001), [A])
    assert found.options == {}


def test_spinning_that_loses_under_load_is_not_taken_and_says_why() -> None:
    machine = Machine({("spinning", True): 0.7}, loaded={("spinning", True): 1.5})
    found = searched(machine, [SPIN])
    assert found.options == {}
    assert [loaded for _, loaded in machine.runs] == [False, False, True]
    (row,) = [t for t in found.trials if t.stage == "confirm"]
    assert "busy" in row.note
    assert next(t for t in found.trials if t.stage == "loaded").ratio == pytest.approx(1.5, abs=0.1)


def test_spinning_that_holds_under_load_is_taken() -> None:
    assert searched(Machine({("spinning", True): 0.7}), [SPIN]).options == SPIN


def test_the_gain_without_spinning_remains_where_spinning_fails() -> None:
    machine = Machine({("spinning", True): 0.7, ("arena", False): 0.8}, loaded={("spinning", True): 1.5})
    assert searched(machine, [SPIN, A]).options == A


def test_what_changes_the_outputs_is_not_taken() -> None:
    found = searched(Machine({("arena", False): 0.5}), [A], same=lambda change: change != A)
    assert found.options == {}
    assert any("judged again" in t.note for t in found.trials)


def test_what_cannot_run_is_a_row_and_the_others_go_on() -> None:
    found = searched(Machine({("io_binding", True): 0.8}, broken=(A,)), [A, B])
    assert found.options == B
    row = next(t for t in found.trials if t.options == A)
    assert (row.ratio, row.taken, row.note) == (None, False, "it could not run")


def test_too_few_rounds_give_no_interval_and_nothing_is_taken() -> None:
    assert searched(Machine({("arena", False): 0.5}, rounds=3), [A]).options == {}


FACTORS = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "spinning", "threads"]), st.booleans()),
    st.floats(0.6, 1.4),
    min_size=1,
)


@given(FACTORS, FACTORS, st.floats(0, 0.2), st.floats(0.1, 40), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_what_is_taken_is_shown_to_be_faster_and_the_time_is_bounded(
    factors: dict[Any, float],
    loaded: dict[Any, float],
    noise: float,
    seconds: float,
    rounds: int,
) -> None:
    machine = Machine(factors, loaded, noise, rounds)
    changes: list[Options] = [{name: value} for name, value in factors]
    found = searched(machine, changes, seconds)
    assert machine.now <= seconds + 1e-9
    taken = [t for t in found.trials if t.taken]
    assert [t.options for t in taken] == ([found.options] if found.options else [])
    for row in taken:
        assert row.stage == "confirm"
        assert row.interval is not None
        assert row.interval[1] < 1 / (1 + TIE_MARGIN)
        if CONTENDED & row.options.keys():
            (beside,) = [t for t in found.trials if t.stage == "loaded" and t.options == row.options]
            assert beside.interval is not None
            assert beside.interval[1] <= 1 + TIE_MARGIN


def test_the_space_holds_nothing_that_the_artifact_has_already() -> None:
    plain = space(artifact("m.onnx", "onnxruntime", spinning=False), 4)
    assert SPIN in plain
    assert {"threads": 2} in plain
    assert {"threads": 1} in plain
    assert SPIN not in space(artifact("m.onnx", "onnxruntime", spinning=True), 4)
    assert not any("threads" in c for c in space(artifact("m.onnx", "onnxruntime"), 1))
    assert space(artifact("m.tflite", "litert"), 4) == ()


def test_alike_allows_the_order_of_a_sum_and_no_more() -> None:
    x = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert alike({"y": x}, {"y": x * (1 + 1e-6)})
    assert not alike({"y": x}, {"y": x * (1 + 1e-3)})
    assert not alike({"y": x}, {"z": x})
    assert not alike({"y": x}, {"y": x[:50]})
    assert not alike({"y": x}, {"y": np.full_like(x, np.nan)})
    assert alike({"y": np.zeros(3)}, {"y": np.zeros(3)})


def test_real_processes_are_measured_and_none_is_left(net: Path) -> None:
    made = artifact(net.name, "onnxruntime")
    inputs = {"image": picture(1)}
    contender = Contender(id="a", folder=str(net.parent), artifact=made, engine="onnxruntime")
    found = tune(contender, inputs, 1, 2.0)
    screened = [t for t in found.trials if t.stage == "screen"]
    assert [t.options for t in screened] == list(space(made, 1))
    assert all(t.ratio is not None and t.ratio > 0 for t in screened)
    assert found.options in ({}, *(t.options for t in found.trials if t.taken))


def test_the_same_blocks_give_the_interval_that_the_rows_hold() -> None:
    """The rows' figures are those of prove.statistics, not a second definition."""
    machine = Machine({("arena", False): 0.8})
    base, other = machine([{}, A], 1.0, False)
    again = Machine({("arena", False): 0.8})
    row = next(t for t in searched(again, [A]).trials if t.stage == "screen")
    expected = ratio_of_medians(other, base)
    assert (row.ratio, row.interval) == (expected.value, expected.interval)
