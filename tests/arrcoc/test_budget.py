"""The cost model of tokens: what the fit gives back, what it promises, and which bucket the latency buys."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekiln.arrcoc.allocate import BUCKETS
from edgekiln.arrcoc.budget import (
    LatencyModel,
    LatencyTooShort,
    Origin,
    OtherMachine,
    Point,
    bucket_for,
    differences,
    fit,
    measure,
    origin,
    read,
    save,
)
from edgekiln.errors import BadInput

HERE = Origin(
    device="raspberry-pi-5",
    when="2026-11-27",
    runtime="onnxruntime",
    runtime_version="1.32.0",
    threads=1,
    machine={"cpu_model": "Cortex-A76", "arch": "aarch64", "cpus_usable": 4},
)


def points(
    cost: Sequence[float],
    counts: Sequence[int] = BUCKETS,
    noise: float = 0.0,
    samples: int = 100,
    seed: int = 0,
) -> tuple[Point, ...]:
    """Samples of ``a + b n + c n^2`` with a lognormal noise, as latencies have it."""
    random = np.random.default_rng(seed)
    found = []
    for n in counts:
        typical = cost[0] + cost[1] * n + cost[2] * n * n
        ms = typical * np.exp(noise * random.standard_normal(samples))
        found.append(Point(tokens=n, latency_ms=tuple(float(v) for v in ms)))
    return tuple(found)


def model(cost: Sequence[float] = (5.0, 0.1, 0.0), **more: Any) -> LatencyModel:
    return fit(points(cost, **more), HERE)


# ---------------------------------------------------------------- the fit


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 50), st.floats(0, 1), st.floats(0, 0.01))
def test_exact_measurements_give_their_latencies_back(a: float, b: float, c: float) -> None:
    found = model((a, b, c))
    for n in (49, 70, 100, 250, 305):
        assert found.predicted_ms(n) == pytest.approx(a + b * n + c * n * n, rel=1e-3)
        assert found.bound_ms(n) == pytest.approx(found.predicted_ms(n), rel=1e-3)
    assert found.residual_worst < 1e-3
    assert found.left_out_worst is not None
    assert found.left_out_worst < 1e-2


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.floats(0.01, 1e4)),
        min_size=3,
        max_size=8,
        unique_by=lambda p: p[0],
    ),
    st.integers(0, 2**32 - 1),
)
def test_whatever_was_measured_the_model_never_falls_and_bounds_each_point(
    typical: list[tuple[int, float]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    given = [
        Point(tokens=n, latency_ms=tuple(float(v) for v in ms * random.lognormal(0, 0.5, 20)))
        for n, ms in typical
    ]
    found = fit(given, HERE)
    reach = range(1, 2001, 37)
    for values in ([found.predicted_ms(n) for n in reach], [found.bound_ms(n) for n in reach]):
        assert (np.diff(values) >= 0).all()
    for point in given:
        assert found.bound_ms(point.tokens) >= np.quantile(point.latency_ms, 0.95)
        assert found.bound_ms(point.tokens) >= found.predicted_ms(point.tokens)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_no_other_form_that_never_falls_is_nearer_to_the_medians(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = np.sort(random.choice(np.arange(20, 400), 6, replace=False))
    ms = random.uniform(1, 50, 6)
    found = fit([Point(tokens=int(n), latency_ms=(m,) * 20) for n, m in zip(counts, ms, strict=True)], HERE)
    terms = np.vander(counts, 3, increasing=True)

    def off(cost: Any) -> float:
        return float(np.sum((terms @ cost / ms - 1) ** 2))

    for term, unit in enumerate((1.0, 1e-2, 1e-4)):
        for step in (-unit, -0.1 * unit, 0.1 * unit, unit):
            other = np.array(found.median)
            other[term] = max(0.0, other[term] + step)
            assert off(other) >= off(found.median) - 1e-9


def test_the_bound_holds_for_so_many_of_new_calls() -> None:
    found = model((5.0, 0.1, 1e-4), noise=0.1, samples=400)
    for new in points((5.0, 0.1, 1e-4), counts=(49, 90, 113, 250), noise=0.1, samples=2000, seed=1):
        assert np.mean(np.array(new.latency_ms) <= found.bound_ms(new.tokens)) > 0.93
        assert found.bound_ms(new.tokens) < 1.35 * found.predicted_ms(new.tokens)


def test_a_higher_percentile_gives_a_higher_bound() -> None:
    given = points((5.0, 0.1, 0.0), noise=0.2, samples=200)
    bounds = [fit(given, HERE, percentile=p).bound_ms(81) for p in (50, 90, 95, 99)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]


def test_the_order_of_the_points_does_not_matter() -> None:
    given = points((5.0, 0.1, 1e-4), noise=0.1)
    assert fit(given, HERE) == fit(given[::-1], HERE)


def test_the_model_says_how_far_off_it_is() -> None:
    steps = [
        Point(tokens=n, latency_ms=(ms,) * 20) for n, ms in ((49, 10.0), (65, 10.0), (81, 20.0), (113, 20.0))
    ]
    found = fit(steps, HERE)
    off = [abs(found.predicted_ms(p.tokens) / p.latency_ms[0] - 1) for p in steps]
    assert found.residual_worst == pytest.approx(max(off))
    assert found.residual_rms == pytest.approx(math.sqrt(np.mean(np.square(off))))
    assert found.residual_worst > 0.1
    assert found.left_out_worst is None, "four points don't show what a point between them would be"


@pytest.mark.parametrize(
    ("given", "percentile", "complaint"),
    [
        (points((1, 1, 0), counts=(49, 65)), 95, "3 different numbers"),
        (points((1, 1, 0), counts=(49, 65, 65)), 95, "3 different numbers"),
        (points((1, 1, 0), samples=19), 95, "19 samples do not reach P95; it takes at least 20"),
        (points((1, 1, 0), samples=99), 99, "at least 100"),
        (points((0, 0, 0)), 95, "not above 0"),
        (points((math.nan, 0, 0)), 95, "not finite"),
        (points((1, 1, 0), counts=(0, 49, 65)), 95, "at least one token"),
        (points((1, 1, 0)), 100, "50..100"),
        (points((1, 1, 0)), 20, "50..100"),
        (points((1, 1, 0)), math.nan, "50..100"),
    ],
)
def test_measurements_that_do_not_carry_a_model_are_refused(
    given: tuple[Point, ...], percentile: float, complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        fit(given, HERE, percentile=percentile)


# ---------------------------------------------------------------- the bucket


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 200), st.floats(0, 20))
def test_the_largest_bucket_whose_bound_fits_is_taken(left: float, overhead: float) -> None:
    cost = model((5.0, 0.1, 1e-3), noise=0.05)
    fits = [b for b in BUCKETS if cost.bound_ms(b) + overhead <= left]
    if fits:
        chosen = bucket_for(left, cost, BUCKETS, overhead, here=HERE)
        assert chosen.bucket == max(fits)
        assert chosen.bound_ms == cost.bound_ms(chosen.bucket) >= chosen.predicted_ms
        assert (chosen.how, chosen.percentile, chosen.notes) == ("predicted", 95, ())
    else:
        with pytest.raises(LatencyTooShort):
            bucket_for(left, cost, BUCKETS, overhead, here=HERE)


def test_more_latency_never_buys_less() -> None:
    cost = model((5.0, 0.1, 1e-3), noise=0.05)
    chosen = [bucket_for(left, cost, BUCKETS, 2.0, here=HERE).bucket for left in np.linspace(16, 200, 90)]
    assert chosen == sorted(chosen)
    assert set(chosen) == set(BUCKETS)
    assert bucket_for(math.inf, cost, BUCKETS, here=HERE).bucket == 305


def test_where_not_even_the_least_fits_the_error_tells_what_it_takes() -> None:
    cost = model()
    with pytest.raises(LatencyTooShort, match=r"49 tokens, is predicted to take up to 12\.9 ms") as caught:
        bucket_for(10, cost, BUCKETS, 3.0, here=HERE)
    assert caught.value.bucket == 49
    assert caught.value.needs_ms == pytest.approx(12.9, rel=1e-3)
    least = float(caught.value.cure.split()[3])
    assert bucket_for(least, cost, BUCKETS, 3.0, here=HERE).bucket == 49


def test_buckets_beyond_what_was_measured_are_left_out_and_that_is_said() -> None:
    cost = model(counts=(49, 65, 81))
    chosen = bucket_for(1000, cost, BUCKETS, here=HERE)
    assert chosen.bucket == 81
    assert chosen.notes == ("left out, as no more than 81 tokens were measured: 113, 177, 305",)
    with pytest.raises(BadInput, match="up to 81 tokens"):
        bucket_for(1000, cost, (113, 177), here=HERE)
    with pytest.raises(BadInput, match="none of the buckets"):
        bucket_for(1000, cost, (), here=HERE)


def test_below_what_was_measured_nothing_is_promised_to_be_faster() -> None:
    cost = model(counts=(49, 65, 81))
    assert cost.bound_ms(9) == cost.bound_ms(49)
    assert cost.predicted_ms(9) < cost.predicted_ms(49)


@pytest.mark.parametrize(("left", "overhead"), [(math.nan, 0), (10, -1), (10, math.nan), (10, math.inf)])
def test_times_that_are_none_are_refused(left: float, overhead: float) -> None:
    with pytest.raises(BadInput, match="no time"):
        bucket_for(left, model(), BUCKETS, overhead, here=HERE)


# ---------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(HERE, machine={**HERE.machine, "cpu_model": "M4"}), "cpu model was Cortex-A76, here M4"),
        (replace(HERE, machine={**HERE.machine, "cpu_quota": 0.5}), "cpu quota was not known, here 0.5"),
        (replace(HERE, runtime_version="1.40.0"), "runtime was onnxruntime 1.32.0, here onnxruntime 1.40.0"),
        (replace(HERE, threads=4), "threads was 1, here 4"),
    ],
)
def test_a_model_from_elsewhere_is_refused_or_the_answer_says_so(other: Origin, told: str) -> None:
    with pytest.raises(OtherMachine, match=told) as caught:
        bucket_for(100, model(), BUCKETS, here=other)
    assert caught.value.differences == (told,)
    chosen = bucket_for(100, model(), BUCKETS, here=other, elsewhere=True)
    assert chosen.notes == (f"the cost model is from elsewhere: {told}",)


def test_the_same_machine_on_another_day_is_the_same() -> None:
    assert differences(model(), replace(HERE, when="2027-01-01", unfit=("busy",))) == ()


def test_by_default_a_model_is_held_against_the_machine_that_runs_this() -> None:
    with pytest.raises(OtherMachine, match="Cortex-A76"):
        bucket_for(100, model(), BUCKETS)
    mine = fit(points((5.0, 0.1, 0.0)), origin("onnxruntime", 1))
    assert bucket_for(1000, mine, BUCKETS).bucket == 305


def test_a_runtime_that_is_not_installed_here_is_a_difference() -> None:
    foreign = replace(model(), origin=replace(HERE, runtime="no-such-runtime"))
    assert any("here no-such-runtime not installed" in told for told in differences(foreign))
    with pytest.raises(BadInput, match="no such package"):
        origin("no-such-runtime", 1)


# ---------------------------------------------------------------- the clock


class Clock:
    """Time that passes as the calls say; nothing else moves it."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[int]()

    def __call__(self) -> float:
        return self.now

    def call(self, tokens: int) -> None:
        slow = 10.0 if self.calls.count(tokens) == 0 else 1.0
        self.calls.append(tokens)
        self.now += slow * (5.0 + 0.1 * tokens) / 1e3


