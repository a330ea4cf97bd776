"""Coefficients from a few measurements: what the fit gives back, and what it refuses to invent."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.forecast.fitting import anchored, near, non_negative

AMOUNTS = np.array(
    [[10.0, 3.0, 1.0], [40.0, 5.0, 1.0], [5.0, 20.0, 1.0], [80.0, 60.0, 1.0], [20.0, 40.0, 1.0]]
)
COST = np.array([0.2, 0.05, 1.5])


def test_exact_measurements_give_their_coefficients_back() -> None:
    found = near(AMOUNTS, AMOUNTS @ COST, np.zeros(3), 1e-9)
    assert np.allclose(found, COST, rtol=1e-2)


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=12, max_size=12), st.lists(st.floats(-5, 5), min_size=4, max_size=4)
)
def test_no_other_non_negative_answer_is_nearer(flat: list[float], wanted: list[float]) -> None:
    a, b = np.array(flat).reshape(4, 3) + np.eye(4, 3), np.array(wanted)
    x = non_negative(a, b, sweeps=5000, tolerance=1e-12)
    assert (x >= 0).all()
    best = np.linalg.norm(a @ x - b)
    for k in range(3):
        for step in (-1e-3, 1e-3):
            other = x.copy()
            other[k] = max(0.0, other[k] + step)
            assert np.linalg.norm(a @ other - b) >= best - 1e-6


def test_one_measurement_that_fell_back_does_not_bend_the_others() -> None:
    measured = AMOUNTS @ COST
    measured[2] *= 20
    found = near(AMOUNTS, measured, COST, 1.0)
    off = np.abs(AMOUNTS @ found / (AMOUNTS @ COST) - 1)
    assert np.delete(off, 2).max() < 0.25


@settings(deadline=None)
@given(st.floats(0.01, 100))
def test_a_device_of_the_same_form_is_found_from_one_anchor_whatever_its_speed(speed: float) -> None:
    found = anchored(AMOUNTS[:1], AMOUNTS[:1] @ COST * speed, COST[None])
    assert np.allclose(AMOUNTS @ found, AMOUNTS @ COST * speed)


def test_of_several_forms_the_one_that_two_anchors_agree_with_is_taken() -> None:
    other = np.array([0.01, 0.9, 0.1])
    found = anchored(AMOUNTS[:2], AMOUNTS[:2] @ COST * 3, np.array([other, COST]))
    assert np.allclose(found, COST * 3)
