"""How like a model is to those that a profile was fitted on: the nearest figures, and what that does to
trust."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgekiln.forecast.profiles import Group, Known, Profile, data
from edgekiln.forecast.terms import FULL, vector
from edgekiln.records import Record

NEAREST = 3
STRANGE = 0.1
"""The share of a model's cost that may lie in kinds of layers that fewer than two families taught."""

UNLIKE = 2.5
"""What an interval is widened by, both ways, for a model unlike all that its table has. The one published
figure of another family on a Jetson (ResNet-50, INT8, AGX Orin, MLPerf Inference 3.1: 0.636 ms) is why:
docs/prediction.md."""

REACH = 2.0
_AXES = ("macs", "traffic", "layers")
_KINDS = ("conv", "grouped", "depthwise", "dense", "matmul")
SHARES = 0.25


class Near(Record, frozen=True, kw_only=True):
    """A published figure of a model like this one; ``distance`` is 0 for the same amounts."""

    model: str
    family: str
    latency_ms: float
    distance: float
    source: str


class Likeness(Record, frozen=True, kw_only=True):
    """``refusal`` is "" where a prediction may be made; ``widened`` is 1 for a model like the measured
    ones."""

    nearest: tuple[Near, ...]
    widened: float = 1.0
    note: str = ""
    refusal: str = ""


def likeness(found: Mapping[str, float], known: Profile, group: Group) -> Likeness:
    """Judge the amounts ``found`` of a model against the models that ``known`` was published for."""
    models = {m: data().models[m] for m in known.published}
    ranked = sorted((distance(found, _amounts(k)), m) for m, k in models.items())
    nearest = tuple(
        Near(
            model=m,
            family=models[m].family,
            latency_ms=known.published[m],
            distance=round(far, 2),
            source=known.source.replace("*", m.partition("/")[0]),
        )
        for far, m in ranked[:NEAREST]
    )
    strange = _strange(found, group, tuple(models.values()))
    if strange:
        return Likeness(nearest=nearest, refusal=strange)
    if _inside(found, [_amounts(k) for k in models.values()]):
        return Likeness(nearest=nearest)
    families = ", ".join(sorted({k.family for k in models.values()})[:6])
    note = (
        f"unlike the {len(models)} models measured ({families}); "
        f"the interval is widened {UNLIKE:g} times both ways"
    )
    return Likeness(nearest=nearest, widened=UNLIKE, note=note)


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Between amounts: logarithms of work, traffic and layers, and the mix of what multiplies."""
    sizes = [math.log(max(a[k], 1e-3) / max(b[k], 1e-3)) for k in _AXES]
    mixes = [_share(a, k) - _share(b, k) for k in _KINDS]
    return math.hypot(*sizes, *(2 * m for m in mixes))


def _share(of: Mapping[str, float], kind: str) -> float:
    return of[f"macs.{kind}"] / max(of["macs"], 1e-9)


def _amounts(known: Known) -> dict[str, float]:
    found = dict(zip(FULL, known.amounts, strict=True))
    found["macs"] = sum(found[f"macs.{k}"] for k in _KINDS)
    found["traffic"] = sum(v for k, v in found.items() if k.startswith("traffic."))
    found["layers"] = found["layers.multiply"] + found["layers.other"]
    return found


def _inside(found: Mapping[str, float], others: list[dict[str, float]]) -> bool:
    """Whether work, traffic and layers lie within ``REACH`` of the measured range, and the mix near one of
    it."""
    for axis in _AXES:
        have = [o[axis] for o in others]
        if not min(have) / REACH <= found[axis] <= max(have) * REACH:
            return False
    return any(all(abs(_share(found, k) - _share(o, k)) <= SHARES for k in _KINDS) for o in others)


def _strange(found: Mapping[str, float], group: Group, models: tuple[Known, ...]) -> str:
    """Why the model can't be predicted: too much of its cost lies where fewer than two families were
    measured."""
    if group.terms != FULL:
        return ""
    cost = vector(found, FULL) * np.array(group.shape)
    cost /= max(float(cost.sum()), 1e-12)
    told = np.array([m.amounts for m in models]) * np.array(group.shape)
    told /= np.maximum(told.sum(axis=1, keepdims=True), 1e-12)
    lonely = [
        term
        for at, term in enumerate(FULL)
        if cost[at] > STRANGE / 10
        and len({m.family for m, row in zip(models, told, strict=True) if row[at] > STRANGE / 10}) < 2
    ]
    share = sum(float(cost[FULL.index(t)]) for t in lonely)
    if share <= STRANGE:
        return ""
    kinds = ", ".join(lonely)
    return f"{100 * share:.0f} % of its cost is {kinds}, which fewer than two published families have"
