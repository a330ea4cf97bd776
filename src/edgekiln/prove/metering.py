"""Power beside a measurement: idle before, then the run, then energy per inference above idle."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgekiln.prove.machine import ROOT
from edgekiln.records import Record
from edgekiln.sensors import live
from edgekiln.sensors.energy import Energy, per_inference
from edgekiln.sensors.power import Power, total
from edgekiln.sensors.recorder import Recorder, Recording

BENCH_INTERVAL_S = 0.05
BENCH_IDLE_SECONDS = 3.0
PROBE_SECONDS = 0.3


class Idle(Record, frozen=True, kw_only=True):
    """What the machine took before the measurement, over ``seconds``. None has a ``reason``."""

    watts: float | None
    seconds: float = 0.0
    reason: str = ""


def idle(seconds: float, interval_s: float, root: Path = ROOT) -> Idle:
    """Look at the machine's power for ``seconds``; where it has no sensor of power, for a moment."""
    with live.here(interval_s, (os.getpid(),), root=root) as sources:
        first = _recorded(sources, PROBE_SECONDS, PROBE_SECONDS)
        if not total(first).sensors:
            return Idle(watts=None, reason=total(first).reason)
        found = total(_recorded(sources, seconds, interval_s))
    spread = zip(found.times_s, found.times_s[1:], found.watts, found.watts[1:], strict=False)
    joules = sum((b - a) * (u + v) / 2 for a, b, u, v in spread)
    lasted = found.times_s[-1] - found.times_s[0] if found.times_s else 0.0
    if lasted <= 0:
        return Idle(watts=None, reason="the sensor of power gave too little while the machine was idle")
    return Idle(watts=joules / lasted, seconds=lasted)


def _recorded(sources: dict[str, live.Source], seconds: float, interval_s: float) -> Recording:
    with Recorder(sources, interval_s) as running:
        time.sleep(seconds)
        return running.stop()


def energy(power: Power, start_s: float, end_s: float, inferences: int, before: Idle) -> Energy:
    """Energy per inference over ``start_s`` to ``end_s`` of the recording's clock, or the reason for none."""
    if not power.sensors:
        return Energy(inferences=inferences, reason=before.reason or power.reason)
    return per_inference(power.times_s, power.watts, start_s, end_s, inferences, before.watts)


class Meter:
    """Records while ``during`` lasts; ``of`` gives the energy of what ran in it."""

    def __init__(self, root: Path = ROOT) -> None:
        self.idle = idle(BENCH_IDLE_SECONDS, BENCH_INTERVAL_S, root)
        self._root, self._power, self._span = root, None, (0.0, 0.0)

    _power: Power | None

    @contextlib.contextmanager
    def during(self) -> Iterator[None]:
        """Record from a moment before the block to a moment after it. Without a sensor it does nothing."""
        if self.idle.watts is None:
            yield
            return
        with (
            live.here(BENCH_INTERVAL_S, root=self._root) as sources,
            Recorder(sources, BENCH_INTERVAL_S) as running,
        ):
            time.sleep(3 * BENCH_INTERVAL_S)
            start = time.monotonic()
            yield
            self._span = (start, time.monotonic())
            time.sleep(3 * BENCH_INTERVAL_S)
            self._power = total(running.stop())

    def of(self, inferences: int) -> Energy:
        """Energy per inference of ``inferences`` that ran in the block, or the reason why there is none."""
        if self._power is None:
            return Energy(inferences=inferences, reason=self.idle.reason or "nothing was recorded")
        return energy(self._power, *self._span, inferences, self.idle)
