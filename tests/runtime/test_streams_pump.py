"""Several sources through one answer: order, counts, fairness, faults, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput, DeviceFault
from edgekiln.runtime.streams import pump as module
from edgekiln.runtime.streams.frames import Frame, Pool
from edgekiln.runtime.streams.pump import Pump, Result, StreamCounts
from edgekiln.runtime.streams.sources import Patience, open_source
from edgekiln.runtime.vocabulary import Event, Setting
from fakes.videos import Camera, number_of, write_video

PLAIN = Setting(rung="best")


class Made:
    """A source of ``count`` frames (None: without end), one each ``interval_s``, that does what it is told.

    ``fails_at`` raises there, ``stalls`` (from, seconds) is silent for a while. ``live`` ones are dropped.
    """

    fps = None

    def __init__(
        self,
        name: str,
        count: int | None = 10,
        live: bool = False,
        interval_s: float = 0.0,
        fails_at: int | None = None,
        error: Exception | None = None,
        stalls: tuple[int, float] = (-1, 0.0),
    ) -> None:
        self.name, self.live, self.count, self.interval_s = name, live, count, interval_s
        self.fails_at, self.error, self.stalls = (
            fails_at,
            error or DeviceFault("x", "y", "it broke", "z"),
            stalls,
        )
        self.index = self.skipped = 0
        self.pool, self.closed, self.stopped = Pool(), 0, threading.Event()

    def _next(self) -> bool:
        self.stopped.wait(self.stalls[1] if self.index == self.stalls[0] else self.interval_s)
        if self.index == self.fails_at:
            raise self.error
        return not self.stopped.is_set() and (self.count is None or self.index < self.count)

    def read(self) -> Frame | None:
        if not self._next():
            return None
        pixels = self.pool.take((4, 4, 3))
        pixels[...] = self.index % 256
        self.index += 1
        return Frame(self.name, self.index - 1, time.monotonic(), pixels, self.pool)

    def skip(self) -> bool:
        if not self._next():
            return False
        self.index += 1
        self.skipped += 1
        return True

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.closed += 1


def values(frames: Sequence[Frame], setting: Setting) -> list[int]:
    return [int(frame.pixels[0, 0, 0]) for frame in frames]


def slowly(seconds: float) -> Callable[[Sequence[Frame], Setting], list[int]]:
    def answer(frames: Sequence[Frame], setting: Setting) -> list[int]:
        time.sleep(seconds)
        return values(frames, setting)

    return answer


def constant(**changes: Any) -> Callable[[], Setting]:
    return lambda: msgspec.structs.replace(PLAIN, **changes)


def assert_sound(counts: Sequence[StreamCounts]) -> None:
    for one in counts:
        parts = one.skipped + one.dropped + one.waiting + one.in_hand + one.answered + one.failed
        assert one.came == parts, one
        assert min(one.dropped, one.waiting, one.in_hand, one.answered, one.failed) >= 0


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("edgekiln-")] == []


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_frame_of_lossless_sources_is_answered_in_order(workers: int, batch: int) -> None:
    sources = [Made(f"s{i}", 40) for i in range(3)]
    told: list[Event] = []
    with Pump(sources, slowly(0.001), constant(batch=batch), workers=workers, tell=told.append) as pump:
        results = list(pump)
        counts = pump.counts()
        assert not pump.running
    for source in sources:
        own = [r for r in results if r.source == source.name]
        assert [r.index for r in own] == [r.answer for r in own] == list(range(40))
        assert source.closed == 1
    assert [(c.came, c.answered, c.dropped, c.waiting, c.in_hand) for c in counts] == [(40, 40, 0, 0, 0)] * 3
    assert max(r.batch for r in results) <= batch
    assert batch == 1 or max(r.batch for r in results) > 1
    assert all(r.waited_ms >= 0 and r.took_ms >= 0.9 and r.error == "" for r in results)
    assert Counter(e.kind for e in told) == {"source-ended": 3}


def test_pixels_reach_the_answer_without_a_copy() -> None:
    handed: list[Any] = []

    class Noting(Made):
        def read(self) -> Frame | None:
            frame = super().read()
            if frame is not None:
                handed.append(frame.pixels)
            return frame

    def answer(frames: Sequence[Frame], setting: Setting) -> list[bool]:
        return [any(np.shares_memory(f.pixels, pixels) for pixels in handed) for f in frames]

    source = Noting("s", 200)
    with Pump([source], answer, constant()) as pump:
        assert all(r.answer for r in pump)
    assert source.pool.made <= module.QUEUE + 2, "a few buffers go round"


def test_a_live_source_that_is_too_fast_drops_the_oldest() -> None:
    with Pump([Made("s", 100, live=True, interval_s=0.001)], slowly(0.02), constant()) as pump:
        results = list(pump)
        (count,) = pump.counts()
    assert_sound([count])
    assert count.came == 100 == count.answered + count.dropped
    assert count.dropped > 20
    assert [r.index for r in results] == sorted({r.index for r in results})
    assert results[-1].index == 99, "the newest is never dropped"


def test_every_nth_frame_is_answered_and_the_others_are_passed_over_unread() -> None:
    source = Made("s", 20)
    with Pump([source], values, constant(every=3)) as pump:
        assert [r.index for r in pump] == [0, 3, 6, 9, 12, 15, 18]
        (count,) = pump.counts()
    assert (count.came, count.skipped, count.answered, count.dropped) == (20, 13, 7, 0)
    assert source.skipped == 13


def test_a_burst_is_gathered_before_it_is_answered() -> None:
    calls: list[tuple[float, int]] = []

    def answer(frames: Sequence[Frame], setting: Setting) -> list[int]:
        calls.append((time.monotonic(), len(frames)))
        return values(frames, setting)

    sources = [Made(f"s{i}", 12, live=True, interval_s=0.02) for i in range(2)]
    with Pump(sources, answer, constant(burst=6, batch=2), queue=6, patience_ms=60_000) as pump:
        results = list(pump)
        assert_sound(pump.counts())
    assert len(results) == 24
    gaps = np.diff([at for at, _ in calls])
    # Four bursts of three calls: most calls follow at once, and before each burst there is a pause.
    assert (gaps > 0.02).sum() <= 5
    assert max(frames for _, frames in calls) == 2


def test_a_burst_that_the_queues_can_not_hold_or_that_never_fills_is_answered_all_the_same() -> None:
    with Pump([Made("s", 10)], values, constant(burst=50), patience_ms=60_000) as pump:
        assert [r.index for r in pump] == list(range(10))
    slow = Made("s", 3, live=True, interval_s=0.2)
    with Pump([slow], values, constant(burst=8), queue=8, patience_ms=50.0) as pump:
        results = list(pump)
    assert [r.index for r in results] == [0, 1, 2]
    assert results[0].waited_ms < 5_000


def test_a_slow_caller_holds_the_engine_back_and_the_queues_drop() -> None:
    source = Made("s", 400, live=True, interval_s=0.001)
    with Pump([source], values, constant()) as pump:
        time.sleep(0.8)
        assert len(pump._results) <= module.MOST_RESULTS + 1
        results = list(pump)
        (count,) = pump.counts()
    assert_sound([count])
    assert count.dropped > 0
    assert len(results) == count.answered


# ---------------------------------------------------------------- fairness


def spread(counts: Sequence[StreamCounts]) -> float:
    answered = [c.answered for c in counts]
    return (max(answered) - min(answered)) / (sum(answered) / len(answered))


def run_for(pump: Pump, seconds: float) -> tuple[StreamCounts, ...]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pump.result(0.05)
    return pump.counts()


def test_eight_streams_get_the_same_though_one_is_far_faster() -> None:
    sources = [Made(f"s{i}", None, live=True, interval_s=0.001 if i == 0 else 0.01) for i in range(8)]
    with Pump(sources, slowly(0.004), constant()) as pump:
        counts = run_for(pump, 2.0)
    assert_sound(counts)
    assert counts[0].came > 2 * counts[1].came
    assert min(c.answered for c in counts) > 10
    assert max(c.answered for c in counts) - min(c.answered for c in counts) <= 3


def test_weights_are_kept() -> None:
    sources = [Made(f"s{i}", None, live=True, interval_s=0.001) for i in range(3)]
    with Pump(sources, slowly(0.005), constant(), weights=[2.0, 1.0, 1.0], queue=4) as pump:
        counts = run_for(pump, 1.5)
    assert counts[0].answered == pytest.approx(2 * counts[1].answered, rel=0.15, abs=4)


def test_a_stalled_stream_costs_the_others_nothing_and_comes_back() -> None:
    stalled = Made("stalled", None, live=True, interval_s=0.005, stalls=(5, 1.0))
    others = [Made(f"s{i}", None, live=True, interval_s=0.005) for i in range(3)]
    with Pump([stalled, *others], slowly(0.004), constant()) as pump:
        early = run_for(pump, 0.7)
        late = run_for(pump, 1.5)
    assert spread(early[1:]) < 0.1
    assert early[0].answered <= 6 < early[1].answered
    assert late[0].answered > early[0].answered + 10


# ---------------------------------------------------------------- faults


def test_a_source_that_breaks_is_told_and_the_others_go_on() -> None:
    told: list[Event] = []
    sources = [
        Made("good", 30),
        Made("broken", 30, fails_at=7),
        Made("wild", 30, fails_at=0, error=ZeroDivisionError("in a driver")),
    ]
    with Pump(sources, values, constant(), tell=told.append) as pump:
        results = list(pump)
    assert Counter(r.source for r in results) == {"good": 30, "broken": 7}
    failed = {e.what: e.why for e in told if e.kind == "source-failed"}
    assert failed == {"broken": "it broke", "wild": "ZeroDivisionError: in a driver"}
    assert [e.what for e in told if e.kind == "source-ended"] == ["good"]
    assert all(source.closed == 1 for source in sources)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("odd"), "crashed"),
        (DeviceFault("a", "b", "refused", "c"), "refused"),
        (MemoryError("none left"), "memory"),
        (TimeoutError("too long"), "timeout"),
    ],
)
def test_what_answer_raises_is_an_event_and_a_result_without_answer(error: Exception, kind: str) -> None:
    told: list[Event] = []

    def answer(frames: Sequence[Frame], setting: Setting) -> list[int]:
        if any(f.source == "bad" and f.index == 3 for f in frames):
            raise error
        return values(frames, setting)

    with Pump([Made("bad", 6), Made("good", 6)], answer, constant(), tell=told.append) as pump:
        results = list(pump)
        assert_sound(pump.counts())
        assert [c.failed for c in pump.counts()] == [1, 0]
    assert [(r.source, r.index) for r in results if r.error] == [("bad", 3)]
    assert [r.index for r in results if r.source == "bad"] == list(range(6)), "in order, failed or not"
    (event,) = [e for e in told if e.kind == kind]
    assert "bad frame 3" in event.what


def test_a_frame_that_breaks_a_batch_costs_no_other_stream_its_answer() -> None:
    told: list[Event] = []

    def answer(frames: Sequence[Frame], setting: Setting) -> list[int]:
        if any(f.source == "bad" for f in frames):
            raise ValueError("a picture of another size")
        return values(frames, setting)

    with Pump(
        [Made("bad", 10), Made("good", 10)], answer, constant(batch=4), tell=told.append, queue=4
    ) as pump:
        results = list(pump)
    assert [r.answer for r in results if r.source == "good"] == list(range(10))
    assert [bool(r.error) for r in results if r.source == "bad"] == [True] * 10
    assert any(e.done == "each frame is tried alone" for e in told)


def test_too_few_answers_are_a_fault_of_the_call() -> None:
    with Pump([Made("s", 3)], lambda frames, setting: [], constant()) as pump:
        results = list(pump)
    assert ["0 answers for 1 frames" in r.error for r in results] == [True] * 3


def test_a_setting_that_raises_ends_the_streams_and_says_so() -> None:
    told: list[Event] = []

    def setting() -> Setting:
        if threading.current_thread().name.startswith("edgekiln-work"):
            raise KeyError("rung")
        return PLAIN

    with Pump([Made("s", None)], values, setting, tell=told.append) as pump:
        assert list(pump) == []
    assert "crashed" in {e.kind for e in told}


def test_sources_need_names_of_their_own() -> None:
    for bad in ([], [Made("a"), Made("a")]):
        with pytest.raises(BadInput):
            Pump(bad, values, constant())


# ---------------------------------------------------------------- the end


def test_closing_in_the_middle_ends_all_threads_and_counts_what_was_left() -> None:
    sources = [Made(f"s{i}", None, live=i > 0, interval_s=0.001) for i in range(4)]
    told: list[Event] = []
    pump = Pump(sources, slowly(0.02), constant(batch=2), workers=2, tell=told.append)
    for _ in range(10):
        assert pump.result(10) is not None
    pump.close()
    pump.close()
    counts = pump.counts()
    assert_sound(counts)
    assert sum(c.waiting + c.in_hand for c in counts) == 0
    assert all(source.closed == 1 for source in sources)
    assert "hung" not in {e.kind for e in told}
    while pump.result() is not None:
        pass
    assert not pump.running


def test_a_source_that_never_comes_back_is_told_as_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    release, told = threading.Event(), []

    class Stuck(Made):
        def read(self) -> Frame | None:
            release.wait(60)
            return None

    monkeypatch.setattr(module, "CLOSE_S", 0.2)
    pump = Pump([Stuck("s")], values, constant(), tell=told.append)
    pump.close()
    assert [(e.kind, e.what) for e in told] == [("hung", "edgekiln-read-0")]
    release.set()
    for thread in pump._threads:
        thread.join(10)


def test_an_error_of_the_caller_closes_everything() -> None:
    source = Made("s", None)

    def interrupted() -> None:
        with Pump([source], values, constant()) as pump:
            for _ in pump:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert source.closed == 1


def test_result_gives_none_when_nothing_comes_in_time() -> None:
    with Pump([Made("s", 1, live=True, interval_s=0.3)], values, constant()) as pump:
        assert pump.result(0.01) is None
        assert pump.running
        assert isinstance(pump.result(10), Result)
        assert pump.result(10) is None
        assert not pump.running


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=60)
def test_whatever_comes_is_counted_once_and_in_order(
    streams: list[tuple[int, bool]], workers: int, batch: int, every: int, burst: int
) -> None:
    sources = [Made(f"s{i}", count, live=live) for i, (count, live) in enumerate(streams)]
    setting = constant(batch=batch, every=every, burst=burst)
    with Pump(sources, values, setting, workers=workers, patience_ms=5.0) as pump:
        results = list(pump)
        counts = pump.counts()
    assert_sound(counts)
    for one, (count, live) in zip(counts, streams, strict=True):
        own = [r.index for r in results if r.source == one.source]
        assert one.came == count
        assert one.skipped == count - len(range(0, count, every))
        assert len(own) == one.answered
        assert own == sorted(set(own))
        assert live or one.dropped == 0
        assert all(index % every == 0 for index in own)


# ---------------------------------------------------------------- with real sources


def test_a_video_a_camera_that_is_pulled_out_and_a_cut_video_run_side_by_side(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4")
    cut = write_video(tmp_path / "cut.avi", frames=40)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    camera, told = Camera(fps=100), []
    patience = Patience(grace_s=0.05, first_wait_s=0.05, most_wait_s=0.1, give_up_s=0.5)
    from edgekiln.runtime.streams.capture import Live

    sources = [
        open_source(str(whole), pace="fast", name="whole"),
        open_source(str(cut), pace="fast", name="cut"),
        Live("camera", camera.open, told.append, patience, "Plug it in"),
    ]

    def answer(frames: Sequence[Frame], setting: Setting) -> list[int]:
        return [number_of(f.pixels) for f in frames]

    threading.Timer(0.3, camera.unplug).start()
    with Pump(sources, answer, constant(batch=2), workers=2, tell=told.append) as pump:
        results = list(pump)
    own = {s.name: [r for r in results if r.source == s.name] for s in sources}
    assert [r.answer for r in own["whole"]] == list(range(20))
    assert [r.answer for r in own["cut"]] == list(range(len(own["cut"])))
    assert own["camera"]
    ends = {e.what: e.kind for e in told if e.kind in {"source-ended", "source-failed"}}
    assert ends == {"whole": "source-ended", "cut": "source-failed", "camera": "source-failed"}
    assert camera.released == camera.opened
