"""From a build to what the page shows: devices with their candidates, verdicts, charts and footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekiln.records import Budget, Build, Choice, Evidence, How, Loser, Proof
from edgekiln.report import charts, figures, numbers
from edgekiln.report.charts import Axis, Point, Role, Row
from edgekiln.report.figures import COLUMNS, Cell, Column, Constraint

STATUS = {
    "proven": ("Proven", "every constraint was checked against a figure for this device"),
    "unproven": ("Unproven", "chosen, but a constraint has no figure for this device"),
    "none": ("No artifact", "nothing that was made fits the budget"),
}


@dataclass(frozen=True)
class Candidate:
    """One artifact on one device. ``footnotes`` numbers the reasons of its missing figures."""

    number: int
    proof: Proof
    role: Role
    cells: dict[str, Cell]
    verdict: str

    @property
    def name(self) -> str:
        return f"{self.proof.artifact.target} {self.proof.artifact.recipe}"


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
        return _common_how(known)

    def footnote(self, reason: str) -> int:
        return self.footnotes.index(reason) + 1


@dataclass(frozen=True)
class Section:
    """What the template asks: only sections that hold something are linked at the top."""

    key: str
    title: str
    shown: bool = field(default=True)


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
        if cell.value is None and COLUMNS[k] in shown
    )
    verdicts = judge(build.decision.budget, choice, found)
    scatter, note = _scatter(found, build.decision.budget, key, choice.device)
    common, differ = _runs(found)
    known = {v.constraint.column.key for v in verdicts}
    return Device(
        key=key,
        choice=choice,
        candidates=found,
        columns=shown,
        hows={c.key: _common_how([f.cells[c.key] for f in found]) for c in shown},
        footnotes=tuple(notes),
        verdicts=verdicts,
        other_unproven=tuple(u for u in choice.unproven if u.split(":")[0].strip() not in known),
        scatter=scatter,
        scatter_note=note,
        strips=_strips(found, key, choice.device),
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
    """Quality, latency, memory and size always; energy, power and throughput where any artifact has them."""
    extra = [
        k
        for k in figures.EXTRA
        if any(c[k].value is not None or c[k].reason != figures.NOT_RECORDED for c in cells)
    ]
    return tuple(COLUMNS[k] for k in (*figures.MAIN, *extra))


def _common_how(cells: Sequence[Cell]) -> How | None:
    """The evidence class that all known figures share; None where there are several or none."""
    hows = {c.how for c in cells if c.value is not None}
    return next(iter(hows)) if len(hows) == 1 else None


def judge(budget: Budget, choice: Choice, found: Sequence[Candidate]) -> tuple[Verdict, ...]:
    """Each constraint against the chosen artifact's figure, or against the best figure where none was chosen.

    A constraint that the decision calls unproven stays so, whatever figure there is.
    """
    chosen = next((c for c in found if c.role == "chosen"), None)
    named = {u.split(":")[0].strip() for u in choice.unproven}
    verdicts = []
    for constraint in figures.constraints(budget):
        column = constraint.column
        if chosen is None:
            verdicts.append(_judge_none(constraint, found))
            continue
        cell = chosen.cells[column.key]
        if cell.value is None:
            verdicts.append(Verdict(constraint, "unproven", cell.reason))
            continue
        state = "unproven" if column.key in named else "met" if constraint.holds(cell.value) else "broken"
        detail = f"{cell.text} {column.unit}"
        if state == "unproven":
            detail += ", which is no figure of this device"
        verdicts.append(Verdict(constraint, state, detail, cell.how))
    return tuple(verdicts)


def _judge_none(constraint: Constraint, found: Sequence[Candidate]) -> Verdict:
    column = constraint.column
    known = [c.cells[column.key] for c in found if c.cells[column.key].value is not None]
    if not known:
        why = found[0].cells[column.key].reason if found else "no artifact was made"
        return Verdict(constraint, "unproven", why)
    best = max(known, key=lambda c: column.better * (c.value or 0.0))
    state = "met" if constraint.holds(best.value or 0.0) else "broken"
    return Verdict(constraint, state, f"the best candidate has {best.text} {column.unit}", best.how)


# ---------------------------------------------------------------- charts


def _best_quality(found: Sequence[Candidate]) -> Column | None:
    """The quality that most candidates have; where equally many do, one that tells them apart, and of
    these accuracy before agreement before SQNR."""
    values = {k: [v for c in found if (v := c.cells[k].value) is not None] for k in figures.QUALITY}
    best = max(figures.QUALITY, key=lambda k: (len(values[k]), len(set(values[k])) > 1))
    return COLUMNS[best] if values[best] else None


def _scatter(
    found: Sequence[Candidate], budget: Budget, key: str, device: str
) -> tuple[tuple[str, str] | None, str]:
    """The wide and the narrow drawing and a note on what could not be drawn; None without two figures."""
    if not found:
        return None, "No artifact was made for this device."
    quality = _best_quality(found)
    if quality is None:
        return None, f"No quality figure is known here: {found[0].cells['agreement'].reason}."
    timed = any(c.cells["latency_p50_ms"].value is not None for c in found)
    cost = COLUMNS["latency_p50_ms" if timed else "size_bytes"]
    drawn = [
        c for c in found if c.cells[cost.key].value is not None and c.cells[quality.key].value is not None
    ]
    points = [_point(c, cost, quality) for c in drawn]
    if not points:
        return None, "No candidate has both a cost and a quality figure."
    why = "" if timed else " (no latency is known here)"
    x_axis = _axis(cost, drawn, budget, why)
    y_axis = _axis(quality, drawn, budget)
    marked = "; ".join(p.title for p in points)
    description = f"{device}: {x_axis.title} against {y_axis.title}. {marked}"
    missing = [c for c in found if c not in drawn]
    note = ""
    if missing:
        names = ", ".join(f"{c.number} {c.name}" for c in missing)
        note = f"Not drawn, because a figure is missing: {names}."
    return (
        charts.scatter(points, x_axis, y_axis, charts.WIDE, f"{key}-sw", description),
        charts.scatter(points, x_axis, y_axis, charts.NARROW, f"{key}-sn", description),
    ), note


def _axis(column: Column, drawn: Sequence[Candidate], budget: Budget, why: str = "") -> Axis:
    how = _common_how([c.cells[column.key] for c in drawn])
    words = how or (
        "how: by the mark" if column.better < 0 and column.key not in figures.QUALITY else "how: see table"
    )
    factor = {"points": 100.0, "%": 100.0, "MB": 1e-6}.get(column.unit, 1.0)
    given = [c.limit for c in figures.constraints(budget) if c.column.key == column.key]
    title = f"{figures.long_title(column)}, {column.unit} ({words}){why}"
    return Axis(title, factor, column.better, given[0] if given else None)


def _point(candidate: Candidate, cost: Column, quality: Column) -> Point:
    x, y = candidate.cells[cost.key], candidate.cells[quality.key]
    return Point(
        number=candidate.number,
        name=numbers.plain(candidate.name),
        x=x.value or 0.0,
        y=y.value or 0.0,
        how=x.how or "measured",
        role=candidate.role,
        title=numbers.plain(
            f"{candidate.number} {candidate.name}: {figures.long_title(cost)} {x.text} {cost.unit} ({x.how}), "
            f"{quality.title} {y.text} {quality.unit} ({y.how})"
        ),
        x_interval=x.bounds if x.how == "predicted" else None,
    )


def _strips(found: Sequence[Candidate], key: str, device: str) -> tuple[str, str] | None:
    rows = [
        Row(
            c.number,
            numbers.plain(c.name),
            c.proof.latency_ms,
            c.cells["latency_p50_ms"].how or "how unknown",
            c.role,
        )
        for c in found
        if c.proof.latency_ms
    ]
    if not rows:
        return None
    text = f"{device}: " + "; ".join(
        f"{c.number} {c.name} P50 {c.cells['latency_p50_ms'].text}, P95 {c.cells['latency_p95_ms'].text}, "
        f"P99 {c.cells['latency_p99_ms'].text} ms"
        for c in found
        if c.proof.latency_ms
    )
    text = numbers.plain(text)
    return (
        charts.strips(rows, charts.WIDE, f"{key}-lw", text),
        charts.strips(rows, charts.NARROW, f"{key}-ln", text),
    )


def _runs(found: Sequence[Candidate]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """What all timing runs had in common, and per run what they did not."""
    runs = []
    for candidate in found:
        if candidate.proof.latency_ms:
            evidence = next((e for k in figures.LATENCY if (e := candidate.proof.get(k)) is not None), None)
            runs.append((candidate, _facts(evidence, len(candidate.proof.latency_ms))))
    if not runs:
        return (), ()
    common = tuple(item for item in runs[0][1].items() if all(r[1].get(item[0]) == item[1] for r in runs))
    shared = {name for name, _ in common}
    differ = tuple(
        (f"{c.number} {c.name}", ", ".join(f"{k} {v}" for k, v in facts.items() if k not in shared))
        for c, facts in runs
    )
    return common, differ if any(text for _, text in differ) else ()


def _facts(evidence: Evidence | None, count: int) -> dict[str, str]:
    facts = {"samples": f"{count:,}"}
    if evidence is None:
        return {"machine": "not recorded", **facts}
    facts = {"machine": evidence.where or "not recorded", **facts}
    return facts | {k.replace("_", " "): str(v) for k, v in evidence.environment.items()}


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
        return f"{_all(total, True)} an artifact that is proven to fit the budget.", "proven"
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
