"""The propositional scorer: how much there is to know at a place, whatever is asked and without weights.

The origin takes the entropy over the thirteen channel values of one cell, which is nearly the same for every
cell. Spatial information is meant: how unpredictable the brightness within a cell is. ``entropy`` is that by
its definition; ``information`` estimates it from the local deviation, which the texture array holds already,
by the entropy of a Gaussian, log(sigma) + log(2 pi e) / 2, less what the sensor's own noise has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DEVIATION = 12
"""The texture array's channel of the local standard deviation."""
LIGHTNESS = 3
NOISE = 0.01
"""Deviation of lightness that counts as no information: about what rounding and JPEG leave in a plain sky."""
MOST = 0.5
"""The greatest deviation that values in 0..1 can have."""
_SCALE = 1 / np.log1p((MOST / NOISE) ** 2)


def information(texture: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Spatial information in 0..1 of the cells of a grid (rows, columns) over texture (13, h, w).

    ``h`` and ``w`` are multiples of ``rows`` and ``columns``. The variance within a cell is the mean of the
    local variances, so that a cell of one edge and a cell of fine grain are told apart by strength alone.
    """
    cells = _cells(texture[DEVIATION], rows, columns)
    variance = np.einsum("abcd,abcd->ac", cells, cells) / (cells.shape[1] * cells.shape[3])
    found: NDArray[np.float32] = np.float32(_SCALE) * np.log1p(variance * np.float32(1 / NOISE**2))
    return np.minimum(found, np.float32(1))


def entropy(texture: NDArray[np.float32], rows: int, columns: int, bins: int = 16) -> NDArray[np.float32]:
    """Shannon entropy of the histogram of lightness in each cell, as a share of log(bins): the definition
    that ``information`` estimates, and a contender in the benchmark."""
    cells = _cells(texture[LIGHTNESS], rows, columns).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    level = np.clip((cells * bins).astype(np.int64), 0, bins - 1)
    offset = np.arange(len(cells))[:, None] * bins
    counts = np.bincount((level + offset).ravel(), minlength=len(cells) * bins).reshape(-1, bins)
    share = counts / cells.shape[1]
    total = -(share * np.log(np.maximum(share, 1e-12))).sum(1) / np.log(bins)
    found: NDArray[np.float32] = total.reshape(rows, columns).astype(np.float32)
    return found


def _cells(plane: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    height, width = plane.shape
    return plane.reshape(rows, height // rows, columns, width // columns)
