"""Whose frame is answered next, how many in one call, and how many calls at once: pure rules.

Turns are given by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), of which deficit round
robin is the coarse form: a stream's virtual time grows by 1/weight with each frame, and the stream that is
furthest behind comes next. Chosen over deficit round robin because that serves a heavy stream in bursts,
which a queue of two frames can't feed; and over earliest-deadline-first because under overload, which is
when it matters, that bounds no stream's share. A stream without frames saves nothing up: when it returns
it starts at the present virtual time, so the others are not starved by it.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from edgekiln.errors import BadInput
from edgekiln.records import Record

BATCHES = (1, 2, 4, 8)
"""Batch sizes that are measured."""
MARGIN = 0.05
"""A larger batch, or one more call at once, has to answer this much more frames a second to be worth it."""


# ---------------------------------------------------------------- turns


class Turns(Record, frozen=True, kw_only=True):
    """How far each stream was served. ``weights``: a stream of weight 2 gets twice the frames of one of 1.

    ``finish`` are the virtual times at which the streams' last frames ended, ``now`` the virtual time of the
    last turn, ``served`` the number of the turn in which each was served last.
    """

    weights: tuple[float, ...]
    finish: tuple[float, ...]
    served: tuple[int, ...]
    now: float = 0.0
    turn: int = 0


def turns(weights: Sequence[float]) -> Turns:
    """Nobody was served yet. Raises BadInput for a weight that is not above 0 and finite."""
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise BadInput("scheduling", "streams", f"{weight} is no weight", "Give numbers above 0")
    zeros = len(weights) * (0,)
    return Turns(weights=tuple(weights), finish=tuple(map(float, zeros)), served=zeros)


def pick(state: Turns, waiting: Sequence[int], most: int) -> tuple[Turns, tuple[int, ...]]:
    """Which streams give a frame to the next call, in order, at most ``most``; and the state afterwards.

    ``waiting`` frames wait per stream. As long as one waits, one is picked. Two streams that always have
    frames waiting are never further apart than 1/weight of the one plus 1/weight of the other (in frames
    over weight); with n equal streams each is served at least once in n turns.
    """
    left, finish, served = list(waiting), list(state.finish), list(state.served)
    now, turn = state.now, state.turn
    picked: list[int] = []
    while len(picked) < most and any(left):
        ready = (i for i, count in enumerate(left) if count)
        # Of equals the one that was served longest ago.
        best = min(ready, key=lambda i: (max(now, finish[i]), served[i], i))
        now = max(now, finish[best])
        finish[best] = now + 1 / state.weights[best]
        turn += 1
        served[best] = turn
        left[best] -= 1
        picked.append(best)
    after = Turns(weights=state.weights, finish=tuple(finish), served=tuple(served), now=now, turn=turn)
    return after, tuple(picked)


def due(waiting: int, burst: int, batch: int, oldest_ms: float, patience_ms: float, flush: bool) -> int:
    """How many of ``waiting`` frames to answer now: 0 is to go on gathering.

    Without a burst a call takes what is there, up to ``batch``, and never waits for more. With one, nothing
    is answered until ``burst`` frames wait, or the oldest has waited ``patience_ms``, or ``flush`` says that
    no more will come (or that a burst has begun); then all of them are, call after call.
    """
    if waiting == 0:
        return 0
    if burst > 1 and not flush and waiting < burst and oldest_ms < patience_ms:
        return 0
    return min(waiting, batch)


# ---------------------------------------------------------------- micro-batches


def choose_batch(latency_ms: Mapping[int, float], most: int, limit_ms: float | None = None) -> int:
    """The batch size that answers the most frames a second; a larger one has to be worth it (``MARGIN``).

    ``latency_ms`` is of a whole call, by the batch sizes that were measured. Sizes above ``most`` and those
    whose call takes longer than ``limit_ms`` are left out; 1 where nothing is known.
    """
    best, best_rate = 1, 0.0
    for size in sorted(latency_ms):
        if size > most or latency_ms[size] <= 0 or (limit_ms is not None and latency_ms[size] > limit_ms):
            continue
        rate = size / latency_ms[size]
        if best_rate == 0 or rate > best_rate * (1 + MARGIN):
            best, best_rate = size, rate
    return best


def choose_calls(rates: Mapping[int, float]) -> int:
    """How many calls at once: of the measured rates (frames a second, by the number of calls at once) the
    best, more calls only where they are worth it (``MARGIN``); 1 where nothing is known."""
    best = 1
    for calls in sorted(rates):
        if rates[calls] > rates.get(best, 0.0) * (1 + MARGIN):
            best = calls
    return best


class Batches:
    """Learns what a call of each batch size costs here, and goes on measuring while it is used. Thread-safe.

    A size's latency is the median of its last ``REMEMBER`` calls. Every ``PROBE``-th choice is the size that
    was measured longest ago, so that a choice does not outlive the reason for it.
    """

    REMEMBER = 15
    FIRST = 3
    PROBE = 64

    def __init__(self, sizes: Sequence[int] = BATCHES) -> None:
        self._lock = threading.Lock()
        self._calls = self._choices = 0
        self._seen: dict[int, deque[float]] = {size: deque(maxlen=self.REMEMBER) for size in sorted(sizes)}
        self._last = dict.fromkeys(self._seen, 0)

    def observe(self, batch: int, latency_ms: float) -> None:
        """A call of ``batch`` frames took ``latency_ms``. Sizes that are not measured are passed over."""
        with self._lock:
            self._calls += 1
            if batch in self._seen:
                self._seen[batch].append(latency_ms)
                self._last[batch] = self._calls

    @property
    def latency_ms(self) -> dict[int, float]:
        """The median latency of each size that was called ``FIRST`` times or more."""
        with self._lock:
            seen = {size: tuple(times) for size, times in self._seen.items()}
        return {size: statistics.median(times) for size, times in seen.items() if len(times) >= self.FIRST}

    def choose(self, most: int, limit_ms: float | None = None) -> int:
        """The size of the next call, up to ``most``: mostly the best so far, at times a probe.

        A size is only tried while what the smaller ones took lets one expect it within ``limit_ms``.
        """
        known = self.latency_ms
        self._choices += 1
        trial = [
            size
            for size in self._seen
            if size <= most and (limit_ms is None or expected_ms(size, known) <= limit_ms)
        ]
        fresh = [size for size in trial if size not in known]
        if fresh:
            return fresh[0]
        if trial and self._choices % self.PROBE == 0:
            return min(trial, key=self._last.__getitem__)
        return choose_batch(known, most, limit_ms)


def expected_ms(size: int, known: Mapping[int, float]) -> float:
    """What a call of ``size`` will take at worst, by the largest smaller size that is known; 0 by none."""
    smaller = max((s for s in known if s < size), default=None)
    return 0.0 if smaller is None else known[smaller] * size / smaller
