"""Where operators run and which sizes an artifact takes, as both reports tell it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from test_report_html import Page

from edgekiln.records import Placement
from edgekiln.report import placement, view
from edgekiln.report.html import render
from edgekiln.report.terminal import print_build
from fakes.build_record import make_build
from fakes.odd_builds import PLACED, several_sizes


def printed(width: int = 100) -> str:
    out = io.StringIO()
    print_build(several_sizes(), Console(width=width, file=out), Path("out"))
    return out.getvalue()


def test_the_page_says_for_each_provider_what_it_takes_and_what_falls_back() -> None:
    text = Page(render(several_sizes())).text("placement")
    assert "OpenVINO CPU 98 of 98 1 none" in text
    assert "TensorRT (GPU) 91 of 98 4 5 Resize, 2 NonMaxSuppression" in text
    assert "measured the CPU plugin" in text
    assert "NNAPI — — — not known the checker was not installed" in text


def test_artifacts_that_a_provider_treats_alike_share_a_row_and_others_do_not() -> None:
    jetson = next(d for d in view.devices(several_sizes()) if d.choice.device.startswith("jetson"))
    rows = placement.grouped(jetson.candidates)
    by_provider = {r.provider: r for r in rows}
    tensorrt = [c.name for c in jetson.candidates if c.proof.artifact.target == "tensorrt"]
    assert len(tensorrt) > 1
    assert list(by_provider["TensorRT (GPU)"].names) == tensorrt
    first = jetson.candidates[0].proof
    other = msgspec.structs.replace(PLACED["tensorrt"], partitions=5)
    changed = msgspec.structs.replace(
        first, artifact=msgspec.structs.replace(first.artifact, placement=(other,))
    )
    assert placement.placed(changed)[0].partitions == "5"
    assert placement.placed(changed) != placement.placed(first)


def test_a_provider_that_takes_nothing_is_not_one_that_was_not_asked() -> None:
    made = make_build().proofs[0]

    def row(**fields: object) -> placement.Placed:
        one = Placement(provider="NPU", how="emulated", **fields)  # type: ignore[arg-type]
        artifact = msgspec.structs.replace(made.artifact, placement=(one,))
        return placement.placed(msgspec.structs.replace(made, artifact=artifact))[0]

    nothing = row(operators=9, taken=0, partitions=0, fallback={"Conv": 9})
    assert (nothing.taken, nothing.share, nothing.fallback) == ("0 of 9", 0.0, "9 Conv")
    unasked = row(detail="the simulator is not installed")
    assert (unasked.taken, unasked.share, unasked.fallback) == ("—", None, "")


def test_the_page_shows_every_size_of_every_artifact_and_how_it_is_made() -> None:
    page = Page(render(several_sizes()))
    text = page.text("sizes")
    assert "224 × 224 base measured 320 × 320 measured 320 × 416 measured" in text
    assert "320 × 416 emulated" in text.partition("jetson")[2].partition("raspberry")[0]
    assert "one flexible file" in text
    assert "a file per size" in text
    assert "Agreement 71.0 %" in text
    assert "SQNR 12.5 dB" in text
    assert not [a for a in Page(render(make_build())).all("section") if a["id"] == "sizes"]


@pytest.mark.parametrize(("drop", "state"), [(0.006, "met"), (0.2, "broken")])
def test_a_constraint_is_judged_at_the_size_where_it_is_worst(drop: float, state: str) -> None:
    host = next(d for d in view.devices(several_sizes(drop)) if d.choice.device == "host")
    verdict = next(v for v in host.verdicts if v.constraint.column.key == "accuracy_drop")
    assert verdict.detail.endswith(" points at 320x416")
    assert verdict.state == state
    latency = next(v for v in host.verdicts if v.constraint.column.key == "latency_p95_ms")
    assert "320" not in latency.detail


def test_the_terminal_tells_both_of_the_chosen_artifacts() -> None:
    text = printed()
    assert "98 of 98" in text
    assert "5 Resize" in text
    assert "one flexible file for 224x224, 320x320, 320x416" in " ".join(text.split())
    assert "worst accuracy drop 0.6 points at 320x416" in " ".join(text.split())
