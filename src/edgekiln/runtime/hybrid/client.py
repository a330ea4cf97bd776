"""HTTP calls that end in time: one server, kept connections, a bounded number of calls at once.

urllib3's connections do the talking: it is one package without others, where httpx brings four and takes
about twice the processor time per call. Its timeouts are per read, so a server that drips bytes could hold
a call for ever; here each call has one limit for all of it, after which its socket is shut, which wakes
the thread that waits on it. The same cancels a call. Only a name look-up can't be woken: it keeps its
place among the ``most_calls`` until the resolver gives up, and the caller goes on without it.

Environment variables such as HTTPS_PROXY are not read: a proxy's delay would be taken for the link's, and
pictures would pass through it unasked. ``Server.proxy`` names one on purpose. Redirects are refused.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from edgekiln.errors import BadInput, MissingExtra, ServerFault, ServerFaultKind
from edgekiln.records import Record
from edgekiln.runtime.hybrid.protocol import LENGTH_HEADER, error_text

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

DOING = "calling the model server"
_CHUNK_BYTES = 1 << 16
_MOST_WAIT_S = 3600.0


class Server(Record, frozen=True, kw_only=True):
    """A model server. ``url`` is its root (``https://host:8000``); certificates are always verified, against
    ``ca_file`` (PEM) where it is given, else against the system's. ``headers`` go with each request.

    ``most_calls`` bounds calls, threads and connections at once. ``proxy`` is ``http://host:port``: asked to
    CONNECT for https, and to forward for http.
    """

    url: str
    ca_file: str | None = None
    proxy: str | None = None
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    most_calls: int = 4
    most_response_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response of status 200. ``seconds``: from the start of its call to its last byte."""

    body: bytes
    header_bytes: int | None
    seconds: float
    sent_bytes: int


@dataclass(eq=False)
class Exchange:
    """A call on its way. ``future`` gives its Response or raises ServerFault; ``started_s`` is monotonic."""

    future: Future[Response]
    started_s: float
    limit_s: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _socket: socket.socket | None = None
    _stopped: Literal["", "late", "cancelled"] = ""

    def cancel(self) -> None:
        """End the call at once: its socket is shut, and ``future`` raises ServerFault ``cancelled``."""
        self._stop("cancelled")

    def wait(self) -> Response:
        """The response, or ServerFault, at the call's limit at the latest."""
        try:
            return self.future.result(max(0.0, self.started_s + self.limit_s - time.monotonic()) + 0.05)
        except NotDone:
            self._stop("late")
            raise fault("late", self.limit_s) from None

    def _stop(self, why: Literal["late", "cancelled"]) -> None:
        with self._lock:
            if self._stopped or self.future.done():
                return
            self._stopped = why
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # The raw socket's: SSLSocket's own would take its TLS state from the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _hold(self, taken: socket.socket | None) -> None:
        """From now on stopping shuts ``taken``. Raises where the call has been stopped meanwhile."""
        with self._lock:
            if self._stopped:
                raise ConnectionAbortedError(self._stopped)
            self._socket = taken

    def _release(self) -> None:
        with self._lock:
            self._socket = None


class Client:
    """Calls one server. Thread-safe; ``close`` ends what is on its way."""

    def __init__(self, server: Server) -> None:
        """Opens nothing yet. Raises MissingExtra without urllib3, BadInput for a URL or file of no use."""
        self.server = server
        self._make = _connector(server)
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._slots = threading.BoundedSemaphore(server.most_calls)
        self._workers = ThreadPoolExecutor(server.most_calls, thread_name_prefix="edgekiln-offload")
        self._limits = _Limits()

    def start(
        self,
        method: str,
        path: str,
        limit_s: float,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Exchange:
        """Begin a call that has ended ``limit_s`` from now, one way or the other. Never waits.

        Raises ServerFault ``busy`` where ``most_calls`` are on their way.
        """
        if not self._slots.acquire(blocking=False):
            why = f"{self.server.most_calls} calls to it are on their way"
            cure = "Call less often, or raise most_calls"
            raise ServerFault(DOING, self.server.url, why, cure, kind="busy")
        exchange = Exchange(Future(), time.monotonic(), limit_s)
        self._limits.add(exchange)
        try:
            self._workers.submit(self._work, exchange, method, path, dict(headers or {}), body)
        except RuntimeError as error:
            self._slots.release()
            raise fault("cancelled", self.server.url) from error
        return exchange

    def close(self) -> None:
        """End every call, close every connection. Later calls raise ServerFault ``cancelled``."""
        self._limits.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _work(self, exchange: Exchange, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        try:
            found: Response | ServerFault = self._answer(exchange, method, path, headers, body)
        except ServerFault as error:
            found = error
        except Exception as error:  # whatever a library raises, the caller waits for an answer
            found = _translated(error, exchange, self.server.url)
        # The place is free before the caller hears of the answer, and so may call again at once.
        self._slots.release()
        if isinstance(found, Response):
            exchange.future.set_result(found)
        else:
            exchange.future.set_exception(found)

    def _answer(
        self, exchange: Exchange, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> Response:
        """One attempt; another for each kept connection that turns out to have been closed by the server."""
        while True:
            connection, kept = self._take()
            try:
                return self._exchanged(connection, exchange, method, path, headers, body)
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected) as error:
                connection.close()
                if not kept or exchange._stopped:
                    raise _translated(error, exchange, self.server.url) from error
            except BaseException:
                connection.close()
                raise

    def _exchanged(
        self,
        connection: HTTPConnection,
        exchange: Exchange,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
    ) -> Response:
        left_s = exchange.started_s + exchange.limit_s - time.monotonic()
        if left_s <= 0:
            raise fault("late", self.server.url)
        connection.timeout = left_s
        exchange._hold(connection.sock)
        if connection.sock is None:
            connection.connect()
        opened = connection.sock
        exchange._hold(opened)
        connection.request(
            method,
            self._path(path),
            body=body or None,
            headers={**_OWN_HEADERS, **self.server.headers, **headers},
            preload_content=False,
            decode_content=False,
        )
        response = connection.getresponse()
        content = _read(response, self.server.most_response_bytes, self.server.url)
        seconds = time.monotonic() - exchange.started_s
        exchange._release()
        if exchange._stopped:
            # Shutting the socket looks like a server's own end, even like a whole answer without a length.
            raise ConnectionAbortedError(exchange._stopped)
        if connection.sock is None:
            connection.close()
        else:
            self._keep(connection)
        return Response(content, _checked(response, content, self.server.url), seconds, len(body))

    def _path(self, path: str) -> str:
        root = urlsplit(self.server.url)
        full = root.path.rstrip("/") + path
        forwarded = self.server.proxy is not None and root.scheme == "http"
        return f"http://{root.netloc}{full}" if forwarded else full

    def _take(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was kept from an earlier call. One with bytes to read is none."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._make(), False
            if connection.is_connected:
                return connection, True
            connection.close()

    def _keep(self, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._limits.closed:
                self._idle.append(connection)
                return
        connection.close()


class _Limits:
    """One thread that stops each call at its limit; it ends after a while without calls."""

    _IDLE_S = 30.0

    def __init__(self) -> None:
        self.closed = False
        self._wake = threading.Condition()
        self._heap: list[tuple[float, int, Exchange]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, exchange: Exchange) -> None:
        with self._wake:
            if self.closed:
                return
            due = exchange.started_s + exchange.limit_s
            heapq.heappush(self._heap, (due, next(self._count), exchange))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgekiln-limits", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is exchange:
                self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self.closed = True
            left = [exchange for *_, exchange in self._heap]
            self._heap.clear()
            self._wake.notify()
        for exchange in left:
            exchange._stop("cancelled")

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._heap and self._heap[0][2].future.done():
                    heapq.heappop(self._heap)
                wait_s = self._heap[0][0] - time.monotonic() if self._heap else self._IDLE_S
                # Closing may have happened while this thread stopped a call and did not listen.
                if not self.closed and wait_s > 0:
                    woken = self._wake.wait(wait_s)
                    if woken or self._heap:
                        continue
                if self.closed or not self._heap:
                    self._thread = None
                    return
                exchange = heapq.heappop(self._heap)[2]
            exchange._stop("late")


_OWN_HEADERS = {"User-Agent": "edgekiln", "Accept-Encoding": "identity"}


def fault(kind: ServerFaultKind, to: object, why: str = "") -> ServerFault:
    """A fault of the link with the usual words for its kind."""
    words, cure = _WORDS[kind]
    return ServerFault(DOING, to, why or words, cure, kind=kind)


_WORDS: dict[ServerFaultKind, tuple[str, str]] = {
    "unreachable": ("there is no connection to it", "Check the address, the network, and that it runs"),
    "tls": ("its certificate can't be trusted", "Check the name in the URL, or give its CA (--server-ca)"),
    "lost": ("the connection broke", "Check the network and the server's log"),
    "late": ("no whole answer came in time", "Check the network and the server's load, or wait longer"),
    "cancelled": ("the call was cancelled", "Nothing needs to be done"),
    "too-large": ("the answer is too large", "Ask for fewer outputs, or raise most_response_bytes"),
}


def _translated(error: Exception, exchange: Exchange, url: str) -> ServerFault:
    """What went wrong in our words. A stopped call's own error is only the echo of its being stopped."""
    import urllib3.exceptions as theirs

    if exchange._stopped:
        return fault(exchange._stopped, url)
    why = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, ssl.SSLError | theirs.SSLError):
        return fault("tls", url, f"TLS failed ({why})")
    if isinstance(error, theirs.NameResolutionError):
        return fault("unreachable", url, "its name could not be resolved")
    if isinstance(error, theirs.NewConnectionError):
        cause = error.__cause__ or error.__context__
        return fault("unreachable", url, getattr(cause, "strerror", None) or "no connection could be made")
    if isinstance(error, TimeoutError | theirs.TimeoutError):
        return fault("late", url)
    return fault("lost", url, f"the connection broke ({why})")


def _connector(server: Server) -> Any:
    """A function that makes an unopened connection to ``server``."""
    try:
        from urllib3.connection import HTTPConnection, HTTPSConnection
    except ImportError as error:
        raise MissingExtra("opening a link to", server.url, "offload") from error
    # It would log a broken answer's headers with a traceback; a fault says it in a sentence.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
    doing = "opening a link to"
    try:
        root = urlsplit(server.url)
        proxy = urlsplit(server.proxy) if server.proxy else None
        host, port = root.hostname, root.port or (443 if root.scheme == "https" else 80)
        way = (proxy.hostname, proxy.port or 8080) if proxy else (host, port)
    except ValueError as error:
        raise BadInput(doing, server.url, str(error), "Give https://host:port") from error
    if root.scheme not in {"http", "https"} or not host or root.query or root.username:
        raise BadInput(doing, server.url, "it is no URL of a server", "Give https://host:port")
    if proxy and (proxy.scheme != "http" or not proxy.hostname):
        raise BadInput(doing, str(server.proxy), "it is no URL of a proxy", "Give http://host:port")
    if server.most_calls < 1 or server.most_response_bytes < 1:
        raise BadInput(doing, server.url, "its bounds are below 1", "Give bounds of 1 and more")
    if root.scheme == "http":
        return lambda: HTTPConnection(str(way[0]), way[1])
    try:
        context = ssl.create_default_context(cafile=server.ca_file)
    except OSError as error:
        why = f"no certificate could be read ({error.strerror or 'it is not PEM'})"
        raise BadInput(doing, str(server.ca_file), why, "Give a PEM file of certificates") from error

    def secured() -> HTTPConnection:
        connection = HTTPSConnection(str(way[0]), way[1], ssl_context=context)
        if proxy:
            connection.set_tunnel(str(host), port, scheme="http")
        return connection

    return secured


def _read(response: Any, most_bytes: int, url: str) -> bytes:
    """The body, or ServerFault ``too-large`` before more than ``most_bytes`` are held."""
    told = response.headers.get("Content-Length", "")
    if told.isdigit() and int(told) > most_bytes:
        raise fault("too-large", url, f"its answer has {told} bytes, more than {most_bytes}")
    parts, size = [], 0
    while chunk := response.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > most_bytes:
            raise fault("too-large", url, f"its answer has more than {most_bytes} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _checked(response: Any, content: bytes, url: str) -> int | None:
    """The length of the JSON in ``content``. Raises ServerFault for another status than 200."""
    status, headers = response.status, response.headers
    if status != 200:
        said = error_text(content)
        why = f"it answered with status {status}" + (f" ({said})" if said else "")
        cure = "Redirects are not followed: give the final URL" if 300 <= status < 400 else "See its log"
        wait_s = _retry_after_s(headers.get("Retry-After", ""))
        raise ServerFault(DOING, url, why, cure, kind="status", status=status, retry_after_s=wait_s)
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        why = "its answer is compressed, which was not asked for"
        raise ServerFault(DOING, url, why, "Switch its response compression off", kind="answer")
    told = headers.get(LENGTH_HEADER)
    if told is None:
        return None
    if not told.isascii() or not told.isdigit() or len(told) > 12:
        why = f"{LENGTH_HEADER} is no number"
        raise ServerFault(DOING, url, why, "Check that the server speaks the protocol", kind="answer")
    return int(told)


def _retry_after_s(told: str) -> float | None:
    """Seconds, at most an hour; a date is not looked at, for the clocks of the two need not agree."""
    return min(float(told), _MOST_WAIT_S) if told.isascii() and told.isdigit() and len(told) < 9 else None
