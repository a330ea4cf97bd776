"""The decision holds its rules over any proofs: the chosen one fits, each loser's reason is true."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekiln.choose import (
    BASIS_LATENCY,
    BASIS_SIZE,
    BASIS_WHOLE,
    SQNR_FLOOR_DB,
    choose,
    constraints,
    front,
    quality_figure,
    same_cost,
)
from edgekiln.records import Artifact, Budget, Evidence, Placement, Proof

UNITS = {
    "accuracy_drop": "fraction",
    "agreement": "fraction",
    "agreement_expected": "fraction",
    "accuracy_drop_expected": "fraction",
    "sqnr_db": "dB",
    "latency_p50_ms": "ms",
    "latency_p95_ms": "ms",
    "peak_memory_bytes": "bytes",
    "size_bytes": "bytes",
    "energy_mj": "mJ",
    "power_watts": "W",
}


def proof(name, samples=(), intervals=None, **figures):
    """``samples`` are the raw latencies; a figure that is None is there without a value."""
    artifact = Artifact(
        id=name,
        target="onnxruntime",
        recipe=name,
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry="m",
        files=(),
        options={},
        tools={},
        precisions={},
    )
    if len(samples):
        figures.setdefault("latency_p50_ms", float(np.median(samples)))
        figures.setdefault("latency_p95_ms", float(np.quantile(samples, 0.95)))
    evidence = tuple(
        Evidence(what=k, unit=UNITS[k.partition("@")[0]], value=None, reason="not known")
        if v is None
        else Evidence(
            what=k,
            unit=UNITS[k.partition("@")[0]],
            value=float(v),
            how="measured",
            interval=(intervals or {}).get(k),
        )
        for k, v in figures.items()
    )
    return Proof(device="d", artifact=artifact, evidence=evidence, latency_ms=tuple(map(float, samples)))


def steady(ms, n=60):
    """A run whose median is ``ms``, with half a percent of spread."""
    return ms * (1 + 0.005 * np.sin(np.arange(n)))


def reason(choice, name):
    return next(loser.why for loser in choice.losers if loser.artifact_id == name)


# ---------------------------------------------------------------- by hand


def test_the_fastest_that_meets_the_budget_wins_and_each_loser_has_its_own_reason():
    proofs = [
        proof("slow", steady(9), accuracy_drop=0.0, agreement=1.0, sqnr_db=90, size_bytes=4e6),
        proof("fast", steady(3), accuracy_drop=0.0, agreement=0.95, sqnr_db=25, size_bytes=1e6),
        proof("broken", steady(1), accuracy_drop=0.3, agreement=0.5, sqnr_db=3, size_bytes=1e6),
    ]
    choice = choose("d", proofs, Budget(accuracy_drop=0.01, latency_p95_ms=20))
    assert (choice.artifact_id, choice.status, choice.basis) == ("fast", "proven", BASIS_LATENCY)
    assert reason(choice, "slow") == "slower than onnxruntime fast: 9 ms against 3 ms"
    assert reason(choice, "broken") == "breaks the budget: accuracy drop 0.3 > 0.01"
    assert choice.front == ("broken", "fast", "slow")


def test_every_broken_constraint_is_told_with_both_numbers():
    one = proof(
        "x",
        steady(40),
        accuracy_drop=0.2,
        agreement=0.5,
        sqnr_db=5,
        peak_memory_bytes=3e8,
        size_bytes=9e7,
        energy_mj=8,
        power_watts=12,
    )
    budget = Budget(
        accuracy_drop=0.1,
        agreement=0.9,
        sqnr_db=30,
        latency_p95_ms=10,
        memory_bytes=100_000_000,
        size_bytes=10_000_000,
        energy_mj=4,
        power_watts=6,
        fps=100,
    )
    choice = choose("d", [one], budget)
    assert (choice.status, choice.artifact_id) == ("none", None)
    assert choice.basis == "no artifact meets the budget"
    why = reason(choice, "x")
    for told in (
        "accuracy drop 0.2 > 0.1",
        "agreement with float 0.5 < 0.9",
        "SQNR 5 dB < 30 dB",
        "latency P95 40.2 ms > 10 ms",
        "peak memory 300 MB > 100 MB",
        "size 90 MB > 10 MB",
        "energy 8 mJ > 4 mJ",
        "power 12 W > 6 W",
        "frame time P50 40 ms > 10 ms",
    ):
        assert told in why


def test_nothing_made_is_a_choice_of_nothing():
    choice = choose("d", [], Budget(latency_p95_ms=1))
    assert (choice.status, choice.artifact_id, choice.losers, choice.front) == ("none", None, (), ())
    assert choice.basis == "no artifact could be made"


def test_a_frame_rate_is_a_bound_on_the_median_frame_time():
    proofs = [proof("x", steady(20), agreement=1.0, sqnr_db=50)]
    assert choose("d", proofs, Budget(fps=49)).status == "proven"
    assert choose("d", proofs, Budget(fps=52)).status == "none"
    unknown = [proof("x", agreement=1.0, size_bytes=1, latency_p50_ms=None)]
    assert choose("d", unknown, Budget(fps=52)).unproven == ("fps",)


def test_without_labels_agreement_stands_in_for_accuracy():
    proofs = [
        proof("a", steady(2), accuracy_drop=None, agreement=0.985, sqnr_db=10),
        proof("b", steady(9), accuracy_drop=None, agreement=0.995, sqnr_db=10),
    ]
    choice = choose("d", proofs, Budget(accuracy_drop=0.01))
    assert choice.artifact_id == "b"
    assert choice.status == "proven"
    assert "agreement with float 0.985 < 0.99" in reason(choice, "a")
    stricter = choose("d", proofs, Budget(accuracy_drop=0.01, agreement=0.999))
    assert stricter.status == "none"


def test_with_labels_agreement_does_not_stand_in():
    one = proof("a", steady(2), accuracy_drop=0.0, agreement=0.5, sqnr_db=10)
    assert choose("d", [one], Budget(accuracy_drop=0.01)).status == "proven"


def test_where_no_decisions_exist_a_floor_of_the_sqnr_holds():
    proofs = [
        proof("noise", steady(1), sqnr_db=SQNR_FLOOR_DB - 0.1, agreement=None),
        proof("sound", steady(5), sqnr_db=SQNR_FLOOR_DB + 0.1, agreement=None),
    ]
    for budget in (Budget(), Budget(accuracy_drop=0.01)):
        choice = choose("d", proofs, budget)
        assert (choice.artifact_id, choice.status) == ("sound", "proven")
        assert "SQNR 19.9 dB < 20 dB" in reason(choice, "noise")
    assert choose("d", proofs, Budget(sqnr_db=10)).artifact_id == "noise"
    assert choose("d", proofs, Budget(sqnr_db=30)).status == "none"


def test_class_decisions_need_no_floor():
    assert choose("d", [proof("a", steady(1), sqnr_db=5, agreement=0.9)], Budget()).status == "proven"


def test_a_figure_without_a_value_leaves_the_choice_unproven_and_names_the_budgets_field():
    one = proof("a", agreement=1.0, sqnr_db=90, size_bytes=1e6, latency_p95_ms=None, peak_memory_bytes=None)
    budget = Budget(agreement=0.9, latency_p95_ms=5, memory_bytes=10, size_bytes=2_000_000, energy_mj=1)
    choice = choose("d", [one], budget)
    assert choice.status == "unproven"
    assert choice.unproven == ("latency_p95_ms", "memory_bytes", "energy_mj")
    assert set(choice.unproven) <= set(Budget.__struct_fields__)


@pytest.mark.parametrize(
    ("interval", "status"), [((0.0, 0.01), "proven"), ((-0.2, 0.009), "proven"), ((-0.1, 0.02), "unproven")]
)
def test_an_interval_that_reaches_past_the_limit_proves_nothing(interval, status):
    one = proof("a", steady(1), {"accuracy_drop": interval}, accuracy_drop=0.0, agreement=1, sqnr_db=90)
    assert choose("d", [one], Budget(accuracy_drop=0.01)).status == status


def test_for_a_lower_bound_the_lower_end_counts():
    def one(interval):
        return proof("a", steady(1), {"agreement": interval}, agreement=0.97, sqnr_db=90)

    assert choose("d", [one((0.96, 0.99))], Budget(agreement=0.95)).status == "proven"
    assert choose("d", [one((0.90, 1.00))], Budget(agreement=0.95)).unproven == ("agreement",)


def test_of_equally_fast_ones_the_better_quality_wins():
    proofs = [
        proof("coarse", steady(5.0), agreement=0.9, sqnr_db=20, size_bytes=1),
        proof("fine", steady(5.02), agreement=0.99, sqnr_db=40, size_bytes=9),
        proof("later", steady(5.4), agreement=1.0, sqnr_db=90, size_bytes=9),
    ]
    choice = choose("d", proofs, Budget())
    assert choice.artifact_id == "fine"
    assert reason(choice, "coarse").startswith("as cheap as the winner within this run's spread")
    assert "slower" in reason(choice, "later")


def test_equal_decisions_are_settled_by_the_finer_measure():
    proofs = [
        proof("coarse", steady(5.0), agreement=1.0, sqnr_db=20),
        proof("fine", steady(5.01), agreement=1.0, sqnr_db=40),
    ]
    assert choose("d", proofs, Budget()).artifact_id == "fine"


def test_of_equal_ones_what_no_search_was_needed_for_wins():
    """int8-mixed that puts nothing back is the static artifact again: only the timer tells them apart."""
    figures = {"agreement": 0.98, "sqnr_db": 26.1}
    proofs = [
        proof("int8-mixed-0.05", steady(2), **figures),
        proof("int8-static-mse", steady(2.001), **figures),
    ]
    for some in (proofs, proofs[::-1]):
        assert choose("d", some, Budget()).artifact_id == "int8-static-mse"
    better = proof("int8-mixed-0.05", steady(2), agreement=0.98, sqnr_db=26.2)
    assert choose("d", [better, proofs[1]], Budget()).artifact_id == "int8-mixed-0.05"


def test_a_quality_of_zero_is_better_than_a_negative_one():
    proofs = [
        proof("zero", steady(5.0), sqnr_db=0.0),
        proof("negative", steady(5.0), sqnr_db=-6.0),
    ]
    assert choose("d", proofs, Budget(sqnr_db=-10)).artifact_id == "zero"


def test_where_no_latency_is_known_the_size_decides_and_the_choice_says_so():
    proofs = [
        proof("large", agreement=1.0, sqnr_db=90, size_bytes=9e6, latency_p50_ms=None),
        proof("small", agreement=0.95, sqnr_db=20, size_bytes=2e6, latency_p50_ms=None),
    ]
    choice = choose("d", proofs, Budget())
    assert (choice.artifact_id, choice.cost, choice.basis) == ("small", "size_bytes", BASIS_SIZE)
    assert reason(choice, "large") == "larger than onnxruntime small: 9 MB against 2 MB"
    assert choice.front == ("small", "large")


def test_where_no_latency_is_known_the_devices_preferred_target_comes_before_the_size():
    def one(name, target, size):
        made = proof(name, agreement=0.99, sqnr_db=30, size_bytes=size, latency_p50_ms=None)
        return msgspec.structs.replace(made, artifact=msgspec.structs.replace(made.artifact, target=target))

    proofs = [one("a", "onnxruntime", 1e6), one("b", "tensorrt", 9e6), one("c", "tensorrt", 5e6)]
    choice = choose("d", proofs, Budget(), ("coreml", "tensorrt", "onnxruntime"))
    assert choice.artifact_id == "c"
    assert reason(choice, "a") == "no latency was measured, and tensorrt comes first on this device"
    assert reason(choice, "b").startswith("larger than")
    assert choose("d", proofs, Budget()).artifact_id == "a"
    assert choose("d", proofs, Budget(size_bytes=2_000_000), ("tensorrt",)).artifact_id == "a"
    timed = [msgspec.structs.replace(p, latency_ms=()) for p in proofs]
    timed[0] = proof("a", steady(3), agreement=0.99, sqnr_db=30, size_bytes=1e6)
    assert choose("d", timed, Budget(), ("tensorrt", "onnxruntime")).artifact_id == "a"


def test_sizes_within_two_percent_tie():
    proofs = [
        proof("a", agreement=0.9, sqnr_db=20, size_bytes=1_000_000),
        proof("b", agreement=1.0, sqnr_db=90, size_bytes=1_019_000),
        proof("c", agreement=1.0, sqnr_db=99, size_bytes=1_021_000),
    ]
    choice = choose("d", proofs, Budget())
    assert choice.artifact_id == "b"
    assert "within 2 %" in reason(choice, "a")


def test_what_was_never_timed_does_not_rank_before_what_was():
    proofs = [
        proof("timed", steady(5), agreement=0.95, sqnr_db=25, size_bytes=9e6),
        proof("untimed", agreement=0.99, sqnr_db=30, size_bytes=1e6, latency_p50_ms=None),
    ]
    choice = choose("d", proofs, Budget(latency_p95_ms=50))
    assert (choice.artifact_id, choice.basis) == ("timed", BASIS_LATENCY)
    assert choice.status == "proven"
    assert reason(choice, "untimed") == "its latency_p50_ms is not known"


def test_quality_is_agreement_where_all_have_it_else_sqnr():
    both = [proof("a", agreement=1, sqnr_db=3), proof("b", agreement=1, sqnr_db=3)]
    assert quality_figure(both) == "agreement"
    assert quality_figure([*both, proof("c", sqnr_db=3)]) == "sqnr_db"
    assert quality_figure([]) == "sqnr_db"
    estimated = [
        proof("a", agreement=0.98, agreement_expected=0.97),
        proof("b", agreement=1, agreement_expected=1),
    ]
    assert quality_figure(estimated) == "agreement_expected"
    assert quality_figure([*estimated, *both]) == "agreement"


def test_each_constraint_of_a_budget_becomes_one_check():
    everything = Budget(
        accuracy_drop=0.1,
        agreement=0.9,
        sqnr_db=3,
        latency_p95_ms=1,
        memory_bytes=1,
        size_bytes=1,
        energy_mj=1,
        power_watts=1,
        fps=1,
    )
    known = [proof("a", steady(1), accuracy_drop=0, agreement=1, sqnr_db=1)]
    assert {c.key for c in constraints(everything, known)} == set(Budget.__struct_fields__)
    assert constraints(Budget(), known) == ()


# ---------------------------------------------------------------- over any proofs

LEVELS = {
    "accuracy_drop": st.sampled_from([-0.05, 0.0, 0.01, 0.05, 0.5]),
    "agreement": st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    "sqnr_db": st.sampled_from([-5.0, 0.0, 15.0, 20.0, 25.0, 90.0]),
    "peak_memory_bytes": st.sampled_from([1e6, 1e8, 2e8]),
    "size_bytes": st.sampled_from([1e6, 1.01e6, 1.03e6, 5e6]),
}


@st.composite
def proof_sets(draw):
    made = []
    timed = draw(st.sampled_from(["all", "none", "some"]))
    for i in range(draw(st.integers(0, 6))):
        figures = {k: draw(st.none() | level) for k, level in LEVELS.items()}
        figures["size_bytes"] = draw(LEVELS["size_bytes"])
        samples = ()
        if timed == "all" or (timed == "some" and draw(st.booleans())):
            base = draw(st.sampled_from([1.0, 1.01, 1.03, 1.06, 2.0]))
            spread = draw(st.sampled_from([0.001, 0.03, 0.3]))
            noise = np.random.default_rng(draw(st.integers(0, 50))).random(40)
            samples = base * (1 + spread * noise)
        made.append(proof(f"p{i}", samples, **figures))
    return made


BUDGETS = st.builds(
    Budget,
    accuracy_drop=st.none() | st.sampled_from([0.0, 0.01, 0.2]),
    agreement=st.none() | st.sampled_from([0.5, 0.95]),
    sqnr_db=st.none() | st.sampled_from([-3.0, 20.0, 40.0]),
    latency_p95_ms=st.none() | st.sampled_from([1.1, 1.5]),
    memory_bytes=st.none() | st.sampled_from([10**7, 10**9]),
    size_bytes=st.none() | st.sampled_from([1_005_000, 10**7]),
    fps=st.none() | st.sampled_from([10.0, 900.0]),
)


def holds(one, check):
    """Whether a known figure keeps a constraint; None where it is not known. Written apart from the code."""
    value = next((e.value for e in one.evidence if e.what == check.figure), None)
    if value is None:
        return None
    return value <= check.limit + 1e-9 if check.at_most else value >= check.limit - 1e-9


@settings(max_examples=150, deadline=None)
@given(proof_sets(), BUDGETS)
@example([], Budget())
def test_whatever_was_proved_the_decision_is_sound(proofs, budget):
    checks = constraints(budget, proofs)
    choice = choose("d", proofs, budget)
    by_id = {p.artifact.id: p for p in proofs}
    fit = [p for p in proofs if all(holds(p, c) is not False for c in checks)]
    losers = [loser.artifact_id for loser in choice.losers]

    assert (choice.artifact_id is None) == (not fit) == (choice.status == "none")
    assert sorted([*losers, *([choice.artifact_id] if fit else [])]) == sorted(by_id)
    assert all(loser.why for loser in choice.losers)
    if not fit:
        return
    winner = by_id[choice.artifact_id]
    assert winner in fit
    unknown = {c.key for c in checks if holds(winner, c) is None}
    assert set(choice.unproven) == unknown
    assert (choice.status == "proven") == (not unknown)

    timed = any(p.value("latency_p50_ms") is not None for p in fit)
    assert choice.cost == ("latency_p50_ms" if timed else "size_bytes")
    priced = [p for p in fit if p.value(choice.cost) is not None]
    assert winner in priced
    least = min(priced, key=lambda p: (p.value(choice.cost), p.artifact.id))
    assert winner is least or same_cost(winner, least, choice.cost)
    check_reasons(choice, by_id, winner, fit, least)


def check_reasons(choice, by_id, winner, fit, least):
    """Each loser's reason is true, and nothing that is outside the tie is cheaper than the winner."""
    for loser in choice.losers:
        lost = by_id[loser.artifact_id]
        mine, best = lost.value(choice.cost), winner.value(choice.cost)
        if lost not in fit:
            assert loser.why.startswith("breaks the budget: ")
        elif "as cheap as" in loser.why:
            assert lost is least or same_cost(lost, least, choice.cost)
            mine, best = lost.value(choice.quality), winner.value(choice.quality)
            assert mine is None or best is None or mine <= best
        elif "not known" in loser.why:
            assert mine is None
        else:
            assert mine >= best
            assert not same_cost(lost, least, choice.cost) or mine > best


