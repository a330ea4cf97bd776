"""``bench --soak``: runs it, writes ``soak.json`` and ``soak.html``, and shows it on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgekiln.cli.show import escape
from edgekiln.files import check_space, disk_errors, write_bytes, write_json
from edgekiln.prove.soak_record import Soak
from edgekiln.prove.timing import TimingFailure
from edgekiln.report import soak_words
from edgekiln.report.numbers import count, megabytes, significant

EXIT_CODES = {"whole": 0, "interrupted": 130, "failed": 2}


def prepare(folder: Path) -> None:
    """Make ``folder``. Raises BadInput where it can't be, MachineFault where its disk is full."""
    with disk_errors("making", folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_space(folder)


def written(found: Soak, folder: Path) -> tuple[Path, Path]:
    """``soak.json`` and ``soak.html`` in ``folder``, each whole or absent. Raises MachineFault."""
    from edgekiln.report.soak_page import render

    data, page = folder / "soak.json", folder / "soak.html"
    write_json(data, found)
    write_bytes(page, render(found).encode())
    return data, page


def failure(found: TimingFailure, out: Console) -> None:
    """A soak that never began."""
    out.print(f"{escape(found.id)} could not be soaked: {escape(found.reason)}")
    out.print(f"  cure: {escape(found.cure)}")
    for line in found.stderr:
        out.print(f"  {escape(line)}", style="dim")


def soak(found: Soak, out: Console) -> None:
    """Both rates, the latency, what throttled it, energy, and what happened to the sensors."""
    took = soak_words.clock(found.lasted_s)
    engine = f"{found.engine} {found.engine_version}, {count(found.threads, 'thread')}"
    out.print(f"[bold]{escape(soak_words.name(found))}[/bold]  {escape(engine)}, {took}, {found.n:,} calls")
    out.print(escape(soak_words.headline(found)))
    if found.ended != "whole":
        out.print(f"[yellow]{found.ended}:[/yellow] {escape(found.why)}")
    out.print(_rates(found))
    out.print(_latency(found))
    for slow in found.slowdowns:
        out.print(f"[yellow]slower:[/yellow] {escape(soak_words.slowdown(slow))}")
        for cause in slow.causes:
            out.print(f"  {escape(cause.what)}")
    if not found.slowdowns:
        out.print(soak_words.no_slowdown(found))
    ranges = soak_words.ranges(found)
    if ranges:
        table = _table("", ">first", ">last", ">least", ">most", "sensor")
        for r in ranges:
            table.add_row(f"{r.name}, {r.unit}", r.first, r.last, r.least, r.most, escape(r.sensor))
        out.print(table)
    out.print(f"energy: {escape(soak_words.energy(found))}")
    for when, what in soak_words.events(found):
        out.print(f"[yellow]{escape(when)}:[/yellow] {escape(what)}")
    for sentence in found.unfit:
        out.print(f"[yellow]this machine:[/yellow] {escape(sentence)}")


def _rates(found: Soak) -> Table:
    table = _table("", ">inferences/s", "95 % interval", "stretch", ">calls")
    for r in soak_words.rates(found):
        table.add_row(r.name, r.value, r.interval or escape(r.reason), r.stretch, r.n)
    return table


def _latency(found: Soak) -> Table:
    table = _table(">P50 ms", ">P95 ms", ">P99 ms", ">peak MB")
    p = found.percentiles
    figures = (None, None, None) if p is None else (p.p50, p.p95, p.p99)
    table.add_row(*(significant(f) for f in figures), megabytes(found.peak_rss_bytes))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table
