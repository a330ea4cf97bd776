import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekiln.errors import BadInput
from edgekiln.prove.parity import SQNR_CAP_DB, ParityStream, parity_evidence
from edgekiln.records import Evidence

VECTORS = arrays(np.float32, (1, 6), elements=st.floats(-100, 100, width=32))


def compare(pairs, task="classification", name="scores"):
    stream = ParityStream(task)
    for reference, candidate in pairs:
        stream.add({name: np.asarray(reference)}, {name: np.asarray(candidate)})
    return stream.result()


def evidence(parity):
    return {e.what: e for e in parity_evidence(parity, "measured", "here", "now", {"threads": 1})}


def test_hand_computed_figures_over_two_samples():
    parity = compare([([3.0, 4.0], [3.0, 4.5]), ([0.0, 5.0], [0.5, 5.0])])
    (output,) = parity.outputs
    # Signal 25 + 25, error 0.25 + 0.25: a hundredth, 20 dB.
    assert output.sqnr_db == pytest.approx(20)
    assert output.relative_rms == pytest.approx(0.1)
    assert output.max_abs_error == 0.5
    first = (9 + 18) / (5 * math.sqrt(9 + 20.25))
    second = 25 / (5 * math.sqrt(25.25))
    assert output.cosine_mean == pytest.approx((first + second) / 2)
    assert output.cosine_min == pytest.approx(min(first, second))
    assert parity.agreement.value == 1.0


def test_the_sqnr_sums_over_samples_and_is_no_mean_of_decibels():
    # 20 dB and 0 dB: the sums say 10 log10(101 / 2), the mean of decibels would say 10.
    parity = compare([([10.0, 0.0], [10.0, 1.0]), ([1.0, 0.0], [0.0, 0.0])])
    assert parity.outputs[0].sqnr_db == pytest.approx(10 * math.log10(101 / 2))


@given(st.lists(VECTORS, min_size=1, max_size=5))
@settings(deadline=None)
def test_equal_outputs_reach_the_cap_and_survive_json(samples):
    parity = compare([(x, x) for x in samples])
    assert parity.outputs[0].sqnr_db == SQNR_CAP_DB
    assert parity.outputs[0].max_abs_error == 0
    assert parity.outputs[0].cosine_min == pytest.approx(1)
    assert parity.agreement.value == 1
    for e in evidence(parity).values():
        assert msgspec.json.decode(msgspec.json.encode(e), type=Evidence) == e


@given(st.lists(st.tuples(VECTORS, VECTORS), min_size=1, max_size=6), st.randoms())
@settings(deadline=None)
def test_the_order_of_the_samples_does_not_matter(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = compare(pairs), compare(shuffled)
    assert one.agreement == other.agreement
    for name in ("sqnr_db", "cosine_mean", "cosine_min", "max_abs_error", "relative_rms"):
        a, b = getattr(one.outputs[0], name), getattr(other.outputs[0], name)
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b)


