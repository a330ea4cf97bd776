"""What is thought of a candidate after its successes and failures: pure functions over frozen records.

The rules of the fallback chain, all in one place:

- After its n-th failure in a row a candidate rests for ``backoff`` seconds; a success resets that.
- One that falls (fails after a success) ``flaps`` times within ``flap_window_s`` is demoted: for
  ``demoted_s``, doubled each time, it stands behind all that are not.
- What a call needs is learned as TCP learns its time-outs (Jacobson 1988; RFC 6298): mean plus four mean
  deviations.
- A candidate may take all of the time that is left but what the first one behind it needs that still fits
  beside it; see ``limit_ms``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import msgspec

from edgekiln.records import Record

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4
_DEVIATIONS = 4.0
_EXPECTED_FACTOR = 1.5
"""How far a call may exceed the median that the bundle states before anything was measured here."""


class Rules(Record, frozen=True, kw_only=True):
    """The figures of the chain; seconds and milliseconds as named.

    ``standby`` engines are kept open beside the best. A call that takes longer than ``hung_ms`` is hung, an
    opening after ``open_s``. ``files_every_s`` is how often the artifacts' files are looked at. ``reserve``
    is the share of the deadline kept for a candidate of which nothing is known yet. An engine is
    opened anew when its answer is not finite and the ``reopen_after``-th failure in a row.
    """

    first_s: float = 0.25
    most_s: float = 60.0
    flaps: int = 3
    flap_window_s: float = 60.0
    demoted_s: float = 60.0
    most_demoted_s: float = 1920.0
    standby: int = 1
    hung_ms: float = 2000.0
    open_s: float = 60.0
    files_every_s: float = 2.0
    reserve: float = 0.25
    reopen_after: int = 2


RULES = Rules()


class Standing(Record, frozen=True, kw_only=True):
    """A candidate's record. ``failures`` in a row; it rests until ``until_s``; ``falls`` are the times of its
    recent failures after a success. ``mean_ms`` and ``deviation_ms`` of its calls, None before the first."""

    failures: int = 0
    until_s: float = -math.inf
    falls: tuple[float, ...] = ()
    demotions: int = 0
    demoted_until_s: float = -math.inf
    mean_ms: float | None = None
    deviation_ms: float = 0.0

    def rests(self, now_s: float) -> bool:
        return now_s < self.until_s

    def demoted(self, now_s: float) -> bool:
        return now_s < self.demoted_until_s


def backoff(failures: int, seed: str, rules: Rules = RULES) -> float:
    """Seconds of rest after the ``failures``-th failure in a row: doubled each time up to ``most_s``.

    Half of it is jitter from ``seed`` ("equal jitter"), so that many devices that lost one server or power
    line together don't come back together. Equal arguments, equal seconds.
    """
    whole = min(rules.most_s, rules.first_s * 2.0 ** min(failures - 1, 64))
    return whole * (0.5 + 0.5 * random.Random(f"{seed}/{failures}").random())


def failed(standing: Standing, now_s: float, seed: str, rules: Rules = RULES) -> Standing:
    """After a failure at ``now_s``: it rests, and is demoted where it keeps falling."""
    failures = standing.failures + 1
    until = now_s + backoff(failures, seed, rules)
    if standing.failures:  # it has not been up since: no fall
        return msgspec.structs.replace(standing, failures=failures, until_s=until)
    falls = (*(t for t in standing.falls if t > now_s - rules.flap_window_s), now_s)
    if len(falls) < rules.flaps:
        return msgspec.structs.replace(standing, failures=failures, until_s=until, falls=falls)
    seconds = min(rules.most_demoted_s, rules.demoted_s * 2.0 ** min(standing.demotions, 64))
    return msgspec.structs.replace(
        standing,
        failures=failures,
        until_s=until,
        falls=(),
        demotions=standing.demotions + 1,
        demoted_until_s=now_s + seconds,
    )


def answered(standing: Standing, now_s: float, latency_ms: float, rules: Rules = RULES) -> Standing:
    """After an answer: no rest any more. Old falls and demotions are forgiven after a quiet window."""
    known = timed(standing, latency_ms)
    if not (standing.failures or standing.falls or standing.demotions):
        return known
    falls = tuple(t for t in standing.falls if t > now_s - rules.flap_window_s)
    quiet = not falls and now_s > standing.demoted_until_s + rules.flap_window_s
    return msgspec.structs.replace(
        known,
        failures=0,
        until_s=-math.inf,
        falls=falls,
        demotions=0 if quiet else standing.demotions,
    )


def timed(standing: Standing, latency_ms: float) -> Standing:
    """With one more latency learned. One that was cut off counts as long as it was let run: an under-estimate
    that grows from call to call."""
    mean = standing.mean_ms
    if mean is None:
        return msgspec.structs.replace(standing, mean_ms=latency_ms, deviation_ms=latency_ms / 2)
    error = latency_ms - mean
    deviation = standing.deviation_ms + _DEVIATION_GAIN * (abs(error) - standing.deviation_ms)
    return msgspec.structs.replace(standing, mean_ms=mean + _GAIN * error, deviation_ms=deviation)


def passed_over(standing: Standing) -> Standing:
    """After it was left out because its need did not fit: one stall must not shut it out for good."""
    if standing.mean_ms is None:
        return standing
    return msgspec.structs.replace(
        standing, mean_ms=0.98 * standing.mean_ms, deviation_ms=0.98 * standing.deviation_ms
    )


def need_ms(standing: Standing, expected_ms: float | None) -> float | None:
    """What a call should be given: learned here, else from the bundle's figure, else None."""
    if standing.mean_ms is not None:
        return standing.mean_ms + _DEVIATIONS * standing.deviation_ms
    return None if expected_ms is None else _EXPECTED_FACTOR * expected_ms


def order(
    names: Sequence[str], standings: Mapping[str, Standing], preferred: str | None, now_s: float
) -> list[str]:
    """The order in which candidates are asked: ``preferred``, then the bundle's order, then the demoted ones.

    Last come those that rest, the soonest to come back first: a call that may succeed beats none.
    """

    def rank(name: str) -> tuple[int, float, bool]:
        standing = standings[name]
        if standing.until_s > now_s:
            return 2, standing.until_s, False
        return int(standing.demoted_until_s > now_s), 0.0, name != preferred

    return sorted(names, key=rank)  # stable: the bundle's order among equals


def pick(ready: Sequence[tuple[str, float]], left_ms: float, *, first: bool) -> int:
    """Which of ``ready`` (name, need; in order) is asked next. The first try is the first one's, whatever it
    needs: it was chosen. Later ones must fit into what is left; where none does, the quickest has it."""
    if first:
        return 0
    fits = (i for i, (_, need) in enumerate(ready) if need <= left_ms)
    return next(fits, min(range(len(ready)), key=lambda i: ready[i][1]))


def limit_ms(left_ms: float, own_ms: float, others_ms: Sequence[float]) -> float:
    """How long a candidate may take of the ``left_ms``: all but the need of the first other (in order) that
    fits beside its own.

    Where none fits beside it, it has everything if it is expected to be in time by itself: to cut it earlier
    would cost answers. Where it is not, the quickest other that fits keeps its need.
    """
    beside = next((o for o in others_ms if own_ms + o <= left_ms), None)
    if beside is None and own_ms > left_ms:
        beside = min((o for o in others_ms if o < left_ms), default=None)
    return left_ms - (beside or 0.0)
