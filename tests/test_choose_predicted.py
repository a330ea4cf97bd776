"""Predictions in the decision: they warn and prefer, they never prove and never rank."""

from __future__ import annotations

import msgspec
import pytest

from edgekiln.choose import BASIS_LATENCY, choose
from edgekiln.records import Artifact, Budget, Choice, Evidence, Proof

OUTPUTS = (Evidence(what="agreement", unit="fraction", value=1.0, how="emulated"),)


def proof(name: str, size: float, low: float, high: float, how: str = "predicted") -> Proof:
    artifact = Artifact(
        id=name,
        target="tensorrt",
        recipe=name,
        engine="tensorrt",
        proof_engine="onnxruntime",
        entry="m",
        files=(),
        options={},
        tools={},
        precisions={},
    )
    latency = Evidence(
        what="latency_p50_ms",
        unit="ms",
        value=(low * high) ** 0.5,
        how="measured" if how == "measured" else "predicted",
        interval=(low, high),
    )
    nothing = Evidence(what="latency_p95_ms", unit="ms", value=None, reason="nobody measured it")
    bytes_ = Evidence(what="size_bytes", unit="bytes", value=size, how="measured")
    return Proof(device="d", artifact=artifact, evidence=(*OUTPUTS, latency, nothing, bytes_))


def why(choice: Choice, name: str) -> str:
    return next(loser.why for loser in choice.losers if loser.artifact_id == name)


@pytest.mark.parametrize("budget", [Budget(latency_p95_ms=20), Budget(fps=50)])
def test_what_can_not_keep_the_limit_even_at_best_is_out(budget: Budget) -> None:
    choice = choose("d", [proof("int8", 1e6, 4, 9), proof("fp32", 1e5, 25, 60)], budget)
    assert choice.artifact_id == "int8"
    assert "predicted latency, at the least 25 ms > 20 ms" in why(choice, "fp32")


@pytest.mark.parametrize("budget", [Budget(latency_p95_ms=20), Budget(fps=50)])
def test_what_keeps_the_limit_with_its_whole_interval_goes_before_what_may_pass_it(budget: Budget) -> None:
    choice = choose("d", [proof("sure", 9e6, 4, 9), proof("small", 1e6, 10, 30)], budget)
    assert choice.artifact_id == "sure"
    assert "10 to 30 ms may pass 20 ms" in why(choice, "small")


@pytest.mark.parametrize("budget", [Budget(latency_p95_ms=20), Budget(fps=50)])
def test_a_prediction_proves_nothing(budget: Budget) -> None:
    choice = choose("d", [proof("sure", 9e6, 4, 9)], budget)
    assert choice.status == "unproven"
    assert choice.unproven


def test_where_all_may_pass_the_limit_the_rules_without_latency_decide() -> None:
    choice = choose("d", [proof("a", 9e6, 10, 30), proof("b", 1e6, 12, 40)], Budget(latency_p95_ms=20))
    assert (choice.artifact_id, choice.status) == ("b", "unproven")


def test_an_artifact_without_a_prediction_is_no_better_than_one_that_may_pass_the_limit() -> None:
    unknown = proof("unknown", 9e6, 1, 2)
    unknown = msgspec.structs.replace(
        unknown, evidence=tuple(e for e in unknown.evidence if e.what != "latency_p50_ms")
    )
    choice = choose("d", [unknown, proof("small", 1e6, 10, 30)], Budget(latency_p95_ms=20))
    assert choice.artifact_id == "small"


def test_predictions_do_not_rank() -> None:
    choice = choose("d", [proof("fast", 9e6, 1, 2), proof("small", 1e6, 3, 6)], Budget())
    assert choice.artifact_id == "small"
    assert choice.cost == "size_bytes"


def test_measurements_do() -> None:
    fast, small = proof("fast", 9e6, 1, 2, "measured"), proof("small", 1e6, 30, 60, "measured")
    choice = choose("d", [fast, small], Budget())
    assert (choice.artifact_id, choice.basis) == ("fast", BASIS_LATENCY)
