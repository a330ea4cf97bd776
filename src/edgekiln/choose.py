"""The decision: every constraint met, then the least latency; and why each loser lost.

Pure rules over proofs, apart from I/O. Where no latency is known for a device (nobody measured on it),
the target that the catalogue ranks first for it decides, then the least size, and the choice says so: a
figure of another machine never ranks this one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekiln.prove.statistics import in_blocks, is_tie
from edgekiln.records import Budget, Choice, Evidence, Loser, Proof

SQNR_FLOOR_DB = 20.0
"""Where neither labels nor class decisions exist, error power above 1 % of the signal's is a fault."""

BASIS_LATENCY = "least median latency among those that meet the budget"
BASIS_SIZE = (
    "no latency was measured on this device: its preferred target, then the least size within the budget"
)
BASIS_WHOLE = (
    "no latency was measured on this device: its preferred target, there what runs without falling back, "
    "then the least size within the budget"
)


@dataclass(frozen=True)
class Constraint:
    """``key`` is the budget's field, ``figure`` the kind of evidence that it is checked against;
    ``at_most`` tells an upper from a lower bound."""

    key: str
    name: str
    figure: str
    limit: float
    at_most: bool
    unit: str


def constraints(budget: Budget, proofs: Sequence[Proof]) -> tuple[Constraint, ...]:
    """The budget as checks on evidence, plus the floor that applies where the budget can't be judged.

    A bound on the accuracy drop is checked on labels where there are any, else on agreement with the
    float model (see ``_judged``), else (tensors) the SQNR floor stands in for it. Where artifacts take
    several input sizes, what is asked of their outputs is asked at every size.
    """
    found: list[Constraint] = []
    drop, agreement, sqnr = budget.accuracy_drop, budget.agreement, budget.sqnr_db
    lost, name = _drop_figure(proofs)
    if drop is not None and not lost:
        if _any(proofs, "agreement"):
            agreement = max(agreement or 0.0, 1 - drop)
        drop = None
    if drop is not None:
        found.append(Constraint("accuracy_drop", name, lost, drop, True, ""))
    if agreement is not None:
        found.append(Constraint("agreement", "agreement with float", "agreement", agreement, False, ""))
    if sqnr is None and not lost and not _any(proofs, "agreement"):
        sqnr = SQNR_FLOOR_DB
    if sqnr is not None:
        found.append(Constraint("sqnr_db", "SQNR", "sqnr_db", sqnr, False, "dB"))
    found += [_at(c, size) for size in _sizes(proofs) for c in found]
    for key, name, figure, unit in (
        ("latency_p95_ms", "latency P95", "latency_p95_ms", "ms"),
        ("memory_bytes", "peak memory", "peak_memory_bytes", "bytes"),
        ("size_bytes", "size", "size_bytes", "bytes"),
        ("energy_mj", "energy", "energy_mj", "mJ"),
        ("power_watts", "power", "power_watts", "W"),
    ):
        limit = getattr(budget, key)
        if limit is not None:
            found.append(Constraint(key, name, figure, float(limit), True, unit))
    if budget.fps is not None:
        found.append(Constraint("fps", "frame time P50", "latency_p50_ms", 1000 / budget.fps, True, "ms"))
    return tuple(found)


def _drop_figure(proofs: Sequence[Proof]) -> tuple[str, str]:
    """The evidence that a bound on the drop is checked on, and its name: top-1's, else the task's own.

    Empty where nothing was judged on labels.
    """
    if _any(proofs, "accuracy_drop"):
        return "accuracy_drop", "accuracy drop"
    own = next((e for p in proofs if (e := p.get("metric_drop")) is not None and e.value is not None), None)
    return ("", "") if own is None else ("metric_drop", f"{own.environment.get('metric', 'metric')} drop")


def _sizes(proofs: Sequence[Proof]) -> list[str]:
    """The sizes other than the base that figures are of: ``320x416`` for ``sqnr_db@320x416``."""
    named = (e.what.partition("@")[2] for p in proofs for e in p.evidence)
    return [size for size in dict.fromkeys(named) if size]


def _at(check: Constraint, size: str) -> Constraint:
    """The same bound on the figure at another input size."""
    return replace(check, name=f"{check.name} at {size}", figure=f"{check.figure}@{size}")


