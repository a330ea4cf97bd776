"""Coefficients of many profiles at once: each is a common form, a scale of its own, and small departures.

    log coefficient[profile, term] = common[term] + scale[profile] + own[profile, term]

with penalties that keep ``common`` near equal shares and ``own`` near zero (partial pooling, Gelman and Hill
2007): a phone with 25 measured models borrows what 60 others say of how resizing compares to convolving.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from table import Data

from edgekiln.forecast.fitting import near

Matrix = NDArray[np.float64]

COMMON, OWN = 0.2, 1.0
HUBER = 0.1
WORST = 3.0
"""Relative errors beyond exp(3) pull no harder: one operator that fell back must not bend a profile."""


class Fit(NamedTuple):
    """``shape`` [terms] is the common form (scale-free), ``scale`` [profiles], ``each`` [profiles, terms]."""

    shape: Matrix
    scale: Matrix
    each: Matrix


def fit(data: Data, use: NDArray[np.bool_]) -> Fit:
    """The coefficients from the rows ``use``; the way depends on how much there is."""
    return elastic(data, use) if data.group.held == "family" else lean(data, use)


def elastic(data: Data, use: NDArray[np.bool_]) -> Fit:
    """Partial pooling in logarithms, for tables of many models."""
    x, p, m, y = data.x, data.p[use], data.m[use], data.y[use]
    profiles, terms = len(data.keys), x.shape[1]
    typical = np.maximum(x[np.unique(m)].mean(axis=0), 1e-9)

    def parts(flat: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        common, scale = flat[:terms], flat[terms : terms + profiles]
        return common, scale, flat[terms + profiles :].reshape(profiles, terms)

    def coefficients(flat: Matrix) -> Matrix:
        common, scale, own = parts(flat)
        return np.exp(common - 3 + scale[:, None] + own) / typical

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        common, _, own = parts(flat)
        each = coefficients(flat)
        predicted = np.einsum("nt,nt->n", each[p], x[m])
        off = np.minimum(np.log(predicted / y), WORST)
        error = np.expm1(off)
        size = np.abs(error)
        value = np.where(size < HUBER, error**2 / (2 * HUBER), size - HUBER / 2).sum()
        slope = np.clip(error / HUBER, -1, 1) * np.where(off < WORST, np.exp(off), 0) / predicted
        pull = np.zeros((profiles, len(x)))
        np.add.at(pull, (p, m), slope)
        by_log = each * (pull @ x)
        value += COMMON * (common**2).sum() + OWN * (own**2).sum()
        gradient = np.concatenate(
            [by_log.sum(axis=0) + 2 * COMMON * common, by_log.sum(axis=1), (by_log + 2 * OWN * own).ravel()]
        )
        return float(value), gradient

    start = np.zeros(terms + profiles + profiles * terms)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    common, scale, _ = parts(found)
    return Fit(np.exp(common - 3) / typical, np.exp(scale), coefficients(found))


STRENGTH = 0.02


def lean(data: Data, use: NDArray[np.bool_], strength: float = STRENGTH) -> Fit:
    """A common form found on all profiles with their scales taken out, then each profile near it."""
    x, p, m, y = data.x, data.p[use], data.m[use], data.y[use]
    profiles = len(data.keys)
    scale = np.array(
        [np.exp(np.mean(np.log(y[p == k]))) if (p == k).any() else np.nan for k in range(profiles)]
    )
    scale = np.where(np.isnan(scale), np.nanmean(scale), scale)
    shape = np.zeros(x.shape[1])
    for _ in range(6):
        shape = near(x[m], y / scale[p], np.zeros(x.shape[1]), 1e-3)
        ratio = y / (x[m] @ shape)
        for k in range(profiles):
            if (p == k).any():
                scale[k] = np.exp(np.median(np.log(ratio[p == k])))
    each = np.array(
        [
            near(x[m[p == k]], y[p == k], shape * scale[k], strength) if (p == k).any() else shape * scale[k]
            for k in range(profiles)
        ]
    )
    return Fit(shape, scale, each)
