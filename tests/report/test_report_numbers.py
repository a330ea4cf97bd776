"""How figures are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.report import numbers

VALUES = st.floats(min_value=-1e14, max_value=1e14, allow_nan=False, allow_subnormal=False)
WRITERS = (
    numbers.significant,
    numbers.ms,
    numbers.megabytes,
    numbers.points,
    numbers.percent,
    numbers.decibels,
    numbers.seconds,
)


def read(text: str) -> float:
    """The number that a person reads in ``text``."""
    plain = text.replace(numbers.MINUS, "-").replace(",", "").lstrip("<>")
    mantissa, _, power = plain.partition("×10")
    raised = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(mantissa) * 10.0 ** int(raised or 0)


@given(VALUES)
def test_three_significant_digits_lose_at_most_half_a_unit_of_the_third(value: float) -> None:
    assert read(numbers.significant(value)) == pytest.approx(value, rel=0.00501, abs=1e-300)


@given(st.floats(min_value=-1e6, max_value=1e6, allow_nan=False))
def test_points_keep_a_twentieth_of_a_point(fraction: float) -> None:
    assert read(numbers.points(fraction)) == pytest.approx(fraction * 100, rel=1e-9, abs=0.0501)


@given(st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True))
def test_percent_never_calls_nearly_all_all_nor_nearly_nothing_nothing(fraction: float) -> None:
    text = numbers.percent(fraction)
    assert "<" in text or ">" in text or 0 < read(text) < 100
    assert read(text) == pytest.approx(fraction * 100, abs=0.0501)


@given(st.integers(min_value=0, max_value=10**14))
def test_megabytes_are_millions_of_bytes(size: int) -> None:
    assert read(numbers.megabytes(size)) == pytest.approx(size / 1e6, rel=0.00501)


@given(VALUES)
@pytest.mark.parametrize("write", WRITERS)
def test_zero_has_no_sign_and_a_minus_is_a_minus(write: object, value: float) -> None:
    text = write(value)  # type: ignore[operator]
    assert "-" not in text
    assert not (text.startswith(numbers.MINUS) and read(text) == 0)


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_not_known_is_a_dash(write: object) -> None:
    assert write(None) == write(math.nan) == numbers.MISSING  # type: ignore[operator]
    assert write(-0.0).strip("0.") == ""  # type: ignore[operator]


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (numbers.ms, 5.114, "5.11"),
        (numbers.ms, 111.4, "111"),
        (numbers.ms, 1234.4, "1,234"),
        (numbers.ms, 9.999, "10.0"),
        (numbers.significant, 3.6e-6, "3.60×10⁻⁶"),
        (numbers.significant, math.inf, "∞"),
        (numbers.significant, -math.inf, "−∞"),
        (numbers.megabytes, 5_180_000, "5.18"),
        (numbers.points, 0.05, "5.0"),
        (numbers.points, -0.012, "−1.2"),
        (numbers.points, 0.0004, "0.04"),
        (numbers.percent, 0.90625, "90.6"),
        (numbers.percent, 0.9996, "99.96"),
        (numbers.percent, 1.0, "100.0"),
        (numbers.decibels, 19.64, "19.6"),
        (numbers.decibels, math.inf, "∞"),
        (numbers.seconds, 0.004, "<0.01"),
        (numbers.seconds, 0.412, "0.41"),
        (numbers.seconds, 7.934, "7.93"),
    ],
)
def test_figures_read_as_in_the_table(write: object, value: float, text: str) -> None:
    assert write(value) == text  # type: ignore[operator]


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_an_interval_names_the_lower_bound_first(a: float, b: float) -> None:
    low, high = numbers.interval((a, b), numbers.points).split(" to ")
    assert read(low) <= read(high)


def test_no_interval_is_no_text() -> None:
    assert numbers.interval(None, numbers.points) == ""
    assert numbers.interval((math.nan, 1.0), numbers.points) == ""


@given(st.text())
def test_plain_text_moves_no_cursor_and_turns_no_direction(text: str) -> None:
    assert not set(numbers.plain(text)) & {"\x1b", "\x07", "\x08", "\r", "\u202e", "\u2066", "\x9b"}
    assert len(numbers.plain(text)) == len(text)
