"""What happens around a device: the air's temperature, the rate of frames, and compute that others take."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from edgekiln.records import Record

_begin = attrgetter("at_s")


class Moment(Record, frozen=True, kw_only=True):
    """From ``at_s`` on. ``load`` is the share (0 to below 1) of the compute that others take; ``fps`` is the
    rate of frames as a multiple of the goal's."""

    at_s: float
    ambient_c: float = 25.0
    load: float = 0.0
    fps: float = 1.0


class Trace(Record, frozen=True, kw_only=True):
    """Moments in order of time; the first is at 0."""

    name: str
    moments: tuple[Moment, ...]

    def __post_init__(self) -> None:
        times = [m.at_s for m in self.moments]
        if not times or times[0] != 0.0 or times != sorted(times):
            raise ValueError(f"trace '{self.name}' does not begin at 0 and go on in order")
        if any(not 0.0 <= m.load < 1.0 or m.fps <= 0.0 for m in self.moments):
            raise ValueError(f"trace '{self.name}' has a load outside 0 to 1 or no frames")

    def at(self, now_s: float) -> Moment:
        return self.moments[bisect_right(self.moments, now_s, key=_begin) - 1]


def steady(ambient_c: float = 25.0) -> Trace:
    return Trace(name=f"steady {ambient_c:g} °C", moments=(Moment(at_s=0.0, ambient_c=ambient_c),))


def warm_day(seconds: float, mild_c: float = 25.0, hot_c: float = 38.0) -> Trace:
    """A third mild, a third hot (sun on the case), a third mild again."""
    temperatures = (mild_c, hot_c, mild_c)
    moments = [Moment(at_s=i * seconds / 3, ambient_c=c) for i, c in enumerate(temperatures)]
    return Trace(name=f"{mild_c:g}, {hot_c:g}, {mild_c:g} °C", moments=tuple(moments))


def crowded(seconds: float, seed: int, ambient_c: float = 30.0) -> Trace:
    """Others that take a fifth to half of the compute for half a minute or so, and a faster source for a
    minute."""
    random = np.random.default_rng(seed)
    moments, now = [Moment(at_s=0.0, ambient_c=ambient_c)], 0.0
    while (now := now + float(random.uniform(40.0, 120.0))) < seconds:
        lasts = float(random.uniform(15.0, 45.0))
        busy = bool(random.random() < 0.7)
        moments.append(
            Moment(
                at_s=now,
                ambient_c=ambient_c,
                load=float(random.uniform(0.2, 0.5)) if busy else 0.0,
                fps=1.0 if busy else 1.25,
            )
        )
        moments.append(Moment(at_s=now + lasts, ambient_c=ambient_c))
        now += lasts
    return Trace(name=f"crowded {ambient_c:g} °C", moments=tuple(m for m in moments if m.at_s < seconds))


def joined(name: str, moments: Sequence[Moment]) -> Trace:
    return Trace(name=name, moments=tuple(sorted(moments, key=lambda m: m.at_s)))
