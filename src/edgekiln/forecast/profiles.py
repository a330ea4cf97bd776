"""What was learnt from published measurements: coefficients with their provenance, kept as data.

``profiles.json`` beside this file is made by ``scripts/prediction/fit.py`` and never edited by hand.
``runs.toml`` says which profile stands for which device and target of the catalogue, and why.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import msgspec

from edgekiln.errors import BadInput
from edgekiln.records import Record

DATA = Path(__file__).with_name("profiles.json")
RUNS = Path(__file__).with_name("runs.toml")


class Spread(Record, frozen=True, kw_only=True):
    """How far predictions were off where they could be checked: ``n`` held-out figures of ``models`` models.

    ``low`` and ``high`` are the 5 % and 95 % quantiles of published over predicted; ``coverage`` is the
    share of figures within, each judged by quantiles of the others.
    """

    held: str
    n: int
    models: int
    mape: float
    median: float
    low: float
    high: float
    coverage: float | None = None


class Group(Record, frozen=True, kw_only=True):
    """Profiles of one kind. ``shape`` is their common form, for a device that only a few anchors measure.

    ``own`` is the spread of a profile on families (or models) that it has not seen, by precision;
    ``anchored`` that of a device not seen, by the number of anchors: "0" is scaled by data sheets or not at
    all.

    ``falls_back``: kinds of layers that ``runtime precision`` left to the CPU in every published graph.
    """

    terms: tuple[str, ...]
    shape: tuple[float, ...]
    own: dict[str, Spread]
    anchored: dict[str, Spread]
    falls_back: dict[str, tuple[str, ...]]


class Profile(Record, frozen=True, kw_only=True):
    """``coefficients`` are ms per unit of the group's terms; ``published`` the figures they come from, in
    ms."""

    group: str
    chip: str
    device: str
    runtime: str
    precision: str
    mode: str
    coefficients: tuple[float, ...]
    published: dict[str, float]
    source: str
    date: str


class Known(Record, frozen=True, kw_only=True):
    """An architecture whose figures were published; amounts of all terms, in the order of ``terms.FULL``."""

    family: str
    amounts: tuple[float, ...]


class Power(Record, frozen=True, kw_only=True):
    """Mean watts of the whole board while one model ran, and the energy of an inference with idle
    included."""

    device: str
    precision: str
    model: str
    watts: float
    mode: str
    mj: float
    source: str


class Data(Record, frozen=True, kw_only=True):
    schema: Literal[1]
    provenance: dict[str, str]
    models: dict[str, Known]
    groups: dict[str, Group]
    profiles: tuple[Profile, ...]
    power: tuple[Power, ...]


class Run(Record, frozen=True, kw_only=True):
    """A device and target of the catalogue and the published runs that stand for it.

    ``how``: ``fitted`` where they are of this device's own chip; ``carried over`` where they are a
    neighbour's. ``why`` says what makes them stand for it.
    """

    device: str
    target: str
    chip: str
    runtime: str
    how: Literal["fitted", "carried over"]
    why: str
    mode: str = ""


class _Runs(Record, frozen=True, kw_only=True):
    runs: tuple[Run, ...]


@functools.cache
def data(path: Path = DATA) -> Data:
    """The profiles that ship. Raises BadInput for a file that is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Data)
    except (OSError, msgspec.DecodeError) as error:
        cure = "Install edgekiln anew, or make the file with scripts/prediction/fit.py"
        raise BadInput("reading the prediction profiles", path.name, str(error), cure) from error


@functools.cache
def runs(path: Path = RUNS) -> tuple[Run, ...]:
    """Every device and target that a published run stands for."""
    import tomllib

    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Runs).runs
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        cure = "Install edgekiln anew, or correct the file"
        raise BadInput("reading the table of runs", path.name, str(error), cure) from error


def profile(run: Run, precision: str) -> Profile | None:
    """The profile of a run in ``precision`` (as the table names it), or None."""
    for found in data().profiles:
        if (found.chip, found.runtime, found.precision, found.mode) == (
            run.chip,
            run.runtime,
            precision,
            run.mode,
        ):
            return found
    return None


def precisions(run: Run) -> tuple[str, ...]:
    """The precisions in which a run was published, the most exact first."""
    order = ("FP32", "float", "FP16", "w8a16", "INT8", "w8a8")
    have = {
        p.precision
        for p in data().profiles
        if (p.chip, p.runtime, p.mode) == (run.chip, run.runtime, run.mode)
    }
    return tuple(sorted(have, key=lambda p: order.index(p) if p in order else len(order)))
