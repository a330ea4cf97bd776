"""The report's charts: plain functions from figures to inline SVG. Colours come from the page's style.

Each chart is drawn twice, for a desktop and for a telephone, because a shrunk drawing has unreadable
text; the page shows one of them. Shape says how a figure was obtained, colour says what was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Literal

import numpy as np

from edgekiln.records import How
from edgekiln.report import layout, numbers
from edgekiln.report.layout import Box, Line, Scale, Wanted

Role = Literal["chosen", "front", "beaten"]
WIDE, NARROW = 1040, 356
_TEXT = 12.5


@dataclass(frozen=True)
class Axis:
    """``factor`` turns a value into what its ticks print; ``limit`` is the budget's constraint."""

    title: str
    factor: float = 1.0
    better: int = -1
    limit: float | None = None


@dataclass(frozen=True)
class Point:
    """One candidate of the scatter. ``how`` is the horizontal figure's, and gives the mark its shape."""

    number: int
    name: str
    x: float
    y: float
    how: How
    role: Role
    title: str
    x_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One artifact's timing run in milliseconds; ``percentiles`` are P50, P95 and P99."""

    number: int
    name: str
    samples: tuple[float, ...]
    percentiles: tuple[float, float, float]
    how: str
    role: Role


def mark(how: str | None, x: float, y: float, size: float = 5.0) -> str:
    """The shape of an evidence class: disc, half disc, dashed ring, diamond; a cross where it is unknown."""
    s = size
    if how == "measured":
        body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}" class="fill"/>'
    elif how == "emulated":
        body = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}" class="ring"/>'
            f'<path d="M{x:.1f} {y - s:.1f}a{s:.1f} {s:.1f} 0 0 0 0 {2 * s:.1f}z" class="fill"/>'
        )
    elif how == "predicted":
        body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}" class="ring dash"/>'
    elif how == "published":
        d = s * 1.15
        body = (
            f'<path d="M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}-{d:.1f} {d:.1f}-{d:.1f}-{d:.1f}z" class="ring"/>'
        )
    else:
        d = 2 * s
        path = f"M{x - s:.1f} {y - s:.1f}l{d:.1f} {d:.1f}m0-{d:.1f}l-{d:.1f} {d:.1f}"
        body = f'<path d="{path}" class="ring"/>'
    return f'<g class="mark">{body}</g>'


def word_mark(how: str | None) -> str:
    """The same shape at the size of a word."""
    return f'<svg class="how-mark" viewBox="0 0 14 14" aria-hidden="true">{mark(how, 7, 7, 4.6)}</svg>'


def pareto(points: Sequence[Point]) -> tuple[int, ...]:
    """Indexes, from left to right, of the points that no other beats on both axes (less is better)."""
    front = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i].x, points[i].y)):
        if points[index].y < best:
            best = points[index].y
            front.append(index)
    return tuple(front)


def scatter(
    points: Sequence[Point], x_axis: Axis, y_axis: Axis, width: int, key: str, description: str
) -> str:
    """Candidates by cost (right is worse) and quality, with the front, the limits and a label each.

    ``key`` makes the SVG's ids unique on the page. Raises ValueError without points.
    """
    narrow = width < 600
    height = 330 if narrow else 430 if len(points) > 3 else 330
    area = Box(46 if narrow else 58, 14, width - (60 if narrow else 78), height - 66)
    ends = [b for p in points if p.x_interval for b in p.x_interval if b > 0]
    x = layout.scale([p.x for p in points] + ends, area.x, area.x + area.width)
    y = _quality_scale(points, y_axis, area)
    limits, broken = _limits(x, x_axis, y, y_axis, area)
    front, whiskers = _front(points, x, y, y_axis), _whiskers(points, x, y)
    body = (
        _grid(x, x_axis, y, y_axis, area, narrow),
        "".join(_shade(box) for box in broken),
        lines(limits, "limit"),
        lines(front, "frontline"),
        lines(whiskers, "whisker"),
        _labels(points, x, y, area, narrow, [*front, *whiskers, *limits]),
        _points(points, x, y),
    )
    return svg(width, height, "".join(body), key, "Candidates by cost and quality", description)


