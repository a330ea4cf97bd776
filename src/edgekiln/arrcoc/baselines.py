"""What ARR-COC is compared with: relevance that does not know the question, and pruning after the encoder.

Maps are float32 (rows, columns) in 0..1 from a texture array (13, h, w), as a scorer's are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgekiln.arrcoc.information import DEVIATION, entropy
from edgekiln.arrcoc.reader import Reader

MAGNITUDE = 8
Map = NDArray[np.float32]


def chance(texture: Map, rows: int, columns: int, seed: int) -> Map:
    """Random relevance: pruning at random is surprisingly strong (UniPruneBench), so it is never left out."""
    return np.random.default_rng(seed).random((rows, columns), np.float32)


def edge(texture: Map, rows: int, columns: int) -> Map:
    """Mean strength of the gradient."""
    return _mean(texture[MAGNITUDE], rows, columns)


def deviation(texture: Map, rows: int, columns: int) -> Map:
    """Mean local standard deviation."""
    return _mean(texture[DEVIATION], rows, columns)


def spatial_entropy(texture: Map, rows: int, columns: int) -> Map:
    """Entropy of each cell's histogram of lightness."""
    return entropy(texture, rows, columns)


def origin(texture: Map, rows: int, columns: int) -> Map:
    """The origin's propositional score: the entropy over the channel values of one cell, over ln 13. Almost
    the same for every cell; it is here to be measured, not to be used."""
    cells = np.stack([_mean(plane, rows, columns) for plane in texture])
    share = np.exp(cells - cells.max(0))
    share /= share.sum(0)
    found: Map = -(share * np.log(share)).sum(0) / np.log(np.float32(len(texture)))
    return found


def _mean(plane: Map, rows: int, columns: int) -> Map:
    height, width = plane.shape
    cells = plane.reshape(rows, height // rows, columns, width // columns)
    found: Map = cells.mean((1, 3), dtype=np.float32)
    return found


def received(reader: Reader, tokens: Tensor, positions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """How much attention each of the tokens (B, N, D) gets from the words in the decoder's first layer, over
    all heads and words: (B, N)."""
    first = reader.first
    seen = reader.seen(tokens, positions)
    q, k = first.split(first.query(words)), first.split(first.key(seen))
    weights = (q @ k.transpose(-1, -2) * first.scale).softmax(-1)
    found: Tensor = (weights * mask[:, None, :, None]).sum((1, 2))
    return found


def by_attention(
    reader: Reader, tokens: Tensor, positions: Tensor, words: Tensor, mask: Tensor, keep: int
) -> Tensor:
    """FastV-like (Chen et al. 2024): indices (B, keep) of the tokens (B, N, D) that the words attend to most
    in the decoder's first layer."""
    most = received(reader, tokens, positions, words, mask).sort(dim=1, descending=True, stable=True)
    found: Tensor = most.indices[:, :keep].sort(1).values
    return found


def by_difference(tokens: Tensor, keep: int) -> Tensor:
    """Similarity pruning (as in DART, Wen et al. 2025): indices (B, keep) of tokens (B, N, D) that are least
    like those kept before, from the one of the greatest norm on (farthest point by cosine)."""
    unit = functional.normalize(tokens, dim=-1)
    chosen = [tokens.norm(dim=-1).argmax(1)]
    nearest = torch.full(tokens.shape[:2], -2.0)
    for _ in range(keep - 1):
        last = unit.gather(1, chosen[-1][:, None, None].expand(-1, 1, unit.shape[2]))
        nearest = torch.maximum(nearest, (unit * last).sum(-1)).scatter(1, chosen[-1][:, None], 2.0)
        chosen.append(nearest.argmin(1))
    return torch.stack(chosen, 1).sort(1).values
