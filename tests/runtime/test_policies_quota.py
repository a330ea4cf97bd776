"""The policies under a CPU quota and beside rivals, in virtual time: loads that stall calls, not slow them.

A quota lets a process compute for its share of each 100 ms and then stops it until the next; a rival takes
turns of 3 ms. Rungs are first timed under such loads, which must not make a cheap rung look dear.
"""

import random
from dataclasses import dataclass

import pytest

from edgekiln.runtime.policies import decide, start
from edgekiln.runtime.vocabulary import Call, Goal, Observation, Rung

DEADLINE_MS, FPS, PERIOD_S, SLICE_S = 20.0, 30, 0.1, 0.003
DECIDING_MS = 0.4
RUNGS = {  # ms, quality
    "a": (25.0, 1.0),
    "b": (18.0, 0.8),
    "c": (16.0, 0.85),
    "d": (14.0, 0.74),
    "e": (12.0, 0.69),
    "f": (9.0, 0.7),
    "g": (6.5, 0.56),
}


@dataclass
class Processor:
    """Seconds since the start, and what of the quota's period is used up."""

    draw: random.Random
    now_s: float = 0.0
    used_s: float = 0.0
    period: int = 0

    def compute(self, ms, quota, rivals):
        left = ms / 1e3 * self.draw.lognormvariate(0, 0.06)
        while rivals and left > SLICE_S:
            self.now_s += SLICE_S * (1 + rivals)
            left -= SLICE_S
        if quota is None:
            self.now_s += left
            return
        while left > 1e-9:
            period = int(self.now_s / PERIOD_S + 1e-9)
            if period != self.period:
                self.period, self.used_s = period, 0.0
            can = min(left, quota * PERIOD_S - self.used_s, (period + 1) * PERIOD_S - self.now_s)
            if can <= 1e-9:
                self.now_s = (period + 1) * PERIOD_S + 1e-9
                continue
            self.now_s += can
            self.used_s += can
            left -= can


def in_time(course, rung=None, seed=0):
    """The share of frames in time in the last phase of ``course`` (seconds, quota, rivals), on ``rung`` alone
    or as the policies choose."""
    cpu, ends = Processor(random.Random(seed)), []
    for seconds, quota, rivals in course:
        ends.append((seconds + (ends[-1][0] if ends else 0.0), quota, rivals))
    ladder = [
        Rung(id=n, artifact_id=n, quality=q, quality_of="agreement", expected_ms=ms)
        for n, (ms, q) in RUNGS.items()
    ]
    state, pending, kept = start(Goal(deadline_ms=DEADLINE_MS, fps=FPS, most_every=1), ladder), (), []

    def call(name):
        began = cpu.now_s
        cpu.compute(RUNGS[name][0], *load)
        return Call(at_s=cpu.now_s, rung=name, batch=1, latency_ms=(cpu.now_s - began) * 1e3)

    for frame in range(int(ends[-1][0] * FPS)):
        due_s = frame / FPS
        load = next((one[1:] for one in ends if due_s < one[0]), ends[-1][1:])
        if cpu.now_s >= due_s + 1 / FPS:  # overtaken by the next
            kept.append((due_s, False))
            continue
        cpu.now_s = max(cpu.now_s, due_s)
        made = call(rung or state.setting.rung)
        kept.append((due_s, (cpu.now_s - due_s) * 1e3 <= DEADLINE_MS))
        if rung is not None:
            cpu.compute(DECIDING_MS, *load)  # so that the rung has no more of the processor than the policies
            continue
        seen = Observation(now_s=cpu.now_s, calls=(*pending, made), overhead_ms=0.3, interval_ms=1e3 / FPS)
        (state, decision), pending = decide(state, seen), ()
        cpu.compute(DECIDING_MS, *load)
        probe = decision.probe
        if probe is not None and cpu.now_s + RUNGS[probe.rung][0] / 1e3 < due_s + 1 / FPS:
            pending = (call(probe.rung),)
    last = [ok for due_s, ok in kept if due_s >= ends[-2][0]]
    return sum(last) / len(last)


CALM, HALF = (10.0, None, 0), (5.0, 0.5, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "course",
    [
        [CALM, HALF, (10.0, None, 2)],
        [CALM, HALF, (5.0, None, 2), (10.0, None, 1)],
        [CALM, (10.0, 0.2, 0)],
        [CALM, HALF, (10.0, 0.2, 0)],
        [CALM, (10.0, 0.35, 0)],
    ],
)
def test_where_only_the_cheapest_rung_does_it_is_the_one_that_is_used(course, seed):
    """What the policies reach is near what the cheapest rung reaches by itself, also where that is little."""
    ours, cheapest = in_time(course, seed=seed), in_time(course, "g", seed)
    assert ours >= 0.85 * cheapest