def _quality_scale(points: Sequence[Point], axis: Axis, area: Box) -> Scale:
    """The limit is drawn too where it does not squeeze the points into a corner."""
    values = [p.y for p in points]
    span = max(values) - min(values)
    if axis.limit is not None and (
        span == 0 or min(values) - 2 * span <= axis.limit <= max(values) + 2 * span
    ):
        values.append(axis.limit)
    return layout.scale(values, area.y + area.height, area.y, log=False)


def _grid(x: Scale, x_axis: Axis, y: Scale, y_axis: Axis, area: Box, narrow: bool) -> str:
    bottom, right = area.y + area.height, area.x + area.width
    x_ticks, y_ticks = x.ticks(4 if narrow else 9), y.ticks(5)
    parts = [lines([(x(tick), area.y, x(tick), bottom) for tick in x_ticks], "grid")]
    parts.append(lines([(area.x, y(tick), right, y(tick)) for tick in y_ticks], "grid"))
    for tick, shown in zip(x_ticks, tick_texts(x_ticks, x_axis.factor), strict=True):
        parts.append(text(x(tick), bottom + 18, shown, "tick", "middle"))
    for tick, shown in zip(y_ticks, tick_texts(y_ticks, y_axis.factor), strict=True):
        parts.append(text(area.x - 8, y(tick) + 4, shown, "tick", "end"))
    parts.append(text(area.x + area.width / 2, bottom + 42, escape(x_axis.title), "axis", "middle"))
    parts.append(
        f'<text class="axis" transform="translate(12 {area.y + area.height / 2:.0f}) rotate(-90)"'
        f' text-anchor="middle">{escape(y_axis.title)}</text>'
    )
    return "".join(parts)


def text(x: float, y: float, body: str, css: str, anchor: str = "start") -> str:
    """One text at a point; ``body`` is markup: strangers' strings are escaped before."""
    """``body`` is SVG already: what comes from a stranger has been escaped."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{body}</text>'


def lines(lines: Sequence[Line], css: str) -> str:
    """Straight lines of one style."""
    return "".join(
        f'<line class="{css}" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>' for a, b, c, d in lines
    )


def tick_texts(ticks: Sequence[float], factor: float) -> list[str]:
    """As many decimals as the finest of the ticks needs, the same for all."""
    values = [round(t * factor, 9) for t in ticks]
    for decimals in range(7):
        if all(abs(v - round(v, decimals)) <= 1e-6 * max(abs(v), 1e-6) for v in values):
            return [numbers.fixed(v, decimals) for v in values]
    return [numbers.significant(v) for v in values]


def _limits(x: Scale, x_axis: Axis, y: Scale, y_axis: Axis, area: Box) -> tuple[list[Line], list[Box]]:
    """The budget's limits, and the sides of them that break it."""
    bottom, right = area.y + area.height, area.x + area.width
    lines: list[Line] = []
    broken: list[Box] = []
    if y_axis.limit is not None and y.low <= y_axis.limit <= y.high:
        at = y(y_axis.limit)
        top, low = (area.y, at) if y_axis.better < 0 else (at, bottom)
        lines.append((area.x, at, right, at))
        broken.append(Box(area.x, top, area.width, low - top))
    if x_axis.limit is not None and x.low <= x_axis.limit <= x.high:
        at = x(x_axis.limit)
        lines.append((at, area.y, at, bottom))
        broken.append(Box(at, area.y, right - at, area.height))
    return lines, broken


def _shade(box: Box) -> str:
    return (
        f'<rect class="broken" x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.width, 0):.1f}"'
        f' height="{max(box.height, 0):.1f}"/>'
    )


