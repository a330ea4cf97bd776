"""The job file of a part: what ``edgekiln build`` is told."""

from __future__ import annotations

import json

from edgekiln.arrcoc.plans.records import Part, Plan
from edgekiln.arrcoc.plans.samples import ANSWERS, LABELS

JOB, MODEL = "job.toml", "model.onnx"


def job_text(plan: Plan, part: Part, samples: str) -> str:
    """The TOML of a part's job; ``samples`` is the part in whose folder its samples lie."""
    at = "" if samples == part.name else f"../{samples}/"
    reads = part.tokens is not None
    lines = [
        f"# Part '{part.name}' of the plan for {plan.title}: {part.runs_on}.",
        "# Samples are generated scenes: the train split calibrates, the validation split judges.",
        f"name = {_text(f'arrcoc-{plan.platform}-{part.name}')}",
        f"devices = {_text(list(plan.devices))}",
        f"data = {_text(f'{at}calibration')}",
        f"holdout = {_text(f'{at}validation')}",
        *([f"eval = {_text(ANSWERS)} # the final task: the right digit"] if reads else []),
        'out = "out"',
        "",
        "[model]",
        f"source = {_text(MODEL)}",
        f"task = {_text('classification' if reads else 'tensors')}",
        *([f"labels = {_text(LABELS)}"] if reads else []),
        "",
        "[budget]",
        *([f"sqnr_db = {part.least_sqnr_db:g}"] if part.least_sqnr_db is not None else []),
        *([f"max_drop = {part.most_drop:g}"] if part.most_drop is not None else []),
        "",
        "[search]",
        f"targets = {_text(list(part.targets))}",
        "",
    ]
    return "\n".join(lines)


def _text(value: str | list[str]) -> str:
    """A TOML string or array: JSON's form of plain text is one."""
    return json.dumps(value, ensure_ascii=False)
