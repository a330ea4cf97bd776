"""Judging: what is read twice is the same twice, and an artifact that gives NaN is never a candidate."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.engines import ENGINES, open_engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.prove import golden
from edgekiln.prove.judge import (
    GOLDEN_SAMPLES,
    Bound,
    Judged,
    Kept,
    judge,
    judge_at,
    reference,
    sample_warning,
    spread,
)
from edgekiln.records import Artifact, Resolution


def arrays(n, size=4):
    return [{"x": np.full(size, i, np.float32)} for i in range(n)]


class Source:
    """A stream of ``samples`` that counts how many of them were made."""

    def __init__(self, samples):
        self.samples, self.made = samples, 0

    def __call__(self, start):
        for sample in self.samples[start:]:
            self.made += 1
            yield sample


def numbers(stream):
    return [int(s["x"][0]) for s in stream]


# ---------------------------------------------------------------- a stream that is read again


def test_what_fits_in_memory_is_made_once():
    source = Source(arrays(10))
    kept = Kept(source)
    assert numbers(kept) == numbers(kept) == numbers(kept) == list(range(10))
    assert source.made == 10


def test_what_does_not_fit_is_made_again_and_only_that():
    source = Source(arrays(10))
    kept = Kept(source, limit_bytes=4 * 16)
    assert numbers(kept) == list(range(10))
    assert numbers(kept) == list(range(10))
    assert source.made == 10 + 6


def test_a_reader_that_stopped_early_leaves_the_rest_for_the_next():
    source = Source(arrays(10))
    kept = Kept(source)
    first = iter(kept)
    assert [int(next(first)["x"][0]) for _ in range(3)] == [0, 1, 2]
    assert numbers(kept) == list(range(10))
    assert numbers([next(first), *first]) == list(range(3, 10))
    assert source.made <= 10 + 7


def test_an_empty_stream_stays_empty():
    source = Source([])
    kept = Kept(source)
    assert list(kept) == list(kept) == []


def test_an_error_of_the_source_reaches_every_reader_and_nothing_is_taken_for_whole():
    def source(start):
        yield from arrays(3)[start:]
        raise BadInput("decoding", "4.jpg", "it is truncated", "Remove it")

    kept = Kept(source)
    for _ in range(2):
        with pytest.raises(BadInput, match="truncated"):
            list(kept)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    limit=st.integers(0, 400),
    turns=st.lists(st.integers(0, 3), max_size=60),
)
def test_interleaved_readers_each_see_the_whole_sequence_and_the_bound_holds(sizes, limit, turns):
    samples = [{"x": np.full(n, i, np.uint8), "i": np.array(i)} for i, n in enumerate(sizes)]
    kept = Kept(Source(samples), limit_bytes=limit)
    readers = [iter(kept) for _ in range(4)]
    seen = [[] for _ in readers]
    for turn in turns:
        sample = next(readers[turn], None)
        if sample is not None:
            seen[turn].append(sample)
    for reader, got in zip(readers, seen, strict=True):
        got.extend(reader)
        assert [int(s["i"]) for s in got] == list(range(len(sizes)))
        assert all(s["x"].tobytes() == t["x"].tobytes() for s, t in zip(got, samples, strict=True))
    assert sum(a.nbytes for s in kept._held for a in s.values()) <= limit


# ---------------------------------------------------------------- judging with a whole engine


class Engine:
    """y = gain * x, with a fault on the samples whose first value is in ``bad``. It is its own module."""

    def __init__(self):
        self.gain, self.bad, self.fault, self.closed = 1.0, set(), np.nan, 0

    def open(self, artifact, folder, threads):
        return self

    def __call__(self, inputs):
        y = (self.gain * inputs["x"]).astype(np.float32)
        if int(inputs["x"][0, 0]) in self.bad:
            y[0, -1] = self.fault
        return {"y": y}

    def close(self):
        self.closed += 1


@pytest.fixture
def engine():
    made = Engine()
    sys.modules["judge_fake_engine"] = made
    ENGINES["judge-fake"] = "judge_fake_engine"
    yield made
    del ENGINES["judge-fake"], sys.modules["judge_fake_engine"]


ARTIFACT = Artifact(
    id="the artifact",
    target="t",
    recipe="fp16",
    engine="judge-fake",
    proof_engine="judge-fake",
    entry="m",
    files=(),
    options={},
    tools={},
    precisions={"fp16": 1},
)


def rows(values):
    """One sample for each value: scores of three classes, the last one the largest."""
    return [{"x": np.array([[v, v + 1, v + 2]], np.float32)} for v in values]


def against(holdout=(1, 2, 3), evaluation=(5, 6), labels=(2, 0), task="classification"):
    return reference(
        task,
        lambda s: {"y": s["x"] * 1},
        Source(rows(holdout)),
        None if evaluation is None else Source(rows(evaluation)),
        labels,
    )


def figures(judged):
    return {e.what: e for e in judged.evidence}


def test_an_artifact_that_equals_the_float_model_loses_nothing(engine, tmp_path):
    judged = judge(ARTIFACT, Path(), against(), 1, "here", tmp_path)
    found = figures(judged)
    assert found["agreement"].value == 1.0
    assert found["accuracy_drop"].value == 0.0
    assert found["max_abs_error"].value == 0.0
    assert found["sqnr_db"].n == 3
    assert judged.top1 == (True, False)
    assert {e.how for e in judged.evidence if e.value is not None} == {"measured"}
    assert {e.where for e in judged.evidence} == {"here"}
    assert engine.closed == 1


def test_an_artifact_that_differs_is_measured_as_such(engine, tmp_path):
    engine.gain = -1.0
    found = figures(judge(ARTIFACT, Path(), against(), 1, "here", tmp_path))
    assert found["agreement"].value == 0.0
    assert found["max_abs_error"].value == 10.0
    assert found["sqnr_db"].value == pytest.approx(-6.02, abs=0.01)
    # Turned round, the artifact is right on the second sample and wrong on the first.
    assert found["accuracy_drop"].value == 0.0


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad", [{1}, {3}, {1, 2, 3}])
def test_an_output_that_is_not_finite_is_a_failed_conversion_with_a_cure(engine, tmp_path, fault, bad):
    engine.bad, engine.fault = bad, fault
    with pytest.raises(ConversionFailed, match="output 'y' holds 1 NaN or infinite") as caught:
        judge(ARTIFACT, Path(), against(), 1, "here", tmp_path)
    assert "recipe" in caught.value.cure
    assert caught.value.to == "the artifact"
    assert engine.closed == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_finite_on_a_labelled_sample_alone_is_a_failed_conversion(engine, tmp_path):
    engine.bad = {6}
    with pytest.raises(ConversionFailed, match="NaN or infinit"):
        judge(ARTIFACT, Path(), against(), 1, "here", tmp_path)
    assert engine.closed == 1


def test_the_golden_outputs_are_the_first_samples_and_hold_again(engine, tmp_path):
    judged = judge(ARTIFACT, Path(), against(), 1, "here", tmp_path)
    runner = open_engine("judge-fake", ARTIFACT, Path(), 1)
    assert golden.check(judged.golden, tmp_path, runner) == []
    with np.load(tmp_path / judged.golden.inputs) as held:
        assert len(held.files) == GOLDEN_SAMPLES
        assert held["0/x"].tolist() == [[1, 2, 3]]
    engine.gain = 1.2
    assert len(golden.check(judged.golden, tmp_path, runner)) == GOLDEN_SAMPLES


def test_without_labels_there_is_no_accuracy_and_a_reason_says_so(engine, tmp_path):
    judged = judge(ARTIFACT, Path(), against(evaluation=None, labels=()), 1, "here", tmp_path)
    found = figures(judged)
    assert found["accuracy_drop"].value is None
    assert found["accuracy_drop"].reason
    assert judged.top1 == ()


def test_for_tensors_there_is_no_agreement_and_a_reason_says_so(engine, tmp_path):
    compared = against(evaluation=None, labels=(), task="tensors")
    found = figures(judge(ARTIFACT, Path(), compared, 1, "here", tmp_path))
    assert found["agreement"].value is None
    assert "tensors" in found["agreement"].reason
    assert found["sqnr_db"].value is not None


def test_the_engine_is_closed_where_a_run_fails(engine, tmp_path):
    compared = against()
    engine.gain = "no number"
    with pytest.raises(TypeError):
        judge(ARTIFACT, Path(), compared, 1, "here", tmp_path)
    assert engine.closed == 1


def test_samples_and_labels_that_do_not_pair_up_are_never_scored(engine, tmp_path):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        against(evaluation=(5, 6), labels=(2,))


def test_the_float_model_runs_once_for_any_number_of_artifacts(engine, tmp_path):
    calls = []

    def model(sample):
        calls.append(1)
        return {"y": sample["x"]}

    compared = reference("classification", model, Source(rows((1, 2, 3))), None, ())
    for number in range(3):
        judge(ARTIFACT, Path(), compared, 1, "here", tmp_path / str(number))
    assert len(calls) == 3


def test_too_few_labels_for_the_bound_are_told_once(engine, tmp_path):
    compared = against()
    judged = judge(ARTIFACT, Path(), compared, 1, "here", tmp_path)
    assert "2" in sample_warning([judged, judged], compared, 0.01)
    assert sample_warning([judged], compared, None) is None
    assert sample_warning([judged], against(evaluation=None, labels=()), 0.01) is None


def test_a_judgement_survives_the_cache(engine, tmp_path):
    judged = judge(ARTIFACT, Path(), against(), 1, "here", tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(judged), type=Judged) == judged


# ---------------------------------------------------------------- a proof engine that is slow


@given(n=st.integers(0, 300), most=st.integers(1, 40))
def test_the_samples_of_a_bound_are_spread_evenly_over_all(n, most):
    found = sorted(spread(n, most))
    assert len(found) == min(n, most)
    assert spread(n, None) == set(range(n))
    gaps = np.diff(found) if len(found) > 1 else np.array([1])
    assert gaps.max() - gaps.min() <= 1
    if n > most:
        assert found[0] == 0
        assert found[-1] >= n - 1 - n // most


def test_a_bound_limits_both_data_sets_and_is_told_beside_every_figure(engine, tmp_path):
    compared = against(holdout=range(1, 11), evaluation=range(11, 31), labels=(2,) * 20)
    bound = Bound(4, "the simulator is slow")
    found = figures(judge(ARTIFACT, Path(), compared, 1, "here", tmp_path, bound))
    assert {found[k].n for k in ("sqnr_db", "agreement", "top1", "accuracy_drop")} == {4}
    said = "4 of 10 samples, 4 of 20 labelled samples: the simulator is slow"
    assert {e.environment["samples_bounded"] for e in found.values()} == {said}


def test_a_bound_that_leaves_nothing_out_is_not_told(engine, tmp_path):
    found = figures(judge(ARTIFACT, Path(), against(), 1, "here", tmp_path, Bound(8, "it is slow")))
    assert not [e for e in found.values() if "samples_bounded" in e.environment]
    plain = figures(judge(ARTIFACT, Path(), against(), 1, "here", tmp_path))
    assert found["sqnr_db"].n == plain["sqnr_db"].n == 3


def test_the_accuracy_of_a_part_is_compared_with_the_float_model_on_that_part(engine, tmp_path):
    """The float model is right on every sample but the four that the bound chooses."""
    chosen = spread(20, 4)
    labels = tuple(0 if i in chosen else 2 for i in range(20))
    compared = against(evaluation=range(11, 31), labels=labels)
    judged = judge(ARTIFACT, Path(), compared, 1, "here", tmp_path, Bound(4, "it is slow"))
    found = figures(judged)
    assert found["top1"].value == 0.0
    assert found["accuracy_drop"].value == 0.0, "against its tally over all samples this would be 0.8"
    assert judged.top1 == judged.float_top1 == (False,) * 4


def test_only_the_chosen_samples_run_through_the_slow_engine(engine, tmp_path):
    calls = []
    runs = engine.__class__.__call__

    class Counted(Engine):
        def __call__(self, inputs):
            calls.append(1)
            return runs(self, inputs)

    sys.modules["judge_fake_engine"] = Counted()
    compared = against(holdout=range(1, 11), evaluation=range(11, 31), labels=(2,) * 20)
    judge(ARTIFACT, Path(), compared, 1, "here", tmp_path, Bound(4, "it is slow"))
    assert len(calls) == 4 + 4 + GOLDEN_SAMPLES


def test_the_warning_of_too_few_labels_is_of_the_artifact_that_saw_the_most(engine, tmp_path):
    compared = against(evaluation=range(11, 31), labels=(2,) * 20)
    few = judge(ARTIFACT, Path(), compared, 1, "here", tmp_path / "a", Bound(4, "it is slow"))
    every = judge(ARTIFACT, Path(), compared, 1, "here", tmp_path / "b")
    assert sample_warning([few, every], compared, 0.01).startswith("20 labelled samples")
    assert sample_warning([few], compared, 0.01).startswith("4 labelled samples")


# ---------------------------------------------------------------- at another size


SIZED = msgspec.structs.replace(
    ARTIFACT,
    resolutions=(Resolution(height=1, width=3, entry="m"), Resolution(height=2, width=3, entry="m")),
)


def test_the_figures_of_another_size_bear_its_name_and_are_of_its_own_samples(engine, tmp_path):
    compared = against(holdout=(4, 5), evaluation=(7, 8, 9), labels=(2, 2, 0))
    base = figures(judge(SIZED, Path(), against(), 1, "here", tmp_path))
    found = {e.what: e for e in judge_at((2, 3), SIZED, Path(), compared, 1, "here")}
    assert set(found) == {f"{what}@2x3" for what in base}
    assert (found["sqnr_db@2x3"].n, base["sqnr_db"].n) == (2, 3)
    assert found["top1@2x3"].value == pytest.approx(2 / 3)
    assert engine.closed == 2


def test_a_smaller_picture_is_also_held_against_the_float_model_at_its_own_size(engine, tmp_path):
    def whole_model(sample):  # it finds another class in the second picture
        x = sample["x"]
        return {"y": x[:, ::-1] if x[0, 0] == 6 else x * 1}

    same, moved = (
        against(holdout=(4, 5)),
        reference("classification", whole_model, Source(rows((4, 6))), None, ()),
    )
    alike = judge_at((2, 3), SIZED, Path(), against(holdout=(4, 5)), 1, "here", base=same)
    other = judge_at((2, 3), SIZED, Path(), against(holdout=(4, 5)), 1, "here", base=moved)
    (whole,) = (e for e in alike if e.what == "base_agreement@2x3")
    (half,) = (e for e in other if e.what == "base_agreement@2x3")
    assert (whole.value, whole.n) == (1.0, 2)
    assert half.value == 0.5
    assert half.interval[0] < 0.5 < half.interval[1]


def test_nan_at_another_size_is_a_failed_conversion(engine, tmp_path):
    engine.bad = {5}
    with pytest.raises(ConversionFailed, match="NaN"):
        judge_at((2, 3), SIZED, Path(), against(holdout=(4, 5)), 1, "here")
    assert engine.closed == 1


def test_a_size_that_the_artifact_lacks_is_bad_input(engine, tmp_path):
    with pytest.raises(BadInput, match="takes 1x3, 2x3"):
        judge_at((9, 9), SIZED, Path(), against(), 1, "here")
