"""A server for one page on this machine: it hands out a few files, and questions that the page answers.

Everything lies below a path with a random token, on 127.0.0.1 and a port that the system picks. The
headers make the page cross-origin isolated, without which WebAssembly has no threads.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

POLL_SECONDS = 10.0
"""The page asks again when it has heard nothing for so long."""
MAX_ANSWER_BYTES = 1 << 30
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_TYPES = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".wasm": "application/wasm"}


@dataclass
class _Exchange:
    questions: queue.Queue[bytes]
    answers: queue.Queue[bytes]
    closed: threading.Event


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is killed drops its connections; anything else is a fault and is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class PageServer:
    """Serves ``files`` (name to path or to content) at ``url`` + name until ``close``."""

    def __init__(self, files: Mapping[str, Path | bytes]) -> None:
        self._exchange = _Exchange(queue.Queue(1), queue.Queue(1), threading.Event())
        token = secrets.token_hex(16)
        handler = type("Handler", (_Handler,), {"prefix": f"/{token}/", "files": dict(files)})
        handler.exchange = self._exchange  # type: ignore[attr-defined]
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def ask(self, question: bytes | None, seconds: float, alive: Callable[[], bool]) -> bytes | None:
        """The page's answer to ``question`` (None: to nothing, its first word), or None where it gave
        none within ``seconds`` or ``alive()`` is no longer true."""
        if question is not None:
            self._exchange.questions.put(question)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return self._exchange.answers.get(timeout=0.1)
            if not alive():
                return None
        return None

    def close(self) -> None:
        self._exchange.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave together and at once: else each answer waits 40 ms for an acknowledgement.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    prefix: str
    files: dict[str, Path | bytes]
    exchange: _Exchange

    def do_GET(self) -> None:
        name = self._name()
        if name == "next":
            self._next()
        elif name is None or name not in self.files:
            self._send(404, b"")
        else:
            held = self.files[name]
            kind = _TYPES.get(Path(name or "index.html").suffix, "application/octet-stream")
            self._send(200, held if isinstance(held, bytes) else held.read_bytes(), kind)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self._name() != "answer" or not length.isdecimal() or int(length) > MAX_ANSWER_BYTES:
            self.close_connection = True  # what was sent is not read
            self._send(404, b"")
            return
        answer = self.rfile.read(int(length))
        with contextlib.suppress(queue.Full):  # an answer to nothing
            self.exchange.answers.put_nowait(answer)
        self._send(204, b"")

    def _name(self) -> str | None:
        """What is asked for below the token's path, or None without the token."""
        head, rest = self.path[: len(self.prefix)], self.path[len(self.prefix) :]
        return rest if hmac.compare_digest(head.encode(), self.prefix.encode()) else None

    def _next(self) -> None:
        until = time.monotonic() + POLL_SECONDS
        while time.monotonic() < until and not self.exchange.closed.is_set():
            with contextlib.suppress(queue.Empty):
                self._send(200, self.exchange.questions.get(timeout=0.25))
                return
        self._send(204, b"")

    def _send(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the page says itself what went wrong."""
