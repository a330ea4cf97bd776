"""A session as one HTML file that opens without a network and runs no script."""

from __future__ import annotations

from importlib import resources
from typing import Any

from edgekiln.report import numbers, run_charts, run_words, soak_words
from edgekiln.report.charts import NARROW, WIDE
from edgekiln.report.html import environment
from edgekiln.runtime.histogram import RELATIVE_ERROR
from edgekiln.runtime.summary import Played


def render(found: Played) -> str:
    """``summary.html`` as text, in the style of the build's report. All its strings are escaped."""
    from markupsafe import Markup

    found = run_words.with_gathered(found)
    pages = environment()
    pages.filters["percent"] = numbers.percent
    pages.globals.update(draw=Markup, clock=soak_words.clock)
    folder = resources.files("edgekiln.report").joinpath("templates")
    sheets = ("report.css", "soak.css", "run.css")
    style = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in sheets)
    page = pages.get_template("run.html.j2")
    return page.render(style=Markup(style), run=found, **_context(found))


def _context(found: Played) -> dict[str, Any]:
    snapshot = found.snapshot
    p50, p95, p99 = run_words.latency(snapshot.latency)
    total = snapshot.total
    return {
        "headline": run_words.headline(found),
        "charts": (_chart(found, WIDE, "w"), _chart(found, NARROW, "n")),
        "missing": run_words.missing(found),
        "latency": {"p50": p50, "p95": p95, "p99": p99, "n": snapshot.latency.n},
        "error": numbers.percent(RELATIVE_ERROR),
        "in_time": run_words.in_time(total),
        "total": total,
        "dropped": sum(total.dropped.values()),
        "failed": sum(total.failed.values()),
        "streams": run_words.streams(snapshot),
        "rungs": run_words.rungs(found),
        "events": run_words.events(found),
        "faults": {e.kind for e in found.events} - run_words.GOOD_EVENTS,
        "per_row": soak_words.clock(_usual(found)) if _usual(found) >= 0.5 else "less than a second",
        "busy": snapshot.busy_s / snapshot.seconds if snapshot.seconds > 0 else None,
        "setting": run_words.setting(snapshot.setting),
    }


def _usual(found: Played) -> float:
    """Seconds of a row, the median."""
    spans = sorted(r.end_s - r.start_s for r in found.rows)
    return spans[len(spans) // 2] if spans else 0.0


def _chart(found: Played, width: int, key: str) -> str:
    told = numbers.plain(f"{found.bundle} on {found.device}: {run_words.headline(found)}")
    return run_charts.timeline(found, width, f"run-{key}", told)
