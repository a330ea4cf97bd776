"""``edgekiln run BUNDLE --input SOURCE``: a session with its view, its files and its exit code."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgekiln.cli import offloading
from edgekiln.errors import BadInput
from edgekiln.runtime.loop import Look, Order, Seen, Shown, play
from edgekiln.runtime.metrics import Snapshot
from edgekiln.runtime.streams.pump import Result
from edgekiln.runtime.streams.sources import MAX_FPS, Pace
from edgekiln.runtime.summary import Played
from edgekiln.runtime.vocabulary import Answer, Goal

DEADLINE_MS = 100.0
STREAMING = (
    *("latency_ms", "percentile", "power_watts", "ceiling_c", "mode", "least_quality", "most_every"),
    *("most_batch", "prefer", "fps", "fast", "loop", "duration", "isolate", "calls", "idle_watts", "out"),
    *("log", "metrics_port", "server", *offloading.WITH_SERVER),
)
GOALS = (
    "percentile",
    "power_watts",
    "ceiling_c",
    "least_quality",
    "most_every",
    "most_batch",
    "prefer",
    "mode",
)
"""Options that are the goal's own; one that was left out has the goal's default."""


def only_with_input(given: argparse.Namespace) -> None:
    """Raise BadInput for an option of streams, or for no picture at all."""
    for name in STREAMING:
        if getattr(given, name):
            option = f"--{name.replace('_', '-')}"
            cure = "Give a source: --input video.mp4, camera:0 or a folder"
            raise BadInput("running", given.bundle, f"{option} belongs to --input", cure)
    if not given.images:
        why = "neither a picture nor --input was given"
        raise BadInput("running", given.bundle, why, "Give pictures, or --input video.mp4")


def run(given: argparse.Namespace) -> int:
    """Run streams, show them, and write what was asked for; 130 where it was cut short, 2 where all sources
    failed."""
    from edgekiln.cli import show, show_played

    order = order_of(given)
    out = None if given.out is None else Path(given.out)
    with contextlib.ExitStack() as stack:
        answers = None
        if out is not None:
            _prepare(out)
            answers = stack.enter_context(open(out / "answers.jsonl", "w", encoding="utf-8"))
        about: list[Shown] = []
        form = stack.enter_context(offloading.leaves(given))
        found = play(
            order,
            functools.partial(_view, about=about, as_json=given.json),
            log=None if given.log is None else Path(given.log),
            answered=_writer(answers, about),
            offload=offloading.offload(given, order.goal, form),
            sendable=form.made,
            look=None if given.metrics_port is None else _serving(given.metrics_port, about),
        )
    # What happened before Ctrl-C is the answer: nothing here asks whether the key was pressed.
    if not given.json:
        show_played.summary(found, show.console())
    for file in () if out is None else show_played.written(found, out):
        print(f"wrote {show.short(file)}", file=sys.stderr)
    return show_played.EXIT_CODES[found.ended]


def order_of(given: argparse.Namespace) -> Order:
    """What the options ask for. Raises BadInput for figures that nothing can mean."""
    from edgekiln.prove.soak import parse_duration

    if given.images:
        why = f"'{given.images[0]}' was given beside --input"
        raise BadInput("running", given.bundle, why, "Give pictures, or streams with --input")
    for name in ("latency_ms", "power_watts", "fps", "idle_watts"):
        value = getattr(given, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            option = f"--{name.replace('_', '-')}"
            raise BadInput("reading", option, f"{value} is not above 0", "Give a positive number")
    for name in ("least_quality", "server_quality"):
        value = getattr(given, name)
        if value is not None and not 0 <= value <= 1:
            option = f"--{name.replace('_', '-')}"
            raise BadInput("reading", option, f"{value} is no share from 0 to 1", "Give a share, such as 0.9")
    if given.isolate == "always" and given.calls is not None and given.calls > 1:
        why = "an engine in a process of its own answers one call at a time"
        raise BadInput("reading", "--calls", why, "Leave out --calls, or --isolate always")
    goal = {name: getattr(given, name) for name in GOALS if getattr(given, name) is not None}
    if given.server is None and goal.get("mode") == "cloud":
        raise BadInput("reading", "--mode cloud", "no server was given", "Give --server URL")
    offloading.check_options(given)
    pace: Pace = "fast" if given.fast else "real" if given.fps is None else min(MAX_FPS, given.fps)
    return Order(
        bundle=given.bundle,
        inputs=tuple(given.input),
        goal=Goal(deadline_ms=given.latency_ms or DEADLINE_MS, **goal),
        threads=given.threads,
        pace=pace,
        repeat=given.loop,
        seconds=None if given.duration is None else parse_duration(given.duration, "--duration"),
        isolate=given.isolate or "after-hang",
        idle_watts=given.idle_watts,
        calls=given.calls,
    )


@contextlib.contextmanager
def _view(shown: Shown, about: list[Shown], as_json: bool) -> Iterator[Seen]:
    from edgekiln.cli import show_run

    about.append(shown)
    title = show_run.About(
        bundle=shown.bundle,
        device=shown.device,
        engine=shown.engine,
        goal=shown.goal,
        rungs=tuple(r.id for r in shown.ladder),
        note="; ".join(shown.notes),
    )
    with show_run.view(title, json=as_json) as seen:
        yield seen


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cure = "Give another folder with --out"
        raise BadInput("writing into", out, error.strerror or str(error), cure) from error


def _writer(out: IO[str] | None, about: list[Shown]) -> Callable[[Result], None]:
    """A line for each frame: who asked, what the answer was, and how long it took. A full disk ends the file
    and not the session."""
    broken = False

    def write(result: Result) -> None:
        nonlocal broken
        if out is None or broken:
            return
        try:
            out.write(json.dumps(_line(result, about[0]), ensure_ascii=False) + "\n")
        except OSError as error:
            broken = True
            print(f"answers.jsonl ends here: {error.strerror}", file=sys.stderr)

    return write


def _line(result: Result, shown: Shown) -> dict[str, Any]:
    line: dict[str, Any] = {"source": result.source, "frame": result.index}
    answer = result.answer
    if not isinstance(answer, Answer):
        return {**line, "missed": getattr(answer, "why", "") or result.error}
    line |= {"rung": answer.rung, "place": answer.place, "latency_ms": round(answer.latency_ms, 3)}
    line["late"] = answer.late
    if shown.task == "classification":
        from edgekiln.runtime.once import probabilities

        shares = probabilities(next(iter(answer.outputs.values())))
        best = int(np.argmax(shares))
        line |= {"class": best, "share": round(float(shares[best]), 4)}
        if best < len(shown.labels):
            line["label"] = shown.labels[best]
    return line


def _serving(port: int, about: list[Shown]) -> Look:
    from edgekiln.runtime.prometheus import serve

    def look(snapshot: Callable[[], Snapshot]) -> contextlib.AbstractContextManager[object]:
        shown = about[0]
        return serve(snapshot, port, about={"bundle": shown.bundle, "device": shown.device})

    return look


__all__ = ["Played", "only_with_input", "order_of", "run"]
