"""What the platforms' plans have in common: how good a part has to be, and the step that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgekiln.arrcoc.plans.records import LAST, Part, Step

LEAST_SQNR_DB = 15.0
"""What a job asks of a part in the middle, whose outputs have no right or wrong. A round figure; what 8 bits
cost on the answer is measured in docs/arrcoc/platforms.md."""
MOST_DROP = 0.02
"""What a job lets a reader lose of its right answers."""


def part(
    name: str,
    runs_on: str,
    targets: tuple[str, ...],
    *,
    graph: str | None = None,
    tokens: int | None = None,
    pictures: Literal["uint8", "float32"] = "uint8",
) -> Part:
    """A part with its bound; ``graph`` is its name, or ``look`` for a reader at ``tokens``."""
    return Part(
        name=name,
        graph=graph or ("look" if tokens else name),
        runs_on=runs_on,
        targets=targets,
        pictures=pictures,
        tokens=tokens,
        least_sqnr_db=None if tokens else LEAST_SQNR_DB,
        most_drop=MOST_DROP if tokens else None,
    )


def readers(
    buckets: Sequence[int],
    runs_on: str,
    targets: tuple[str, ...],
    pictures: Literal["uint8", "float32"] = "uint8",
) -> tuple[Part, ...]:
    """A reader per total."""
    return tuple(part(f"look_{n}", runs_on, targets, tokens=n, pictures=pictures) for n in buckets)


def look(readers: Sequence[Part], stream: int | None = None) -> Step:
    """The last step: the reader of the asked total, what it takes, and from where."""
    takes = {name: f"allocation.{name}" for name in ("coarse", "windows", "positions", "relevance")}
    takes |= {"ids": "words.ids", "mask": "words.mask"}
    return Step(name=LAST, parts=tuple(p.name for p in readers), stream=stream, takes=takes)
