"""Predicted against published, each point predicted by a fit that had not seen its family, as one SVG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from validate import Held

SIZE, EDGE = 620, 56
COLOURS = {
    "hexagon": "#2f6db3",
    "jetson-tensorrt": "#4f8a10",
    "jetson-onnxruntime": "#8d6b00",
    "cpu-openvino": "#b3462f",
    "cpu-onnxruntime": "#7a4fb3",
    "cpu-litert": "#00807a",
}
LOW, HIGH = 0.1, 10000.0


def draw(heard: list[Held], into: Path) -> None:
    """Both axes logarithmic in ms; the band is the 90 % interval of all points together."""
    points = [
        (h.data.group.name, float(y), float(q))
        for h in heard
        for y, q in zip(h.data.y, h.predicted, strict=True)
        if np.isfinite(q) and q > 0
    ]
    low, high = np.quantile([y / q for _, y, q in points], [0.05, 0.95])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE + 40}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{SIZE}" height="{SIZE + 40}" fill="#ffffff"/>',
        _band(low, high),
    ]
    for tick in (0.1, 1, 10, 100, 1000, 10000):
        x, y = _x(tick), _y(tick)
        parts += [
            f'<path d="M{x:.1f} {_y(HIGH):.1f}V{_y(LOW):.1f}" stroke="#e4e4e4"/>',
            f'<path d="M{_x(LOW):.1f} {y:.1f}H{_x(HIGH):.1f}" stroke="#e4e4e4"/>',
            _text(x, SIZE - EDGE + 18, f"{tick:g}", "middle"),
            _text(EDGE - 8, y + 4, f"{tick:g}", "end"),
        ]
    parts.append(f'<path d="M{_x(LOW):.1f} {_y(LOW):.1f}L{_x(HIGH):.1f} {_y(HIGH):.1f}" stroke="#555"/>')
    for name, y, q in points:
        parts.append(
            f'<circle cx="{_x(q):.1f}" cy="{_y(y):.1f}" r="2" fill="{COLOURS[name]}" fill-opacity="0.45"/>'
        )
    told = f"shaded: 90 % of {len(points)} points, {low:.2f} to {high:.2f} times predicted"
    parts += [
        _text(SIZE / 2, SIZE - 14, "predicted, ms, by a fit that had not seen the family", "middle"),
        f'<g transform="translate(14 {SIZE / 2}) rotate(-90)">{_text(0, 0, "published, ms", "middle")}</g>',
        _text(_x(LOW) + 10, _y(HIGH) + 18, told, "start"),
    ]
    for at, (name, colour) in enumerate(COLOURS.items()):
        x, y = EDGE + (at % 3) * 180, SIZE + 8 + (at // 3) * 18
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>{_text(x + 9, y, name, "start")}')
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{words}</text>'


def _x(value: float) -> float:
    return EDGE + (np.log10(value) - np.log10(LOW)) / np.log10(HIGH / LOW) * (SIZE - EDGE - 20)


def _y(value: float) -> float:
    return SIZE - EDGE - (np.log10(value) - np.log10(LOW)) / np.log10(HIGH / LOW) * (SIZE - EDGE - 20)


def _band(low: float, high: float) -> str:
    corners = [(LOW, LOW * low), (HIGH, HIGH * low), (HIGH, HIGH * high), (LOW, LOW * high)]
    inside = " ".join(f"{_x(x):.1f},{min(max(_y(y), 0), SIZE):.1f}" for x, y in corners)
    return f'<polygon points="{inside}" fill="#2f6db3" fill-opacity="0.10"/>'
