"""Deployment plans: a trained compact system as parts that ``edgekiln build`` makes for one platform.

A platform is one file with a function ``draft`` and one row in ``PLATFORMS``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekiln import files
from edgekiln.arrcoc.plans import android, iphone, jetson
from edgekiln.arrcoc.plans.records import PLAN, Part, Plan, read_plan
from edgekiln.errors import BadInput, MissingExtra, did_you_mean
from edgekiln.progress import Progress, Silent

if TYPE_CHECKING:
    from edgekiln.arrcoc.plans.graphs import Trained

PLATFORMS: dict[str, Callable[[tuple[int, ...]], Plan]] = {
    "jetson": jetson.draft,
    "iphone": iphone.draft,
    "android": android.draft,
}
BUCKETS = (65, 81, 113)
CALIBRATION, VALIDATION = 64, 64
DOING = "writing a plan for"


def drafted(platform: str, buckets: Sequence[int] = BUCKETS, devices: Sequence[str] = ()) -> Plan:
    """The plan of a platform before anything is written. Raises BadInput for an unknown platform or device,
    and for totals that no reader is made for."""
    from edgekiln.devices import load

    if platform not in PLATFORMS:
        raise BadInput(DOING, platform, "there is no such platform", did_you_mean(platform, PLATFORMS))
    wrong = [n for n in buckets if n < 49 or n > 49 + 49 * 16 or (n - 49) % 16]
    if wrong or not buckets:
        why = f"a reader takes 49 tokens and 16 for each window, not {', '.join(map(str, wrong)) or 'none'}"
        raise BadInput(DOING, platform, why, "Give totals such as 65, 81 and 113")
    plan = PLATFORMS[platform](tuple(sorted(set(buckets))))
    if devices:
        plan = msgspec.structs.replace(plan, devices=tuple(dict.fromkeys(devices)))
    known = [load(name) for name in plan.devices]
    for device in known:
        left = [p.name for p in plan.parts if not set(p.targets) & set(device.targets)]
        if left:
            wanted = ", ".join(plan.parts[0].targets)
            why = f"it takes {', '.join(device.targets)}, and the plan is for {wanted}"
            raise BadInput(DOING, device.name, why, f"Give a device of the platform {platform}")
    return plan


def write_plan(
    checkpoint: Path | None,
    into: Path,
    platform: str,
    *,
    devices: Sequence[str] = (),
    buckets: Sequence[int] = BUCKETS,
    calibration: int = CALIBRATION,
    validation: int = VALIDATION,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Writes a plan for ``platform`` into the new folder ``into``: ``plan.json``, and for each part a folder
    with ``model.onnx``, ``job.toml`` and samples of generated scenes. ``checkpoint`` None is the one that
    comes with this program.

    ``calibration`` and ``validation`` are scenes of the train and the validation split; ``seed`` is theirs.
    Raises BadInput for what can't be used and for a folder that holds something; MissingExtra without torch
    or the photographs' packages.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(DOING, platform, "torch")
    from edgekiln.arrcoc.checkpoint import TRAINED, load
    from edgekiln.arrcoc.plans.execute import exported
    from edgekiln.arrcoc.plans.graphs import Trained
    from edgekiln.arrcoc.plans.samples import write_answers, write_samples

    say = progress or Silent()
    if into.exists() and not (into.is_dir() and not any(into.iterdir())):
        raise BadInput(DOING, into, "something is there already", "Give another folder")
    if calibration < 2 or validation < 2:
        why = f"{calibration} and {validation} scenes are too few"
        raise BadInput(DOING, platform, why, "Give 2 of each at least; 64 are better")
    plan = drafted(platform, buckets, devices)
    scorer, reader, about = load(checkpoint or TRAINED)
    plan = msgspec.structs.replace(plan, trained_by=about.command, seed=about.seed)
    say.expect(3)
    with files.folder_aside(into) as folder:
        with say.step("export the parts"):
            plan = _written(plan, Trained(scorer, reader), folder)
        with exported(plan, folder) as runners:
            with say.step(f"make {calibration} scenes for calibration"):
                write_samples(plan, runners, folder, "calibration", calibration, seed)
            with say.step(f"make {validation} scenes for validation"):
                answers = write_samples(plan, runners, folder, "validation", validation, seed)
        write_answers(plan, folder, answers)
        files.write_json(folder / PLAN, plan)
    return plan


def _written(plan: Plan, trained: Trained, folder: Path) -> Plan:
    """The plan with its parts' models and jobs written, and what each costs."""
    from edgekiln.arrcoc.plans.graphs import GRAPHS
    from edgekiln.arrcoc.plans.jobs import JOB, MODEL, job_text
    from edgekiln.arrcoc.plans.samples import owner
    from edgekiln.model.cost import cost

    parts: list[Part] = []
    for part in plan.parts:
        (folder / part.name).mkdir()
        path = folder / part.name / MODEL
        GRAPHS[part.graph](trained, part, path)
        text = job_text(plan, part, owner(plan, part.name))
        files.write_bytes(folder / part.name / JOB, text.encode())
        counted = cost(path)
        parts.append(
            msgspec.structs.replace(
                part,
                model=f"{part.name}/{MODEL}",
                job=f"{part.name}/{JOB}",
                macs=counted.macs,
                parameters=counted.parameters,
            )
        )
    return msgspec.structs.replace(plan, parts=tuple(parts))


__all__ = ["BUCKETS", "CALIBRATION", "PLATFORMS", "VALIDATION", "Plan", "drafted", "read_plan", "write_plan"]
