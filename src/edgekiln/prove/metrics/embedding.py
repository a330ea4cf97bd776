"""Embeddings: is the nearest neighbour still the same, and still of the right class?

Neighbours are by cosine among the samples of the same set and model, a sample itself left out. With
classes the score is the share of samples whose neighbour is of their class (retrieval top-1; recall at 1 in
Musgrave et al., ECCV 2020); without, the share whose neighbour is the float model's. The cosine between the
artifact's and the float model's vector of each sample is reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.job import MetricOrder
from edgekiln.prove.metrics.classification import Hits
from edgekiln.prove.metrics.outputs import chosen
from edgekiln.prove.metrics.score import Labelled
from edgekiln.records import Dataset, Model, Task

BLOCK = 512


class Embedding:
    task: Task = "embedding"
    title = "Retrieval top-1"
    likeness = "share of samples with the float model's nearest neighbour"
    lower_is_better = False

    def __init__(self, order: MetricOrder) -> None:
        self._order = order

    def decode(self, outputs: Arrays, inputs: Arrays) -> NDArray[np.float32]:
        """(D,) of length 1, from (1, D), (1, D, 1, 1) or, with ``pool``, (1, T, D)."""
        values = np.asarray(chosen(outputs, self._order.outputs)[0], np.float64)
        if self._order.pool != "none" and values.ndim == 3:
            values = values[0, 0] if self._order.pool == "first" else self._mean(values[0], inputs)
        flat = values.reshape(-1)
        length = float(np.linalg.norm(flat))
        return (flat / length if length > 0 else flat).astype(np.float32)

    def _mean(self, tokens: NDArray[np.float64], inputs: Arrays) -> NDArray[np.float64]:
        """Over the tokens that an input called ``attention_mask`` leaves, where there is one."""
        mask = np.asarray(inputs.get("attention_mask", np.ones(len(tokens)))).reshape(-1)
        found: NDArray[np.float64] = (
            tokens[mask[: len(tokens)] > 0].mean(axis=0) if mask.any() else tokens.mean(axis=0)
        )
        return found

    def truth(self, decoded: NDArray[np.float32]) -> NDArray[np.float32]:
        return decoded

    def row(self, decoded: NDArray[np.float32], truth: Any) -> tuple[NDArray[np.float32], Any]:
        return decoded, truth

    def scores(self, rows: Sequence[Any]) -> Hits:
        """A set of fewer than two samples, or of classes with one sample each, has nothing to score."""
        vectors, truths = np.stack([r[0] for r in rows]), [r[1] for r in rows]
        if len(rows) < 2:
            return Hits(np.zeros((0, 1), bool), ())
        near = neighbours(vectors)
        if isinstance(truths[0], np.ndarray):
            wanted = np.stack(truths)
            same = near == neighbours(wanted)
            found = Hits(same[:, None], ("neighbour_agreement",))
            cosines = np.einsum("nd,nd->n", vectors, wanted).clip(-1, 1)
            found.figures |= {
                "embedding_cosine_mean": float(cosines.mean()),
                "embedding_cosine_min": float(cosines.min()),
            }
            return found
        classes = np.asarray(truths)
        if len(set(truths)) == len(truths):
            return Hits(np.zeros((0, 1), bool), ())
        return Hits((classes[near] == classes)[:, None], ("retrieval_top1",))

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        """The classes that ``data.scan`` read from folders or a table."""
        truths = tuple(s.label for s in dataset.samples)
        if len(set(truths)) == len(truths):
            why = "no two samples are of one class"
            raise BadInput("reading the classes of", dataset.root, why, "Give two or more of each class")
        return Labelled(truths=truths)


def neighbours(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n,) index of the most similar other vector, the first of equals; blocks bound the memory."""
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK].astype(np.float64) @ vectors.T.astype(np.float64)
        own = np.arange(len(block))
        block[own, start + own] = -np.inf
        # Rounded, so that equal samples stay equal whatever block they are in.
        found[start : start + BLOCK] = np.argmax(block.round(9), axis=1)
    return found


def make(order: MetricOrder, model: Model) -> Embedding:
    return Embedding(order)
