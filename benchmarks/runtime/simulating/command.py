"""Thirty simulated minutes of four devices: what each policy keeps of the deadline, quality, energy and heat.

Contenders: the best, middle and lowest rung whatever happens; a reactive policy that follows the throttle;
edgekiln's policies without and with the governor. Two days per device: one whose air is 25, then 38, then 25
°C, and one at 30 °C on which others take a fifth to half of the compute now and then. Every frame is to be
answered (no n-th frames), with three seeds of noise. Everything here is simulated: many figures of the
devices are assumptions, which the JSON names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgekiln.prove.environment import fitness
from edgekiln.records import Record
from edgekiln.runtime.simulate import ALL, Result, Trace, crowded, profile, profiles, simulate, warm_day
from edgekiln.runtime.vocabulary import Goal
from measuring.process import say
from measuring.table import Table, arguments, publish

SECONDS, SEEDS = 1800.0, (1, 2, 3)
QUICK_SECONDS, QUICK_SEEDS = 30.0, (1,)
PERCENTILE = 0.99
COLUMNS = (
    "policy",
    "in time",
    "mean quality",
    "quality in time",
    "energy",
    "hottest",
    "throttled",
    "changes",
)


class Speed(Record, frozen=True, kw_only=True):
    """How many simulated seconds a second of this machine held, per policy over all its runs."""

    policy: str
    times_real: float


class Raw(Record, frozen=True, kw_only=True):
    results: tuple[Result, ...]
    speeds: tuple[Speed, ...]


def main() -> None:
    asked = arguments(__doc__).parse_args()
    unfit = fitness()
    seconds, seeds = (QUICK_SECONDS, QUICK_SEEDS) if asked.quick else (SECONDS, SEEDS)
    results: list[Result] = []
    spent = {policy.name: 0.0 for policy in ALL}
    tables = []
    for name in profiles():
        for day in ("warm", "crowded"):
            say(f"{name}, {day} day")
            found = _day(name, day, seconds, seeds, spent)
            results += found
            tables.append(_table(name, day, found, seconds, seeds))
    runs = len(tables) * len(seeds)
    speeds = tuple(Speed(policy=p, times_real=runs * seconds / s) for p, s in spent.items())
    tables.append(_speed_table(speeds))
    raw = Raw(results=tuple(results), speeds=speeds)
    publish("runtime-simulate", tables, raw, quick=asked.quick, out=asked.out, unfit=unfit)


def _day(
    name: str, day: str, seconds: float, seeds: Sequence[int], spent: dict[str, float]
) -> tuple[Result, ...]:
    held = profile(name)
    goal = Goal(deadline_ms=held.deadline_ms, fps=held.fps, percentile=PERCENTILE, most_every=1)
    found = []
    for policy in ALL:
        for seed in seeds:
            begun = time.process_time()
            trace: Trace = warm_day(seconds) if day == "warm" else crowded(seconds, seed)
            found.append(simulate(held, held.rungs(), goal, policy, trace, seconds, seed))
            spent[policy.name] += time.process_time() - begun
    return tuple(found)


def _table(name: str, day: str, found: Sequence[Result], seconds: float, seeds: Sequence[int]) -> Table:
    held = profile(name)
    rows = [_row([r for r in found if r.policy == policy.name]) for policy in ALL]
    assumed = ", ".join(held.assumptions)
    return Table(
        title=f"{held.title}, {day} day (simulated)",
        columns=COLUMNS,
        rows=tuple(rows),
        note=(
            f"{seconds / 60:g} minutes at {held.fps:g} frames/s, deadline {held.deadline_ms:g} ms, "
            f"{len(seeds)} seeds: means, and the hottest of all. Trip point {held.trip_c:g} °C. `quality in "
            f"time` counts a frame that was late or dropped as 0. Assumed: {assumed}."
        ),
    )


def _row(runs: Sequence[Result]) -> tuple[str, ...]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return (
        runs[0].policy,
        f"{mean([r.deadline_share for r in runs]):.2%}",
        f"{mean([r.mean_quality for r in runs]):.3f}",
        f"{mean([r.useful_quality for r in runs]):.3f}",
        f"{mean([r.energy_j for r in runs]) / 1e3:.1f} kJ",
        f"{max(r.max_temperature_c for r in runs):.1f} °C",
        f"{mean([r.throttled_s for r in runs]):.0f} s",
        f"{mean([r.changes for r in runs]):.0f}",
    )


def _speed_table(speeds: Sequence[Speed]) -> Table:
    return Table(
        title="Speed of the simulator",
        columns=("policy", "simulated seconds per second of CPU time"),
        rows=tuple((s.policy, f"{s.times_real:.0f}") for s in speeds),
    )
