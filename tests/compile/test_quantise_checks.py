"""What calibration data and activations may suffer from: told by name, and not where all is well."""

import numpy as np
import pytest

from edgekiln.compile.quantise.checks import (
    confidence,
    enough_samples,
    half_spread,
    living_channels,
    observation_checks,
    outliers,
)
from edgekiln.compile.quantise.observers import Observation, observe


def seen_of(*batches, axis=None):
    found = Observation(axis=axis)
    for number, batch in enumerate(batches):
        found.add(np.asarray(batch, np.float32), number)
    return found


def normal(n, seed=0, size=5000):
    return np.random.default_rng(seed).standard_normal((n, size))


# ---------------------------------------------------------------- enough samples


def test_few_samples_are_told_with_the_share_of_the_field_that_may_go_beyond():
    check = enough_samples({"t": seen_of(*normal(8))}, 8)
    assert check.passed is False
    # 1 - 0.05^(1/8): with 8 samples inside a range, 31 % of all may lie outside at 95 % confidence.
    assert "8 samples: up to 31% of the field's may go beyond one end of a range" in check.detail
    assert "give 29 or more" in check.detail
    enough = enough_samples({"t": seen_of(*normal(40))}, 40)
    assert enough.passed is True
    assert "up to 7%" in enough.detail
    assert "too few" not in enough.detail


def test_the_share_that_may_go_beyond_is_not_understated():
    """Of many drawn sets of 20, in at most 5 % the true share beyond the largest exceeds the stated one."""
    rng = np.random.default_rng(0)
    largest = rng.uniform(size=(4000, 20)).max(1)
    stated = 1 - 0.05 ** (1 / 20)
    assert 0.03 < ((1 - largest) > stated).mean() < 0.07


def test_halves_that_saw_other_ranges_are_told_however_many_samples_there_are():
    mixed = [b * (10 if number % 2 else 1) for number, b in enumerate(normal(60))]
    check = enough_samples({"t": seen_of(*mixed)}, 60)
    assert check.passed is False
    assert half_spread(seen_of(*mixed)) > 0.8
    assert half_spread(seen_of(*normal(60))) < 0.1
    assert half_spread(seen_of([1.0])) is None
    assert half_spread(seen_of([0.0], [0.0])) is None
    assert half_spread(seen_of([2.0], [1.0])) == 0.5


# ---------------------------------------------------------------- channels


def test_constant_and_dead_channels_are_named_with_their_number():
    batches = [b.reshape(1, 5, 1000) for b in normal(4)]
    for batch in batches:
        batch[0, 1] = 0
        batch[0, 3] = 2.5
    check = living_channels({"conv": seen_of(*batches, axis=1), "well": seen_of(*normal(4))}, 4)
    assert check.passed is False
    assert "'conv' 2 of 5 (1 zero)" in check.detail
    assert "1 tensor has" in check.detail
    assert "well" not in check.detail


def test_living_channels_pass_and_one_sample_can_not_be_asked():
    batches = [b.reshape(1, 5, 1000) for b in normal(4)]
    assert living_channels({"conv": seen_of(*batches, axis=1)}, 4).passed is True
    assert living_channels({"conv": seen_of(batches[0], axis=1)}, 1).passed is None
    # Seven values a channel are too few to call it constant.
    few = [np.ones((1, 3), np.float32)] * 7
    assert living_channels({"pooled": seen_of(*few, axis=-1)}, 7).passed is True


# ---------------------------------------------------------------- outliers


def test_an_outlier_of_a_million_is_named_with_its_share_and_what_each_rule_made_of_it():
    values = normal(40, size=10_000)
    values[7, 3] = 1e6
    check = outliers({"wild": seen_of(*values), "well": seen_of(*normal(40))})
    assert check.passed is False
    assert "1 tensor holds" in check.detail
    assert "'wild'" in check.detail
    assert "well" not in check.detail
    assert "2.5e-06" in check.detail  # 1 of 400,000
    for rule in ("minmax", "percentile", "mse", "entropy"):
        assert f"{rule} [" in check.detail
    minmax = check.detail.split("minmax [")[1].split("leaves the others ")[1].split()[0]
    clipped = check.detail.split("percentile [")[1].split("leaves the others ")[1].split()[0]
    assert float(minmax) < 0.01
    assert float(clipped) > 200


def test_a_small_tensor_with_an_extreme_value_is_told_too():
    values = normal(10, size=30)
    values[2, 1] = 1e6
    assert outliers({"small": seen_of(*values)}).passed is False


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal((30, 5000)),
        lambda rng: np.maximum(rng.laplace(size=(30, 5000)), 0),
        lambda rng: rng.standard_t(5, (30, 5000)),
        lambda rng: np.exp(x := rng.standard_normal((30, 1000)) * 3) / np.exp(x).sum(1, keepdims=True),
        lambda rng: np.zeros((30, 100)),
        lambda rng: np.ones((30, 100)),
    ],
)
def test_long_tails_probabilities_and_constants_are_no_outliers(draw):
    assert outliers({"t": seen_of(*draw(np.random.default_rng(0)))}).passed is True


def test_a_trained_network_on_enough_of_its_own_data_passes(digits):
    samples, channels, values = observation_checks(observe(digits.graph, digits.samples(0, 200), 1), 200)
    assert samples.passed is True
    assert values.passed is True
    assert channels.passed is True
    few, _, _ = observation_checks(observe(digits.graph, digits.samples(0, 6), 1), 6)
    assert few.passed is False


# ---------------------------------------------------------------- another domain


def test_the_float_models_confidence_is_told_and_low_confidence_fails():
    sure = [0.9] * 30 + [0.3] * 2
    check = confidence(sure, [])
    assert check.passed is True
    assert "at least 0.5 sure of 30 of 32 (top-1 probability: mean 0.86, median 0.90)" in check.detail
    low = confidence([0.2] * 30, [])
    assert low.passed is False
    assert "may not hold in the field" in low.detail
    assert confidence([], []).passed is None


def test_beside_labelled_data_only_a_difference_beyond_chance_fails():
    labelled = [0.9] * 18 + [0.3] * 14
    assert confidence([0.9] * 15 + [0.3] * 17, labelled).passed is True
    found = confidence([0.9] * 2 + [0.3] * 30, labelled)
    assert found.passed is False
    assert "labelled samples: at least 0.5 sure of 18 of 32" in found.detail
    # A model that is never sure, not even of its own data, is no sign of another domain.
    assert confidence([0.2] * 30, [0.2] * 30).passed is True
