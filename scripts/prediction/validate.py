"""How far predictions are off where they can be checked: families, models and devices held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pooled
from numpy.typing import NDArray
from table import Data

from edgekiln.devices import load
from edgekiln.forecast.fitting import anchored
from edgekiln.forecast.profiles import Spread

Vector = NDArray[np.float64]

ANCHORS = (1, 3, 5)
DRAWS = 10
JETSONS = {"Orin (8SM)": "jetson-orin-nano-8gb", "Orin (GA10B 16SM)": "jetson-agx-orin-64gb"}
"""Chips of one generation, whose catalogued bandwidths can scale a profile."""


class Held(NamedTuple):
    """Predictions ``predicted`` (ms) of rows that their fit had not seen; nan where none can be made."""

    data: Data
    predicted: Vector

    @property
    def ratio(self) -> Vector:
        """Published over predicted."""
        return self.data.y / self.predicted


FALLS_BACK = 3.0
LEAST = 2


def fallbacks(data: Data, each: Vector, use: NDArray[np.bool_]) -> dict[str, tuple[str, ...]]:
    """Kinds of layers that a runtime leaves to the CPU in a precision, by ``runtime precision``.

    That is not written anywhere, but seen: every graph with such a layer, of two models or more, took more
    than three times what its work explains. Only the rows ``use`` are looked at.
    """
    found: dict[str, tuple[str, ...]] = {}
    ratio = data.y / np.einsum("nt,nt->n", each[data.p], data.x[data.m])
    labels = np.array([f"{k.runtime} {k.precision}" for k in data.keys])[data.p]
    for label in sorted(set(labels)):
        mine = use & (labels == label)
        middle = {m: float(np.median(ratio[mine & (data.m == m)])) for m in set(data.m[mine])}
        slow = [
            kind
            for kind in sorted(frozenset().union(*data.kinds))
            if len(of := [v for m, v in middle.items() if kind in data.kinds[m]]) >= LEAST
            and min(of) > FALLS_BACK
        ]
        if slow:
            found[label] = tuple(slow)
    return found


def families_out(data: Data) -> Held:
    """Each family (or model) predicted by a fit to all others, but for what is known to fall back."""
    predicted = np.full(len(data.y), np.nan)
    family = np.array(data.families)[data.m]
    for out in sorted(set(data.families)):
        test = family == out
        each = pooled.fit(data, ~test).each
        predicted[test] = np.einsum("nt,nt->n", each[data.p[test]], data.x[data.m[test]])
        known = fallbacks(data, each, ~test) if data.group.held == "family" else {}
        for row in np.flatnonzero(test):
            key = data.keys[data.p[row]]
            if data.kinds[data.m[row]] & set(known.get(f"{key.runtime} {key.precision}", ())):
                predicted[row] = np.nan
    return Held(data, predicted)


def supported(data: Data, least: int = 2, share: float = 0.1) -> NDArray[np.bool_]:
    """Models [models] of whose cost at most ``share`` lies in terms that fewer than ``least`` other
    families have.

    The others can't be predicted from what is left when their family is held out, and the product refuses
    them in the same way.
    """
    shape = pooled.fit(data, np.ones(len(data.y), dtype=bool)).shape
    cost = data.x * shape
    cost /= cost.sum(axis=1, keepdims=True)
    families = np.array(data.families)
    good = np.ones(len(data.models), dtype=bool)
    for at in range(len(data.models)):
        others = families != families[at]
        heavy = [len(set(families[others & (cost[:, t] > share / 10)])) for t in range(cost.shape[1])]
        good[at] = cost[at, np.array(heavy) < least].sum() <= share
    return good


def spread(held: Held, use: NDArray[np.bool_], what: str) -> Spread:
    """The errors of the rows ``use`` and the coverage of their 90 % interval, each family judged by the
    others."""
    ratio, family = held.ratio[use], np.array(held.data.families)[held.data.m[use]]
    error = np.abs(1 / ratio - 1)
    inside = []
    for out in sorted(set(family)):
        rest = ratio[family != out]
        if len(set(family)) > 2:
            low, high = between(rest, len(set(family)) - 1)
            inside += list((ratio[family == out] >= low) & (ratio[family == out] <= high))
    low, high = between(ratio, len(set(family)))
    return Spread(
        held=what,
        n=int(use.sum()),
        models=len(set(held.data.m[use])),
        mape=float(100 * error.mean()),
        median=float(100 * np.median(error)),
        low=float(low),
        high=float(high),
        coverage=float(100 * np.mean(inside)) if inside else None,
    )


def between(ratio: Vector, families: int) -> tuple[float, float]:
    """The 90 % interval that ``ratio`` supports: wider where families are few, all of it where there are
    five.

    Rows of a family go wrong together, so it is families that count. Split conformal prediction (Vovk,
    Gammerman and Shafer 2005) would take the quantile at 0.95 (1 + 1 / n) for n families that are one row
    each; with a quarter of that the held-out coverage in the last column comes out nearest to 90 %.
    """
    upper = min(1.0, 0.95 + 0.25 / families)
    low, high = np.quantile(ratio, [1 - upper, upper])
    return float(low), float(high)


def ordered(held: Held, use: NDArray[np.bool_]) -> tuple[float, int]:
    """(percent of pairs of models within one profile that are ordered rightly, number of pairs)."""
    right = pairs = 0
    for p in range(len(held.data.keys)):
        at = np.flatnonzero(use & (held.data.p == p))
        y, q = held.data.y[at], held.predicted[at]
        above = np.triu(y[:, None] != y[None, :], 1)
        right += int((((y[:, None] < y[None, :]) == (q[:, None] < q[None, :])) & above).sum())
        pairs += int(above.sum())
    return 100 * right / max(1, pairs), pairs


def devices_out(data: Data) -> dict[str, Held]:
    """A device whose rows no fit has seen, by the number of its own anchors; "0" is scaled by data sheets.

    What is kept of the device's rows: the anchors, drawn ten times. Other chips' profiles of the same runtime
    and precision give the form, as ``edgekiln calibrate-device`` takes them.
    """
    found: dict[str, list[tuple[int, float]]] = {str(n): [] for n in (0, *ANCHORS)}
    random = np.random.default_rng(0)
    chips = sorted({k.chip for k in data.keys})
    for chip in chips:
        own = np.array([k.chip == chip for k in data.keys])
        if own.all():
            continue
        each = pooled.fit(data, ~own[data.p]).each
        for p in np.flatnonzero(own):
            others = _neighbours(data, each, p)
            if not len(others):
                continue
            rows = np.flatnonzero(data.p == p)
            for count, row, value in _anchored(data, others, rows, random):
                found[str(count)].append((row, value))
            if (factor := _bandwidths(data, p)) is not None:
                near_, scale = factor
                found["0"] += [(int(r), float(data.x[data.m[r]] @ each[near_]) * scale) for r in rows]
    return {n: _held(data, pairs) for n, pairs in found.items() if pairs}


def _neighbours(data: Data, each: Vector, p: int) -> Vector:
    """Coefficients [others, terms] of the same runtime and precision on other chips."""
    mine = data.keys[p]
    others = [
        i
        for i, k in enumerate(data.keys)
        if k.chip != mine.chip and (k.runtime, k.precision) == (mine.runtime, mine.precision)
    ]
    return each[others]


def _anchored(
    data: Data, others: Vector, rows: NDArray[np.int64], random: np.random.Generator
) -> Iterator[tuple[int, int, float]]:
    for count in ANCHORS:
        for _ in range(DRAWS):
            if len(rows) < count + 2:
                break
            anchors = random.choice(rows, count, replace=False)
            own = anchored(data.x[data.m[anchors]], data.y[anchors], others)
            for row in np.setdiff1d(rows, anchors):
                yield count, int(row), float(data.x[data.m[row]] @ own)


def _bandwidths(data: Data, p: int) -> tuple[int, float] | None:
    """The same runtime and precision on the other Jetson of this generation, and the ratio of bandwidths."""
    mine = data.keys[p]
    if mine.chip not in JETSONS:
        return None
    for i, k in enumerate(data.keys):
        if k.chip in JETSONS and k.chip != mine.chip and k[2:4] == mine[2:4]:
            ours, theirs = (load(JETSONS[c]).figures["bandwidth_gb_s"].value for c in (mine.chip, k.chip))
            assert isinstance(ours, int | float)
            assert isinstance(theirs, int | float)
            return i, theirs / ours
    return None


def _held(data: Data, pairs: list[tuple[int, float]]) -> Held:
    """The rows named, repeated as often as they were predicted."""
    at = np.array([r for r, _ in pairs])
    drawn = data._replace(p=data.p[at], m=data.m[at], y=data.y[at])
    return Held(drawn, np.array([v for _, v in pairs]))
