"""A circuit breaker: after some failures in a row nothing is sent for a while, then one call tries again.

Pure functions over a frozen state (Nygard, "Release It!", 2007): closed, open, half-open. The caller asks
``admit`` before each call and tells ``record`` how it ended. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from edgekiln.records import Record


class BreakerRules(Record, frozen=True, kw_only=True):
    """``failures`` in a row open the breaker for ``wait_s``; each trial that fails too multiplies the wait by
    ``growth``, up to ``most_wait_s``. A trial that has not ended after ``trial_s`` counts as failed."""

    failures: int = 3
    wait_s: float = 1.0
    growth: float = 2.0
    most_wait_s: float = 30.0
    trial_s: float = 10.0


class Breaker(Record, frozen=True, kw_only=True):
    """``until_s``: when an open breaker lets a trial through, or a half-open one gives up on its trial.

    ``generation`` counts the changes of ``state``, so that a call that began before one is known as such.
    """

    state: Literal["closed", "open", "half-open"] = "closed"
    failed: int = 0
    wait_s: float = 0.0
    until_s: float = 0.0
    generation: int = 0

    @property
    def usable(self) -> bool:
        return self.state == "closed"


def admit(breaker: Breaker, rules: BreakerRules, now_s: float) -> tuple[Breaker, bool]:
    """Whether a call may go out now, and the state after it went."""
    if breaker.state == "closed":
        return breaker, True
    if now_s < breaker.until_s:
        return breaker, False
    if breaker.state == "half-open":  # the trial was lost without a word
        return _open(breaker, rules, now_s), False
    return _turned(breaker, state="half-open", until_s=now_s + rules.trial_s), True


def record(
    breaker: Breaker,
    rules: BreakerRules,
    now_s: float,
    *,
    ok: bool,
    generation: int,
    retry_after_s: float | None = None,
) -> Breaker:
    """The state after a call ended that had been admitted in ``generation``.

    What began before the last change of state says nothing about the present and is ignored.
    ``retry_after_s`` is the server's own wish: it opens the breaker at once, for at least so long.
    """
    if generation != breaker.generation:
        return breaker
    if ok:
        if breaker.state == "half-open":
            return _turned(breaker, state="closed", failed=0, wait_s=0.0, until_s=0.0)
        return replace(breaker, failed=0)
    counted = replace(breaker, failed=breaker.failed + 1)
    if retry_after_s is not None or breaker.state == "half-open" or counted.failed >= rules.failures:
        return _open(counted, rules, now_s, retry_after_s or 0.0)
    return counted


def _open(breaker: Breaker, rules: BreakerRules, now_s: float, least_s: float = 0.0) -> Breaker:
    grown = breaker.wait_s * rules.growth if breaker.wait_s else rules.wait_s
    wait_s = min(grown, rules.most_wait_s)
    return _turned(breaker, state="open", wait_s=wait_s, until_s=now_s + max(wait_s, least_s))


def _turned(breaker: Breaker, **changes: object) -> Breaker:
    return replace(breaker, generation=breaker.generation + 1, **changes)
