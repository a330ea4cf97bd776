"""Which places of a picture a question is about, without any training: two maps and their mean.

The propositional map asks how much there is to see in a place; it knows nothing of the question. The
participatory one asks Qwen3-VL itself: its encoder looks at the coarsest level only, which is cheap, and each
coarse token is compared with the question's words in the language model's own space.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.qwen.patches import Frame
from edgekiln.arrcoc.qwen.reduce import Visual

Map: TypeAlias = NDArray[np.float32]

BINS = 16
SHARPEST = 64.0
"""Mean difference between neighbouring pixels of 0..255 in a cell at which its gradient counts as 1."""


def propositional(frame: Frame, rows: int, cols: int) -> Map:
    """Spatial information of each cell, float32 (rows, cols) in 0..1; ``frame`` is uint8 (H, W, 3) with H a
    multiple of ``rows`` and W of ``cols``.

    The mean of two halves: the entropy of the cell's grey values in 16 bins over its most (4 bits), and the
    mean gradient up to SHARPEST. Both ranges are fixed: no cell's value depends on another cell.
    """
    grey = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    tall, wide = grey.shape[0] // rows, grey.shape[1] // cols
    row, col = np.arange(grey.shape[0]) // tall, np.arange(grey.shape[1]) // wide
    cell = row[:, None] * cols + col[None]
    bins = np.minimum(grey * (BINS / 256), BINS - 1).astype(np.int64)
    counts = np.bincount((cell * BINS + bins).ravel(), minlength=rows * cols * BINS)
    share = counts.reshape(rows * cols, BINS) / (tall * wide)
    bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    steep = np.abs(np.gradient(grey, axis=0)) if grey.shape[0] > 1 else np.zeros_like(grey)
    if grey.shape[1] > 1:
        steep = steep + np.abs(np.gradient(grey, axis=1))
    energy = np.bincount(cell.ravel(), weights=steep.ravel(), minlength=rows * cols) / (tall * wide)
    found = (bits / np.log2(BINS) + np.minimum(energy / SHARPEST, 1)) / 2
    clipped: Map = np.clip(found, 0, 1).astype(np.float32).reshape(rows, cols)
    return clipped


def participatory(model: Any, visual: Visual, question: list[int], rows: int, cols: int) -> Map:
    """Likeness of each visual token to the nearest word of the question, float32 (rows, cols) in 0..1.

    ``visual`` holds rows * cols tokens of one level, row by row; ``question`` the ids of the question's
    tokens. The cosine between a token and a word's input embedding, both less the mean of their kind: visual
    tokens have much in common that says nothing of the place. 0.5 is no likeness. Untrained: Qwen3-VL learns
    nothing that makes its visual tokens lie near the words for what they show, so this is a guess to be
    measured.
    """
    import torch

    with torch.inference_mode():
        words = model.get_input_embeddings()(torch.tensor(question, device=model.device)).float()
        words = words - words.mean(dim=0) if len(question) > 1 else words
        seen = visual.tokens.float()
        seen = seen - seen.mean(dim=0)
        cosine = torch.nn.functional.normalize(seen, dim=-1) @ torch.nn.functional.normalize(words, dim=-1).T
        best = (1 + cosine.max(dim=1).values) / 2
    found: Map = best.clamp(0, 1).cpu().numpy().astype(np.float32).reshape(rows, cols)
    return found


def spread(coarse: Map, rows: int, cols: int) -> Map:
    """A coarser level's map on the finest level of ``rows`` x ``cols``: each cell has its parent's value."""
    tall, wide = rows // coarse.shape[0], cols // coarse.shape[1]
    return np.repeat(np.repeat(coarse, tall, axis=0), wide, axis=1)


def mean_of(maps: list[Map]) -> Map:
    """The plain mean. Weights that depend on the question have to be learned, on answers that are not
    here."""
    found: Map = np.mean(maps, axis=0, dtype=np.float32)
    return found
