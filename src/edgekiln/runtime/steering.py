"""Who decides how the next frames are answered: the policies and the governor, between one call and the next.

Thread-safe. The decisions themselves are pure functions (``policies.combine.decide``, ``governor.govern``);
this keeps their states, hands them what was seen, and tells what changed.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from edgekiln.records import Scalar
from edgekiln.runtime import governor
from edgekiln.runtime.metrics import Metrics
from edgekiln.runtime.policies.combine import Decision, decide
from edgekiln.runtime.policies.state import start
from edgekiln.runtime.vocabulary import (
    Allowance,
    Call,
    Event,
    Goal,
    Health,
    Link,
    Observation,
    Rung,
    Setting,
    ordinal,
)

OVERHEADS = 128
"""So many frames' costs beside the call are remembered, and their percentile is reckoned with."""


class Steering:
    """``setting`` is how frames are to be answered now; ``decide`` is to be called after each call.

    ``tell`` gets an event for each change, and may be called from any thread.
    """

    def __init__(
        self,
        goal: Goal,
        ladder: Sequence[Rung],
        metrics: Metrics,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._goal, self._metrics, self._tell, self._clock = goal, metrics, tell, clock
        self._rungs = {r.id: r for r in ladder}
        self._lock = threading.Lock()
        self._policies = start(goal, ladder)
        self._governor = governor.start()
        self._allowance = Allowance()
        self._health: Health | None = None
        self._calls: list[Call] = []
        self._overheads: deque[float] = deque(maxlen=OVERHEADS)
        self._busy_s, self._looked_s = 0.0, clock()
        self.at_once = 1
        """How many calls of the engine may run side by side."""
        self.setting: Setting = self._policies.setting
        metrics.setting(self.setting, self._rungs[self.setting.rung], "", clock())

    @property
    def health(self) -> Health | None:
        """The machine at its last look."""
        return self._health

    def called(self, call: Call, overhead_ms: float | None = None, *, learned: bool = True) -> None:
        """A call of the edge's engine ended. ``overhead_ms`` is what its frame cost beside it. The policies
        hear of it where it is ``learned``."""
        with self._lock:
            if learned:
                self._calls.append(call)
            self._busy_s += call.latency_ms / 1e3
            if overhead_ms is not None and math.isfinite(overhead_ms):
                self._overheads.append(max(0.0, overhead_ms))
        self._metrics.call(call)

    def looked(self, health: Health) -> None:
        """The machine was looked at: the governor says what is allowed from now on."""
        with self._lock:
            passed = health.at_s - self._looked_s
            if passed > 0:
                share = min(1.0, self._busy_s / (passed * self.at_once))
                health = msgspec.structs.replace(health, busy_share=share)
                self._busy_s, self._looked_s = 0.0, health.at_s
            if self._goal.mode != "fixed":
                self._governor, self._allowance = governor.govern(self._governor, health, self._goal)
            events = self._governor.events if self._goal.mode != "fixed" else ()
            self._health = health
        self._metrics.health(health)
        for event in events:
            self._tell(event)

    def decide(self, queued: int, interval_ms: float | None, link: Link | None = None) -> Decision:
        """The setting for the frames to come, after what was seen since the last decision."""
        with self._lock:
            before, now = self.setting, self._clock()
            seen = Observation(
                now_s=now,
                calls=tuple(self._calls),
                queued=queued,
                at_once=self.at_once,
                overhead_ms=_percentile(self._overheads, self._goal.percentile),
                interval_ms=interval_ms,
                health=self._health,
                allowance=self._allowance,
                link=link,
            )
            self._calls.clear()
            self._policies, decision = decide(self._policies, seen)
            self.setting = decision.setting
            if decision.changed:
                self._metrics.setting(self.setting, self._rungs[self.setting.rung], decision.why, now)
        if decision.changed:
            self._tell(changed(before, decision, now))
        return decision


def changed(before: Setting, decision: Decision, at_s: float) -> Event:
    """The event of a change of the setting."""
    facts: dict[str, Scalar] = {
        "rung": decision.setting.rung,
        "every": decision.setting.every,
        "batch": decision.setting.batch,
        "burst": decision.setting.burst,
        "forecast_ms": round(decision.forecast.latency_ms, 3),
    }
    return Event(
        at_s=at_s,
        kind="change",
        what=f"{told(before)} to {told(decision.setting)}",
        why=decision.why,
        done="" if decision.meets else "what is foretold of it breaks a bound",
        facts=facts,
    )


def told(setting: Setting) -> str:
    """A setting in a few words: the rung, and what is not as usual."""
    more = [
        f"every {ordinal(setting.every)} frame" * (setting.every > 1),
        f"{setting.batch} a call" * (setting.batch > 1),
        f"bursts of {setting.burst}" * (setting.burst > 1),
    ]
    return ", ".join([setting.rung, *filter(None, more)])


def _percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values reach or stay below; 0 where there is none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
