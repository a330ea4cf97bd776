"""Rules from what was seen of a tensor to the range that it is quantised on.

Every rule gives a range per tensor that holds zero, symmetric (-h, h) or with two free ends, and reads the
same observation, so one pass over the data serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.histogram import BINS, Observation
from edgekiln.records import Scalar

Ranges: TypeAlias = dict[str, tuple[float, float]]
RULES = ("minmax", "percentile", "mse", "entropy")

_CANDIDATES = 512
_ENTROPY_CORE = 0.999
_LEAST_INSIDE = 0.9


def minmax_range(seen: Observation, symmetric: bool) -> tuple[float, float]:
    """The whole range seen, widened to hold zero."""
    low, high = min(seen.lowest, 0.0), max(seen.highest, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def percentile_range(seen: Observation, symmetric: bool, percentile: float) -> tuple[float, float]:
    """The range that holds ``percentile`` % of the values, half of the rest cut on either side.

    Symmetric: the magnitude that holds ``percentile`` %.
    """
    edges, counts = seen.grid()
    half = counts.size // 2
    widest = minmax_range(seen, symmetric)
    if symmetric:
        folded = np.cumsum(counts[half:] + counts[:half][::-1])
        last = int(np.searchsorted(folded, percentile / 100 * folded[-1]))
        reach = min(float(edges[half + min(last, half - 1) + 1]), widest[1])
        return -reach, reach
    tail = (100 - percentile) / 200
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    # The outer edges of the bins, so that what they hold is inside.
    first = int(np.searchsorted(below, tail * below[-1], side="right"))
    last = counts.size - 1 - int(np.searchsorted(above, tail * above[-1], side="right"))
    low, high = float(edges[first]), float(edges[last + 1])
    return min(max(low, seen.lowest), 0.0), max(min(high, seen.highest), 0.0)


# ---------------------------------------------------------------- least squared error


def mse_range(seen: Observation, symmetric: bool, bits: int = 8) -> tuple[float, float]:
    """The range whose uniform quantisation to ``bits`` has the least squared error on the histogram.

    Grid search over the share of each end that is kept, upper end first, then the lower (OMSE of
    Choukroun et al. 2019, with both ends free).
    """
    edges, counts = seen.grid()
    used = np.flatnonzero(counts)
    if used.size == 0:
        return minmax_range(seen, symmetric)
    centres = np.clip((edges[used] + edges[used + 1]) / 2, seen.lowest, seen.highest)
    weights = counts[used].astype(np.float64)
    low, high = minmax_range(seen, symmetric)
    shares: list[float] = np.linspace(1.0, 0.2, 65).tolist()
    if not seen.resolved():
        shares += np.geomspace(0.2, seen.core() / max(-low, high), 65)[1:].tolist()

    def error(ends: tuple[float, float]) -> float:
        return _error(centres, weights, *ends, bits, symmetric)

    if symmetric:
        return min(((-high * s, high * s) for s in shares), key=error)
    for _ in range(2):
        low, high = min(((low, high * s) for s in shares), key=error)
        low, high = min(((low * s, high) for s in shares), key=error)
    return low, high


def _error(
    centres: NDArray[np.float64],
    weights: NDArray[np.float64],
    low: float,
    high: float,
    bits: int,
    symmetric: bool,
) -> float:
    """Weighted squared error of quantising ``centres`` onto [low, high]."""
    steps = 2**bits - (2 if symmetric else 1)
    scale = (high - low) / steps
    if scale <= 0:
        return float((weights * centres**2).sum())
    zero = np.round(low / scale)
    levels = np.clip(np.round(centres / scale), zero, zero + steps)
    return float((weights * (centres - levels * scale) ** 2).sum())


# ---------------------------------------------------------------- least loss of information


def entropy_range(seen: Observation, symmetric: bool, bits: int = 8) -> tuple[float, float]:
    """The range whose clipped histogram loses least information when it is told by 2^bits levels.

    Migacz 2017, "8-bit inference with TensorRT": for each candidate end the reference P holds the bins
    inside, what lies outside added to the outermost; Q gives each level's mass evenly to its non-empty bins;
    the candidate of least KL(P, Q) wins. Symmetric: magnitudes in 2^(bits-1) levels. With two ends: the
    upper first, then the lower. At least 2,048 bins lie below the largest magnitude. Where there are as many
    levels as bins no range loses anything, and the whole one is kept.
    """
    whole = minmax_range(seen, symmetric)
    if seen.reach == 0.0 or 2**bits >= BINS:
        return whole
    reach, counts = _even_bins(seen)
    half, width = BINS // 2, reach * 2 / BINS
    # Exact zeros lose nothing, and would else stand for the whole lowest level: as in NVIDIA's own
    # calibrators their bin counts like its neighbours.
    counts[half] = min(counts[half], max(counts[half - 1], counts[half + 1]))
    if symmetric:
        folded = counts[half:] + counts[:half][::-1]
        end = _best_end(folded, 0, 2 ** (bits - 1))
        high = whole[1] if end == _last(folded) and reach == seen.reach else min(end * width, whole[1])
        return -high, high
    top, bottom = _last(counts), counts.size - _last(counts[::-1])
    first, last = min(bottom, half), max(top, half)
    for _ in range(2):
        last = max(_best_end(counts, first, 2**bits, half), half)
        first = counts.size - max(_best_end(counts[::-1], counts.size - last, 2**bits, half), half)
    # An end that cuts nothing off is what was seen, not the edge of its bin.
    kept_all = reach == seen.reach
    low = whole[0] if kept_all and first <= bottom else max((first - half) * width, whole[0])
    high = whole[1] if kept_all and last >= top else min((last - half) * width, whole[1])
    return low, high


def _last(counts: NDArray[np.float64]) -> int:
    """One past the last bin that holds anything."""
    used = np.flatnonzero(counts)
    return int(used[-1]) + 1 if used.size else 0


def _even_bins(seen: Observation) -> tuple[float, NDArray[np.float64]]:
    """The reach and counts of linear bins that resolve the bulk, shape (BINS,).

    Where outliers have made the linear bins too wide: the bins by leading bits spread over narrower ones,
    with what lies beyond in the outermost.
    """
    if seen.resolved():
        return seen.reach, seen.counts.astype(np.float64)
    reach = 2.0 ** (math.frexp(seen.core(_ENTROPY_CORE))[1])
    edges, counts = seen.grid()
    total = np.concatenate([[0.0], np.cumsum(counts)])
    at = (np.arange(1, BINS) - BINS / 2) * (reach * 2 / BINS)
    inner = np.interp(at, edges, total)
    return reach, np.diff(np.concatenate([[0.0], inner, [total[-1]]]))


def _best_end(counts: NDArray[np.float64], first: int, levels: int, least: int = 0) -> int:
    """One past the last bin of the range from ``first`` that loses least information in ``levels`` levels.

    Candidates end at non-empty bins, from ``levels`` bins on and not before ``least``, with nine tenths of
    the values inside (else of a few distinct values a single one would tell all); at most _CANDIDATES.
    The sums over levels are differences of cumulative sums, so a candidate costs ``levels`` steps.
    """
    used = np.flatnonzero(counts) + 1
    inside = counts.copy()
    inside[:first] = 0
    mass = np.concatenate([[0.0], np.cumsum(inside)])
    ends = used[(used >= max(first + levels, least)) & (mass[used] >= _LEAST_INSIDE * mass[-1])]
    if ends.size == 0:
        return _last(counts)
    ends = ends[np.unique(np.linspace(0, ends.size - 1, _CANDIDATES).round().astype(int))]
    logs = inside * np.log(np.where(inside > 0, inside, 1.0))
    filled = np.concatenate([[0], np.cumsum(inside > 0)])
    plogp = np.concatenate([[0.0], np.cumsum(logs)])
    edges = first + np.arange(levels + 1)[None, :] * (ends - first)[:, None] // levels
    held, bins = np.diff(mass[edges], axis=1), np.diff(filled[edges], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.log(np.where(held > 0, held / bins, 1.0))
    total, inner = counts.sum(), mass[ends] - mass[first]
    above, below = counts.sum() - mass[ends] - counts[:first].sum(), counts[:first].sum()
    # The outermost bins of P take what lies outside: upper at the last bin (never empty), lower at the first.
    upper, lower = inside[ends - 1], inside[first]
    cross = (held * each).sum(axis=1) + above * each[:, -1] + below * each[:, 0]
    own = plogp[ends] - plogp[first]
    own += _plogp(upper + above) - _plogp(upper) + _plogp(lower + below) - _plogp(lower)
    # KL of P = p / total against Q = q / inner.
    with np.errstate(divide="ignore"):
        loss = (own - cross) / total - np.log(total) + np.log(inner)
    loss[(below > 0) & (held[:, 0] == 0)] = np.inf  # nothing of Q is there to stand for it
    return int(ends[int(np.argmin(loss))])


def _plogp(mass: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    safe = np.where(np.asarray(mass) > 0, mass, 1.0)
    found: NDArray[np.float64] = np.asarray(mass) * np.log(safe)
    return found


# ---------------------------------------------------------------- by name


def range_of(
    seen: Observation, rule: str, symmetric: bool, params: Mapping[str, Scalar] | None = None
) -> tuple[float, float]:
    """One tensor's range. Raises ValueError for a rule that is none of RULES.

    ``params``: ``percentile`` for the rule of that name; ``activation_bits`` (8 unless said) for those that
    weigh clipping against rounding, mse and entropy.
    """
    given = params or {}
    bits = int(given.get("activation_bits", 8))
    if rule == "minmax":
        return minmax_range(seen, symmetric)
    if rule == "percentile":
        return percentile_range(seen, symmetric, float(given["percentile"]))
    if rule == "mse":
        return mse_range(seen, symmetric, bits)
    if rule == "entropy":
        return entropy_range(seen, symmetric, bits)
    raise ValueError(f"no range rule '{rule}'")


def ranges(
    seen: Mapping[str, Observation], rule: str, symmetric: bool, params: Mapping[str, Scalar] | None = None
) -> Ranges:
    """The range of every tensor by ``rule``; see ``range_of``."""
    if rule not in RULES:
        raise ValueError(f"no range rule '{rule}'")
    return {name: range_of(o, rule, symmetric, params) for name, o in seen.items()}
