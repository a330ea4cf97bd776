"""Readers made for one uniform density each: what a uniform grid can reach with a reader of its own.

``accuracy.py`` compares all contenders through one reader, which has seen windows mostly. Here that reader is
trained on at one density alone, encoder and all, with the learned relevance told, and asked the same
held-out scenes before and after. The reader of 49 and 16 tokens a window stays as it is beside them.

    python benchmarks/arrcoc/own_readers.py CHECKPOINT ... [--sides 9 14 28] [--scenes 300] [--kinds colour]
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.arrcoc import training
from edgekiln.arrcoc.checkpoint import load
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scenes.questions import KINDS
from edgekiln.arrcoc.scorers import Scorer

SCENES_SEEN = {9: 2400, 14: 2400, 28: 800}
"""Of the training, by the side of the grid: fewer at 28, which has four times the pixels of 14."""
FRESH = 100_000
"""The first of those scenes: none that the checkpoint has seen."""
RATE, BATCH = 1e-3, 8
OURS = 2
"""Windows of the row that is compared with: 81 tokens."""


def relevance(scorer: Scorer, batch: training.Batch) -> Tensor:
    """The learned relevance (B * Q, 28, 28) of each question of a batch."""
    ids, mask = batch["ids"], batch["mask"]
    count = ids.shape[1]
    with torch.no_grad():
        texture, information = (batch[n].repeat_interleave(count, 0) for n in ("texture", "information"))
        found: Tensor = scorer(texture, information, ids.flatten(0, 1), mask.flatten(0, 1))[0]
    return found


def own(scorer: Scorer, reader: Reader, side: int, kinds: tuple[str, ...], seed: int, share: float) -> Reader:
    """A copy of ``reader`` that was trained on at ``side`` x ``side`` tokens."""
    mine = copy.deepcopy(reader)
    course = training.Course(kinds=kinds, workers=1)
    scenes = int(SCENES_SEEN[side] * share)
    of = training.Scenes("train", seed, scenes, course, start=FRESH)

    def loss(batch: training.Batch) -> Tensor:
        logits, named = training.answer(mine, batch, relevance(scorer, batch), None, side)
        return functional.cross_entropy(logits, batch["answer"].flatten()) + named

    def tell(line: str) -> None:
        print(f"  {line}", flush=True)

    given = training.batches(of, BATCH, course.workers)
    training.descend(f"{side}x{side}", [mine], loss, given, scenes // BATCH, RATE, tell)
    return mine.eval()


@torch.no_grad()
def right(
    scorer: Scorer, reader: Reader, kind: str, scenes: int, count: int | None, side: int | None
) -> float:
    """Share of the held-out questions of a kind that are answered right."""
    of = training.Scenes("test", 0, scenes, training.Course(kinds=(kind,), questions=1))
    hits = 0
    for batch in training.batches(of, 25, workers=0):
        logits, _ = training.answer(reader, batch, relevance(scorer, batch), count, side)
        hits += int((logits.argmax(1) == batch["answer"].flatten()).sum())
    return hits / (scenes // 25 * 25)


def main() -> None:
    """Prints a table for each kind of question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--sides", nargs="+", type=int, default=[9, 14, 28], choices=sorted(SCENES_SEEN))
    parser.add_argument("--scenes", type=int, default=300, help="of each kind; a multiple of 25")
    parser.add_argument("--kinds", nargs="+", default=["colour"], choices=KINDS)
    parser.add_argument("--share", type=float, default=1.0, help="of the scenes that are trained on")
    given = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    began = time.monotonic()
    for path in given.checkpoints:
        scorer, reader, about = load(path)
        rows: list[tuple[str, Reader, int | None, int | None]] = [("ours, 81 tokens", reader, OURS, None)]
        for side in given.sides:
            mine = own(scorer, reader, side, tuple(given.kinds), about.seed, given.share)
            rows.append((f"uniform {side * side}, the shared reader", reader, None, side))
            rows.append((f"uniform {side * side}, its own reader", mine, None, side))
        for kind in given.kinds:
            for name, which, count, at in rows:
                share = right(scorer, which, kind, given.scenes, count, at)
                found.setdefault((kind, name), []).append(share)
    print(
        f"\nMeasured: {given.scenes} held-out scenes, {len(given.checkpoints)} checkpoints, "
        f"{time.monotonic() - began:.0f} s\n"
    )
    print("| questions by | contender | right, mean (range) |\n| --- | --- | --- |")
    for (kind, name), values in found.items():
        print(f"| {kind} | {name} | {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |")


if __name__ == "__main__":
    main()