def _front(points: Sequence[Point], x: Scale, y: Scale, y_axis: Axis) -> list[Line]:
    """The front as steps: what lies on their far side is beaten by a corner."""
    turned = [replace(p, y=p.y * -y_axis.better) for p in points]
    corners = [(x(points[i].x), y(points[i].y)) for i in pareto(turned)]
    steps: list[Line] = []
    for (x1, y1), (x2, y2) in pairwise(corners):
        steps += [(x1, y1, x2, y1), (x2, y1, x2, y2)]
    return steps


def _whiskers(points: Sequence[Point], x: Scale, y: Scale) -> list[Line]:
    return [(x(p.x_interval[0]), y(p.y), x(p.x_interval[1]), y(p.y)) for p in points if p.x_interval]


def _labels(
    points: Sequence[Point], x: Scale, y: Scale, area: Box, narrow: bool, drawn: Sequence[Line]
) -> str:
    """Names where there is room, the numbers of the table where there is not."""
    order = sorted(range(len(points)), key=lambda i: ("chosen", "front", "beaten").index(points[i].role))
    wanted = []
    for point in (points[i] for i in order):
        number = str(point.number)
        name = f"{number} {layout.shorten(point.name, 24 if narrow else 44)}"
        texts = (name, number) if point.role == "chosen" or not narrow else (number,)
        wanted.append(Wanted(x(point.x), y(point.y), texts))
    placed = layout.place(wanted, area, _TEXT, 8.5, drawn)
    return lines([label.leader for label in placed if label.leader], "leader") + "".join(
        _label(points[i], label, x(points[i].x)) for i, label in zip(order, placed, strict=True)
    )


def _label(point: Point, label: layout.Label, at: float) -> str:
    number, _, name = label.text.partition(" ")
    rest = f'<tspan class="name"> {escape(name)}</tspan>' if name else ""
    anchor, x = label.anchor(at)
    return (
        f'<text class="label {point.role}" data-c="{point.number}" x="{x:.1f}" text-anchor="{anchor}"'
        f' y="{label.box.y + label.box.height * 0.76:.1f}"><tspan class="no">{number}</tspan>{rest}</text>'
    )


