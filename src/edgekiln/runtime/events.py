"""The log of a session: one JSON line for each event and, now and then, a snapshot.

A line is whole or not there: it goes out in one write, what a full disk cut short is taken back, and what a
kill or a power cut left is recognised and skipped by ``read``. Lines are written by a thread of their own, so
that no slow card, full disk or vanished folder ever holds a frame up: the session goes on, the lost lines are
counted, and one ``log-failed`` event says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec

from edgekiln.records import Record
from edgekiln.runtime.metrics import Snapshot
from edgekiln.runtime.vocabulary import Event

LIMIT_BYTES, FILES = 16 << 20, 4
"""The log takes no more than this, in so many files: ``NAME``, ``NAME.1`` (older), ``NAME.2``..."""
WAITING = 1024
"""Lines that may wait for the disk; more are lost, and counted."""
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0
SYNC_S = 5.0
"""A power cut takes no more than the lines of so many seconds."""
LONGEST_LINE_BYTES = 1 << 20


class Line(Record, frozen=True, kw_only=True):
    """One line: an event or a snapshot. ``run`` names the session, ``at_s`` is of its monotonic clock and
    gives the order; ``wall`` (UTC) is for people, and may jump. ``n`` counts the lines of a run: where a
    number is missing, a line was lost."""

    run: str
    n: int
    at_s: float
    wall: str
    event: Event | None = None
    snapshot: Snapshot | None = None


class Skipped(Record, frozen=True, kw_only=True):
    """A line that could not be read, by file and number from 1, and why."""

    file: str
    number: int
    why: str


class Reading(Record, frozen=True, kw_only=True):
    """What a log holds: runs in the order of their first line, each in the order of its clock."""

    lines: tuple[Line, ...]
    skipped: tuple[Skipped, ...] = ()


class Log:
    """Appends to ``path``; never raises for what its disk does.

    ``on_trouble`` gets a ``log-failed`` event when writing begins to fail and a ``recovered`` one, with the
    number of lost lines, when it works again; it is called in the writer's thread. ``clock`` gives the times
    of these events. Close it, or use it as a context: lines of the last moment are then on the disk.
    """

    def __init__(
        self,
        path: Path,
        on_trouble: Callable[[Event], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
        limit_bytes: int = LIMIT_BYTES,
        files: int = FILES,
        retry_s: float = RETRY_FIRST_S,
    ) -> None:
        self._on_trouble, self._clock, self._retry_first = on_trouble, clock, retry_s
        self._file = _File(path, max(4096, limit_bytes // files), files)
        self._run, self._n = secrets.token_hex(4), 0
        self._waiting: queue.Queue[Line | threading.Event | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._lost = self._told_lost = 0
        self._retry_at, self._retry_s = 0.0, 0.0
        self._closed = self._told_slow = False
        self._thread = threading.Thread(target=self._work, name="event log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that are not on the disk and never will be."""
        with self._lock:
            return self._lost

    def event(self, event: Event) -> None:
        """Log ``event``; returns at once."""
        self._put(event.at_s, event, None)

    def snapshot(self, found: Snapshot) -> None:
        """Log ``found``; returns at once."""
        self._put(found.at_s, None, found)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was logged before is written and synced, or lost; False where that takes longer."""
        done = threading.Event()
        try:
            self._waiting.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and end; a disk that hangs is left behind after ``timeout_s``."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, at_s: float, event: Event | None, found: Snapshot | None) -> None:
        wall = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            self._n += 1
            line = Line(run=self._run, n=self._n, at_s=at_s, wall=wall, event=event, snapshot=found)
            try:
                if self._closed:
                    raise queue.Full
                self._waiting.put_nowait(line)
            except queue.Full:
                self._lost += 1

    # ------------------------------------------------------------ the writer's thread

    def _work(self) -> None:
        synced = time.monotonic()
        while True:
            try:
                item = self._waiting.get(timeout=SYNC_S)
            except queue.Empty:
                item = None if self._closed else _NOTHING
            if isinstance(item, Line):
                self._write(item)
            if not isinstance(item, Line) or time.monotonic() - synced > SYNC_S:
                self._file.sync()
                synced = time.monotonic()
            if isinstance(item, threading.Event):
                item.set()
            if item is None:
                self._file.close()
                return

    def _write(self, line: Line) -> None:
        """Write, or count as lost. After a failure the disk is left alone for a while, ever longer."""
        now = time.monotonic()
        if self._retry_s and now < self._retry_at:
            self._lose()
            return
        try:
            self._file.append(encoded(line))
        except ValueError:  # too long for a reader: its number will be missing
            self._lose()
            return
        except OSError as error:
            self._lose()
            first = not self._retry_s
            self._retry_s = min(RETRY_MOST_S, self._retry_s * 2 or self._retry_first)
            self._retry_at = now + self._retry_s
            if first:
                self._say(_failed(self._file.path, error, self._clock()))
            return
        if self._retry_s:
            self._retry_s = 0.0
            new, self._told_lost = self.lost - self._told_lost, self.lost
            self._say(_recovered(self._file.path, new, self._clock()))
        elif self.lost > self._told_lost and not self._told_slow:
            self._told_slow = True
            self._say(_failed(self._file.path, OSError("more lines come than are written"), self._clock()))

    def _lose(self) -> None:
        with self._lock:
            self._lost += 1

    def _say(self, event: Event) -> None:
        # Whoever listens may be closing down; the log must outlive its listener's faults.
        with contextlib.suppress(Exception):
            self._on_trouble(event)


_NOTHING = threading.Event()


def _failed(path: Path, error: Exception, at_s: float) -> Event:
    why = getattr(error, "strerror", None) or str(error)
    done = "the session goes on; lines are lost and counted until the log can be written again"
    return Event(at_s=at_s, kind="log-failed", what=str(path), why=why, done=done)


def _recovered(path: Path, lost: int, at_s: float) -> Event:
    facts: dict[str, str | int | float | bool] = {"lost_lines": lost}
    lines = "1 line was lost" if lost == 1 else f"{lost} lines were lost"
    return Event(
        at_s=at_s, kind="recovered", what=str(path), why="it can be written again", done=lines, facts=facts
    )


class _File:
    """An append-only file that is rotated; every fault is an OSError, after which it can be tried again."""

    def __init__(self, path: Path, limit_bytes: int, files: int) -> None:
        self.path, self._limit, self._files = path, limit_bytes, files
        self._handle: int | None = None
        self._size = 0

    def append(self, line: bytes) -> None:
        """``line`` whole, or OSError and nothing of it."""
        if self._handle is not None and not self._same():
            self.close()
        if self._handle is None:
            self._open()
        if self._size and self._size + len(line) > self._limit:
            self._rotate()
        assert self._handle is not None
        written = os.write(self._handle, line)
        if written < len(line):  # the disk is full, or a limit of file sizes is reached
            try:
                written += os.write(self._handle, line[written:])  # says which
            except OSError:
                self._take_back()
                raise
            if written < len(line):
                self._take_back()
                raise OSError("the line could not be written whole")
        self._size += len(line)

    def sync(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a pipe or /dev/full has nothing to sync
                os.fsync(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = None

    def _same(self) -> bool:
        """Whether the open file is still the one at ``path``: a removed file takes lines in silence."""
        assert self._handle is not None
        try:
            there, ours = self.path.stat(), os.fstat(self._handle)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        # A folder that vanished is not made again: a card that was pulled out leaves an empty mount point,
        # and lines written there would fill another disk.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(self.path, flags, 0o644)
        try:
            self._size = os.fstat(handle).st_size
            if self._size and os.pread(handle, 1, self._size - 1) != b"\n":
                self._size += os.write(handle, b"\n")  # the last line of a run that was killed
        except OSError:
            os.close(handle)
            raise
        self._handle = handle

    def _rotate(self) -> None:
        self.close()
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{i}") for i in range(1, self._files))]
        for younger, older in reversed(list(pairwise(names))):
            if younger.exists():
                younger.replace(older)
        if self._files == 1:
            self.path.unlink()
        self._open()

    def _take_back(self) -> None:
        """Cut the file to its last whole line; where even that fails, the next opening ends the line."""
        assert self._handle is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, self._size)
        self.close()


def encoded(line: Line) -> bytes:
    """``line`` as JSON with a line feed. Raises ValueError where it is longer than a reader takes."""
    made = json_line(line)
    if len(made) > LONGEST_LINE_BYTES:
        raise ValueError(f"the line has {len(made):,} bytes")
    return made


def json_line(record: object) -> bytes:
    """A record on one line, with its line feed; of a file name that is no text, what is none becomes "?"."""
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(record), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read(path: Path) -> Reading:
    """All that a log and its older files hold; what is no whole line is skipped and told.

    Raises OSError where a file is there and can't be read; a log that is not there is empty.
    """
    lines: list[Line] = []
    skipped: list[Skipped] = []
    for file in _files(path):
        for number, text in _texts(file):
            try:
                lines.append(msgspec.json.decode(text, type=Line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                why = "cut short" if not text.endswith(b"}") else str(error)
                skipped.append(Skipped(file=file.name, number=number, why=why))
    runs = {run: at for at, run in reversed(list(enumerate(line.run for line in lines)))}
    return Reading(
        lines=tuple(sorted(lines, key=lambda line: (runs[line.run], line.at_s, line.n))),
        skipped=tuple(skipped),
    )


def _files(path: Path) -> list[Path]:
    """The log's files, the oldest first."""
    older = [p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()]
    found = sorted(older, key=lambda p: -int(p.suffix[1:]))
    return [*found, path] if path.exists() else found


def _texts(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that hold something; of one without an end only the start is kept in memory."""
    with file.open("rb") as stream:
        number = 0
        while text := stream.readline(LONGEST_LINE_BYTES):
            number += 1
            while not text.endswith(b"\n") and (more := stream.readline(LONGEST_LINE_BYTES)):
                text = text[:64] + more[-1:]  # too long to be ours
            if text.strip():
                yield number, text.rstrip(b"\n")
