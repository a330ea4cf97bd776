"""A bounded queue per stream: where frames come faster than they are answered, the oldest are dropped.

An engine that is behind should see the present, not the past. Frames that nobody is in a hurry for (a file
that is read as fast as possible) wait instead: ``lossless``.
"""

from __future__ import annotations

import threading
from collections import deque

from edgekiln.errors import BadInput
from edgekiln.records import Record
from edgekiln.runtime.streams.frames import Frame


class QueueCounts(Record, frozen=True, kw_only=True):
    """Frames of one queue since it was made; at every moment offered = taken + dropped + waiting."""

    offered: int
    taken: int
    dropped: int
    waiting: int


class FrameQueue:
    """At most ``size`` frames, oldest first. Thread-safe.

    ``changed`` is notified of every frame that comes; queues that one scheduler looks at share it.
    """

    def __init__(self, size: int, lossless: bool = False, changed: threading.Condition | None = None) -> None:
        if size < 1:
            raise BadInput("making", "a queue", f"{size} frames are no size", "Give 1 or more")
        self.size = size
        self._lossless = lossless
        self._frames: deque[Frame] = deque()
        self._changed = changed or threading.Condition(threading.RLock())
        self._offered = self._taken = self._dropped = 0
        self._closed = False

    def put(self, frame: Frame) -> bool:
        """Add ``frame``; the oldest makes room for it, or, where the queue is lossless, it waits for room.

        False where the queue is closed: the frame is released and counted as dropped.
        """
        with self._changed:
            while self._lossless and len(self._frames) >= self.size and not self._closed:
                self._changed.wait()
            self._offered += 1
            if self._closed:
                self._drop(frame)
                return False
            if len(self._frames) >= self.size:
                self._drop(self._frames.popleft())
            self._frames.append(frame)
            self._changed.notify_all()
            return True

    def take(self) -> Frame | None:
        """The oldest frame, or None where none waits. Whoever takes it releases it."""
        with self._changed:
            if not self._frames:
                return None
            self._taken += 1
            if self._lossless:
                self._changed.notify_all()  # its source waits for room
            return self._frames.popleft()

    def close(self, discard: bool = False) -> None:
        """No more frames come. With ``discard`` those that wait are released and counted as dropped."""
        with self._changed:
            self._closed = True
            while discard and self._frames:
                self._drop(self._frames.popleft())
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._frames)

    @property
    def offered(self) -> int:
        return self._offered

    @property
    def oldest_s(self) -> float | None:
        """When the oldest waiting frame was captured."""
        with self._changed:
            return self._frames[0].at_s if self._frames else None

    @property
    def ended(self) -> bool:
        """Closed, and nothing waits."""
        with self._changed:
            return self._closed and not self._frames

    def counts(self) -> QueueCounts:
        with self._changed:
            return QueueCounts(
                offered=self._offered, taken=self._taken, dropped=self._dropped, waiting=len(self._frames)
            )

    def _drop(self, frame: Frame) -> None:
        self._dropped += 1
        frame.release()
