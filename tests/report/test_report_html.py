"""The page: what it says, that it escapes, and that it needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from edgekiln.records import Budget, Build
from edgekiln.report import figures, view
from edgekiln.report.html import render
from fakes.build_record import figure, make_build, model
from fakes.odd_builds import bare, hostile, many, no_artifact, several_sizes

SECTIONS = (
    "decision", "tradeoff", "latency", "candidates", "placement", "passes", "checks", "failures", "data",
    "provenance",
)  # fmt: skip
VOID = {"meta", "link", "br", "input"}
BUILDS = {
    "whole": make_build,
    "nothing fits": no_artifact,
    "bare": bare,
    "one candidate, one sample": lambda: many(1, n=1),
    "forty": lambda: many(40),
    "forty equal": lambda: many(40, equal=True),
    "no latency": lambda: many(3, p50=None),
    "long names": lambda: many(3, name="int8-" + "verylong" * 30),
    "no labels": lambda: make_build(model=model(labels=0)),
    "no failures": lambda: make_build(failures=(), warnings=()),
    "no proofs": lambda: make_build(proofs=()),
    "several sizes": several_sizes,
}


class Page(HTMLParser):
    """Tags, attributes and the text of each section; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.section = "header"
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.sections[self.section] = self.sections.get(self.section, "") + " " + data.strip()

    def text(self, section: str) -> str:
        return " ".join(self.sections[section].split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("name", BUILDS)
def test_every_build_gives_a_well_formed_page_with_all_sections(name: str) -> None:
    page = Page(render(BUILDS[name]()))
    found = [a["id"] for a in page.all("section")]
    assert [s for s in found if s != "sizes"] == list(SECTIONS)
    assert ("sizes" in found) == (name == "several sizes")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a["href"] or "")[1:] for a in page.all("a")}
    assert targets <= set(ids)
    assert "NaN" not in "".join(page.sections.values())
    assert not re.search(
        r"\b(nan|None|inf)\b", "".join(str(a) for t, a in page.tags if t in {"circle", "path"})
    )


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = render(make_build())
    page = Page(html)
    assert not [t for t, _ in page.tags if t in {"img", "iframe", "object", "embed", "base", "form"}]
    for _, attrs in page.tags:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith(("#", "data:"))
    assert not re.search(r"https?://|@import|url\(", html)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-"
    )


def test_equal_builds_give_equal_pages() -> None:
    assert render(make_build()) == render(make_build())


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "{{ 7*7 }}"]
)
def test_a_strangers_string_stays_a_string_wherever_it_stands(text: str) -> None:
    plain, bad = Page(render(hostile("harmless"))), Page(render(hostile(text)))
    assert [t for t, _ in bad.tags] == [t for t, _ in plain.tags]
    assert {k for _, a in bad.tags for k in a} == {k for _, a in plain.tags for k in a}
    assert bad.sections.keys() == plain.sections.keys()
    for section in ("header", "decision", "candidates", "passes", "checks", "failures", "data", "provenance"):
        assert text in bad.text(section)


def test_control_and_direction_characters_do_not_reach_the_page() -> None:
    html = render(hostile("a\x00\x1b\u202eb"))
    assert not set(html) & {"\x00", "\x1b", "\u202e"}
    assert "a\ufffd\ufffd\ufffdb" in html


def test_the_card_tells_artifact_status_figures_and_how_they_came() -> None:
    text = Page(render(make_build())).text("decision")
    host, jetson, pi = text.split("Bundle")[:3]
    assert "host Proven int8-static-mse on openvino" in host
    assert "5.11 P50 5.62 P95 9.50 P99 measured , n = 200" in host
    assert "Accuracy drop 0.0 points −9.0 to 13.0 measured , n = 20" in host
    assert "Agreement 90.6 % 84.6 to 93.6 measured , n = 96" in host
    assert "Peak memory 96.0 MB measured" in host
    assert "Size 2.79 MB measured" in host
    assert "Unproven" in jetson
    assert "emulated , n = 96" in jetson
    assert "— no jetson-orin-nano-8gb is reachable from here" in jetson
    assert "predicted , P50 12.6 to 35.7" in pi
    assert "bundles/host.edgekiln" in jetson


def test_each_constraint_is_met_broken_or_unproven() -> None:
    build = make_build(budget=Budget(accuracy_drop=0.01, latency_p95_ms=50.0, size_bytes=3_000_000))
    host, jetson, pi = view.devices(build)
    assert [v.state for v in host.verdicts] == ["met", "met", "met"]
    assert [v.state for v in jetson.verdicts] == ["met", "unproven", "broken"]
    assert [v.state for v in pi.verdicts] == ["met", "unproven", "broken"]
    assert pi.verdicts[1].how == "predicted"


def test_a_lower_bound_is_met_from_above() -> None:
    host, *_ = view.devices(make_build(budget=Budget(agreement=0.9, sqnr_db=20.0)))
    assert [(v.constraint.words, v.state) for v in host.verdicts] == [
        ("Agreement ≥ 90.0 %", "met"),
        ("Signal to quantisation noise ≥ 20.0 dB", "broken"),
    ]


def test_without_an_artifact_the_best_candidate_stands_against_each_limit() -> None:
    text = Page(render(no_artifact())).text("decision")
    assert "No artifact for this device" in text
    assert "broken Latency P95 ≤ 1.00 ms the best candidate has 5.62 ms measured" in text


