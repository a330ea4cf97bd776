"""Frames from several sources through one ``answer``, results in order per stream, everything counted.

A thread per source reads into that stream's queue. Workers take turns: under one lock a worker picks the
frames of the next call (fair over the streams), answers them, and files the results. With one worker more
than the engine has calls at once, the next frames are prepared while the engine computes. Results wait for
the caller; when it falls behind, no more frames are taken, and the queues drop: a slow caller is treated as
a slow engine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.records import Record
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.streams.queue import FrameQueue
from edgekiln.runtime.streams.schedule import due, pick, turns
from edgekiln.runtime.streams.sources import Source, Tell, silent
from edgekiln.runtime.vocabulary import Event, EventKind, Setting

Answering: TypeAlias = Callable[[Sequence[Frame], Setting], Sequence[Any]]
"""From the frames of one call to one answer each. Must be callable from several threads where there are
several workers; must not keep a frame's pixels after it returned."""

QUEUE = 2
MOST_RESULTS = 64
PATIENCE_MS = 1000.0
CLOSE_S = 15.0


class StreamCounts(Record, frozen=True, kw_only=True):
    """Frames of one stream; came = skipped + dropped + waiting + in_hand + answered + failed, always.

    ``skipped`` are passed over by the setting (every n-th frame), ``dropped`` gave way to newer ones or came
    too late to be read, ``in_hand`` are with the engine, ``failed`` got no answer.
    """

    source: str
    came: int
    skipped: int
    dropped: int
    waiting: int
    in_hand: int
    answered: int
    failed: int


@dataclass(frozen=True, slots=True)
class Result:
    """One frame's ``answer``, or ``error`` where there is none. ``waited_ms`` passed from its capture until
    its call began, ``took_ms`` is of the whole call, in which ``batch`` frames were answered."""

    source: str
    index: int
    at_s: float
    answer: Any
    waited_ms: float
    took_ms: float
    batch: int
    error: str = ""


@dataclass(slots=True)
class _Stream:
    source: Source
    queue: FrameQueue
    skipped: int = 0
    answered: int = 0
    failed: int = 0
    taken: int = 0  # tickets given out, and with them the order of the results
    filed: int = 0
    early: dict[int, Result] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    """The frames of one call with the places of their streams and their tickets."""

    frames: list[Frame]
    places: list[int]
    tickets: list[int]
    setting: Setting


