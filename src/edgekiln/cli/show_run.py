"""A running session on the terminal: a live screen, plain lines where the output is a pipe, or JSON lines."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekiln.report import numbers, run_words
from edgekiln.report.numbers import plain, significant
from edgekiln.report.soak_words import clock
from edgekiln.runtime.events import json_line
from edgekiln.runtime.histogram import Histogram, quantile, since
from edgekiln.runtime.metrics import Snapshot
from edgekiln.runtime.vocabulary import Event, Goal

if TYPE_CHECKING:
    from rich.live import Live

WINDOW_S = 10.0
"""Latency, rate and bars are of the last so many seconds; counts are of the whole session."""
LINE_S = 1.0
REPEAT_S, MOST_TOLD = 5.0, 256
"""Equal events within so long are one line; so many kinds of them are remembered."""
KEPT_LOOKS, KEPT_EVENTS = 240, 64
NAME, VALUE, NOTE = 8, 10, 24
"""Widths of the columns beside a bar, in characters."""
GLYPHS, ASCII = ("▁▂▃▄▅▆▇█", "━", "─", "…"), ("_.-:=+*#", "#", "-", "~")
COLOURS = {"good": "green", "near": "yellow", "over": "red"}


@dataclass(frozen=True)
class About:
    """What a session is, for the title. ``note`` says where another engine stands in."""

    bundle: str
    device: str
    engine: str
    goal: Goal
    rungs: tuple[str, ...] = ()
    note: str = ""


class View(Protocol):
    """``event`` may come from any thread; ``show`` is called some times a second, by one."""

    def event(self, event: Event) -> None: ...

    def show(self, found: Snapshot) -> None: ...


@contextlib.contextmanager
def view(about: About, json: bool = False, out: Console | None = None) -> Iterator[View]:
    """The view that fits standard output: JSON lines where asked for, a screen on a terminal, else lines."""
    from edgekiln.cli.show import console

    if json:
        yield JsonLines(sys.stdout)
        return
    out = out or console()
    with contextlib.suppress(
        AttributeError
    ):  # a terminal that can't write a degree sign gets a question mark
        out.file.reconfigure(errors="replace")  # type: ignore[attr-defined]
    if not out.is_terminal:
        yield Lines(about, out.file)
        return
    from rich.live import Live

    # Drawn on the alternate screen and only when there is something new: nothing flickers or scrolls away.
    with Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield Screen(about, live)


class JsonLines:
    """One object a line: an event when it happens, a snapshot a second."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._last = out, float("-inf")

    def event(self, event: Event) -> None:
        self._write({"at_s": event.at_s, "event": event})

    def show(self, found: Snapshot) -> None:
        if found.at_s - self._last >= LINE_S * 0.999:
            self._last = found.at_s
            self._write({"at_s": found.at_s, "snapshot": found})

    def _write(self, record: object) -> None:
        self._out.write(json_line(record).decode())
        self._out.flush()


class Lines:
    """A line a second, and one for each event, for logs and pipes."""

    def __init__(self, about: About, out: IO[str]) -> None:
        self._out, self._about = out, about
        self._looks: deque[Snapshot] = deque(maxlen=KEPT_LOOKS)
        self._started: float | None = None
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        words = (about.bundle, about.device, about.engine, about.goal.mode)
        self._print(f"{', '.join(words)}, deadline {significant(about.goal.deadline_ms)} ms")

    def event(self, event: Event) -> None:
        """Printed at once; what comes again within REPEAT_S is counted, and told with the next one after."""
        key = (event.kind, event.what)
        printed_s, held = self._told.get(key, (float("-inf"), 0))
        if event.at_s - printed_s < REPEAT_S:
            self._told[key] = printed_s, held + 1
            return
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        self._told[key] = event.at_s, 0
        if self._started is None:  # an event comes before the first look
            self._started = event.at_s
        self._print(f"{event.at_s - self._started:8.1f} s  {run_words.event(event, held + 1)}")

    def show(self, found: Snapshot) -> None:
        self._started = found.started_s
        if self._looks and found.at_s - self._looks[-1].at_s < LINE_S * 0.999:
            return
        self._looks.append(found)
        self._print(line(self._looks))

    def _print(self, text: str) -> None:
        # One write for a whole line, so that lines of two threads don't run into each other.
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        safe = plain(text).replace("\n", " ").encode(encoding, "replace").decode(encoding)
        self._out.write(safe + "\n")
        self._out.flush()