def test_a_missing_figure_shows_a_dash_and_its_reason() -> None:
    page = Page(render(make_build()))
    reason = "no jetson-orin-nano-8gb is reachable from here, and no rule predicts TensorRT from this machine"
    assert any(a.get("title") == reason for a in page.all("span"))
    assert f"1 — {reason}" in page.text("candidates")


def test_mixed_evidence_in_a_column_is_marked_in_each_cell() -> None:
    build = make_build()
    first, *rest = build.proofs
    guess = [
        figure("latency_p50_ms", "ms", 4.0, "published", source="a vendor's page")
        if e.what == "latency_p50_ms" else e for e in first.evidence
    ]  # fmt: skip
    mixed = msgspec.structs.replace(first, evidence=tuple(guess), latency_ms=())
    build = msgspec.structs.replace(build, proofs=(mixed, *rest))
    device = view.devices(build)[0]
    assert device.hows["latency_p50_ms"] is None
    html = render(build)
    row = html.split('<tr class="chosen" data-c="1">')[1].split("</tr>")[0]
    other = html.split('data-c="2"><td class="no">')[1].split("</tr>")[0]
    assert "published</span>" in row
    assert "measured</span>" in other


def test_every_loser_has_its_reason_and_every_candidate_its_number() -> None:
    build = make_build()
    text = Page(render(build)).text("candidates")
    for choice in build.decision.choices:
        for loser in choice.losers:
            assert loser.why in text
    for device in view.devices(build):
        assert [c.number for c in device.candidates] == list(range(1, len(device.candidates) + 1))
        assert device.candidates[0].role == "chosen"


def test_no_figure_of_the_evidence_is_left_out() -> None:
    build = make_build()
    text = Page(render(build)).text("candidates")
    assert "cosine 0.9973" in text
    assert {e.what for p in build.proofs for e in p.evidence} <= set(text.split())


def test_passes_say_what_was_kept_and_what_changed() -> None:
    text = Page(render(make_build())).text("passes")
    assert "onnxslim kept 403 → 141 −212 Constant −49 BatchNormalization" in text
    assert "onnxsim undone 403 → 148" in text
    assert "agreement fell from 0.940 to 0.932, so it was undone" in text
    assert "+271 DequantizeLinear" in text


def test_failed_and_skipped_are_told_apart() -> None:
    text = Page(render(make_build())).text("failures")
    failed, skipped = text.split("Skipped")
    assert "DequantizeLinear_17" in failed
    assert "What to do Use a symmetric recipe" in failed
    assert "float16 in float32" in skipped


def test_a_check_that_could_not_be_asked_is_no_pass() -> None:
    text = Page(render(make_build())).text("checks")
    order = [text.index(word) for word in ("Failed", "Could not be asked", "Passed")]
    assert order == sorted(order)
    assert "TensorRT-RTX 1.7.1 builder" in text[order[1] : order[2]]


def test_rejected_files_and_pictures_seen_twice_are_told() -> None:
    build = make_build()
    assert "broken.png the picture is truncated after 1,024 bytes" in Page(render(build)).text("data")
    again = msgspec.structs.replace(build, evaluation=build.calibration)
    assert "64 samples of the evaluation set" in Page(render(again)).text("data")


def test_charts_are_described_and_drawn_for_both_widths() -> None:
    page = Page(render(make_build()))
    drawings = [a for a in page.all("svg") if a.get("class") == "chart"]
    assert [a["viewbox"].split()[2] for a in drawings if a.get("viewbox")] == ["1040", "356"] * 4
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in drawings)
    assert len(page.all("desc")) == len(drawings)


@pytest.mark.parametrize(
    ("latency", "title"), [(8.0, "Latency P50, ms"), (None, "no latency was measured here")]
)
def test_the_scatter_falls_back_to_size_and_says_so(latency: float | None, title: str) -> None:
    text = Page(render(many(3, p50=latency))).text("tradeoff")
    assert title in text


def test_every_candidate_is_labelled_in_the_scatter() -> None:
    html = render(many(40, equal=True))
    for drawing in html.split('id="tradeoff"')[1].split('id="latency"')[0].split("<svg")[1:]:
        labels = re.findall(r'<text class="label \w+" data-c="(\d+)"', drawing)
        assert sorted(map(int, labels)) == list(range(1, 41))


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio of two #rrggbb colours."""
    shades = []
    for colour in (a, b):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        shades.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(shades) + 0.05) / (min(shades) + 0.05)


def test_text_colours_have_the_contrast_that_wcag_asks_for() -> None:
    style = render(bare()).split("<style>")[1].split("</style>")[0]
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in style.split(":root")[1:3]]
    for colours in themes:
        for ink in ("ink", "muted", "chosen", "front", "good", "warn", "bad"):
            for ground in ("bg", "card"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for ink, ground in (
            ("good", "good-soft"),
            ("warn", "warn-soft"),
            ("bad", "bad-soft"),
            ("ink", "chosen-soft"),
        ):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def test_every_constraint_of_the_budget_has_a_column() -> None:
    whole = Budget(**dict.fromkeys(Budget.__struct_fields__, 1))
    assert [c.column.key for c in figures.constraints(whole)] == list(Budget.__struct_fields__)


def test_a_device_that_only_failures_name_is_not_forgotten() -> None:
    build: Build = make_build()
    lost = msgspec.structs.replace(build.failures[0], device="pixel-9")
    assert "pixel-9" in [d.choice.device for d in view.devices(make_build(failures=(lost,)))]
