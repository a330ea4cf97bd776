"""Runs a plan from its record alone: so the record says all that an application has to know.

Steps of different streams run one after the other here; what they compute is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.plans.host import HOST, Values
from edgekiln.arrcoc.plans.records import LAST, Part, Plan, Step
from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import BadInput

Run: TypeAlias = Callable[[Arrays], Mapping[str, NDArray[Any]]]


@contextlib.contextmanager
def exported(plan: Plan, folder: Path, threads: int = 1) -> Iterator[dict[str, Runner]]:
    """Every part of the plan in ``folder`` as it was exported, in ONNX Runtime.

    Raises NotRunnableHere for a damaged part.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Runner] = {}
        for part in plan.parts:
            artifact = float_artifact(part.model, part.name)
            runner = open_engine("onnxruntime", artifact, folder, threads)
            stack.callback(runner.close)
            found[part.name] = runner
        yield found


def ask(
    plan: Plan, runners: Mapping[str, Run], picture: NDArray[np.uint8], question: str, total: int
) -> NDArray[np.float32]:
    """Logits (10,) for a question about a picture (H, W, 3), by ``runners`` of the plan's parts.

    Raises BadInput for a question without words and for a total that is no bucket of the plan.
    """
    known = started(picture, question)
    run(plan, runners, known, total)
    found: NDArray[np.float32] = known[LAST]["logits"].reshape(-1)
    return found


def started(picture: NDArray[np.uint8], question: str) -> dict[str, Any]:
    """What is known before the first step."""
    return {"picture": picture, "question": question}


def run(
    plan: Plan, runners: Mapping[str, Run], known: dict[str, Any], total: int, until: str | None = None
) -> None:
    """Does each step that is not in ``known`` yet and adds what it gives, up to but without ``until``."""
    for step in plan.steps:
        if step.name == until:
            return
        if step.name not in known:
            known[step.name] = done(plan, step, runners, taken(step, known), total)


def taken(step: Step, known: Mapping[str, Any]) -> Values:
    """The inputs of a step. What a source does not give is left out: without a window there is none."""
    found = {}
    for name, source in step.takes.items():
        maker, _, output = source.partition(".")
        if not output:
            found[name] = known[maker]
        elif output in known[maker]:
            found[name] = known[maker][output]
    return found


def done(
    plan: Plan, step: Step, runners: Mapping[str, Run], given: Mapping[str, Any], total: int
) -> Mapping[str, Any]:
    """What one step gives."""
    if not step.parts:
        if step.name not in HOST:
            why = "it has no part, and no application does it"
            raise BadInput("running the step", step.name, why, f"Known are {', '.join(HOST)}")
        return HOST[step.name](given, total)
    part = chosen(plan, step, total)
    return runners[part.name](handed(part, given))


def handed(part: Part, given: Mapping[str, Any]) -> Values:
    """``given`` with pictures in the part's type."""
    wanted = np.dtype(part.pictures)
    return {name: v.astype(wanted) if v.dtype == np.uint8 else v for name, v in given.items()}


def chosen(plan: Plan, step: Step, total: int) -> Part:
    """The part of a step that runs at ``total`` tokens. Raises BadInput where none is made for it."""
    parts = [plan.part(name) for name in step.parts]
    for part in parts:
        if part.tokens in (None, total):
            return part
    known = ", ".join(str(p.tokens) for p in parts)
    raise BadInput("running the plan at", f"{total} tokens", "no part is made for it", f"Give one of {known}")
