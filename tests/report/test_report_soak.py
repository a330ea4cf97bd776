"""The page of a soak: what it says, that strangers' strings stay text, how it looks in a real Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgekiln.prove.soak_analysis import Cause
from edgekiln.prove.soak_record import Slowdown, Soak
from edgekiln.report import soak_words
from edgekiln.report.soak_page import render
from fakes.soaks import blind_machine, hot_board

EVIL = '<script>alert(1)</script>\x1b[31m"&'


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


def said(soak: Soak) -> str:
    return re.sub(r"\s+", " ", " ".join(read(render(soak)).words))


def test_both_rates_the_slow_down_and_its_causes_are_told() -> None:
    soak = hot_board()
    text = said(soak)
    assert f"{soak.kept * 100:.0f} % of the burst rate was kept in the last third" in text
    for part in ("Burst, inferences/s", "Sustained, inferences/s", "slower from 12 min", "62.6 mJ"):
        assert part in text
    for cause in soak.slowdowns[0].causes:
        assert cause.what[1:] in text
    for panel in ("Latency, ms", "Clock, MHz", "Temperature, °C", "Power, W", "passive trip point"):
        assert panel in text
    assert "lost: ina3221 VDD_IN (power_watts): it is no longer there" in text
    assert "sudo nvpmodel -m 2 && sudo jetson_clocks" in text


def test_a_soak_that_was_cut_short_on_a_blind_machine_says_so() -> None:
    text = said(blind_machine())
    assert "Cut short after 12 of 60 s" in text
    assert "7 blocks of calls are too few for a rate" in text
    assert "Not drawn: power: this machine has no sensor of power that can be read" in text
    assert "Too short to tell" in text
    assert "Clock, MHz" not in text


def test_strangers_strings_stay_text() -> None:
    soak = hot_board()
    change = soak.slowdowns[0].change
    evil = replace(
        soak,
        id=f"a: {EVIL}",
        engine_version=EVIL,
        hottest_of=EVIL,
        clock_of=EVIL,
        watts_of=EVIL,
        why=EVIL,
        ended="failed",
        unfit=(EVIL,),
        environment={EVIL: EVIL},
        slowdowns=(Slowdown(change=change, causes=(Cause(kind="clock", what=EVIL),)),),
        events=tuple(replace(e, what=EVIL) for e in soak.events),
        courses=tuple(replace(c, sensor=EVIL) for c in soak.courses),
        trips=tuple(replace(t, zone=EVIL, kind=EVIL) for t in soak.trips),
    )
    page = render(evil)
    assert "script" not in read(page).tags
    assert "\x1b" not in page


def test_equal_soaks_are_equal_pages_without_a_script_and_with_unique_ids() -> None:
    page = render(hot_board())
    assert page == render(hot_board())
    found = read(page)
    assert "script" not in found.tags
    assert len(found.ids) == len(set(found.ids))
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (63, "1 min 03 s"), (720, "12 min"), (3900, "1 h 05 min")],
)
def test_moments_are_written_for_people(seconds: float, text: str) -> None:
    assert soak_words.clock(seconds) == text


def test_a_rate_that_did_not_fall_is_not_called_throttled() -> None:
    soak = hot_board()
    steady = replace(soak, kept=0.97, kept_interval=(0.96, 0.98))
    unsure = replace(soak, kept=0.8, kept_interval=(0.5, 1.1))
    for one in (steady, unsure):
        assert soak_words.headline(one).startswith("No slower at the end than at the start")
    assert soak_words.headline(replace(soak, ended="interrupted")).startswith("Cut short: ")


@pytest.mark.parametrize("seconds", [20.0, 1800.0, 4 * 3600.0])
def test_a_line_is_drawn_for_every_stretch_and_broken_where_nothing_is_known(seconds: float) -> None:
    page = render(hot_board(seconds))
    power = re.findall(r'<path class="course power" d="([^"]*)"', page)[0]
    assert power.count("M") == 2
    assert len(re.findall(r"[ML]", power)) == 90 - 4
    assert "nan" not in page
    unit = "seconds" if seconds < 180 else "minutes" if seconds < 3 * 3600 else "hours"
    assert f"Time since the first call, {unit}" in page


# ---------------------------------------------------------------- in a browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1240, "wide")])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, width: int, shown: str) -> None:
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("Chromium is not installed: run `make setup`, or apt-get install chromium")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(hot_board()))
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    script = (
        "const d = document.querySelector('iframe').contentDocument;"
        "const seen = [...d.querySelectorAll('.chart')].filter(c => c.getBoundingClientRect().width > 0);"
        f"return [d.documentElement.scrollWidth <= {width}, seen.length,"
        " seen[0].parentElement.className].join(' ');"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<!doctype html><meta charset="utf-8"><iframe srcdoc="{quoted}"'
        f' style="border:0;width:{width}px;height:4000px"></iframe><pre id="said"></pre>'
        f"<script>onload = () => {{ document.getElementById('said').textContent ="
        f" (() => {{{script}}})(); }}</script>",
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
    assert found[1] == f"true 1 {shown}"