@given(VECTORS, VECTORS, st.floats(0.125, 64))
@settings(deadline=None)
def test_scaling_both_sides_changes_only_the_absolute_error(a, b, factor):
    plain = compare([(a, b)]).outputs[0]
    scaled = compare([(a.astype(np.float64) * factor, b.astype(np.float64) * factor)]).outputs[0]
    if plain.sqnr_db is not None:
        assert scaled.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-6)
        assert scaled.max_abs_error == pytest.approx(plain.max_abs_error * factor)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_output_has_no_figure_and_the_reason_names_it(value):
    parity = compare([([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [value, value])])
    found = evidence(parity)
    for what in ("sqnr_db", "cosine_min", "max_abs_error", "relative_rms", "agreement", "agreement_sure"):
        assert found[what].value is None, what
        assert found[what].how is None
        assert "output 'scores' holds 2 NaN or infinite values in sample 1" in found[what].reason
        assert "the artifact's" in found[what].reason
    assert found["nonfinite_values"].value == 2


def test_a_broken_float_model_is_not_blamed_on_the_artifact():
    parity = compare([([np.nan, 2.0], [1.0, 2.0])])
    assert "the float model's output" in parity.outputs[0].reason
    assert evidence(parity)["nonfinite_values"].value == 0


def test_the_worst_of_several_outputs_is_the_one_reported():
    stream = ParityStream("tensors")
    good, bad = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    stream.add({"boxes": good, "masks": good}, {"boxes": good, "masks": bad})
    found = evidence(stream.result())
    assert found["sqnr_db"].value == pytest.approx(10 * math.log10(5))
    assert found["sqnr_db"].environment == {"threads": 1, "output": "masks"}
    assert found["agreement"].value is None
    assert "'tensors' has no top class" in found["agreement"].reason


def test_agreement_counts_rows_and_sure_rows_apart():
    logits = [
        ([[9.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]]),  # sure, agrees
        ([[0.0, 9.0, 0.0]], [[9.0, 0.0, 0.0]]),  # sure, differs
        ([[0.1, 0.0, 0.05]], [[0.0, 0.1, 0.05]]),  # unsure, differs
        ([[0.1, 0.0, 0.05]], [[0.1, 0.0, 0.05]]),  # unsure, agrees
    ]
    parity = compare(logits)
    assert (parity.agreement.value, parity.agreement.n) == (0.5, 4)
    assert (parity.sure.value, parity.sure.n) == (0.5, 2)
    low, high = parity.agreement.interval
    assert (round(low, 3), round(high, 3)) == (0.15, 0.85), "Wilson's limits of 2 in 4"


def test_probabilities_are_not_put_through_a_second_softmax():
    # As probabilities 0.6 is sure; a second softmax would leave 0.4 and lose the row.
    assert compare([([[0.6, 0.2, 0.2]], [[0.6, 0.2, 0.2]])]).sure.n == 1
    assert compare([([[0.4, 0.3, 0.3]], [[0.4, 0.3, 0.3]])]).sure.n == 0
    assert "no sample is the float model 0.5 sure" in compare([([[0.4, 0.3, 0.3]],) * 2]).sure.reason


def test_equal_scores_are_broken_by_index_on_both_sides():
    assert compare([([[1.0, 1.0]], [[1.0, 0.0]])]).agreement.value == 1
    assert compare([([[1.0, 1.0]], [[0.0, 1.0]])]).agreement.value == 0


def test_outputs_that_do_not_match_are_an_error_with_a_cure():
    with pytest.raises(BadInput, match=r"'scores'.*\(1, 3\).*\(1, 4\)") as caught:
        compare([(np.zeros((1, 3)), np.zeros((1, 4)))])
    assert "NonMaxSuppression" in caught.value.cure
    stream = ParityStream("tensors")
    with pytest.raises(BadInput, match="same outputs"):
        stream.add({"a": np.zeros(1)}, {"b": np.zeros(1)})
    with pytest.raises(BadInput, match="not numeric"):
        stream.add({"a": np.array(["x"])}, {"a": np.array(["x"])})


def test_nothing_compared_is_null_with_a_reason_and_no_perfect_score():
    found = evidence(ParityStream("classification").result())
    assert all(e.value is None and e.reason for e in found.values())
    empty = evidence(compare([(np.zeros((0, 4)), np.zeros((0, 4)))], task="tensors"))
    assert "empty in every sample" in empty["sqnr_db"].reason


def test_errors_against_an_all_zero_reference_have_no_scale():
    found = evidence(compare([([0.0, 0.0], [0.1, 0.0])], task="tensors"))
    assert found["sqnr_db"].value is None
    assert "zero throughout" in found["sqnr_db"].reason
    assert found["max_abs_error"].value == 0.1


def test_integer_outputs_do_not_wrap_around():
    parity = compare([(np.array([200], np.uint8), np.array([201], np.uint8))], task="tensors")
    assert parity.outputs[0].max_abs_error == 1
    opposite = compare([(np.array([0], np.uint8), np.array([255], np.uint8))], task="tensors")
    assert opposite.outputs[0].max_abs_error == 255
    # In uint8 the energy of the candidate would wrap, and the cosine leave 1.
    same = np.array([200, 100], np.uint8)
    assert compare([(same, same)], task="tensors").outputs[0].cosine_min == pytest.approx(1)
