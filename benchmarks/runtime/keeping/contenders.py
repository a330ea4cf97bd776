"""Who chooses the rung of the next frame: no adaptation, the guide's algorithm, edgekiln's, an oracle."""

from __future__ import annotations

import time

from edgekiln.runtime.policies import decide, start
from edgekiln.runtime.vocabulary import Call, Goal, Observation, Rung
from runtime.keeping.records import LEAD_IN_S, Change, Order, Place, phase_at

OURS, GUIDE, ORACLE, EACH = "edgekiln", "guide", "oracle", "each rung"


class Contender:
    """``first`` and ``then`` are the rungs that answer one frame: where the call took too long another may be
    tried (None: the answer stands). ``heard`` is told of every call, and may name a rung to be timed in idle
    time. ``counts``: whether a frame of that time is part of the figures."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.changes: list[Change] = []

    def first(self, at_s: float) -> str:
        raise NotImplementedError

    def then(self, rung: str, call_ms: float) -> str | None:
        return None

    def heard(self, call: Call, overhead_ms: float) -> str | None:
        return None

    def probed(self, call: Call) -> None:
        """A call that ``heard`` asked for."""

    def counts(self, at_s: float) -> bool:
        return True


class Each(Contender):
    """Every rung in turns, in blocks of equal length in every phase: no adaptation, at each rung."""

    def block(self, at_s: float) -> tuple[str, float]:
        """The rung at ``at_s``, and the seconds since its block began."""
        phase, since_s = phase_at(self.order.course, at_s)
        places = self.order.places
        each_s = phase.seconds / len(places)
        number = min(len(places) - 1, int(since_s / each_s))
        return places[(number + self.order.turn) % len(places)].id, since_s - number * each_s

    def first(self, at_s: float) -> str:
        return self.block(at_s)[0]

    def counts(self, at_s: float) -> bool:
        return self.block(at_s)[1] >= LEAD_IN_S


class Guide(Contender):
    """The guide's AdaptiveResolution: each frame at the smallest size first, then the next, until a call
    meets the budget. It knows one variant (the float one) at several sizes."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        of_one = [p for p in order.places if p.artifact.recipe == order.places[0].artifact.recipe]
        self.ladder = [p.id for p in sorted(of_one, key=lambda p: p.side)]

    def first(self, at_s: float) -> str:
        return self.ladder[0]

    def then(self, rung: str, call_ms: float) -> str | None:
        at = self.ladder.index(rung) + 1
        late = call_ms > self.order.deadline_ms
        return self.ladder[at] if late and at < len(self.ladder) else None


class Oracle(Contender):
    """Knows when each phase begins, and which rung was best in its kind of phase."""

    def first(self, at_s: float) -> str:
        return self.order.picks[phase_at(self.order.course, at_s)[0].kind]


class Ours(Contender):
    """edgekiln's policies: what they are told is what a loop sees, never the course."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        # Each frame is to be answered, and the loop passes none over.
        goal = Goal(deadline_ms=order.deadline_ms, percentile=order.percentile, fps=order.fps, most_every=1)
        self.state = start(goal, [rung_of(p) for p in order.places])
        self.pending: list[Call] = []
        self.spent_us: list[float] = []

    def first(self, at_s: float) -> str:
        return self.state.setting.rung

    def heard(self, call: Call, overhead_ms: float) -> str | None:
        before = time.perf_counter()
        seen = Observation(
            now_s=call.at_s,
            calls=(*self.pending, call),
            overhead_ms=overhead_ms,
            interval_ms=1e3 / self.order.fps,
        )
        self.pending = []
        self.state, decision = decide(self.state, seen)
        self.spent_us.append((time.perf_counter() - before) * 1e6)
        if decision.changed:
            self.changes.append(Change(at_s=call.at_s, rung=decision.setting.rung, why=decision.why))
        return decision.probe.rung if decision.probe is not None else None

    def probed(self, call: Call) -> None:
        self.pending.append(call)


def rung_of(place: Place) -> Rung:
    """As a bundle's evidence would tell of it."""
    return Rung(
        id=place.id,
        artifact_id=place.artifact.id,
        quality=place.quality,
        quality_of="agreement",
        size=(place.side, place.side),
        expected_ms=place.calm_ms,
    )


CONTENDERS: dict[str, type[Contender]] = {EACH: Each, GUIDE: Guide, ORACLE: Oracle, OURS: Ours}