def test_measuring_warms_up_and_lets_the_numbers_of_tokens_take_turns() -> None:
    clock = Clock()
    found = measure(clock.call, (49, 65, 81), samples=30, warmup=2, clock=clock)
    assert [p.tokens for p in found] == [49, 65, 81]
    for point in found:
        assert point.latency_ms == pytest.approx([5.0 + 0.1 * point.tokens] * 30), (
            "the slow first call is not in"
        )
    turns = np.array(clock.calls[6:]).reshape(30, 3)
    assert (np.sort(turns, axis=1) == [49, 65, 81]).all()
    assert len({tuple(turn) for turn in turns}) > 3, "not always in the same order"
    assert fit(found, HERE).predicted_ms(70) == pytest.approx(12.0, rel=1e-3)


def test_what_was_really_measured_gives_a_model_that_holds_here() -> None:
    work = np.random.default_rng(0).random((400, 64), np.float32)

    def call(tokens: int) -> None:
        for _ in range(3):
            np.tanh(work[:tokens])

    found = fit(measure(call, (20, 100, 200, 400), samples=40), origin("numpy", 1))
    assert found.predicted_ms(400) > found.predicted_ms(20) > 0
    chosen = bucket_for(1e6, found, (20, 100, 200, 400))
    assert (chosen.bucket, chosen.notes) == (400, ())
    assert found.origin.machine.keys() <= {"cpu_model", "arch", "cpus_usable", "cpu_quota"}


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"warmup": -1}, {"tokens": ()}, {"tokens": (49, 49)}], ids=str
)
def test_a_course_without_measurements_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="measuring"):
        measure(lambda n: None, **{"tokens": (49, 65), **wrong})


# ---------------------------------------------------------------- the file


def test_a_model_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    found = model((5.0, 0.1, 1e-4), noise=0.1)
    save(found, tmp_path / "cost.json")
    first = (tmp_path / "cost.json").read_bytes()
    assert read(tmp_path / "cost.json") == found
    save(read(tmp_path / "cost.json"), tmp_path / "cost.json")
    assert (tmp_path / "cost.json").read_bytes() == first
    told = json.loads(first)
    assert told["origin"]["device"] == "raspberry-pi-5"
    assert told["origin"]["when"] == "2026-11-27"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"median": [-1.0, 0.1, 0.0]},
        {"bound": [1.0, 0.1]},
        {"points": []},
        {"percentile": 100.0},
        {"note": "hello"},
        {"origin": {}},
    ],
    ids=str,
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    told = {**msgspec.to_builtins(model()), **change}
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(told))
    with pytest.raises(BadInput, match="reading a cost model"):
        read(path)


def test_files_that_are_none_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("fast")
    (tmp_path / "large").write_bytes(b" " * (1 << 21))
    for name in ("words", "large", "absent", "."):
        with pytest.raises(BadInput, match="reading a cost model"):
            read(tmp_path / name)
