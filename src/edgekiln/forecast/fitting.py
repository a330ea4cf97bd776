"""Non-negative coefficients from a few measurements, held near those of a neighbour.

Errors are relative, because 2 ms off is nothing at 200 ms and everything at 3; their absolute values are
summed and not their squares, because one published figure in twenty is an operator that fell back to the CPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

ROUNDS = 3
FLOOR = 0.05
"""Relative errors below this count as equal: figures are not published more exactly."""


def non_negative(a: Vector, b: Vector, sweeps: int = 1000, tolerance: float = 1e-7) -> Vector:
    """The x >= 0 that minimises |a x - b|: shapes [m, n], [m] to [n]; a has full column rank.

    Coordinate descent on the normal equations (Franc, Hlavac and Navara 2005, sequential coordinate-wise
    algorithm for non-negative least squares): each step solves one coordinate exactly.
    """
    gram, x = a.T @ a, np.zeros(a.shape[1])
    slope = -(a.T @ b)
    for _ in range(sweeps):
        largest = 0.0
        for k in range(len(x)):
            if gram[k, k] <= 0:
                continue
            moved = max(0.0, x[k] - slope[k] / gram[k, k])
            step = moved - x[k]
            if step:
                slope += step * gram[:, k]
                x[k] = moved
                largest = max(largest, abs(step) * np.sqrt(gram[k, k]))
        if largest < tolerance:
            break
    return x


def near(x: Vector, measured: Vector, prior: Vector, strength: float) -> Vector:
    """Coefficients for amounts ``x`` [models, terms] and latencies ``measured`` [models], in ms.

    ``prior`` [terms] pulls with ``strength``: each term's share of a typical latency is held near the share
    that the prior gives it, as ``strength`` measurements that agree with the prior would. Weighted anew
    each round, so that absolute relative errors are minimised (iteratively reweighted least squares).
    """
    typical = float(np.exp(np.mean(np.log(measured))))
    scale = np.maximum(x.mean(axis=0), 1e-9)
    shares = x / measured[:, None] * (typical / scale)
    pull = np.sqrt(strength) * np.eye(x.shape[1])
    wanted = np.sqrt(strength) * prior * scale / typical
    weight = np.ones(len(measured))
    found = np.zeros(x.shape[1])
    for _ in range(ROUNDS):
        rows = np.vstack([shares * weight[:, None], pull])
        found = non_negative(rows, np.concatenate([weight, wanted]))
        weight = 1 / np.sqrt(np.maximum(np.abs(shares @ found - 1), FLOOR))
    moved: Vector = found * typical / scale
    return moved


def anchored(x: Vector, measured: Vector, others: Vector) -> Vector:
    """Coefficients of a device that only ``measured`` [anchors] is known of, from ``others`` [devices,
    terms].

    The form is that of the device whose predictions are off by the most even factor (of one anchor: the
    geometric middle of all), times the median factor. Where terms are few and anchors three or more, the
    anchors then move each term.
    """
    middle = np.exp(np.log(np.maximum(others, 1e-12)).mean(axis=0))
    forms = others if len(measured) > 1 else middle[None]
    off = np.log(measured[:, None] / np.maximum(x @ forms.T, 1e-12))
    typical = np.median(off, axis=0)
    best = int(np.argmin(np.abs(off - typical).mean(axis=0)))
    found: Vector = forms[best] * float(np.exp(typical[best]))
    if len(measured) >= 3 and x.shape[1] <= FEW_TERMS:
        return near(x, measured, found, STRENGTH)
    return found


FEW_TERMS, STRENGTH = 6, 1.0
"""With more terms than this, a few anchors would put their errors into terms that they hardly have."""
