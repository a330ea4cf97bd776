"""One engine for several calls at once: a seat (``runtime.seat``) made of several that share a runner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner
from edgekiln.runtime.seat import Threaded, late


class Several:
    """``open``'s runner, which may be called by ``calls`` threads at once, on so many threads of its own.

    Each call has a limit of its own; one that was cut off keeps its thread until it ends, and the others go
    on. The runner is closed when the last of the threads has ended. ``changed`` is called when the runner is
    open or broken, by each thread.
    """

    def __init__(
        self,
        open: Callable[[], Runner],
        changed: Callable[[], None],
        calls: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shared = _Shared(open, calls)
        self._clock = clock
        self._seats = tuple(Threaded(shared.take, changed, clock=clock) for _ in range(calls))
        self._free: SimpleQueue[Threaded] = SimpleQueue()
        self._away: list[Threaded] = []
        self._lock = threading.Lock()
        for seat in self._seats:
            self._free.put(seat)

    @property
    def broken(self) -> BaseException | None:
        """Why it did not open."""
        return next((s.broken for s in self._seats if s.broken is not None), None)

    @property
    def since_s(self) -> float | None:
        """When the longest call in progress, or the opening, began."""
        return min((s for seat in self._seats if (s := seat.since_s) is not None), default=None)

    @property
    def stuck(self) -> bool:
        """Whether every thread is with a call that nobody waits for."""
        return all(s.stuck for s in self._seats)

    @property
    def ready(self) -> bool:
        return all(s.ready for s in self._seats)

    @property
    def alive(self) -> bool:
        return all(s.alive for s in self._seats)

    def call(self, inputs: Arrays, limit_s: float) -> dict[str, NDArray[Any]]:
        """As ``Threaded.call``; waits for a thread that is free."""
        until = self._clock() + limit_s
        self._back()
        try:
            seat = self._free.get(timeout=max(0.0, limit_s))
        except Empty:
            raise late(limit_s, "the engine was busy with other calls") from None
        try:
            return seat.call(inputs, until - self._clock())
        finally:
            with self._lock:
                self._away.append(seat)
            self._back()

    def close(self) -> None:
        """Close each thread once it is idle. Never waits."""
        for seat in self._seats:
            seat.close()

    def join(self, timeout_s: float) -> None:
        """Wait until all have closed, but no longer than that."""
        until = time.monotonic() + timeout_s
        for seat in self._seats:
            seat.join(max(0.0, until - time.monotonic()))

    def _back(self) -> None:
        """Those whose calls have ended may be asked again."""
        with self._lock:
            idle = [s for s in self._away if not s.stuck]
            self._away = [s for s in self._away if s.stuck]
        for seat in idle:
            self._free.put(seat)


class _Shared:
    """Opened by the first who takes it, closed by the last who gives it back."""

    def __init__(self, open: Callable[[], Runner], users: int) -> None:
        self._open, self._users = open, users
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._error: BaseException | None = None

    def take(self) -> Runner:
        """A runner that is one of several users'. Raises what opening raised, to each of them."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._runner is None:
                try:
                    self._runner = self._open()
                except BaseException as error:
                    self._error = error
                    raise
        return _Lent(self._runner, self._given_back)

    def _given_back(self) -> None:
        with self._lock:
            self._users -= 1
            last, runner = self._users == 0, self._runner
        if last and runner is not None:
            runner.close()


class _Lent:
    """A runner that belongs to several."""

    def __init__(self, runner: Runner, give_back: Callable[[], None]) -> None:
        self._runner, self._give_back = runner, give_back

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return self._runner(inputs)

    def close(self) -> None:
        self._give_back()


__all__ = ["Several"]
