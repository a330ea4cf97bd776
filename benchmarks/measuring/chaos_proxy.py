"""A TCP proxy that makes a network bad on purpose: slow, narrow, stalled, cut, refused, on a schedule.

It forwards bytes and knows nothing of HTTP. It runs an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from edgekiln.records import Record

_CHUNK_BYTES = 1 << 14
_MOST_WAITING = 64
_TICK_S = 0.005
# RST instead of FIN when the socket is closed.
_LINGER_NONE = struct.pack("ii", 1, 0)


class Condition(Record, frozen=True, kw_only=True):
    """``latency_ms`` and ``jitter_ms`` (uniform, on top) are per direction; bytes keep their order.

    ``fault``: ``stall`` takes connections and bytes and passes nothing on until it ends; ``refuse`` has no
    listener and cuts what is open; ``reset`` takes connections and cuts each at its first bytes;
    ``half-close`` passes ``cut_after_bytes`` of an answer, then ends that direction in good order.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    bytes_per_s: float | None = None
    fault: Literal["", "stall", "refuse", "reset", "half-close"] = ""
    cut_after_bytes: int = 64


Schedule: TypeAlias = Sequence[tuple[float, Condition]]
"""Seconds and the condition that holds so long."""


class ChaosProxy:
    """Listens on 127.0.0.1 and forwards to ``target``. ``recorded`` keeps every byte that clients sent,
    one entry per connection, where ``record`` is set."""

    def __init__(self, target: tuple[str, int], *, record: bool = False, seed: int = 0) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._condition = Condition()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._playing: asyncio.Task[None] | None = None
        self._record = record
        self.recorded: list[bytearray] = []
        self.connections = 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, condition: Condition) -> None:
        """The network from now on. Returns once it holds."""
        self._do(self._change(condition))

    def play(self, schedule: Schedule, *, again: bool = False) -> None:
        """Follow ``schedule`` in the background, over and over where ``again``; ``set`` ends it."""
        self._do(self._start_playing(itertools.cycle(schedule) if again else iter(schedule)))

    def close(self) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _shut(self) -> None:
        await self._stop_playing()
        await self._unlisten()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_playing(self, steps: Iterable[tuple[float, Condition]]) -> None:
        await self._stop_playing()
        self._playing = asyncio.create_task(self._follow(steps))

    async def _stop_playing(self) -> None:
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)
            self._playing = None

    async def _follow(self, steps: Iterable[tuple[float, Condition]]) -> None:
        for seconds, condition in steps:
            await self._apply(condition)
            await asyncio.sleep(seconds)

    async def _change(self, condition: Condition) -> None:
        await self._stop_playing()
        await self._apply(condition)

    async def _apply(self, condition: Condition) -> None:
        self._condition = condition
        if condition.fault == "refuse":
            await self._unlisten()
        elif self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in tuple(self._open):
            _cut(writer)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        record = bytearray()
        if self._record:
            self.recorded.append(record)
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            _cut(writer)
            self._open.discard(writer)
            self._tasks.discard(task)
            return
        self._open.add(back)
        ways = (self._pump(reader, back, record), self._pump(there, writer, None))
        pumps = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.gather(*pumps)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, back):
                self._open.discard(end)
                _cut(end)
            self._tasks.discard(task)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray | None
    ) -> None:
        """From client to server where ``record`` is given, else back."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_WAITING)
        sender = asyncio.create_task(self._send(waiting, sink, answers=record is None))
        due = 0.0
        try:
            while chunk := await source.read(_CHUNK_BYTES):
                if record is not None and self._record:
                    record += chunk
                now, how = self._loop.time(), self._condition
                if how.fault == "reset":
                    raise ConnectionResetError
                delay_s = (how.latency_ms + self._random.random() * how.jitter_ms) / 1e3
                due = max(due, now + delay_s)
                if how.bytes_per_s:
                    due += len(chunk) / how.bytes_per_s
                await waiting.put((due, chunk))
            await waiting.put((due, b""))
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(
        self, waiting: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        passed = 0
        while True:
            due, chunk = await waiting.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            while self._condition.fault == "stall":
                await asyncio.sleep(_TICK_S)
            how = self._condition
            if answers and how.fault == "half-close" and passed + len(chunk) >= how.cut_after_bytes:
                sink.write(chunk[: max(0, how.cut_after_bytes - passed)])
                chunk = b""
            if not chunk:
                with contextlib.suppress(OSError):
                    sink.write_eof()
                return
            passed += len(chunk)
            sink.write(chunk)
            await sink.drain()


def _cut(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a reset."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    writer.transport.abort()


@contextlib.contextmanager
def chaos_proxy(target: tuple[str, int], *, record: bool = False, seed: int = 0) -> Iterator[ChaosProxy]:
    """A proxy before ``target`` that ends with the block."""
    proxy = ChaosProxy(target, record=record, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
