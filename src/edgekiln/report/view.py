"""From a build to what the reports show: devices with their candidates, verdicts, charts and footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekiln.records import Budget, Build, Choice, How, Loser, Proof
from edgekiln.report import figures, numbers, plots
from edgekiln.report.charts import Role
from edgekiln.report.figures import COLUMNS, Cell, Column, Constraint, common_how
from edgekiln.report.placement import worst
from edgekiln.report.plots import Candidate

STATUS = {
    "proven": ("Proven", "every constraint holds by a figure for this device, its 95 % interval included"),
    "unproven": (
        "Unproven",
        "chosen, but a constraint has no figure here, or one whose interval reaches past it",
    ),
    "none": ("No artifact", "nothing that was made fits the budget"),
}


@dataclass(frozen=True)
class Verdict:
    """A constraint's outcome: ``state`` is ``met``, ``broken`` or ``unproven``; ``detail`` is the figure."""

    constraint: Constraint
    state: str
    detail: str
    how: How | None = None


@dataclass(frozen=True)
class Device:
    """Everything that the page shows for one device. ``footnotes`` are reasons, in order of appearance."""

    key: str
    choice: Choice
    candidates: tuple[Candidate, ...]
    columns: tuple[Column, ...]
    hows: dict[str, How | None]
    footnotes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    other_unproven: tuple[str, ...]
    scatter: tuple[str, str] | None = None
    scatter_note: str = ""
    strips: tuple[str, str] | None = None
    runs: tuple[tuple[str, str], ...] = ()
    runs_differ: tuple[tuple[str, str], ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        return next((c for c in self.candidates if c.role == "chosen"), None)

    @property
    def groups(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The table's headings above its headings: what belongs together shares its mark."""
        rest = tuple(c.key for c in self.columns if c.key not in (*figures.QUALITY, *figures.LATENCY))
        return (("Quality", figures.QUALITY), ("Latency", figures.LATENCY), ("Cost", rest))

    def group_how(self, keys: Sequence[str]) -> How | None:
        """The evidence class of every known figure under a heading, where it is one and the same."""
        known = [c.cells[k] for c in self.candidates for k in keys if c.cells[k].value is not None]
        return common_how(known)

    def footnote(self, reason: str) -> int:
        return self.footnotes.index(reason) + 1


def devices(build: Build) -> tuple[Device, ...]:
    """The devices in the decision's order, then those that only proofs or failures name."""
    choices = list(build.decision.choices)
    named = {c.device for c in choices}
    for name in dict.fromkeys([p.device for p in build.proofs] + [f.device for f in build.failures]):
        if name not in named:
            basis = "the build recorded no decision for this device"
            choices.append(Choice(device=name, status="none", artifact_id=None, basis=basis))
    return tuple(_device(build, choice, f"d{i}") for i, choice in enumerate(choices, 1))


def _device(build: Build, choice: Choice, key: str) -> Device:
    found = candidates(build.proofs, choice)
    shown = columns([c.cells for c in found])
    notes = dict.fromkeys(
        cell.reason
        for c in found
        for k, cell in c.cells.items()
        if cell.value is None and k in {c.key for c in shown}
    )
    verdicts = judge(build.decision.budget, choice, found)
    scatter, note = plots.scatter(found, build.decision.budget, choice.quality, key, choice.device)
    common, differ = plots.runs(found)
    known = {v.constraint.column.key for v in verdicts}
    return Device(
        key=key,
        choice=choice,
        candidates=found,
        columns=shown,
        hows={c.key: common_how([f.cells[c.key] for f in found]) for c in shown},
        footnotes=tuple(notes),
        verdicts=verdicts,
        other_unproven=tuple(u for u in choice.unproven if u.split(":")[0].strip() not in known),
        scatter=scatter,
        scatter_note=note,
        strips=plots.strips(found, key, choice.device),
        runs=common,
        runs_differ=differ,
    )


def candidates(proofs: Sequence[Proof], choice: Choice) -> tuple[Candidate, ...]:
    """The device's artifacts: the chosen, the front, the others; each group by latency, then by name."""
    losers: dict[str, Loser] = {loser.artifact_id: loser for loser in choice.losers}
    rows = []
    for proof in proofs:
        if proof.device != choice.device:
            continue
        known = proof.artifact.id
        role: Role = (
            "chosen" if known == choice.artifact_id else "front" if known in choice.front else "beaten"
        )
        cells = {key: figures.cell(proof, key) for key in COLUMNS}
        why = choice.basis if role == "chosen" else losers[known].why if known in losers else ""
        p50 = cells["latency_p50_ms"].value
        order = (
            ("chosen", "front", "beaten").index(role),
            p50 is None,
            p50 or 0.0,
            proof.artifact.target,
            proof.artifact.recipe,
        )
        rows.append((order, proof, role, cells, why or "the build recorded no reason"))
    rows.sort(key=lambda row: row[0])
    return tuple(
        Candidate(number, proof, role, cells, why)
        for number, (_, proof, role, cells, why) in enumerate(rows, 1)
    )


def columns(cells: Sequence[dict[str, Cell]]) -> tuple[Column, ...]:
    """Quality, latency, memory and size always; energy, power and throughput where evidence names them."""
    extra = (k for k in figures.EXTRA if any(c[k].reason != figures.NOT_RECORDED for c in cells))
    keys = (*figures.MAIN, *extra)
    # A drop is called after its metric, which the evidence names.
    return tuple(next((c[k].column for c in cells), COLUMNS[k]) for k in keys)


def judge(budget: Budget, choice: Choice, found: Sequence[Candidate]) -> tuple[Verdict, ...]:
    """Each constraint against the chosen artifact's figure, or against the best figure where none was chosen.

    A constraint that the decision calls unproven stays so, whatever figure there is. Of several input sizes
    the one with the worst figure is judged, and named.
    """
    chosen = next((c for c in found if c.role == "chosen"), None)
    named = {u.split(":")[0].strip() for u in choice.unproven}
    verdicts = []
    for constraint in figures.constraints(budget):
        column = constraint.column
        if chosen is None:
            verdicts.append(_judge_none(constraint, found))
            continue
        cell, size = worst(chosen.proof, column.key, by_interval=column.key in named)
        constraint = replace(constraint, column=cell.column)
        at = f" at {size}" if size else ""
        if cell.value is None:
            verdicts.append(Verdict(constraint, "unproven", f"{cell.reason}{at}"))
            continue
        state = "unproven" if column.key in named else "met" if constraint.holds(cell.value) else "broken"
        detail = f"{cell.text} {column.unit}{at}{_expected(chosen.proof, column, size)}"
        if state == "unproven":
            many = f" (n = {cell.n:,})" if cell.n else ""
            reach = f", but its 95 % interval, {cell.interval}{many}, reaches past the limit"
            detail += reach if cell.interval else ", which is no figure of this device"
        verdicts.append(Verdict(constraint, state, detail, cell.how))
    return tuple(verdicts)


def _expected(proof: Proof, column: Column, size: str) -> str:
    """The estimate from margins that the decision goes by, beside the count that stands in the table."""
    found = proof.get(f"{column.key}_expected{size and f'@{size}'}")
    if found is None or found.value is None:
        return ""
    told = [column.write(x) for x in (found.value, *(found.interval or (found.value, found.value)))]
    unit = column.unit
    return f" counted, {told[0]} {unit} expected from margins ({told[1]} to {told[2]} {unit})"


def _judge_none(constraint: Constraint, found: Sequence[Candidate]) -> Verdict:
    column = constraint.column
    known = [c.cells[column.key] for c in found if c.cells[column.key].value is not None]
    if not known:
        why = found[0].cells[column.key].reason if found else "no artifact was made"
        return Verdict(constraint, "unproven", why)
    best = max(known, key=lambda c: column.better * (c.value or 0.0))
    state = "met" if constraint.holds(best.value or 0.0) else "broken"
    return Verdict(constraint, state, f"the best candidate has {best.text} {column.unit}", best.how)


# ---------------------------------------------------------------- the rest of the page


def headline(build: Build) -> tuple[str, str]:
    """The answer in a sentence, and its state: ``proven``, ``unproven`` or ``none``."""
    choices = build.decision.choices
    total = len(choices)
    have = sum(c.artifact_id is not None for c in choices)
    proven = sum(c.status == "proven" and c.artifact_id is not None for c in choices)
    if total == 0:
        return "No device was asked for.", "none"
    if have == 0:
        return f"Nothing fits the budget on {_all(total)}.", "none"
    if proven == total:
        known = bool(figures.constraints(build.decision.budget))
        words = " that is proven to fit the budget" if known else "; no budget was given"
        return f"{_all(total, True)} an artifact{words}.", "proven"
    parts = [f"{proven} proven"] if proven else []
    parts += [f"{have - proven} with a constraint unproven"] if have > proven else []
    parts += [f"{total - have} without an artifact"] if total > have else []
    return f"{numbers.count(total, 'device')}: {', '.join(parts)}.", "unproven" if have == total else "none"


def _all(total: int, verb: bool = False) -> str:
    if total == 1:
        return "The device has" if verb else "the device"
    return f"All {total} devices have" if verb else f"any of the {total} devices"


def op_changes(before: dict[str, int], after: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """Operators whose number changed, the largest changes first."""
    names = sorted({*before, *after})
    changes = ((n, after.get(n, 0) - before.get(n, 0)) for n in names)
    return tuple(sorted((c for c in changes if c[1]), key=lambda c: (-abs(c[1]), c[0])))


@dataclass(frozen=True)
class Trouble:
    """Failures that differ in nothing but the device."""

    devices: tuple[str, ...]
    target: str
    recipe: str
    stage: str
    reason: str
    cure: str


def troubles(build: Build, kind: str) -> tuple[Trouble, ...]:
    """The failures of one kind, those of one reason together with all their devices."""
    groups: dict[tuple[str, str, str, str, str], list[str]] = {}
    for f in build.failures:
        if f.kind == kind:
            groups.setdefault((f.target, f.recipe, f.stage, f.reason, f.cure), []).append(f.device)
    return tuple(Trouble(tuple(dict.fromkeys(d)), *group) for group, d in groups.items())


def overlap(build: Build) -> str:
    """Whether pictures that calibrated also judged: an evaluation must not see them twice."""
    if build.calibration is None:
        return ""
    seen = {s.sha256 for s in build.calibration.samples}
    lines = []
    for name, data in (("evaluation", build.evaluation), ("holdout", build.holdout)):
        if data is not None:
            twice = sum(s.sha256 in seen for s in data.samples)
            lines.append(
                f"{numbers.count(twice, 'sample')} of the {name} set" if twice else f"none of the {name} set"
            )
    return f"Used for calibration as well: {', '.join(lines)}." if lines else ""


def shape(axes: Sequence[int | str]) -> str:
    return " × ".join(str(a) for a in axes) or "scalar"
