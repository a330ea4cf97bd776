"""The page of a session: what it says, that strangers' strings stay text, how it looks in a real Chromium."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from edgekiln.cli import show_played
from edgekiln.report import run_words
from edgekiln.report.run_page import render
from edgekiln.runtime.metrics import PASSED_OVER, Metrics
from edgekiln.runtime.summary import Played, Timeline, played
from edgekiln.runtime.vocabulary import Call, Event, EventKind, Goal, Health, Setting
from fakes.sessions import GOAL, LADDER, answer, hot_played

EVIL = '<script>alert(1)</script>\x1b[31m"&[red]'
HOT = hot_played(60)


class Text(HTMLParser):
    """The visible text, and the tags and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Text:
    found = Text()
    found.feed(page)
    return found


def said(found: Played) -> str:
    return re.sub(r"\s+", " ", " ".join(read(render(found)).words))


def on_terminal(found: Played) -> str:
    out = Console(file=io.StringIO(), width=120)
    show_played.summary(found, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def session(metrics: Metrics, *looks_s: float, goal: Goal = GOAL) -> Played:
    timeline = Timeline()
    for at_s in looks_s:
        timeline.add(metrics.snapshot(at_s))
    return played(
        bundle="b", model="m", device="d", engine="e", goal=goal, ladder=LADDER, timeline=timeline,
        events=metrics.recent(),
    )  # fmt: skip


def test_the_page_tells_the_whole_session() -> None:
    text, total = said(HOT), HOT.snapshot.total
    assert f"answered of {total.entered:,}" in text
    assert f"{total.late} of {total.done:,} answers late" in text
    for panel in ("Latency, ms", "Rung", "Frames late or lost", "Temperature, °C", "Power, W"):
        assert panel in text
    for limit in ("deadline 50.0 ms", "trip point 88.0 °C", "budget 10.0 W"):
        assert f"dotted: {limit}" in text
    for event in HOT.events:
        assert event.why in text
    for rung in LADDER:
        assert text.count(rung.id) >= 3
    assert "queue full" in text
    assert "failed: the engine hung" in text
    assert "mJ" in text


def test_the_verdict_follows_the_figures() -> None:
    assert run_words.headline(HOT).startswith("The deadline was missed: 98.9 % in time")
    kept = replace(HOT, goal=replace(GOAL, percentile=0.98))
    assert run_words.headline(kept).startswith("The deadline was kept: 98.9 % in time")


def test_a_frame_without_an_answer_is_not_in_time_unless_nobody_meant_to_answer_it() -> None:
    metrics = Metrics(GOAL)
    metrics.frame_in("gate", 10)
    metrics.done("gate", answer(1.0))
    metrics.dropped("gate", 6, PASSED_OVER)
    assert run_words.in_time(metrics.snapshot(1.0).total) == 1.0
    metrics.dropped("gate", 2, "overtaken")
    metrics.failed("gate", 1, "no answer in time")
    assert run_words.in_time(metrics.snapshot(1.0).total) == 0.25
    assert run_words.headline(replace(HOT, ended="interrupted")).startswith("Cut short: the deadline")


def test_the_terminal_tells_the_same() -> None:
    text = on_terminal(HOT)
    assert run_words.headline(HOT) in text
    for rung in LADDER:
        assert rung.id in text
    assert "36.0 s: hung: openvino: no answer (restarted)" in text
    assert "trip point 88.0 °C" in text


# ---------------------------------------------------------------- what is missing


def test_a_session_without_a_frame_or_a_sensor_says_so() -> None:
    found = session(Metrics(GOAL), 1.0, 2.0)
    text = said(found)
    assert "No frame came in" in text
    assert "none was answered" in text
    for what in (
        "latency: no frame was answered",
        "temperature: no thermal sensor",
        "power: no sensor of power",
    ):
        assert f"Not drawn: {what}" in text
    assert "None" not in text
    assert "nan" not in render(found)
    assert "no frame came in" in on_terminal(found).lower()


def test_a_session_that_was_over_at_once_has_nothing_to_draw() -> None:
    found = session(Metrics(GOAL), 0.0)
    assert found.rows == ()
    assert "over before there was anything to draw" in said(found)
    on_terminal(found)


def test_one_frame_is_a_session() -> None:
    metrics = Metrics(GOAL, LADDER)
    metrics.setting(Setting(rung=LADDER[0].id), LADDER[0], "the best", 0.0)
    metrics.frame_in("gate")
    metrics.done("gate", answer(20.0), quality=1.0)
    page = render(session(metrics, 0.03))
    assert 'class="spread"' in page
    assert "1 answer late" in re.sub(r"\s+", " ", page)
    assert 'class="rung"' in page


def test_a_sensor_that_came_late_breaks_the_line() -> None:
    rows = list(HOT.rows)
    for at in (10, 11, 12):
        rows[at] = replace(rows[at], temperature_c=None, power_watts=None)
    page = render(replace(HOT, rows=tuple(rows)))
    heat = re.findall(r'<path class="course heat" d="([^"]*)"', page)[0]
    assert heat.count("M") == 2
    assert len(re.findall(r"[ML]", heat)) == 60 - 3


def test_a_limit_far_away_is_told_and_not_drawn() -> None:
    rows = tuple(replace(r, temperature_c=20.0) for r in HOT.rows)
    assert "far below the trip point 88.0 °C" in said(replace(HOT, rows=rows))


amounts = st.floats(1e-3, 1e7) | st.sampled_from([0.0, float("inf"), float("nan")])
kinds: tuple[EventKind, ...] = ("change", "hung", "log-failed", "link-up")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_session_can_be_drawn(data: st.DataObject) -> None:
    goal = Goal(
        deadline_ms=data.draw(st.floats(0.01, 1e5)), power_watts=data.draw(st.none() | st.floats(0.01, 500))
    )
    metrics, now, looks = Metrics(goal), 0.0, Timeline(8)
    for _ in range(data.draw(st.integers(1, 20))):
        now += data.draw(st.sampled_from([0.0, 1e-3, 1.0, 5000.0]))
        if data.draw(st.booleans()):
            rung = data.draw(st.sampled_from(LADDER))
            metrics.setting(Setting(rung=rung.id, every=2), rung, "why", now)
        for _ in range(data.draw(st.integers(0, 3))):
            metrics.frame_in("s")
            metrics.done("s", answer(data.draw(amounts)), quality=data.draw(st.none() | st.floats(0, 1)))
        metrics.call(Call(at_s=now, rung="r", batch=1, latency_ms=data.draw(st.floats(0, 1e6))))
        heat, trip = data.draw(st.none() | st.floats(-60, 250)), data.draw(st.none() | st.floats(1, 150))
        power = data.draw(st.none() | st.floats(0, 1000))
        metrics.health(Health(at_s=now, temperature_c=heat, trip_c=trip, power_watts=power))
        metrics.event(
            Event(at_s=now + data.draw(st.floats(-10, 10)), kind=data.draw(st.sampled_from(kinds)), what="x")
        )
        looks.add(metrics.snapshot(now))
    found = played(
        bundle="b",
        model="m",
        device="d",
        engine="e",
        goal=goal,
        ladder=LADDER,
        timeline=looks,
        events=metrics.recent(),
    )
    page = render(found)
    assert not re.search(r"(?<![\w-])(?:nan|inf)(?!\w)", page)
    assert page.rstrip().endswith("</html>")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Played) == found
    on_terminal(found)


