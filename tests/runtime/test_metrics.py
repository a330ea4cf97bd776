"""What a session counts."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime import histogram as h
from edgekiln.runtime import metrics as m
from edgekiln.runtime.joules import Joules
from edgekiln.runtime.metrics import Metrics, Snapshot
from edgekiln.runtime.vocabulary import Answer, Call, Event, Goal, Health, Rung, Setting

GOAL = Goal(deadline_ms=50.0)
HIGH = Rung(id="high", artifact_id="a", quality=1.0, quality_of="agreement")
LOW = Rung(id="low", artifact_id="b", quality=0.9, quality_of="agreement")


def answer(latency_ms: float, rung: str = "high", place: str = "edge", **more: object) -> Answer:
    return Answer(outputs={}, rung=rung, place=place, latency_ms=latency_ms, **more)  # type: ignore[arg-type]


def test_every_frame_is_counted_by_how_it_ended() -> None:
    metrics = Metrics(GOAL)
    metrics.frame_in("gate", 6)
    metrics.done("gate", answer(20.0), quality=1.0)
    metrics.done("gate", answer(70.0), quality=0.5)
    metrics.done("gate", answer(70.0), deadline_ms=100.0)
    metrics.done("gate", answer(20.0, late=True))
    metrics.dropped("gate", 1, "queue full")
    metrics.failed("gate", 1, "timeout")
    found = metrics.snapshot(1.0)
    assert found.streams["gate"] == m.FrameCounts(
        entered=6, done=4, late=2, dropped={"queue full": 1}, failed={"timeout": 1}
    )
    assert found.quality == 0.75
    assert found.latency.n == 4
    assert found.latency.sum_ms == 180.0


def test_all_streams_together() -> None:
    metrics = Metrics(GOAL)
    for stream in ("a", "b"):
        metrics.frame_in(stream, 3)
        metrics.done(stream, answer(60.0))
        metrics.dropped(stream, 2, "queue full")
    metrics.dropped("b", 1, "every 2nd frame")
    total = metrics.snapshot(1.0).total
    assert (total.entered, total.done, total.late) == (6, 2, 2)
    assert total.dropped == {"queue full": 4, "every 2nd frame": 1}


def test_time_belongs_to_the_setting_of_that_time() -> None:
    metrics = Metrics(GOAL, (HIGH, LOW), started_s=100.0)
    metrics.setting(Setting(rung="high"), HIGH, "the best", 101.0)
    metrics.setting(Setting(rung="low"), LOW, "too hot", 105.0)
    found = metrics.snapshot(106.5)
    assert {r: u.seconds for r, u in found.rungs.items()} == {"high": 4.0, "low": 1.5}
    assert (found.setting, found.setting_why, found.setting_since_s) == (
        Setting(rung="low"),
        "too hot",
        105.0,
    )
    assert found.changes == 1
    assert metrics.snapshot(104.0).rungs == found.rungs, "a clock set back takes nothing away"


def test_who_answered_is_counted() -> None:
    metrics = Metrics(GOAL, (HIGH, LOW))
    metrics.done("a", answer(10.0, "low", hops=("high",)))
    metrics.done("a", answer(10.0, "high", place="cloud"))
    metrics.call(Call(at_s=0.0, rung="low", batch=1, latency_ms=500.0))
    metrics.call(Call(at_s=0.0, rung="high", batch=1, latency_ms=900.0, ok=False), place="cloud")
    found = metrics.snapshot(1.0)
    assert (found.rescued, found.offloaded) == (1, 1)
    assert (found.calls, found.failed_calls, found.busy_s) == (2, 1, 0.5)
    assert found.rungs["low"].frames == found.rungs["high"].frames == 1


def test_strangers_names_do_not_fill_memory() -> None:
    metrics = Metrics(GOAL)
    for i in range(1000):
        metrics.frame_in(f"stream {i}")
        metrics.dropped("stream 0", 1, f"reason {i}")
        metrics.done("stream 0", answer(5.0, rung=f"rung {i}"))
    found = metrics.snapshot(1.0)
    assert len(found.streams) == m.MOST_STREAMS + 1
    assert len(found.rungs) == m.MOST_RUNGS + 1
    assert len(found.streams["stream 0"].dropped) == m.MOST_REASONS + 1
    assert found.total.entered == found.streams["stream 0"].done == 1000


def test_a_million_frames_take_no_more_memory_than_a_thousand() -> None:
    metrics = Metrics(GOAL, (HIGH,))
    event = Event(at_s=0.0, kind="change", what="high")

    def play(n: int) -> None:
        for i in range(n):
            metrics.frame_in("a")
            metrics.done("a", answer(0.01 * (1 + i % 10_000)))
            if i % 100 == 0:
                metrics.event(event)

    play(60_000)
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    play(100_000)
    after = tracemalloc.take_snapshot()
    grown = sum(d.size_diff for d in after.compare_to(before, "filename") if "metrics" in str(d.traceback))
    tracemalloc.stop()
    play(840_000)
    assert grown < 10_000
    assert metrics.snapshot(1.0).latency.n == 1_000_000
    assert len(metrics.recent()) == m.KEPT_EVENTS


def test_a_frame_costs_microseconds() -> None:
    metrics, one = Metrics(GOAL), answer(12.0)
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(2000):
            metrics.frame_in("a")
            metrics.done("a", one, quality=1.0)
        rounds.append((time.perf_counter() - start) / 2000)
    assert min(rounds) < 100e-6, "a hundred is far above what it takes: only a lock held over I/O fails here"


def test_no_count_is_lost_between_threads() -> None:
    metrics, before = Metrics(GOAL), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    looked: list[Snapshot] = []

    def play(stream: str) -> None:
        for i in range(3000):
            metrics.frame_in(stream)
            metrics.done(stream, answer(float(i % 90 + 1)))

    try:
        threads = [threading.Thread(target=play, args=(s,)) for s in ("a", "b", "a", "c")]
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads):
            looked.append(metrics.snapshot(1.0))
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert metrics.snapshot(2.0).total.done == metrics.snapshot(2.0).latency.n == 12_000
    for one in looked:
        assert one.latency.n == one.total.done <= one.total.entered, "a snapshot is of one moment"


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e4), max_size=40), st.lists(st.floats(0.01, 1e4), max_size=40))
def test_two_snapshots_subtract_to_what_happened_between(first: list[float], then: list[float]) -> None:
    metrics = Metrics(GOAL)
    for latency in first:
        metrics.done("a", answer(latency))
    before = metrics.snapshot(1.0)
    for latency in then:
        metrics.done("a", answer(latency))
    between = h.since(before.latency, metrics.snapshot(2.0).latency)
    assert (between.buckets, between.counts) == (h.histogram(then).buckets, h.histogram(then).counts)


def test_a_snapshot_goes_through_json() -> None:
    metrics = Metrics(GOAL, (HIGH,))
    metrics.done("a", answer(20.0), quality=0.9)
    metrics.health(Health(at_s=0.5, temperature_c=50.0, zone="cpu"))
    metrics.setting(Setting(rung="high"), HIGH, "the best", 0.1)
    found = metrics.snapshot(1.0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Snapshot) == found


# ---------------------------------------------------------------- energy


def powered(watts: list[float | None], idle: float | None, per_second: int = 10) -> Joules:
    joules = Joules(idle)
    for second, power in enumerate(watts):
        joules.read(float(second), power, per_second * second)
    return joules


def test_energy_is_what_was_integrated_above_idle() -> None:
    found = powered([10.0] * 11, idle=4.0).energy()
    assert found.mj == pytest.approx(600.0)
    assert (found.watts, found.idle_watts, found.inferences) == (pytest.approx(10.0), 4.0, 100)


def test_where_power_was_unknown_neither_energy_nor_inferences_count() -> None:
    found = powered([10.0] * 6 + [None] * 5 + [10.0] * 6, idle=4.0)
    assert found.seconds == 10.0
    assert found.energy().mj == pytest.approx(600.0)
    hole = Joules(4.0)
    for at_s in (0.0, 1.0, 2.0, 3.0, 100.0, 101.0, 102.0, 103.0):
        hole.read(at_s, 10.0, int(at_s * 10))
    assert hole.seconds == 6.0
    assert hole.energy().mj == pytest.approx(600.0)


@pytest.mark.parametrize(
    ("watts", "idle", "per_second", "reason"),
    [
        ([], 4.0, 10, "no power was read"),
        ([None, None], 4.0, 10, "no power was read"),
        ([float("nan")] * 9, 4.0, 10, "no power was read"),
        ([10.0] * 3, 4.0, 10, "too rarely"),
        ([10.0] * 9, None, 10, "idle power was not measured"),
        ([10.0] * 9, 12.0, 10, "less than idle"),
        ([10.0] * 9, 4.0, 0, "nothing was answered"),
    ],
)
def test_an_unknown_energy_has_its_reason(
    watts: list[float | None], idle: float | None, per_second: int, reason: str
) -> None:
    found = powered(watts, idle, per_second).energy()
    assert found.mj is None
    assert reason in found.reason


def test_a_clock_set_back_gives_no_energy_back() -> None:
    joules = powered([10.0] * 9, idle=4.0)
    joules.read(2.0, 10.0, 90)
    joules.read(9.0, 10.0, 90)
    assert joules.joules == pytest.approx(90.0)
