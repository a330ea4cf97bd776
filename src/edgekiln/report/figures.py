"""The figures that the report shows, by the name under which evidence carries them.

One table for both reports: what a column is called, its unit, how its values are written and in which
direction they get better. Evidence that no column knows is still listed, in the table of all evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekiln.records import Budget, Evidence, How, Proof
from edgekiln.report import numbers

NOT_RECORDED = "the build recorded no such figure"


@dataclass(frozen=True)
class Column:
    """``key`` is the budget's name of the figure, and the evidence's unless ``EVIDENCE_NAMES`` knows another.

    ``better`` is -1 where less is better, 1 where more is.
    """

    key: str
    title: str
    unit: str
    write: Callable[[float | None], str]
    better: int


@dataclass(frozen=True)
class Cell:
    """One figure ready to be shown. ``text`` is a dash where ``value`` is None, and ``reason`` says why."""

    column: Column
    text: str
    value: float | None = None
    how: How | None = None
    interval: str = ""
    bounds: tuple[float, float] | None = None
    n: int | None = None
    reason: str = ""
    note: str = ""


COLUMNS = {
    column.key: column
    for column in (
        Column("accuracy_drop", "Accuracy drop", "points", numbers.points, -1),
        Column("agreement", "Agreement", "%", numbers.percent, 1),
        Column("agreement_expected", "Expected agreement", "%", numbers.percent, 1),
        Column("sqnr_db", "SQNR", "dB", numbers.decibels, 1),
        Column("latency_p50_ms", "P50", "ms", numbers.ms, -1),
        Column("latency_p95_ms", "P95", "ms", numbers.ms, -1),
        Column("latency_p99_ms", "P99", "ms", numbers.ms, -1),
        Column("memory_bytes", "Peak memory", "MB", numbers.megabytes, -1),
        Column("size_bytes", "Size", "MB", numbers.megabytes, -1),
        Column("energy_mj", "Energy", "mJ", numbers.significant, -1),
        Column("power_watts", "Power", "W", numbers.significant, -1),
        Column("fps", "Throughput", "fps", numbers.significant, 1),
    )
}
EVIDENCE_NAMES = {
    "memory_bytes": ("peak_memory_bytes", "memory_bytes"),
    "accuracy_drop": ("accuracy_drop", "metric_drop"),
}
"""Where evidence calls a figure otherwise than the budget does; the first that is there counts."""

QUALITY = ("accuracy_drop", "agreement", "sqnr_db")
DRAWN = (*QUALITY, "agreement_expected")
"""What a chart may show as quality: the estimate as well, where the decision was made over it."""
LIMITED_AS = {"agreement_expected": "agreement"}
"""Columns that the budget's limit on another one is held against."""
LATENCY = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
MAIN = (*QUALITY, *LATENCY, "memory_bytes", "size_bytes")
EXTRA = ("energy_mj", "power_watts", "fps")

LONG = {
    "latency_p50_ms": "Latency P50",
    "latency_p95_ms": "Latency P95",
    "latency_p99_ms": "Latency P99",
    "sqnr_db": "Signal to quantisation noise",
}

HOW_WORDS: dict[How, str] = {
    "measured": "timed or computed by running this artifact with its own engine, on the machine named",
    "emulated": "the same arithmetic run by another engine than the device's",
    "predicted": "calculated by a model, with its interval; nothing was run",
    "published": "taken from the source named; nothing was run",
}


def long_title(column: Column) -> str:
    return LONG.get(column.key, column.title)


def cell(proof: Proof, key: str) -> Cell:
    """The figure ``key`` of an artifact. The size needs no evidence: the files' sizes are in the record."""
    column = COLUMNS[key]
    names = EVIDENCE_NAMES.get(key, (key,))
    found = next((e for name in names if (e := proof.get(name)) is not None), None)
    if found is None and key == "size_bytes":
        value = float(proof.artifact.size_bytes)
        return Cell(column, column.write(value), value, "measured", note="sum of the artifact's files")
    if found is None:
        return Cell(column, numbers.MISSING, reason=NOT_RECORDED)
    return from_evidence(column, found)


def named(column: Column, found: Evidence) -> Column:
    """The column of a drop, called after the metric that it is of: ``mAP drop``."""
    metric = found.environment.get("metric")
    if not found.what.startswith("metric_drop") or metric is None:
        return column
    return replace(column, title=f"{numbers.plain(str(metric))} drop")


def from_evidence(column: Column, found: Evidence) -> Cell:
    """One table cell of a figure: its text in the column's unit, its interval, its class, its reason."""
    column = named(column, found)
    if found.value is None or math.isnan(found.value):
        reason = found.reason or "the figure is not a number"
        return Cell(column, numbers.MISSING, reason=numbers.plain(reason), n=found.n)
    return Cell(
        column,
        column.write(found.value),
        found.value,
        found.how,
        numbers.interval(found.interval, column.write),
        found.interval,
        found.n,
        note=note(found),
    )


def note(found: Evidence) -> str:
    """Where a figure comes from, in one line: how, n, machine, source."""
    parts = [str(found.how)] if found.how else []
    if found.n is not None:
        parts.append(f"n = {found.n:,}")
    parts += [p for p in (found.where, found.source, found.reason) if p]
    return numbers.plain(" · ".join(parts))


def common_how(cells: Sequence[Cell]) -> How | None:
    """The evidence class that all known figures share; None where there are several or none."""
    hows = {c.how for c in cells if c.value is not None}
    return next(iter(hows)) if len(hows) == 1 else None


@dataclass(frozen=True)
class Constraint:
    """One line of the budget: ``column`` compared with ``limit``; ``least`` where it is a lower bound."""

    column: Column
    limit: float
    least: bool

    @property
    def words(self) -> str:
        sign = "≥" if self.least else "≤"
        return f"{long_title(self.column)} {sign} {self.column.write(self.limit)} {self.column.unit}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


def constraints(budget: Budget, proofs: Sequence[Proof] = ()) -> tuple[Constraint, ...]:
    """The constraints that were given, in the order of the budget's fields; ``proofs`` name the metric."""
    columns = {name: next((cell(p, name).column for p in proofs), c) for name, c in COLUMNS.items()}
    given = ((name, getattr(budget, name)) for name in budget.__struct_fields__)
    return tuple(
        Constraint(columns[name], float(limit), columns[name].better > 0)
        for name, limit in given
        if limit is not None
    )
