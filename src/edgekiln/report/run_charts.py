"""A session over time: latency, rung, frames lost, temperature and power, one above the other on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from edgekiln.report import layout
from edgekiln.report.charts import lines, svg, text, tick_texts
from edgekiln.report.layout import Box, Scale
from edgekiln.report.numbers import plain, significant
from edgekiln.report.run_words import GOOD_EVENTS
from edgekiln.report.soak_charts import path, time_unit
from edgekiln.runtime.summary import Played, Row

PANEL, LOW, GAP, HEAD = 132.0, 84.0, 46.0, 52.0
STEP, MOST_STEPS = 30.0, 12
"""Height of a rung in the step plot; of more rungs only those that were used are drawn."""
MOST_MARKS, APART = 200, 17.0


@dataclass(frozen=True)
class _Frame:
    """Where a panel lies, and the axis of time that all share."""

    area: Box
    x: Scale
    factor: float
    narrow: bool

    def at(self, seconds: float) -> float:
        return self.x(seconds / self.factor)

    @property
    def bottom(self) -> float:
        return self.area.y + self.area.height

    @property
    def right(self) -> float:
        return self.area.x + self.area.width


@dataclass(frozen=True)
class _Panel:
    title: str
    height: float
    draw: Callable[[_Frame], str]
    limit: str = ""


def timeline(found: Played, width: int, key: str, description: str) -> str:
    """The stack of what is known about ``found``, as SVG; "" where it has no rows."""
    panels = _panels(found)
    if not found.rows or not panels:
        return ""
    end_s = found.rows[-1].end_s
    narrow = width < 600
    left, right = (48.0, width - 12.0) if narrow else (62.0, width - 74.0)
    unit, factor = time_unit(end_s)
    x = Scale(0.0, end_s / factor, left, right)
    marked = _marks(found)
    top = HEAD + 16 if marked else HEAD - 14
    body, bottom = [], top
    for panel in panels:
        frame = _Frame(Box(left, top, right - left, panel.height), x, factor, narrow)
        limit = f'<tspan class="tick" dx="10">{escape(panel.limit)}</tspan>' if panel.limit else ""
        body.append(text(left, top - 10, escape(panel.title) + limit, "panel"))
        body.append(panel.draw(frame))
        bottom = frame.bottom
        top = bottom + GAP
    body.insert(0, _mark_lines(found, marked, x, factor, bottom))
    ticks = x.ticks(5 if narrow else 10)
    for tick, shown in zip(ticks, tick_texts(ticks, 1), strict=True):
        body.append(text(x(tick), bottom + 18, shown, "tick", "middle"))
    body.append(text((left + right) / 2, bottom + 40, f"Time since the start, {unit}", "axis", "middle"))
    return svg(width, bottom + 50, "".join(body), key, "The session over time", description)


def _panels(found: Played) -> list[_Panel]:
    rows, goal = found.rows, found.goal
    made = []
    if any(r.p50_ms is not None for r in rows):
        told = f"dotted: deadline {significant(goal.deadline_ms)} ms"
        made.append(_Panel("Latency, ms", PANEL, lambda f: _latency(f, rows, goal.deadline_ms), told))
    names = _steps(found)
    if names:
        made.append(_Panel("Rung", max(44.0, STEP * len(names)), lambda f: _rungs(f, rows, names)))
    if any(r.late or r.dropped or r.failed for r in rows):
        made.append(_Panel("Frames late or lost, per second", LOW, lambda f: _lost(f, rows)))
    heat, watts = [r.temperature_c for r in rows], [r.power_watts for r in rows]
    if any(v is not None for v in heat):
        trips = [r.trip_c for r in rows if r.trip_c is not None]
        limit = goal.ceiling_c if goal.ceiling_c is not None else trips[-1] if trips else None
        told = _told(heat, limit, "ceiling" if goal.ceiling_c is not None else "trip point", "°C")
        made.append(_Panel("Temperature, °C", LOW, lambda f: _course(f, rows, heat, "heat", limit), told))
    if any(v is not None for v in watts):
        told = _told(watts, goal.power_watts, "budget", "W")
        made.append(
            _Panel("Power, W", LOW, lambda f: _course(f, rows, watts, "power", goal.power_watts), told)
        )
    return made


def _near(values: Sequence[float | None], limit: float | None) -> bool:
    """Whether ``limit`` can be drawn without pressing the values flat."""
    return limit is not None and max(v for v in values if v is not None) >= limit - 0.5 * abs(limit)


def _told(values: Sequence[float | None], limit: float | None, word: str, unit: str) -> str:
    if limit is None:
        return ""
    figure = f"{word} {significant(limit)} {unit}"
    return f"dotted: {figure}" if _near(values, limit) else f"far below the {figure}"


# ---------------------------------------------------------------- panels


def _axes(frame: _Frame, y: Scale, about: int = 5) -> str:
    """Grid and ticks of a panel whose values are figures."""
    area = frame.area
    ticks = y.ticks(about) if len(y.ticks(about)) > 2 else y.ticks(8)
    parts = [lines([(area.x, y(t), frame.right, y(t)) for t in ticks], "grid"), _time_ticks(frame)]
    for tick, shown in zip(ticks, tick_texts(ticks, 1), strict=True):
        parts.append(text(area.x - 8, y(tick) + 4, shown, "tick", "end"))
    return "".join(parts)


def _time_ticks(frame: _Frame) -> str:
    ticks = frame.x.ticks(5 if frame.narrow else 10)
    return lines([(frame.x(t), frame.bottom, frame.x(t), frame.bottom + 4) for t in ticks], "grid")


def _limit(frame: _Frame, y: Scale, limit: float | None) -> str:
    """A dotted line across; its words stand in the panel's title, where no curve can run through them."""
    if limit is None or not y.low <= limit <= y.high:
        return ""
    return lines([(frame.area.x, y(limit), frame.right, y(limit))], "trip")


