"""The chart of what quantisation cost each layer: a dot alone, a bar with everything before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekiln.report import layout, numbers
from edgekiln.report.charts import lines, svg, text


@dataclass(frozen=True)
class LayerBar:
    """A layer's signal to quantisation noise in dB, alone and with all before it; None where it has none."""

    name: str
    isolated: float | None
    cumulative: float | None
    in_float: bool


def layers(bars: Sequence[LayerBar], width: int, key: str, description: str) -> str:
    """Layers from left to right in the graph's order, higher is better. Raises ValueError without a
    figure.
    """
    narrow = width < 600
    left, right, top, bottom = (44.0, width - 12.0, 14.0, 214.0)
    known = [v for b in bars for v in (b.isolated, b.cumulative) if v is not None]
    y = layout.scale([min(0.0, *known), min(max(known), 80.0)], bottom, top, log=False)
    ticks = y.ticks(5)
    body = [lines([(left, y(t), right, y(t)) for t in ticks], "grid")]
    body += [text(left - 8, y(t) + 4, f"{t:g}", "tick", "end") for t in ticks]
    step = (right - left) / max(len(bars), 1)
    for place, bar in enumerate(bars):
        body.append(_bar(bar, left + (place + 0.5) * step, min(step * 0.62, 18.0), y))
    middle = (left + right) / 2
    title = "Layers, in the graph's order" if narrow else "Layers, from the input to the output"
    body.append(text(middle, bottom + 22, title, "axis", "middle"))
    body.append(text(left, bottom + 44, "dot: the layer alone · bar: with all before it, dB", "tick"))
    return svg(width, bottom + 54, "".join(body), key, "What quantisation cost each layer", description)


def _bar(bar: LayerBar, x: float, wide: float, y: layout.Scale) -> str:
    css = "layer float" if bar.in_float else "layer"
    told = (
        f"{bar.name}: alone {numbers.decibels(bar.isolated)} dB, in all {numbers.decibels(bar.cumulative)} dB"
    )
    if bar.in_float:
        told += ", stays in float"
    drawn = ""
    if bar.cumulative is not None:
        ends = sorted((max(y(bar.cumulative), 8.0), y(0.0)))  # a bar of less than 0 dB hangs down
        drawn += (
            f'<rect class="all" x="{x - wide / 2:.1f}" y="{ends[0]:.1f}" width="{wide:.1f}" '
            f'height="{max(ends[1] - ends[0], 0.5):.1f}"/>'
        )
    if bar.isolated is not None:
        at = max(y(bar.isolated), 8.0)
        drawn += f'<circle class="alone" cx="{x:.1f}" cy="{at:.1f}" r="{min(3.2, wide / 2 + 0.6):.1f}"/>'
    return f'<g class="{css}"><title>{escape(told)}</title>{drawn}</g>'
