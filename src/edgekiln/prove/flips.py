"""How many decisions an artifact changes, estimated from few samples.

Counting flips on sixteen samples knows steps of six points. But each sample says more: by how much its class
leads (the margin, from the float model alone), and how far the artifact moves scores against each other. A
lead of m falls to an error of standard deviation s with probability Phi(-m / s); its mean over many margins
is the expected share of changed decisions. Margins may come from samples that calibration saw (the float
model does not know of it), the error only from samples that it did not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.accuracy import rows
from edgekiln.prove.statistics import Interval

RIVALS = 5
DRAWS = 400
_ROOTS, _MASSES = np.polynomial.hermite_e.hermegauss(21)
NODES, WEIGHTS = _ROOTS, _MASSES / _MASSES.sum()
"""Quadrature over a standard normal variable."""

Floats = NDArray[np.float64]


def leads(scores: NDArray[Any]) -> Floats:
    """By how much the first class leads each of the next ones, shape (rows, rivals).

    ``scores`` as ``prove.accuracy.rows`` takes them; rivals are at most ``RIVALS``.
    """
    return _ranked(scores)[0]


def moves(reference: NDArray[Any], found: NDArray[Any]) -> Floats:
    """The mean squared change of these leads from ``reference`` to ``found``, shape (rows,)."""
    _, order = _ranked(reference)
    error = np.take_along_axis(rows(found) - rows(reference), order, axis=1)
    changes: Floats = ((error[:, :1] - error[:, 1:]) ** 2).mean(axis=1)
    return changes


def expected_agreement(held: Floats, moved: Floats) -> tuple[float, Interval]:
    """The expected share of kept decisions and its 95 % interval by a seeded bootstrap over samples.

    ``held`` are ``leads`` of float scores, ``moved`` the ``moves`` of unseen samples. Errors are taken as
    normal, and as large for a close call as for a clear one.
    """
    value = _kept(held, moved)
    random = np.random.default_rng(0)

    def again(values: Floats) -> Floats:
        return values[random.integers(0, len(values), len(values))]

    drawn = [_kept(again(held), again(moved)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, (min(float(low), value), max(float(high), value))


def _ranked(scores: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    table = rows(scores)
    count = min(RIVALS + 1, table.shape[1])
    order = np.argsort(-table, axis=1, kind="stable")[:, :count]
    ranked = np.take_along_axis(table, order, axis=1)
    return ranked[:, :1] - ranked[:, 1:], order


def _kept(held: Floats, moved: Floats) -> float:
    """The mean probability that the first class stays first, where each score moves by itself.

    All leads share what the first class's own score does: given that, they hold or fall independently.
    """
    sigma = math.sqrt(float(moved.mean()) / 2)  # of one score; a lead is a difference of two
    if sigma == 0:
        return 1.0
    stays = _normal(held[:, :, None] / sigma + NODES).prod(axis=1)
    return float((stays * WEIGHTS).sum(axis=1).mean())


def _normal(x: Floats) -> Floats:
    """The normal distribution function. Abramowitz and Stegun 7.1.26, good to 1.5e-7."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    found: Floats = 0.5 * (1 + erf)
    return found
