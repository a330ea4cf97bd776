"""Observers: one pass, bounded memory, and the same histogram as if all data had come at once."""

import itertools
import tracemalloc
import weakref

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.observers import (
    BINS,
    POINTS,
    RULES,
    Observation,
    entropy_range,
    load,
    minmax_range,
    mse_range,
    observe,
    percentile_range,
    ranges,
    save,
)
from edgekiln.errors import ConversionFailed

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.lists(arrays(np.float32, st.integers(1, 50), elements=FLOATS), min_size=1, max_size=6)
MODEST = st.floats(-100, 100, width=32)
SAMPLES = st.lists(arrays(np.float32, st.integers(1, 60), elements=MODEST), min_size=1, max_size=5)


def observed(*batches):
    seen = Observation()
    for batch in batches:
        seen.add(np.asarray(batch, np.float32))
    return seen


def same(a, b):
    return (a.lowest, a.highest, a.reach) == (b.lowest, b.highest, b.reach) and np.array_equal(
        a.counts, b.counts
    )


def alike(a, b):
    """All that does not depend on the order of additions, bit for bit."""
    return same(a, b) and np.array_equal(a.log_counts, b.log_counts) and np.array_equal(a.halves, b.halves)


def bin_width(seen):
    return (seen.reach or 1.0) * 2 / BINS


# ---------------------------------------------------------------- the histogram


@given(BATCHES)
def test_minimum_and_maximum_are_exact(batches):
    everything = np.concatenate(batches)
    seen = observed(*batches)
    assert (seen.lowest, seen.highest) == (everything.min(), everything.max())
    low, high = minmax_range(seen, symmetric=False)
    assert (low, high) == (min(everything.min(), 0), max(everything.max(), 0))
    assert minmax_range(seen, symmetric=True) == (-max(-low, high), max(-low, high))


@settings(max_examples=200)
@given(BATCHES)
def test_widening_gives_the_histogram_of_all_data_at_once(batches):
    assert same(observed(*batches), observed(np.concatenate(batches)))


