"""A whole loop in virtual time: frames at a fixed rate, one engine, a machine whose times are a function.

Like the real loop it answers the newest frame that waits, drops the older ones, and times what a decision
asks to be probed in the idle time before the next frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgekiln.runtime.policies import Decision, State, decide, start
from edgekiln.runtime.vocabulary import (
    Allowance,
    Call,
    Goal,
    Health,
    Link,
    Observation,
    Rung,
    Setting,
)

Latency = Callable[[str, int, float], float]
"""ms of a call: of a rung, of so many frames, begun at so many seconds."""


@dataclass
class Run:
    """What happened: per frame the rung that answered it and whether in time (a dropped frame is not)."""

    state: State
    frames: list[tuple[float, str, bool]] = field(default_factory=list)
    changes: list[tuple[float, Setting, str]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    probes: int = 0

    def in_time(self, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        part = [ok for at, _, ok in self.frames if since_s <= at < until_s]
        return sum(part) / len(part)

    def at(self, second: float) -> str:
        return next(rung for at, rung, _ in reversed(self.frames) if at <= second and rung)


def loop(
    goal: Goal,
    ladder: Sequence[Rung],
    latency: Latency,
    seconds: float,
    *,
    probing: bool = True,
    allowance: Callable[[float], Allowance] = lambda at: Allowance(),
    health: Callable[[float], Health | None] = lambda at: None,
    link: Callable[[float], Link | None] = lambda at: None,
    energy: Callable[[str, Setting], float | None] = lambda rung, setting: None,
    clock: Callable[[float], float] = lambda at: at,
    state: State | None = None,
    wrong: Mapping[int, float] | None = None,
) -> Run:
    """Run for ``seconds``; ``clock`` turns true seconds into what the policy is told, ``wrong`` replaces the
    latency that is told of the n-th call."""
    run = Run(state or start(goal, ladder))
    interval = 1 / (goal.fps or 20.0)
    calls: list[Call] = []
    now, frame, count = 0.0, 0, 0
    while frame * interval < seconds:
        setting = run.state.setting
        taken, told = [], []
        for _ in range(max(setting.batch, setting.burst)):
            due = int(now / interval)
            room = max(setting.batch, setting.burst) - 1 - len(taken)  # of those that wait, so many are kept
            while frame + room * setting.every < due:
                run.frames.append((frame * interval, "", False))
                frame += 1
            now = max(now, frame * interval)
            taken.append(frame)
            frame += setting.every
        groups = [taken[i : i + setting.batch] for i in range(0, len(taken), setting.batch)]
        for group in groups:
            ms = latency(setting.rung, len(group), now)
            now += ms * 1e-3
            count += 1
            said = (wrong or {}).get(count, ms)
            call = Call(
                at_s=clock(now),
                rung=setting.rung,
                batch=len(group),
                latency_ms=said,
                energy_mj=energy(setting.rung, setting),
            )
            told.append(call)
            for one in group:
                ok = now - one * interval <= goal.deadline_ms * 1e-3
                run.frames.append((one * interval, setting.rung, ok))
        calls = calls + told
        seen = Observation(
            now_s=clock(now),
            calls=tuple(calls),
            interval_ms=interval * 1e3,
            allowance=allowance(now),
            health=health(now),
            link=link(now),
        )
        calls = []
        before = run.state.setting
        run.state, decision = decide(run.state, seen)
        run.decisions.append(decision)
        if decision.setting != before:
            run.changes.append((now, decision.setting, decision.why))
        if probing and decision.probe is not None and now < frame * interval:
            probe = decision.probe
            ms = latency(probe.rung, probe.batch, now)
            now += ms * 1e-3
            run.probes += 1
            calls = [Call(at_s=clock(now), rung=probe.rung, batch=probe.batch, latency_ms=ms)]
    return run