@settings(max_examples=50, deadline=None)
@given(proof_sets(), BUDGETS, st.randoms(use_true_random=False))
def test_the_order_of_the_proofs_decides_nothing(proofs, budget, shuffle):
    mixed = list(proofs)
    shuffle.shuffle(mixed)
    one, other = choose("d", proofs, budget), choose("d", mixed, budget)
    assert (one.artifact_id, one.front, one.unproven) == (other.artifact_id, other.front, other.unproven)
    assert {(x.artifact_id, x.why) for x in one.losers} == {(x.artifact_id, x.why) for x in other.losers}


@settings(max_examples=300, deadline=None)
@given(
    proof_sets(), st.sampled_from(["latency_p50_ms", "size_bytes"]), st.sampled_from(["sqnr_db", "agreement"])
)
def test_the_front_is_not_dominated_and_covers_everything(proofs, cost, quality):
    points = {
        p.artifact.id: (p.value(cost), p.value(quality))
        for p in proofs
        if p.value(cost) is not None and p.value(quality) is not None
    }
    found = front(proofs, cost, quality)
    assert set(found) <= set(points)
    for name in found:
        c, q = points[name]
        assert not any((a <= c and b >= q and (a, b) != (c, q)) for a, b in points.values())
    for c, q in points.values():
        assert any(points[n][0] <= c and points[n][1] >= q for n in found)
    costs = [points[n][0] for n in found]
    assert costs == sorted(costs)
    assert len({points[n] for n in found}) == len(found)


