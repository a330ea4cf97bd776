"""The circuit breaker and what is known of the link: rules that hold for any history."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime.hybrid.breaker import Breaker, BreakerRules, admit, record
from edgekiln.runtime.hybrid.link import Trip, Trips, bandwidth, link, observe, round_trip_ms, share_within

RULES = BreakerRules(failures=3, wait_s=1.0, growth=2.0, most_wait_s=8.0, trial_s=5.0)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("call", "ok", "failed", "stale")), st.floats(0.0, 4.0), st.none() | st.floats(0, 20)
    ),
    max_size=60,
)


def failed(breaker: Breaker, now_s: float, times: int = 1, **more: float) -> Breaker:
    for _ in range(times):
        breaker = record(breaker, RULES, now_s, ok=False, generation=breaker.generation, **more)
    return breaker


@given(STEPS)
@settings(deadline=None)
def test_for_any_history_an_open_breaker_lets_nothing_out_before_its_time_and_then_one_trial(
    steps: list[tuple[str, float, float | None]],
) -> None:
    breaker, now_s = Breaker(), 0.0
    for what, after_s, retry_s in steps:
        now_s += after_s
        before = breaker
        if what == "call":
            breaker, may = admit(breaker, RULES, now_s)
            if before.state == "closed":
                assert may
                assert breaker == before
            elif may:
                assert before.state == "open"
                assert now_s >= before.until_s
                assert breaker.state == "half-open"
            elif before.state == "open":
                assert now_s < before.until_s
        else:
            generation = breaker.generation - 1 if what == "stale" else breaker.generation
            ok = what == "ok"
            breaker = record(breaker, RULES, now_s, ok=ok, generation=generation, retry_after_s=retry_s)
            if what == "stale":
                assert breaker == before
            elif ok and before.state == "half-open":
                assert breaker.state == "closed"
        assert breaker.generation >= before.generation
        assert breaker.wait_s <= RULES.most_wait_s
        if breaker.state == "closed":
            assert breaker.failed < RULES.failures


@given(st.lists(st.booleans(), max_size=40))
@settings(deadline=None)
def test_it_opens_exactly_when_so_many_calls_in_a_row_have_failed(ends: list[bool]) -> None:
    breaker, row = Breaker(), 0
    for ok in ends:
        row = 0 if ok else row + 1
        breaker = record(breaker, RULES, 0.0, ok=ok, generation=0)
        if row == RULES.failures:
            assert breaker.state == "open"
            return
        assert breaker.state == "closed"


def test_each_trial_that_fails_doubles_the_wait_up_to_its_bound_and_success_forgets_it() -> None:
    breaker, waits = failed(Breaker(), 0.0, 3), []
    for _ in range(6):
        waits.append(breaker.until_s)
        breaker, may = admit(breaker, RULES, breaker.until_s)
        assert may
        assert not admit(breaker, RULES, waits[-1])[1], "one trial at a time"
        breaker = failed(breaker, waits[-1])
    assert [b - a for a, b in itertools.pairwise(waits)] == [2, 4, 8, 8, 8]
    breaker, _ = admit(breaker, RULES, breaker.until_s)
    breaker = record(breaker, RULES, 99.0, ok=True, generation=breaker.generation)
    assert breaker.state == "closed"
    assert failed(breaker, 100.0, 3).until_s == 101.0


def test_a_server_that_says_when_is_not_asked_before() -> None:
    breaker = failed(Breaker(), 0.0, retry_after_s=7.0)
    assert not admit(breaker, RULES, 6.9)[1]
    assert admit(breaker, RULES, 7.0)[1]


def test_a_trial_that_was_lost_without_a_word_does_not_keep_the_link_shut_for_ever() -> None:
    breaker, _ = admit(failed(Breaker(), 0.0, 3), RULES, 1.0)
    breaker, may = admit(breaker, RULES, 6.0)
    assert not may
    assert breaker.state == "open"
    assert admit(breaker, RULES, breaker.until_s)[1]


def trips(*figures: float, at_s: float = 0.0) -> Trips:
    known = Trips()
    for ms in figures:
        answered = math.isfinite(ms)
        known = observe(known, Trip(at_s=at_s, round_trip_ms=ms if answered else 50.0, answered=answered))
    return known


@given(st.lists(st.floats(0.1, 1e4) | st.just(math.inf), min_size=1, max_size=64), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_the_round_trip_is_kept_by_at_least_that_share_of_calls_and_by_none_smaller(
    figures: list[float], percentile: float
) -> None:
    found = round_trip_ms(trips(*figures), percentile, 0.0)
    assert found is not None
    assert sum(f <= found for f in figures) >= percentile * len(figures) - 1e-9
    assert sum(f < found for f in figures) < percentile * len(figures)


def test_calls_that_were_given_up_count_as_longer_than_any_limit() -> None:
    known = trips(10, 10, 10, math.inf)
    assert round_trip_ms(known, 0.75, 0.0) == 10
    assert round_trip_ms(known, 0.95, 0.0) == math.inf
    assert share_within(trips(math.inf, math.inf), 1e9, 0.0) == 0
    told = link(known, Breaker(), 0.95, 0.0)
    assert told.usable
    assert told.round_trip_ms == math.inf
    assert "95%" in told.why


def test_what_is_old_is_forgotten_and_nothing_known_is_none() -> None:
    known = trips(10)
    assert round_trip_ms(known, 0.5, 100.0) is None
    assert share_within(known, 20, 100.0) is None
    assert link(known, Breaker(), 0.5, 100.0).round_trip_ms is None


def test_the_last_calls_weigh_more() -> None:
    broke = share_within(trips(*[10] * 30, *[math.inf] * 4), 50, 0.0)
    healed = share_within(trips(*[math.inf] * 30, *[10] * 5), 50, 0.0)
    assert broke is not None
    assert healed is not None
    assert broke <= 0.5 < healed


def test_an_open_breaker_makes_the_link_unusable() -> None:
    assert not link(trips(5), failed(Breaker(), 0.0, 3), 0.95, 0.0).usable


@given(st.floats(1e4, 1e8), st.floats(1, 200), st.lists(st.integers(1000, 10**6), min_size=6, max_size=30))
@settings(deadline=None)
def test_bandwidth_is_found_from_calls_of_several_sizes_and_bounded_from_below_for_one(
    bytes_per_s: float, base_ms: float, sizes: list[int]
) -> None:
    known = Trips()
    for size in sizes:
        ms = base_ms + 1e3 * size / bytes_per_s
        known = observe(known, Trip(at_s=0.0, round_trip_ms=ms, sent_bytes=size))
    found = bandwidth(known, 0.0)
    assert found is not None
    if found.at_least:
        assert found.bytes_per_s <= bytes_per_s * 1.0001
    else:
        assert found.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)
    if max(sizes) > 2 * min(sizes):
        assert not found.at_least
