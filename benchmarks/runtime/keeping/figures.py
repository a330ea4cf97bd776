"""From frames to figures: shares in time, qualities, sizes, and their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from edgekiln.records import Record
from runtime.keeping.records import Frame, Phase, Place, Run

RESAMPLES = 2000
Figure = tuple[float, float, float]
"""The value and its 95 % interval."""


class Score(Record, frozen=True, kw_only=True):
    """Of one contender. ``quality`` and ``side`` are means over the frames that were answered,
    ``useful`` over all, one that is late or dropped being worth nothing. ``changes`` are per minute."""

    contender: str
    in_time: Figure
    quality: Figure
    useful: Figure
    side: Figure
    changes: float
    n: int


Unit = Sequence[Frame]
"""Frames that are drawn together when resampling: those of one phase of one run."""


def in_time(frame: Frame, deadline_ms: float) -> bool:
    return frame.ended_ms is not None and frame.ended_ms <= deadline_ms


def units(runs: Iterable[Run], course: Sequence[Phase]) -> list[Unit]:
    """The frames of each phase of each run: what shares a load and a history."""
    found: list[Unit] = []
    for run in runs:
        begin = 0.0
        for phase in course:
            end = begin + phase.seconds
            found.append([f for f in run.frames if begin <= f.at_s < end and f.counts])
            begin = end
    return [unit for unit in found if unit]


def score(
    name: str, runs: Sequence[Run], course: Sequence[Phase], places: Mapping[str, Place], deadline_ms: float
) -> Score:
    """The figures of one contender's runs. Intervals are from resampling whole phases with replacement,
    kind by kind (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8)."""
    groups = _by_kind(units(runs, course))
    seconds = sum(p.seconds for p in course) * max(1, len(runs))
    switches = sum(switched(run.frames) for run in runs)

    def mean(value: Callable[[Frame], float | None]) -> Figure:
        return _interval(groups, value)

    return Score(
        contender=name,
        in_time=mean(lambda f: float(in_time(f, deadline_ms))),
        quality=mean(lambda f: None if f.ended_ms is None else places[f.rung].quality),
        useful=mean(lambda f: places[f.rung].quality if in_time(f, deadline_ms) else 0.0),
        side=mean(lambda f: None if f.ended_ms is None else float(places[f.rung].side)),
        changes=switches / seconds * 60,
        n=sum(len(u) for group in groups for u in group),
    )


def without_adaptation(
    runs: Sequence[Run], course: Sequence[Phase], places: Mapping[str, Place], deadline_ms: float
) -> list[Score]:
    """The figures of each rung by itself, from the runs that take the rungs in turns."""
    found = []
    for rung in places:
        only = [_only(run, rung) for run in runs]
        made = score(f"{rung} throughout", only, course, places, deadline_ms)
        found.append(msgspec.structs.replace(made, changes=0.0))
    return found


def _only(run: Run, rung: str) -> Run:
    return Run(contender=rung, turn=run.turn, frames=tuple(f for f in run.frames if f.rung == rung))


def switched(frames: Sequence[Frame]) -> int:
    """How often the rung that answered was another than that of the answer before."""
    rungs = [f.rung for f in frames if f.ended_ms is not None]
    return sum(a != b for a, b in itertools.pairwise(rungs))


def picks(
    runs: Sequence[Run], places: Sequence[Place], deadline_ms: float, percentile: float
) -> dict[str, str]:
    """The oracle's rung in each kind of phase: the best whose time from arrival to answer at ``percentile``
    is within the deadline there (a dropped frame takes for ever), as was measured rung by rung; where none
    is, the one with the most frames in time."""
    found: dict[str, str] = {}
    frames = [f for run in runs for f in run.frames if f.counts]
    for kind in dict.fromkeys(f.kind for f in frames):
        times = {p.id: [f.ended_ms for f in frames if f.kind == kind and f.rung == p.id] for p in places}
        fits = [p for p in places if times[p.id] and _quantile(times[p.id], percentile) <= deadline_ms]
        if fits:
            found[kind] = max(fits, key=lambda p: (p.quality, -p.calm_ms)).id
        else:
            found[kind] = max(places, key=lambda p: _share(times[p.id], deadline_ms)).id
    return found


def _quantile(times: Sequence[float | None], q: float) -> float:
    """The least time that a share ``q`` of the frames keeps, as an order statistic."""
    ordered = sorted(np.inf if t is None else t for t in times)
    return float(ordered[min(len(ordered) - 1, int(np.ceil(q * len(ordered))) - 1)])


def _share(times: Sequence[float | None], deadline_ms: float) -> float:
    return sum(t is not None and t <= deadline_ms for t in times) / max(1, len(times))


def _by_kind(found: Sequence[Unit]) -> list[list[Unit]]:
    kinds: dict[str, list[Unit]] = {}
    for unit in found:
        kinds.setdefault(unit[0].kind, []).append(unit)
    return list(kinds.values())


def _interval(groups: Sequence[Sequence[Unit]], value: Callable[[Frame], float | None]) -> Figure:
    """The mean of ``value`` over frames, kinds weighed by their frames; NaN where there is none."""
    sums: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]] = []
    for group in groups:
        pairs = []
        for unit in group:
            values = [v for f in unit if (v := value(f)) is not None]
            pairs.append((float(sum(values)), float(len(values))))
        sums.append(np.asarray(pairs, np.float64).reshape(-1, 2))
    if not sums or sum(part[:, 1].sum() for part in sums) == 0:
        return (float("nan"),) * 3
    total = np.sum([part.sum(0) for part in sums], axis=0)
    random = np.random.default_rng(0)
    draws = np.zeros((RESAMPLES, 2))
    for part in sums:
        chosen = random.integers(0, len(part), (RESAMPLES, len(part)))
        draws += part[chosen].sum(1)
    means = draws[:, 0] / np.maximum(draws[:, 1], 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(total[0] / total[1]), float(low), float(high)
