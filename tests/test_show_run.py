"""The view of a running session: what fits, what it says, and what strangers can't do to it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from edgekiln.cli.show_run import About, JsonLines, Lines, render, view
from edgekiln.runtime.metrics import Metrics, Snapshot
from edgekiln.runtime.vocabulary import Event, Goal, Setting
from fakes.sessions import GOAL, LADDER, answer, hot_session

EVIL = "[red]x[/red]\x1b[31m\x07\ny\u202e"
ABOUT = About("demo.edgekiln", "jetson-orin-nano-8gb", "onnxruntime", GOAL, tuple(r.id for r in LADDER))


def looks(streams: int = 2, until: int = 60) -> tuple[list[Snapshot], tuple[Event, ...]]:
    made = []
    for metrics, at_s in hot_session(100, tuple(f"camera {i}" for i in range(streams))):
        made.append(metrics.snapshot(at_s))
        if at_s >= until:
            break
    return made, metrics.recent()


def drawn(
    about: About, found: list[Snapshot], events: tuple[Event, ...], width: int, height: int
) -> list[str]:
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    out.print(render(about, found, events, width, height))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (100, 30), (200, 60)])
@pytest.mark.parametrize("streams", [1, 2, 9, 64])
def test_it_fits_the_screen_and_keeps_what_matters(width: int, height: int, streams: int) -> None:
    found, events = looks(streams)
    shown = drawn(ABOUT, found, events, width, height)
    assert len(shown) <= height
    assert all(len(text.rstrip()) <= width for text in shown)
    text = "\n".join(shown)
    for part in (
        "demo.edgekiln",
        "jetson-orin-nano-8gb",
        "adaptive",
        "deadline 50.0 ms",
        "int8@160x160",
        "3 of 3",
    ):
        assert part in text
    for part in (
        "the board nears its trip point",
        "of 88.0 °C, cpu-thermal",
        "of 10.0 W",
        "mJ per inference",
    ):
        assert part in text
    assert "1,800" in text, "the total of all streams is never cut"
    assert "change: int8@160x160" in shown[-1], "the newest event is at the end"


def test_a_long_reason_is_cut_and_the_name_before_it_is_not() -> None:
    found, events = looks()
    found[-1] = msgspec.structs.replace(found[-1], setting_why="no setting keeps all bounds; " * 9)
    names = [line.split(" ")[0] for line in drawn(ABOUT, found, events, 100, 40)]
    assert {"setting", "why"} <= set(names)


def test_bars_end_at_their_limit() -> None:
    metrics = Metrics(GOAL, LADDER)
    for latency in (10.0, 25.0, 80.0):
        metrics.done("a", answer(latency))
    lines = drawn(ABOUT, [metrics.snapshot(1.0)], (), 80, 24)
    half, over = (next(text for text in lines if text.startswith(name)) for name in ("P50", "P99"))
    assert half.count("━") == half.count("─")
    assert over.count("━") > 8
    assert "─" not in over


def test_before_the_first_frame_and_without_sensors_it_says_so() -> None:
    text = "\n".join(drawn(ABOUT, [Metrics(GOAL).snapshot(0.0)], (), 80, 24))
    for part in (
        "no frame yet",
        "not chosen yet",
        "no sensor",
        "no power was read",
        "nothing has happened yet",
    ):
        assert part in text


def test_figures_are_of_the_last_seconds_and_counts_of_all() -> None:
    found, _ = looks(until=60)
    recent = [s for s in found if s.at_s >= 50]
    metrics = "\n".join(drawn(ABOUT, [found[0], *recent], (), 80, 24))
    assert "1,793" in metrics
    assert "29.9 frames/s" in metrics


def strange() -> tuple[About, Snapshot, Event]:
    metrics = Metrics(GOAL)
    metrics.frame_in(EVIL)
    metrics.dropped(EVIL, 1, EVIL)
    metrics.setting(Setting(rung=EVIL), replace(LADDER[0], id=EVIL), EVIL, 0.0)
    event = Event(at_s=0.5, kind="hung", what=EVIL, why=EVIL, done=EVIL)
    return About(EVIL, EVIL, EVIL, GOAL, (EVIL,), EVIL), metrics.snapshot(1.0), event


def test_strangers_strings_move_no_cursor_and_bring_no_markup() -> None:
    about, found, event = strange()
    text = "\n".join(drawn(about, [found], (event,), 120, 40))
    out = io.StringIO()
    lines = Lines(about, out)
    lines.event(event)
    lines.show(found)
    for told in (text, out.getvalue()):
        assert "\x1b" not in told
        assert "\x07" not in told
        assert "\u202e" not in told
        assert "[red]x[/red]" in told
    assert len(out.getvalue().splitlines()) == 3


def test_a_pipe_gets_a_line_a_second_and_one_for_each_event() -> None:
    out = io.StringIO()
    lines = Lines(ABOUT, out)
    metrics = Metrics(Goal(deadline_ms=50.0), started_s=100.0)
    for tenth in range(50):
        metrics.frame_in("gate")
        metrics.done("gate", answer(12.0))
        lines.show(metrics.snapshot(100.0 + tenth / 10))
        if tenth == 25:
            lines.event(Event(at_s=102.5, kind="hung", what="engine", why="no answer", done="restarted"))
    told = out.getvalue().splitlines()
    assert len(told) == 1 + 5 + 1
    assert "2.5 s  hung: engine: no answer (restarted)" in out.getvalue()
    assert re.search(r"P50 1[12]\.\d, P95 1[12]\.\d, P99 1[12]\.\d ms  in time 100\.0 %", told[-1])


def test_json_lines_are_events_and_a_snapshot_a_second() -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    found, events = looks(until=3)
    for one in events:
        lines.event(one)
    for look in [*found, replace(found[-1], at_s=3.5)]:
        lines.show(look)
    told = [json.loads(text) for text in out.getvalue().splitlines()]
    lines.event(Event(at_s=4.0, kind="hung", what="\ud800"))
    assert json.loads(out.getvalue().splitlines()[-1])["event"]["what"] == "?"
    assert [set(t) for t in told] == [{"at_s", "event"}] * len(events) + [{"at_s", "snapshot"}] * 3


def test_a_terminal_that_knows_no_unicode_is_no_reason_to_end() -> None:
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    with view(ABOUT, out=out) as shown:
        for look in looks(until=3)[0]:
            shown.show(look)
    out.file.flush()
    assert b"?C" in raw.getvalue()


DEMO = """
import sys
sys.path.insert(0, {tests!r})
from fakes.sessions import hot_session
from test_show_run import ABOUT
from edgekiln.cli.show_run import view
with view(ABOUT) as shown:
    for metrics, at_s in hot_session(20):
        shown.show(metrics.snapshot(at_s))
