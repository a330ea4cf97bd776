"""Rows over time: nothing lost, bounded in number."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime.metrics import Metrics
from edgekiln.runtime.summary import Played, Timeline, played
from edgekiln.runtime.vocabulary import Goal, Health, Setting
from fakes.sessions import GOAL, LADDER, answer, hot_played

ODD = st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(0, 3)), min_size=1, max_size=120)


@settings(deadline=None)
@given(ODD, st.integers(2, 20))
def test_rows_add_up_to_the_session_and_touch_however_few_are_kept(
    steps: list[tuple[float, int]], most: int
) -> None:
    metrics, timeline, now = Metrics(GOAL, started_s=1000.0), Timeline(most), 1000.0
    for step, frames in steps:
        now += step
        for i in range(frames):
            metrics.frame_in("a")
            metrics.done("a", answer(10.0 * (i + 1) ** 3))
        metrics.dropped("a", 1, "queue full")
        timeline.add(metrics.snapshot(now))
    rows = timeline.rows()
    assert len(rows) <= most + 1
    if now > 1000.0:
        last = metrics.snapshot(now)
        assert sum(r.done for r in rows) == last.total.done
        assert sum(r.dropped for r in rows) == len(steps)
        assert rows[0].start_s == 0.0
        assert rows[-1].end_s == now - 1000.0
        assert all(a.end_s == b.start_s for a, b in pairwise(rows))


def test_a_long_session_keeps_few_rows_of_equal_length() -> None:
    metrics, timeline = Metrics(GOAL), Timeline()
    for second in range(20_000):
        timeline.add(metrics.snapshot(second + 1.0))
    rows = timeline.rows()
    assert 150 <= len(rows) <= 361
    lengths = {round(r.end_s - r.start_s) for r in rows[1:-1]}
    assert len(lengths) == 1


def test_a_row_tells_the_rung_that_held_longest_and_the_mean_power() -> None:
    metrics, timeline = Metrics(GOAL, LADDER), Timeline()
    timeline.add(metrics.snapshot(0.0))
    metrics.health(Health(at_s=0.0, power_watts=4.0))
    metrics.setting(Setting(rung=LADDER[0].id), LADDER[0], "the best", 0.0)
    metrics.setting(Setting(rung=LADDER[2].id), LADDER[2], "too hot", 1.0)
    metrics.health(Health(at_s=4.0, power_watts=8.0, temperature_c=70.0, trip_c=90.0))
    metrics.done("a", answer(20.0), quality=0.9)
    timeline.add(metrics.snapshot(4.0))
    (row,) = timeline.rows()
    assert row.rung == LADDER[2].id
    assert row.shares == {LADDER[0].id: 0.25, LADDER[2].id: 0.75}
    assert (row.power_watts, row.temperature_c, row.trip_c, row.quality) == (6.0, 70.0, 90.0, 0.9)
    assert row.highest_ms == pytest.approx(20.0, rel=0.02)


def test_the_record_goes_through_json() -> None:
    found = hot_played(40)
    assert len(found.rows) == 40
    assert msgspec.json.decode(msgspec.json.encode(found), type=Played) == found


def test_events_that_were_left_out_are_counted() -> None:
    metrics, timeline = Metrics(Goal(deadline_ms=50.0)), Timeline()
    found = hot_played(40)
    for one in found.events:
        metrics.event(one)
    timeline.add(metrics.snapshot(1.0))
    few = played(
        bundle="",
        model="",
        device="",
        engine="",
        goal=GOAL,
        ladder=(),
        timeline=timeline,
        events=found.events[:2],
    )
    assert few.events_left_out == len(found.events) - 2


def test_no_snapshot_is_no_summary() -> None:
    with pytest.raises(ValueError, match="at least one"):
        played(bundle="", model="", device="", engine="", goal=GOAL, ladder=(), timeline=Timeline())
