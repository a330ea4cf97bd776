"""The histogram's promises: error, sums, differences, order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime import histogram as h

latencies = st.floats(h.LEAST_MS, h.MOST_MS, allow_nan=False)
many = st.lists(latencies, min_size=1, max_size=60)


def nearest_rank(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1]


def test_the_stated_error_is_below_five_percent() -> None:
    assert h.RELATIVE_ERROR < 0.0193


@settings(deadline=None)
@given(many, st.floats(0, 1))
def test_a_quantile_is_within_the_stated_error_of_the_exact_one(values: list[float], share: float) -> None:
    exact = nearest_rank(values, share)
    told = h.quantile(h.histogram(values), share)
    assert told is not None
    assert abs(told - exact) <= exact * (h.RELATIVE_ERROR + 1e-9)


@settings(deadline=None)
@given(many, many)
def test_a_sum_is_the_histogram_of_both_and_a_difference_takes_it_back(
    a: list[float], b: list[float]
) -> None:
    together, whole = h.merged(h.histogram(a), h.histogram(b)), h.histogram(a + b)
    assert (together.buckets, together.counts, together.n) == (whole.buckets, whole.counts, whole.n)
    assert together.sum_ms == pytest.approx(whole.sum_ms)
    back = h.since(h.histogram(a), together)
    assert (back.buckets, back.counts) == (h.histogram(b).buckets, h.histogram(b).counts)


@settings(deadline=None)
@given(many, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_ascend(values: list[float], p: float, q: float) -> None:
    found = h.histogram(values)
    low, high = sorted((p, q))
    assert (h.quantile(found, low) or 0) <= (h.quantile(found, high) or 0)


@settings(deadline=None)
@given(latencies, latencies)
def test_buckets_ascend_with_the_latency(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= h.bucket_of(low) <= h.bucket_of(high) < h.BUCKETS


@pytest.mark.parametrize("power", range(-3, 8))
def test_every_power_of_ten_is_an_edge_and_belongs_to_the_bucket_below(power: int) -> None:
    bucket = h.bucket_of(10.0**power)
    assert h.edge_ms(bucket) == pytest.approx(10.0**power)
    if power < 7:
        assert h.bucket_of(10.0**power * 1.0001) == bucket + 1


@pytest.mark.parametrize(
    ("odd", "counts_as"),
    [
        (0.0, h.LEAST_MS),
        (-1.0, h.LEAST_MS),
        (float("nan"), h.LEAST_MS),
        (float("inf"), h.MOST_MS),
        (1e12, h.MOST_MS),
    ],
)
def test_what_is_no_latency_is_counted_at_an_end_and_breaks_nothing(odd: float, counts_as: float) -> None:
    found = h.histogram([odd])
    assert found.n == 1
    assert found.sum_ms == counts_as
    assert h.quantile(found, 0.5) == pytest.approx(counts_as, rel=h.RELATIVE_ERROR + 1e-9)


def test_nothing_has_no_quantile_and_no_mean() -> None:
    assert h.quantile(h.Histogram(), 0.99) is None
    assert h.mean_ms(h.Histogram()) is None
    with pytest.raises(ValueError, match="no share"):
        h.quantile(h.Histogram(), 1.5)


def test_a_difference_with_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        h.since(h.histogram([5.0]), h.histogram([7.0]))


def test_how_many_lie_below_an_edge_is_exact() -> None:
    source = random.Random(3)
    values = [source.lognormvariate(3, 1) for _ in range(500)]
    found = h.histogram(values)
    for edge in (1.0, 10.0, 100.0):
        assert h.below(found, h.bucket_of(edge)) == sum(v <= edge for v in values)