def test_a_choice_survives_json():
    proofs = [
        proof("a", steady(3), agreement=1.0, sqnr_db=30),
        proof("b", steady(4), agreement=1.0, sqnr_db=3),
    ]
    choice = choose("d", proofs, Budget())
    assert msgspec.json.decode(msgspec.json.encode(choice), type=type(choice)) == choice


# ---------------------------------------------------------------- several input sizes


@pytest.mark.parametrize(
    ("figure", "budget", "good", "bad", "words"),
    [
        ("accuracy_drop", Budget(accuracy_drop=0.01), 0.0, 0.2, "accuracy drop at 320x416 0.2 > 0.01"),
        ("agreement", Budget(accuracy_drop=0.05), 1.0, 0.4, "agreement with float at 320x416 0.4 < 0.95"),
        ("sqnr_db", Budget(), 40.0, 7.0, "SQNR at 320x416 7 dB < 20 dB"),
    ],
)
def test_what_fails_at_any_size_is_never_chosen_however_fast(figure, budget, good, bad, words):
    at = f"{figure}@320x416"
    proofs = [
        proof("slow", steady(9), **{figure: good, at: good, "size_bytes": 4e6}),
        proof("fast", steady(1), **{figure: good, at: bad, "size_bytes": 1e6}),
    ]
    choice = choose("d", proofs, budget)
    assert choice.artifact_id == "slow"
    assert words in reason(choice, "fast")
    alone = choose("d", proofs[1:], budget)
    assert alone.status == "none"


