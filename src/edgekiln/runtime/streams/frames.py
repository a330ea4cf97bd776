"""A frame on its way from the decoder to the engine, in a buffer that is lent and used again.

Nothing copies the pixels between the decoder and the caller: a frame holds the very array that the decoder
filled. The lease is what makes that safe: a buffer is filled again only after its frame was released.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

KEEP = 8
"""Free buffers that a pool keeps: as many as one stream has on the way with the default queue and workers."""


class Pool:
    """Picture buffers of one source. Thread-safe.

    A frame that nobody releases costs nothing but its buffer's reuse: it is freed with the frame.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._free: list[Pixels] = []
        self._lock = threading.Lock()
        self.made = 0
        """Buffers that had to be allocated: stays small while frames are released."""

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """A buffer of ``shape``, uint8, C-contiguous, that no frame holds. Its content is undefined."""
        with self._lock:
            while self._free:
                if (buffer := self._free.pop()).shape == shape:
                    return buffer  # buffers of another size belong to a stream that changed: let go
            self.made += 1
        return np.empty(shape, np.uint8)

    def give_back(self, frame: Frame) -> None:
        """Take the frame's buffer back, once: two threads that release one frame do no harm."""
        with self._lock:
            if frame.pool is not self:
                return
            frame.pool = None
            if len(self._free) < self._keep:
                self._free.append(frame.pixels)


@dataclass(slots=True, eq=False)
class Frame:
    """One picture of a source: ``pixels`` (height, width, 3), uint8, RGB, C-contiguous.

    ``index`` counts the source's frames from 0, those that were passed over included. ``at_s`` is when it
    was captured, in seconds of the monotonic clock. After ``release`` the pixels belong to a later frame:
    who wants to keep them copies them before.
    """

    source: str
    index: int
    at_s: float
    pixels: Pixels
    pool: Pool | None = None

    def release(self) -> None:
        """Let the buffer be filled again. May be called twice, and from any thread."""
        if (pool := self.pool) is not None:
            pool.give_back(self)
