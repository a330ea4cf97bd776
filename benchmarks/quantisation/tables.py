"""From what was found to tables: one per model, the goals, the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekiln.prove.statistics import Ratio, percentiles
from measuring.table import Table, against_goal
from quantisation.contenders import CONTENDERS
from quantisation.course import Found, Row, ratio
from quantisation.judging import Judged

KEEP = 0.01
AGREEMENT, SURE = 0.97, 0.99
LATENCY_RATIO = 1.05
GEOMETRIC = 0.9
MEMORY_RATIO = 1.5
TUNED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
OURS, BASE, FLOAT = "ours", "ort-best", "ort-fp32"
COLUMNS = (
    "contender",
    "metric",
    "lost",
    "agreement",
    "where sure",
    "SQNR",
    "P50",
    "P95",
    "size",
    "to make",
    "memory",
    "how",
)
NONE = "—"
_ROUNDING = 1e-9


def every(found: Sequence[Found]) -> list[Table]:
    """All tables of the benchmark."""
    shown = [figures(one) for one in found]
    shown += [memory(one) for one in found if one.memory]
    return [*shown, goals(found)]


# ---------------------------------------------------------------- one model


def figures(found: Found) -> Table:
    """A row per contender: what it kept, how fast it is, what it took to make."""
    scene = found.scene
    note = (
        f"{found.threads} cores, {scene.calibration} calibration samples at most, judged on "
        f"{scene.evaluation} others; measured {found.when}. 'Lost' is of the task's metric against the float "
        "model, with its 95 % interval where it has one; agreement and SQNR are against the float model's "
        "outputs. P50 and P95 are of calls in turns with all other rows of this table. 'To make' is the "
        "whole command; its memory is the largest process's."
    )
    rows = tuple(_figures(row) for row in found.rows if not row.unfit)
    title = scene.title + (f": {scene.note}" if scene.note else "")
    return Table(title=title, columns=COLUMNS, rows=rows, note=note)


def _figures(row: Row) -> tuple[str, ...]:
    contender = CONTENDERS[row.contender]
    made = contender.quantises
    judged = row.judged
    return (
        contender.title,
        NONE if judged is None or judged.value is None else f"{judged.metric} {judged.value:.4f}",
        _lost(judged),
        _share(None if judged is None else judged.agreement),
        NONE if judged is None or judged.sure is None else f"{judged.sure:.1%} of {judged.sure_samples}",
        NONE if judged is None or judged.sqnr_db is None else f"{judged.sqnr_db:.1f} dB",
        *_latency(row),
        _megabytes(row.size_bytes, digits=2),
        f"{row.seconds:.1f} s" if made and row.seconds is not None else NONE,
        _megabytes(row.peak_bytes) if made else f"runs in {_megabytes(row.run_peak_bytes)}",
        "; ".join(filter(None, (row.note, "threads spin" if row.spinning else "", row.failure))),
    )


def _megabytes(count: int | None, digits: int = 0) -> str:
    return NONE if count is None else f"{count / 1e6:.{digits}f} MB"


def _lost(judged: Judged | None) -> str:
    if judged is None or judged.drop is None:
        return NONE
    text = f"{judged.drop:+.2%}"
    if judged.interval is not None:
        text += f" ({judged.interval[0]:+.1%} to {judged.interval[1]:+.1%})"
    return text


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _latency(row: Row) -> tuple[str, str]:
    if not row.blocks_ms:
        return NONE, NONE
    found = percentiles(row.samples_ms)
    p95 = NONE if found.p95 is None else f"{found.p95:.2f} ms"
    return f"{found.p50:.2f} ms (IQR {found.iqr:.2f}, {found.n} calls)", p95


def memory(found: Found) -> Table:
    """The build's memory by its samples, against the float model's run."""
    base = _base_bytes(found)
    rows = []
    for one in found.memory:
        shown = one.failure or _megabytes(one.peak_bytes)
        share = NONE if one.peak_bytes is None or base is None else f"{one.peak_bytes / base:.2f}"
        rows.append((str(one.samples), shown, share))
    note = (
        "Peak of the largest process of `edgekiln build` with the chosen recipe alone, against that of a "
        f"process that runs the float model in ONNX Runtime: {_megabytes(base)}."
    )
    columns = ("calibration samples", "peak", "over the float model's run")
    return Table(title=f"Memory: {found.scene.title}", columns=columns, rows=tuple(rows), note=note)


def _base_bytes(found: Found) -> int | None:
    base = found.row(FLOAT)
    return None if base is None else base.run_peak_bytes


# ---------------------------------------------------------------- the goals

Goal = tuple[str, str, str, str]


def goals(found: Sequence[Found]) -> Table:
    """Each goal with what the figures say to it."""
    rows: list[Goal] = []
    for one in found:
        if one.scene.name in TUNED:
            rows += accuracy_goals(one)
    rows += speed_goals(found)
    for one in found:
        rows += cost_goals(one)
    note = (
        f"A contender keeps 1 % where it lost at most {KEEP:.0%} of the task's metric. Ratios are of median "
        "latencies in one run with their 95 % interval; below 1 edgekiln is faster."
    )
    return Table(title="Goals", columns=("goal", "value", "wanted", "verdict"), rows=tuple(rows), note=note)


def accuracy_goals(found: Found) -> list[Goal]:
    """Agreement, latency against ONNX Runtime's best Q/DQ, and labelled top-1 of one EfficientNet-Lite."""
    name, ours, base = found.scene.title, found.row(OURS), found.row(BASE)
    judged = None if ours is None else ours.judged
    rows = [
        _least(f"{name}: agreement", None if judged is None else judged.agreement, AGREEMENT),
        _least(f"{name}: agreement where sure", None if judged is None else judged.sure, SURE),
    ]
    both = None if ours is None or base is None else ratio(ours, base)
    what = f"{name}: latency over ONNX Runtime per channel"
    if both is None:
        rows.append((what, NONE, f"≤ {LATENCY_RATIO}", "not judged"))
    else:
        rows.append((what, _ratio(both), f"≤ {LATENCY_RATIO}", against_goal(both.value, LATENCY_RATIO)))
    interval = None if judged is None else judged.interval
    what = f"{name}: labelled top-1 lost, interval reaches 0"
    if interval is None:
        return [*rows, (what, NONE, "≤ 0", "not judged")]
    return [*rows, (what, _lost(judged), "≤ 0", against_goal(interval[0], 0.0))]