class Pump:
    """Starts at once; iterate over it for the results until all sources have ended, then close it.

    ``setting`` is asked before each call (``batch``, ``burst``) and each frame (``every``). ``weights`` are
    the streams' shares (all equal where left out). ``patience_ms`` bounds how long a frame waits for a burst
    to fill. What happens is told by ``tell``, from any thread. Closes its sources.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        answer: Answering,
        setting: Callable[[], Setting],
        *,
        workers: int = 1,
        queue: int = QUEUE,
        weights: Sequence[float] = (),
        patience_ms: float = PATIENCE_MS,
        tell: Tell = silent,
    ) -> None:
        if len({s.name for s in sources}) != len(sources) or not sources or workers < 1:
            cure = "Give sources of different names, and one worker or more"
            raise BadInput("starting", "the streams", "sources must have names of their own", cure)
        self._answer, self._setting, self._tell = answer, setting, tell
        self._patience_ms = patience_ms
        # One lock, two things to wait for: a frame must not wake the caller, who waits for results.
        lock = threading.RLock()
        self._changed, self._filed = threading.Condition(lock), threading.Condition(lock)
        self._streams = [_Stream(s, FrameQueue(queue, not s.live, self._changed)) for s in sources]
        self._turns = turns(weights or [1.0] * len(sources))
        self._flush = 0  # frames of the burst that are still to be answered
        self._results: deque[Result] = deque()
        self._stopping = False
        self._working = workers
        self._threads = [
            threading.Thread(target=self._read, args=(s,), name=f"edgekiln-read-{i}", daemon=True)
            for i, s in enumerate(self._streams)
        ]
        self._threads += [
            threading.Thread(target=self._work, name=f"edgekiln-work-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ for the caller

    def __iter__(self) -> Iterator[Result]:
        while (result := self.result()) is not None:
            yield result

    def result(self, timeout_s: float | None = None) -> Result | None:
        """The next result; None when all sources have ended and every frame has its result, or after
        ``timeout_s``."""
        with self._changed:
            self._filed.wait_for(lambda: self._results or not self._working, timeout_s)
            if not self._results:
                return None
            if len(self._results) == MOST_RESULTS:
                self._changed.notify_all()  # the workers had stopped for want of room
            return self._results.popleft()

    @property
    def running(self) -> bool:
        """Whether results may still come."""
        with self._changed:
            return bool(self._working or self._results)

    def counts(self) -> tuple[StreamCounts, ...]:
        """Per stream, in the order of the sources; all of one moment."""
        with self._changed:
            return tuple(map(_counts, self._streams))

    def close(self) -> None:
        """Stop the sources, drop what waits, let calls end, join all threads. May be called twice.

        A thread that a source or ``answer`` holds longer than ``CLOSE_S`` is told as a ``hung`` Event.
        """
        with self._changed:
            self._stopping = True
            for stream in self._streams:
                stream.source.stop()
                stream.queue.close(discard=True)
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self._say("hung", thread.name, f"it did not end in {CLOSE_S:g} s", "it is left behind")

    def __enter__(self) -> Pump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ reading

    def _read(self, stream: _Stream) -> None:
        """A source's thread: all its frames into its queue, then an event that says how it ended."""
        source = stream.source
        kind: EventKind = "source-ended"
        why = ""
        try:
            while not self._stopping and self._one(stream):
                pass
        except EdgekilnError as error:
            kind, why = "source-failed", error.why
        except Exception as error:  # a decoder or driver may raise anything
            kind, why = "source-failed", f"{type(error).__name__}: {error}"
        finally:
            stream.queue.close()
            try:
                source.close()
            except Exception as error:
                why = f"{why}; closing it: {error}" if why else f"closing it: {error}"
        if not self._stopping:
            self._say(kind, source.name, why, "the other streams go on")

    def _one(self, stream: _Stream) -> bool:
        """One frame, read or passed over. False at the end."""
        every = max(1, self._setting().every)
        if (stream.skipped + stream.queue.offered) % every:
            if not stream.source.skip():
                return False
            with self._changed:
                stream.skipped += 1
            return True
        frame = stream.source.read()
        return frame is not None and stream.queue.put(frame)

    # ------------------------------------------------------------ answering

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._do(job)
        except Exception as error:  # a fault of this file or of ``setting``: say so instead of hanging
            self._say("crashed", "streams", f"{type(error).__name__}: {error}", "the streams end")
            with self._changed:
                self._stopping = True
                for stream in self._streams:
                    stream.source.stop()
                    stream.queue.close(discard=True)
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()
                self._filed.notify_all()

    def _next(self) -> _Job | None:
        """The frames of the next call, as soon as there are any; None when there will be none."""
        with self._changed:
            while True:
                waiting = [s.queue.waiting for s in self._streams]
                if self._stopping or (not any(waiting) and all(s.queue.ended for s in self._streams)):
                    return None
                setting = self._setting()
                if len(self._results) < MOST_RESULTS and (most := self._due(waiting, setting)):
                    return self._take(waiting, most, setting)
                # A burst that fills slowly has to be looked at again when its oldest frame loses patience.
                self._changed.wait(0.05 if any(waiting) else None)

    def _due(self, waiting: Sequence[int], setting: Setting) -> int:
        """How many frames to take now (see ``due``)."""
        total = sum(waiting)
        room = sum(s.queue.size for s in self._streams if not s.queue.ended)
        burst = min(setting.burst, room)  # what the queues can't hold is never reached
        captured = [at for s in self._streams if (at := s.queue.oldest_s) is not None]
        oldest_ms = (time.monotonic() - min(captured)) * 1e3 if captured else 0.0
        found = due(total, burst, setting.batch, oldest_ms, self._patience_ms, self._flush > 0 or not room)
        if found and self._flush <= 0:
            self._flush = total
        return found

    def _take(self, waiting: Sequence[int], most: int, setting: Setting) -> _Job:
        self._turns, places = pick(self._turns, waiting, most)
        job = _Job([], [], [], setting)
        for place in places:
            stream = self._streams[place]
            frame = stream.queue.take()
            assert frame is not None, "only workers take, under the lock"
            job.frames.append(frame)
            job.places.append(place)
            job.tickets.append(stream.taken)
            stream.taken += 1
        self._flush -= len(places)
        return job

    def _do(self, job: _Job) -> None:
        """Answer a job and file its results. Where a call of several frames fails, each is tried alone, so
        that a frame that breaks the call costs the other streams nothing but time."""
        started = time.monotonic()
        answers, event = self._try(job.frames, job.setting)
        took_ms = (time.monotonic() - started) * 1e3
        batch = len(job.frames)
        alone = event is not None and batch > 1 and event.kind not in {"timeout", "memory"}
        if event is not None:
            done = "each frame is tried alone" if alone else "no answer"
            self._tell(msgspec.structs.replace(event, done=done))
        for place, frame in enumerate(job.frames):
            begun, failed = started, event
            answer = answers[place] if answers else None
            if alone:
                begun, batch = time.monotonic(), 1
                again, failed = self._try([frame], job.setting)
                answer, took_ms = again[0] if again else None, (time.monotonic() - begun) * 1e3
                if failed is not None:
                    self._tell(failed)
            result = Result(
                source=frame.source,
                index=frame.index,
                at_s=frame.at_s,
                answer=answer,
                waited_ms=(begun - frame.at_s) * 1e3,
                took_ms=took_ms,
                batch=batch,
                error=failed.why if failed is not None else "",
            )
            frame.release()
            self._file(self._streams[job.places[place]], job.tickets[place], result)

    def _try(self, frames: Sequence[Frame], setting: Setting) -> tuple[Sequence[Any], Event | None]:
        """The answers, or none and what went wrong."""
        try:
            answers = self._answer(frames, setting)
            if len(answers) != len(frames):
                raise ValueError(f"{len(answers)} answers for {len(frames)} frames")
            return answers, None
        except Exception as error:
            kinds: tuple[tuple[type[Exception], EventKind], ...] = (
                *((TimeoutError, "timeout"), (MemoryError, "memory")),
                *((EdgekilnError, "refused"), (Exception, "crashed")),
            )
            kind = next(kind for group, kind in kinds if isinstance(error, group))
            why = error.why if isinstance(error, EdgekilnError) else f"{type(error).__name__}: {error}"
            who = ", ".join(f"{f.source} frame {f.index}" for f in frames)
            return (), Event(at_s=time.monotonic(), kind=kind, what=who, why=why, done="no answer")

    def _file(self, stream: _Stream, ticket: int, result: Result) -> None:
        """Hand the result out when all earlier ones of its stream are out."""
        with self._changed:
            stream.answered += not result.error
            stream.failed += bool(result.error)
            stream.early[ticket] = result
            while (ready := stream.early.pop(stream.filed, None)) is not None:
                stream.filed += 1
                self._results.append(ready)
            self._filed.notify_all()

    def _say(self, kind: EventKind, what: str, why: str, done: str) -> None:
        self._tell(Event(at_s=time.monotonic(), kind=kind, what=what, why=why, done=done))


def _counts(stream: _Stream) -> StreamCounts:
    held = stream.queue.counts()
    return StreamCounts(
        source=stream.source.name,
        came=held.offered + stream.skipped,
        skipped=stream.skipped,
        dropped=held.dropped,
        waiting=held.waiting,
        in_hand=held.taken - stream.answered - stream.failed,
        answered=stream.answered,
        failed=stream.failed,
    )
