"""What is said of a soak's figures: no change where there is none, one where there is, whatever the unit."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekiln.prove.soak_analysis import (
    FALSE_ALARMS,
    Blocks,
    burst,
    causes,
    changes,
    kept_share,
    sustained,
)
from edgekiln.sensors.live import OTHERS, QUOTA, STOLEN
from edgekiln.sensors.recorder import Recording, Track
from edgekiln.sensors.sysfs import Trip


def blocks(mean_ms, step_s=0.1, calls=50):
    values = np.asarray(mean_ms, np.float64)
    middle = (np.arange(len(values)) + 0.5) * step_s
    return Blocks(
        middle_s=tuple(middle.tolist()),
        calls=(calls,) * len(values),
        seconds=tuple((values * calls / 1e3).tolist()),
    )


def noise(seed, count=300, spread=0.1, outliers=0.03):
    """Latencies as a busy machine gives them: skewed, with a few blocks that were hit hard."""
    random = np.random.default_rng(seed)
    values = np.exp(random.normal(0, spread, count))
    values[random.random(count) < outliers] *= 8
    return values


# ---------------------------------------------------------------- changes


@pytest.mark.parametrize("spread", [0.02, 0.15, 0.5])
def test_stationary_noise_is_said_to_change_as_seldom_as_stated(spread):
    runs = 400
    alarms = sum(bool(changes(blocks(noise(seed, spread=spread)))) for seed in range(runs))
    # more than 12 of 400 has a chance of one in ten thousand where each has 1 %
    assert alarms <= 12
    assert FALSE_ALARMS == 0.01


@given(st.integers(0, 10**6), st.integers(80, 220), st.sampled_from([1.2, 1.5, 4.0, 1 / 1.2]))
@settings(deadline=None, max_examples=60)
def test_a_step_of_a_fifth_is_found_at_its_place(seed, at, factor):
    values = noise(seed, spread=0.05)
    values[at:] *= factor
    found = changes(blocks(values))
    nearest = min(found, key=lambda c: abs(c.at_s - at * 0.1))
    assert abs(nearest.at_s - at * 0.1) <= 1.0
    assert nearest.ratio == pytest.approx(factor, rel=0.12)
    assert nearest.p <= FALSE_ALARMS


@given(st.integers(0, 10**6), st.floats(1e-3, 1e4), st.booleans())
@example(35, 513.0, True)  # two splits that lie equally well
@settings(deadline=None, max_examples=150)
def test_the_unit_does_not_matter(seed, factor, stepped):
    values = noise(seed, count=200)
    values[90:] *= 1.4 if stepped else 1.0
    plain, scaled = changes(blocks(values)), changes(blocks(values * factor))
    assert [(c.at_s, c.p) for c in plain] == [(c.at_s, c.p) for c in scaled]
    assert [c.ratio for c in plain] == pytest.approx([c.ratio for c in scaled])
    assert [c.before_ms * factor for c in plain] == pytest.approx([c.before_ms for c in scaled])


def test_a_slow_spell_in_the_middle_is_two_changes():
    values = noise(7, spread=0.04)
    values[100:180] *= 2
    first, second = changes(blocks(values))
    assert (first.at_s, second.at_s) == (pytest.approx(10, abs=0.5), pytest.approx(18, abs=0.5))
    assert first.ratio == pytest.approx(2, rel=0.1)
    assert second.ratio == pytest.approx(0.5, rel=0.1)


def test_a_blip_before_a_step_does_not_move_it():
    values = noise(5, spread=0.03, outliers=0)
    values[160:164] *= 1.8
    values[170:] *= 2
    (found,) = changes(blocks(values))
    assert found.at_s == pytest.approx(17, abs=0.2)
    assert found.ratio == pytest.approx(2, rel=0.05)


def test_a_change_below_five_percent_is_of_no_interest():
    values = noise(3, spread=0.001, outliers=0)
    values[150:] *= 1.04
    assert changes(blocks(values)) == ()


@pytest.mark.parametrize("count", [1, 2, 15])
def test_too_few_blocks_show_no_change_and_no_rate(count):
    few = blocks([1.0] * count)
    assert changes(few) == ()
    if count < 10:
        assert burst(few, ()).per_second is None
        assert sustained(few).reason == f"{count} blocks of calls are too few for a rate"
        assert kept_share(few, burst(few, ()), sustained(few)) is None


def test_equal_values_are_no_change():
    assert changes(blocks([3.0] * 200)) == ()


# ---------------------------------------------------------------- rates


def test_burst_and_sustained_rates_are_those_of_the_two_levels():
    values = noise(11, count=600, spread=0.03, outliers=0)
    values[:12] *= np.linspace(6, 1.2, 12)  # still warming up
    values[240:] *= 2
    taken = blocks(values)
    found = changes(taken)
    first, last = burst(taken, found), sustained(taken)
    assert first.per_second == pytest.approx(1000, rel=0.03)
    assert first.start_s > 0.5
    assert first.end_s <= found[-1].at_s
    assert last.per_second == pytest.approx(500, rel=0.03)
    assert last.start_s == pytest.approx(40, abs=0.2)
    share, (low, high) = kept_share(taken, first, last)
    assert low <= share <= high
    assert share == pytest.approx(0.5, rel=0.04)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_a_rate_lies_in_its_interval_and_scales_with_the_latency(seed, factor):
    values = noise(seed, count=120)
    taken, scaled = blocks(values), blocks(values * factor)
    for rate in (burst, lambda b, c: sustained(b)):
        a, b = rate(taken, ()), rate(scaled, ())
        if a.per_second is None:
            assert b.per_second is None
            continue
        assert a.interval[0] <= a.per_second * 1.0001
        assert a.per_second <= a.interval[1] * 1.0001
        assert b.per_second * factor == pytest.approx(a.per_second)


def test_a_start_that_never_settles_has_no_burst_rate():
    values = np.geomspace(50, 1, 200)
    found = burst(blocks(values), ())
    assert (found.per_second, found.reason) == (None, "no stretch at the start was stable within 5 %")


# ---------------------------------------------------------------- causes


def recording(**tracks):
    """100 s at a sample a second; each track has one value up to 50 s and one after. ``_`` is a space."""
    made = tuple(
        Track(sensor=name.replace("_", " "), quantity=quantity, values=(a,) * 50 + (b,) * 50)
        for name, (quantity, a, b) in tracks.items()
    )
    return Recording(
        times_s=tuple(float(t) for t in range(100)), tracks=made, events=(), interval_s=1.0, ticks=100
    )


BEFORE, AFTER = (0.0, 50.0), (50.0, 100.0)
TRIP = Trip(zone="tj", kind="passive", celsius=95.0, now_celsius=50.0)


@pytest.mark.parametrize(
    ("tracks", "kinds"),
    [
        ({"cpu0": ("clock_mhz", 2000, 1500), "cpu1": ("clock_mhz", 2000, 2000)}, ["clock"]),
        ({"GR3D FREQ": ("clock_mhz", 1300, 600)}, ["clock"]),
        ({"cpu0": ("clock_mhz", 2000, 1960)}, ["unknown"]),
        ({"tj": ("temperature_c", 60, 94.5)}, ["temperature"]),
        ({"tj": ("temperature_c", 60, 90)}, ["unknown"]),
        ({"gpu": ("temperature_c", 60, 99)}, ["unknown"]),
        ({QUOTA: ("share", 0.0, 0.9)}, ["quota"]),
        ({QUOTA: ("share", 0.9, 0.9)}, ["unknown"]),
        ({STOLEN: ("share", 0.01, 0.2)}, ["stolen"]),
        ({OTHERS: ("cpus", 0.1, 1.1)}, ["load"]),
        ({OTHERS: ("cpus", 1.1, 0.1)}, ["unknown"]),
        ({"cpu0": ("clock_mhz", 2000, 1000), "tj": ("temperature_c", 60, 95), OTHERS: ("cpus", 0, 1)}, None),
        ({}, ["unknown"]),
        ({"cpu0": ("clock_mhz", None, 1000), QUOTA: ("share", None, None)}, ["unknown"]),
    ],
)
def test_what_changed_with_the_latency_is_named(tracks, kinds):
    found = causes(recording(**tracks), BEFORE, AFTER, [TRIP])
    assert [c.kind for c in found] == (kinds or ["clock", "temperature", "load"])
    assert all(c.what for c in found)


def test_what_gets_hot_long_after_the_slow_down_did_not_make_it():
    late = recording(tj=("temperature_c", 60, 60))
    (track,) = late.tracks
    late = msgspec.structs.replace(
        late, tracks=(msgspec.structs.replace(track, values=(60.0,) * 80 + (96.0,) * 20),)
    )
    assert [c.kind for c in causes(late, BEFORE, AFTER, [TRIP])] == ["unknown"]


def test_sentences_hold_both_sides():
    (quota,) = causes(recording(**{QUOTA: ("share", 0.0, 0.9)}), BEFORE, AFTER, [])
    assert quota.what == "a CPU quota stopped it in 90% of the periods, 0% before"
    (unknown,) = causes(recording(), BEFORE, AFTER, [])
    assert unknown.what.startswith("unknown cause: ")
