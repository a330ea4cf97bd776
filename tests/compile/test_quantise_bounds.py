"""The bound of a search: by labels, by the float model's own answers, by signal to noise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edgekiln.compile.make import make
from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.bounds import SQNR_FLOOR_DB, bound
from edgekiln.compile.workshop import Calibration, Validation, Workshop
from edgekiln.devices import load as load_device
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.job import MetricOrder
from edgekiln.model.signature import signature
from edgekiln.prove.metrics import metric_of
from edgekiln.records import Model, Source, Task

HOST = msgspec.structs.replace(load_device("host"), features=("avx2", "avx512_vnni"))


def model_of(graph: Path, task: Task) -> Model:
    own = signature(onnx.load(graph))
    return Model(
        name="m", path="graph.onnx", sha256="", signature=own, task=task, source=Source(kind="onnx", files=())
    )


def samples_of(digits, count, start=0):
    return [{"x": image[None]} for image in digits.images[start : start + count]]


def float_answers(digits, samples):
    run = simulate.session(onnx.load(digits.graph), 1)
    return np.concatenate([run.run(None, s)[0] for s in samples])


def replay(answers):
    """A runner that gives these rows, one a call."""
    rows = iter(answers)
    return lambda sample: {"y": next(rows)[None]}


def classifier(digits, samples, truths, drop=0.01):
    metric = metric_of("classification", MetricOrder(), model_of(digits.graph, "classification"))
    graph = onnx.load(digits.graph)
    return bound("classification", drop, graph, lambda: samples, lambda: samples, 1, metric, truths)


def test_with_labels_a_changed_decision_that_was_wrong_before_costs_nothing(digits):
    samples = samples_of(digits, 200, start=1400)
    answers = float_answers(digits, samples)
    truths = [int(n) for n in digits.labels[1400:1600]]
    wrong = np.flatnonzero(answers.argmax(1) != truths)
    assert wrong.size >= 2
    mended = answers.copy()
    mended[wrong, np.array(truths)[wrong]] = 1e3
    verdict = classifier(digits, samples, truths).judge(replay(mended))
    assert verdict.holds
    assert verdict.value == pytest.approx(1 + wrong.size / 200)
    assert "labels" in verdict.remark


def test_with_labels_lost_answers_break_the_bound_with_an_interval_around_the_loss(digits):
    samples = samples_of(digits, 100, start=1400)
    answers = float_answers(digits, samples)
    truths = [int(n) for n in digits.labels[1400:1500]]
    right = np.flatnonzero(answers.argmax(1) == truths)[:4]
    answers[right] *= -1
    verdict = classifier(digits, samples, truths).judge(replay(answers))
    assert not verdict.holds
    assert verdict.value == pytest.approx(0.96)
    assert verdict.interval[0] < 0.96 < verdict.interval[1]
    assert classifier(digits, samples, truths, drop=0.05).judge(replay(answers)).holds


def test_without_labels_a_classifier_is_held_to_its_own_decisions(digits):
    samples = samples_of(digits, 40)
    answers = float_answers(digits, samples)
    same = classifier(digits, samples, ()).judge(replay(answers))
    other = classifier(digits, samples, ()).judge(replay(-answers))
    assert same.what == other.what == "expected agreement"
    assert (same.holds, other.holds) == (True, False)


def test_vectors_are_held_to_the_cosine_with_the_float_models_own(digits):
    samples = samples_of(digits, 30)
    answers = float_answers(digits, samples)
    metric = metric_of("embedding", MetricOrder(), model_of(digits.graph, "embedding"))
    graph = onnx.load(digits.graph)
    held = bound("embedding", 0.01, graph, lambda: samples, lambda: samples, 1, metric)
    noise = np.random.default_rng(0).standard_normal(answers.shape)
    near, far = answers + 0.01 * noise, answers + 30 * noise
    assert held.judge(replay(answers)).value == pytest.approx(1)
    assert held.judge(replay(near)).holds
    assert not held.judge(replay(far)).holds


def test_without_a_metric_the_signal_to_noise_decides(digits):
    samples = samples_of(digits, 20)
    answers = float_answers(digits, samples)
    held = bound("tensors", 0.01, onnx.load(digits.graph), lambda: samples, lambda: samples, 1)
    for factor, db in ((1.05, 26.0), (1.2, 14.0)):
        verdict = held.judge(replay(answers * factor))
        assert verdict.value == pytest.approx(db, abs=0.1)
        assert verdict.holds == (db >= SQNR_FLOOR_DB)


# ---------------------------------------------------------------- samples of the job's own


def shop(digits, cache: Path, validation: Validation | None) -> Workshop:
    seen = samples_of(digits, 32)
    data = Calibration(lambda: iter(seen), len(seen), "32 digits")
    about = (model_of(digits.graph, "classification"), (), validation)
    return Workshop(digits.graph, sha256_file(digits.graph), data, cache, 1, *about)


def labelled(digits, count: int, shift: int = 0) -> Validation:
    samples = samples_of(digits, count, start=1000)
    truths = tuple(int(n + shift) % 10 for n in digits.labels[1000 : 1000 + count])
    metric = metric_of("classification", MetricOrder(), model_of(digits.graph, "classification"))
    return Validation(lambda: iter(samples), count, f"{count} labelled, {shift}", truths, metric)


def test_samples_of_the_jobs_own_leave_all_calibration_data_to_the_ranges(digits, tmp_path):
    _, apart = make(shop(digits, tmp_path, labelled(digits, 50)), HOST, "onnxruntime", "int8-mixed-0.05")
    _, split = make(shop(digits, tmp_path, None), HOST, "onnxruntime", "int8-mixed-0.05")
    assert "Top-1 drop 0, at most 0.05 (n = 50, 95 % interval" in apart.passes[-1].note
    assert "on 32 samples" in apart.passes[-1].note
    assert "n = 8," in split.passes[-1].note
    assert "on 24 samples of 32" in split.passes[-1].note


def test_other_labels_are_another_search(digits, tmp_path):
    """Of wrong labels nothing is kept, so nothing can be lost; the cache must not serve one for the other."""
    notes = [
        make(shop(digits, tmp_path, labelled(digits, 20, shift)), HOST, "onnxruntime", "int8-mixed-0.2")[1]
        .passes[-1]
        .note
        for shift in (0, 1)
    ]
    assert notes[0] != notes[1] or "n = 20" in notes[0]
    assert len(list(tmp_path.glob("variant/*"))) == 2


def test_too_few_samples_of_the_jobs_own_are_refused(digits, tmp_path):
    with pytest.raises(ConversionFailed, match="a bound needs at least 8"):
        make(shop(digits, tmp_path, labelled(digits, 5)), HOST, "onnxruntime", "int8-mixed-0.05")