def _latency(frame: _Frame, rows: Sequence[Row], deadline_ms: float) -> str:
    """The median as a line, P50 to P99 as a band, the slowest answer of a row with late ones as a dot."""
    known = [r for r in rows if r.p50_ms is not None]
    values = [v for r in known for v in (r.p50_ms, r.p99_ms) if v is not None]
    values += [r.highest_ms for r in known if r.late and r.highest_ms is not None] + [deadline_ms]
    y = layout.scale([max(v, 1e-3) for v in values], frame.bottom, frame.area.y)
    if not y.log:  # from zero, so that the distance to the deadline can be seen
        y = Scale(0.0, y.high, frame.bottom, frame.area.y)
    parts = [_axes(frame, y)]
    for run in _runs(rows):
        upper = [(frame.at((r.start_s + r.end_s) / 2), y(r.p99_ms or 0.0)) for r in run]
        lower = [(frame.at((r.start_s + r.end_s) / 2), y(r.p50_ms or 0.0)) for r in reversed(run)]
        if len(run) == 1:  # one row alone: a bar of its own length
            (a, top), (_, low) = upper[0], lower[0]
            wide = max(3.0, frame.at(run[0].end_s) - frame.at(run[0].start_s)) / 2
            upper, lower = [(a - wide, top), (a + wide, top)], [(a + wide, low), (a - wide, low)]
        corners = "L".join(f"{a:.1f} {b:.1f}" for a, b in [*upper, *lower])
        parts.append(f'<path class="spread" d="M{corners}z"/>')
    middle = [None if r.p50_ms is None else (frame.at((r.start_s + r.end_s) / 2), y(r.p50_ms)) for r in rows]
    parts.append(path(middle, "p50"))
    for r in known:
        if r.late and r.highest_ms is not None:
            at = frame.at((r.start_s + r.end_s) / 2)
            parts.append(f'<circle class="late" cx="{at:.1f}" cy="{y(r.highest_ms):.1f}" r="2.2"/>')
    parts.append(_limit(frame, y, deadline_ms))
    if not frame.narrow:
        parts.append(_ends(frame, y, known[-1]))
    return "".join(parts)


def _ends(frame: _Frame, y: Scale, last: Row) -> str:
    """Names at the right end, apart by a line's height."""
    at50, at99 = y(last.p50_ms or 0.0) + 4, y(last.p99_ms or 0.0) + 4
    at99 = min(at99, at50 - 14)
    return text(frame.right + 8, at50, "median", "end p50") + text(frame.right + 8, at99, "P99", "end p95")


def _runs(rows: Sequence[Row]) -> list[list[Row]]:
    """Stretches of rows in which frames were answered."""
    made: list[list[Row]] = [[]]
    for row in rows:
        if row.p50_ms is None:
            made.append([])
        else:
            made[-1].append(row)
    return [run for run in made if run]


def _steps(found: Played) -> tuple[str, ...]:
    """Rungs of the step plot, the best first: the ladder and what else was used, or only what was used."""
    used = {name for r in found.rows for name in r.shares}
    ladder = [r.id for r in found.ladder]
    names = [*ladder, *sorted(used - set(ladder))]
    return (
        tuple(names) if len(names) <= MOST_STEPS else tuple(n for n in names if n in used)[: 2 * MOST_STEPS]
    )


