"""What an answer costs: ARR-COC with all its stages, uniform densities, and pruning after the encoder.

    python benchmarks/arrcoc/latency.py CHECKPOINT [--accuracy accuracy.json]

The checkpoint is exported, and everything runs in ONNX Runtime, with one thread and with two:
- ours: texture array, information, scorers, allocation and reader, at each bucket;
- uniform: the picture at one density, without scorers (the relevance that the reader takes is 0): the
  least that it can cost. Its accuracy was measured with the relevance told, so the same is timed with the
  texture array and the scorers before it as well;
- pruning after the encoder (FastV-like, by similarity): all 784 tokens are encoded, the decoder gets fewer;
  without scorers too.

Contenders take turns in a shuffled order, in blocks of calls over the same held-out pictures, the first call
of a block not counted. Times are medians with the 10th and the 90th percentile.

Goal: at 81 and at 113 tokens at most a third of what uniform 784 costs without scorers. The share's 95 %
interval is from resampling rounds; 'met' and 'missed' hold for all of it.

With ``--accuracy`` (what ``accuracy.py --json`` wrote) a table joins both, and a chart is drawn for each kind
of question. Random, edge and the other maps that allocate as ours does are told the learned relevance too:
they cost what ours costs at the same tokens, and are not timed apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from arrcoc.showing import accuracies, drawing
from arrcoc.showing.accuracies import OURS, UNIFORM, Row
from arrcoc.showing.contenders import INFORMED, Contender, opened, write_all
from edgekiln.prove.environment import fitness
from edgekiln.prove.statistics import ratio_of_medians
from edgekiln.records import Record
from measuring.process import say
from measuring.table import Table, arguments, publish

BLOCK = 3
SCENES = 8
THREADS = (1, 2)
GOAL_TOKENS, GOAL_SHARE = (81, 113), 1 / 3


class Times(Record, frozen=True, kw_only=True):
    """Milliseconds of one contender's calls, block by block; ``stages_ms`` of each stage that it tells."""

    contender: str
    tokens: int
    threads: int
    blocks_ms: tuple[tuple[float, ...], ...]
    stages_ms: dict[str, tuple[float, ...]]

    @property
    def every_ms(self) -> list[float]:
        return [ms for block in self.blocks_ms for ms in block]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.every_ms))


def measure(contenders: Sequence[Contender], threads: int, rounds: int) -> list[Times]:
    """``rounds`` blocks of each contender."""
    from edgekiln.arrcoc.scenes.generate import scenes

    asked = [(made.picture, question.text) for made, question in scenes("test", SCENES)]
    shuffle = np.random.default_rng(threads)
    blocks: list[list[tuple[float, ...]]] = [[] for _ in contenders]
    stages: list[dict[str, list[float]]] = [{} for _ in contenders]
    for contender in contenders:
        contender.answer(*asked[0])
        contender.answer(*asked[1])
    for number in range(rounds):
        for which in shuffle.permutation(len(contenders)):
            block = []
            for call in range(BLOCK + 1):
                picture, question = asked[(number * BLOCK + call) % len(asked)]
                started = time.perf_counter()
                told = contenders[which].answer(picture, question)
                spent = (time.perf_counter() - started) * 1e3
                if call:
                    block.append(spent)
                    for name, ms in told.items():
                        stages[which].setdefault(name, []).append(ms)
            blocks[which].append(tuple(block))
    return [
        Times(
            contender=c.name,
            tokens=c.tokens,
            threads=threads,
            blocks_ms=tuple(b),
            stages_ms={name: tuple(ms) for name, ms in s.items()},
        )
        for c, b, s in zip(contenders, blocks, stages, strict=True)
    ]


def told(values: Sequence[float]) -> str:
    """Median, 10th and 90th percentile as a cell."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


# ---------------------------------------------------------------- tables


def totals(times: Sequence[Times], threads: int) -> Table:
    """Total latency of each contender, with its spread."""
    mine = [t for t in times if t.threads == threads]
    dense = _dense(mine)
    rows = [
        (
            t.contender,
            str(t.tokens),
            told(t.every_ms),
            f"{t.median_ms / dense.median_ms:.2f}",
            str(len(t.every_ms)),
        )
        for t in mine
    ]
    return Table(
        title=f"Latency of one answer, {threads} thread{'s' if threads > 1 else ''}",
        columns=("contender", "tokens", "ms, median (p10 to p90)", "of uniform 784", "calls"),
        rows=tuple(rows),
        note=f"Measured. Ours: all stages. '{UNIFORM}' and pruning: without scorers, the relevance is 0; "
        f"'{INFORMED}': with the texture array and the scorers, as its accuracy was measured. Pruning "
        "encodes all 784 tokens.",
    )


def stages(times: Sequence[Times]) -> Table:
    """Where the compact system's time goes at each bucket."""
    mine = [t for t in times if t.stages_ms]
    names = tuple(mine[0].stages_ms)
    return Table(
        title="Where ours spends it",
        columns=("tokens", "threads", *(f"{name}, ms" for name in names)),
        rows=tuple((str(t.tokens), str(t.threads), *(told(t.stages_ms[n]) for n in names)) for t in mine),
        note="Measured within the calls of the tables above: median (p10 to p90).",
    )


def verdict(interval: tuple[float, float] | None, goal: float) -> str:
    """Whether all of an interval keeps the goal."""
    if interval is None:
        return "not shown (too few rounds)"
    low, high = interval
    return "met" if high <= goal else "missed" if low > goal else "not shown (the goal lies in the interval)"


def goals(times: Sequence[Times]) -> Table:
    """Issue 7's goals of latency, each with its verdict."""
    rows = []
    for threads in sorted({t.threads for t in times}):
        mine = [t for t in times if t.threads == threads]
        for tokens in GOAL_TOKENS:
            ours = next(t for t in mine if (t.contender, t.tokens) == (OURS, tokens))
            found = ratio_of_medians(ours.blocks_ms, _dense(mine).blocks_ms)
            told = "—" if found.interval is None else f"{found.interval[0]:.3f} to {found.interval[1]:.3f}"
            given = None if found.interval is None else (float(found.interval[0]), float(found.interval[1]))
            rows.append((str(tokens), str(threads), f"{found.value:.3f}", told, verdict(given, GOAL_SHARE)))
    return Table(
        title="Goal of latency: at most a third of uniform 784",
        columns=("tokens", "threads", "ours over uniform 784", "95 % interval", "goal 0.333"),
        rows=tuple(rows),
        note="Measured; medians of all calls, uniform without scorers.",
    )


def _dense(times: Iterable[Times]) -> Times:
    return next(t for t in times if (t.contender, t.tokens) == (UNIFORM, 784))


def joined(times: Sequence[Times], rows: Sequence[Row], kind: str) -> Table:
    """Accuracy beside latency, quickest first."""
    of_kind = accuracies.by_key(rows, kind)
    threads = sorted({t.threads for t in times})
    cost = {(t.contender, t.tokens, t.threads): t for t in times}
    found = []
    for contender, tokens in sorted({(t.contender, t.tokens) for t in times}):
        row = of_kind.get((UNIFORM if contender == INFORMED else contender, tokens))
        if row is not None:
            mine = [cost[contender, tokens, n] for n in threads]
            found.append((mine[0].median_ms, contender, tokens, row, [told(t.every_ms) for t in mine]))
    found.sort(key=lambda item: item[0])
    any_row = next(iter(of_kind.values()))
    return Table(
        title=f"Accuracy against latency, questions by {kind}",
        columns=("contender", "tokens", "accuracy", *(f"ms, {n} thread{'s' * (n > 1)}" for n in threads)),
        rows=tuple((name, str(n), accuracies.told(row), *ms) for _, name, n, row, ms in found),
        note=f"{accuracies.meaning([any_row])} '{UNIFORM}' without the scorers' cost has the accuracy that "
        "it has with the relevance told: a favour to it.",
    )


def at_equal_latency(times: Sequence[Times], rows: Sequence[Row], kind: str) -> Table:
    """For each of our buckets the best of the others that costs no more, with one thread."""
    of_kind = accuracies.by_key(rows, kind)
    threads = min(t.threads for t in times)
    mine = [t for t in times if t.threads == threads]
    found = []
    for ours in (t for t in mine if t.contender == OURS):
        row = of_kind.get((OURS, ours.tokens))
        if row is None:
            continue
        others = [
            (other, t)
            for t in mine
            if t.contender not in (OURS, INFORMED) and t.median_ms <= ours.median_ms
            if (other := of_kind.get((t.contender, t.tokens))) is not None
        ]
        cells = ("none is as quick", "—", "—", "—")
        if others:
            best, at = max(others, key=lambda pair: pair[0].mean)
            name = f"{best.contender}, {best.tokens} tokens"
            cells = (name, accuracies.told(best), f"{at.median_ms:.2f}", f"{row.mean - best.mean:+.3f}")
        found.append((str(ours.tokens), accuracies.told(row), f"{ours.median_ms:.2f}", *cells))
    return Table(
        title=f"At equal latency, questions by {kind}",
        columns=(
            "our tokens",
            "ours",
            "ms",
            "best of the others within that",
            "accuracy",
            "ms",
            "difference",
        ),
        rows=tuple(found),
        note=f"Measured, {threads} thread{'s' * (threads > 1)}, medians. The others pay for no scorer.",
    )


# ---------------------------------------------------------------- the command


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--accuracy", type=Path, help="what accuracy.py --json wrote")
    parser.add_argument("--rounds", type=int, default=40, help="blocks of each contender (default 40)")
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    given: argparse.Namespace = parser.parse_args()
    rows = accuracies.read(given.accuracy) if given.accuracy else ()
    unfit = list(fitness())
    times = timed(given.checkpoint, given.threads, 2 if given.quick else given.rounds, unfit)
    found = [totals(times, n) for n in given.threads]
    found += [stages(times), goals(times)]
    for kind in accuracies.kinds(rows):
        found += [joined(times, rows, kind), at_equal_latency(times, rows, kind)]
        path = given.out / f"arrcoc-accuracy-{kind}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawing.chart(rows, kind, *_costs(times)), encoding="utf-8")
        say(f"drew {path}")
    publish("arrcoc-latency", found, times, quick=given.quick, out=given.out, unfit=unfit)


def timed(checkpoint: Path, threads: Sequence[int], rounds: int, unfit: list[str]) -> list[Times]:
    """Every contender with each number of threads. ``unfit`` gets the load as it was meanwhile."""
    import cv2
    import torch

    from edgekiln.arrcoc.checkpoint import load

    scorer, reader, about = load(checkpoint)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        write_all(scorer, reader, Path(scratch), about.seed)
        for count in threads:
            cv2.setNumThreads(count)
            torch.set_num_threads(count)
            before = os.getloadavg()[0]
            found += measure(opened(Path(scratch), count), count, rounds)
            after = os.getloadavg()[0]
            unfit.append(
                f"load average {before:.2f} before and {after:.2f} after the run with {count} threads"
            )
            say(f"{count} threads done")
    return found


def _costs(times: Sequence[Times]) -> tuple[dict[tuple[str, int], float], str]:
    """The medians with the fewest threads, and how they were measured in a few words."""
    least = min(t.threads for t in times)
    how = f"{least} thread{'s' if least > 1 else ''}; uniform and pruning without scorers"
    return {(t.contender, t.tokens): t.median_ms for t in times if t.threads == least}, how