def test_a_size_without_a_figure_leaves_the_constraint_unproven_once():
    figures = {"agreement": 1.0, "agreement@96x96": None, "agreement@128x128": None}
    choice = choose("d", [proof("only", steady(2), **figures)], Budget(agreement=0.9))
    assert (choice.status, choice.unproven) == ("unproven", ("agreement",))


def test_an_interval_that_reaches_past_the_limit_at_another_size_leaves_it_unproven():
    figures = {"agreement": 1.0, "agreement@96x96": 0.95}
    spread = {"agreement": (0.97, 1.0), "agreement@96x96": (0.8, 0.99)}
    choice = choose("d", [proof("only", steady(2), spread, **figures)], Budget(agreement=0.9))
    assert (choice.status, choice.unproven) == ("unproven", ("agreement",))


def test_latency_and_size_are_asked_once_whatever_the_sizes():
    proofs = [proof("only", steady(2), **{"sqnr_db": 50, "sqnr_db@96x96": 50, "size_bytes": 1e6})]
    found = constraints(Budget(latency_p95_ms=5, size_bytes=10**7), proofs)
    assert [c.figure for c in found] == ["sqnr_db", "sqnr_db@96x96", "latency_p95_ms", "size_bytes"]


def placed(found, *rows):
    """``found`` with placement rows (provider, taken, operators, partitions)."""
    placement = tuple(
        Placement(provider=name, how="measured", taken=taken, operators=all_, partitions=parts, detail="x")
        for name, taken, all_, parts in rows
    )
    return msgspec.structs.replace(
        found, artifact=msgspec.structs.replace(found.artifact, placement=placement)
    )


