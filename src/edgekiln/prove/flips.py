"""How many decisions an artifact changes, and what that costs in accuracy, estimated from few samples.

Counting flips on sixteen samples knows steps of six points. But each sample says more: by how much its class
leads (the margin, from the float model alone), and how far the artifact moves scores against each other. A
lead of m falls to an error of standard deviation s with probability Phi(-m / s); its mean over many margins,
and over the sizes of error that were seen, is the expected share of changed decisions. Margins may come from
samples that calibration saw (the float model does not know of it), errors only from samples that it did not.

The same holds of a label: its lead over the other classes is negative where the float model is wrong, and the
mean of the probabilities that it comes first is the accuracy to expect. On 80 labelled samples a count knows
steps of 1.25 points, and a close call that tips over counts as much as one that was never in doubt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.accuracy import rows
from edgekiln.prove.statistics import Interval

RIVALS = 5
DRAWS = 400
LEVELS = 32
"""Sizes of error at which probabilities are computed; between them they are interpolated."""
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
    normal, of the sizes that were seen, and as large for a close call as for a clear one.
    """
    curves, sizes = _parts(held, moved)
    random = np.random.default_rng(0)

    def again(values: Floats) -> Floats:
        mean: Floats = values[random.integers(0, len(values), len(values))].mean(axis=0)
        return mean

    drawn = [float(again(curves) @ again(sizes)) for _ in range(DRAWS)]
    return _told(float(curves.mean(axis=0) @ sizes.mean(axis=0)), drawn)


@dataclass(frozen=True)
class LabelMargin:
    """A labelled sample in the float model: ``classes`` are the label and its greatest rivals, ``leads`` by
    how much it leads each, shape (rivals,), ``right`` whether it comes first.
    """

    classes: NDArray[np.int64]
    leads: Floats
    right: bool


def label_margin(scores: NDArray[Any], label: int, right: bool) -> LabelMargin:
    """The margin of one sample's ``label`` in its float ``scores`` (``prove.accuracy.rows``)."""
    row = rows(scores).reshape(-1)
    order = np.argsort(-row, kind="stable")[: RIVALS + 1]
    rivals = order[order != label][:RIVALS]
    return LabelMargin(np.array([label, *rivals]), row[label] - row[rivals], right)


def label_move(margin: LabelMargin, found: NDArray[Any]) -> float:
    """The mean squared change of the label's leads in the artifact's scores ``found``."""
    row = rows(found).reshape(-1)[margin.classes]
    return float(((row[0] - row[1:] - margin.leads) ** 2).mean())


def expected_drop(margins: Sequence[LabelMargin], moved: Sequence[float]) -> tuple[float, Interval]:
    """The expected loss of top-1 and its 95 % interval by a seeded bootstrap over the same samples.

    ``moved`` are the ``label_move`` of each of ``margins``; errors are taken as in ``expected_agreement``.
    """
    held, right = np.stack([m.leads for m in margins]), np.array([m.right for m in margins])
    curves, sizes = _parts(held, np.asarray(moved, np.float64))

    def lost(some: NDArray[np.int64]) -> float:
        stays = curves[some].mean(axis=0) @ sizes[some].mean(axis=0)
        return float(right[some].mean() - stays)

    if not any(moved):
        return 0.0, (0.0, 0.0)
    n, random = len(held), np.random.default_rng(0)
    drawn = [lost(random.integers(0, n, n)) for _ in range(DRAWS)]
    return _told(lost(np.arange(n)), drawn)


def kept(held: Floats, moved: Floats) -> float:
    """The mean probability that the first class stays first: ``expected_agreement`` without its interval."""
    curves, sizes = _parts(held, moved)
    return float(curves.mean(axis=0) @ sizes.mean(axis=0))


def _told(value: float, drawn: Sequence[float]) -> tuple[float, Interval]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, (min(float(low), value), max(float(high), value))


def _ranked(scores: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    table = rows(scores)
    count = min(RIVALS + 1, table.shape[1])
    order = np.argsort(-table, axis=1, kind="stable")[:, :count]
    ranked = np.take_along_axis(table, order, axis=1)
    return ranked[:, :1] - ranked[:, 1:], order


def _parts(held: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """Each lead's probability to hold at some sizes of error, and each error's place among these sizes;
    shapes (leads, levels) and (errors, levels). The product of their means is that over all pairs.

    A few samples with large errors must not make every call uncertain: so sizes are not pooled into one.
    """
    sigmas = np.sqrt(moved / 2)  # of one score; a lead is a difference of two
    known = sigmas[sigmas > 0]
    levels = np.zeros(1)
    if known.size:
        levels = np.unique([0.0, *np.geomspace(known.min(), known.max(), LEVELS)])
    curves = np.stack([_holds(held, level) for level in levels], axis=1)
    low = np.clip(np.searchsorted(levels, sigmas, side="right") - 1, 0, max(len(levels) - 2, 0))
    sizes = np.zeros((len(sigmas), len(levels)))
    rows_of = np.arange(len(sigmas))
    if len(levels) > 1:
        share = np.clip((sigmas - levels[low]) / (levels[low + 1] - levels[low]), 0.0, 1.0)
        sizes[rows_of, low + 1] = share
        sizes[rows_of, low] = 1 - share
    else:
        sizes[:, 0] = 1
    return curves, sizes


def _holds(held: Floats, sigma: float) -> Floats:
    """The probability that the first class stays first, shape (rows,), where each score moves by itself.

    All leads share what the first class's own score does: given that, they hold or fall independently.
    """
    if sigma == 0:
        return np.asarray((held >= 0).all(axis=1), np.float64)
    stays = _normal(held[:, :, None] / sigma + NODES).prod(axis=1)
    found: Floats = (stays * WEIGHTS).sum(axis=1)
    return found


def _normal(x: Floats) -> Floats:
    """The normal distribution function. Abramowitz and Stegun 7.1.26, good to 1.5e-7."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    found: Floats = 0.5 * (1 + erf)
    return found
