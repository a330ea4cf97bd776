"""Energy per inference: exact on powers whose integral is known, refused where nothing can be known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.sensors.energy import per_inference


def log(power, seconds=20.0, step=0.1):
    times = [k * step for k in range(round(seconds / step) + 1)]
    return times, [power(t) for t in times]


@given(st.floats(1, 50), st.floats(-2, 2), st.floats(1, 8), st.floats(9, 19), st.integers(1, 1000))
@settings(deadline=None)
def test_a_straight_line_is_integrated_exactly(base, slope, start, end, n):
    base = base + 20 * abs(slope)
    found = per_inference(*log(lambda t: base + slope * t), start, end, n, 0.5)
    joules = base * (end - start) + slope * (end**2 - start**2) / 2
    assert found.watts == pytest.approx(joules / (end - start), rel=1e-9)
    assert found.mj == pytest.approx((joules - 0.5 * (end - start)) * 1e3 / n, rel=1e-9)


def test_idle_power_is_taken_off_and_without_it_nothing_is_said():
    times, watts = log(lambda t: 7.0)
    assert per_inference(times, watts, 5, 15, 100, 5.0).mj == pytest.approx(200)
    unknown = per_inference(times, watts, 5, 15, 100, None)
    assert (unknown.mj, unknown.watts) == (None, pytest.approx(7))
    assert "idle" in unknown.reason


def without(times, watts, low, high):
    kept = [(t, w) for t, w in zip(times, watts, strict=True) if not low < t < high]
    return [t for t, _ in kept], [w for _, w in kept]


STEADY = log(lambda t: 7.0)


@pytest.mark.parametrize(
    ("times", "watts", "span", "reason"),
    [
        (*STEADY, (5, 30), "does not cover"),
        (*STEADY, (5, 5), "the run is empty"),
        (*without(*STEADY, 8, 11), (5, 15), "a hole of 3 s"),
        ([0, 1, 0.5, 2, 3, 4, 5, 6], [7.0] * 8, (1, 5), "stands still or goes back"),
        ([0, 1, 2, 3, 4, 5, 6], [7, 7, float("nan"), 7, 7, 7, 7], (1, 5), "no time or no power"),
        ([0, 1, 2, 3, 4, 5, 6], [7, 7, -1, 7, 7, 7, 7], (1, 5), "no time or no power"),
        (*STEADY, (5, 5.2), "are needed"),
        ([], [], (0, 1), "no two samples"),
        (STEADY[0], [3.0] * len(STEADY[0]), (5, 15), "less than idle"),
    ],
)
def test_what_can_t_be_integrated_is_refused_with_the_reason(times, watts, span, reason):
    found = per_inference(times, watts, *span, 10, 4.0)
    assert found.mj is None
    assert reason in found.reason


def test_a_hole_outside_the_run_does_no_harm():
    found = per_inference(*without(*STEADY, 1, 4), 5, 15, 10, 5.0)
    assert found.mj == pytest.approx(2000)
