import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgekiln.prove.statistics import (
    _medians,
    drift,
    in_blocks,
    is_tie,
    paired_difference,
    percentiles,
    quantile_interval,
    ratio_of_medians,
    sign_test,
    wilson,
)

COUNTS = st.integers(0, 60)
MS = st.floats(0.01, 1000)
BLOCKS = st.lists(st.lists(MS, min_size=1, max_size=6), min_size=5, max_size=12)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_wilson(case):
    hits, n = case
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("table", "interval", "source"),
    [
        ((59, 6, 16, 80), (-0.1186, -0.0046), "Cavo 2012 in Fagerland et al., contingencytables 3.1"),
        ((1, 1, 7, 12), (-0.5069, -0.0256), "Bentur 2009 in Fagerland et al., contingencytables 3.1"),
        ((36, 12, 2, 0), (0.0569, 0.3404), "Newcombe 1998"),
    ],
)
def test_paired_difference_gives_the_published_limits(table, interval, source):
    assert tuple(round(x, 4) for x in paired_difference(*table)) == interval, source


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_paired_difference_encloses_the_difference_and_mirrors(both, first, second, neither):
    n = both + first + second + neither
    if n == 0:
        return
    low, high = paired_difference(both, first, second, neither)
    assert -1 <= low <= (first - second) / n + 1e-12
    assert (first - second) / n - 1e-12 <= high <= 1
    assert paired_difference(both, second, first, neither) == pytest.approx((-high, -low))


def test_paired_difference_covers_the_truth_about_95_percent_of_the_time():
    random = np.random.default_rng(3)
    cells = np.array([0.80, 0.06, 0.03, 0.11])
    tables = random.multinomial(150, cells, 2000)
    covered = [low <= 0.03 <= high for low, high in (paired_difference(*t) for t in tables)]
    assert 0.93 < np.mean(covered) < 0.985


@given(st.integers(0, 200), st.integers(0, 200))
def test_sign_test_is_scipys_binomial_test(wins, losses):
    if wins + losses:
        expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    else:
        assert sign_test(0, 0) == 1.0


@pytest.mark.parametrize(("n", "missing"), [(19, {"p95", "p99"}), (20, {"p99"}), (99, {"p99"}), (100, set())])
def test_a_percentile_the_sample_can_not_reach_is_missing_with_its_reason(n, missing):
    found = percentiles([float(i) for i in range(n)])
    assert set(found.reasons) == missing
    assert (found.p95 is None, found.p99 is None) == ("p95" in missing, "p99" in missing)
    assert all(str(n) in reason for reason in found.reasons.values())


@given(st.lists(MS, min_size=1, max_size=150))
def test_percentiles_are_ordered_and_inside_their_intervals(samples):
    found = percentiles(samples)
    assert min(samples) <= found.p50 <= max(samples)
    if found.p99 is not None and found.p95 is not None:
        assert found.p50 <= found.p95 <= found.p99 <= max(samples)
    for value, interval in ((found.p50, found.p50_interval), (found.p95, found.p95_interval)):
        if interval is not None and value is not None:
            assert interval[0] <= value <= interval[1]
            assert {*interval} <= {*samples}


@pytest.mark.parametrize(
    # The ranks that tables of the sign test give for the median (Conover; Hollander and Wolfe).
    ("n", "ranks"),
    [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18)), (5, None)],
)
def test_median_interval_uses_the_tabulated_ranks(n, ranks):
    found = quantile_interval([float(i) for i in range(1, n + 1)], 0.5)
    assert found == (None if ranks is None else (float(ranks[0]), float(ranks[1])))


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (200, 0.5), (200, 0.95), (1000, 0.95)])
def test_quantile_interval_has_at_least_its_coverage_and_little_more(n, q):
    low, high = (int(x) for x in quantile_interval([float(i) for i in range(1, n + 1)], q))
    coverage = stats.binom.cdf(high - 1, n, q) - stats.binom.cdf(low - 1, n, q)
    assert 0.95 <= coverage < 0.98


@settings(max_examples=40)
@given(BLOCKS, BLOCKS)
def test_swapping_the_contenders_inverts_the_ratio_and_its_interval(a, b):
    there, back = ratio_of_medians(a, b, 200), ratio_of_medians(b, a, 200)
    assert there.value == pytest.approx(1 / back.value)
    assert there.interval == pytest.approx((1 / back.interval[1], 1 / back.interval[0]))
    assert is_tie(a, b) == is_tie(b, a)


@settings(max_examples=40)
@given(BLOCKS)
def test_a_series_ties_with_itself(blocks):
    assert is_tie(blocks, blocks)
    assert ratio_of_medians(blocks, blocks, 100).interval == (1.0, 1.0)


@settings(max_examples=40)
@given(BLOCKS, st.floats(1.1, 20))
def test_a_constant_factor_is_found_through_any_noise_that_both_share(blocks, factor):
    slower = [[x * factor for x in block] for block in blocks]
    found = ratio_of_medians(slower, blocks, 200)
    assert found.value == pytest.approx(factor)
    assert found.interval == pytest.approx((factor, factor))
    assert not is_tie(slower, blocks)


def test_the_pooled_median_of_the_bootstrap_is_numpys_median():
    random = np.random.default_rng(0)
    blocks = [random.exponential(size=k) for k in (1, 4, 3, 7, 2)]
    draws = random.integers(0, 5, (50, 5))
    expected = [np.median(np.concatenate([blocks[i] for i in draw])) for draw in draws]
    assert _medians(blocks, draws) == pytest.approx(expected)


def test_ratio_interval_covers_the_truth_under_block_noise():
    random, hits = np.random.default_rng(1), 0
    for _ in range(60):
        mood = np.exp(random.normal(0, 0.3, 20))
        a, b = ([m * np.exp(random.normal(0, 0.05, 10)) * k for m in mood] for k in (1.1, 1.0))
        interval = ratio_of_medians(a, b, 300).interval
        hits += interval[0] <= 1.1 <= interval[1]
    assert hits >= 51


def test_a_difference_under_two_percent_and_too_few_rounds_are_ties():
    base = [[10.0, 10.01]] * 8
    assert is_tie([[x * 1.015 for x in block] for block in base], base)
    assert not is_tie([[x * 1.03 for x in block] for block in base], base)
    short = ratio_of_medians([[20.0]] * 4, [[10.0]] * 4)
    assert short.interval is None
    assert "4 alternated rounds" in short.reason
    assert is_tie([[20.0]] * 4, [[10.0]] * 4)


def test_drift_is_found_when_the_machine_slows_down_and_not_otherwise():
    random = np.random.default_rng(5)
    steady = random.normal(10, 0.3, (20, 10))
    assert not drift(steady).drifted
    heating = steady * np.linspace(1, 1.5, 20)[:, None]
    found = drift(heating)
    assert found.drifted
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert drift([[1.0]]).interval is None


@given(st.lists(MS, min_size=1, max_size=80), st.integers(1, 15))
def test_cutting_into_blocks_loses_and_moves_nothing(samples, count):
    blocks = in_blocks(samples, count)
    assert [x for block in blocks for x in block] == samples
    assert len(blocks) == min(count, len(samples))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert math.isfinite(percentiles(samples).mad)