def _points(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """The marks, the first candidate last, so that the chosen one lies on top. The front has a ring."""
    rings = {
        p.number: f'<circle class="halo" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="8.5"/>'
        for p in points
        if p.role == "front"
    }
    return "".join(
        f'<g class="{p.role}" data-c="{p.number}">'
        f"{mark(p.how, x(p.x), y(p.y), 6.5 if p.role == 'chosen' else 5.0)}"
        f"{rings.get(p.number, '')}<title>{escape(p.title)}</title></g>"
        for p in reversed(points)
    )


# ---------------------------------------------------------------- latency distributions


def strips(rows: Sequence[Row], width: int, key: str, description: str) -> str:
    """One histogram per artifact on a common axis, with ticks at P50, P95 and P99.

    The axis ends a little after the largest P99; what lies beyond is counted at the right edge.
    Raises ValueError without samples.
    """
    narrow = width < 600
    line, top = (64, 10) if narrow else (44, 14)
    left, right = (8.0, width - 14.0) if narrow else (272.0, width - 190.0)
    height = top + line * len(rows) + (44 if narrow else 46)
    lows = [min(row.samples) for row in rows]
    x = layout.scale([*lows, *(row.percentiles[2] for row in rows)], left, right)
    bottom = top + line * len(rows)
    ticks = x.ticks(4 if narrow else 7)
    body = [lines([(x(tick), top, x(tick), bottom) for tick in ticks], "grid")]
    for tick, shown in zip(ticks, tick_texts(ticks, 1), strict=True):
        body.append(text(x(tick), bottom + 18, shown, "tick", "middle"))
    title = "Latency, ms (logarithmic)" if x.log else "Latency, ms"
    body.append(text((left + right) / 2, bottom + 38, title, "axis", "middle"))
    for index, row in enumerate(rows):
        body.append(_strip(row, x, top + index * line, line, width, narrow))
    return svg(width, height, "".join(body), key, "Latency of each timing run", description)


def _strip(row: Row, x: Scale, top: float, line: float, width: int, narrow: bool) -> str:
    base = top + line - (10 if narrow else 9)
    p50, p95, p99 = row.percentiles
    beyond = sum(v > x.high for v in row.samples)
    figures = f"{numbers.ms(p50)} / {numbers.ms(p95)} / {numbers.ms(p99)}"
    name = escape(layout.shorten(row.name, 26 if narrow else 36))
    label = f'<tspan class="no">{row.number}</tspan><tspan class="name" dx="6">{name}</tspan>'
    sub = f"{escape(row.how)}, n = {len(row.samples):,}"
    if beyond:
        sub += f", {beyond} off the axis, max {numbers.ms(max(row.samples))}"
    if narrow:
        texts = text(8, top + 15, label, f"label {row.role}")
        texts += text(width - 14, top + 15, figures, "tick strong", "end")
    else:
        texts = text(0, base - 15, label, f"label {row.role}") + text(0, base + 1, sub, "tick")
        texts += text(width, base - 6, figures, "tick strong", "end")
    shape = _histogram(row.samples, x, base, 24 if narrow else 26)
    tall = ((p50, 28, "p50"), (p95, 19, "p95"), (p99, 19, "p99"))
    bars = "".join(lines([(x(v), base - high, x(v), base + 3)], css) for v, high, css in tall)
    tip = f"{row.name}: P50 {numbers.ms(p50)}, P95 {numbers.ms(p95)}, P99 {numbers.ms(p99)} ms, {sub}"
    return (
        f'<g class="strip {row.role}" data-c="{row.number}"><title>{escape(tip)}</title>'
        f'<line class="base" x1="{x.start:.0f}" x2="{x.end:.0f}" y1="{base:.0f}" y2="{base:.0f}"/>'
        f"{shape}{bars}{texts}</g>"
    )


def _histogram(samples: Sequence[float], x: Scale, base: float, tall: float) -> str:
    """Bars of four pixels over the axis, the highest ``tall`` pixels; few samples are drawn as dots."""
    inside = [x(v) for v in samples if v <= x.high]
    if len(samples) < 12:
        return "".join(f'<circle class="dot" cx="{at:.1f}" cy="{base - 6:.1f}" r="3"/>' for at in inside)
    bins = max(int((x.end - x.start) / 4), 1)
    counts, edges = np.histogram(inside, bins=bins, range=(x.start, x.end))
    most = max(int(counts.max()), 1)
    step = float(edges[1] - edges[0]) - 0.6
    bars = "".join(
        f"M{edges[i]:.1f} {base:.1f}v{-max(tall * counts[i] / most, 1.5):.1f}h{step:.1f}V{base:.1f}z"
        for i in np.flatnonzero(counts)
    )
    return f'<path class="bars" d="{bars}"/>'


# ---------------------------------------------------------------- small ones


def nodes_bar(before: int, after: int, most: int) -> str:
    """Two thin bars, nodes before and after a pass, on the scale of the largest graph in the table."""
    wide = 120.0
    a, b = (wide * n / max(most, 1) for n in (before, after))
    return (
        f'<svg class="nodes" viewBox="0 0 {wide:.0f} 14" width="{wide:.0f}" height="14" role="img"'
        f' aria-label="{before} nodes before, {after} after">'
        f'<rect class="before" y="1" width="{a:.1f}" height="5" rx="1"/>'
        f'<rect class="after" y="8" width="{b:.1f}" height="5" rx="1"/></svg>'
    )


def svg(width: int, height: float, body: str, key: str, title: str, description: str) -> str:
    """A drawing as inline SVG with its title and description; ``key`` makes their ids unique on the page."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height:.0f}" role="img"'
        f' aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )
