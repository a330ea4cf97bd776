"""Accuracy against tokens: ARR-COC, uniform densities, relevance that is blind, pruning, and an oracle.

All contenders see the same held-out scenes (photographs, fonts and phrasings of the test split) through the
same reader, which is told the learned relevance in every case: only the tokens that it gets differ.

    python benchmarks/arrcoc/accuracy.py CHECKPOINT ... [--scenes 1000] [--kinds colour] [--json PATH]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from edgekiln import files
from edgekiln.arrcoc import baselines, training, views
from edgekiln.arrcoc.checkpoint import load
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scenes.questions import KINDS
from edgekiln.arrcoc.scorers import Scorer, mixed

WINDOWS = {65: 1, 81: 2, 113: 4}
SIDES = (7, 9, 14, 28)
Maps = dict[str, Tensor]
Shares = dict[tuple[str, int], list[float]]


@torch.no_grad()
def relevance_maps(scorer: Scorer, batch: training.Batch, number: int) -> Maps:
    """(B, 28, 28) of each contender that allocates by a map."""
    ids, mask = batch["ids"].flatten(0, 1), batch["mask"].flatten(0, 1)
    ours, maps, weights = scorer(batch["texture"], batch["information"], ids, mask)
    textures = batch["texture"].numpy()

    def blind(score: Callable[..., np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([score(t, 28, 28) for t in textures]))

    found = {
        "ours": ours,
        "plain mean of the three (the guide's)": maps.mean(1),
        "participatory alone": maps[:, 2],
        "perspectival alone": maps[:, 1],
        "propositional alone": maps[:, 0],
    }
    for index, name in enumerate(("propositional", "perspectival", "participatory")):
        kept = weights.clone()
        kept[:, index] = 0
        found[f"ours without {name}"] = mixed(maps, kept / kept.sum(1, keepdim=True))
    chance = [baselines.chance(t, 28, 28, number * 1000 + i) for i, t in enumerate(textures)]
    return found | {
        "random": torch.from_numpy(np.stack(chance)),
        "edge": blind(baselines.edge),
        "standard deviation": blind(baselines.deviation),
        "entropy": blind(baselines.spatial_entropy),
        "origin's scorer": blind(baselines.origin),
        "oracle": batch["target"].flatten(0, 1),
    }


@torch.no_grad()
def rows(
    scorer: Scorer, reader: Reader, batch: training.Batch, number: int
) -> Iterator[tuple[str, int, Tensor]]:
    """(contender, tokens, logits (B, 10)) of everything that is compared."""
    maps = relevance_maps(scorer, batch, number)
    told = maps["ours"]
    pictures = batch["picture"].float().div(255)
    full = views.with_relevance(pictures, told)
    words = batch["ids"].flatten(0, 1), batch["mask"].flatten(0, 1)

    def read(tokens: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = reader(tokens, positions, torch.ones(tokens.shape[:2]), told, *words)
        return found

    dense: tuple[Tensor, Tensor] | None = None
    coarse: tuple[Tensor, Tensor] | None = None
    for side in SIDES:
        level = training.LEVEL_OF.get(side, -1.0)
        pair = reader.encoder(views.uniform(full, side)), views.uniform_positions(told, side, level)
        coarse, dense = (pair if side == 7 else coarse), pair
        yield "uniform", side * side, read(*pair)
    assert dense is not None
    assert coarse is not None
    numbers = torch.arange(SIDES[-1] ** 2).reshape(1, SIDES[-1], SIDES[-1])
    for total, count in WINDOWS.items():
        for name, relevance in maps.items():
            cells = views.cells_by_relevance(relevance, count)
            # A token is the same in a window as with all of its level, and those are encoded already.
            fine, where = _only(dense, views.in_windows(numbers.expand(len(full), -1, -1), cells))
            yield name, total, read(torch.cat([coarse[0], fine], 1), torch.cat([coarse[1], where], 1))
        asked = reader.words(*words)
        kept = baselines.by_attention(reader, *dense, asked, words[1], total)
        yield "attention after the encoder (FastV-like)", total, read(*_only(dense, kept))
        kept = baselines.by_difference(dense[0], total)
        yield "similarity after the encoder (DART-like)", total, read(*_only(dense, kept))


def _only(pair: tuple[Tensor, Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
    tokens, positions = pair
    pick = kept[..., None]
    return tokens.gather(1, pick.expand(-1, -1, tokens.shape[2])), positions.gather(1, pick.expand(-1, -1, 4))


def shares(paths: list[Path], kind: str, scenes: int) -> tuple[Shares, list[str]]:
    """Accuracy of each (contender, tokens) with each checkpoint, in turn; and the checkpoints' seeds."""
    found: Shares = defaultdict(list)
    seeds = []
    for path in paths:
        scorer, reader, about = load(path)
        seeds.append(str(about.seed))
        right: dict[tuple[str, int], int] = defaultdict(int)
        course = training.Course(kinds=(kind,), questions=1)
        of = training.Scenes("test", 0, scenes, course)
        seen = 0
        for number, batch in enumerate(training.batches(of, 25, workers=0)):
            seen += len(batch["answer"])
            for name, tokens, logits in rows(scorer, reader, batch, number):
                right[name, tokens] += int((logits.argmax(1) == batch["answer"].flatten()).sum())
        for key, count in right.items():
            found[key].append(count / seen)
    return found, seeds


def main() -> None:
    """Prints a table for each kind of question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--scenes", type=int, default=1000, help="a kind of question; a multiple of 25")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--json", type=Path, help="a file for the same rows, for latency.py and run.py")
    parser.add_argument(
        "--add", action="store_true", help="to the seeds that are in the file of --json already"
    )
    given = parser.parse_args()
    kept = []
    for kind in given.kinds:
        before: list[str] = []
        found, seeds = shares(given.checkpoints, kind, given.scenes)
        if given.add:
            for row in msgspec.json.decode(given.json.read_bytes()):
                if (row["kind"], row["scenes"]) == (kind, given.scenes):
                    before = row["seeds"]
                    found[row["contender"], row["tokens"]][:0] = row["accuracy"]
            seeds = [*before, *seeds]
        error = 1.96 * (0.25 / given.scenes) ** 0.5
        print(f"\n{kind}: {given.scenes} held-out scenes, training seeds {', '.join(seeds)}\n")
        print("| contender | tokens | accuracy, mean of the seeds (range) |\n| --- | --- | --- |")
        for (name, tokens), values in sorted(found.items(), key=lambda item: (item[0][1], -np.mean(item[1]))):
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            print(f"| {name} | {tokens} | {np.mean(values):.3f}{spread} |")
            row = {"kind": kind, "contender": name, "tokens": tokens, "scenes": given.scenes}
            kept.append(row | {"seeds": seeds, "accuracy": values})
        print(f"\nA share of {given.scenes} scenes is uncertain by ±{error:.3f} at most (95 %).")
    if given.json is not None:
        files.write_json(given.json, kept)


if __name__ == "__main__":
    main()
