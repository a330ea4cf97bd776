"""A worker process spoken to in JSON lines, with a time limit on every answer and no way to outlive us."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekiln.errors import MachineFault
from edgekiln.prove.worker import Answer, Refused
from edgekiln.records import Record

MAX_LINE_BYTES = 16 << 20
STDERR_BYTES = 8192
STDERR_LINES = 8
LOOK_SECONDS = 0.25

_A = TypeVar("_A", bound=Record)


class Lost(Exception):
    """The worker gave no usable answer. ``kind`` is refused, crashed, hung, memory or garbled."""

    def __init__(self, kind: str, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.cure = kind, reason, cure


@contextlib.contextmanager
def _start_errors(program: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise MachineFault("starting", program, why, "Free some memory or processes and try again") from error


class Process:
    """A child in its own process group; ``end`` kills the whole group and reaps the child.

    ``answers`` is the union of records that the worker may answer with.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stderr: Path,
        answers: Any = Answer,
        folder: Path | None = None,
    ) -> None:
        self._stderr = stderr
        with stderr.open("wb") as errors, _start_errors(command[0]):
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                cwd=folder,
                bufsize=0,
                start_new_session=True,  # Ctrl-C goes to the parent alone, which then ends the children
            )
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(answers)
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, request: Record, answer: type[_A], seconds: float) -> _A:
        """Send ``request``; wait ``seconds`` at most for an ``answer``. Raises Lost."""
        found = self.answer_to(request, seconds)
        if isinstance(found, Refused):
            raise Lost("refused", found.why, found.cure)
        if not isinstance(found, answer):
            raise _garbled(msgspec.json.encode(found))
        return found

    def answer_to(self, request: Record, seconds: float, memory_bytes: int | None = None) -> Any:
        """Send ``request``; wait ``seconds`` at most for one of ``answers``. Raises Lost.

        ``memory_bytes`` bounds the child's resident memory (looked at four times a second, on Linux). An
        address-space limit would not do: converters map far more than they ever touch.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(msgspec.json.encode(request) + b"\n")
        except OSError:
            raise self._crashed() from None
        line = self._line(time.monotonic() + seconds, seconds, memory_bytes)
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _garbled(line) from error

    def _line(self, deadline: float, seconds: float, memory_bytes: int | None) -> bytes:
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if len(self._buffer) > MAX_LINE_BYTES:
                    raise _garbled(self._buffer)
                left = max(0.0, deadline - time.monotonic())
                if not selector.select(left if memory_bytes is None else min(left, LOOK_SECONDS)):
                    self._check_memory(memory_bytes)
                    if time.monotonic() < deadline:
                        continue
                    reason = f"no answer within {seconds:.0f} s"
                    raise Lost(
                        "hung", reason, "Check the engine with one thread, or allow more seconds a call"
                    )
                chunk = os.read(self._child.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._crashed()
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_memory(self, limit: int | None) -> None:
        used = None if limit is None else resident_bytes(self._child.pid)
        if limit is not None and used is not None and used > limit:
            why = f"it took more than {limit / 1e9:.1f} GB of memory"
            raise Lost("memory", why, "Allow it more memory, or use a smaller model")

    def _crashed(self) -> Lost:
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Lost("crashed", "the worker closed its output", "See the worker's last lines")
        if code == -signal.SIGKILL:
            why = "the worker was killed by the system, most likely because memory ran out"
            return Lost("crashed", why, "Free some memory, or use a smaller model or batch")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Lost(
            "crashed", f"the worker ended with {how}", "See its last lines; try another version of the engine"
        )

    def last_words(self) -> tuple[str, ...]:
        """The last lines that the worker wrote to stderr."""
        with contextlib.suppress(OSError), self._stderr.open("rb") as file:
            file.seek(max(0, self._stderr.stat().st_size - STDERR_BYTES))
            return tuple(file.read().decode(errors="replace").splitlines()[-STDERR_LINES:])
        return ()

    def end(self) -> None:
        """Kill the group, reap the child, close the pipes. Safe to call twice."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process of ours; None where the system does not tell, or it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _garbled(line: bytes) -> Lost:
    start = line[:80].decode(errors="replace")
    cure = "The worker is not this version's; reinstall edgekiln"
    return Lost("garbled", f"the worker answered something else: {start!r}", cure)