CUT = (("XNNPACK", 44, 60, 17), ("GPU", None, None, None))
WHOLE = (("GPU", None, None, None), ("XNNPACK", 60, 60, 1), ("NNAPI", 3, 60, 2))


def test_without_a_latency_what_falls_back_loses_to_a_larger_one_that_runs_whole():
    cut = placed(proof("cut", agreement=0.99, size_bytes=5e6), *CUT)
    whole = placed(proof("whole", agreement=0.99, size_bytes=9e6), *WHOLE)
    larger = placed(proof("larger", agreement=0.99, size_bytes=18e6), *WHOLE)
    choice = choose("d", [cut, whole, larger], Budget(), ("onnxruntime",))
    assert (choice.artifact_id, choice.basis) == ("whole", BASIS_WHOLE)
    why = {loser.artifact_id: loser.why for loser in choice.losers}
    assert "16 of 60 operators fall back from XNNPACK in 17 pieces" in why["cut"]
    assert "larger" in why["larger"]


def test_where_all_fall_back_or_none_was_asked_the_least_size_decides_as_before():
    for rows in (CUT, ()):
        small = placed(proof("small", agreement=0.99, size_bytes=5e6), *rows)
        large = placed(proof("large", agreement=0.99, size_bytes=9e6), *CUT)
        choice = choose("d", [small, large], Budget())
        assert choice.artifact_id == "small"


