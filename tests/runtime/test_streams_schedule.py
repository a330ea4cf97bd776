"""Turns are fair and starve nobody; batches and calls at once are chosen by what was measured."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.runtime.streams.schedule import (
    Batches,
    Turns,
    choose_batch,
    choose_calls,
    due,
    pick,
    turns,
)

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=8)


def served(state: Turns, waiting: list[int], most: int, rounds: int) -> tuple[Turns, list[int]]:
    counts = [0] * len(waiting)
    for _ in range(rounds):
        state, picked = pick(state, waiting, most)
        for place in picked:
            counts[place] += 1
    return state, counts


def test_equal_streams_take_turns() -> None:
    state, order = turns([1.0] * 3), []
    for _ in range(3):
        state, picked = pick(state, [5, 5, 5], 2)
        order += picked
    assert order == [0, 1, 2, 0, 1, 2]


def test_a_heavier_stream_gets_more_and_not_in_bursts() -> None:
    state, order = turns([3.0, 1.0]), []
    for _ in range(12):
        state, picked = pick(state, [9, 9], 1)
        order += picked
    assert order.count(0) == 9
    # Six in a row is what the bound allows at most; a round of deficit round robin would do it always.
    assert max(len(list(run)) for place, run in itertools.groupby(order) if place == 0) <= 4


@given(WEIGHTS, st.integers(1, 8), st.integers(1, 60))
@settings(deadline=None)
def test_streams_that_always_wait_are_never_further_apart_than_a_frame_each(
    weights: list[float], most: int, rounds: int
) -> None:
    _, counts = served(turns(weights), [most] * len(weights), most, rounds)
    shares = list(zip(counts, weights, strict=True))
    for (a, wa), (b, wb) in itertools.combinations(shares, 2):
        assert abs(a / wa - b / wb) <= 1 / wa + 1 / wb + 1e-6
    assert sum(counts) == most * rounds


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0.05, 20), min_size=n, max_size=n),
            st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=30),
        )
    ),
    st.integers(1, 8),
)
@settings(deadline=None)
def test_it_takes_what_waits_and_nothing_else(case: tuple[list[float], list[list[int]]], most: int) -> None:
    weights, arrivals = case
    state = turns(weights)
    for waiting in arrivals:
        state, picked = pick(state, waiting, most)
        assert len(picked) == min(most, sum(waiting)), "no turn is wasted while a frame waits"
        assert all(picked.count(i) <= count for i, count in enumerate(waiting))


@given(st.integers(2, 8), st.lists(st.lists(st.booleans(), min_size=8, max_size=8), max_size=60))
@settings(deadline=None)
def test_no_stream_starves_whatever_the_others_do(n: int, busy: list[list[bool]]) -> None:
    """Stream 0 always waits: of equals it is served at least once in n turns, whoever comes and goes."""
    state, since = turns([1.0] * n), 0
    for row in busy:
        state, (place,) = pick(state, [1, *(3 * row[i] for i in range(1, n))], 1)
        since = 0 if place == 0 else since + 1
        assert since < n


@given(st.integers(1, 400))
@settings(deadline=None)
def test_a_stream_that_was_away_saves_nothing_up(away: int) -> None:
    state, _ = served(turns([1.0, 1.0, 1.0]), [1, 1, 0], 1, away)
    _, counts = served(state, [9, 9, 9], 1, 9)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(BadInput):
        turns([1.0, weight])


# ---------------------------------------------------------------- when


def test_without_a_burst_what_is_there_is_answered_at_once() -> None:
    assert due(0, 1, 4, 0.0, 1000.0, flush=False) == 0
    assert due(3, 1, 4, 0.0, 1000.0, flush=False) == 3
    assert due(9, 1, 4, 0.0, 1000.0, flush=False) == 4


def test_a_burst_is_gathered_until_it_is_whole_or_patience_ends_or_no_more_come() -> None:
    assert due(7, 8, 2, 10.0, 1000.0, flush=False) == 0
    assert due(8, 8, 2, 10.0, 1000.0, flush=False) == 2
    assert due(7, 8, 2, 1000.0, 1000.0, flush=False) == 2
    assert due(1, 8, 2, 10.0, 1000.0, flush=True) == 1


# ---------------------------------------------------------------- how many


def test_a_larger_batch_has_to_pay() -> None:
    assert choose_batch({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}, 8) == 1, "as on a CPU: no gain"
    assert choose_batch({1: 10.0, 2: 11.0, 4: 14.0, 8: 24.0}, 8) == 8
    assert choose_batch({1: 10.0, 2: 11.0, 4: 14.0, 8: 27.5}, 8) == 4, "2 % more is not worth it"
    assert choose_batch({1: 10.0, 2: 11.0, 4: 14.0, 8: 24.0}, 3) == 2
    assert choose_batch({1: 10.0, 2: 11.0, 4: 14.0, 8: 24.0}, 8, limit_ms=15.0) == 4
    assert choose_batch({}, 8) == 1
    assert choose_batch({1: 50.0}, 8, limit_ms=10.0) == 1


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100), min_size=1),
    st.integers(1, 8),
    st.floats(0.1, 200),
)
def test_the_choice_keeps_its_bounds_and_is_nearly_the_best(
    latency_ms: dict[int, float], most: int, limit_ms: float
) -> None:
    chosen = choose_batch(latency_ms, most, limit_ms)
    allowed = {b: b / ms for b, ms in latency_ms.items() if b <= most and ms <= limit_ms}
    if not allowed:
        assert chosen == 1
        return
    assert chosen in allowed
    assert all(rate <= allowed[chosen] * 1.05**3 * (1 + 1e-9) for rate in allowed.values())


def test_more_calls_at_once_have_to_pay() -> None:
    assert choose_calls({1: 100.0, 2: 103.0, 4: 104.0}) == 1
    assert choose_calls({1: 100.0, 2: 140.0, 4: 141.0}) == 2
    assert choose_calls({}) == 1
    assert choose_calls({2: 80.0, 4: 120.0}) == 4


def simulated(batches: Batches, cost: dict[int, float], calls: int, **bounds: float) -> list[int]:
    chosen = []
    for _ in range(calls):
        size = batches.choose(8, **bounds)
        batches.observe(size, cost[size])
        chosen.append(size)
    return chosen


def test_batches_are_measured_first_and_again_when_things_change() -> None:
    batches = Batches()
    pays = {1: 10.0, 2: 11.0, 4: 14.0, 8: 24.0}
    first = simulated(batches, pays, 300)
    assert set(first[:12]) == {1, 2, 4, 8}
    assert first[12:].count(8) > 270
    no_longer = {1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}
    assert simulated(batches, no_longer, 2000)[-1] in {1, 2, 4}
    assert simulated(batches, no_longer, 9000)[-60:].count(1) > 50


def test_a_size_that_would_break_the_limit_is_not_tried_and_comes_back_when_the_load_goes() -> None:
    batches = Batches()
    loaded = {1: 30.0, 2: 35.0, 4: 45.0, 8: 70.0}
    chosen = simulated(batches, loaded, 500, limit_ms=50.0)
    assert set(chosen) <= {1}, "two calls of one take 60 ms, so nobody knows that 2 would do"
    idle = {1: 10.0, 2: 11.0, 4: 14.0, 8: 24.0}
    assert simulated(batches, idle, 500, limit_ms=50.0)[-1] == 8


def test_a_batch_is_never_larger_than_what_is_allowed() -> None:
    batches = Batches()
    for _ in range(50):
        size = batches.choose(2)
        assert size <= 2
        batches.observe(size, 10.0)
    batches.observe(3, 1.0)
    assert 3 not in batches.latency_ms
