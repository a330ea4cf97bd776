"""Energy per inference: power over time, integrated, with the idle power taken off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from edgekiln.records import Record

LEAST_SAMPLES = 5
LONGEST_GAP = 5.0
"""A hole of more than so many median intervals is no measurement of what happened in it."""


class Energy(Record, frozen=True, kw_only=True):
    """What a run of ``inferences`` took; every figure is None where ``reason`` says why.

    ``mj`` is per inference and above idle; ``watts`` is the mean power of the run, idle included.
    """

    inferences: int
    mj: float | None = None
    watts: float | None = None
    idle_watts: float | None = None
    samples: int = 0
    reason: str = ""


def per_inference(
    times_s: Sequence[float],
    watts: Sequence[float],
    start_s: float,
    end_s: float,
    inferences: int,
    idle_watts: float | None,
) -> Energy:
    """Integrate ``watts`` over ``start_s`` to ``end_s`` by trapezoids, cut at both ends by a straight line.

    Without ``idle_watts`` nothing is taken off and ``mj`` stays None: what a board takes for doing nothing is
    no property of a model. Refused with a reason: a clock that goes back, a hole in the log, ends that the
    log does not cover, values that are no power.
    """

    def none(reason: str) -> Energy:
        return Energy(inferences=inferences, samples=len(times_s), reason=reason)

    problem = _problem(times_s, watts, start_s, end_s, inferences)
    if problem:
        return none(problem)
    joules = inside = 0.0
    for (t0, w0), (t1, w1) in pairwise(zip(times_s, watts, strict=True)):
        low, high = max(t0, start_s), min(t1, end_s)
        if high <= low:
            continue
        at = [w0 + (w1 - w0) * (t - t0) / (t1 - t0) for t in (low, high)]
        joules += (at[0] + at[1]) / 2 * (high - low)
        inside += 1
    seconds = end_s - start_s
    if inside < LEAST_SAMPLES:
        return none(f"{inside:.0f} intervals of the log lie in the run; {LEAST_SAMPLES} are needed")
    made = Energy(inferences=inferences, watts=joules / seconds, idle_watts=idle_watts, samples=len(times_s))
    if idle_watts is None:
        return Energy(
            inferences=inferences,
            watts=made.watts,
            samples=made.samples,
            reason="the idle power was not measured, so that nothing can be taken off",
        )
    above = joules - idle_watts * seconds
    if abs(above) < 1e-9 * joules:
        above = 0.0  # as much as idle: the sum of many trapezoids rounds
    if above < 0:
        return none(f"the run took {joules / seconds:.3g} W, less than idle ({idle_watts:.3g} W)")
    return Energy(
        inferences=inferences,
        mj=above * 1e3 / inferences,
        watts=made.watts,
        idle_watts=idle_watts,
        samples=made.samples,
    )


def _problem(
    times_s: Sequence[float], watts: Sequence[float], start_s: float, end_s: float, inferences: int
) -> str:
    if inferences < 1 or not end_s > start_s:
        return "the run is empty"
    if len(times_s) != len(watts) or len(times_s) < 2:
        return "the log holds no two samples"
    if not all(math.isfinite(x) for x in (*times_s, *watts)) or min(watts) < 0:
        return "the log holds values that are no time or no power"
    steps = [b - a for a, b in pairwise(times_s)]
    if min(steps) <= 0:
        return "the log's clock stands still or goes back"
    if times_s[0] > start_s or times_s[-1] < end_s:
        return "the log does not cover the whole run"
    usual = sorted(steps)[len(steps) // 2]
    around = zip(times_s, steps, strict=False)
    widest = max((step for t, step in around if t + step > start_s and t < end_s), default=0.0)
    if widest > LONGEST_GAP * usual:
        return f"the log has a hole of {widest:.3g} s, where samples are {usual:.3g} s apart"
    return ""
