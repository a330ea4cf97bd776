"""What the charts of one device show: its candidates as points, its timing runs as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekiln.records import Budget, Evidence, Proof, Scalar
from edgekiln.report import charts, figures, numbers
from edgekiln.report.charts import Axis, Point, Role, Row
from edgekiln.report.figures import COLUMNS, Cell, Column, common_how

RUN_FACTS = (
    "engine",
    "engine_version",
    "threads",
    "spinning",
    "pinned_cores",
    "alternated_contenders",
    "warmup_calls",
    "warmup_stable",
    "drifted",
    "machine_fitness",
)
"""What a reader needs to weigh a timing; the rest stands under "Every figure, file and option"."""


@dataclass(frozen=True)
class Candidate:
    """One artifact on one device. ``verdict`` says why it was or was not chosen."""

    number: int
    proof: Proof
    role: Role
    cells: dict[str, Cell]
    verdict: str

    @property
    def name(self) -> str:
        return f"{self.proof.artifact.target} {self.proof.artifact.recipe}"


def _best_quality(found: Sequence[Candidate], decided: str) -> Column | None:
    """The quality that the decision was made over; where nobody has it, the one that most have."""
    values = {k: [v for c in found if (v := c.cells[k].value) is not None] for k in figures.DRAWN}
    best = max(figures.DRAWN, key=lambda k: (bool(values[k]) and k == decided, len(values[k])))
    return COLUMNS[best] if values[best] else None


def scatter(
    found: Sequence[Candidate], budget: Budget, decided: str, key: str, device: str
) -> tuple[tuple[str, str] | None, str]:
    """The wide and the narrow drawing and a note on what could not be drawn; None without two figures."""
    if not found:
        return None, "No artifact was made for this device."
    quality = _best_quality(found, decided)
    if quality is None:
        return None, f"No quality figure is known here: {found[0].cells['agreement'].reason}."
    # A prediction ranks nothing, and the front is the decision's own.
    figures = [c.cells["latency_p50_ms"] for c in found]
    timed = any(f.value is not None and f.how != "predicted" for f in figures)
    cost = COLUMNS["latency_p50_ms" if timed else "size_bytes"]
    drawn = [
        c for c in found if c.cells[cost.key].value is not None and c.cells[quality.key].value is not None
    ]
    points = [_point(c, cost, quality) for c in drawn]
    if not points:
        return None, "No candidate has both a cost and a quality figure."
    why = "" if timed else "; no latency was measured here"
    x_axis = _axis(cost, drawn, budget, why)
    y_axis = _axis(quality, drawn, budget)
    marked = "; ".join(p.title for p in points)
    description = numbers.plain(f"{device}: {x_axis.title} against {y_axis.title}. {marked}")
    missing = [c for c in found if c not in drawn]
    note = ""
    if missing:
        names = ", ".join(f"{c.number} {c.name}" for c in missing)
        note = f"Not drawn, because a figure is missing: {names}."
    return (
        charts.scatter(points, x_axis, y_axis, charts.WIDE, f"{key}-sw", description),
        charts.scatter(points, x_axis, y_axis, charts.NARROW, f"{key}-sn", description),
    ), note


def _axis(column: Column, drawn: Sequence[Candidate], budget: Budget, why: str = "") -> Axis:
    how = common_how([c.cells[column.key] for c in drawn])
    words = how or (
        "how: by the mark" if column.better < 0 and column.key not in figures.DRAWN else "how: see table"
    )
    factor = {"points": 100.0, "%": 100.0, "MB": 1e-6}.get(column.unit, 1.0)
    limited = figures.LIMITED_AS.get(column.key, column.key)
    given = [c.limit for c in figures.constraints(budget) if c.column.key == limited]
    title = f"{figures.long_title(column)}, {column.unit} ({words}{why})"
    return Axis(title, factor, column.better, given[0] if given else None)


def _point(candidate: Candidate, cost: Column, quality: Column) -> Point:
    x, y = candidate.cells[cost.key], candidate.cells[quality.key]
    return Point(
        number=candidate.number,
        name=numbers.plain(candidate.name),
        x=x.value or 0.0,
        y=y.value or 0.0,
        how=x.how or "measured",
        role=candidate.role,
        title=numbers.plain(
            f"{candidate.number} {candidate.name}: "
            f"{figures.long_title(cost)} {x.text} {cost.unit} ({x.how}), "
            f"{quality.title} {y.text} {quality.unit} ({y.how})"
        ),
        x_interval=x.bounds if x.how == "predicted" else None,
    )


def strips(found: Sequence[Candidate], key: str, device: str) -> tuple[str, str] | None:
    """The latency distributions of one device as SVG, for wide and for narrow screens."""
    rows = [
        Row(
            number=c.number,
            name=numbers.plain(c.name),
            samples=c.proof.latency_ms,
            percentiles=_percentiles(c),
            how=c.cells["latency_p50_ms"].how or "origin not recorded",
            role=c.role,
        )
        for c in found
        if c.proof.latency_ms
    ]
    if not rows:
        return None
    text = f"{device}: " + "; ".join(
        f"{c.number} {c.name} P50 {c.cells['latency_p50_ms'].text}, P95 {c.cells['latency_p95_ms'].text}, "
        f"P99 {c.cells['latency_p99_ms'].text} ms"
        for c in found
        if c.proof.latency_ms
    )
    text = numbers.plain(text)
    return (
        charts.strips(rows, charts.WIDE, f"{key}-lw", text),
        charts.strips(rows, charts.NARROW, f"{key}-ln", text),
    )


def _percentiles(candidate: Candidate) -> tuple[float, float, float]:
    """P50, P95 and P99 as the evidence has them, so that chart and table agree; else from the samples."""
    known = [candidate.cells[key].value for key in figures.LATENCY]
    own = np.percentile(candidate.proof.latency_ms, (50, 95, 99))
    p50, p95, p99 = (float(o) if k is None else k for k, o in zip(known, own, strict=True))
    return p50, p95, p99


def runs(found: Sequence[Candidate]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """What all timing runs had in common, and per run what they did not."""
    runs = []
    for candidate in found:
        if candidate.proof.latency_ms:
            evidence = next((e for k in figures.LATENCY if (e := candidate.proof.get(k)) is not None), None)
            runs.append((candidate, _facts(evidence, len(candidate.proof.latency_ms))))
    if not runs:
        return (), ()
    common = tuple(item for item in runs[0][1].items() if all(r[1].get(item[0]) == item[1] for r in runs))
    shared = {name for name, _ in common}
    differ = tuple(
        (f"{c.number} {c.name}", ", ".join(f"{k} {v}" for k, v in facts.items() if k not in shared))
        for c, facts in runs
    )
    return common, differ if any(text for _, text in differ) else ()


def _facts(evidence: Evidence | None, count: int) -> dict[str, str]:
    facts = {"samples": f"{count:,}"}
    if evidence is None:
        return {"machine": "not recorded", **facts}
    facts = {"machine": evidence.where or "not recorded", **facts}
    shown = {k: evidence.environment[k] for k in RUN_FACTS if k in evidence.environment}
    return facts | {k.replace("_", " "): _short(v) for k, v in shown.items()}


def _short(value: Scalar) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
