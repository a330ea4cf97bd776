"""What a deployment plan says: ``plan.json``, read again by whoever builds, runs or checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgekiln import files
from edgekiln.errors import BadInput
from edgekiln.records import Record

VERSION = 1
PLAN = "plan.json"
LAST = "look"
"""The step whose answer a plan is for."""
DOING = "opening the plan in"
AGAIN = "Write the plan again: edgekiln arrcoc plan"


class Part(Record, frozen=True, kw_only=True):
    """A model that is built for the device by itself, ``model`` by its ``job``: paths in the plan's folder.

    ``graph`` names what it computes (``graphs.GRAPHS``); a reader at one total has its ``tokens``.
    ``targets`` in order of preference. The job holds the part to ``least_sqnr_db`` of signal to quantisation
    noise, or a reader to ``most_drop`` of its right answers. Pictures are whole numbers of 0 to 255 in the
    type ``pictures``. ``macs`` are multiply-adds of one call.
    """

    name: str
    graph: str
    runs_on: str
    targets: tuple[str, ...]
    pictures: Literal["uint8", "float32"] = "uint8"
    tokens: int | None = None
    least_sqnr_db: float | None = None
    most_drop: float | None = None
    model: str = ""
    job: str = ""
    macs: int = 0
    parameters: int = 0


class Step(Record, frozen=True, kw_only=True):
    """One thing that happens for each question, in the plan's order.

    ``parts`` is empty where the application does it itself (``host``: ``host.HOST`` by the step's name); of
    several parts the one of the asked total runs. ``takes`` maps an input to its source: ``picture``,
    ``question``, or ``step.output``. Steps of different ``stream`` run at the same time as soon as those
    that they take from are done; None is the processor, in order.
    """

    name: str
    parts: tuple[str, ...] = ()
    stream: int | None = None
    takes: dict[str, str]

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The steps that have to be done before, in the order in which they are named."""
        return tuple(dict.fromkeys(s.partition(".")[0] for s in self.takes.values() if "." in s))


class Cut(Record, frozen=True, kw_only=True):
    """Where a part is cut in two for a server: ``edgekiln split MODEL --at ... --beside ...``."""

    part: str
    at: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a user types in the plan's folder."""
        options = [*(f"--at {name}" for name in self.at), *(f"--beside {name}" for name in self.beside)]
        data = f"--data {self.part}/validation --out {self.part}/split"
        return f"edgekiln split {self.part}/job.toml {' '.join(options)} {data}"


class Way(Record, frozen=True, kw_only=True):
    """A way to answer where there is a server: ``mode`` of ``runtime.hybrid``, and what it means here."""

    mode: Literal["edge", "cloud", "adaptive"]
    meaning: str


class Plan(Record, frozen=True, kw_only=True):
    """``trained_by`` and ``seed`` are the checkpoint's. ``goals`` are figures to reach, by name and unit;
    ``missing`` what the plan asks for and nobody has here, ``notes`` what to know."""

    version: int = VERSION
    platform: str
    title: str
    devices: tuple[str, ...]
    trained_by: str = ""
    seed: int = 0
    buckets: tuple[int, ...]
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    cuts: tuple[Cut, ...] = ()
    ways: tuple[Way, ...] = ()
    goals: dict[str, float] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def part(self, name: str) -> Part:
        """Raises BadInput for a part that the plan has not."""
        for one in self.parts:
            if one.name == name:
                return one
        known = ", ".join(p.name for p in self.parts)
        raise BadInput("looking in the plan for", name, "it has no such part", f"Its parts are {known}")


def read_plan(folder: Path) -> Plan:
    """``plan.json`` of a folder. Raises BadInput where it is missing, damaged or of another version, where a
    step takes from none before it, and where a part lies elsewhere."""
    path = folder / PLAN
    try:
        data = msgspec.json.decode(path.read_bytes())
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise BadInput(DOING, path, f"it has version {version}, this program reads {VERSION}", AGAIN)
        plan = msgspec.convert(data, type=Plan)
        _check(plan, folder)
        return plan
    except FileNotFoundError as error:
        raise BadInput(DOING, folder, f"there is no {PLAN}", AGAIN) from error
    except (msgspec.MsgspecError, OSError) as error:
        raise BadInput(DOING, path, str(error), AGAIN) from error


def _check(plan: Plan, folder: Path) -> None:
    for part in plan.parts:
        for path in (part.model, part.job):
            files.inside(folder, path, DOING)
    before = {"picture", "question"}
    for step in plan.steps:
        for name in step.parts:
            plan.part(name)
        sources = {source.partition(".")[0] for source in step.takes.values()}
        if unknown := sorted(sources - before):
            raise BadInput(DOING, folder, f"'{step.name}' takes from {', '.join(unknown)}", AGAIN)
        before.add(step.name)
    if LAST not in before:
        raise BadInput(DOING, folder, f"no step '{LAST}' answers", AGAIN)
