"""Arrays in memory that two processes see.

A block has no name: it lives in file descriptors only, so nothing of it is left once both processes are gone,
however they ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile

import numpy as np

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.records import Record

MOST_BYTES = 1 << 30
_ALIGN = 64
_PLAIN = "biufc"


class Placed(Record, frozen=True, kw_only=True):
    """An array in a block: ``dtype`` as NumPy's type string (``<f4``), ``offset`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        size = np.dtype(self.dtype).itemsize
        for axis in self.shape:
            size *= axis
        return size


class Block:
    """A block of at most ``most_bytes``, of which one side writes and the other reads. It only ever grows:
    a mapping of what was cut off would kill its reader."""

    def __init__(self, handle: int, most_bytes: int = MOST_BYTES) -> None:
        self.handle = handle
        self.most_bytes = most_bytes
        self._map: mmap.mmap | None = None
        self._size = 0

    def put(self, arrays: Arrays) -> tuple[Placed, ...]:
        """Copy ``arrays`` into the block. Raises BadInput for what is no plain number or finds no room."""
        placed, end = [], 0
        for name, value in arrays.items():
            if value.dtype.kind not in _PLAIN:
                why = f"'{name}' holds {value.dtype}, not plain numbers"
                raise BadInput("handing over", name, why, "Give arrays of numbers")
            placed.append(Placed(name=name, dtype=value.dtype.str, shape=value.shape, offset=end))
            end += -(-value.nbytes // _ALIGN) * _ALIGN
        if end > self._size:
            self._grow(end)
        for one in placed:
            np.copyto(self._array(one), arrays[one.name])
        return tuple(placed)

    def get(self, placed: tuple[Placed, ...], *, copy: bool) -> dict[str, np.ndarray]:
        """The arrays that the other side put. Without ``copy`` they are views that its next ``put`` changes.

        Raises BadInput for what does not lie in the block: the other side may have lost its mind.
        """
        end = 0
        for one in placed:
            if (
                one.offset < 0
                or any(axis < 0 for axis in one.shape)
                or np.dtype(one.dtype).kind not in _PLAIN
            ):
                raise _outside(one.name)
            end = max(end, one.offset + one.size_bytes)
        if end > self._size:
            if end > os.fstat(self.handle).st_size:
                raise _outside(placed[-1].name)
            self._remap()
        views = {one.name: self._array(one) for one in placed}
        return {name: view.copy() for name, view in views.items()} if copy else views

    def close(self) -> None:
        """Give the descriptor back. The mapping goes with the last array that looks into it."""
        self._map = None
        with contextlib.suppress(OSError):
            os.close(self.handle)
        self.handle = -1

    def _array(self, one: Placed) -> np.ndarray:
        return np.ndarray(one.shape, np.dtype(one.dtype), self._map, one.offset)

    def _grow(self, size: int) -> None:
        if size > self.most_bytes:
            why = f"the arrays take {size} bytes, more than the {self.most_bytes} of the shared memory"
            raise BadInput("handing over", "arrays", why, "Give smaller arrays, or allow more memory")
        os.ftruncate(self.handle, min(self.most_bytes, max(size, 2 * self._size, mmap.PAGESIZE)))
        self._remap()

    def _remap(self) -> None:
        size = os.fstat(self.handle).st_size
        if size > self.most_bytes:
            raise _outside("arrays")
        self._map, self._size = mmap.mmap(self.handle, size), size


def block(name: str, most_bytes: int = MOST_BYTES) -> Block:
    """A new, empty block. ``name`` shows in /proc alone."""
    if not hasattr(os, "memfd_create"):  # not Linux: a file that has no name any more
        with tempfile.TemporaryFile() as file:
            return Block(os.dup(file.fileno()), most_bytes)
    handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return Block(handle, most_bytes)


def _outside(name: str) -> BadInput:
    why = f"'{name}' does not lie in the shared memory"
    return BadInput("taking over", name, why, "The engine's process is damaged; start it again")
