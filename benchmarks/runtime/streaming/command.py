"""Eight streams through one engine, against the best that the engine does on inputs that lie ready.

The baseline is the engine alone: for batch sizes 1, 2, 4 and 8 the frames a second on inputs that were
prepared before; the best of the four counts. Each round measures the baseline, then a scene's streams,
then the baseline again, and the round's ratio is the streams' rate over the mean of the two. Both run in one
process on the same cores with the same engine, threads and artifacts.

- ready: frames and inputs lie in memory; the engine has all cores. What is measured is the queues, the
  turns, the threads and the hand-over, and nothing else.
- equal: eight videos (640x480 MPEG-4, 30 frames a second) are decoded, prepared and answered. The engine has
  all cores but one in the baseline and in the streams alike, so decoding and preparing have the one that the
  baseline leaves idle.
- one fast, one stalls: the same, where the first stream brings four times the frames, or is silent for the
  middle third.
- equal, all cores: as equal, with an engine on all cores, which decoding and preparing then take from: what
  it costs where no core is free. No goal applies; what they take is printed beside it.

What the streams add to a frame is shown in CPU time as well, which a busy machine disturbs less: the CPU time
of the process per answered frame, less what the engine, decoding and preparing take by themselves.

Goals: at least 95 % of the baseline (ready, equal); frames answered per stream within 5 % of each other,
as (most - fewest) / mean over all rounds; the stalled stream is left out of its scene's figure.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.environment import fitness
from edgekiln.records import Preprocess, Record
from edgekiln.runtime.streams.schedule import choose_calls
from measuring import process
from measuring.process import say
from measuring.table import Table, arguments, publish
from runtime.streaming import engine as engines
from runtime.streaming.scenes import Window, answering, costs, sources, window

ENGINES = ("onnxruntime", "openvino")
STREAMS = 8
GOAL = 0.95
FAIR = 0.05
SCENES = ("ready", "equal", "one fast", "one stalls", "equal, all cores")
WITH_GOAL = {"ready", "equal"}
VIDEO = process.ROOT / "examples" / "efficientnet_lite0" / "video.py"


class Round(Record, frozen=True, kw_only=True):
    """One scene between two baselines."""

    before: engines.Alone
    streams: Window
    after: engines.Alone

    @property
    def alone(self) -> float:
        """Frames a second of the engine alone, at its best batch size."""
        return (max(self.before.rates.values()) + max(self.after.rates.values())) / 2

    @property
    def ratio(self) -> float:
        return self.streams.rate / self.alone

    def added_ms(self, decode_ms: float, prepare_ms: float) -> float:
        """CPU time per answered frame that neither the engine nor decoding nor preparing explains."""
        seen = self.streams
        decoded = sum(seen.came) / max(1, sum(seen.answered))
        engine_ms = (self.before.cpu_ms + self.after.cpu_ms) / 2
        return seen.cpu_ms - engine_ms - decode_ms * decoded - prepare_ms


class Found(Record, frozen=True, kw_only=True):
    """All that was measured of one engine. ``calls`` is frames a second by calls at once, at batch 1."""

    engine: str
    threads: dict[str, int]
    rounds: dict[str, tuple[Round, ...]]
    calls: dict[int, float]


def unfairness(rounds: Sequence[Round], leave_out: int | None = None) -> float:
    """(most - fewest) / mean of the frames answered per stream, over all rounds."""
    total = np.sum([r.streams.answered for r in rounds], axis=0)
    kept = np.delete(total, leave_out) if leave_out is not None else total
    return float((kept.max() - kept.min()) / kept.mean()) if kept.sum() else float("inf")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def measure(
    engine: str,
    graph: Path,
    name: str,
    inputs: list[NDArray[Any]],
    spec: Preprocess,
    video: Path,
    rounds: int,
    seconds: float,
    folder: Path,
) -> Found:
    """Every scene of one engine, in turns, ``rounds`` times."""
    artifacts = engines.write_sizes(graph, engine, folder)
    most, fewer = cores(), max(1, cores() - 1)
    threads = {scene: most if scene in {"ready", "equal, all cores"} else fewer for scene in SCENES}
    opened = {count: engines.open_sizes(engine, artifacts, count) for count in {most, fewer}}
    ready = np.concatenate(inputs)
    found: dict[str, list[Round]] = {scene: [] for scene in SCENES}
    try:
        for runner in opened.values():
            engines.check(runner, name, inputs)
        answers = {
            scene: answering(opened[threads[scene]], name, None if scene == "ready" else spec, ready)
            for scene in SCENES
        }
        for number in range(rounds):
            for scene in SCENES:
                runner = opened[threads[scene]]
                before = engines.alone(runner, name, inputs, seconds / 2)
                made = sources(scene.split(",")[0], video, STREAMS, seconds)
                seen = window(made, *answers[scene], seconds)
                after = engines.alone(runner, name, inputs, seconds / 2)
                one = Round(before=before, streams=seen, after=after)
                found[scene].append(one)
                say(f"{engine} {number + 1}/{rounds} {scene}: {seen.rate:.1f} frames/s, {one.ratio:.1%}")
        calls = engines.concurrency(engine, artifacts, most, name, inputs, seconds * rounds)
    finally:
        for runner in opened.values():
            runner.close()
    kept = {scene: tuple(rounds_of) for scene, rounds_of in found.items()}
    return Found(engine=engine, threads=threads, rounds=kept, calls=calls)


# ---------------------------------------------------------------- tables


def _interval(values: Sequence[float]) -> str:
    """Median, with the lowest and highest round."""
    return f"{np.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def throughput_row(found: Found, scene: str, cost: dict[str, float]) -> tuple[str, ...]:
    """One scene of one engine: rates, their ratio, and what became of the frames."""
    rounds = found.rounds[scene]
    best = [batch for r in rounds for batch in (r.before.best, r.after.best)]
    base = np.median([r.alone for r in rounds])
    ratios = [r.ratio for r in rounds]
    median = float(np.median(ratios))
    goal = ("met" if median >= GOAL else f"missed by {GOAL - median:.1%}") if scene in WITH_GOAL else "none"
    streams = [r.streams for r in rounds]
    plain = {"decode_ms": 0.0, "prepare_ms": 0.0} if scene == "ready" else cost
    added = float(np.median([r.added_ms(**plain) for r in rounds]))
    engine_ms = float(np.median([(r.before.cpu_ms + r.after.cpu_ms) / 2 for r in rounds]))
    came, dropped = (sum(sum(getattr(s, what)) for s in streams) for what in ("came", "dropped"))
    lost = sum(s.failed for s in streams)
    return (
        found.engine,
        scene,
        f"{found.threads[scene]}",
        f"{base:.1f} (batch {max(set(best), key=best.count)})",
        f"{np.median([s.rate for s in streams]):.1f} (batch {np.mean([s.mean_batch for s in streams]):.1f})",
        _interval(ratios),
        goal,
        f"{engine_ms:.2f} / {np.median([s.cpu_ms for s in streams]):.2f} / {added:+.2f} ms",
        f"{np.median([s.p50_ms for s in streams]):.0f} / {np.median([s.p95_ms for s in streams]):.0f} ms",
        f"{came} / {dropped} / {lost}",
    )


def fairness_row(found: Found, scene: str) -> tuple[str, ...]:
    """Frames answered per stream, over all rounds."""
    rounds = found.rounds[scene]
    apart = unfairness(rounds, 0 if scene == "one stalls" else None)
    total = np.sum([r.streams.answered for r in rounds], axis=0)
    came = np.sum([r.streams.came for r in rounds], axis=0)
    return (
        found.engine,
        scene,
        ", ".join(map(str, came)),
        ", ".join(map(str, total)),
        f"{apart:.1%}",
        "met" if apart <= FAIR else f"missed by {apart - FAIR:.1%}",
    )


def tables(all_found: Sequence[Found], cost: dict[str, float], rounds: int, seconds: float) -> list[Table]:
    """What is printed."""
    pairs = [(found, scene) for found in all_found for scene in SCENES]
    taken = f"decoding {cost['decode_ms']:.2f} ms, preparing {cost['prepare_ms']:.2f} ms"
    return [
        Table(
            title=f"{STREAMS} streams against the engine's best batch rate",
            columns=(
                *("engine", "scene", "engine threads", "engine alone, frames/s", "streams, frames/s"),
                *("ratio, median of rounds (range)", "goal 95 %"),
                *("CPU a frame: engine alone / streams / added", "latency p50 / p95"),
                "frames came / dropped / failed",
            ),
            rows=tuple(throughput_row(found, scene, cost) for found, scene in pairs),
            note=f"Measured: {rounds} rounds, {seconds:g} s of streams in each, between two baselines of "
            f"{seconds / 2:g} s. CPU time of a frame, on one thread, alone: {taken}; the baseline has "
            f"neither. In 'equal, all cores' they take from the engine, and {STREAMS * 30} frames a second "
            "are decoded whether they are answered or not. Latency is from the capture to the answer.",
        ),
        Table(
            title="Fairness: frames per stream over all rounds",
            columns=("engine", "scene", "came", "answered", "apart", "goal 5 %"),
            rows=tuple(fairness_row(found, scene) for found, scene in pairs),
            note="Apart is (most - fewest) / mean; in 'one stalls' the first stream, which was silent for a "
            "third of the time, is left out of it.",
        ),
        Table(
            title=f"Calls at once, {cores()} threads shared out among them, batch 1",
            columns=("engine", "1 call, frames/s", "2 calls, frames/s", "chosen"),
            rows=tuple(
                (f.engine, f"{f.calls[1]:.1f}", f"{f.calls[2]:.1f}", str(choose_calls(f.calls)))
                for f in all_found
            ),
            note="Measured in turns; two are chosen where they answer at least 5 % more.",
        ),
    ]


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of streams in a round (default 6)")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: both")
    given = parser.parse_args()
    unfit = fitness()
    if given.quick:
        given.rounds, given.seconds = 1, 0.6
    given.out.mkdir(parents=True, exist_ok=True)
    from edgekiln.model.preprocess import default_for
    from measuring.scene import scene

    made = scene("tiny" if given.quick else "efficientnet-lite0", given.out / "cache", cores())
    spec = made.intake.model.preprocess or default_for(made.intake.model.signature.inputs[0])[0]
    name = made.intake.model.signature.inputs[0].name
    inputs = [sample[name] for sample, _ in zip(made.holdout(), range(max(engines.SIZES)), strict=False)]
    with tempfile.TemporaryDirectory(dir=given.out) as scratch:
        video = Path(scratch) / "video.mp4"
        done = process.run(
            [sys.executable, str(VIDEO), "--out", str(video), "--seconds", "2" if given.quick else "12"],
            limit_seconds=120,
        )
        if done.exit_code:
            sys.exit(f"no video was made: {done.stderr}")
        cost = costs(video, spec, 50 if given.quick else 500)
        found = []
        for engine in given.engine or ENGINES:
            folder = Path(scratch) / engine
            folder.mkdir()
            found.append(
                measure(
                    engine, made.shop.graph, name, inputs, spec, video, given.rounds, given.seconds, folder
                )
            )
    publish(
        "streams",
        tables(found, cost, given.rounds, given.seconds),
        {"costs": cost, "engines": msgspec.to_builtins(found, str_keys=True)},
        quick=given.quick,
        out=given.out,
        unfit=unfit,
    )


if __name__ == "__main__":
    main()