def choose(device: str, proofs: Sequence[Proof], budget: Budget, order: Sequence[str] = ()) -> Choice:
    """Decide among the proofs of one device; ``order`` names its targets, the preferred one first."""
    checks = constraints(budget, proofs)
    breaks = {p.artifact.id: broken(p, checks) for p in proofs}
    fit = [p for p in proofs if not breaks[p.artifact.id]]
    timed = any(_measured(p) for p in fit or proofs)
    doubtful = {} if timed else _doubtful(fit, checks)
    if any(_foretold_within(p, checks) for p in fit):  # then those that may pass the limit stand back
        fit = [p for p in fit if p.artifact.id not in doubtful]
    else:
        doubtful = {}
    cost = "latency_p50_ms" if timed else "size_bytes"
    quality = quality_figure(proofs)
    preferred = fit if timed else _preferred(fit, order)
    ranked = preferred if timed else _whole(preferred)
    cheap = _cheapest(ranked, cost)
    winner = _best(cheap, cost, quality) if cheap else None
    losers = []
    for p in proofs:
        if p is winner:
            continue
        if winner is None or breaks[p.artifact.id]:
            why = "breaks the budget: " + "; ".join(breaks[p.artifact.id])
        elif p.artifact.id in doubtful:
            why = doubtful[p.artifact.id]
        elif p not in preferred:
            why = f"no latency was measured, and {winner.artifact.target} comes first on this device"
        elif p not in ranked:
            why = f"no latency was measured, and {_fallback(p)}, while {winner.artifact.recipe} runs whole"
        elif p in cheap:
            margin = "within this run's spread" if timed else "within 2 %"
            why = f"as cheap as the winner {margin}, but of no higher quality ({quality})"
        else:
            why = _dearer(p, winner, cost)
        losers.append(Loser(artifact_id=p.artifact.id, why=why))
    unproven = () if winner is None else tuple(dict.fromkeys(c.key for c in checks if not _proven(winner, c)))
    basis = BASIS_LATENCY if timed else BASIS_SIZE if ranked == preferred else BASIS_WHOLE
    if winner is None:
        basis = "no artifact meets the budget" if proofs else "no artifact could be made"
    return Choice(
        device=device,
        status="none" if winner is None else ("unproven" if unproven else "proven"),
        artifact_id=None if winner is None else winner.artifact.id,
        basis=basis,
        cost=cost,
        quality=quality,
        front=front(proofs, cost, quality),
        losers=tuple(losers),
        unproven=unproven,
    )


def _measured(proof: Proof) -> bool:
    """Whether its latency was measured on the device: a prediction ranks nothing."""
    found = proof.get("latency_p50_ms")
    return found is not None and found.value is not None and found.how != "predicted"


def _foretold(proof: Proof, check: Constraint) -> Evidence | None:
    """The prediction that stands in for a latency that nobody measured."""
    found = proof.get("latency_p50_ms")
    if check.key not in ("latency_p95_ms", "fps") or found is None or found.how != "predicted":
        return None
    return found


def _foretold_within(proof: Proof, checks: Sequence[Constraint]) -> bool:
    """Whether a latency is predicted that keeps its limit with its whole interval."""
    figures = [(f, c.limit) for c in checks if (f := _foretold(proof, c)) is not None]
    return bool(figures) and all(f.interval is not None and f.interval[1] <= limit for f, limit in figures)


def _doubtful(fit: Sequence[Proof], checks: Sequence[Constraint]) -> dict[str, str]:
    """Artifacts whose predicted latency may pass its limit, and the words for it.

    A prediction right at a limit is over it in half of all cases: only one whose whole interval keeps the
    limit is as good as kept.
    """
    found = {}
    for p in fit:
        for check in checks:
            figure = _foretold(p, check)
            if figure is not None and figure.interval is not None and figure.interval[1] > check.limit:
                low, high = figure.interval
                limit = _text(check.limit, check.unit)
                found[p.artifact.id] = f"its predicted latency of {low:.3g} to {high:.3g} ms may pass {limit}"
    return found


def quality_figure(proofs: Sequence[Proof]) -> str:
    """The measure of quality that every proof has: decisions where there are any, else every value.

    Of decisions the estimate, where there is one: budgets are judged by it, and it tells apart what a count
    of few samples can't.
    """
    for figure in ("agreement_expected", "agreement", "sqnr_db", "top1"):
        if proofs and all(p.value(figure) is not None for p in proofs):
            return figure
    return "sqnr_db"


def front(proofs: Sequence[Proof], cost: str, quality: str) -> tuple[str, ...]:
    """Ids of the Pareto-optimal proofs (least cost, most quality), cheapest first."""
    known = [
        (c, q, p.artifact.id)
        for p in proofs
        if (c := p.value(cost)) is not None and (q := p.value(quality)) is not None
    ]
    known.sort(key=lambda k: (k[0], -k[1], k[2]))
    kept: list[str] = []
    best = float("-inf")
    for _, q, name in known:
        if q > best:
            kept.append(name)
            best = q
    return tuple(kept)


def same_cost(a: Proof, b: Proof, cost: str) -> bool:
    """Whether the costs can't be told apart: latencies by the alternated run's rounds, sizes by 2 %."""
    if cost == "latency_p50_ms":
        return bool(a.latency_ms and b.latency_ms) and is_tie(
            in_blocks(a.latency_ms), in_blocks(b.latency_ms)
        )
    one, other = a.value(cost), b.value(cost)
    return one is not None and other is not None and abs(one - other) <= 0.02 * min(one, other)


