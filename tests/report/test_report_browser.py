"""The page in a real Chromium, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekiln.records import Build
from edgekiln.report.html import render
from fakes.build_record import make_build
from fakes.odd_builds import bare, many

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"

Open = Callable[..., tuple[str, str]]


@pytest.fixture
def chromium(tmp_path: Path) -> Open:
    """Runs Chromium with an empty profile; gives what it printed and what the page logged."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("Chromium is not installed: run `make setup`, or apt-get install chromium")

    def run(page: Path, *flags: str) -> tuple[str, str]:
        profile = tmp_path / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        command = [
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            *flags,
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        logged = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
        return done.stdout, logged

    return run


def written(build: Build, folder: Path) -> Path:
    page = folder / "report.html"
    page.write_text(render(build), encoding="utf-8")
    return page


def probed(page: Path, script: str) -> Path:
    """The same page in a frame of 390 pixels beside a script that looks into it, for a file of its own.

    The report's own policy lets nothing in from outside, so the probe's page holds the report as srcdoc
    without that policy; layout does not depend on it.
    """
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probe = page.with_name("probe.html")
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    probe.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><iframe srcdoc="{quoted}"'
        f' style="border:0;width:390px;height:4000px"></iframe><pre id="said"></pre><script>'
        "onload = () => { const inner = document.querySelector('iframe').contentDocument;"
        f"document.getElementById('said').textContent = String((() => {{{script}}})());}}"
        "</script>",
        encoding="utf-8",
    )
    return probe


def said(dom: str) -> str:
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.S)
    assert found is not None
    return found[1]


def test_the_page_renders_and_breaks_no_policy(chromium: Open, tmp_path: Path) -> None:
    dom, logged = chromium(written(make_build(), tmp_path), "--dump-dom")
    assert logged == ""
    assert dom.count('<svg class="chart"') == 8
    assert dom.rstrip().endswith("</html>")


def test_the_script_runs_under_its_hash_and_no_other_does(chromium: Open, tmp_path: Path) -> None:
    page = written(many(40), tmp_path)
    dom, _ = chromium(page, "--dump-dom")
    field = re.search(r'<input class="filter"[^>]*>', dom)
    assert field is not None
    assert "hidden" not in field[0]
    page.write_text(page.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>"))
    dom, logged = chromium(page, "--dump-dom")
    assert "Content Security Policy" in logged
    assert "<title>taken" not in dom


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_screenshot_shows_the_page_in_both_themes(chromium: Open, tmp_path: Path, theme: str) -> None:
    shot = tmp_path / f"{theme}.png"
    flags = ("--window-size=1280,2400", f"--screenshot={shot}", *([DARK] if theme == "dark" else []))
    chromium(written(make_build(), tmp_path), *flags)
    with Image.open(shot) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    assert grey.shape == (2400, 1280)
    background = float(np.median(grey))
    assert background > 230 if theme == "light" else background < 50
    rows = (np.abs(grey - background) > 60).any(axis=1)
    assert rows[:800].mean() > 0.2
    assert rows[-800:].mean() > 0.2


@pytest.mark.parametrize("name", ["whole", "long", "bare"])
def test_nothing_overflows_a_telephone(chromium: Open, tmp_path: Path, name: str) -> None:
    builds = {"whole": make_build, "long": lambda: many(3, name="int8-" + "verylong" * 30), "bare": bare}
    script = """
      const wide = [...inner.querySelectorAll('body *')].filter((e) => !e.closest('svg, thead')
        && e.getClientRects().length && e.getBoundingClientRect().right > 391);
      const first = wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 90));
      return [inner.documentElement.scrollWidth, ...first].join(' | ');
    """
    dom, _ = chromium(
        probed(written(builds[name](), tmp_path), script), "--dump-dom", "--window-size=500,4000"
    )
    assert said(dom) == "390"


def test_labels_of_the_charts_do_not_overlap_in_the_fonts_of_this_machine(
    chromium: Open, tmp_path: Path
) -> None:
    script = """
      const clashes = [];
      for (const chart of inner.querySelectorAll('#tradeoff .narrow svg.chart')) {
        const labels = [...chart.querySelectorAll('text.label')];
        const boxes = labels.map((t) => [t.textContent, t.getBoundingClientRect()]);
        boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
          const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
          const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
          if (x > 1 && y > 2) clashes.push(a + ' / ' + b);
        }));
        clashes.push(...boxes.filter(([, p]) => p.right > 390).map(([a]) => a + ' leaves the page'));
      }
      return clashes.join('; ') || 'none of ' + inner.querySelectorAll('#tradeoff .narrow text.label').length;
    """
    dom, _ = chromium(probed(written(make_build(), tmp_path), script), "--dump-dom", "--window-size=500,4000")
    assert said(dom) == "none of 11"
