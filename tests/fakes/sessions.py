"""Sessions for the metrics, the view and the summary: a ladder, and a board that gets hot and recovers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from edgekiln.runtime.metrics import Metrics
from edgekiln.runtime.summary import Played, Timeline, played
from edgekiln.runtime.vocabulary import Answer, Call, Event, Goal, Health, Rung, Setting

LADDER = (
    Rung(id="int8@224x224", artifact_id="int8", quality=1.0, quality_of="agreement", size=(224, 224)),
    Rung(
        id="int8@192x192", artifact_id="int8", quality=0.97, quality_of="agreement@192x192", size=(192, 192)
    ),
    Rung(
        id="int8@160x160", artifact_id="int8", quality=0.93, quality_of="agreement@160x160", size=(160, 160)
    ),
)
GOAL = Goal(deadline_ms=50.0, percentile=0.99, fps=30.0, power_watts=10.0)
STREAMS = ("gate", "yard")


def answer(latency_ms: float, rung: str = "int8@224x224", **more: object) -> Answer:
    """An answer without outputs: nothing here looks at them."""
    return Answer(outputs={}, rung=rung, place="edge", latency_ms=latency_ms, **more)  # type: ignore[arg-type]


def hot_session(
    seconds: int = 120, streams: tuple[str, ...] = STREAMS, seed: int = 1
) -> Iterator[tuple[Metrics, float]]:
    """A board that nears its trip point, goes down the ladder and comes back; a look every second."""
    source = random.Random(seed)
    metrics = Metrics(GOAL, LADDER, idle_watts=3.0)
    metrics.event(Event(at_s=0.0, kind="opened", what="demo.edgekiln", why="asked for", done="int8@224x224"))
    at, hung = 0, int(seconds * 0.6)
    for second in range(seconds):
        share = second / seconds
        wanted = 0 if share < 0.4 else 1 if share < 0.5 else 2 if share < 0.75 else 0
        if second == 0 or wanted != at:
            why = "the board nears its trip point" if wanted > at else "there is room again"
            metrics.setting(Setting(rung=LADDER[wanted].id), LADDER[wanted], why, float(second))
            metrics.event(
                Event(at_s=float(second), kind="change", what=LADDER[wanted].id, why=why, done="switched")
            )
            at = wanted
        if second == hung:
            metrics.event(
                Event(at_s=float(second), kind="hung", what="openvino", why="no answer", done="restarted")
            )
        for frame in range(30):
            stream = streams[frame % len(streams)]
            metrics.frame_in(stream)
            base = (30.0, 24.0, 18.0)[at] * (1 + 0.9 * max(0.0, share - 0.3) * (share < 0.75))
            took = base * source.lognormvariate(0, 0.12) * (1.35 if 0.36 < share < 0.4 else 1.0)
            if hung == second and frame < 3:
                metrics.failed(stream, 1, "the engine hung")
                continue
            if frame == 7 and second % 9 == 0:
                metrics.dropped(stream, 1, "queue full")
                continue
            metrics.done(stream, answer(took, LADDER[at].id), quality=LADDER[at].quality)
            metrics.call(Call(at_s=second + frame / 30, rung=LADDER[at].id, batch=1, latency_ms=took))
        heat = 55 + 30 * math.exp(-(((share - 0.55) / 0.25) ** 2))
        metrics.health(
            Health(
                at_s=second + 1.0,
                temperature_c=heat,
                trip_c=88.0,
                zone="cpu-thermal",
                power_watts=(9.6, 8.1, 6.4)[at] + source.uniform(-0.3, 0.3),
                power_of="VDD_IN",
                clock_share=1.0,
            )
        )
        yield metrics, second + 1.0


def hot_played(seconds: int = 120) -> Played:
    """The same as a summary."""
    timeline = Timeline()
    for found, at_s in hot_session(seconds):
        metrics = found
        timeline.add(metrics.snapshot(at_s))
    return played(
        bundle="demo.edgekiln",
        model="efficientnet-lite0",
        device="jetson-orin-nano-8gb",
        engine="onnxruntime",
        goal=GOAL,
        ladder=LADDER,
        timeline=timeline,
        events=metrics.recent(),
    )
