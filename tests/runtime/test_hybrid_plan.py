"""Where a frame is answered: rules that hold in any situation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekiln.runtime.hybrid.plan import Situation, decide, reserve_ms

MS = st.floats(0.0, 500.0)
SHARE = st.floats(0.0, 1.0)
SITUATIONS = st.builds(
    Situation,
    mode=st.sampled_from(("fixed", "edge", "cloud", "adaptive")),
    budget_ms=st.floats(1.0, 500.0),
    usable=st.booleans(),
    trial=st.booleans(),
    edge_ms=st.none() | MS,
    edge_busy_ms=MS,
    make_ms=st.just(0.0) | MS,
    round_trip_ms=st.none() | MS,
    share_in_time=st.none() | SHARE,
    probe_due=st.booleans(),
    gain=st.floats(-0.5, 0.5),
    queued=st.integers(0, 5),
    on_battery=st.booleans(),
    battery_share=st.none() | SHARE,
    edge_mj=st.none() | MS,
    cloud_mj=st.none() | MS,
)
GOOD = Situation(mode="adaptive", budget_ms=100, edge_ms=10, round_trip_ms=20, share_in_time=1.0, gain=0.1)


@given(SITUATIONS)
@settings(deadline=None, max_examples=500)
def test_in_any_situation_the_edge_starts_while_it_can_still_keep_the_deadline(s: Situation) -> None:
    plan = decide(s)
    assert plan.why
    if plan.edge_after_ms > 0:
        assert s.edge_ms is not None
        after_ms = plan.edge_after_ms + s.edge_busy_ms + s.edge_ms + reserve_ms(s.budget_ms)
        assert after_ms <= s.budget_ms + 1e-6
        assert plan.send == "call"
        # In mode cloud the server comes first, whatever it costs.
        assert s.mode == "cloud" or s.make_ms <= plan.edge_after_ms
    if s.mode in ("edge", "fixed") or (not s.usable and not s.trial):
        assert plan.send == "no"
    if plan.send != "call":
        assert plan.edge_after_ms == 0


@given(SITUATIONS)
@settings(deadline=None, max_examples=300)
def test_a_better_link_never_keeps_a_frame_here_that_a_worse_one_sent(s: Situation) -> None:
    better = replace(s, share_in_time=1.0, round_trip_ms=0.0)
    if s.share_in_time is not None and decide(s).send == "call":
        assert decide(better).send == "call"


@pytest.mark.parametrize(
    ("change", "send", "why"),
    [
        ({}, "call", "100%"),
        ({"share_in_time": 0.4}, "no", "only 40%"),
        ({"share_in_time": 0.4, "probe_due": True}, "probe", "only 40%"),
        ({"share_in_time": None}, "probe", "not known"),
        ({"gain": 0.0}, "no", "no better"),
        ({"gain": 0.0, "on_battery": True, "edge_mj": 50.0, "cloud_mj": 5.0}, "call", "100%"),
        ({"gain": 0.0, "on_battery": True, "edge_mj": 5.0, "cloud_mj": 50.0}, "no", "no better"),
        ({"make_ms": 70.0}, "call", "100%"),
        ({"make_ms": 80.0}, "no", "longer to make"),
        ({"make_ms": 80.0, "probe_due": True}, "probe", "longer to make"),
        ({"make_ms": 80.0, "edge_ms": 200.0, "mode": "cloud"}, "call", "first"),
        ({"queued": 2}, "no", "2 frames wait"),
        ({"queued": 2, "round_trip_ms": 5.0}, "call", "100%"),
        ({"on_battery": True, "share_in_time": 0.7}, "no", "only 70%"),
        ({"on_battery": True, "battery_share": 0.1}, "no", "not known"),
        ({"on_battery": True, "battery_share": 0.1, "edge_mj": 5.0, "cloud_mj": 9.0}, "no", "no less"),
        ({"on_battery": True, "battery_share": 0.1, "edge_mj": 9.0, "cloud_mj": 5.0}, "call", "100%"),
        ({"usable": False}, "no", "breaker"),
        ({"usable": False, "trial": True}, "probe", "trial"),
        ({"mode": "cloud", "share_in_time": 0.0}, "call", "first"),
    ],
)
def test_what_decides(change: dict[str, object], send: str, why: str) -> None:
    plan = decide(replace(GOOD, **change))
    assert (plan.send, why in plan.why) == (send, True), plan


def test_an_edge_that_can_t_keep_the_deadline_starts_at_once_beside_the_call() -> None:
    plan = decide(replace(GOOD, edge_ms=150.0))
    assert (plan.send, plan.edge_after_ms) == ("call", 0)
