"""One contender over the course: frames at a fixed rate, answered one at a time in this process.

A frame that a newer one overtook before its turn is dropped, as a stream's bounded queue does.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekiln.engines import Runner, open_engine
from edgekiln.runtime.vocabulary import Call
from runtime.keeping.contenders import CONTENDERS, EACH, Contender, Ours
from runtime.keeping.records import Frame, Order, Run, phase_at

WARM_CALLS = 20
WAITS = 64


def main() -> None:
    """Reads an Order, says "ready", reads the start on the monotonic clock, writes a Run."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    os.sched_setaffinity(0, [order.core])
    if order.group:
        (Path(order.group) / "cgroup.procs").write_text(str(os.getpid()))
    runners = {p.id: _opened(order, n) for n, p in enumerate(order.places)}
    contender = CONTENDERS[order.contender](order)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    start_s = float(sys.stdin.readline())
    run = Loop(order, contender, runners, start_s).run()
    sys.stdout.buffer.write(msgspec.json.encode(run) + b"\n")
    for runner, _ in runners.values():
        runner.close()


def _opened(order: Order, number: int) -> tuple[Runner, dict[str, Any]]:
    """The rung's runner, warmed up, and an input of its size."""
    place = order.places[number]
    runner = open_engine(place.artifact.engine, place.artifact, Path(place.folder), order.threads)
    with np.load(Path(place.folder) / "input.npz") as held:
        inputs = dict(held)
    for _ in range(WARM_CALLS):
        runner(inputs)
    return runner, inputs


class Loop:
    """The frames of one run."""

    def __init__(
        self,
        order: Order,
        contender: Contender,
        runners: dict[str, tuple[Runner, dict[str, Any]]],
        start_s: float,
    ) -> None:
        self.order, self.contender, self.runners, self.start_s = order, contender, runners, start_s
        self.waits: deque[float] = deque(maxlen=WAITS)
        self.frames: list[Frame] = []
        self.probes = 0

    def run(self) -> Run:
        interval = 1 / self.order.fps
        count = round(sum(p.seconds for p in self.order.course) * self.order.fps)
        frame = 0
        while frame < count:
            newest = min(count - 1, int((time.monotonic() - self.start_s) / interval))
            while frame < newest:  # a newer one waits
                self._dropped(frame * interval)
                frame += 1
            wait = self.start_s + frame * interval - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self._answer(frame * interval, idle=wait > 0)
            frame += 1
        ours = self.contender if isinstance(self.contender, Ours) else None
        return Run(
            contender=self.order.contender,
            turn=self.order.turn,
            frames=tuple(self.frames),
            changes=tuple(
                msgspec.structs.replace(c, at_s=c.at_s - self.start_s) for c in self.contender.changes
            ),
            probes=self.probes,
            decide_us=float(np.median(ours.spent_us)) if ours else None,
        )

    def _call(self, rung: str) -> Call:
        runner, inputs = self.runners[rung]
        began = time.monotonic()
        runner(inputs)
        ended = time.monotonic()
        return Call(at_s=ended, rung=rung, batch=1, latency_ms=(ended - began) * 1e3)

    def _answer(self, at_s: float, idle: bool) -> None:
        due = self.start_s + at_s
        if idle:
            self.waits.append((time.monotonic() - due) * 1e3)
        rung: str | None = self.contender.first(at_s)
        while rung is not None:
            call = self._call(rung)
            rung = self.contender.then(call.rung, call.latency_ms)
        self._note(at_s, call)
        probe = self.contender.heard(call, self._overhead_ms())
        if probe is not None:
            place = next(p for p in self.order.places if p.id == probe)
            if time.monotonic() + place.calm_ms * 1e-3 < due + 1 / self.order.fps:
                self.contender.probed(self._call(probe))
                self.probes += 1

    def _overhead_ms(self) -> float:
        """The second longest of the latest waits for the processor, as the 99th percentile of 64 is."""
        waits = sorted(self.waits)
        return waits[-2] if len(waits) > 1 else 0.0

    def _note(self, at_s: float, call: Call) -> None:
        self.frames.append(
            Frame(
                at_s=at_s,
                kind=phase_at(self.order.course, at_s)[0].kind,
                rung=call.rung,
                ended_ms=(call.at_s - self.start_s - at_s) * 1e3,
                call_ms=call.latency_ms,
                counts=self.contender.counts(at_s),
            )
        )

    def _dropped(self, at_s: float) -> None:
        kind = phase_at(self.order.course, at_s)[0].kind
        rung = self.contender.first(at_s) if self.order.contender == EACH else ""
        self.frames.append(Frame(at_s=at_s, kind=kind, rung=rung, counts=self.contender.counts(at_s)))


if __name__ == "__main__":
    main()