# ---------------------------------------------------------------- strangers


def test_strangers_strings_stay_text() -> None:
    snapshot = HOT.snapshot
    assert snapshot.health is not None
    evil = replace(
        HOT,
        bundle=EVIL, model=EVIL, device=EVIL, engine=EVIL, why=EVIL, ended="failed", notes=(EVIL,), when=EVIL,
        environment={EVIL: EVIL},
        ladder=tuple(replace(r, id=EVIL) for r in LADDER[:1]),
        events=tuple(replace(e, what=EVIL, why=EVIL, done=EVIL) for e in HOT.events),
        rows=tuple(replace(r, rung=EVIL, shares={EVIL: 1.0}) for r in HOT.rows),
        snapshot=replace(
            snapshot,
            streams={EVIL: replace(snapshot.total, dropped={EVIL: 1})},
            setting=Setting(rung=EVIL),
            setting_why=EVIL,
            rungs={EVIL: snapshot.rungs[LADDER[0].id]},
            health=replace(snapshot.health, zone=EVIL, power_of=EVIL),
        ),
    )  # fmt: skip
    page = render(evil)
    assert "script" not in read(page).tags
    assert "\x1b" not in page
    shown = on_terminal(evil)
    assert "\x1b" not in shown
    assert "[red]" in shown


def test_equal_sessions_are_equal_pages_without_a_script_and_with_unique_ids() -> None:
    page = render(HOT)
    assert page == render(HOT)
    found = read(page)
    assert "script" not in found.tags
    assert len(found.ids) == len(set(found.ids))
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    data, page = show_played.written(replace(HOT, bundle="gate \ud800"), tmp_path / "out")
    assert msgspec.json.decode(data.read_bytes(), type=Played).snapshot == HOT.snapshot
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


# ---------------------------------------------------------------- in a browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCRIPT = """
  const d = document.querySelector('iframe').contentDocument;
  const seen = [...d.querySelectorAll('.chart')].filter(c => c.getBoundingClientRect().width > 0);
  const texts = [...seen[0].querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const clashes = [];
  texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
    const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (x > 1 && y > 3) clashes.push(a + ' / ' + b);
  }));
  const out = texts.filter(([, p]) => p.right > WIDTH || p.left < 0);
  out.forEach(([a]) => clashes.push(a + ' leaves the page'));
  return [d.documentElement.scrollWidth <= WIDTH, seen.length, seen[0].parentElement.className,
    clashes.join('; ') || 'no clash'].join(' ');
"""


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1240, "wide")])
def test_nothing_is_wider_than_the_screen_and_no_text_covers_another(
    tmp_path: Path, width: int, shown: str
) -> None:
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("Chromium is not installed: run `make setup`, or apt-get install chromium")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(HOT))
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><iframe srcdoc="{quoted}"'
        f' style="border:0;width:{width}px;height:4000px"></iframe><pre id="said"></pre>'
        f"<script>onload = () => {{ document.getElementById('said').textContent ="
        f" (() => {{{SCRIPT.replace('WIDTH', str(width))}}})(); }}</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r'<pre id="said">([^<]*)</pre>', done.stdout)
    assert found is not None
    assert found[1] == f"true 1 {shown} no clash"
