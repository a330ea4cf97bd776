"""How many decisions quantisation changes, estimated from few samples.

Counting flips on sixteen samples knows steps of six points. But each sample says more: by how much its class
leads (the margin, from the float model alone), and how far quantisation moves scores against each other. A
lead of m falls to an error of standard deviation s with probability Phi(-m / s); its mean over many margins
is the expected share of changed decisions. Margins may come from samples that calibration saw (the float
model does not know of it), the error only from samples that it did not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def expected_agreement(
    margins_of: Sequence[NDArray[Any]], reference: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]
) -> tuple[float, Interval]:
    """The expected share of kept decisions and its 95 % interval by a seeded bootstrap over samples.

    ``margins_of`` are float scores whose leads count; ``reference`` and ``found`` the float and quantised
    scores of the same unseen samples. Scores as ``prove.accuracy.rows`` takes them. Errors are taken as
    normal.
    """
    leads = np.concatenate([_leads(s)[0] for s in margins_of])
    moves = np.concatenate([_moves(a, b) for a, b in zip(reference, found, strict=True)])
    value = _kept(leads, moves)
    random = np.random.default_rng(0)
    drawn = [
        _kept(
            leads[random.integers(0, len(leads), len(leads))],
            moves[random.integers(0, len(moves), len(moves))],
        )
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, (min(float(low), value), max(float(high), value))


def _leads(scores: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """By how much the first class leads each of the next ones, shape (rows, rivals), and their order."""
    table = rows(scores)
    count = min(RIVALS + 1, table.shape[1])
    order = np.argsort(-table, axis=1, kind="stable")[:, :count]
    ranked = np.take_along_axis(table, order, axis=1)
    return ranked[:, :1] - ranked[:, 1:], order


def _moves(reference: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """The mean squared change of these leads, shape (rows,)."""
    _, order = _leads(reference)
    error = np.take_along_axis(rows(found) - rows(reference), order, axis=1)
    changes: NDArray[np.float64] = ((error[:, :1] - error[:, 1:]) ** 2).mean(axis=1)
    return changes


def _kept(leads: NDArray[np.float64], moves: NDArray[np.float64]) -> float:
    """The mean probability that the first class stays first, where each score moves by itself.

    All leads share what the first class's own score does: given that, they hold or fall independently.
    """
    sigma = math.sqrt(float(moves.mean()) / 2)  # of one score; a lead is a difference of two
    if sigma == 0:
        return 1.0
    stays = _normal(leads[:, :, None] / sigma + NODES).prod(axis=1)
    return float((stays * WEIGHTS).sum(axis=1).mean())


def _normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normal distribution function. Abramowitz and Stegun 7.1.26, good to 1.5e-7."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    found: NDArray[np.float64] = 0.5 * (1 + erf)
    return found
