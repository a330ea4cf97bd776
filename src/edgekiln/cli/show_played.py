"""A session that is over: its summary on the terminal, and as ``summary.json`` and ``summary.html``."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekiln.cli.show import escape
from edgekiln.files import write_bytes
from edgekiln.report import numbers, run_words
from edgekiln.report.numbers import plain, significant
from edgekiln.report.soak_words import clock
from edgekiln.runtime.events import json_line
from edgekiln.runtime.summary import Played

EXIT_CODES = {"whole": 0, "interrupted": 130, "failed": 2}
SHOWN_EVENTS = 12


def written(found: Played, folder: Path) -> tuple[Path, Path]:
    """``summary.json`` and ``summary.html`` in ``folder``, each whole or absent. Raises MachineFault."""
    from edgekiln.report.run_page import render

    data, page = folder / "summary.json", folder / "summary.html"
    write_bytes(data, msgspec.json.format(json_line(found), indent=1) + b"\n")
    write_bytes(page, render(found).encode("utf-8", "replace"))
    return data, page


def summary(found: Played, out: Console) -> None:
    """Whether the deadline was kept, frames by stream, time by rung, energy, and the last faults."""
    s = found.snapshot
    words = f"{found.device}, {found.engine}, {found.goal.mode}, {clock(s.seconds)}"
    out.print(f"[bold]{escape(found.bundle)}[/bold]  {escape(words)}")
    out.print(escape(run_words.headline(found)))
    if found.ended != "whole":
        out.print(f"[yellow]{found.ended}:[/yellow] {escape(found.why)}")
    for note in found.notes:
        out.print(f"[yellow]{escape(note)}[/yellow]")
    if found.snapshot.streams:
        out.print(_streams(found))
    out.print(_rungs(found))
    p50, p95, p99 = run_words.latency(s.latency)
    out.print(f"latency: P50 {p50}, P95 {p95}, P99 {p99} ms of {significant(found.goal.deadline_ms)} ms")
    if s.hottest_c is not None:
        trip = s.health.trip_c if s.health else None
        beside = "" if trip is None else f" (trip point {significant(trip)} °C)"
        out.print(f"temperature: {significant(s.hottest_c)} °C at most{beside}")
    out.print(f"energy: {escape(run_words.energy(s.energy))}")
    if s.offloaded or s.rescued:
        told = f"{s.offloaded:,} answered by a server, {s.rescued:,} rescued by another rung"
        out.print(f"frames: {told}")
    if s.log_lost:
        out.print(f"[yellow]the log lacks {numbers.count(s.log_lost, 'line')}[/yellow]")
    _faults(found, out)


def _streams(found: Played) -> Table:
    table = _table("stream", ">in", ">done", ">late", ">dropped", ">failed", "why")
    for row in run_words.streams(found.snapshot):
        figures = (row.entered, row.done, row.late, row.dropped, row.failed)
        table.add_row(Text(plain(row.name)), *figures, Text(plain(row.why)))
    return table


def _rungs(found: Played) -> Table:
    table = _table("rung", ">quality", ">chosen for", ">share", ">frames", ">late")
    for row in run_words.rungs(found):
        share = f"{numbers.percent(row.share)} %"
        table.add_row(Text(plain(row.name)), row.quality, row.time, share, row.frames, row.late)
    return table


def _faults(found: Played, out: Console) -> None:
    """The last faults with what was done about them; what is news only is on the page."""
    faults = [e for e in found.events if e.kind not in run_words.GOOD_EVENTS]
    last = run_words.gathered(faults)[-SHOWN_EVENTS:]
    for event, times in last:
        when = run_words.moment(event.at_s - found.snapshot.started_s)
        out.print(f"[yellow]{when}:[/yellow] {escape(run_words.event(event, times))}")
    every = sum(n for kind, n in found.snapshot.events.items() if kind not in run_words.GOOD_EVENTS)
    earlier = every - sum(times for _, times in last)
    if earlier > 0:
        out.print(f"[dim]and {numbers.count(earlier, 'earlier fault')}[/dim]")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table
