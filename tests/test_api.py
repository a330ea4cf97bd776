"""The verbs as Python functions: the same answers as the command line's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgekiln
from edgekiln.errors import BadInput
from edgekiln.job import Job, ModelOrder
from edgekiln.records import Budget, Decision


def quick(digit_files: Path, shared_cache: Path, out: Path, **changes: object) -> Decision:
    given: dict[str, object] = {
        "data": digit_files / "data",
        "eval": digit_files / "eval",
        "labels": digit_files / "labels.txt",
        "targets": ("onnxruntime",),
        "recipes": ("fp32",),
        "threads": 1,
    }
    return edgekiln.build(digit_files / "digits.onnx", out=out, cache=shared_cache, **(given | changes))


def test_build_gives_the_decision_that_it_writes(
    digit_files: Path, shared_cache: Path, tmp_path: Path
) -> None:
    decision = quick(digit_files, shared_cache, tmp_path, max_drop=0.1, size_mb=1, latency_ms=1000)
    assert decision.met
    assert decision.budget == Budget(accuracy_drop=0.1, size_bytes=1_000_000, latency_p95_ms=1000)
    written = json.loads((tmp_path / "decision.json").read_text())
    assert written["choices"][0]["artifact_id"] == decision.choices[0].artifact_id == "host.onnxruntime.fp32"
    assert (tmp_path / decision.report).is_file()
    assert (tmp_path / str(decision.choices[0].bundle)).is_file()


def test_a_budget_that_nothing_meets_is_an_answer_and_no_exception(
    digit_files: Path, shared_cache: Path, tmp_path: Path
) -> None:
    decision = quick(digit_files, shared_cache, tmp_path, size_mb=0.001)
    assert not decision.met
    assert (tmp_path / "report.html").is_file()


def test_the_other_verbs_are_functions_too(float_bundle: Path, digit_files: Path) -> None:
    assert edgekiln.verify(float_bundle).golden is True
    found, rejected = edgekiln.run(float_bundle, [digit_files / "data" / "1500.png"])
    assert len(found) == 1
    assert not rejected
    assert edgekiln.inspect(digit_files / "digits.onnx", targets=()).cost is not None
    assert edgekiln.bench(float_bundle, threads=1, samples=10).a_percentiles is not None
    assert edgekiln.doctor().abilities


def test_predict_is_a_function_too(digit_files: Path) -> None:
    found = edgekiln.predict(digit_files / "digits.onnx", ["galaxy-s24"], precision="int8")
    assert {row.precision for row in found.rows if row.basis == "fitted"} == {"w8a8"}


def test_a_job_file_and_a_job_are_taken_as_they_are(
    digit_files: Path, shared_cache: Path, tmp_path: Path
) -> None:
    text = '[model]\nsource = "digits.onnx"\n[search]\ntargets = ["onnxruntime"]\nrecipes = ["fp32"]\n'
    (tmp_path / "job.toml").write_text(f'out = "there"\n{text}')
    (tmp_path / "digits.onnx").write_bytes((digit_files / "digits.onnx").read_bytes())
    decision = edgekiln.build(tmp_path / "job.toml", cache=shared_cache)
    assert decision.met
    assert (tmp_path / "there" / "report.html").is_file()
    with pytest.raises(BadInput, match="taken as it is"):
        edgekiln.build(tmp_path / "job.toml", max_drop=0.1)
    with pytest.raises(BadInput, match="taken as it is"):
        edgekiln.build(Job(model=ModelOrder(source="x.onnx")), data="photos")


def test_an_unknown_argument_gets_the_near_ones(digit_files: Path) -> None:
    with pytest.raises(BadInput, match="Did you mean 'max_drop'"):
        edgekiln.build(digit_files / "digits.onnx", maxdrop=0.1)


def test_figures_that_no_budget_can_mean_are_refused_before_any_work(
    digit_files: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="between 0 and 1"):
        edgekiln.build(
            digit_files / "digits.onnx", max_drop=5, out=tmp_path / "out", cache=tmp_path / "cache"
        )
    assert not list(tmp_path.iterdir())


def test_a_verb_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="bake"):
        edgekiln.bake  # noqa: B018
