"""Devices side by side on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from edgekiln.cli.show import console, escape

if TYPE_CHECKING:
    from edgekiln.devices.compare import Comparison


def comparison(found: Comparison) -> None:
    """A row a figure, a column a device; below it why a figure is unknown."""
    from edgekiln.devices.compare import cells, reasons

    out = console()
    table = _table("figure", *found.devices)
    for row in cells(found):
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)
    out.print(
        f"(1.5x) is against {escape(found.devices[0])}, where both are numbers of one unit", style="dim"
    )
    why = _table("device", "unknown", "why")
    for device, labels, reason in reasons(found):
        why.add_row(escape(device), escape(labels), escape(reason))
    if why.row_count:
        out.print()
        out.print(why)


def _table(*columns: str) -> Table:
    """Columns share the width evenly, so that no device is squeezed; a name is folded, never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for place, column in enumerate(columns):
        table.add_column(escape(column), overflow="fold", ratio=1 if place else None, max_width=None)
    if columns:
        table.columns[0].max_width = 26
    return table