def _least(what: str, value: float | None, goal: float) -> Goal:
    if value is None:
        return (what, NONE, f"≥ {goal:.0%}", "not judged")
    verdict = "met" if value >= goal - _ROUNDING else f"missed by {goal - value:.1%}"
    return (what, f"{value:.1%}", f"≥ {goal:.0%}", verdict)


def keeps(row: Row) -> bool:
    """Whether the contender lost at most KEEP of the task's metric."""
    return row.judged is not None and row.judged.drop is not None and row.judged.drop <= KEEP + _ROUNDING


def fastest(found: Found) -> Row | None:
    """The rival of the lowest median latency among those that keep 1 %."""
    rivals = [r for r in found.rows if CONTENDERS[r.contender].family != "ours" and keeps(r) and r.blocks_ms]
    return min(rivals, key=lambda row: percentiles(row.samples_ms).p50, default=None)


def speed_goals(found: Sequence[Found]) -> list[Goal]:
    """Per model ours over the fastest rival that keeps 1 %, and the geometric mean of all of them."""
    rows: list[Goal] = []
    logs, lost = [], []
    for one in found:
        ours, rival = one.row(OURS), fastest(one)
        what = f"{one.scene.title}: latency over the fastest that keeps 1 %"
        both = None if ours is None or rival is None else ratio(ours, rival)
        if ours is None or rival is None or both is None:
            rows.append((what, NONE, "≤ 1", "not judged"))
            continue
        shown = f"{_ratio(both)} over {CONTENDERS[rival.contender].title}"
        if not keeps(ours):
            lost.append(one.scene.name)
            verdict = f"missed: it lost {_lost(ours.judged)}"
        elif both.interval is not None and both.value > 1 and both.interval[0] <= 1:
            verdict = "a tie: the interval reaches 1"
        else:
            verdict = against_goal(both.value, 1.0)
        logs.append(math.log(both.value))
        rows.append((what, shown, "≤ 1", verdict))
    what = f"geometric mean of {len(logs)} models"
    if not logs:
        return [*rows, (what, NONE, f"≤ {GEOMETRIC}", "not judged")]
    mean = math.exp(sum(logs) / len(logs))
    verdict = against_goal(mean, GEOMETRIC) + (f"; 1 % was not kept on {', '.join(lost)}" if lost else "")
    return [*rows, (what, f"{mean:.3f}", f"≤ {GEOMETRIC}", verdict)]


def cost_goals(found: Found) -> list[Goal]:
    """Time against Olive's workflow, memory against the float model's run."""
    rows: list[Goal] = []
    olive = found.row("olive")
    for name, what in (("ours-alone", "the chosen recipe"), (OURS, "all recipes")):
        ours = found.row(name)
        if ours is None or olive is None:
            continue
        told = f"{found.scene.title}: time of {what} over Olive's workflow"
        if ours.failure or olive.failure or ours.seconds is None or olive.seconds is None:
            rows.append((told, NONE, "≤ 1", "not judged"))
        else:
            share = ours.seconds / olive.seconds
            shown = f"{share:.2f} ({ours.seconds:.1f} s, {olive.seconds:.1f} s)"
            rows.append((told, shown, "≤ 1", against_goal(share, 1.0)))
    base = _base_bytes(found)
    for one in found.memory:
        told = f"{found.scene.title}: memory over the float model's run, {one.samples} samples"
        if one.peak_bytes is None or base is None:
            rows.append((told, NONE, f"≤ {MEMORY_RATIO}", "not judged"))
        else:
            share = one.peak_bytes / base
            rows.append((told, f"{share:.2f}", f"≤ {MEMORY_RATIO}", against_goal(share, MEMORY_RATIO)))
    return rows


def _ratio(found: Ratio) -> str:
    if found.interval is None:
        return f"{found.value:.3f} (no interval)"
    return f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})"
