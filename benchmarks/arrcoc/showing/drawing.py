"""Accuracy against tokens and against latency as one SVG that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from arrcoc.showing.accuracies import ATTENTION, CONTENDERS, ORACLE, OURS, SIMILARITY, UNIFORM, Row, by_key
from edgekiln.report import layout
from edgekiln.report.charts import lines, svg, text, tick_texts
from edgekiln.report.layout import Box, Line, Scale, Wanted

WIDTH, HEIGHT = 1120, 500
TOP, BOTTOM, LEFT, RIGHT = 56.0, 62.0, 56.0, 16.0
CHANCE = 0.1
"""Ten answers."""
SIZE = 12.5
CLASSES = {
    OURS: "ours",
    UNIFORM: "uniform",
    ATTENTION: "attention",
    SIMILARITY: "similarity",
    ORACLE: "oracle",
}
SHORT = {ATTENTION: "FastV-like", SIMILARITY: "similarity", OURS: "ARR-COC", "origin's scorer": "origin"}
STYLE = """
svg { background: #ffffff;
  font-family: system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
text { font-size: 12.5px; fill: #1e1c19; }
.tick, .axis { fill: #645f57; }
.head { font-weight: 650; font-size: 15px; }
.sub { fill: #645f57; font-size: 13px; }
.grid { stroke: #e7e3db; }
.chance { stroke: #79746b; stroke-dasharray: 2 4; }
.leader { stroke: #79746b; stroke-width: .7; opacity: .6; }
.label { paint-order: stroke; stroke: #ffffff; stroke-width: 3.5px; stroke-linejoin: round; }
.curve { fill: none; stroke: currentColor; stroke-width: 1.6; }
.bar { stroke: currentColor; stroke-width: 1.2; opacity: .5; }
.dot { fill: currentColor; }
text.label { fill: currentColor; }
.ours { color: #b4450f; }
.ours .curve { stroke-width: 3; }
.ours text, text.ours { font-weight: 650; }
.uniform { color: #0b62a0; }
.uniform .curve { stroke-width: 2.4; }
.attention { color: #0a6b50; }
.similarity { color: #7a4fb3; }
.oracle { color: #1e1c19; }
.oracle .curve { stroke-dasharray: 6 4; }
.blind { color: #8d877d; }
.blind .curve { stroke-width: 1.1; }
"""


@dataclass(frozen=True)
class _Series:
    """A contender's points: where on the axis, and its row."""

    name: str
    points: tuple[tuple[float, Row], ...]

    @property
    def css(self) -> str:
        return CLASSES.get(self.name, "blind")


def chart(rows: Sequence[Row], kind: str, costs_ms: Mapping[tuple[str, int], float], how: str = "") -> str:
    """The accuracies of one kind of question: over tokens, and over the latency of those in ``costs_ms``,
    which was measured as ``how`` says.

    Raises ValueError where no row is of this kind.
    """
    of_kind = by_key(rows, kind)
    if not of_kind:
        raise ValueError(f"no row is about {kind}")
    by_tokens = _series({key: (float(key[1]), row) for key, row in of_kind.items() if key[0] in CONTENDERS})
    by_cost = _series({key: (costs_ms[key], row) for key, row in of_kind.items() if key in costs_ms})
    seeds = next(iter(of_kind.values())).seeds
    spread = (
        "95 % interval over scenes, one seed" if len(seeds) == 1 else f"95 % interval over {len(seeds)} seeds"
    )
    width = (WIDTH - 2 * (LEFT + RIGHT)) / 2
    body = [
        f"<style>{STYLE}</style>",
        text(LEFT - 34, 24, escape(f"Accuracy, questions by {kind}"), "head"),
        text(WIDTH - RIGHT, 24, escape(f"bars: {spread}; dotted: chance"), "sub", "end"),
    ]
    counts = sorted({x for s in by_tokens for x, _ in s.points})
    for number, (series, title, ticks) in enumerate(
        ((by_tokens, "visual tokens", counts), (by_cost, f"ms for an answer, {how}", None))
    ):
        area = Box(LEFT + number * (width + LEFT + RIGHT), TOP, width, HEIGHT - TOP - BOTTOM)
        if series:
            body.append(_panel(series, area, title, ticks))
        else:
            body.append(text(area.x + width / 2, HEIGHT / 2, "no latency was measured", "sub", "middle"))
    shown = "; ".join(
        f"{s.name} {r.tokens} tokens {r.mean:.3f} at {x:.4g}"
        for s in by_cost or by_tokens
        for x, r in s.points
    )
    drawn = svg(WIDTH, HEIGHT, "".join(body), f"arrcoc-{kind}", f"Accuracy, questions by {kind}", shown)
    return drawn.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" ', 1) + "\n"


def _series(points: Mapping[tuple[str, int], tuple[float, Row]]) -> list[_Series]:
    """In the order of ``CONTENDERS``, the points by tokens."""
    found = []
    for name in CONTENDERS:
        mine = sorted((tokens, at) for (contender, tokens), at in points.items() if contender == name)
        if mine:
            found.append(_Series(name, tuple(at for _, at in mine)))
    return found


def _panel(series: Sequence[_Series], area: Box, title: str, ticks: Sequence[float] | None) -> str:
    values = [x for s in series for x, _ in s.points]
    x = layout.scale(values, area.x, area.x + area.width, log=True)
    y = Scale(0.0, 1.0, area.y + area.height, area.y)
    drawn: list[Line] = []
    for s in series:
        corners = [(x(at), y(row.mean)) for at, row in s.points]
        drawn += [(*a, *b) for a, b in pairwise(corners)]
    wanted, names = [], []
    for s in series:
        at, row = s.points[-1]
        wanted.append(Wanted(x(at), y(row.mean), (SHORT.get(s.name, s.name),)))
        names.append(s.css)
    placed = layout.place(wanted, area, SIZE, 7.0, drawn)
    labels = []
    for label, css, want in zip(placed, names, wanted, strict=True):
        anchor, left = label.anchor(want.x)
        labels.append(
            text(left, label.box.y + label.box.height * 0.76, escape(label.text), f"label {css}", anchor)
        )
    return "".join(
        (
            _axes(x, y, area, title, ticks or x.ticks(6)),
            lines([label.leader for label in placed if label.leader], "leader"),
            *(_curve(s, x, y) for s in reversed(series)),  # ours on top
            *labels,
        )
    )


def _axes(x: Scale, y: Scale, area: Box, title: str, x_ticks: Sequence[float]) -> str:
    bottom, right = area.y + area.height, area.x + area.width
    y_ticks = [n / 10 for n in range(0, 11, 2)]
    parts = [
        lines([(x(tick), area.y, x(tick), bottom) for tick in x_ticks], "grid"),
        lines([(area.x, y(tick), right, y(tick)) for tick in y_ticks], "grid"),
        lines([(area.x, y(CHANCE), right, y(CHANCE))], "chance"),
    ]
    for tick, shown in zip(x_ticks, tick_texts(x_ticks, 1), strict=True):
        parts.append(text(x(tick), bottom + 20, shown, "tick", "middle"))
    parts += [text(area.x - 8, y(tick) + 4, f"{tick:.1f}", "tick", "end") for tick in y_ticks]
    parts.append(
        text(area.x + area.width / 2, bottom + 44, escape(f"{title} (logarithmic)"), "axis", "middle")
    )
    return "".join(parts)


def _curve(s: _Series, x: Scale, y: Scale) -> str:
    path = "M" + "L".join(f"{x(at):.1f} {y(row.mean):.1f}" for at, row in s.points)
    bars = [(x(at), y(row.interval[0]), x(at), y(row.interval[1])) for at, row in s.points]
    if s.css == "blind":
        bars = []  # they lie on one another; the table has them
    dots = "".join(
        f'<circle class="dot" cx="{x(at):.1f}" cy="{y(row.mean):.1f}" r="{3.2 if s.css == "blind" else 4.2}">'
        f"<title>{escape(f'{s.name}, {row.tokens} tokens: {row.mean:.3f}')}</title></circle>"
        for at, row in s.points
    )
    return f'<g class="{s.css}">{lines(bars, "bar")}<path class="curve" d="{path}"/>{dots}</g>'