class Screen:
    """The live screen."""

    def __init__(self, about: About, live: Live) -> None:
        self._about, self._live = about, live
        self._looks: deque[Snapshot] = deque(maxlen=KEPT_LOOKS)
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)

    def event(self, event: Event) -> None:
        self._events.append(event)

    def show(self, found: Snapshot) -> None:
        self._looks.append(found)
        out = self._live.console
        drawn = render(
            self._about, list(self._looks), list(self._events), out.width, out.height, out.encoding
        )
        self._live.update(drawn, refresh=True)


# ---------------------------------------------------------------- what is written


def window(looks: Sequence[Snapshot]) -> tuple[Histogram, float | None]:
    """Latencies of the last ``WINDOW_S`` and the answers a second; of all while the session is younger."""
    last = looks[-1]
    before = next((s for s in reversed(looks) if last.at_s - s.at_s >= WINDOW_S * 0.999), None)
    if before is None:
        return last.latency, (last.latency.n / last.seconds if last.seconds > 0 else None)
    recent = since(before.latency, last.latency)
    return recent, recent.n / (last.at_s - before.at_s)


def line(looks: Sequence[Snapshot]) -> str:
    """One moment on one line."""
    found = looks[-1]
    recent, rate = window(looks)
    p50, p95, p99 = run_words.latency(recent)
    total, h = found.total, found.health
    parts = [f"{found.seconds:8.1f} s  {run_words.setting(found.setting)}", f"{significant(rate)}/s"]
    parts.append(f"P50 {p50}, P95 {p95}, P99 {p99} ms")
    parts.append(f"in time {numbers.percent(run_words.in_time(total))} %")
    dropped, failed = sum(total.dropped.values()), sum(total.failed.values())
    parts += [f"dropped {dropped:,}"] if dropped else []
    parts += [f"failed {failed:,}"] if failed else []
    parts += [f"{h.temperature_c:.1f} °C"] if h and h.temperature_c is not None else []
    parts += [f"{significant(h.power_watts)} W"] if h and h.power_watts is not None else []
    parts += [f"{found.log_lost:,} lines of the log lost"] if found.log_lost else []
    return "  ".join(parts)


