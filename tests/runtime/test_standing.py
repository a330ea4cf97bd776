"""The rules by which failures count: pure functions, so any history can be tried."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime import standing as rule
from edgekiln.runtime.standing import RULES, Standing

TIMES = st.floats(0, 1e6)
NEEDS = st.floats(0.01, 1e4)
HISTORY = st.lists(st.tuples(st.booleans(), st.floats(0, 30), NEEDS), max_size=60)


def lived(history):
    """A candidate after ``history``: (answered, seconds since, latency), and the time it ended."""
    standing, now = Standing(), 0.0
    for good, wait, ms in history:
        now += wait
        standing = rule.answered(standing, now, ms) if good else rule.failed(standing, now, "seed")
    return standing, now


@settings(deadline=None)
@given(st.integers(1, 10_000), st.text(max_size=20))
def test_rests_double_up_to_the_most_with_half_of_them_jitter(failures, seed):
    whole = min(RULES.most_s, RULES.first_s * 2.0 ** min(failures - 1, 64))
    assert whole / 2 <= rule.backoff(failures, seed) <= whole
    assert rule.backoff(failures, seed) == rule.backoff(failures, seed)


def test_devices_do_not_come_back_together():
    rests = {round(rule.backoff(5, f"device {n}"), 3) for n in range(50)}
    assert len(rests) > 40


@settings(deadline=None)
@given(HISTORY)
def test_a_success_ends_the_rest_and_a_failure_begins_one(history):
    standing, now = lived(history)
    good = rule.answered(standing, now, 5.0)
    assert (good.failures, good.rests(now)) == (0, False)
    bad = rule.failed(standing, now, "seed")
    assert bad.failures == standing.failures + 1
    assert bad.rests(now)
    assert bad.until_s - now <= RULES.most_s


def test_one_that_keeps_falling_is_demoted_for_longer_each_time():
    standing, now, seen = Standing(), 0.0, []
    for _ in range(12):
        standing = rule.answered(standing, now, 5.0)
        before = standing.demotions
        standing = rule.failed(standing, now, "seed")
        if standing.demotions > before:
            seen.append(standing.demoted_until_s - now)
        now += 1
    assert seen == [60, 120, 240, 480]


def test_failures_in_a_row_are_one_fall_and_rare_ones_no_flapping():
    standing = Standing()
    for n in range(50):
        standing = rule.failed(standing, n, "seed")
    assert standing.demotions == 0
    standing = Standing()
    for n in range(50):
        standing = rule.answered(standing, 100 * n, 5.0)
        standing = rule.failed(standing, 100 * n + 50, "seed")
    assert standing.demotions == 0


def test_a_quiet_time_is_forgiven():
    standing = Standing()
    for now in range(3):
        standing = rule.failed(rule.answered(standing, now, 5.0), now, "seed")
    assert standing.demoted(10)
    standing = rule.answered(standing, 100, 5.0)
    assert standing.demotions == 1
    standing = rule.answered(standing, 200, 5.0)
    assert standing.demotions == 0


@settings(deadline=None)
@given(st.lists(st.floats(10, 20), min_size=30, max_size=200))
def test_what_is_learned_covers_steady_latencies_and_little_more(latencies):
    standing = Standing()
    for ms in latencies:
        standing = rule.timed(standing, ms)
    need = rule.need_ms(standing, None)
    assert 10 <= need <= 20 + 4 * 10
    assert rule.need_ms(rule.passed_over(standing), None) < need


def test_before_any_call_the_bundle_is_believed_and_then_the_calls():
    assert rule.need_ms(Standing(), None) is None
    assert rule.need_ms(Standing(), 10.0) == 15.0
    assert rule.need_ms(rule.timed(Standing(), 2.0), 10.0) == 2.0 + 4 * 1.0


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh"), HISTORY, min_size=1), st.booleans(), TIMES)
def test_order_has_everyone_once_the_well_first_and_the_resting_last(histories, named, later):
    names = list(histories)
    standings = {name: lived(history)[0] for name, history in histories.items()}
    preferred = names[-1] if named else None
    found = rule.order(names, standings, preferred, later)
    assert sorted(found) == sorted(names)
    groups = [2 if standings[n].rests(later) else int(standings[n].demoted(later)) for n in found]
    assert groups == sorted(groups)
    well = [n for n, g in zip(found, groups, strict=True) if g == 0]
    if preferred in well:
        assert well.pop(0) == preferred
    assert well == [n for n in names if n in well]


@settings(deadline=None)
@given(st.floats(0.1, 1e4), NEEDS, st.lists(NEEDS, max_size=5))
def test_a_candidate_never_takes_what_another_could_have_used(left, own, others):
    limit = rule.limit_ms(left, own, others)
    assert 0 <= limit <= left
    beside = [o for o in others if own + o <= left]
    if beside:
        assert left - limit == beside[0] or math.isclose(left - limit, beside[0], abs_tol=1e-6)
    elif own <= left:
        assert limit == left, "cut earlier it would fail for nobody's good"
    elif any(o < left for o in others):
        assert left - limit >= min(others) - 1e-6, "it is too slow anyway: somebody else still can"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), NEEDS), min_size=1, max_size=6), st.floats(0.1, 1e4))
def test_the_first_try_is_the_first_ones_and_later_ones_must_fit(ready, left):
    assert rule.pick(ready, left, first=True) == 0
    index = rule.pick(ready, left, first=False)
    fits = [i for i, (_, need) in enumerate(ready) if need <= left]
    assert index == (fits[0] if fits else min(range(len(ready)), key=lambda i: ready[i][1]))
