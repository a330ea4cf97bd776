"""What of a bundle runs on this machine, by which engine, and how good it is said to be."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.bundle.unpack import opened
from edgekiln.records import Evidence
from edgekiln.runtime.candidates import Unusable, candidates, ladder, survey
from edgekiln.runtime.quality import KINDS, Known, pixels_factor, qualities, signal_share
from edgekiln.runtime.vocabulary import Candidate
from fakes.bundles import keep, repack
from fakes.runtime_bundle import Part, runtime_bundle

X86 = platform.machine() in {"x86_64", "AMD64"}


def surveyed(path: Path, *parts: Part, emulated: bool = True) -> tuple[list[Candidate], list[Unusable]]:
    with opened(runtime_bundle(path / "b.edgekiln", parts)) as held:
        found, rows = survey(held, 2, emulated=emulated)
        assert candidates(held, 2, emulated=emulated) == found
    return list(found), list(rows)


def test_every_artifact_at_every_size_in_the_bundles_order(tmp_path: Path) -> None:
    found, rows = surveyed(
        tmp_path,
        Part("fp32", sizes=((32, 32), (24, 40)), ms=3.0),
        Part("bf16", engine="openvino", per_size=True, sizes=((32, 32), (16, 16)), ms=1.0),
        Part("narrow"),
    )
    assert not rows
    assert [(c.rung.id, c.rung.size, c.engine, c.threads, c.note) for c in found] == [
        ("onnxruntime.fp32@32x32", (32, 32), "onnxruntime", 2, ""),
        ("onnxruntime.fp32@24x40", (24, 40), "onnxruntime", 2, ""),
        ("openvino.bf16@32x32", (32, 32), "openvino", 2, ""),
        ("openvino.bf16@16x16", (16, 16), "openvino", 2, ""),
        ("onnxruntime.narrow", (32, 32), "onnxruntime", 2, ""),
    ]
    assert [c.rung.expected_ms for c in found] == [3.0, None, 1.0, None, None]
    assert all((Path(c.folder).name == "model") == (c.artifact.recipe == "fp32") for c in found)


def test_an_engine_that_is_not_here_is_stood_in_for_with_a_note_or_a_row(tmp_path: Path) -> None:
    parts = (Part("int8", engine="tensorrt", ms=1.0), Part("fp32"))
    found, rows = surveyed(tmp_path, *parts)
    assert not rows
    assert found[0].engine == "onnxruntime"
    assert found[0].note.startswith("emulated by onnxruntime: the Python package tensorrt is not installed")
    assert found[0].rung.expected_ms is None, "a Jetson's latency says nothing of this machine"
    found, rows = surveyed(tmp_path, *parts, emulated=False)
    assert [c.rung.id for c in found] == ["onnxruntime.fp32"]
    assert [(r.artifact_id, r.engine) for r in rows] == [("tensorrt.int8", "tensorrt")]
    assert "tensorrt is not installed" in rows[0].why


def test_what_no_engine_here_can_run_is_a_row_with_both_reasons(tmp_path: Path) -> None:
    found, rows = surveyed(
        tmp_path,
        Part("fp32", engine="web", proof_engine="web"),
        Part("odd", engine="tensorrt", proof_engine="web"),
        Part("fp32"),
    )
    assert [c.rung.id for c in found] == ["onnxruntime.fp32"]
    assert "browser" in rows[0].why
    assert "tensorrt" in rows[1].why
    assert "browser" in rows[1].why
    assert all(r.cure for r in rows)


@pytest.mark.skipif(not X86, reason="this CPU has the half-precision arithmetic itself")
def test_arithmetic_that_is_emulated_is_told(tmp_path: Path) -> None:
    found, _ = surveyed(tmp_path, Part("fp16", options={"arithmetic": "fp16"}))
    assert found[0].note == "emulated: no fp16 arithmetic in onnxruntime here"


def test_the_ladder_goes_from_the_best_to_the_fastest_of_equals(tmp_path: Path) -> None:
    found, _ = surveyed(
        tmp_path,
        Part("slow", quality=0.9, ms=5.0),
        Part("untimed", quality=0.9),
        Part("best", quality=1.0, ms=9.0),
        Part("fast", quality=0.9, ms=1.0),
    )
    assert [r.id.partition(".")[2] for r in ladder(found)] == ["best", "fast", "slow", "untimed"]


def test_costs_are_the_bundles_own_measured_ones(tmp_path: Path) -> None:
    figures = {
        "energy_mj": (12.0, "mJ"),
        "peak_memory_bytes": (9e6, "bytes"),
        "engine_memory_bytes": (4e6, "bytes"),
    }
    (one,), _ = surveyed(tmp_path, Part("fp32", ms=2.0, figures=figures))
    assert (one.rung.expected_ms, one.rung.expected_mj, one.rung.memory_bytes) == (2.0, 12.0, 4_000_000)
    (one,), _ = surveyed(tmp_path, Part("fp32", ms=2.0, figures=figures, how="emulated"))
    assert (one.rung.expected_ms, one.rung.expected_mj, one.rung.memory_bytes) == (None, None, None)


def test_a_bundle_of_schema_1_has_its_figures_in_a_file(tmp_path: Path) -> None:
    def older(told: dict[str, object]) -> None:
        told["schema"] = 1
        del told["alternates"], told["evidence"]

    new = runtime_bundle(tmp_path / "new.edgekiln", [Part("fp32", quality=0.7, ms=2.0)])
    with opened(repack(new, tmp_path / "old.edgekiln", keep, older)) as held:
        (one,) = candidates(held, 1)
    assert (one.rung.quality, one.rung.expected_ms) == (0.7, 2.0)


# ---------------------------------------------------------------- quality


def known(pixels: float | None = None, suffix: str = "", n: int | None = None, **figures: float) -> Known:
    made = {
        name: Evidence(what=name + suffix, unit="", value=value, how="measured", n=n)
        for name, value in figures.items()
    }
    return Known(figures=made, suffix=suffix, pixels_share=pixels)


def test_accuracy_on_labels_is_a_share_of_the_best_models() -> None:
    found = qualities([known(top1=0.8, accuracy_drop=0.0), known(top1=0.6, accuracy_drop=0.2, pixels=0.25)])
    assert [q.share for q in found] == pytest.approx([1.0, 0.75])
    assert [q.of for q in found] == ["top1", "top1"]


def test_the_expected_drop_tells_apart_what_a_count_does_not() -> None:
    rows = [known(top1=0.8, accuracy_drop=0.0, accuracy_drop_expected=d) for d in (0.0, 0.02)]
    found = qualities(rows)
    assert [q.share for q in found] == pytest.approx([1.0, 0.975])
    assert {q.of for q in found} == {"accuracy_drop_expected"}


def test_a_few_labels_count_less_than_the_agreement_on_more_pictures() -> None:
    """What a real build of EfficientNet-Lite0 found on 20 labels: 192 pixels better than 224."""
    rows = [
        known(1.0, n=20, top1=0.85, accuracy_drop=0.05, agreement=0.9),
        known(0.73, "@192x192", n=20, top1=0.95, accuracy_drop=0.0, agreement=0.93, base_agreement=0.86),
    ]
    assert [(q.share, q.of) for q in qualities(rows)] == [
        (0.9, "agreement"),
        (0.86, "base_agreement@192x192"),
    ]
    alone = qualities([known(n=20, top1=0.85, accuracy_drop=0.05), known(n=20, top1=0.9, accuracy_drop=0.0)])
    assert [q.of for q in alone] == ["top1", "top1"]


def test_of_an_error_rate_the_rest_to_1_counts() -> None:
    rows = [known(cer=c, cer_float=0.1, metric_drop=c - 0.1) for c in (0.1, 0.28)]
    assert [q.share for q in qualities(rows)] == pytest.approx([1.0, 0.8])
    rows = [known(map=m, map_float=0.5, metric_drop=0.5 - m) for m in (0.5, 0.4)]
    assert [q.share for q in qualities(rows)] == pytest.approx([1.0, 0.8])


def test_one_kind_counts_for_the_whole_ladder() -> None:
    found = qualities([known(top1=0.5, agreement=0.9, sqnr_db=20), known(agreement=0.8, sqnr_db=30)])
    assert [(q.share, q.of) for q in found] == [(0.9, "agreement"), (0.8, "agreement")]


def test_a_rung_that_lacks_the_others_kind_says_so_and_one_without_figures_is_last() -> None:
    found = qualities([known(agreement=0.9), known(agreement=0.7), known(sqnr_db=20), known()])
    assert found[2].of == "sqnr_db, of another kind than the others'"
    assert found[2].share == pytest.approx(1 / 1.01)
    assert (found[3].share, found[3].of) == (0.0, "no figure in the bundle")


def test_what_says_nothing_of_the_size_is_lowered_for_fewer_pixels() -> None:
    small = known(pixels=0.25, suffix="@16x16", agreement=1.0)
    found = qualities([known(pixels=1.0, agreement=1.0), small, known(pixels=4.0, agreement=1.0)])
    assert [q.share for q in found] == pytest.approx([1.0, 0.25**0.08, 1.0])
    assert found[1].of == "agreement@16x16 times what fewer pixels cost (predicted)"


@pytest.mark.parametrize(("side", "published"), [(192, 69.1), (160, 67.2), (128, 64.4)])
def test_the_factor_for_fewer_pixels_is_near_the_published_accuracy(side: int, published: float) -> None:
    """Howard et al., arXiv:1704.04861, table 7: 70.6 % at 224 pixels."""
    assert pixels_factor((side / 224) ** 2) == pytest.approx(published / 70.6, abs=0.005)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_the_signals_share_grows_with_the_ratio(a: float, b: float) -> None:
    assert 0 <= signal_share(a) <= 1
    assert (signal_share(a) <= signal_share(b)) or a > b


FIGURES = st.dictionaries(
    st.sampled_from(("top1", "accuracy_drop", "agreement", "agreement_expected", "map", "metric_drop")),
    st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(st.tuples(FIGURES, st.none() | st.floats(0.01, 4)), max_size=6))
def test_every_rung_has_a_share_and_a_name(rows: list[tuple[dict[str, float], float | None]]) -> None:
    found = qualities([known(pixels, **figures) for figures, pixels in rows])
    assert len(found) == len(rows)
    assert all(0 <= q.share <= 1 for q in found)
    assert all(q.of.split("@")[0].split(" ")[0].split(",")[0] in {*KINDS, "no"} for q in found)
