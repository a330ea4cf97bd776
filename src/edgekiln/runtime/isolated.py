"""An engine in a process of its own: whatever becomes of it, the caller goes on.

Arrays travel through shared memory (one copy in, one out), everything else as JSON lines over a socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, EngineFault, MachineFault, NotRunnableHere
from edgekiln.runtime.faults import is_accelerator_text, is_memory_text
from edgekiln.runtime.isolated_worker import LINE_BYTES, Answer, Call, Called, Open, Opened, Refused
from edgekiln.runtime.shared import MOST_BYTES, block
from edgekiln.runtime.vocabulary import Candidate

WORKER = (sys.executable, "-P", "-m", "edgekiln.runtime.isolated_worker")
STDERR_BYTES = 1 << 16
STDERR_LINES = 8
_LOOK_EVERY = 256
_FAREWELL_S = 2.0
_DECODER: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


class Isolated:
    """``candidate``'s engine as a runner, in a child that dies with this process.

    ``limit_s`` bounds every call and ``start_s`` the opening; an engine that takes longer is killed.
    ``memory_bytes`` bounds what the child may allocate, ``most_bytes`` the shared memory each way. Ctrl-C in
    a terminal goes to the parent alone. Raises MachineFault where no process can be started, NotRunnableHere
    where the engine refuses the artifact, EngineFault where it crashes, hangs or runs out of memory.
    """

    def __init__(
        self,
        candidate: Candidate,
        *,
        limit_s: float = 30.0,
        start_s: float = 60.0,
        memory_bytes: int | None = None,
        most_bytes: int = MOST_BYTES,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._id, self._limit_s = candidate.rung.id, limit_s
        self._ends = threading.Lock()
        self._ooms, self._buffer, self._calls = _oom_kills(), b"", 0
        self._inputs, self._outputs = (
            block("edgekiln-inputs", most_bytes),
            block("edgekiln-outputs", most_bytes),
        )
        self._said: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        fcntl.fcntl(self._said, fcntl.F_SETFL, os.O_APPEND)  # so that it can be emptied under the child
        self._life = -1
        self._wire: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        try:
            self._start(command, candidate.threads)
            request = Open(candidate=candidate, memory_bytes=memory_bytes, most_bytes=most_bytes)
            self._ask(request, Opened, start_s)
        except BaseException:
            self.close()
            raise

    def _start(self, command: Sequence[str], threads: int) -> None:
        self._wire, theirs = socket.socketpair()
        life, self._life = os.pipe()
        handles = (theirs.fileno(), life, self._inputs.handle, self._outputs.handle)
        try:
            self._child = subprocess.Popen(
                [*command, *map(str, handles)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env=environment(threads),
                pass_fds=handles,
                start_new_session=True,
            )
        except OSError as error:
            why, cure = error.strerror or str(error), "Free some memory or processes and try again"
            raise MachineFault("starting", command[0], why, cure) from error
        finally:
            theirs.close()
            os.close(life)

    @property
    def pid(self) -> int:
        return -1 if self._child is None else self._child.pid

    def alive(self) -> bool:
        """Whether the child still runs (and what it ended with is reaped where not)."""
        with self._ends:
            return self._child is not None and self._child.poll() is None

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs are copies. Raises EngineFault; BadInput where the engine refuses the inputs."""
        if self._wire is None:
            raise EngineFault("crashed", self._id, "the engine's process has ended", "Open it again")
        self._calls += 1
        if self._calls % _LOOK_EVERY == 0 and os.fstat(self._said.fileno()).st_size > STDERR_BYTES:
            os.ftruncate(self._said.fileno(), 0)  # a library that complains at every call
        called = self._ask(Call(inputs=self._inputs.put(inputs)), Called, self._limit_s)
        try:
            return self._outputs.get(called.outputs, copy=True)
        except (BadInput, TypeError) as error:
            raise self._garbled(str(error)) from error

    def _ask(self, request: Open | Call, expected: type[Any], seconds: float) -> Any:
        assert self._wire is not None
        try:
            self._wire.settimeout(seconds)
            self._wire.sendall(msgspec.json.encode(request) + b"\n")
            answer = _DECODER.decode(self._line(time.monotonic() + seconds))
        except TimeoutError:
            self.kill()
            why = f"no answer within {seconds:g} s; its process was killed"
            cure = "Allow it more time, or use another artifact"
            raise EngineFault("hung", self._id, why, cure) from None
        except (OSError, EOFError):
            raise self._crashed() from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._garbled(str(error)) from error
        except BaseException:  # Ctrl-C: the answer would come to the next call
            self.kill()
            raise
        if isinstance(answer, Refused):
            raise _refused(answer, self._id, opening=isinstance(request, Open))
        if not isinstance(answer, expected):
            raise self._garbled(type(answer).__name__)
        return answer

    def _line(self, until: float) -> bytes:
        """One line of the child's. Raises EOFError where it ended, TimeoutError after ``until``."""
        assert self._wire is not None
        while b"\n" not in self._buffer:
            if len(self._buffer) > LINE_BYTES:
                raise msgspec.DecodeError("an endless line")
            self._wire.settimeout(max(1e-4, until - time.monotonic()))
            chunk = self._wire.recv(1 << 16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _crashed(self) -> EngineFault:
        """What the child's end looks like from here."""
        code = self.kill(wait_s=1.0)
        said = self.last_words()
        words = f"; its last words: {said[-1]}" if said else ""
        by_kernel = code == -signal.SIGKILL and _oom_kills() > self._ooms
        if by_kernel or is_memory_text(" ".join(said)):
            why = "memory ran out and the engine's process was ended"
            return EngineFault("memory", self._id, why + words, "Free some memory, or use a smaller artifact")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        cure = "Try another version of the engine, or another artifact"
        return EngineFault("crashed", self._id, f"the engine's process ended with {how}{words}", cure)

    def _garbled(self, what: str) -> EngineFault:
        self.kill()
        why = f"its process answered something else ({what[:80]})"
        return EngineFault("crashed", self._id, why, "Reinstall edgekiln; the worker is not this version's")

    def last_words(self) -> tuple[str, ...]:
        """The last lines that the child wrote to stdout or stderr."""
        with contextlib.suppress(OSError, ValueError):
            size = os.fstat(self._said.fileno()).st_size
            tail = os.pread(self._said.fileno(), STDERR_BYTES, max(0, size - STDERR_BYTES))
            return tuple(tail.decode(errors="replace").splitlines()[-STDERR_LINES:])
        return ()

    def kill(self, wait_s: float = 0.0) -> int:
        """Kill the child and what it started, and reap it; its exit code. From any thread, at any time: a
        call in progress ends with EngineFault. ``wait_s`` lets it end by itself first."""
        with self._ends:
            if self._child is None:
                return 0
            if wait_s > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(wait_s)
            if self._child.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._child.pid, signal.SIGKILL)
            return self._child.wait()

    def close(self) -> None:
        """End the child and give everything back. Safe to call twice."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()  # the child ends by itself on that, unless it hangs
        self.kill(_FAREWELL_S if wire is not None else 0.0)
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)
        self._inputs.close()
        self._outputs.close()
        self._said.close()


def environment(threads: int) -> Mapping[str, str]:
    """This process's environment with every pool of threads that libraries read at import fixed, and this
    package on the path."""
    package = str(Path(__file__).resolve().parents[2])
    pools = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")
    fixed = {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, **fixed, "PYTHONPATH": search}


def _refused(answer: Refused, to: str, *, opening: bool) -> Exception:
    """The child's orderly failure as the error that it would have been here."""
    cure = answer.cure or "Use another artifact"
    if answer.error == "MemoryError" or is_memory_text(answer.why):
        return EngineFault("memory", to, answer.why, "Free some memory, or use a smaller artifact")
    if is_accelerator_text(answer.why):
        return EngineFault("accelerator-lost", to, answer.why, "Check the accelerator and its driver")
    if opening:
        return NotRunnableHere("opening", to, answer.why, cure)
    if answer.error == "BadInput":
        return BadInput("running", to, answer.why, cure)
    return EngineFault("refused", to, answer.why, cure)


def _oom_kills() -> int:
    """How many processes this machine's kernel has killed for want of memory; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat") as rows:
        return next((int(row.split()[1]) for row in rows if row.startswith("oom_kill ")), 0)
    return 0
