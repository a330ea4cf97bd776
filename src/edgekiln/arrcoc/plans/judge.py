"""What a plan's built parts cost on the final task: the right digit, by the whole system.

A part that was quantised is judged in its place: the float system answers each question, then the same
system with that part's artifact, then with all of them. The same scenes for all, so differences are paired.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.arrcoc.plans.execute import Run, ask
from edgekiln.arrcoc.plans.records import Plan
from edgekiln.arrcoc.scenes.generate import Scene
from edgekiln.arrcoc.scenes.questions import Question
from edgekiln.bundle.unpack import opened
from edgekiln.engines import Runner
from edgekiln.errors import BadInput
from edgekiln.prove.accuracy import accuracy_drop
from edgekiln.prove.statistics import Interval, wilson
from edgekiln.records import Record
from edgekiln.runtime.once import open_runner

FLOAT = "float"
ALL = "all"


class Judged(Record, frozen=True, kw_only=True):
    """Of one system: ``right`` of ``questions``, ``agreed`` with the float system's answers, and the share of
    right answers that was lost against it (negative: won) with its 95 % interval. ``swapped`` are the parts
    that were replaced."""

    name: str
    swapped: tuple[str, ...]
    questions: int
    right: int
    agreed: int
    interval: Interval
    drop: float
    drop_interval: Interval

    @property
    def accuracy(self) -> float:
        return self.right / self.questions


def judge(
    plan: Plan,
    floats: Mapping[str, Run],
    built: Mapping[str, Run],
    scenes: Sequence[tuple[Scene, Question]],
    total: int,
) -> tuple[Judged, ...]:
    """The float system, the system with each part of ``built`` in the float one's place, and with all.

    Parts that nothing at ``total`` tokens runs are left out. The interval of a difference is Newcombe's for
    pairs (``prove.statistics``). Raises BadInput without scenes.
    """
    if not scenes:
        raise BadInput("judging", f"the plan for {plan.title}", "there are no scenes", "Give one at least")
    used = [p.name for p in plan.parts if p.name in built and p.tokens in (None, total)]
    swaps: dict[str, tuple[str, ...]] = {FLOAT: ()}
    swaps |= {name: (name,) for name in used}
    swaps |= {ALL: tuple(used)} if len(used) > 1 else {}
    truth = np.array([question.answer for _, question in scenes])
    answers = {name: _answers(plan, floats, built, parts, scenes, total) for name, parts in swaps.items()}
    return tuple(_judged(name, swaps[name], answers[name], answers[FLOAT], truth) for name in swaps)


def _answers(
    plan: Plan,
    floats: Mapping[str, Run],
    built: Mapping[str, Run],
    swapped: Sequence[str],
    scenes: Sequence[tuple[Scene, Question]],
    total: int,
) -> Any:
    runners = {**floats, **{name: built[name] for name in swapped}}
    return np.array(
        [int(ask(plan, runners, scene.picture, question.text, total).argmax()) for scene, question in scenes]
    )


def _judged(name: str, swapped: tuple[str, ...], found: Any, reference: Any, truth: Any) -> Judged:
    hits, count = int((found == truth).sum()), len(truth)
    drop = accuracy_drop((reference == truth).tolist(), (found == truth).tolist())
    return Judged(
        name=name,
        swapped=swapped,
        questions=count,
        right=hits,
        agreed=int((found == reference).sum()),
        interval=wilson(hits, count),
        drop=drop.value,
        drop_interval=drop.interval,
    )


@contextlib.contextmanager
def bundled(bundles: Mapping[str, Path], threads: int = 1) -> Iterator[dict[str, Runner]]:
    """The artifacts of bundles, by part, opened by the engine that proves them here.

    Raises BadInput for a bundle that is damaged, NotRunnableHere where nothing here runs its artifact.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Runner] = {}
        for part, path in bundles.items():
            held = stack.enter_context(opened(path))
            runner, _ = open_runner(held, threads)
            stack.callback(runner.close)
            found[part] = runner
        yield found
