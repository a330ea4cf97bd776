"""One contender, or two against each other, with a verdict that the samples support."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from edgekiln.engines import Arrays
from edgekiln.prove.statistics import Percentiles, Ratio, is_tie, percentiles, ratio_of_medians
from edgekiln.prove.timing import Contender, Progress, Timing, TimingFailure, measure
from edgekiln.records import Record
from edgekiln.sensors.energy import Energy


class BenchResult(Record, frozen=True, kw_only=True):
    """``ratio`` is a's median over b's: above 1, b is faster. Figures of a failed contender are None.

    ``energy`` is that of ``a`` alone, or the reason why it is not known; None where nobody asked.
    """

    a: Timing | TimingFailure
    b: Timing | TimingFailure | None
    a_percentiles: Percentiles | None
    b_percentiles: Percentiles | None
    ratio: Ratio | None
    tie: bool | None
    verdict: str
    energy: Energy | None = None


def compare(
    a: Contender,
    b: Contender | None,
    inputs: Arrays,
    threads: int,
    *,
    min_samples: int = 200,
    max_seconds: float = 30.0,
    pin: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    unfit: tuple[str, ...] | None = None,
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> BenchResult:
    """Time ``a`` and ``b`` alternated in one run (``timing.measure``; ``b`` None times a alone).

    A contender that fails is part of the result. Raises BadInput as ``measure`` does.
    """
    contenders = [a] if b is None else [a, b]
    found = measure(
        contenders,
        inputs,
        threads,
        min_samples=min_samples,
        max_seconds=max_seconds,
        pin=pin,
        seed=seed,
        progress=progress,
        unfit=unfit,
        around=around,
    )
    return judge(found[0], found[1] if b is not None else None)


def judge(a: Timing | TimingFailure, b: Timing | TimingFailure | None) -> BenchResult:
    """The verdict over what one run measured."""
    both = isinstance(a, Timing) and isinstance(b, Timing)
    ratio = tie = None
    if isinstance(a, Timing) and isinstance(b, Timing):
        ratio = ratio_of_medians(a.blocks_ms, b.blocks_ms)
        tie = is_tie(a.blocks_ms, b.blocks_ms)
    verdict = _verdict(a.id, b.id, ratio, bool(tie)) if both and ratio and b else _alone(a, b)
    return BenchResult(
        a=a,
        b=b,
        a_percentiles=percentiles(a.samples_ms) if isinstance(a, Timing) else None,
        b_percentiles=percentiles(b.samples_ms) if isinstance(b, Timing) else None,
        ratio=ratio,
        tie=tie,
        verdict=verdict,
    )


def _verdict(a: str, b: str, ratio: Ratio, tie: bool) -> str:
    if ratio.interval is None:
        return f"no verdict on {a} against {b}: {ratio.reason}"
    low, high = ratio.interval
    if tie:
        shown = f"{a} takes {ratio.value:.2f}x [{low:.2f}, {high:.2f}] of {b}"
        return f"no difference that this run can show: {shown}"
    if ratio.value < 1:
        return f"{a} is {1 / ratio.value:.2f}x faster than {b} [{1 / high:.2f}, {1 / low:.2f}]"
    return f"{b} is {ratio.value:.2f}x faster than {a} [{low:.2f}, {high:.2f}]"


def _alone(a: Timing | TimingFailure, b: Timing | TimingFailure | None) -> str:
    failed = [x for x in (a, b) if isinstance(x, TimingFailure)]
    if failed:
        return "; ".join(f"{x.id} could not be timed: {x.reason}" for x in failed)
    return f"{a.id} was timed alone"