print("over")
"""


def test_a_real_terminal_is_drawn_on_its_alternate_screen_and_given_back() -> None:
    master, slave = pty.openpty()
    code = DEMO.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    told = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not more:
            break
        told += more
    os.close(master)
    assert child.wait(timeout=60) == 0, told.decode(errors="replace")
    opened, closed = told.index(b"\x1b[?1049h"), told.rindex(b"\x1b[?1049l")
    assert opened < told.index(b"demo.edgekiln") < closed < told.rindex(b"over\r\n")
    assert b"\x1b[2J" not in told[told.index(b"demo.edgekiln") : closed], "clearing between drawings flickers"


def test_what_happens_again_at_once_is_told_as_one_line_with_its_number() -> None:
    def timeout(at_s: float, what: str = "fp32") -> Event:
        return Event(at_s=at_s, kind="timeout", what=what, why=f"late at {at_s}")

    events = [timeout(1.0), timeout(1.1), timeout(1.2), timeout(1.3, "int8"), timeout(9.0)]
    out = io.StringIO()
    lines = Lines(ABOUT, out)
    for event in events:
        lines.event(event)
    told = [line.split("  ")[-1].strip() for line in out.getvalue().splitlines()[1:]]
    assert told == [
        "timeout: fp32: late at 1.0",
        "timeout: int8: late at 1.3",
        "timeout: fp32: late at 9.0 [3 times]",
    ]
    screen = "\n".join(drawn(ABOUT, [Metrics(GOAL).snapshot(9.0)], tuple(events), 120, 40))
    assert "timeout: fp32: late at 1.2 [3 times]" in screen
    assert "late at 1.1" not in screen
