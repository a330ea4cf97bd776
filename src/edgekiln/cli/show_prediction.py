"""Predictions and calibrations on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekiln.forecast.calibration import Calibration
from edgekiln.forecast.latency import Prediction
from edgekiln.prediction import Predicted
from edgekiln.records import Evidence

_MARKS = {"fitted": "fitted", "carried over": "carried over", "calibrated": "your figures", "refused": "none"}


def predicted(found: Predicted, out: Console) -> None:
    """One table of all rows, then what each rests on, then the nearest published figures."""
    c = found.cost
    out.print(
        f"[bold]{escape(found.model)}[/bold]  {c.macs / 1e9:.3g} G multiply-adds, "
        f"{c.parameters / 1e6:.3g} M parameters"
    )
    for device in dict.fromkeys(row.device for row in found.rows):
        out.print(f"\n[bold]{escape(device)}[/bold]")
        out.print(_table([row for row in found.rows if row.device == device]))
    out.print(
        "[dim]all predicted, none measured; 90 %: the interval that the errors of held-out figures give[/dim]"
    )
    _why(found, out)


def _table(rows: Sequence[Prediction]) -> Table:
    """The rows of one device: each figure, then its interval."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("target", "precision"):
        table.add_column(head, no_wrap=True)
    for head in ("ms", "90 %", "mJ", "90 %", "W", "90 %", "MB, least"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("evidence", no_wrap=True)
    for row in rows:
        figures = [row.get(w) for w in ("latency_p50_ms", "energy_mj", "power_watts")]
        arena = row.get("arena_bytes").value
        table.add_row(
            row.target,
            escape(row.precision if row.basis != "refused" else ""),
            *(cell for f in figures for cell in (_value(f), _between(f))),
            "" if arena is None else f"{arena / 1e6:.3g}",
            _MARKS[row.basis],
        )
    return table


def _value(figure: Evidence) -> str:
    return "" if figure.value is None else f"{figure.value:.3g}"


def _between(figure: Evidence) -> str:
    if figure.interval is None:
        return ""
    low, high = figure.interval
    return f"{low:.2g}–{high:.2g}" if high < 100 else f"{low:.0f}–{high:.0f}"


def _why(found: Predicted, out: Console) -> None:
    """What each row rests on; targets of a device that have the same to say are said together."""
    told: dict[tuple[str, str], list[str]] = {}
    near: dict[tuple[str, str], list[str]] = {}
    for row in found.rows:
        latency = row.get("latency_p50_ms")
        note = str(latency.environment.get("note", ""))
        why = latency.reason or "; ".join(filter(None, (row.why, note)))
        key = (row.device, why)
        told.setdefault(key, [])
        if row.target not in told[key]:
            told[key].append(row.target)
        if row.nearest:
            models = ", ".join(f"{n.model} {n.latency_ms:g}" for n in row.nearest)
            near.setdefault(key, []).append(f"{row.target} {row.precision}: {models}")
    for (device, why), targets in told.items():
        out.print(f"\n[bold]{escape(device)} · {', '.join(targets)}[/bold]  {escape(why)}")
        for line in near.get((device, why), []):
            out.print(f"  [dim]published, ms, the nearest for {escape(line)}[/dim]")
    sources = sorted({n.source for row in found.rows for n in row.nearest[:1]})
    if sources:
        out.print(
            f"\n[dim]sources: {escape('; '.join(sources[:3]))}{'; …' if len(sources) > 3 else ''}[/dim]"
        )


def calibrated(found: Calibration, path: str, out: Console) -> None:
    """What the anchors said."""
    out.print(
        f"{escape(found.device)} · {found.target} · {escape(found.precision)}: the form of "
        f"[bold]{escape(found.like)}[/bold] ({escape(found.runtime)}), set by {len(found.anchors)} anchors; "
        f"the worst of them is {found.worst_percent:g} % off"
    )
    use = f"edgekiln predict MODEL --device {found.device} --measured {path}"
    out.print(f"wrote {escape(path)}; use it with: {escape(use)}")
