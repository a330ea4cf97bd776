"""``edgekiln explain`` on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekiln.report.layers import row, worst
from edgekiln.report.numbers import percent, plain, significant

if TYPE_CHECKING:
    from edgekiln.explanation import Explained


def explained(found: Sequence[Explained], count: int, out: Console) -> None:
    """Each artifact: its figures, what its passes say, and the layers that lose most alone."""
    for place, one in enumerate(found):
        if place:
            out.print()
        mark = " (chosen)" if one.chosen else ""
        out.print(f"[bold]{escape(plain(one.artifact))}[/bold]{mark}")
        figures = [f"{e.what.replace('_', ' ')} {_value(e.what, e.value)} ({e.how})" for e in one.quality]
        if figures:
            out.print(escape(", ".join(figures)))
        for note in one.notes:
            out.print(f"  {escape(plain(note))}")
        if not one.layers:
            out.print(f"  no layers to show: {escape(one.reason)}")
            continue
        out.print(_table(one, count))
        left = len(one.layers) - count
        if left > 0:
            out.print(f"  and {left} layers that lose less; --layers {len(one.layers)} shows all")


def _value(what: str, value: float | None) -> str:
    return f"{significant(value)} dB" if what == "sqnr_db" else f"{percent(value)} %"


def _table(one: Explained, count: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Layer", overflow="fold", max_width=44)
    table.add_column("Operator")
    for name in ("Alone\ndB", "In all\ndB", "Gain if\nfloat, dB", "Cost\nms"):
        table.add_column(name, justify="right")
    table.add_column("What was done", overflow="fold")
    for loss in worst(one.layers, count):
        shown = row(loss)
        cells = (shown.name, shown.op, shown.isolated, shown.cumulative, shown.gain, shown.cost, shown.story)
        table.add_row(*(escape(plain(cell)) for cell in cells))
    return table