def _preferred(fit: Sequence[Proof], order: Sequence[str]) -> list[Proof]:
    """The proofs of the first target in ``order`` that has any; all of them where none is named."""
    for target in order:
        found = [p for p in fit if p.artifact.target == target]
        if found:
            return found
    return list(fit)


def _whole(fit: Sequence[Proof]) -> list[Proof]:
    """Those that their first provider takes whole, where there are any; else all.

    Which operators fall back is known without the device, and each piece costs a change of hands.
    """
    found = [p for p in fit if not _fallback(p)]
    return found or list(fit)


def _fallback(proof: Proof) -> str:
    """What the first provider that could be asked leaves to others, in words; "" where it takes all."""
    first = next((r for r in proof.artifact.placement if r.taken is not None and r.operators), None)
    if first is None or first.taken is None or first.operators is None or first.taken == first.operators:
        return ""
    left = first.operators - first.taken
    pieces = f" in {first.partitions} pieces" if first.partitions else ""
    return f"{left} of {first.operators} operators fall back from {first.provider}{pieces}"


def _price(proof: Proof, cost: str) -> float:
    value = proof.value(cost)
    return float("inf") if value is None else value


def _cheapest(fit: Sequence[Proof], cost: str) -> list[Proof]:
    """The least cost and what ties with it, up to the first that does not: none left out is cheaper."""
    ordered = sorted(fit, key=lambda p: (_price(p, cost), p.artifact.id))
    return list(itertools.takewhile(lambda p: p is ordered[0] or same_cost(p, ordered[0], cost), ordered))


def _best(cheap: Sequence[Proof], cost: str, quality: str) -> Proof:
    """Of those that tie in cost the best quality, then what no search was needed for, then the least cost,
    then the first by id.
    """

    def worth(p: Proof) -> tuple[float, ...]:
        """The quality, then the finer SQNR where decisions are equal."""
        values = (p.value(quality), p.value("sqnr_db"))
        return tuple(float("-inf") if v is None else v for v in values)

    ordered = sorted(cheap, key=lambda p: p.artifact.id)
    # A search that puts no layer back gives the static recipe's artifact, and takes its time again.
    return max(ordered, key=lambda p: (worth(p), "-mixed-" not in p.artifact.recipe, -_price(p, cost)))


def _proven(proof: Proof, check: Constraint) -> bool:
    """Whether the figure is there and its 95 % interval, where it has one, stays within the limit."""
    found = proof.get(check.figure)
    if found is None or found.value is None or found.how == "predicted":
        return False
    low, high = found.interval or (found.value, found.value)
    return high <= check.limit + 1e-12 if check.at_most else low >= check.limit - 1e-12


def broken(proof: Proof, checks: Sequence[Constraint]) -> tuple[str, ...]:
    """Each constraint that a known figure breaks, with both numbers."""
    found = []
    for check in checks:
        value, name, seen = _judged(proof, check)
        if value is None:
            continue
        over = value > check.limit + 1e-12 if check.at_most else value < check.limit - 1e-12
        if over:
            sign = ">" if check.at_most else "<"
            found.append(f"{name} {_text(value, check.unit)} {sign} {_text(check.limit, check.unit)}{seen}")
    return tuple(found)


def _judged(proof: Proof, check: Constraint) -> tuple[float | None, str, str]:
    """What a constraint is judged by, its name, and what was seen beside it.

    Agreement and the loss of top-1 are judged by their estimates from margins: on 64 samples a count knows
    steps of 1.6 points, and one lucky or unlucky flip would decide. A count whose 95 % interval leaves the
    limit out overrules its estimate.
    """
    figure = _foretold(proof, check)
    if figure is not None and figure.interval is not None:
        return figure.interval[0], "predicted latency, at the least", ""
    counted = proof.get(check.figure)
    if counted is None or counted.value is None:
        return None, check.name, ""
    kind, at, size = check.figure.partition("@")
    estimate = proof.value(f"{kind}_expected{at}{size}")
    low, high = counted.interval or (-math.inf, math.inf)
    certain = low > check.limit if check.at_most else high < check.limit
    if estimate is None or certain:
        return counted.value, check.name, ""
    many = f" of {counted.n}" if counted.n else ""
    return estimate, f"expected {check.name}", f" (seen: {counted.value:.3f}{many})"


def _dearer(proof: Proof, winner: Proof, cost: str) -> str:
    mine, best = proof.value(cost), winner.value(cost)
    name = {"latency_p50_ms": "slower", "size_bytes": "larger"}[cost]
    unit = {"latency_p50_ms": "ms", "size_bytes": "bytes"}[cost]
    if mine is None or best is None:
        return f"its {cost} is not known"
    rival = f"{winner.artifact.target} {winner.artifact.recipe}"
    return f"{name} than {rival}: {_text(mine, unit)} against {_text(best, unit)}"


def _any(proofs: Sequence[Proof], figure: str) -> bool:
    return any(p.value(figure) is not None for p in proofs)


def _text(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.3g} MB"
    return f"{value:.3g} {unit}".strip()
