"""One steady clock, and the events that happened by it until somebody is told."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

from edgekiln.records import Scalar
from edgekiln.runtime.vocabulary import Event, EventKind

_BACK_S = 1.0
_MOST_EVENTS = 4096


class Journal:
    """Seconds that never go back, and events in the order in which they were noted, from any thread.

    ``clock`` is meant to be monotonic; a step back by more than a second is taken out for good and noted.
    ``tell`` is called by ``tell_all`` alone, so that nobody who notes an event waits for a disk. It may
    raise: the event counts as told, and ``untold`` goes up, as it does where events come faster than that.
    """

    def __init__(self, clock: Callable[[], float], tell: Callable[[Event], None]) -> None:
        self._clock, self._tell = clock, tell
        self._last_s, self._shift_s = clock(), 0.0
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.untold = 0

    def now(self) -> float:
        now = self._clock() + self._shift_s
        if now >= self._last_s:
            self._last_s = now
            return now
        back = self._last_s - now
        if back > _BACK_S:  # less is two threads that read the clock at once
            self._shift_s += back
            self.note("clock", "the clock", f"it went back by {back:.1f} s", "the step was taken out")
        return self._last_s

    def note(self, kind: EventKind, what: str, why: str, done: str = "", **facts: Scalar) -> None:
        if len(self._events) == _MOST_EVENTS:
            self.untold += 1
        event = Event(at_s=self._last_s, kind=kind, what=what, why=why, done=done, facts=facts)
        self._events.append(event)

    @property
    def waiting(self) -> bool:
        return bool(self._events)

    def tell_all(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                event = self._events.popleft()
                try:
                    self._tell(event)
                except Exception:
                    self.untold += 1
