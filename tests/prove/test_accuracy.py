import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import top_k_accuracy_score

from edgekiln.errors import BadInput
from edgekiln.prove.accuracy import (
    Tally,
    accuracy_drop,
    accuracy_evidence,
    bound_warning,
    probabilities,
    rank,
    rows,
    top_class,
)

SCORES = arrays(np.float64, st.integers(1, 12), elements=st.integers(-4, 4).map(float))


def tally(hits):
    found = Tally()
    for hit in hits:
        found.add(np.eye(8)[0 if hit else 7], 0)
    return found


def evidence(candidate, reference=None):
    return {e.what: e for e in accuracy_evidence(candidate, reference, "measured", "here", "now", {})}


@given(SCORES)
def test_every_place_is_given_once_and_the_top_class_has_the_first(scores):
    places = [rank(scores, label) for label in range(len(scores))]
    assert sorted(places) == list(range(len(scores)))
    assert places[int(top_class(scores)[0])] == 0
    assert [int(i) for i in np.argsort(places)] == sorted(range(len(scores)), key=lambda i: (-scores[i], i))


@given(SCORES)
def test_softmax_keeps_every_place(scores):
    # Integer scores differ by at least 1 or are equal, so the softmax can't merge two of them.
    assert [rank(probabilities(scores)[0], i) for i in range(len(scores))] == [
        rank(scores, i) for i in range(len(scores))
    ]
    assert probabilities(scores).sum() == pytest.approx(1)


def test_top_1_and_top_5_are_sklearns():
    random = np.random.default_rng(2)
    scores, labels = random.normal(size=(300, 10)), random.integers(0, 10, 300)
    found = Tally()
    for row, label in zip(scores, labels, strict=True):
        found.add(row[None], int(label))
    figures = evidence(found)
    for what, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(10))
        assert figures[what].value == pytest.approx(expected)
        assert figures[what].interval[0] < expected < figures[what].interval[1]
        assert figures[what].n == 300


def test_the_class_axis_is_found_behind_a_pooling():
    assert rows(np.zeros((2, 7, 1, 1))).shape == (2, 7)
    assert rows(np.zeros((1, 7))).shape == (1, 7)
    assert rows(np.zeros(7)).shape == (1, 7)
    assert rows(np.zeros((1, 5, 7))).shape == (5, 7)


def test_a_broken_output_is_never_a_hit():
    assert rank(np.array([np.nan, 0.0, 1.0]), 0) == 3
    assert rank(np.array([0.0, np.nan, 1.0]), 2) == 3


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_an_error_with_the_range(label):
    with pytest.raises(BadInput, match="classes 0 to 2"):
        rank(np.zeros(3), label)


def test_the_drop_counts_pairs():
    reference = [True] * 90 + [False] * 10
    candidate = [True] * 84 + [False] * 6 + [True] * 2 + [False] * 8
    drop = accuracy_drop(reference, candidate)
    assert (drop.value, drop.lost, drop.gained, drop.n) == (pytest.approx(0.04), 6, 2, 100)
    assert drop.interval[0] < 0 < 0.04 < drop.interval[1]
    figure = evidence(tally(candidate), tally(reference))["accuracy_drop"]
    assert (figure.value, figure.interval) == (drop.value, drop.interval)
    # Pairing is what makes the interval narrow: shuffled pairs of the same margins are wider.
    shuffled = accuracy_drop(reference, candidate[::-1])
    assert shuffled.value == drop.value
    assert shuffled.interval[1] - shuffled.interval[0] > 1.5 * (drop.interval[1] - drop.interval[0])


def test_a_gain_is_a_negative_drop():
    assert accuracy_drop([False, True], [True, True]).value == -0.5


def test_a_sample_too_small_for_the_bound_is_said_with_a_number_that_would_do():
    twenty = [True] * 18 + [False] * 2
    warning = bound_warning(twenty, twenty, 0.01)
    assert warning.startswith("20 labelled samples can't support a bound of 0.01")
    advised = int(warning.split("about ")[1].split()[0])
    assert 200 <= advised <= 20_000
    scale = -(-advised // 20)
    assert bound_warning(twenty * scale, twenty * scale, 0.01) is None
    assert bound_warning(twenty * (scale // 2), twenty * (scale // 2), 0.01) is not None
    assert bound_warning(twenty, twenty, 0.5) is None


def test_unlabelled_data_and_few_classes_leave_nulls_with_reasons():
    found = evidence(Tally(), Tally())
    assert all(e.value is None and "no labelled sample" in e.reason for e in found.values())
    three = Tally()
    three.add(np.array([0.0, 1.0, 0.5]), 1)
    figures = evidence(three)
    assert figures["top1"].value == 1
    assert "only 3 classes" in figures["top5"].reason
    assert "float model was not evaluated" in figures["accuracy_drop"].reason


def test_models_must_have_seen_the_same_samples():
    with pytest.raises(BadInput, match="same samples"):
        accuracy_drop([True], [True, False])
    with pytest.raises(BadInput, match="at least one"):
        accuracy_drop([], [])
