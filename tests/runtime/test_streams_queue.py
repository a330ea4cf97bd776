"""Queues of frames: bounded, counted, and without a copy; leases that keep a buffer from being refilled."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.runtime.streams.frames import Frame, Pool
from edgekiln.runtime.streams.queue import FrameQueue


def frame(index: int, pool: Pool | None = None) -> Frame:
    pixels = np.zeros((2, 3, 3), np.uint8) if pool is None else pool.take((2, 3, 3))
    pixels[...] = index % 256
    return Frame("source", index, float(index), pixels, pool)


def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    queue, pool = FrameQueue(2), Pool()
    frames = [frame(i, pool) for i in range(5)]
    assert all(queue.put(f) for f in frames)
    held = queue.counts()
    assert (held.offered, held.taken, held.dropped, held.waiting) == (5, 0, 3, 2)
    assert queue.oldest_s == 3.0
    assert [f.pool for f in frames] == [None, None, None, pool, pool], "what was dropped is released"
    taken = queue.take()
    assert taken is frames[3]
    assert taken.pixels is frames[3].pixels
    assert np.shares_memory(taken.pixels, frames[3].pixels), "handed over, not copied"


def test_an_empty_queue_gives_nothing_and_a_closed_one_takes_nothing() -> None:
    queue, late = FrameQueue(2), frame(1, Pool())
    assert queue.take() is None
    assert queue.oldest_s is None
    queue.put(frame(0))
    queue.close()
    assert not queue.ended, "a frame still waits"
    assert not queue.put(late)
    assert late.pool is None
    assert queue.take() is not None
    assert queue.ended
    held = queue.counts()
    assert (held.offered, held.taken, held.dropped, held.waiting) == (2, 1, 1, 0)


def test_closing_may_discard_what_waits() -> None:
    queue, waiting = FrameQueue(3), [frame(i, Pool()) for i in range(2)]
    for one in waiting:
        queue.put(one)
    queue.close(discard=True)
    assert queue.ended
    assert queue.counts().dropped == 2
    assert all(one.pool is None for one in waiting)


def test_a_lossless_queue_makes_its_source_wait_and_closing_ends_the_wait() -> None:
    queue, put = FrameQueue(1, lossless=True), []

    def fill() -> None:
        put.extend(queue.put(frame(i)) for i in range(4))

    thread = threading.Thread(target=fill)
    thread.start()
    taken = []
    while len(taken) < 2:
        if (one := queue.take()) is not None:
            taken.append(one.index)
    assert taken == [0, 1]
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert put[:2] == [True, True]
    assert put[-1] is False


def test_a_queue_of_no_frames_is_refused() -> None:
    with pytest.raises(BadInput):
        FrameQueue(0)


@given(st.lists(st.sampled_from(["put", "take", "close", "discard"]), max_size=60), st.integers(1, 4))
@settings(deadline=None)
def test_no_frame_is_lost_or_counted_twice(steps: list[str], size: int) -> None:
    queue, pool, taken, made = FrameQueue(size), Pool(), [], 0
    for step in steps:
        if step == "put":
            queue.put(frame(made, pool))
            made += 1
        elif step == "take":
            taken += [one] if (one := queue.take()) else []
        else:
            queue.close(discard=step == "discard")
        held = queue.counts()
        assert held.offered == made == held.taken + held.dropped + held.waiting
        assert held.waiting <= size
        assert held.taken == len(taken)
        assert [one.index for one in taken] == sorted({one.index for one in taken})
    for one in taken:
        assert (one.pixels == one.index % 256).all(), "its buffer was not filled again while it was held"


def test_many_threads_lose_nothing() -> None:
    queue, taken, lock = FrameQueue(3), [], threading.Lock()
    pool, done = Pool(keep=64), threading.Event()

    def fill(start: int) -> None:
        for i in range(start, start + 300):
            queue.put(frame(i, pool))

    def drain() -> None:
        while not (done.is_set() and queue.waiting == 0):
            if (one := queue.take()) is not None:
                assert len(set(one.pixels.ravel().tolist())) == 1, "nobody writes into a held buffer"
                assert one.pixels[0, 0, 0] == one.index % 256
                with lock:
                    taken.append(one.index)
                one.release()

    fillers = [threading.Thread(target=fill, args=(1000 * k,)) for k in range(4)]
    drainers = [threading.Thread(target=drain) for _ in range(3)]
    for thread in fillers + drainers:
        thread.start()
    for thread in fillers:
        thread.join()
    done.set()
    for thread in drainers:
        thread.join(10)
    held = queue.counts()
    assert held.offered == 1200 == held.taken + held.dropped
    assert len(taken) == len(set(taken)) == held.taken


# ---------------------------------------------------------------- leases


def test_a_buffer_is_used_again_only_after_its_release_and_once() -> None:
    pool = Pool()
    one, two = frame(1, pool), frame(2, pool)
    assert not np.shares_memory(one.pixels, two.pixels)
    one.release()
    one.release()
    three, four = frame(3, pool), frame(4, pool)
    assert three.pixels is one.pixels
    assert not np.shares_memory(three.pixels, four.pixels), "released twice is given out once"
    assert pool.made == 3


def test_buffers_of_another_size_are_let_go_and_few_are_kept() -> None:
    pool = Pool(keep=2)
    frames = [frame(i, pool) for i in range(4)]
    for one in frames:
        one.release()
    assert pool.take((2, 3, 3)) is frames[1].pixels
    assert pool.take((4, 4, 3)).shape == (4, 4, 3)
    assert pool.take((2, 3, 3)) is not frames[0].pixels


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=80))
@settings(deadline=None)
def test_two_frames_that_are_held_never_share_a_buffer(steps: list[tuple[bool, int]]) -> None:
    pool, held, most = Pool(keep=3), [], 0
    for takes, which in steps:
        if takes or not held:
            held.append(frame(len(held), pool))
        else:
            held.pop(which % len(held)).release()
        most = max(most, len(held))
        assert len({id(one.pixels) for one in held}) == len(held)
        assert len(pool._free) <= 3
