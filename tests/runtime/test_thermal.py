"""A thermal model that learns: it finds what made a trace, and never says nonsense."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime import thermal
from edgekiln.runtime.thermal import Thermal
from edgekiln.sensors.tegrastats import parse

Stage = tuple[float, float]
"""K per unit of input, and seconds."""


def heated(
    stages: Sequence[Stage],
    ambient_c: float,
    inputs: Sequence[float],
    *,
    noise_c: float = 0.3,
    grain_c: float = 0.5,
    of: thermal.Input = "power",
    seed: int = 1,
    apart_s: float = 1.0,
) -> tuple[Thermal, list[float]]:
    """A model that watched a machine with ``stages`` for ``apart_s`` per input, and the true temperatures."""
    random = np.random.default_rng(seed)
    model, rise, truth = thermal.begin(of), [0.0] * len(stages), []
    for at, power in enumerate(inputs):
        for i, (resistance, tau) in enumerate(stages):
            decay = math.exp(-apart_s / tau)
            rise[i] = decay * rise[i] + (1.0 - decay) * resistance * power
        truth.append(ambient_c + sum(rise))
        seen = truth[-1] + random.normal() * noise_c
        model = thermal.observe(model, apart_s * (at + 1), round(seen / grain_c) * grain_c, power)
    return model, truth


def steps(count: int, low: float, high: float, period: int = 60) -> list[float]:
    return [low if (s // period) % 2 == 0 else high for s in range(count)]


@settings(deadline=None, max_examples=10)
@given(
    resistance=st.floats(1.0, 10.0),
    tau=st.floats(40.0, 400.0),
    ambient=st.floats(10.0, 45.0),
    seed=st.integers(0, 99),
)
def test_one_stage_is_recovered_from_a_noisy_rounded_trace(
    resistance: float, tau: float, ambient: float, seed: int
) -> None:
    high = 50.0 / resistance  # 50 K at full power, whatever the machine
    model, _ = heated([(resistance, tau)], ambient, steps(500, 0.2 * high, high, 20), seed=seed, apart_s=3.0)
    found = thermal.describe(model)
    assert found.identified
    assert found.resistance == pytest.approx(resistance, rel=0.2)
    assert found.time_constants_s[-1] == pytest.approx(tau, rel=0.4)
    assert found.capacities[-1] == pytest.approx(tau / resistance, rel=0.4)
    assert found.ambient_c == pytest.approx(ambient, abs=6.0)


def test_two_stages_are_told_apart() -> None:
    model, _ = heated([(0.8, 3.0), (2.5, 150.0)], 25.0, steps(1200, 6.0, 20.0))
    found = thermal.describe(model)
    assert len(found.time_constants_s) == 2
    assert found.resistances[0] == pytest.approx(0.8, rel=0.35)
    assert found.resistances[1] == pytest.approx(2.5, rel=0.2)
    assert thermal.sustainable(model, 70.0) == pytest.approx((70 - 25) / 3.3, rel=0.05)


@pytest.mark.parametrize("watched", [150, 400, 1100])
def test_a_forecast_meets_what_comes(watched: int) -> None:
    stages, inputs = [(0.5, 3.0), (3.0, 200.0)], steps(1300, 5.0, 18.0, 45)
    model, _ = heated(stages, 30.0, inputs[:watched])
    plan = [(float(len(list(g))), p) for p, g in itertools.groupby(inputs[watched : watched + 90])]
    _, truth = heated(stages, 30.0, inputs[: watched + 90])
    rows = thermal.forecast(model, plan)
    assert [row[0] for row in rows] == [float(s + 1) for s in range(90)]
    errors = [row[1] - true for row, true in zip(rows, truth[watched:], strict=True)]
    assert max(map(abs, errors)) < 2.5


def test_the_share_of_busy_time_stands_in_for_power() -> None:
    model, truth = heated([(45.0, 120.0)], 38.0, steps(900, 0.1, 0.9), of="busy")
    assert thermal.describe(model).resistance == pytest.approx(45.0, rel=0.15)
    mean, _ = thermal.reaction(model, (60.0,), (0.1,))
    assert mean[0, 0] < truth[-1]


def test_a_constant_input_teaches_nothing_about_its_effect_and_the_model_says_so() -> None:
    model, _ = heated([(4.0, 100.0)], 25.0, [8.0] * 2000)
    found = thermal.describe(model)
    assert not found.identified
    assert found.resistance_sd > 0.5
    mean, _ = thermal.reaction(model, (60.0,), (8.0,))
    assert mean[0, 0] == pytest.approx(57.0, abs=1.5), "what goes on as it was is known all the same"


def test_uncertainty_shrinks_with_what_is_learned() -> None:
    inputs = steps(900, 5.0, 15.0)
    spread = [
        thermal.describe(heated([(3.0, 150.0)], 25.0, inputs[:n])[0]).resistance_sd for n in (30, 300, 900)
    ]
    assert spread[0] > 5 * spread[1] > 0
    assert spread[2] <= spread[1]


def test_a_clock_set_back_and_a_hole_start_the_lags_anew_and_keep_what_was_learned() -> None:
    model, _ = heated([(3.0, 150.0)], 25.0, steps(900, 5.0, 15.0))
    before = thermal.describe(model)
    back = thermal.observe(model, 10.0, 60.0, 10.0)
    assert back.clock_errors == 1
    assert thermal.describe(back).resistance == pytest.approx(before.resistance)
    hole = thermal.observe(back, 10.0 + 3600.0, 30.0, 5.0)
    assert hole.clock_errors == 1
    for second in range(60):
        hole = thermal.observe(hole, 3611.0 + second, 30.0 + 0.1 * second, 5.0)
    assert thermal.describe(hole).resistance == pytest.approx(before.resistance, rel=0.3)


ODD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([-256.0, 0.0, 1e300, float("nan"), float("inf"), -1.0]),
)


@settings(deadline=None, max_examples=40)
@given(
    looks=st.lists(
        st.tuples(
            st.one_of(st.floats(-100.0, 5000.0), st.just(float("nan"))),
            st.one_of(st.floats(20.0, 95.0), ODD),
            st.one_of(st.floats(0.0, 60.0), ODD),
        ),
        max_size=60,
    ),
    of=st.sampled_from(["power", "busy"]),
)
def test_whatever_it_is_told_it_says_numbers(
    looks: list[tuple[float, float, float]], of: thermal.Input
) -> None:
    model = thermal.begin(of)
    for at, celsius, power in looks:
        model = thermal.observe(model, at, celsius, power)
    found = thermal.describe(model)
    figures = [found.ambient_c, found.resistance, found.resistance_sd, *found.resistances, *found.capacities]
    assert all(map(math.isfinite, figures))
    assert all(r >= -1e-6 for r in found.resistances)
    if model.weights.any():
        mean, deviation = thermal.reaction(model, (1.0, 60.0), (0.0, 10.0))
        assert np.isfinite(mean).all()
        assert np.isfinite(deviation).all()
        assert (mean[0] <= mean[1] + 1e-6).all(), "more heat is never colder"
        assert thermal.sustainable(model, 80.0) >= 0.0


REAL_LOG = Path(__file__).resolve().parents[3] / "shared" / "data" / "tegrastats_orin_nano_jp6.txt"


@pytest.mark.skipif(not REAL_LOG.exists(), reason="the real log lies beside the repository")
def test_a_real_board_is_forecast_over_ten_seconds_from_its_log() -> None:
    """The log: 0.1 s apart, stamped to the second; idle, then three runs at full load."""
    samples = [parse(line) for line in REAL_LOG.read_text().splitlines() if line.strip()]
    start, end = samples[0].time_s, samples[-1].time_s
    assert start is not None
    assert end is not None
    apart = (end - start) / (len(samples) - 1)
    heat = [(s.value("tj", "temperature_c"), s.value("VDD_IN", "power_watts")) for s in samples]
    ahead = round(10.0 / apart)
    model, errors = thermal.begin("power"), []
    for at, (celsius, watts) in enumerate(heat):
        assert celsius is not None
        assert watts is not None
        model = thermal.observe(model, at * apart, celsius, watts)
        if at % 20 or at + ahead >= len(heat) or not thermal.identified(model):
            continue
        coming = [w for _, w in heat[at + 1 : at + 1 + ahead] if w is not None]
        rows = thermal.forecast(model, [(apart, w) for w in coming], every_s=apart)
        errors.append(abs(rows[-1][1] - (heat[at + ahead][0] or 0.0)))
    assert len(errors) >= 5
    assert float(np.mean(errors)) < 2.0