def test_a_measured_latency_decides_whatever_falls_back():
    cut = placed(proof("cut", [1.0] * 40, agreement=0.99, size_bytes=5e6), *CUT)
    whole = placed(proof("whole", [9.0] * 40, agreement=0.99, size_bytes=9e6), *WHOLE)
    choice = choose("d", [cut, whole], Budget())
    assert (choice.artifact_id, choice.basis) == ("cut", BASIS_LATENCY)


# ---------------------------------------------------------------- agreement of few samples


def counted(name, ms, value, interval, expected):
    return proof(
        name,
        steady(ms),
        {"agreement": interval},
        agreement=value,
        agreement_expected=expected,
        sqnr_db=25,
        size_bytes=1e6,
    )


def test_agreement_of_few_samples_is_judged_by_its_estimate_from_margins():
    """61 of 64 is 95.3 %: one flip more or less must not decide."""
    proofs = [
        counted("unlucky", 2, 61 / 64, (0.871, 0.984), 0.975),
        counted("lucky", 1, 63 / 64, (0.917, 0.997), 0.93),
        counted("slow", 9, 1.0, (0.943, 1.0), 0.999),
    ]
    choice = choose("d", proofs, Budget(agreement=0.97))
    assert (choice.artifact_id, choice.status) == ("unlucky", "unproven")
    assert reason(choice, "lucky") == (
        "breaks the budget: expected agreement with float 0.93 < 0.97 (seen: 0.984)"
    )


