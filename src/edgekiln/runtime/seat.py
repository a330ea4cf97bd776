"""An engine on a thread of its own, so that its caller can stop waiting for it.

A thread can't be killed. Where an engine inside this process hangs, its thread is abandoned; where it is a
process (``runtime.isolated``), the process is killed and the thread comes back.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner
from edgekiln.errors import EngineFault


class Seat(Protocol):
    """An engine that is being opened, open, or broken, with a time limit on each call.

    ``broken`` is why it did not open. ``since_s`` is when the call in progress (or the opening) began, None
    when it idles; ``stuck`` says that the caller of that call stopped waiting.
    """

    @property
    def broken(self) -> BaseException | None: ...

    @property
    def since_s(self) -> float | None: ...

    @property
    def stuck(self) -> bool: ...

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    def call(self, inputs: Arrays, limit_s: float) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...

    def join(self, timeout_s: float) -> None: ...


class _Job:
    """One call, from the caller's thread to the engine's and back."""

    __slots__ = ("done", "error", "given_up", "inputs", "outputs")

    def __init__(self, inputs: Arrays) -> None:
        self.inputs: Arrays | None = inputs
        self.outputs: dict[str, NDArray[Any]] | None = None
        self.error: BaseException | None = None
        self.given_up = False
        self.done = _thread.allocate_lock()
        self.done.acquire()


class Threaded:
    """``open``'s runner on a daemon thread: opened, called and closed there.

    ``changed`` is called (on that thread) when it is open or broken. With ``direct`` calls run on the
    caller's own thread: that saves the hand-over, and the caller of a call that hangs hangs with it.
    """

    def __init__(
        self,
        open: Callable[[], Runner],
        changed: Callable[[], None] = lambda: None,
        *,
        direct: bool = False,
        clock: Callable[[], float] = time.monotonic,
        name: str = "edgekiln-engine",
    ) -> None:
        self._open, self._changed, self._direct, self._clock = open, changed, direct, clock
        self._runner: Runner | None = None
        self.broken: BaseException | None = None
        self.since_s: float | None = clock()
        self.stuck = False
        self._ended = False
        self._turn = _thread.allocate_lock()
        self._turn.acquire()  # until it is open
        self._go = _thread.allocate_lock()
        self._go.acquire()
        self._job: _Job | None = None
        self._thread = threading.Thread(target=self._live, daemon=True, name=name)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._runner is not None and not self._ended

    @property
    def alive(self) -> bool:
        """False where the engine is a process that has ended while nobody called it."""
        runner = self._runner
        return self._ended or runner is None or bool(getattr(runner, "alive", lambda: True)())

    def call(self, inputs: Arrays, limit_s: float) -> dict[str, NDArray[Any]]:
        """The engine's outputs. Raises what the engine raises, and EngineFault of kind ``timeout`` where it
        has no answer within ``limit_s`` seconds, waiting for its turn included."""
        until = self._clock() + limit_s
        if not self._turn.acquire(timeout=max(0.0, limit_s)):
            raise late(limit_s, "the engine was busy with another call")
        self.since_s = self._clock()  # before the look at _ended: close sets that first and looks at this
        if self._ended or self._runner is None:
            self.since_s = None
            self._turn.release()
            self._wake()  # its thread may have wanted the turn, to close the engine
            raise EngineFault("closed", "the engine", "it was closed meanwhile", "Call again")
        if self._direct:
            try:
                return self._runner(inputs)
            finally:
                self.since_s = None
                self._turn.release()
        job = self._job = _Job(inputs)
        self._wake()
        if not job.done.acquire(timeout=max(0.0, until - self._clock())):
            with _giving_up:
                if self._job is job:
                    job.given_up = self.stuck = True
            if job.given_up:
                raise late(limit_s, "the engine did not answer")
        if job.error is not None:
            raise job.error
        assert job.outputs is not None
        return job.outputs

    def close(self) -> None:
        """Close the engine once it is idle; kill it where it is a process that is not. Never waits."""
        self._ended = True
        busy = self.since_s is not None
        kill = getattr(self._runner, "kill", None)
        if busy and kill is not None:
            kill()
        self._wake()

    def join(self, timeout_s: float) -> None:
        """Wait until it has closed, but no longer than that."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # by close and a call at the same moment: once is enough
            self._go.release()

    def _live(self) -> None:
        try:
            runner = self._open()
        except BaseException as error:
            self.broken, self.since_s = error, None
            self._turn.release()
            self._changed()
            return
        self._runner, self.since_s = runner, None
        self._turn.release()
        self._changed()
        while True:
            self._go.acquire()
            job = self._job
            if job is not None:
                self._work(runner, job)
            # A caller who has the turn will hand over a job yet; a direct one is in the engine.
            if self._ended and self._turn.acquire(blocking=self._direct):
                break
        self._runner = None
        self._turn.release()
        with contextlib.suppress(Exception):
            runner.close()

    def _work(self, runner: Runner, job: _Job) -> None:
        assert job.inputs is not None
        try:
            job.outputs = runner(job.inputs)
        except BaseException as error:
            job.error = error
        job.inputs = None
        with _giving_up:
            self._job, self.since_s, self.stuck = None, None, False
        job.done.release()
        self._turn.release()


_giving_up = threading.Lock()
"""Held for a few instructions: a call is either answered or given up, never both."""


def late(limit_s: float, why: str) -> EngineFault:
    """The fault of a call that had no answer within ``limit_s`` seconds."""
    cure = "Allow more time, or use a quicker artifact"
    return EngineFault("timeout", "the engine", f"{why} within {limit_s * 1e3:.1f} ms", cure)
