"""A soak over time: latency, clock, temperature and power, one above the other on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekiln.report import layout
from edgekiln.report.charts import lines, svg, text, tick_texts
from edgekiln.report.layout import Box, Scale
from edgekiln.report.numbers import plain

PANEL, GAP, HEAD, BAND_LABEL = 132.0, 46.0, 52.0, 14.0
LEAST_SPAN = 0.15
"""A panel shows at least 15 % of its level to either side: noise must not look like a change."""


@dataclass(frozen=True)
class Curve:
    """Values over the bins, None where nothing is known; ``css`` is its style, ``label`` is at its end."""

    values: Sequence[float | None]
    css: str
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart of the stack. ``limit`` is drawn across, with its label, where the curves come near it.
    ``shown`` are values that the scale holds in any case."""

    title: str
    curves: Sequence[Curve]
    limit: float | None = None
    limit_label: str = ""
    span: float = LEAST_SPAN
    shown: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A moment that all panels show: a confirmed slow-down."""

    at_s: float
    label: str


@dataclass(frozen=True)
class Band:
    """A stretch that is shaded in the first panel and named above it: the burst and the sustained rate."""

    start_s: float
    end_s: float
    label: str


def timeline(
    middles_s: Sequence[float],
    panels: Sequence[Panel],
    marks: Sequence[Mark],
    bands: Sequence[Band],
    end_s: float,
    width: int,
    key: str,
    description: str,
) -> str:
    """The stack of ``panels`` from 0 to ``end_s``. Raises ValueError where a panel has no value at all."""
    narrow = width < 600
    left, right = (48.0, width - 12.0) if narrow else (62.0, width - 74.0)
    unit, factor = time_unit(end_s)
    x = Scale(0.0, end_s / factor, left, right)
    head = HEAD if marks else HEAD - BAND_LABEL
    body, top, bottom = [], head, head
    for number, panel in enumerate(panels):
        area = Box(left, top, right - left, PANEL)
        shaded = [b for b in bands if number == 0]
        body.append(_panel(panel, middles_s, area, x, factor, shaded, narrow))
        bottom = top + PANEL
        top = bottom + GAP + (BAND_LABEL if shaded else 0.0)
    body.append(_marks(marks, x, factor, bottom, width, narrow))
    ticks = x.ticks(5 if narrow else 10)
    below = 18 + (BAND_LABEL if bands and len(panels) == 1 else 0.0)
    for tick, shown in zip(ticks, tick_texts(ticks, 1), strict=True):
        body.append(text(x(tick), bottom + below, shown, "tick", "middle"))
    body.append(
        text((left + right) / 2, bottom + below + 22, f"Time since the first call, {unit}", "axis", "middle")
    )
    return svg(width, bottom + below + 32, "".join(body), key, "The soak over time", description)


def time_unit(end_s: float) -> tuple[str, float]:
    """The unit in which ``end_s`` reads well, and its seconds."""
    if end_s < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if end_s < 3 * 3600 else ("hours", 3600.0)


def _panel(
    panel: Panel,
    middles_s: Sequence[float],
    area: Box,
    x: Scale,
    factor: float,
    bands: Sequence[Band],
    narrow: bool,
) -> str:
    y = _scale(panel, area)
    bottom, right = area.y + area.height, area.x + area.width
    y_ticks, x_ticks = y.ticks(5), x.ticks(5 if narrow else 10)
    if len(y_ticks) < 3:
        y_ticks = y.ticks(8)
    parts = [_band(b, area, x, factor) for b in bands]
    parts.append(lines([(area.x, y(t), right, y(t)) for t in y_ticks], "grid"))
    parts.append(lines([(x(t), bottom, x(t), bottom + 4) for t in x_ticks], "grid"))
    for tick, shown in zip(y_ticks, tick_texts(y_ticks, 1), strict=True):
        parts.append(text(area.x - 8, y(tick) + 4, shown, "tick", "end"))
    parts.append(text(area.x, area.y - 10, escape(panel.title), "panel"))
    if panel.limit is not None and y.low <= panel.limit <= y.high:
        parts.append(lines([(area.x, y(panel.limit), right, y(panel.limit))], "trip"))
        parts.append(_limit_label(panel, y, area))
    ends = []
    for curve in panel.curves:
        points = [
            (x(t / factor), y(v)) if v is not None else None
            for t, v in zip(middles_s, curve.values, strict=True)
        ]
        parts.append(path(points, curve.css))
        last = next((p for p in reversed(points) if p is not None), None)
        if curve.label and last is not None and not narrow:
            ends.append((last[1], curve))
    parts += _end_labels(ends, right)
    return "".join(parts)


def _limit_label(panel: Panel, y: Scale, area: Box) -> str:
    """At the end where the first curve is farther from the limit."""
    assert panel.limit is not None
    known = [v for v in panel.curves[0].values if v is not None]
    at_start = abs(known[0] - panel.limit) > abs(known[-1] - panel.limit)
    place, anchor = (area.x + 6, "start") if at_start else (area.x + area.width - 6, "end")
    return text(place, y(panel.limit) - 5, escape(plain(panel.limit_label)), "tick", anchor)


def _scale(panel: Panel, area: Box) -> Scale:
    values = [v for c in panel.curves for v in c.values if v is not None]
    middle = sorted(values)[len(values) // 2]
    values += [middle * (1 - panel.span), middle * (1 + panel.span), *panel.shown]
    near = panel.limit is not None and max(values) >= panel.limit - 0.3 * abs(panel.limit)
    if near and panel.limit is not None:
        values.append(panel.limit)
    return layout.scale(values, area.y + area.height, area.y)


def _band(band: Band, area: Box, x: Scale, factor: float) -> str:
    start, end = x(band.start_s / factor), x(band.end_s / factor)
    wide, bottom = max(end - start, 1.5), area.y + area.height
    shade = (
        f'<rect class="band" x="{start:.1f}" y="{area.y:.1f}" width="{wide:.1f}" height="{area.height:.1f}"/>'
        f'<rect class="bar" x="{start:.1f}" y="{bottom + 4:.1f}" width="{wide:.1f}" height="3"/>'
    )
    return shade + text(
        max((start + end) / 2, area.x + 14), bottom + 20, escape(band.label), "tick", "middle"
    )


def path(points: Sequence[tuple[float, float] | None], css: str) -> str:
    """A line through the points, broken where nothing is known; a point between two gaps is a dot."""
    steps = [
        "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in run) + ("h0.1" if len(run) == 1 else "")
        for run in _runs(points)
    ]
    return f'<path class="course {css}" d="{"".join(steps)}"/>'


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _end_labels(ends: Sequence[tuple[float, Curve]], right: float) -> list[str]:
    """Names at the right ends of the curves, apart by a line's height. A narrow drawing names them below."""
    made, below = [], -1e9
    for at, curve in sorted(ends, key=lambda pair: pair[0]):
        below = max(at + 4, below + 14)
        made.append(text(right + 8, below, escape(curve.label), f"end {curve.css}"))
    return made


def _marks(marks: Sequence[Mark], x: Scale, factor: float, bottom: float, width: int, narrow: bool) -> str:
    """A dashed line through all panels, the first with its words; the others are in the text below."""
    drawn = lines([(x(m.at_s / factor), HEAD - 26, x(m.at_s / factor), bottom) for m in marks], "throttle")
    if marks:
        at = x(marks[0].at_s / factor)
        wide = layout.text_width(marks[0].label, 12.5)
        anchor = "start" if at + wide < width - 4 else "end"
        anchor = "middle" if narrow and wide / 2 < at < width - wide / 2 else anchor
        drawn += text(at, HEAD - 32, escape(marks[0].label), "throttle-label", anchor)
    return drawn
