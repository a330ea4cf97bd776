"""Where things go in a chart: scales with round ticks, and labels that do not cover one another."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_LOG_FROM = 12.0

Line: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, ``x`` and ``y`` its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def holds(self, other: Box) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


@dataclass(frozen=True)
class Scale:
    """A value's place between the pixels ``start`` and ``end``; logarithmic where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int) -> tuple[float, ...]:
        """Round values inside the scale, roughly ``about`` of them."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def scale(values: Sequence[float], start: float, end: float, log: bool | None = None) -> Scale:
    """A scale around ``values`` with a margin; equal values get a range of their own size around them.

    It is logarithmic where all values are positive and the largest is 12 times the least, unless
    ``log`` says otherwise. Raises ValueError without a finite value.
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        raise ValueError("a scale needs at least one finite value")
    low, high = min(finite), max(finite)
    positive = low > sys.float_info.min  # below it, there is no normal number to end a logarithmic scale at
    if log is None:
        log = positive and high / low >= _LOG_FROM
    if log and positive:
        margin = max((high / low) ** 0.08, 1.1)
        least, most = max(low / margin, sys.float_info.min), min(high * margin, sys.float_info.max)
        return Scale(least, most, start, end, True)
    # Values that a margin could not tell apart count as equal, and a tenth of the least numbers is nothing.
    size = max(abs(low), abs(high))
    span = high - low
    if span < max(1e-9 * size, 1e-300):
        span = 0.5 * size if size >= 1e-300 else 1.0
    return Scale(low - 0.1 * span, high + 0.1 * span, start, end)


def _ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = tuple(m * 10.0**p for p in powers for m in marks if low <= m * 10.0**p <= high)
        if len(ticks) <= about + 2:
            break
    every = math.ceil(len(ticks) / (about + 2)) or 1
    return ticks[::every] if len(ticks) >= 2 else _ticks(low, high, about)


def text_width(text: str, size: float) -> float:
    """A careful guess in pixels for a sans-serif face: wide characters count a whole em."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (wide + 0.62 * (len(text) - wide))


def shorten(text: str, limit: int) -> str:
    """The middle is left out, because both ends of a recipe's name carry its meaning."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


@dataclass(frozen=True)
class Label:
    """A placed label: ``text`` in ``box``; ``leader`` where it lies too far from its point."""

    text: str
    box: Box
    leader: Line | None

    def anchor(self, x: float) -> tuple[str, float]:
        """SVG's text-anchor and the place to write at, so that the text is flush with its point at ``x``."""
        if self.box.x >= x:
            return "start", self.box.x + 2
        if self.box.x + self.box.width <= x:
            return "end", self.box.x + self.box.width - 2
        return "middle", self.box.x + self.box.width / 2


@dataclass(frozen=True)
class Wanted:
    """A point that needs a label: ``texts`` from the fullest to the shortest that still names it."""

    x: float
    y: float
    texts: tuple[str, ...]


def place(
    wanted: Sequence[Wanted], area: Box, size: float, mark: float, drawn: Sequence[Line] = ()
) -> tuple[Label, ...]:
    """A label for each point, none over another label, over a point's mark or over a line already ``drawn``.

    The spots beside the point are tried first, then rings around it with a leader line, then the whole
    ``area`` on a grid. Earlier points choose first. Where the area is full the last text lies on its
    point, which only some hundreds of points can bring about.
    """
    marks = [Box(w.x - mark, w.y - mark, 2 * mark, 2 * mark) for w in wanted]
    taken: list[Box] = list(marks)
    lines: list[Line] = list(drawn)
    labels: list[Label] = []
    for point in wanted:
        label = _place_one(point, area, size, mark, taken, lines)
        labels.append(label)
        taken.append(label.box)
        if label.leader:
            lines.append(label.leader)
    return tuple(labels)


