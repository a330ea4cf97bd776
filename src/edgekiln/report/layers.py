"""What quantisation cost each layer, for both reports: the chosen artifact's layers, drawn and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekiln.records import Artifact, LayerLoss
from edgekiln.report import charts, layer_chart, numbers
from edgekiln.report.layer_chart import LayerBar
from edgekiln.report.plots import Candidate

SHOWN = 12
"""Rows of the table: the layers that lose most alone. The drawing has them all."""


@dataclass(frozen=True)
class Lost:
    """One layer's row. ``story`` is what the recipe did about it."""

    name: str
    op: str
    isolated: str
    cumulative: str
    gain: str
    cost: str
    story: str


@dataclass(frozen=True)
class Layers:
    """One candidate's layers: the worst as rows, all as a drawing for wide and for narrow screens."""

    number: int
    name: str
    notes: tuple[str, ...]
    count: int
    in_float: int
    rows: tuple[Lost, ...]
    drawn: tuple[str, str]


def losses(artifact: Artifact) -> tuple[LayerLoss, ...]:
    """The layers of the last pass that looked at them; () where none did."""
    return next((p.layers for p in reversed(artifact.passes) if p.layers), ())


def worst(found: Sequence[LayerLoss], count: int = SHOWN) -> tuple[LayerLoss, ...]:
    """Those that lose most alone, the worst first; layers without a figure come last."""
    ranked = sorted(
        enumerate(found),
        key=lambda pair: (float("inf") if pair[1].isolated_db is None else pair[1].isolated_db, pair[0]),
    )
    return tuple(loss for _, loss in ranked[:count])


def row(loss: LayerLoss) -> Lost:
    """The layer as text. Figures that nobody looked for are dashes."""
    return Lost(
        name=loss.node,
        op=loss.op,
        isolated=numbers.decibels(loss.isolated_db),
        cumulative=numbers.decibels(loss.cumulative_db),
        gain=numbers.decibels(loss.output_gain_db),
        cost=numbers.MISSING if loss.cost_ms is None else f"{loss.cost_ms:+.3f}",
        story=story(loss),
    )


def story(loss: LayerLoss) -> str:
    """What became of a layer, in words."""
    where = "stays in float" if loss.in_float else "in INT8"
    return f"{where}; {loss.note}" if loss.note else where


def of(candidates: Sequence[Candidate], key: str) -> tuple[Layers, ...]:
    """The chosen artifact's layers, where they were looked at."""
    found = []
    for candidate in candidates:
        lost = losses(candidate.proof.artifact)
        if candidate.role != "chosen" or not lost:
            continue
        bars = [
            LayerBar(name=x.node, isolated=x.isolated_db, cumulative=x.cumulative_db, in_float=x.in_float)
            for x in lost
        ]
        text = f"{len(lost)} layers of {candidate.name}, isolated and cumulative signal to noise in dB"
        found.append(
            Layers(
                number=candidate.number,
                name=candidate.name,
                notes=tuple(p.note for p in candidate.proof.artifact.passes if p.note),
                count=len(lost),
                in_float=sum(x.in_float for x in lost),
                rows=tuple(row(x) for x in worst(lost)),
                drawn=(
                    layer_chart.layers(bars, charts.WIDE, f"{key}-yw", text),
                    layer_chart.layers(bars, charts.NARROW, f"{key}-yn", text),
                ),
            )
        )
    return tuple(found)
