"""What the runner on a device wrote down, line by line: strict, and nothing lost that no rule knows."""

from __future__ import annotations

import math
from typing import TypeAlias

import msgspec

from edgekiln.records import Record

LONGEST_UNREAD = 2000
MOST_UNREAD = 64


class Line(Record, frozen=True, kw_only=True, tag_field="kind"):
    """``t`` is when it was written, in seconds of the device's monotonic clock."""

    t: float


class Begun(Line, frozen=True, kw_only=True, tag="begun"):
    python: str
    machine: str


class Phase(Line, frozen=True, kw_only=True, tag="phase"):
    """``idle``, ``load``, ``warm-up``, ``timing`` or ``after`` begins."""

    name: str


class Sensors(Line, frozen=True, kw_only=True, tag="sensors"):
    """Files by path below the root as they were at ``t - took_seconds``; None could not be read."""

    texts: dict[str, str | None]
    took_seconds: float


class Tegrastats(Line, frozen=True, kw_only=True, tag="tegrastats"):
    text: str


class Opened(Line, frozen=True, kw_only=True, tag="opened"):
    """``notes`` is what the engine has to tell of itself, such as a cache that was used."""

    engine_version: str
    import_ms: float
    load_ms: float
    first_ms: float | None
    baseline_bytes: int | None
    notes: dict[str, str | int | float | bool]


class Warmed(Line, frozen=True, kw_only=True, tag="warmed"):
    calls: int
    stable: bool
    median_ms: float


class Block(Line, frozen=True, kw_only=True, tag="block"):
    """Calls in a row, between two moments of the device's clock."""

    begun: float
    ended: float
    ms: tuple[float, ...]


class Finished(Line, frozen=True, kw_only=True, tag="finished"):
    peak_bytes: int | None


class Failed(Line, frozen=True, kw_only=True, tag="failed"):
    """``how``: refused, crashed, hung or memory."""

    how: str
    why: str
    cure: str


class End(Line, frozen=True, kw_only=True, tag="end"):
    said: str


Known: TypeAlias = Begun | Phase | Sensors | Tegrastats | Opened | Warmed | Block | Finished | Failed | End
_DECODER: msgspec.json.Decoder[Known] = msgspec.json.Decoder(Known)


class Log:
    """The lines so far, fed in pieces as they come over the link. ``unread`` is what no rule knows."""

    def __init__(self) -> None:
        self.lines: list[Known] = []
        self.unread: list[str] = []
        self.offset = 0
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """The next bytes of the file, from ``offset`` on."""
        self.offset += len(piece)
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for raw in whole:
            try:
                line = _DECODER.decode(raw)
                _check(line)
                self.lines.append(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
                if len(self.unread) < MOST_UNREAD:
                    self.unread.append(raw[:LONGEST_UNREAD].decode(errors="replace"))

    @property
    def ended(self) -> bool:
        return any(isinstance(line, End) for line in self.lines[-3:])

    @property
    def samples(self) -> int:
        return sum(len(line.ms) for line in self.lines if isinstance(line, Block))


def _check(line: Known) -> None:
    """Raises ValueError for a block whose figures are no durations."""
    if not isinstance(line, Block):
        return
    sound = all(math.isfinite(ms) and ms > 0 for ms in line.ms) and line.ms
    if not sound or not line.ended >= line.begun:
        raise ValueError("no durations")