@given(BATCHES, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(batches, random):
    mixed = list(batches)
    random.shuffle(mixed)
    assert same(observed(*batches), observed(*mixed))


@given(BATCHES)
def test_every_value_is_counted_once_and_in_its_bin(batches):
    seen, everything = observed(*batches), np.concatenate(batches).astype(np.float64)
    assert seen.counts.sum() == everything.size
    assert (seen.counts >= 0).all()
    edges = np.linspace(-1, 1, BINS + 1) * (seen.reach or 1.0)
    assert np.array_equal(np.histogram(everything, edges)[0], seen.counts)


@given(BATCHES)
def test_the_reach_is_the_least_power_of_two_above_every_value(batches):
    seen = observed(*batches)
    largest = float(np.abs(np.concatenate(batches)).max())
    if largest == 0:
        assert seen.reach == 0
    else:
        assert largest < seen.reach <= 2 * largest


@pytest.mark.parametrize("value", [1e-45, 1e-40, 1e-30, 1.0, 0.99999994, 1024.0, 3.4e38])
def test_the_smallest_and_the_largest_magnitudes_land_in_their_bins(value):
    seen = observed([value, -value, 0.0, value / 2])
    used = np.flatnonzero(seen.counts)
    centres = seen.centres()[used]
    for wanted in (value, -value, 0.0):
        assert np.abs(centres - np.float32(wanted)).min() <= bin_width(seen)


def test_zeros_before_the_first_value_stay_at_zero():
    seen = observed(np.zeros(100), [0.0, 3.0], np.zeros(50), [-1000.0])
    assert seen.counts[BINS // 2] >= 151
    assert seen.counts.sum() == 153


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        observed([1.0, bad, 2.0])


def test_an_empty_tensor_changes_nothing():
    assert same(observed([1.0], np.empty((0, 4)), [2.0]), observed([1.0], [2.0]))


def test_of_a_large_tensor_all_extremes_and_an_even_share_of_its_channels_are_seen():
    channels = 96
    value = np.random.default_rng(0).random((POINTS * 40 // channels, channels)).astype(np.float32)
    value[:, 7] += 10  # one channel apart: a stride that divides 96 would see all of it or nothing
    value[3, 5], value[100, 2] = -50, 70
    seen = observed(value)
    assert (seen.lowest, seen.highest) == (-50, 70)
    assert POINTS / 2 < seen.counts.sum() <= POINTS * 1.1
    share = seen.counts[seen.centres() > 5].sum() / seen.counts.sum()
    assert share == pytest.approx(1 / channels, rel=0.1)


def test_an_observation_is_as_large_after_many_samples_as_after_one():
    rng = np.random.default_rng(0)
    seen = observed(rng.standard_normal(10_000))
    tracemalloc.start()
    for _ in range(300):
        seen.add(rng.standard_normal(10_000).astype(np.float32) * 100)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000  # its histograms and one array of the generator; the data were 12 MB
    assert seen.counts.nbytes == BINS * 8


@settings(max_examples=200)
@given(BATCHES, BATCHES)
def test_parts_merge_to_what_one_pass_over_all_gives(one, two):
    whole, parts = Observation(), [Observation(), Observation()]
    for number, batch in enumerate([*one, *two]):
        whole.add(batch, number)
        parts[number >= len(one)].add(batch, number)
    before = [p.counts.copy() for p in parts]
    assert alike(parts[0].merge(parts[1]), whole)
    assert alike(parts[1].merge(parts[0]), whole)
    assert all(np.array_equal(p.counts, b) for p, b in zip(parts, before, strict=True))
    assert alike(whole.merge(Observation()), whole)
    assert alike(Observation().merge(whole), whole)


@given(st.lists(arrays(np.float32, (2, 3, 5), elements=MODEST), min_size=2, max_size=5))
def test_channels_of_either_axis_are_those_of_numpy_and_merge(batches):
    everything = np.stack(batches).astype(np.float64)
    for axis, over in ((1, (0, 1, 3)), (-1, (0, 1, 2))):
        seen, parts = Observation(axis=axis), [Observation(axis=axis), Observation(axis=axis)]
        for number, batch in enumerate(batches):
            seen.add(batch)
            parts[number % 2].add(batch)
        for found in (seen.channels, parts[0].merge(parts[1]).channels):
            assert np.array_equal(found.lowest, everything.min(over))
            assert np.array_equal(found.highest, everything.max(over))
            assert found.n == everything.size // found.lowest.size
            np.testing.assert_allclose(found.mean, everything.mean(over), rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(found.rms, np.sqrt((everything**2).mean(over)), rtol=1e-5, atol=1e-4)
            assert np.array_equal(found.constant, everything.min(over) == everything.max(over))
        assert (seen.lowest, seen.highest) == (everything.min(), everything.max())


def test_an_axis_of_two_lengths_has_no_channels_in_whatever_order_it_comes():
    short, long = np.ones((1, 4), np.float32), np.ones((1, 6), np.float32)
    for order in ([short, long, short], [short, short, long], [long, short]):
        seen, parts = Observation(axis=-1), [Observation(axis=-1), Observation(axis=-1)]
        for number, batch in enumerate(order):
            seen.add(batch)
            parts[number > 0].add(batch)
        assert seen.channels is None
        assert parts[0].merge(parts[1]).channels is None


def test_the_two_histograms_count_the_same_values():
    rng = np.random.default_rng(0)
    seen = observed(rng.standard_normal(5000), np.zeros(100), -np.abs(rng.standard_normal(3000)) * 1e-20)
    assert seen.log_counts.sum() == seen.counts.sum() == 8100
    values = np.abs(np.concatenate([rng.standard_normal(100_000) * 3]))
    for share in (0.5, 0.9, 0.99):
        exact = np.quantile(values, share)
        assert exact <= observed(values).core(share) <= exact * (1 + 1 / 16) + 1e-6


# ---------------------------------------------------------------- from an observation to a range

PERCENTILES = st.sampled_from([50.1, 90.0, 99.0, 99.9, 99.99, 100.0])


@settings(max_examples=200)
@given(SAMPLES, PERCENTILES, st.booleans())
def test_a_percentile_range_lies_within_minmax_and_holds_its_share(batches, percentile, symmetric):
    seen, everything = observed(*batches), np.concatenate(batches).astype(np.float64)
    low, high = percentile_range(seen, symmetric, percentile)
    widest = minmax_range(seen, symmetric)
    assert widest[0] <= low <= 0 <= high <= widest[1]
    assert low == -high or not symmetric
    inside = ((everything >= low) & (everything <= high)).mean()
    assert inside >= percentile / 100 - 1e-9


@given(SAMPLES, st.booleans())
def test_the_whole_percentile_is_minmax(batches, symmetric):
    seen = observed(*batches)
    assert percentile_range(seen, symmetric, 100.0) == minmax_range(seen, symmetric)


@given(SAMPLES, st.booleans())
def test_a_smaller_percentile_never_gives_a_wider_range(batches, symmetric):
    seen = observed(*batches)
    found = [percentile_range(seen, symmetric, p) for p in (60.0, 90.0, 99.0, 100.0)]
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(found))


def test_a_percentile_of_a_known_distribution():
    """Of 100,000 even values in [0, 1), 99 % lie below 0.995 where half of the rest is cut above."""
    values = (np.arange(100_000) + 0.5) / 100_000
    seen = Observation()
    for part in np.array_split(values.astype(np.float32), 10):
        seen.add(part)
    low, high = percentile_range(seen, False, 99.0)
    assert low == 0
    assert high == pytest.approx(0.995, abs=2 * bin_width(seen))
    assert percentile_range(seen, True, 99.0)[1] == pytest.approx(0.99, abs=2 * bin_width(seen))


def test_a_percentile_cuts_an_outlier_that_minmax_keeps():
    seen = observed(*np.random.default_rng(0).standard_normal((10, 10_000)), [1000.0])
    assert minmax_range(seen, True)[1] == 1000
    assert percentile_range(seen, True, 99.99)[1] < 6


def squared_error(values, low, high, symmetric, bits=8):
    """What quantising ``values`` onto [low, high] costs, computed from the values themselves."""
    steps = 2**bits - (2 if symmetric else 1)
    if high == low:
        return float((values**2).sum())
    scale = (high - low) / steps
    zero = np.round(low / scale)
    levels = np.clip(np.round(values / scale), zero, zero + steps)
    return float(((values - levels * scale) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.booleans())
def test_the_least_error_range_is_never_worse_than_minmax_on_what_the_histogram_holds(batches, symmetric):
    seen = observed(*batches)
    held = np.repeat(seen.centres(), seen.counts)
    low, high = mse_range(seen, symmetric)
    widest = minmax_range(seen, symmetric)
    assert widest[0] <= low <= 0 <= high <= widest[1]
    assert low == -high or not symmetric
    best = squared_error(held, low, high, symmetric)
    assert best <= squared_error(held, *widest, symmetric) * (1 + 1e-9) + 1e-30


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_least_error_range_is_near_the_best_of_all_on_the_data_itself(symmetric, bits):
    values = np.abs(np.random.default_rng(0).standard_t(5, 30_000)) - 1
    seen = observed(values)
    found, widest = mse_range(seen, symmetric, bits), minmax_range(seen, symmetric)
    exact = values.astype(np.float32).astype(np.float64)
    shares = np.linspace(0.02, 1, 150)
    lows = [None] if symmetric else [-1.0, -0.9, -0.75, -0.5]
    best = min(
        squared_error(exact, -high if low is None else low, high, symmetric, bits)
        for high in widest[1] * shares
        for low in lows
    )
    assert squared_error(exact, *found, symmetric, bits) < 1.3 * best
    if bits == 4:
        assert (
            squared_error(exact, *found, symmetric, bits) < squared_error(exact, *widest, symmetric, bits) / 2
        )


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_constant_tensor_has_a_range_that_holds_zero_and_its_value(value, symmetric):
    seen = {"t": observed(np.full(100, value), np.full(100, value))}
    exact = float(np.float32(value))
    for rule in RULES:
        low, high = ranges(seen, rule, symmetric, {"percentile": 99.99})["t"]
        assert low <= 0 <= high
        # The least squared error may clip a constant by its own rounding, not by more.
        assert low <= exact <= high or abs(exact) <= 1.05 * max(-low, high)


# ---------------------------------------------------------------- entropy


def kl_of_threshold(counts, end, levels):
    """The loss of the range that ends at ``end``, step by step as the TensorRT talk has it."""
    p = counts[:end].astype(float)
    p[-1] += counts[end:].sum()
    q = np.zeros(end)
    edges = np.arange(levels + 1) * end // levels
    for a, b in itertools.pairwise(edges):
        part = counts[a:b]
        used = part > 0
        if used.any():
            q[a:b][used] = part.sum() / used.sum()
    if ((p > 0) & (q == 0)).any():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


DISTRIBUTIONS = {
    "normal": lambda rng: rng.standard_normal(200_000),
    "laplace": lambda rng: rng.laplace(size=200_000),
    "student": lambda rng: rng.standard_t(3, 200_000),
    "relu": lambda rng: np.maximum(rng.laplace(size=200_000), 0),
}


def counted(values):
    """All of ``values``, without the bound on points of one sample."""
    return observed(*np.array_split(values, -(-values.size // POINTS)))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_entropy_threshold_is_the_best_of_the_published_method(name):
    seen = counted(DISTRIBUTIONS[name](np.random.default_rng(0)))
    half, width = BINS // 2, bin_width(seen)
    folded = (seen.counts[half:] + seen.counts[:half][::-1]).astype(float)
    zeros = seen.counts.astype(float)
    zeros[half] = min(zeros[half], max(zeros[half - 1], zeros[half + 1]))
    folded = zeros[half:] + zeros[:half][::-1]
    assert np.flatnonzero(folded)[-1] >= 2048  # enough bins below the largest magnitude
    low, high = entropy_range(seen, symmetric=True)
    assert low == -high
    losses = {end: kl_of_threshold(folded, end, 128) for end in range(128, half + 1, 16)}
    most = np.cumsum(folded) >= 0.9 * folded.sum()
    losses = {end: loss for end, loss in losses.items() if most[end - 1]}
    ours = kl_of_threshold(folded, min(round(high / width), np.flatnonzero(folded)[-1] + 1), 128)
    assert ours <= min(losses.values()) * 1.02 + 1e-9


def test_entropy_keeps_all_of_an_even_distribution_and_leaves_out_a_few_outliers():
    even = np.random.default_rng(0).uniform(-1, 1, 200_000)
    for symmetric in (True, False):
        low, high = entropy_range(counted(even), symmetric)
        assert (low, high) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))
        low, high = entropy_range(counted(np.append(even, [7.9, -7.9] * 5)), symmetric)
        assert (low, high) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))


def test_entropy_is_not_minmax_where_tails_are_long_and_takes_each_end_by_itself():
    tail = np.maximum(np.random.default_rng(0).standard_t(3, 200_000), -0.5)
    seen = counted(tail)
    low, high = entropy_range(seen, symmetric=False)
    assert low == pytest.approx(-0.5, abs=0.01)
    assert high < 0.5 * minmax_range(seen, symmetric=False)[1]
    assert (tail <= high).mean() > 0.99
    assert entropy_range(seen, symmetric=False, bits=4)[1] < high
    assert entropy_range(seen, symmetric=False, bits=16) == minmax_range(seen, symmetric=False)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.booleans(), st.sampled_from([4, 8, 16]))
def test_an_entropy_range_lies_within_minmax(batches, symmetric, bits):
    seen = observed(*batches)
    low, high = entropy_range(seen, symmetric, bits)
    widest = minmax_range(seen, symmetric)
    assert widest[0] <= low <= 0 <= high <= widest[1]
    assert low == -high or not symmetric


# ---------------------------------------------------------------- one value far from all others


@pytest.mark.parametrize("outlier", [1e6, -1e6, 1e30])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_value_of_a_million_does_not_blind_the_rules_that_clip(outlier, symmetric):
    values = np.random.default_rng(0).standard_normal(400_000)
    seen = counted(np.append(values, outlier))
    assert not seen.resolved()
    assert max(-minmax_range(seen, symmetric)[0], minmax_range(seen, symmetric)[1]) == pytest.approx(
        abs(outlier)
    )
    plain = counted(values)
    for found, wanted in (
        (percentile_range(seen, symmetric, 99.99), percentile_range(plain, symmetric, 99.99)),
        (entropy_range(seen, symmetric), entropy_range(plain, symmetric)),
    ):
        assert found == (pytest.approx(wanted[0], rel=0.2), pytest.approx(wanted[1], rel=0.2))


def test_least_squared_error_weighs_an_outlier_by_its_square_and_one_of_many_is_cut():
    values = np.random.default_rng(0).standard_normal(400_000)
    # Kept, 1e3 costs the others a step of 4 to 8; clipped at 40, it costs 1e6 once in 400,000.
    assert mse_range(counted(np.append(values, 1e3)), symmetric=False)[1] < 1e3
    # 1e6 costs 1e12 once, 2.5e6 a value: more than the values themselves, so that this rule keeps it.
    assert mse_range(counted(np.append(values, 1e6)), symmetric=False)[1] > 0.9e6


def test_the_bits_of_the_activations_reach_the_rules_that_weigh_clipping():
    seen = {"t": counted(np.random.default_rng(0).standard_t(4, 100_000))}
    for rule in ("mse", "entropy"):
        narrow, wide = (ranges(seen, rule, True, {"activation_bits": bits})["t"][1] for bits in (8, 16))
        assert narrow < 0.95 * wide
        assert wide == pytest.approx(minmax_range(seen["t"], True)[1], rel=0.02)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="no range rule 'loudest'"):
        ranges({}, "loudest", False)


# ---------------------------------------------------------------- watching a graph


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def graph(tmp_path):
    """x -> conv -> relu -> dead (times zero) -> sum -> y: five activations, and a shape that is no float."""
    rng = np.random.default_rng(0)
    constants = [
        ("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32)),
        ("zero", np.float32(0)),
        ("offset", np.float32([1])),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Mul", ["relu", "zero"], ["dead"]),
        helper.make_node("Add", ["dead", "offset"], ["sum"]),
        helper.make_node("Shape", ["sum"], ["shape"]),
        helper.make_node("Reshape", ["sum", "shape"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [floats("x", 1, 3, 8, 8), floats("zero")],  # "zero" is an initialiser, as old exporters list them
        [floats("y", 1, 4, 8, 8)],
        [numpy_helper.from_array(a, n) for n, a in constants],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def samples(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32) * (1 + i)} for i in range(n)]


def test_every_float_activation_and_input_is_observed_and_nothing_else(graph):
    seen = observe(graph, samples(3), 1)
    assert set(seen) == {"x", "conv", "relu", "dead", "sum", "y"}
    data = np.concatenate([s["x"].ravel() for s in samples(3)])
    assert same(seen["x"], observed(data))
    assert seen["relu"].lowest == 0
    assert seen["relu"].highest == seen["conv"].highest > 0
    assert (seen["dead"].lowest, seen["dead"].highest) == (0, 0)
    assert (seen["sum"].lowest, seen["sum"].highest) == (1, 1)
    assert all(o.counts.sum() == 3 * 4 * 64 for n, o in seen.items() if n != "x")


def test_a_small_bound_splits_the_work_and_observes_the_same(graph):
    whole = observe(graph, samples(3), 1)
    for bound in (1, 1024, 2048):
        split = observe(graph, samples(3), 1, group_bytes=bound)
        assert set(split) == set(whole)
        assert all(alike(split[n], whole[n]) for n in whole)


def test_memory_does_not_grow_with_the_number_of_samples(graph):
    def peak(n):
        def stream():
            rng = np.random.default_rng(0)
            for _ in range(n):
                yield {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}

        tracemalloc.start()
        observe(graph, stream(), 1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(200) < 1.1 * peak(8) + 20_000


class Sample(dict):
    """A sample that can be watched."""

    __hash__ = object.__hash__


def test_samples_are_read_one_at_a_time(graph):
    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for number in range(20):
            sample = Sample(samples(1, number)[0])
            alive.add(sample)
            yield sample
            del sample
            most = max(most, len(alive))

    observe(graph, stream(), 1)
    assert most <= 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_no_number_is_named_with_its_sample(graph, bad):
    given_ = samples(4)
    given_[2]["x"][0, 0, 0, 0] = bad
    with pytest.raises(ConversionFailed, match="tensor 'x' holds NaN or infinity on sample 3") as caught:
        observe(graph, given_, 1)
    assert caught.value.cure


def test_an_activation_that_overflows_is_named_with_its_sample(graph):
    given_ = samples(3)
    given_[1]["x"] = np.full((1, 3, 8, 8), 3e38, np.float32) * np.sign(given_[1]["x"])
    named = r"'conv' of node 'conv' \(Conv\) holds NaN or infinity on sample 2"
    with pytest.raises(ConversionFailed, match=named):
        observe(graph, given_, 1)


def test_no_sample_at_all_is_a_failed_conversion_with_a_cure(graph):
    with pytest.raises(ConversionFailed, match="there is no sample") as caught:
        observe(graph, [], 1)
    assert "--data" in caught.value.cure


# ---------------------------------------------------------------- kept for another run


def test_observations_survive_the_disk_and_give_the_same_ranges(graph, tmp_path):
    seen = observe(graph, samples(3), 1)
    save(seen, tmp_path / "o.npz")
    again = load(tmp_path / "o.npz")
    assert set(again) == set(seen)
    assert all(alike(again[n], seen[n]) for n in seen)
    for rule in RULES:
        assert ranges(again, rule, False, {"percentile": 99.9}) == ranges(
            seen, rule, False, {"percentile": 99.9}
        )
    again["x"].add(np.float32([1e6]))
    assert again["x"].highest == 1e6


def test_the_same_observations_are_the_same_bytes(graph, tmp_path):
    for name in ("a", "b"):
        save(dict(reversed(observe(graph, samples(2), 1).items())), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_observed_survives_too(tmp_path):
    save({}, tmp_path / "o.npz")
    assert load(tmp_path / "o.npz") == {}
