"""The share of kept decisions that few samples' margins tell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.prove.accuracy import Tally
from edgekiln.prove.flips import (
    expected_agreement,
    expected_drop,
    label_margin,
    label_move,
    leads,
    moves,
)
from edgekiln.prove.parity import ESTIMATED_ROWS, ParityStream


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
@settings(max_examples=15, deadline=None)
def test_the_estimate_is_the_share_that_many_samples_show(seed, noise):
    """Few samples for the estimate, thousands for the truth, from one distribution."""
    random = np.random.default_rng(seed)
    scores = random.standard_normal((4000, 10)) * 2
    moved = scores + noise * random.standard_normal(scores.shape)
    truth = (scores.argmax(1) == moved.argmax(1)).mean()
    value, (low, high) = expected_agreement(leads(scores[:1500]), moves(scores[:60], moved[:60]))
    assert low <= value <= high
    assert value == pytest.approx(truth, abs=0.08)


def labelled(scores, labels):
    tally = Tally()
    for row, label in zip(scores, labels, strict=True):
        tally.add(row, label)
    return [
        label_margin(row, label, right) for row, label, right in zip(scores, labels, tally.top1, strict=True)
    ]


@given(st.integers(0, 1000), st.floats(0.05, 0.8), st.integers(2, 12))
@settings(max_examples=15, deadline=None)
def test_the_expected_drop_is_the_one_that_many_samples_show(seed, noise, classes):
    random = np.random.default_rng(seed)
    scores = random.standard_normal((4000, classes))
    labels = random.integers(0, classes, 4000)
    scores[np.arange(4000), labels] += 1.5  # a model that is often right
    moved = scores + noise * random.standard_normal(scores.shape)
    truth = (scores.argmax(1) == labels).mean() - (moved.argmax(1) == labels).mean()
    few = 600
    margins = labelled(scores[:few], labels[:few])
    changes = [label_move(m, row) for m, row in zip(margins, moved[:few], strict=True)]
    value, (low, high) = expected_drop(margins, changes)
    assert low <= value <= high
    assert value == pytest.approx(truth, abs=0.04)


def test_an_expected_drop_varies_less_than_a_counted_one():
    random = np.random.default_rng(2)
    found = []
    for _ in range(25):
        labels = random.integers(0, 10, 80)
        scores = random.standard_normal((80, 10))
        scores[np.arange(80), labels] += 2
        moved = scores + 0.2 * random.standard_normal(scores.shape)
        margins = labelled(scores, labels)
        counted = np.mean([m.right for m in margins]) - (moved.argmax(1) == labels).mean()
        changes = [label_move(m, row) for m, row in zip(margins, moved, strict=True)]
        found.append((counted, expected_drop(margins, changes)[0]))
    counts, estimates = np.array(found).T
    assert estimates.std() < 0.7 * counts.std()
    assert estimates.mean() == pytest.approx(counts.mean(), abs=0.02)


def test_scores_that_do_not_move_lose_nothing_right_or_wrong():
    scores = np.random.default_rng(0).standard_normal((6, 5))
    margins = labelled(scores, [0, 1, 2, 3, 4, 0])
    assert any(not m.right for m in margins)
    assert expected_drop(margins, [label_move(m, s) for m, s in zip(margins, scores, strict=True)]) == (
        0.0,
        (0.0, 0.0),
    )


def test_scores_that_do_not_move_keep_every_decision():
    scores = np.random.default_rng(0).standard_normal((6, 5))
    assert expected_agreement(leads(scores), moves(scores, scores)) == (1.0, (1.0, 1.0))


def test_an_estimate_of_few_rows_varies_less_than_their_count():
    """Of many draws of 40 samples: the estimates lie closer together than the counts, about one share."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(25):
        scores = random.standard_normal((40, 10)) * 3
        stream = ParityStream("classification")
        for row in scores:
            stream.add({"y": row[None]}, {"y": row[None] + 0.2 * random.standard_normal((1, 10))})
        parity = stream.result()
        found.append((parity.agreement.value, parity.expected.value))
    counts, estimates = np.array(found).T
    assert estimates.std() < 0.7 * counts.std()
    assert estimates.mean() == pytest.approx(counts.mean(), abs=0.02)


def test_margins_of_further_samples_move_the_estimate():
    """The same error on calls that are all clear, then on those and many close ones."""
    clear = {"y": np.array([[9.0, 0.0, 1.0]])}
    moved = {"y": np.array([[9.0, 0.5, 1.0]])}
    alone, among = (
        ParityStream("classification"),
        ParityStream("classification", [leads([[1.0, 0.9, 0.8]])] * 9),
    )
    for stream in (alone, among):
        stream.add(clear, moved)
    assert alone.result().expected.value > 0.999
    assert among.result().expected.value < 0.75
    assert among.result().agreement.value == 1.0


def test_many_rows_are_counted_and_not_estimated():
    stream = ParityStream("classification")
    scores = np.random.default_rng(0).standard_normal((ESTIMATED_ROWS + 1, 3))
    stream.add({"y": scores}, {"y": scores})
    found = stream.result()
    assert (found.agreement.value, found.expected.value) == (1.0, None)
    assert found.expected.reason == f"the count of {ESTIMATED_ROWS + 1} samples is as sure"


@pytest.mark.parametrize(
    ("scores", "reason"), [(np.ones((2, 1)), "one class"), (np.full((1, 3), np.nan), "NaN")]
)
def test_what_has_no_margins_has_no_estimate_and_says_why(scores, reason):
    stream = ParityStream("classification")
    stream.add({"y": scores}, {"y": scores})
    found = stream.result().expected
    assert found.value is None
    assert reason in found.reason
