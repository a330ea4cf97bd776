"""A soak as one HTML file that opens without a network and runs no script."""

from __future__ import annotations

from importlib import resources
from typing import Any

from edgekiln import __version__
from edgekiln.prove.soak_record import Course, Soak
from edgekiln.report import numbers, soak_charts, soak_words
from edgekiln.report.charts import NARROW, WIDE
from edgekiln.report.html import environment
from edgekiln.report.soak_charts import Band, Curve, Mark, Panel


def render(soak: Soak) -> str:
    """``soak.html`` as text, in the style of the build's report. Every string of the soak is escaped."""
    from markupsafe import Markup

    pages = environment()
    pages.globals.update(draw=Markup, clock=soak_words.clock)
    folder = resources.files("edgekiln.report").joinpath("templates")
    style = "\n".join(folder.joinpath(f).read_text(encoding="utf-8") for f in ("report.css", "soak.css"))
    page = pages.get_template("soak.html.j2")
    return page.render(style=Markup(style), version=__version__, soak=soak, **_context(soak))


def _context(soak: Soak) -> dict[str, Any]:
    return {
        "name": soak_words.name(soak),
        "headline": soak_words.headline(soak),
        "rates": soak_words.rates(soak),
        "charts": (_chart(soak, WIDE, "w"), _chart(soak, NARROW, "n")),
        "missing": soak_words.missing(soak),
        "slowdowns": [
            {
                "at": soak_words.clock(s.change.at_s),
                "sentence": soak_words.slowdown(s),
                "causes": [c.what for c in s.causes],
            }
            for s in soak.slowdowns
        ],
        "no_slowdown": soak_words.no_slowdown(soak),
        "ranges": soak_words.ranges(soak),
        "courses": [_course(c) for c in soak.courses],
        "events": soak_words.events(soak),
    }


_FIGURES = {
    "clock_mhz": "clock, MHz",
    "temperature_c": "temperature, °C",
    "power_watts": "power, W",
    "share": "share",
    "cpus": "CPUs",
    "load": "load",
}


def _course(course: Course) -> dict[str, str]:
    known = [m for m in course.means if m is not None] or [float("nan")]
    figures = {"first": known[0], "last": known[-1], "least": min(known), "most": max(known)}
    shown = {key: numbers.significant(value) for key, value in figures.items()}
    return {"sensor": course.sensor, "name": _FIGURES.get(course.quantity, course.quantity), **shown}


def _chart(soak: Soak, width: int, key: str) -> str:
    middles = [b.start_s + b.seconds / 2 for b in soak.bins]
    end = max(soak.lasted_s, soak.bins[-1].start_s + soak.bins[-1].seconds)
    throttle = soak.throttle
    marks = [
        Mark(s.change.at_s, f"slower from {soak_words.clock(s.change.at_s)}" if s is throttle else "")
        for s in soak.slowdowns
    ]
    bands = [
        Band(rate.start_s, rate.end_s, word)
        for rate, word in ((soak.burst, "burst"), (soak.sustained, "sustained"))
        if rate.start_s is not None and rate.end_s is not None
    ]
    panels = _panels(soak)
    told = "; ".join(p.title for p in panels)
    description = numbers.plain(f"{soak_words.name(soak)}: {soak_words.headline(soak)} Panels: {told}")
    return soak_charts.timeline(middles, panels, marks, bands, end, width, f"soak-{key}", description)


def _panels(soak: Soak) -> list[Panel]:
    p95 = [b.p95_ms for b in soak.bins]
    curves = [Curve([b.p50_ms for b in soak.bins], "p50", "median")]
    if any(v is not None for v in p95):
        curves.insert(0, Curve(p95, "p95", "P95"))
    panels = [Panel("Latency, ms", curves)]
    trip = min((t for t in soak.trips if t.zone == soak.hottest_of), key=lambda t: t.celsius, default=None)
    limit = None if trip is None else trip.celsius
    label = "" if trip is None else f"{trip.kind} trip point"
    if any(v is not None for v in soak.clock_mhz):
        panels.append(Panel("Clock, MHz", [Curve(soak.clock_mhz, "clock")]))
    if any(v is not None for v in soak.hottest_c):
        panels.append(Panel("Temperature, °C", [Curve(soak.hottest_c, "heat")], limit, label, span=0.08))
    if any(v is not None for v in soak.watts):
        panels.append(Panel("Power, W", [Curve(soak.watts, "power")]))
    others = next((c for c in soak.courses if c.sensor == "other processes"), None)
    if others is not None:
        panels.append(Panel("Other processes, CPUs", [Curve(others.means, "load")], shown=(0.0, 1.0)))
    return panels