def _rungs(frame: _Frame, rows: Sequence[Row], names: Sequence[str]) -> str:
    """Which rung held, as steps; where several shared a row, each has a bar as strong as its share."""
    step = frame.area.height / len(names)
    level = {name: frame.area.y + step * (i + 0.5) for i, name in enumerate(names)}
    parts = [lines([(frame.area.x, y, frame.right, y) for y in level.values()], "grid"), _time_ticks(frame)]
    for name, start_s, end_s, share in _held(rows):
        if name in level:
            start, end = frame.at(start_s), frame.at(end_s)
            strength = "" if share > 0.995 else f' opacity="{0.25 + 0.75 * share:.2f}"'
            parts.append(
                f'<rect class="rung" x="{start:.1f}" y="{level[name] - 4:.1f}"'
                f' width="{max(end - start, 0.8):.1f}" height="8"{strength}/>'
            )
    limit = 24 if frame.narrow else 44
    for name, y in level.items():
        shown = escape(layout.shorten(plain(name), limit))
        parts.append(text(frame.area.x + 6, y - 8, shown, "label tick"))
    return "".join(parts)


def _held(rows: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """Rung, start, end and share of each stretch; rows that one rung held alone are joined."""
    made: list[tuple[str, float, float, float]] = []
    for row in rows:
        for name, share in row.shares.items():
            alone = share > 0.995
            if alone and made and made[-1][0] == name and made[-1][2:] == (row.start_s, 1.0):
                made[-1] = (name, made[-1][1], row.end_s, 1.0)
            elif share > 0.005:
                made.append((name, row.start_s, row.end_s, 1.0 if alone else share))
    return made


def _lost(frame: _Frame, rows: Sequence[Row]) -> str:
    """Frames a second that were late, dropped or failed, stacked."""
    seconds = [max(r.end_s - r.start_s, 1e-9) for r in rows]
    most = max((r.late + r.dropped + r.failed) / s for r, s in zip(rows, seconds, strict=True))
    y = Scale(0.0, most * 1.1 or 1.0, frame.bottom, frame.area.y)
    parts = [_axes(frame, y, 3)]
    for row, span in zip(rows, seconds, strict=True):
        start, end, base = frame.at(row.start_s), frame.at(row.end_s), 0.0
        for css, n in (("late", row.late), ("dropped", row.dropped), ("failed", row.failed)):
            if n:
                top = base + n / span
                parts.append(
                    f'<rect class="lost {css}" x="{start:.1f}" y="{y(top):.1f}"'
                    f' width="{max(end - start - 0.4, 0.8):.1f}" height="{max(y(base) - y(top), 0.8):.1f}"/>'
                )
                base = top
    return "".join(parts)


def _course(
    frame: _Frame,
    rows: Sequence[Row],
    values: Sequence[float | None],
    css: str,
    limit: float | None,
) -> str:
    """One figure of a sensor with the limit that it must not pass."""
    known = [v for v in values if v is not None]
    level = sorted(known)[len(known) // 2]
    held = [*known, level * 0.92, level * 1.08]
    if limit is not None and _near(values, limit):
        held.append(limit)
    y = layout.scale(held, frame.bottom, frame.area.y, log=False)
    points = [
        None if v is None else (frame.at((r.start_s + r.end_s) / 2), y(v))
        for r, v in zip(rows, values, strict=True)
    ]
    return _axes(frame, y, 4) + _limit(frame, y, limit) + path(points, css)


# ---------------------------------------------------------------- events


def _marks(found: Played) -> list[tuple[int, float, bool]]:
    """Number in the table, time and whether it is a fault, of the events that are drawn; faults first."""
    started, end_s = found.snapshot.started_s, found.rows[-1].end_s if found.rows else 0.0
    made = [
        (number, e.at_s - started, e.kind not in GOOD_EVENTS)
        for number, e in enumerate(found.events, 1)
        if 0 <= e.at_s - started <= end_s
    ]
    faults = [m for m in made if m[2]]
    return sorted([*faults, *(m for m in made if not m[2])][:MOST_MARKS], key=lambda m: m[1])


def _mark_lines(
    found: Played, marked: Sequence[tuple[int, float, bool]], x: Scale, factor: float, bottom: float
) -> str:
    """A line through all panels for each event, faults stronger, with its number where there is room."""
    parts, free = [], -1e9
    for number, at_s, fault in marked:
        at = x(at_s / factor)
        css = "fault" if fault else "event"
        title = escape(plain(f"{number} {found.events[number - 1].kind}: {found.events[number - 1].what}"))
        parts.append(f"<g><title>{title}</title>{lines([(at, HEAD - 20, at, bottom)], css)}</g>")
        if at >= free:
            parts.append(text(at, HEAD - 26, str(number), f"number {css}", "middle"))
            free = at + APART + 7 * (len(str(number)) - 1)
    return "".join(parts)
