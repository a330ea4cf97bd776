"""Where operators run and which input sizes an artifact takes, as rows for both reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekiln.records import Artifact, How, Proof
from edgekiln.report import figures, numbers
from edgekiln.report.figures import COLUMNS, Cell
from edgekiln.report.plots import Candidate


@dataclass(frozen=True)
class Placed:
    """One provider's word on one artifact, or on several that it treats alike. ``share`` is None where it
    could not be asked, and ``detail`` then says why."""

    names: tuple[str, ...]
    provider: str
    how: How
    taken: str
    share: float | None
    partitions: str
    fallback: str
    detail: str


def placed(proof: Proof) -> tuple[Placed, ...]:
    """A row per provider of one artifact."""
    name = f"{proof.artifact.target} {proof.artifact.recipe}"
    rows = []
    for one in proof.artifact.placement:
        known = one.taken is not None and one.operators is not None
        share = (one.taken or 0) / one.operators if known and one.operators else None
        left = sorted(one.fallback.items(), key=lambda item: (-item[1], item[0]))
        rows.append(
            Placed(
                names=(name,),
                provider=one.provider,
                how=one.how,
                taken=f"{one.taken:,} of {one.operators:,}" if known else numbers.MISSING,
                share=share,
                partitions=numbers.MISSING if one.partitions is None else f"{one.partitions:,}",
                fallback=", ".join(f"{count:,} {op}" for op, count in left) or ("none" if known else ""),
                detail=one.detail,
            )
        )
    return tuple(rows)


def grouped(candidates: Sequence[Candidate]) -> tuple[Placed, ...]:
    """The rows of a device's artifacts; those that differ in the name alone are one row."""
    groups: dict[tuple[object, ...], list[str]] = {}
    first: dict[tuple[object, ...], Placed] = {}
    for candidate in candidates:
        for row in placed(candidate.proof):
            key = (row.provider, row.how, row.taken, row.partitions, row.fallback, row.detail)
            groups.setdefault(key, []).extend(row.names)
            first.setdefault(key, row)
    return tuple(
        Placed(tuple(names), p.provider, p.how, p.taken, p.share, p.partitions, p.fallback, p.detail)
        for key, names in groups.items()
        for p in (first[key],)
    )


# ---------------------------------------------------------------- input sizes


@dataclass(frozen=True)
class Sized:
    """An artifact at every input size; ``cells`` are its quality figures, a tuple for each size."""

    name: str
    kind: str
    cells: tuple[tuple[Cell, ...], ...]


def sizes_of(artifact: Artifact) -> tuple[str, ...]:
    """``320x416``: height, then width, the base first; empty for an artifact of one size."""
    return tuple(f"{r.height}x{r.width}" for r in artifact.resolutions)


def kind_of(artifact: Artifact) -> str:
    return "one flexible file" if artifact.flexible else "a file per size"


@dataclass(frozen=True)
class Column:
    """One size as a column: ``how`` is the evidence class that all its figures share, else None."""

    size: str
    how: How | None


def sized(candidates: Sequence[Candidate]) -> tuple[tuple[Column, ...], tuple[Sized, ...]]:
    """The sizes, and each artifact of several sizes with its quality at every one of them."""
    several = [c for c in candidates if c.proof.artifact.resolutions]
    if not several:
        return (), ()
    names = sizes_of(several[0].proof.artifact)
    shown = [k for k in figures.QUALITY if any(c.cells[k].value is not None for c in several)]
    rows = tuple(
        Sized(
            name=c.name,
            kind=kind_of(c.proof.artifact),
            cells=tuple(
                tuple(at_size(c.proof, key, size if number else "") for key in shown)
                for number, size in enumerate(names)
            ),
        )
        for c in several
    )
    hows = [figures.common_how([c for row in rows for c in row.cells[i]]) for i in range(len(names))]
    return tuple(Column(size, how) for size, how in zip(names, hows, strict=True)), rows


def at_size(proof: Proof, key: str, size: str) -> Cell:
    """The figure ``key`` at ``size``; the base's where ``size`` is empty."""
    names = figures.EVIDENCE_NAMES.get(key, (key,))
    found = next((e for n in names if (e := proof.get(f"{n}@{size}" if size else n)) is not None), None)
    if found is None:
        return Cell(COLUMNS[key], numbers.MISSING, reason=figures.NOT_RECORDED)
    return figures.from_evidence(COLUMNS[key], found)


def worst(proof: Proof, key: str, by_interval: bool = False) -> tuple[Cell, str]:
    """The figure that decides of all sizes and its size ("" for the base): a missing one, else the worst.

    ``by_interval`` compares the ends of the 95 % intervals that lie nearer the limit: what proof asks.
    """
    sizes = ("", *sizes_of(proof.artifact)[1:]) if key in figures.QUALITY else ("",)
    cells = [(figures.cell(proof, key) if not s else at_size(proof, key, s), s) for s in sizes]
    better = COLUMNS[key].better

    def worth(item: tuple[Cell, str]) -> float:
        cell = item[0]
        if cell.value is None:
            return float("-inf")
        ends = cell.bounds if by_interval and cell.bounds else (cell.value,)
        return min(better * v for v in ends)

    return min(cells, key=worth)