def _place_one(
    point: Wanted,
    area: Box,
    size: float,
    mark: float,
    taken: Sequence[Box],
    lines: Sequence[Line],
) -> Label:
    height = size * 1.3
    for at, text in enumerate(point.texts):
        width = text_width(text, size) + 4
        last = at == len(point.texts) - 1
        for box, near in _spots(point, width, height, mark, area, last):
            if not area.holds(box) or any(box.meets(t) for t in taken):
                continue
            roomy = Box(box.x - 1, box.y - 1, width + 2, height + 2)
            if any(_crosses(line, roomy) for line in lines):
                continue
            leader = None if near else _leader(point, box)
            own = Box(point.x - mark, point.y - mark, 2 * mark, 2 * mark)
            others = (t for t in taken if not t.meets(own))
            if leader and any(_crosses(leader, t) for t in others):
                continue
            return Label(text, box, leader)
    # Crowded: a leader may now cross something, and at the very last the label a line.
    for avoided in (lines, ()):
        for box, _near in _spots(point, width, height, mark, area, True):
            free = not any(box.meets(t) for t in taken) and not any(_crosses(line, box) for line in avoided)
            if free and area.holds(box):
                return Label(text, box, _leader(point, box))
    return Label(text, Box(point.x - width / 2, point.y - height / 2, width, height), None)


def _spots(
    point: Wanted, width: float, height: float, mark: float, area: Box, everywhere: bool
) -> Iterator[tuple[Box, bool]]:
    """Boxes to try, the best first, and whether each is so near that it needs no leader."""
    gap = mark + 3
    x, y = point.x, point.y
    for dx, dy in (
        (gap, -height / 2),
        (-width / 2, -gap - height),
        (-gap - width, -height / 2),
        (-width / 2, gap),
        (gap * 0.6, -gap - height * 0.7),
        (gap * 0.6, gap - height * 0.3),
        (-gap * 0.6 - width, -gap - height * 0.7),
        (-gap * 0.6 - width, gap - height * 0.3),
    ):
        yield Box(x + dx, y + dy, width, height), True
    for radius in (26, 40, 58, 80):
        for step in range(16):
            angle = 2 * math.pi * (step + 0.5) / 16
            at_x, at_y = x + radius * math.cos(angle), y - radius * math.sin(angle)
            left = at_x if math.cos(angle) > 0 else at_x - width
            yield Box(left, at_y - height / 2, width, height), False
    if everywhere:
        yield from ((box, False) for box in _grid(point, width, height, area))


def _grid(point: Wanted, width: float, height: float, area: Box) -> Iterable[Box]:
    columns, rows = int(area.width // (width + 2)), int(area.height // (height + 2))
    boxes = [
        Box(area.x + i * (width + 2), area.y + j * (height + 2), width, height)
        for i in range(columns)
        for j in range(rows)
    ]
    return sorted(boxes, key=lambda b: (b.x + width / 2 - point.x) ** 2 + (b.y + height / 2 - point.y) ** 2)


def _leader(point: Wanted, box: Box) -> Line:
    """From the point to the nearest place on the label's edge."""
    to_x = min(max(point.x, box.x), box.x + box.width)
    to_y = min(max(point.y, box.y + 2), box.y + box.height - 2)
    return (point.x, point.y, to_x, to_y)


def _crosses(line: Line, box: Box) -> bool:
    """Whether a line passes through the inside of a box (Liang and Barsky's clipping)."""
    x1, y1, x2, y2 = line
    enter, leave = 0.0, 1.0
    for delta, lower, upper in (
        (x2 - x1, box.x + 0.5 - x1, box.x + box.width - 0.5 - x1),
        (y2 - y1, box.y + 0.5 - y1, box.y + box.height - 0.5 - y1),
    ):
        if delta == 0:
            if lower > 0 or upper < 0:
                return False
            continue
        first, second = sorted((lower / delta, upper / delta))
        enter, leave = max(enter, first), min(leave, second)
    return enter < leave
