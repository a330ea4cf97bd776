"""The report as one HTML file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgekiln.records import Build
from edgekiln.report import charts, figures, layers, numbers, placement, view

if TYPE_CHECKING:
    import jinja2


def render(build: Build) -> str:
    """``report.html`` of a build, as text. Every string of the build is escaped; equal builds, equal text.

    The page holds its style and a small script, which the content security policy allows by its hash and
    without which everything can still be read.
    """
    from markupsafe import Markup

    pages = environment()
    pages.globals.update(
        mark=lambda how: Markup(charts.word_mark(how)),
        draw=Markup,
        nodes_bar=lambda a, b, most: Markup(charts.nodes_bar(a, b, most)),
        op_changes=view.op_changes,
        shape=view.shape,
    )
    script = resources.files("edgekiln.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = resources.files("edgekiln.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    page = pages.get_template("report.html.j2")
    return page.render(style=Markup(style), script=Markup(script), script_hash=digest, **_context(build))


def environment() -> jinja2.Environment:
    """What every page is made with: all strings escaped, a name that is missing is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("edgekiln.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=safe,
    )
    made.filters.update(
        {
            "seconds": numbers.seconds,
            "megabytes": numbers.megabytes,
            "significant": numbers.significant,
            "any_value": any_value,
            "count": numbers.count,
            "sentence": numbers.sentence,
        }
    )
    return made


_VALIDATION = "Where a search for mixed precision holds its bound."


def _context(build: Build) -> dict[str, Any]:
    sentence, state = view.headline(build)
    shown = view.devices(build)
    return {
        "build": build,
        "devices": shown,
        "headline": sentence,
        "state": state,
        "status": view.STATUS,
        "constraints": figures.constraints(build.decision.budget, build.proofs),
        "failed": view.troubles(build, "failed"),
        "skipped": view.troubles(build, "skipped"),
        "warnings": (*build.warnings, *(w for w in build.model.warnings if w not in build.warnings)),
        "overlap": view.overlap(build),
        "hows": figures.HOW_WORDS,
        "datasets": (
            ("Calibration", build.calibration, "Sets the ranges of quantised tensors."),
            ("Evaluation", build.evaluation, "Gives the accuracy."),
            ("Holdout", build.holdout, "Gives the agreement with the original model."),
            *((("Validation", build.validation, _VALIDATION),) if build.validation else ()),
        ),
        "placements": [(d, placement.grouped(d.candidates)) for d in shown],
        "layers": [(d, layers.of(d.candidates, d.key)) for d in shown],
        "sizes": [(d, *placement.sized(d.candidates)) for d in shown],
        "any_checks": any(c.proof.artifact.checks for d in shown for c in d.candidates),
        "long_title": figures.long_title,
        "latency": figures.LATENCY,
        "quality": figures.QUALITY,
    }


def safe(value: object) -> object:
    """Strangers' strings lose control characters; what is marked safe and what is not text stays as it is."""
    return numbers.plain(value) if type(value) is str else value


def any_value(value: object) -> str:
    """A value of unknown unit: figures with significant digits, switches as words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return numbers.significant(value, 4) if isinstance(value, float) else str(value)