def test_a_drop_on_few_labels_is_judged_by_its_estimate_from_margins():
    """One label of 80 is 1.25 points: a close call that tips over must not decide."""

    def labelled(name, ms, value, interval, expected):
        figures = {"accuracy_drop": value, "accuracy_drop_expected": expected, "sqnr_db": 25}
        return proof(name, steady(ms), {"accuracy_drop": interval}, **figures)

    proofs = [
        labelled("one lost", 2, 1 / 80, (-0.03, 0.06), 0.004),
        labelled("one gained", 1, -1 / 80, (-0.06, 0.03), 0.02),
        labelled("many lost", 1, 8 / 80, (0.04, 0.18), 0.004),
        labelled("slow", 9, 0.0, (-0.04, 0.04), 0.0),
    ]
    choice = choose("d", proofs, Budget(accuracy_drop=0.01))
    assert (choice.artifact_id, choice.status) == ("one lost", "unproven")
    assert reason(choice, "one gained").startswith(
        "breaks the budget: expected accuracy drop 0.02 > 0.01 (seen: -0.013"
    )
    assert reason(choice, "many lost") == "breaks the budget: accuracy drop 0.1 > 0.01"


def test_a_count_that_leaves_the_limit_out_overrules_the_estimate():
    choice = choose("d", [counted("x", 2, 0.94, (0.925, 0.953), 0.98)], Budget(agreement=0.97))
    assert (choice.status, reason(choice, "x")) == (
        "none",
        "breaks the budget: agreement with float 0.94 < 0.97",
    )
