"""Scales, ticks and labels."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekiln.report import charts, layout
from edgekiln.report.charts import Point
from edgekiln.report.layout import Box, Wanted

AREA = Box(50, 10, 960, 360)
FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=20))
@settings(deadline=None)
@example([0.0, 5e-324])
@example([1.0, 1.0000000000000002])
@example([1.0, 2.2250738585e-313])
def test_a_scale_holds_every_value_in_order_even_where_all_are_equal(values: list[float]) -> None:
    scale = layout.scale(values, 0, 100)
    places = [scale(v) for v in sorted(values)]
    assert all(0 <= p <= 100 for p in places)
    assert places == sorted(places)
    assert scale.low < min(values) <= max(values) < scale.high


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=20), st.integers(3, 9))
def test_ticks_lie_inside_and_are_few(values: list[float], about: int) -> None:
    scale = layout.scale(values, 0, 100)
    ticks = scale.ticks(about)
    assert 1 <= len(ticks) <= about + 4
    assert all(scale.low * (1 - 1e-6) <= t <= scale.high * (1 + 1e-6) for t in ticks)
    assert list(ticks) == sorted(set(ticks))


def test_a_wide_range_is_logarithmic_and_a_narrow_one_is_not() -> None:
    assert layout.scale([1, 100], 0, 1).log
    assert not layout.scale([1, 2], 0, 1).log
    assert not layout.scale([-1, 100], 0, 1).log


def test_a_scale_without_a_finite_value_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        layout.scale([math.inf, math.nan], 0, 1)


def points(kind: str, count: int) -> list[Wanted]:
    texts = [(f"{i} onnxruntime int8-static-percentile", str(i)) for i in range(count)]
    places = {
        "spread": [(60 + 37 * i % 900, 20 + 83 * i % 340) for i in range(count)],
        "equal": [(500.0, 200.0)] * count,
        "corner": [(AREA.x, AREA.y + AREA.height)] * count,
        "row": [(60 + 900 * i / count, 300) for i in range(count)],
    }[kind]
    return [Wanted(x, y, text) for (x, y), text in zip(places, texts, strict=True)]


@pytest.mark.parametrize("kind", ["spread", "equal", "corner", "row"])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_labels_cover_neither_one_another_nor_a_mark_nor_a_line(kind: str, count: int) -> None:
    wanted = points(kind, count)
    line = (AREA.x, 150.0, AREA.x + AREA.width, 150.0)
    labels = layout.place(wanted, AREA, 12.5, 7.5, [line])
    assert len(labels) == count
    assert not any(a.box.meets(b.box) for a, b in itertools.combinations(labels, 2))
    marks = [Box(w.x - 7, w.y - 7, 14, 14) for w in wanted]
    assert not any(label.box.meets(mark) for label in labels for mark in marks)
    assert all(AREA.holds(label.box) for label in labels)
    thin = Box(AREA.x, 150.0, AREA.width, 0.01)
    assert not any(label.box.meets(thin) for label in labels)
    assert all(label.text in w.texts for label, w in zip(labels, wanted, strict=True))


def test_a_lonely_point_gets_its_full_name_without_a_leader() -> None:
    (label,) = layout.place([Wanted(300, 200, ("1 openvino bf16", "1"))], AREA, 12.5, 7.5)
    assert (label.text, label.leader) == ("1 openvino bf16", None)


@given(st.text(max_size=80), st.integers(8, 40))
def test_a_shortened_name_keeps_both_ends(text: str, limit: int) -> None:
    short = layout.shorten(text, limit)
    assert len(short) <= limit
    assert short == text if len(text) <= limit else short[0] == text[0] and short[-1] == text[-1]


@settings(max_examples=60)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=25))
def test_no_candidate_beats_one_of_the_front_and_each_other_is_beaten(
    pairs: list[tuple[float, float]],
) -> None:
    found = [Point(i, "", x, y, "measured", "beaten", "") for i, (x, y) in enumerate(pairs)]
    front = charts.pareto(found)

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    for i, pair in enumerate(pairs):
        beaten = any(beats(other, pair) for other in pairs)
        assert (i in front) <= (not beaten)
        assert beaten or any(pairs[f] == pair for f in front)


def test_each_evidence_class_has_a_shape_of_its_own() -> None:
    shapes = {charts.mark(how, 5, 5) for how in ("measured", "emulated", "predicted", "published", None)}
    assert len(shapes) == 5
