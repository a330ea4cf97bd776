"""The simulator: physics that hold, a kernel that throttles, the same seed the same result."""

from __future__ import annotations

import time

import msgspec
import pytest

from edgekiln.devices import load
from edgekiln.errors import BadInput
from edgekiln.runtime.simulate import (
    ALL,
    BEST,
    LOWEST,
    OURS,
    UNGOVERNED,
    Moment,
    Profile,
    Reactive,
    Trace,
    crowded,
    profile,
    profiles,
    simulate,
    steady,
    warm_day,
)
from edgekiln.runtime.simulate.device import Device
from edgekiln.runtime.simulate.run import Result
from edgekiln.runtime.vocabulary import Goal


def goal(held: Profile) -> Goal:
    return Goal(deadline_ms=held.deadline_ms, fps=held.fps, most_every=1)


def ran(name: str, policy: object, trace: Trace, seconds: float = 900.0, seed: int = 1) -> Result:
    held = profile(name)
    return simulate(held, held.rungs(), goal(held), policy, trace, seconds, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(profiles()))
def test_every_figure_says_where_it_came_from_and_the_trip_point_is_the_catalogue_s(name: str) -> None:
    held = profile(name)
    assert all(figure.source and "{" not in figure.source for figure in held.figures.values())
    assert held.trip_c == load(held.device).figures[held.trip].value
    assert "case_k_per_w" in held.assumptions, "no document states the resistance of a user's case"


def test_heat_settles_where_ohm_s_law_of_heat_says() -> None:
    held = profile("orin-nano")
    device = Device(held, mode="MAXN_SUPER", ambient_c=20.0, step_s=0.25, seed=1)
    for _ in range(40_000):
        device.advance(0.5, 20.0)
    watts = held.value("idle_watts") + 0.5 * held.value("active_watts")
    through = held.value("die_k_per_w") + held.value("case_k_per_w")
    assert device.die_c == pytest.approx(20.0 + watts * through, abs=0.1)
    assert device.throttle == 0


def test_the_kernel_s_governor_lowers_the_clock_at_the_trip_point_and_calls_take_longer() -> None:
    held = profile("orin-nano")
    device = Device(held, mode="MAXN_SUPER", ambient_c=45.0, step_s=0.25, seed=1)
    before = sum(device.latency_ms(10.0) for _ in range(500))
    for _ in range(20_000):
        device.advance(1.0, 45.0)
    assert device.clock < 1.0
    assert device.die_c < device.trip_c + 3.0
    assert sum(device.latency_ms(10.0) for _ in range(500)) > 1.1 * before
    for _ in range(4_000):
        device.advance(0.0, 20.0)
    assert device.clock == 1.0


def test_a_power_mode_caps_power() -> None:
    held = profile("orin-nano")
    device = Device(held, mode="15W", ambient_c=20.0, step_s=0.25, seed=1)
    device.advance(1.0, 20.0)
    assert device.watts == pytest.approx(15.0)
    with pytest.raises(BadInput, match="no such mode"):
        Device(held, mode="16W", ambient_c=20.0, step_s=0.25, seed=1)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    first, again = (ran("phone", OURS, crowded(120.0, 4), 120.0) for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(again)
    assert ran("phone", OURS, crowded(120.0, 4), 120.0, seed=2) != first


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
def test_every_frame_is_accounted_for(policy: object) -> None:
    found = ran("pi-5", policy, crowded(300.0, 2), 300.0)
    assert found.how == "simulated"
    waiting = found.frames - found.answered - found.dropped - found.skipped
    assert 0 <= waiting <= 2
    assert found.in_time <= found.answered
    assert found.energy_j == pytest.approx(found.mean_watts * 300.0)
    assert sum(row.frames for row in found.timeline) <= found.frames


def test_a_battery_drains_by_what_was_spent() -> None:
    found = ran("phone", BEST, steady(), 600.0)
    whole = profile("phone").value("battery_wh") * 3600.0
    assert found.battery_share == pytest.approx(1.0 - found.energy_j / whole)


def test_more_of_others_load_makes_calls_late() -> None:
    busy = Trace(name="busy", moments=(Moment(at_s=0.0, load=0.6),))
    assert ran("orin-nano", BEST, busy, 60.0).deadline_share < 0.5
    assert ran("orin-nano", BEST, steady(), 60.0).deadline_share > 0.95


@pytest.mark.parametrize("name", list(profiles()))
def test_ours_keeps_the_deadline_below_the_trip_point_on_a_warm_day(name: str) -> None:
    found = ran(name, OURS, warm_day(1800.0), 1800.0)
    assert found.throttled_s == 0.0
    assert found.max_temperature_c < found.trip_c
    assert found.deadline_share >= 0.99
    assert found.useful_quality > ran(name, LOWEST, warm_day(1800.0), 1800.0).useful_quality


def test_the_governor_is_what_keeps_it_below_the_trip_point() -> None:
    without = ran("orin-nano", UNGOVERNED, warm_day(1800.0), 1800.0)
    assert without.throttled_s > 60.0
    assert without.max_temperature_c >= without.trip_c


def test_the_reactive_policy_acts_only_after_the_throttle() -> None:
    found = ran("orin-nano", Reactive(), warm_day(1800.0), 1800.0)
    assert found.throttled_s > 0.0
    assert found.changes > 10


def test_a_long_run_takes_a_small_part_of_its_time() -> None:
    begun = time.process_time()
    ran("phone", OURS, warm_day(1800.0), 1800.0)
    assert time.process_time() - begun < 1800.0 / 100, "hours in seconds, on the slowest of machines"


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(BadInput, match="orin-nano"):
        profile("orin-nanoo")


def test_a_trace_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin at 0"):
        Trace(name="late", moments=(Moment(at_s=5.0),))
    with pytest.raises(ValueError, match="load"):
        Trace(name="full", moments=(Moment(at_s=0.0, load=1.0),))