def render(
    about: About,
    looks: Sequence[Snapshot],
    events: Sequence[Event],
    width: int,
    height: int,
    encoding: str = "utf-8",
) -> RenderableType:
    """The screen of ``width`` x ``height`` characters at the last of ``looks`` (at least one)."""
    found = looks[-1]
    glyphs = GLYPHS if encoding.lower().startswith("utf") else ASCII
    head = _title(about, found, width)
    gauges, rows = _gauges(about, looks, width, glyphs, airy=height >= 30)
    room = height - len(head) - rows - 3  # the blank lines between the parts
    # A few events are worth more than the ninth stream.
    most = max(2, min(len(found.streams) + 2, room - 5, room // 2 + 1))
    streams, taken = _streams(found, most, width)
    left = room - taken - 1
    parts: list[RenderableType] = [*head, Text(), streams, Text(), gauges, Text()]
    if left >= 1:
        parts += _events(events, found.started_s, left, width, glyphs[3])
    return Group(*parts)


def _title(about: About, found: Snapshot, width: int) -> list[Text]:
    goal = about.goal
    name = Text.assemble((plain(about.bundle), "bold"), ("  " + goal.mode, "cyan"))
    first = _pair(name, Text(clock(found.seconds), "bold"), width)
    asked = f"{significant(goal.deadline_ms)} ms for {numbers.percent(goal.percentile)} %"
    second = _pair(Text(plain(f"{about.device}, {about.engine}")), Text(f"deadline {asked}", "dim"), width)
    second.stylize("dim")
    made = [first, second]
    if about.note:
        made.append(_cut(Text(plain(about.note), "yellow"), width))
    return made


def _pair(left: Text, right: Text, width: int) -> Text:
    """Both on one line, at its ends; the left one is cut where there is no room."""
    left.truncate(max(1, width - right.cell_len - 2), overflow="ellipsis")
    return Text.assemble(left, " " * max(1, width - left.cell_len - right.cell_len), right, no_wrap=True)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def _streams(found: Snapshot, most: int, width: int) -> tuple[Table, int]:
    """A table of ``most`` lines at most, and how many it has."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("stream", min_width=12, ratio=2, no_wrap=True, overflow="ellipsis")
    for column in ("in", "done", "late", "dropped", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", ratio=3, no_wrap=True, overflow="ellipsis", style="dim")
    rows = list(run_words.streams(found))
    if not rows:
        table.add_row(Text("no frame yet", "dim"))
    shown = rows
    if len(rows) > most - 1:
        hidden = len(rows) - 1 - (most - 3)
        shown = [*rows[: max(0, most - 3)], rows[-1]]
    for at, row in enumerate(shown):
        if shown is not rows and at == len(shown) - 1:
            table.add_row(Text(f"and {hidden} more", "dim"))
        last = len(rows) > 1 and row is rows[-1]
        cells = [
            Text(row.entered),
            Text(row.done),
            Text(row.late, _if(row.late, "yellow")),
            Text(row.dropped, _if(row.dropped, "yellow")),
            Text(row.failed, _if(row.failed, "red")),
        ]
        table.add_row(Text(plain(row.name)), *cells, Text(plain(row.why)), style="bold" if last else "")
    return table, table.row_count + 1


def _if(count: str, style: str) -> str:
    return "" if count == "0" else style


def _gauges(
    about: About, looks: Sequence[Snapshot], width: int, glyphs: Sequence[str], airy: bool
) -> tuple[Table, int]:
    """The setting and why, latency against the deadline, temperature, power, energy; and the lines it has."""
    found, goal = looks[-1], about.goal
    bar = max(8, width - (NAME + VALUE + NOTE + 6))
    grid = _grid((VALUE, bar, None))
    _latency(grid, looks, goal, bar, glyphs)
    h = found.health
    trip = goal.ceiling_c if goal.ceiling_c is not None else None if h is None else h.trip_c
    heat, watts = (None, None) if h is None else (h.temperature_c, h.power_watts)
    tripped = f"of {significant(trip)} °C" if trip is not None else "no trip point known"
    zone = f"{tripped}, {h.zone}" if h is not None and h.zone else tripped
    _gauge(grid, "heat", heat, "°C", trip, bar, glyphs, zone)
    budget = f"of {significant(goal.power_watts)} W" if goal.power_watts is not None else "no budget"
    _gauge(grid, "power", watts, "W", goal.power_watts, bar, glyphs, budget)
    words = _grid((None,))
    words.add_row(
        "energy", Text(run_words.energy(found.energy), "" if found.energy.mj is not None else "dim")
    )
    top = _setting(about, found)
    whole = Table.grid(expand=True)
    whole.add_column(ratio=1)
    parts: list[RenderableType] = [top, *([Text()] if airy else []), grid, words]
    for part in parts:
        whole.add_row(part)
    return whole, grid.row_count + words.row_count + top.row_count + airy


def _grid(columns: Sequence[int | None]) -> Table:
    """A name and ``columns`` of these widths, None for what is left."""
    # Only a table that expands shrinks what is left; another takes from the names as well.
    grid = Table.grid(padding=(0, 2), expand=None in columns)
    grid.add_column(style="dim", no_wrap=True, width=NAME)
    for at, wide in enumerate(columns):
        style = "dim" if wide is None and at else ""
        grid.add_column(
            no_wrap=True, overflow="ellipsis", width=wide, style=style, ratio=1 if wide is None else None
        )
    return grid


def _latency(grid: Table, looks: Sequence[Snapshot], goal: Goal, bar: int, glyphs: Sequence[str]) -> None:
    recent, rate = window(looks)
    p50, p95, p99 = (quantile(recent, share) for share in (0.5, 0.95, 0.99))
    deadline = goal.deadline_ms
    grid.add_row(
        "P50", f"{significant(p50)} ms", _bar(p50, deadline, bar, glyphs), f"{significant(rate)} frames/s"
    )
    grid.add_row("P95", f"{significant(p95)} ms", _spark(looks, deadline, bar, glyphs[0]), "P95 over time")
    grid.add_row(
        "P99", f"{significant(p99)} ms", _bar(p99, deadline, bar, glyphs), f"of {significant(deadline)} ms"
    )
    share = run_words.in_time(looks[-1].total)
    state = "" if share is None else COLOURS["good" if share >= goal.percentile else "over"]
    asked = f"asked: {numbers.percent(goal.percentile)} %"
    grid.add_row("in time", Text(f"{numbers.percent(share)} %", state), "", asked)


def _setting(about: About, found: Snapshot) -> Table:
    table = _grid((None,))
    now = Text(plain(run_words.setting(found.setting)), "bold cyan")
    if found.setting is not None and found.setting.rung in about.rungs:
        now.append(f"  {about.rungs.index(found.setting.rung) + 1} of {len(about.rungs)}", "not bold dim")
    if found.setting_since_s is not None:
        now.append(f"  for {clock(found.at_s - found.setting_since_s)}", "not bold dim")
    if found.quality is not None:
        now.append(f"  mean quality {numbers.percent(found.quality)} %", "not bold dim")
    table.add_row("setting", now)
    table.add_row("why", Text(plain(found.setting_why) or "—"))
    return table


def _gauge(
    grid: Table,
    name: str,
    value: float | None,
    unit: str,
    limit: float | None,
    bar: int,
    glyphs: Sequence[str],
    note: str,
) -> None:
    if value is None:
        grid.add_row(name, Text("no sensor", "dim"), "", "")
        return
    drawn = _bar(value, limit, bar, glyphs) if limit else Text()
    grid.add_row(name, f"{significant(value)} {unit}", drawn, plain(note))


def _bar(value: float | None, limit: float, width: int, glyphs: Sequence[str]) -> Text:
    """``value`` on a bar that ends at ``limit``: yellow from 85 %, red beyond its end."""
    if value is None:
        return Text()
    share = value / limit if limit > 0 else 1.0
    full = min(width, max(0, round(share * width)))
    colour = COLOURS["over" if share > 1 else "near" if share >= 0.85 else "good"]
    return Text.assemble((glyphs[1] * full, colour), (glyphs[2] * (width - full), "dim"))


def _spark(looks: Sequence[Snapshot], deadline_ms: float, width: int, marks: str) -> Text:
    """P95 between the looks of the last moments; full height is the deadline, red is beyond it."""
    text = Text()
    for before, after in pairwise(list(looks)[-width - 1 :]):
        value = quantile(since(before.latency, after.latency), 0.95)
        if value is None:
            text.append(" ")
            continue
        share = value / deadline_ms if deadline_ms > 0 else 1.0
        colour = COLOURS["over" if share > 1 else "near" if share >= 0.85 else "good"]
        text.append(marks[min(len(marks) - 1, int(share * len(marks)))], colour)
    return text


def _events(events: Sequence[Event], started_s: float, lines: int, width: int, more: str) -> list[Text]:
    """The last events, the newest at the end."""
    if not events:
        return [Text("nothing has happened yet", "dim")]
    made = []
    for event, times in run_words.gathered(events)[-lines:]:
        style = "" if event.kind in run_words.GOOD_EVENTS else "yellow"
        told = plain(run_words.event(event, times)).replace("\n", " ")
        text = Text.assemble((f"{run_words.moment(event.at_s - started_s):>9}  ", "dim"), (told, style))
        made.append(_cut(text, width))
    return made
