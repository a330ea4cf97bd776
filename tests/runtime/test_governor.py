"""The governor stays below its limits, explains itself, does not chatter, and copes with sensors that go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime import governor
from edgekiln.runtime.vocabulary import Allowance, Event, Goal, Health

GOAL = Goal(deadline_ms=33.0)


class Board:
    """A machine of two thermal stages that computes as much as it is allowed, a second a step."""

    def __init__(self, *, air_c: float = 35.0, power: bool = True, trip_c: float | None = 99.0) -> None:
        self.air_c, self.power, self.trip_c = air_c, power, trip_c
        self.rise = [0.35 * 6.2, 3.6 * 6.2]
        self.state, self.allowance, self.now = governor.start(), Allowance(), 0.0
        self.random = np.random.default_rng(3)
        self.hottest, self.watts, self.events = -math.inf, 0.0, list[Event]()
        self.shares: list[float] = []

    def run(self, seconds: int, goal: Goal = GOAL, *, sensor: bool = True, **more: object) -> None:
        for _ in range(seconds):
            busy = self.allowance.busy_share
            self.watts = 6.2 + 15.2 * busy
            for i, (resistance, tau) in enumerate(((0.35, 2.0), (3.6, 300.0))):
                decay = math.exp(-1.0 / tau)
                self.rise[i] = decay * self.rise[i] + (1.0 - decay) * resistance * self.watts
            self.now += 1.0
            celsius = self.air_c + sum(self.rise)
            self.hottest = max(self.hottest, celsius)
            seen = round((celsius + self.random.normal() * 0.3) * 2) / 2
            health = Health(
                at_s=self.now,
                temperature_c=seen if sensor else None,
                trip_c=self.trip_c,
                zone="tj",
                power_watts=self.watts + self.random.normal() * 0.2 if self.power else None,
                busy_share=busy,
                **more,  # type: ignore[arg-type]
            )
            self.state, self.allowance = governor.govern(self.state, health, goal)
            self.events += self.state.events
            self.shares.append(self.allowance.busy_share)


@pytest.mark.parametrize("power", [True, False])
def test_it_stays_below_the_trip_point_and_uses_what_the_machine_can_give(power: bool) -> None:
    board = Board(power=power)
    board.run(1800)
    assert board.hottest < 99.0
    assert board.state.footing == "forecast"
    held = (97.0 - 35.0) / 3.95  # watts at the limit
    assert np.mean(board.shares[-600:]) == pytest.approx((held - 6.2) / 15.2, abs=0.08)


def test_a_cold_machine_may_burst_before_it_settles() -> None:
    board = Board()
    board.run(1800)
    assert np.mean(board.shares[:120]) == 1.0
    assert np.mean(board.shares[-300:]) < 0.75


def test_it_does_not_chatter() -> None:
    board = Board()
    board.run(1800)
    changes = sum(a != b for a, b in zip(board.shares[600:], board.shares[601:], strict=False))
    assert changes < 60, "at most one change in twenty seconds once settled"


def test_hotter_air_is_met_before_the_trip_point() -> None:
    board = Board(air_c=25.0)
    board.run(900)
    cool = np.mean(board.shares[-200:])
    for _ in range(300):  # the sun comes out
        board.air_c += 0.05
        board.run(1)
    board.run(900)
    assert board.hottest < 99.0
    assert np.mean(board.shares[-200:]) < cool - 0.1


def test_a_ceiling_below_the_trip_point_counts_and_one_above_it_does_not() -> None:
    board = Board()
    board.run(1500, Goal(deadline_ms=33.0, ceiling_c=80.0))
    assert board.hottest < 81.0
    health = Health(at_s=1.0, temperature_c=50.0, trip_c=99.0)
    assert governor.limit_c(health, Goal(deadline_ms=33.0, ceiling_c=120.0)) == 99.0 - governor.MARGIN_C


def test_the_power_budget_is_kept() -> None:
    board = Board(air_c=10.0)
    goal = Goal(deadline_ms=33.0, power_watts=12.0)
    board.run(300, goal)
    powers = [6.2 + 15.2 * share for share in board.shares[60:]]
    assert np.mean(powers) <= 12.0
    assert np.mean(powers) > 10.5
    assert board.allowance.power_watts is not None
    assert board.allowance.power_watts <= 12.0
    assert "12.0 W" in board.allowance.why


def test_every_change_is_explained_in_a_sentence_and_an_event() -> None:
    board = Board()
    board.run(600)
    assert board.events
    assert all(e.kind == "governor" and e.why and e.done for e in board.events)
    assert "°C" in board.allowance.why
    assert "footing" in board.events[-1].facts


def test_a_model_that_is_not_known_yet_says_so_and_is_careful_near_the_limit() -> None:
    board = Board(air_c=70.0)
    board.run(6)
    assert board.allowance.busy_share < 1.0
    assert board.state.footing == "reactive"
    assert "not known yet" in board.allowance.why


def test_a_lost_sensor_makes_it_cautious_and_a_returned_one_lifts_that() -> None:
    board = Board(air_c=25.0)
    board.run(300)
    before = board.allowance.busy_share
    board.run(5, sensor=False)
    assert board.allowance.busy_share == before, "a look that failed is no reason yet"
    board.run(60, sensor=False)
    assert board.allowance.busy_share <= governor.BLIND_SHARE
    assert "can't be read" in board.allowance.why
    board.run(120)
    assert board.state.footing != "blind"
    assert board.allowance.busy_share > governor.BLIND_SHARE


def test_a_machine_without_sensors_is_not_limited_and_the_reason_is_told() -> None:
    state, allowance = governor.govern(governor.start(), Health(at_s=1.0), GOAL)
    assert allowance.busy_share == 1.0
    assert "no temperature" in allowance.why
    assert state.events == ()


def test_the_battery_rule_and_its_hysteresis() -> None:
    board = Board(air_c=10.0)
    board.run(30, battery_share=0.5, on_battery=True)
    assert board.allowance.busy_share == 1.0
    board.run(30, battery_share=0.19, on_battery=True)
    assert board.allowance.busy_share == pytest.approx(0.6)
    assert "battery" in board.allowance.why
    board.run(30, battery_share=0.21, on_battery=True)
    assert board.allowance.busy_share == pytest.approx(0.6)
    board.run(30, battery_share=0.09, on_battery=True)
    assert board.allowance.busy_share == pytest.approx(0.3)
    board.run(30, battery_share=0.09, on_battery=False)
    assert board.allowance.busy_share == 1.0


def test_a_clock_set_back_is_survived() -> None:
    board = Board()
    board.run(400)
    board.now -= 3600.0
    board.run(400)
    assert board.hottest < 99.0
    assert board.state.footing == "forecast"


SOME = st.one_of(st.none(), st.floats(-300.0, 300.0), st.sampled_from([-256.0, math.nan, math.inf]))


@settings(deadline=None, max_examples=40)
@given(
    looks=st.lists(
        st.tuples(st.floats(-1e4, 1e4), SOME, SOME, SOME | st.floats(0.0, 1.0)),
        max_size=30,
    )
)
def test_whatever_it_sees_it_allows_a_share(
    looks: list[tuple[float, float | None, float | None, float | None]],
) -> None:
    state = governor.start()
    for at, celsius, watts, busy in looks:
        health = Health(at_s=at, temperature_c=celsius, trip_c=90.0, power_watts=watts, busy_share=busy)
        state, allowance = governor.govern(state, health, Goal(deadline_ms=33.0, power_watts=10.0))
        assert governor.LEAST_SHARE <= allowance.busy_share <= 1.0
        assert allowance.power_watts is None or math.isfinite(allowance.power_watts)
