"""Samples of a plan's parts: what the parts before them give for generated scenes.

Calibration is made of scenes of the train split, validation of the validation split, with their answers. The
test split is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln import files
from edgekiln.arrcoc.plans.execute import Run, done, handed, run, started, taken
from edgekiln.arrcoc.plans.records import LAST, Part, Plan, Step
from edgekiln.arrcoc.scenes.generate import scenes

SPLITS = {"calibration": "train", "validation": "validation"}
LABELS = "labels.txt"
ANSWERS = "validation.csv"


def write_samples(
    plan: Plan, runners: Mapping[str, Run], folder: Path, purpose: str, count: int, seed: int
) -> tuple[int, ...]:
    """Writes ``<owner>/<purpose>/*.npz`` of ``count`` scenes for every part; returns the right answers.

    ``purpose`` is ``calibration`` or ``validation``. Parts that take the same share the folder of the first
    (``owner``). Raises MissingExtra where the photographs' packages are absent.
    """
    answers = []
    for number, (made, question) in enumerate(scenes(SPLITS[purpose], count, seed)):
        known = started(made.picture, question.text)
        run(plan, runners, known, plan.buckets[0], until="allocation")
        for part, step in with_parts(plan):
            if owner(plan, part.name) == part.name:
                given = _inputs(plan, runners, step, part, known)
                _save(folder / part.name / purpose / f"{number:04d}.npz", given)
        answers.append(question.answer)
    return tuple(answers)


def write_answers(plan: Plan, folder: Path, answers: Sequence[int]) -> None:
    """Writes each reader's ``validation.csv`` and ``labels.txt``: the final task."""
    rows = [f"validation/{number:04d}.npz,{answer}" for number, answer in enumerate(answers)]
    for part in plan.parts:
        if part.tokens is not None:
            files.write_bytes(folder / part.name / ANSWERS, "\n".join(["path,label", *rows, ""]).encode())
            files.write_bytes(folder / part.name / LABELS, "\n".join(map(str, range(10))).encode() + b"\n")


def with_parts(plan: Plan) -> Iterator[tuple[Part, Step]]:
    """Every part with its step, in the plan's order."""
    for step in plan.steps:
        for name in step.parts:
            yield plan.part(name), step


def owner(plan: Plan, name: str) -> str:
    """The part in whose folder the samples of part ``name`` lie: the first that takes the same."""
    takes = {part.name: (step.takes, part.tokens, part.pictures) for part, step in with_parts(plan)}
    return next(other for other, what in takes.items() if what == takes[name])


def _inputs(
    plan: Plan, runners: Mapping[str, Run], step: Step, part: Part, known: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``part`` takes; a reader's by the allocation of its own total."""
    if step.name != LAST:
        return handed(part, taken(step, known))
    assert part.tokens is not None
    allocation = next(s for s in plan.steps if s.name == "allocation")
    spent = done(plan, allocation, runners, taken(allocation, known), part.tokens)
    return handed(part, taken(step, {**known, "allocation": spent}))


def _save(path: Path, given: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.disk_errors("writing", path):
        np.savez_compressed(path, allow_pickle=False, **given)
