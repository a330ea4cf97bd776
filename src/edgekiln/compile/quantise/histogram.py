"""What is seen of one tensor: exact extremes and histograms of fixed size, whatever the number of samples.

The linear histogram spans [-R, R) with R a power of two times its first value: when a value falls outside,
R doubles and pairs of bins merge, so no second pass is needed. A second histogram counts by the leading bits
of the numbers themselves (16 bins in each power of two): one value of 1e6 makes the linear bins too wide for
all others to be told apart, but not these.

Each takes at most ``POINTS`` values of a tensor per sample, at a stride that shares no factor with common
channel counts; extremes always see every value. Nothing depends on the order of the samples, so observations
of parts merge to the observation of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 8192
POINTS = 32768
MOST_CHANNELS = 65536

_SHIFT = 19  # of a float32's bits: sign, exponent and four bits of the fraction stay
LOG_BINS = 1 << (32 - _SHIFT)


@dataclass
class Channels:
    """Per-channel figures of a tensor, each of shape (C,), over ``n`` values a channel.

    ``total`` and ``squares`` are the sums of the values and of their squares: unlike the extremes they are
    rounded sums, equal to those of another order of samples up to rounding.
    """

    n: int
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.n

    @property
    def rms(self) -> NDArray[np.float64]:
        """The root of the mean square."""
        found: NDArray[np.float64] = np.sqrt(self.squares / self.n)
        return found

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest magnitude."""
        found: NDArray[np.float32] = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        return found

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Where a channel held one value throughout."""
        found: NDArray[np.bool_] = self.lowest == self.highest
        return found

    def merge(self, other: Channels) -> Channels:
        return Channels(
            self.n + other.n,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.total + other.total,
            self.squares + other.squares,
        )


def _channels(values: NDArray[np.float32], axis: int) -> Channels:
    """The channels of one sample's values along ``axis`` (1: N,C,...; -1: the last)."""
    count = values.shape[axis]
    table = values.reshape((values.shape[0], count, -1) if axis == 1 else (-1, count))
    along, form = ((0, 2), "ncs,ncs->c") if axis == 1 else ((0,), "sc,sc->c")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by its extremes
        inner = table.sum(axis=2) if axis == 1 else table
        total = inner.sum(axis=0, dtype=np.float64)
        squares = np.einsum(form, table, table).astype(np.float64)
    return Channels(values.size // count, table.min(axis=along), table.max(axis=along), total, squares)


@dataclass
class Observation:
    """What was seen of one tensor. ``reach`` is R of the linear histogram; 0 until a non-zero value came.

    ``log_counts`` is the histogram by leading bits, shape (LOG_BINS,). ``halves`` holds lowest and highest of
    the even and of the odd samples apart, shape (2, 2): how far they differ tells how far the extremes can
    be trusted. ``axis`` is where channels lie (1 or -1; None: not looked at); ``channels`` is None until a
    value came, and for good where the axis had two lengths or more than MOST_CHANNELS.
    """

    lowest: float = math.inf
    highest: float = -math.inf
    reach: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    log_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LOG_BINS, np.int64))
    halves: NDArray[np.float64] = field(default_factory=lambda: np.array([[math.inf, -math.inf]] * 2))
    axis: int | None = None
    channels: Channels | None = None

    def add(self, values: NDArray[Any], half: int = 0) -> None:
        """Take in one sample's values (any shape, float32). Raises ValueError on NaN or infinity."""
        values = np.ascontiguousarray(values, np.float32)
        if values.size == 0:
            return
        found = None
        if self.axis is not None and values.ndim > 1 and values.shape[self.axis] <= MOST_CHANNELS:
            found = _channels(values, self.axis)
            low, high = float(found.lowest.min()), float(found.highest.max())
        else:
            low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinity")
        self._take_channels(found)
        self._stretch(low, high, half)
        self._widen(max(abs(low), abs(high)))
        flat = values.reshape(-1)
        if flat.size > POINTS:
            flat = np.ascontiguousarray(flat[:: _coprime_stride(flat.size // POINTS)])
        self.counts += self._linear(flat)
        self.log_counts += np.bincount((flat.view(np.uint32) >> _SHIFT).astype(np.intp), minlength=LOG_BINS)

    def _stretch(self, low: float, high: float, half: int) -> None:
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        ends = self.halves[half % 2]
        ends[0], ends[1] = min(ends[0], low), max(ends[1], high)

    def _take_channels(self, found: Channels | None) -> None:
        seen_before = math.isfinite(self.lowest)
        if found is None or (seen_before and self.channels is None):
            self.channels = None
        elif self.channels is None:
            self.channels = found
        elif self.channels.lowest.shape == found.lowest.shape:
            self.channels = self.channels.merge(found)
        else:
            self.channels = None

    def _linear(self, flat: NDArray[np.float32]) -> NDArray[np.intp]:
        """Counts of ``flat``, all within the reach, by the linear bins."""
        if self.reach == 0.0:
            index = np.full(1, BINS // 2)
            return np.bincount(index, minlength=BINS) * flat.size
        # A product with 2^k is exact for k >= 0; else the smallest numbers may vanish, sign and all.
        kind = np.float32 if 2.0**-100 < self.reach <= BINS / 2 else np.float64
        scaled = flat * kind(BINS / 2 / self.reach)
        index = np.floor(scaled, out=scaled).astype(np.intp)
        index += BINS // 2
        return np.bincount(index, minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest == 0.0 or largest < self.reach:
            return
        if self.reach == 0.0:
            # All before were zeros: they stay in the bin that begins at zero, whatever its width.
            self.reach = 2.0 ** math.frexp(largest)[1]
            return
        while largest >= self.reach:
            self.reach *= 2
            merged = np.zeros(BINS, np.int64)
            merged[BINS // 4 : 3 * BINS // 4] = self.counts.reshape(-1, 2).sum(1)
            self.counts = merged

    def merge(self, other: Observation) -> Observation:
        """The observation of both parts' samples: exactly what one pass over all of them gives.

        Sums per channel are equal up to rounding. The parts must have counted their halves alike.
        """
        parts = [self._copy(), other._copy()]
        reach = max(p.reach for p in parts)
        for part in parts:
            if reach > 0.0:
                # Just below the reach, so that both end at it.
                part._widen(reach / 2 if part.reach < reach else 0.0)
        one, two = parts
        empty = [not math.isfinite(p.lowest) for p in parts]
        channels = two.channels if empty[0] else one.channels
        if not any(empty):
            alike = (
                one.channels is not None
                and two.channels is not None
                and one.channels.lowest.shape == two.channels.lowest.shape
            )
            channels = one.channels.merge(two.channels) if alike and one.channels and two.channels else None
        return Observation(
            lowest=min(one.lowest, two.lowest),
            highest=max(one.highest, two.highest),
            reach=reach,
            counts=one.counts + two.counts,
            log_counts=one.log_counts + two.log_counts,
            halves=np.stack(
                [
                    np.minimum(one.halves[:, 0], two.halves[:, 0]),
                    np.maximum(one.halves[:, 1], two.halves[:, 1]),
                ],
                axis=1,
            ),
            axis=one.axis,
            channels=channels,
        )

    def _copy(self) -> Observation:
        return Observation(
            self.lowest,
            self.highest,
            self.reach,
            self.counts.copy(),
            self.log_counts,
            self.halves,
            self.axis,
            self.channels,
        )

    def centres(self) -> NDArray[np.float64]:
        """Centres of the linear bins, shape (BINS,); the outermost seen values bound them."""
        edges = self._linear_edges()
        return np.clip((edges[:-1] + edges[1:]) / 2, self.lowest, self.highest)

    def _linear_edges(self) -> NDArray[np.float64]:
        steps = np.arange(BINS + 1, dtype=np.float64) - BINS / 2
        return steps * ((self.reach or 1.0) * 2 / BINS)

    def core(self, share: float = 0.99) -> float:
        """The magnitude within which at least ``share`` of the values lie, to a sixteenth."""
        half = LOG_BINS // 2
        folded = np.cumsum(self.log_counts[:half] + self.log_counts[half:])
        if folded[-1] == 0:
            return 0.0
        last = int(np.searchsorted(folded, share * folded[-1]))
        return float(min(_magnitudes()[last + 1], max(-self.lowest, self.highest)))

    def beyond(self, magnitude: float) -> float:
        """The share of the counted values at ``magnitude`` or above, where that is an edge of a bin."""
        half = LOG_BINS // 2
        folded = self.log_counts[:half] + self.log_counts[half:]
        first = int(np.searchsorted(_magnitudes(), magnitude))
        return float(folded[first:].sum() / max(folded.sum(), 1))

    def resolved(self) -> bool:
        """Whether the linear bins tell the bulk of the values apart: 99 % of them span 32 bins or more."""
        return self.core() >= 32 * 2 * self.reach / BINS

    def grid(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Bin edges, ascending, shape (n + 1,), and counts, shape (n,): the linear histogram where it
        resolves the bulk, else the one by leading bits.
        """
        if self.reach == 0.0 or self.resolved():
            return self._linear_edges(), self.counts
        edges, half = _magnitudes(), LOG_BINS // 2
        both = np.concatenate([-edges[:0:-1], edges])
        return both, np.concatenate([self.log_counts[half:][::-1], self.log_counts[:half]])


def _magnitudes() -> NDArray[np.float64]:
    """Edges of the bins by leading bits, for one sign, shape (LOG_BINS / 2 + 1,), from 0 upwards.

    Those of infinity and NaN hold nothing; they end at twice the largest number.
    """
    bits = (np.arange(LOG_BINS // 2 + 1, dtype=np.uint64) << _SHIFT).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        edges = bits.view(np.float32).astype(np.float64)
    first = int(np.argmax(~np.isfinite(edges)))
    edges[first:] = 2.0**128
    return edges


def _coprime_stride(stride: int) -> int:
    """The next odd stride that shares no factor with channel counts (multiples of 2, 3, 5, 7)."""
    while stride > 1 and math.gcd(stride, 210) != 1:
        stride += 1
    return max(stride, 1)
