"""``run``: labels for the pictures that can be read, rows for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekiln.errors import BadInput
from edgekiln.runtime.once import TOP, probabilities, run
from fakes import bundles, digits
from fakes.bundles import Members
from fakes.command import Kiln


@pytest.fixture
def bundle(float_bundle: Path) -> Path:
    return float_bundle


def test_most_digits_get_their_own_label(bundle: Path, digit_files: Path) -> None:
    pictures = sorted((digit_files / "eval").rglob("*.png"))
    found, rejected = run(bundle, pictures, threads=1)
    assert not rejected
    assert [p.path for p in found] == [str(p) for p in pictures]
    right = [p.guesses[0].label == Path(p.path).parent.name for p in found]
    assert np.mean(right) > 0.8
    for one in found:
        shares = [g.probability for g in one.guesses]
        assert len(shares) == TOP
        assert shares == sorted(shares, reverse=True)
        assert all(digits.CLASSES[g.index] == g.label for g in one.guesses)
        assert not one.engine_note


def test_what_can_not_be_read_is_a_row_and_the_rest_goes_on(
    bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "note.png").write_text("no picture")
    good = digit_files / "data" / "1500.png"
    found, rejected = run(bundle, [tmp_path / "note.png", good, tmp_path / "none.png", tmp_path])
    assert [p.path for p in found] == [str(good)]
    assert [r.path for r in rejected] == [str(tmp_path / n) for n in ("note.png", "none.png")] + [
        str(tmp_path)
    ]
    assert all(r.reason for r in rejected)


def test_no_readable_picture_at_all_is_exit_code_2_with_the_rows(kiln: Kiln, bundle: Path) -> None:
    done = kiln("run", bundle, "none.png", "--json")
    assert done.code == 2
    assert done.json["rejected"][0]["path"] == "none.png"
    done = kiln("run", bundle, "none.png")
    assert "left out: none.png: there is no such file" in done.stdout


def test_outputs_that_are_not_finite_are_a_row(bundle: Path, digit_files: Path, tmp_path: Path) -> None:
    def change(held: Members) -> None:
        model = onnx.load_model_from_string(held["model/model.onnx"])
        for weight in model.graph.initializer:
            if list(weight.dims) == [10]:
                weight.CopyFrom(numpy_helper.from_array(np.full(10, np.inf, np.float32), weight.name))
        held["model/model.onnx"] = model.SerializeToString()

    broken = bundles.repack(bundle, tmp_path / "inf.edgekiln", change)
    found, rejected = run(broken, [digit_files / "data" / "1500.png"])
    assert not found
    assert "NaN or infinity" in rejected[0].reason


@pytest.mark.parametrize(
    ("key", "value"), [("width", 100_000), ("std", [0.0]), ("colour", "RGB"), ("dtype", "uint8"), ("crop", 0)]
)
def test_a_preprocessing_that_a_stranger_wrote_is_checked_before_any_picture_is_touched(
    bundle: Path, digit_files: Path, tmp_path: Path, key: str, value: object
) -> None:
    def manifest(told: Any) -> None:
        told["preprocess"][key] = value

    forged = bundles.repack(bundle, tmp_path / "odd.edgekiln", bundles.keep, manifest)
    with pytest.raises(BadInput):
        run(forged, [digit_files / "data" / "1500.png"])


def test_a_bundle_without_labels_names_classes_by_number(
    bundle: Path, digit_files: Path, tmp_path: Path
) -> None:
    def change(held: Members) -> None:
        del held["labels.txt"]

    def manifest(told: Any) -> None:
        told["labels"] = None

    bare = bundles.repack(bundle, tmp_path / "bare.edgekiln", change, manifest)
    (found,), _ = run(bare, [digit_files / "data" / "1500.png"])
    assert found.guesses[0].label == f"class {found.guesses[0].index}"


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=20))
def test_probabilities_of_logits_sum_to_one_and_keep_their_order(scores: list[float]) -> None:
    given_scores = np.array(scores, np.float32)[None]
    found = probabilities(given_scores)
    assert found.shape == (len(scores),)
    assert found.sum() == pytest.approx(1, abs=2e-3)
    assert (found >= 0).all()
    order = np.argsort(given_scores[0], kind="stable")
    assert (np.diff(found[order]) >= 0).all()


def test_what_is_a_distribution_already_stays_as_it_is() -> None:
    assert probabilities(np.array([[0.25, 0.75]])).tolist() == [0.25, 0.75]
