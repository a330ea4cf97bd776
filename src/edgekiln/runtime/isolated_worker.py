"""One engine in a process of its own: ``python -P -m edgekiln.runtime.isolated_worker CONTROL LIFE IN OUT``.

The arguments are descriptors that the parent opened: a socket for requests and answers (a JSON line each), a
pipe whose end means that the parent is gone, and the blocks of memory for inputs and outputs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec

from edgekiln.engines import Runner, open_engine
from edgekiln.errors import EdgekilnError
from edgekiln.records import Record
from edgekiln.runtime.shared import Block, Placed
from edgekiln.runtime.vocabulary import Candidate

LINE_BYTES = 1 << 20
FIRST_TO_GO = 500
"""What is added to the child's OOM score: where memory runs out, Linux shall not take the parent."""


class Open(Record, frozen=True, kw_only=True, tag="open"):
    """Load the candidate. ``memory_bytes`` bounds what the process may allocate from then on."""

    candidate: Candidate
    memory_bytes: int | None = None
    most_bytes: int


class Call(Record, frozen=True, kw_only=True, tag="call"):
    inputs: tuple[Placed, ...]


class Opened(Record, frozen=True, kw_only=True, tag="opened"):
    load_ms: float


class Called(Record, frozen=True, kw_only=True, tag="called"):
    outputs: tuple[Placed, ...]


class Refused(Record, frozen=True, kw_only=True, tag="refused"):
    """The engine failed in an orderly way; ``error`` is the exception's name."""

    error: str
    why: str
    cure: str = ""


Request = Open | Call
Answer = Opened | Called | Refused


def serve(control: socket.socket, inputs: Block, outputs: Block) -> None:
    """Answer each request until the parent closes its end."""
    decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
    runner: Runner | None = None
    with control.makefile("rb") as lines:
        while line := lines.readline(LINE_BYTES):
            request = decoder.decode(line)
            answer: Answer
            try:
                if isinstance(request, Open):
                    inputs.most_bytes = outputs.most_bytes = request.most_bytes
                    runner, answer = _opened(request)
                elif runner is not None:
                    found = runner(inputs.get(request.inputs, copy=False))
                    answer = Called(outputs=outputs.put(found))
                else:
                    answer = Refused(error="RuntimeError", why="no engine is open")
            except Exception as error:
                answer = _refusal(error)
            control.sendall(msgspec.json.encode(answer) + b"\n")


def _opened(request: Open) -> tuple[Runner, Opened]:
    candidate, started = request.candidate, time.perf_counter()
    if request.memory_bytes is not None:
        # Private memory that can be written: unlike the address space (RLIMIT_AS) it has no libraries, files
        # and shared blocks in it, which engines map by the gigabyte and hardly touch.
        resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes,) * 2)
    runner = open_engine(
        candidate.engine, candidate.artifact, Path(candidate.folder), candidate.threads, candidate.rung.size
    )
    return runner, Opened(load_ms=(time.perf_counter() - started) * 1e3)


def _refusal(error: Exception) -> Refused:
    name = type(error).__name__
    if isinstance(error, EdgekilnError):
        return Refused(error=name, why=error.why, cure=error.cure)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return Refused(error=name, why=f"{name}: {'; '.join(lines[-2:])}"[: LINE_BYTES // 8])


def end_with(life: int) -> None:
    """End this process when the pipe ``life`` does, which is when the parent is gone, however it went.

    Linux is asked for a SIGKILL on that event, so that a hung or stopped engine ends too. (PR_SET_PDEATHSIG
    would end it with the *thread* that started it.) Elsewhere a thread waits for it.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
        if select.select([life], [], [], 0)[0]:  # it ended before we asked
            os._exit(0)
        return

    def wait() -> None:
        os.read(life, 1)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    control, life, inputs, outputs = map(int, sys.argv[1:])
    end_with(life)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash in every call would fill the disk
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(FIRST_TO_GO, int(score.read_text()))))
    with socket.socket(fileno=control) as wire, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(wire, Block(inputs), Block(outputs))
    # Some libraries crash in their destructors; the answers are out, so end without running them.
    os._exit(0)


if __name__ == "__main__":
    main()
