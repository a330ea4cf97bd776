"""A model server, a bad network before it, and servers that misbehave: all on real sockets.

The server and the network are the benchmark's (``benchmarks/measuring``).
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from measuring.chaos_proxy import ChaosProxy, Condition, chaos_proxy  # noqa: E402
from measuring.model_server import ModelServer, Served, served, serving  # noqa: E402

__all__ = [
    "ChaosProxy",
    "Condition",
    "ModelServer",
    "Served",
    "chaos_proxy",
    "misbehaving",
    "read_request",
    "response",
    "served",
    "serving",
]


def read_request(connection: socket.socket) -> bytes:
    """The next request, head and body; empty where the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(1 << 16)
        if not got:
            return b""
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    missing = (int(lengths[0]) if lengths else 0) - len(body)
    while missing > 0:
        got = connection.recv(1 << 16)
        if not got:
            return b""
        body += got
        missing -= len(got)
    return head + b"\r\n\r\n" + body


def response(body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """A response; ``length`` is the Content-Length that it claims where that is not the body's."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def misbehaving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that does ``serve`` with each connection, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    open_now: set[socket.socket] = set()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            serve(connection)
        open_now.discard(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_now.add(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in tuple(open_now):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(5)
