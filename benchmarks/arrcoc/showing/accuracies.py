"""The rows that ``accuracy.py --json`` wrote: their intervals over the training seeds, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgekiln.errors import BadInput
from edgekiln.prove.statistics import wilson
from edgekiln.records import Record
from measuring.table import Table

OURS, UNIFORM, ORACLE = "ours", "uniform", "oracle"
ATTENTION = "attention after the encoder (FastV-like)"
SIMILARITY = "similarity after the encoder (DART-like)"
MEAN = "plain mean of the three (the guide's)"
SCORERS = ("propositional", "perspectival", "participatory")
ABLATIONS = (OURS, MEAN, *(f"{s} alone" for s in SCORERS), *(f"ours without {s}" for s in SCORERS))
CONTENDERS = (
    *(OURS, UNIFORM, "random", "edge", "standard deviation", "entropy", "origin's scorer"),
    *(ATTENTION, SIMILARITY, ORACLE),
)
GOAL_AT_81 = 0.75
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 0.975 with 1 to 9 degrees of freedom."""


class Row(Record, frozen=True, kw_only=True):
    """Shares of right answers of one contender, one for each training seed, over the same scenes."""

    kind: str
    contender: str
    tokens: int
    scenes: int
    seeds: tuple[str, ...]
    accuracy: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.accuracy) / len(self.accuracy)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: of the mean over training seeds by Student's t; with one seed, of the share over scenes."""
        n = len(self.accuracy)
        if n == 1:
            found = wilson(self.accuracy[0] * self.scenes, self.scenes)
            return float(found[0]), float(found[1])
        variance = math.fsum((a - self.mean) ** 2 for a in self.accuracy) / (n - 1)
        half = (T_975[n - 2] if n - 2 < len(T_975) else T_975[-1]) * math.sqrt(variance / n)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a file. Raises BadInput where it is missing, empty or holds something else."""
    doing, cure = (
        "reading the accuracies in",
        "Write it: python benchmarks/arrcoc/accuracy.py ... --json PATH",
    )
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=tuple[Row, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise BadInput(doing, path, str(error), cure) from error
    if not rows or any(not r.accuracy or len(r.accuracy) != len(r.seeds) for r in rows):
        raise BadInput(doing, path, "there is a row without an accuracy, or none at all", cure)
    return rows


def by_key(rows: Iterable[Row], kind: str) -> dict[tuple[str, int], Row]:
    """The rows of one kind of question by contender and tokens."""
    return {(r.contender, r.tokens): r for r in rows if r.kind == kind}


def kinds(rows: Iterable[Row]) -> tuple[str, ...]:
    """The kinds of question that the rows are about, in their order."""
    return tuple(dict.fromkeys(r.kind for r in rows))


def told(row: Row | None) -> str:
    """Mean and interval as a cell."""
    if row is None:
        return "—"
    low, high = row.interval
    return f"{row.mean:.3f} ({low:.3f} to {high:.3f})"


def meaning(rows: Sequence[Row]) -> str:
    """What an interval in a table of ``rows`` is an interval of."""
    row = rows[0]
    seeds = ", ".join(row.seeds)
    if len(row.seeds) == 1:
        return (
            f"Measured over {row.scenes} held-out scenes with one training seed ({seeds}); 95 % "
            "interval over scenes (Wilson). How far another training would differ is not known from one seed."
        )
    few = " Over so few seeds it is wide." if len(row.seeds) < 5 else ""
    return (
        f"Measured over {row.scenes} held-out scenes; mean of the training seeds {seeds} with its 95 % "
        f"interval (Student's t, {len(row.seeds) - 1} degrees of freedom).{few}"
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each kind of question: every contender by tokens, and the ablations."""
    found = []
    for kind in kinds(rows):
        of_kind = by_key(rows, kind)
        note = meaning(list(of_kind.values()))
        same = "All see the same scenes through the same reader, which is told the learned relevance."
        found += [
            _pivot(f"Accuracy, questions by {kind}", CONTENDERS, of_kind, f"{note} {same}"),
            _pivot(f"Ablations, questions by {kind}", ABLATIONS, of_kind, note),
        ]
    return found


def _pivot(title: str, names: Sequence[str], rows: dict[tuple[str, int], Row], note: str) -> Table:
    present = [name for name in names if any(contender == name for contender, _ in rows)]
    columns = sorted({tokens for contender, tokens in rows if contender in present})
    missing = [name for name in names if name not in present]
    if missing:
        note += f" Not in the file: {', '.join(missing)}."
    return Table(
        title=title,
        columns=("contender", *(f"{n} tokens" for n in columns)),
        rows=tuple((name, *(told(rows.get((name, n))) for n in columns)) for name in present),
        note=note,
    )


def goals(rows: Sequence[Row], kind: str = "colour") -> Table:
    """What issue 7 asks of accuracy, on questions by colour, judged by the means of the seeds."""
    of_kind = by_key(rows, kind)
    dense = of_kind.get((UNIFORM, 784))
    found = []
    for tokens, words, goal in (
        (81, f"at least {GOAL_AT_81}", GOAL_AT_81),
        (113, "at least uniform 784", None if dense is None else dense.mean),
    ):
        ours = of_kind.get((OURS, tokens))
        if ours is None or goal is None:
            found.append((f"{tokens} tokens: {words}", told(ours), "—", "not measured"))
            continue
        verdict = "met" if ours.mean >= goal else f"missed by {goal - ours.mean:.3f}"
        found.append((f"{tokens} tokens: {words}", told(ours), f"{goal:.3f}", verdict))
    note = (
        "Judged by the mean of the seeds; where the interval holds the goal, another training may decide "
        "otherwise."
    )
    return Table(
        title=f"Goals of accuracy, questions by {kind}",
        columns=("goal", "ours", "needed", "verdict"),
        rows=tuple(found),
        note=note,
    )
