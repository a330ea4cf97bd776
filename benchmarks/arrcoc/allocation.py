"""What it takes to allocate tokens, against the same rule written with a heap; and to gather their patches.

The heap holds the splits that are possible; the best is taken until it does not fit, and then the first that
costs no more than what is left. In plain Python on plain integers, as one would write it first; it has to
give the same tokens, which is checked before anything is timed (and in the tests, on maps of all kinds).

Maps: noise with a few peaks, seeded, another one each call. Contenders take turns in one process, in blocks;
the times are of whole calls, with the check of the map. One thread.

Which rule finds it: on simulated maps of scenes with six small things, one of them asked for, the share of
that one's area that the rule brings to the finest level. The logits of the background, of the others and of
the one asked for are normal around the values in the table. Guesses about a scorer, no measurement of one:
they say only how the rules differ.

Patches: of a photograph of 448 x 448 pixels, uint8. The pyramid is one call a picture, whatever the tokens.

Goal: at most 0.2 ms for 28 x 28 at 81 tokens on one core.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.allocate import ONE, PEAK, SHARES, Mode, allocate
from edgekiln.arrcoc.quadtree import COMPACT, PATCH, Allocation, Grid, detail, from_tokens

Map = NDArray[np.float32]
Node = tuple[int, int, int]
GOAL_MS = 0.2
MAPS = 32
BLOCK_SECONDS = 0.01
PLACES = (
    ("7 x 7, 28 x 28 finest", COMPACT, 81),
    ("7 x 7, 28 x 28 finest", COMPACT, 113),
    ("7 x 7, 28 x 28 finest", COMPACT, 305),
    ("5 x 9, 40 x 72 finest", Grid(rows=5, cols=9, levels=4), 177),
    ("20 x 30, 80 x 120 finest", Grid(rows=20, cols=30, levels=3), 1000),
)


# ---------------------------------------------------------------- the reference


def reference(
    relevance: Any, total: int, grid: Grid = COMPACT, *, mode: Mode = "quadtree", peak: float = PEAK
) -> Allocation:
    """What ``allocate`` gives, by a heap of the splits that are possible. For sound input only."""
    worth = _worth(np.asarray(relevance).tolist(), grid, round(peak * SHARES))
    room, split = total - grid.regions, set()
    heap: list[tuple[tuple[int, ...], Node]] = []
    for row, col in itertools.product(range(grid.rows), range(grid.cols)):
        _push(heap, worth, (0, row, col), grid)
    price, cheapest = (grid.region_cells, grid.region_cells) if mode == "windows" else (4, 3)
    while heap and room >= cheapest:
        _, node = heapq.heappop(heap)
        level, row, col = node
        cost = price if level == 0 else 3
        if cost > room:
            # Only a region can cost more than is left; another one does not fit either, a split may.
            heap = [entry for entry in heap if entry[1][0] > 0]
            heapq.heapify(heap)
            continue
        room -= cost
        split.add(node)
        if mode == "windows":
            split.update(_below(node, grid))
        else:
            for child in _children(node):
                _push(heap, worth, child, grid)
    tokens: list[Node] = []
    for row, col in itertools.product(range(grid.rows), range(grid.cols)):
        tokens += [(0, row, col), *(_leaves((0, row, col), split) if (0, row, col) in split else ())]
    return from_tokens(grid, np.array(tokens))


def _worth(cells: list[list[float]], grid: Grid, peak: int) -> dict[Node, int]:
    found: dict[Node, int] = {}
    for level in range(grid.levels - 1):
        rows, cols = grid.shape(level)
        side = 1 << (grid.levels - 1 - level)
        for row, col in itertools.product(range(rows), range(cols)):
            inside = [
                int(cells[y][x] * ONE)
                for y in range(row * side, (row + 1) * side)
                for x in range(col * side, (col + 1) * side)
            ]
            mass = (SHARES - peak) * sum(inside)
            found[level, row, col] = mass + peak * grid.region_cells * max(inside)
    return found


def _push(heap: list[tuple[tuple[int, ...], Node]], worth: dict[Node, int], node: Node, grid: Grid) -> None:
    level, row, col = node
    if level == grid.levels - 1:
        return
    line = [-worth[level - up, row >> up, col >> up] for up in range(level + 1)]
    before_all = [-(1 << 80)] * (grid.levels - len(line))
    heapq.heappush(heap, ((*line, *before_all), node))


def _children(node: Node) -> list[Node]:
    level, row, col = node
    return [(level + 1, 2 * row + y, 2 * col + x) for y in (0, 1) for x in (0, 1)]


def _below(node: Node, grid: Grid) -> list[Node]:
    if node[0] >= grid.levels - 2:
        return []
    return [n for child in _children(node) for n in (child, *_below(child, grid))]


def _leaves(node: Node, split: set[Node]) -> list[Node]:
    if node not in split:
        return [node]
    return [leaf for child in _children(node) for leaf in _leaves(child, split)]


# ---------------------------------------------------------------- the course


def maps(grid: Grid, count: int, seed: int = 0) -> list[Map]:
    """Relevance maps: weak noise and three peaks."""
    random = np.random.default_rng(seed)
    rows, cols = grid.finest
    y, x = np.mgrid[:rows, :cols].astype(np.float32)
    found = []
    for _ in range(count):
        field = 0.2 * random.random((rows, cols), dtype=np.float32)
        for _ in range(3):
            cy, cx = random.uniform(0, rows), random.uniform(0, cols)
            field += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 4).astype(np.float32)
        found.append(field.clip(0, 1))
    return found


def alternated(calls: Sequence[Callable[[Map], Any]], given: Sequence[Map], rounds: int) -> list[list[float]]:
    """Milliseconds of every call of each contender, blocks in a seeded order, each warmed up first."""
    found: list[list[float]] = [[] for _ in calls]
    sizes = []
    for call in calls:
        once = min(_block(call, given, 5)) / 1e3
        sizes.append(max(3, min(100, round(BLOCK_SECONDS / once))))
        _block(call, given, sizes[-1])
    random = np.random.default_rng(0)
    for _ in range(rounds):
        for which in random.permutation(len(calls)):
            # The contender before has just emptied the caches: the first call of a block does not count.
            found[which] += _block(calls[which], given, sizes[which] + 1)[1:]
    return found


def _block(call: Callable[[Map], Any], given: Sequence[Map], count: int) -> list[float]:
    times = []
    for relevance in itertools.islice(itertools.cycle(given), count):
        started = time.perf_counter_ns()
        call(relevance)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


KINDS = (
    ("clean", 2.0, -5.0, -1.0),
    ("hesitant", 0.0, -5.0, -2.0),
    ("noisy background", 2.0, -3.0, -1.0),
    ("taken in by the others", 4.0, -6.0, 0.0),
)
RULES: tuple[tuple[str, Mode, float], ...] = (
    ("quadtree, peak 0", "quadtree", 0.0),
    ("quadtree, peak 1/4", "quadtree", PEAK),
    ("quadtree, peak 1/2", "quadtree", 0.5),
    ("windows, peak 0", "windows", 0.0),
    ("windows, peak 1/4", "windows", PEAK),
)
SIDE, THINGS = 14.0, 6


def simulated(random: np.random.Generator, wanted: float, ground: float, others: float) -> tuple[Map, Map]:
    """A relevance map, and the share of the wanted thing's area in each cell."""
    rows, cols = COMPACT.finest
    y, x = np.mgrid[:rows, :cols] * PATCH
    logit = ground + 1.2 * random.standard_normal((rows, cols))
    areas = []
    for thing in range(THINGS):
        top, left = random.uniform(0, rows * PATCH - SIDE, 2)
        tall = np.clip(np.minimum(top + SIDE, y + PATCH) - np.maximum(top, y), 0, None)
        wide = np.clip(np.minimum(left + SIDE, x + PATCH) - np.maximum(left, x), 0, None)
        share = tall * wide / SIDE**2
        seen = (others if thing else wanted) + 1.5 * random.standard_normal()
        logit = np.maximum(logit, np.where(share > 0.1, seen + np.log(share + 1e-9), -99))
        areas.append(share)
    return (1 / (1 + np.exp(-logit))).astype(np.float32), areas[0].astype(np.float32)


def found(scenes: int) -> tuple[Any, dict[str, list[float]]]:
    """The table of which rule finds what is asked for, and the shares of every scene."""
    from measuring.table import Table

    rows, raw = [], {}
    for name, *levels in KINDS:
        random = np.random.default_rng(0)
        given = [simulated(random, *levels) for _ in range(scenes)]
        for total in (65, 81, 113):
            cells = []
            for rule, mode, peak in RULES:
                shares = [
                    float(area[detail(allocate(m, total, mode=mode, peak=peak)) == 2].sum())
                    for m, area in given
                ]
                raw[f"{name}, {total}, {rule}"] = shares
                half = 1.96 * float(np.std(shares)) / len(shares) ** 0.5
                cells.append(f"{np.mean(shares):.2f} ± {half:.2f}")
            rows.append((name, " / ".join(f"{v:g}" for v in levels), str(total), *cells))
    table = Table(
        title="Share of what is asked for at the finest level, simulated maps",
        columns=("maps", "logits: wanted / ground / others", "tokens", *(rule for rule, _, _ in RULES)),
        rows=tuple(rows),
        note=f"Simulated: means over {scenes} scenes with their 95 % interval; all rules saw the same.",
    )
    return table, raw


def patches(rounds: int) -> tuple[Any, dict[str, list[float]]]:
    """The table of the pyramid, the gather and the way back, and the raw milliseconds."""
    from skimage import data

    from edgekiln.arrcoc.mixed import gather, paint, positions, pyramid, resized
    from measuring.table import Table

    photo = resized(data.astronaut(), COMPACT)
    levels = pyramid(photo, COMPACT)
    tokens = allocate(maps(COMPACT, 1)[0], 113).tokens
    shown = gather(levels, tokens)
    calls: dict[str, Callable[[Map], Any]] = {
        "pyramid, three levels": lambda _: pyramid(photo, COMPACT),
        "gather, 113 tokens": lambda _: gather(levels, tokens),
        "positions, 113 tokens": lambda _: positions(tokens, COMPACT),
        "paint (for drawing), 113 tokens": lambda _: paint(shown, tokens, COMPACT),
    }
    times = alternated(list(calls.values()), maps(COMPACT, 1), rounds)
    table = Table(
        title="Patches of mixed detail, 448 x 448, one thread",
        columns=("what", "time"),
        rows=tuple((name, _told(ms)) for name, ms in zip(calls, times, strict=True)),
        note="Measured: medians of whole calls with the interquartile range.",
    )
    return table, dict(zip(calls, times, strict=True))


def main() -> None:
    """See the module."""
    from edgekiln.prove.environment import fitness
    from measuring.table import Table, arguments, publish

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="blocks of each contender (default 60)")
    options = parser.parse_args()
    rounds, unfit, rows = 2 if options.quick else options.rounds, fitness(), []
    raw: dict[str, dict[str, list[float]]] = {}
    for name, grid, total in PLACES[:2] if options.quick else PLACES:
        given = maps(grid, 4 if options.quick else MAPS)
        ours, windows, heap = (
            partial(allocate, total=total, grid=grid),
            partial(allocate, total=total, grid=grid, mode="windows"),
            partial(reference, total=total, grid=grid),
        )
        if any(ours(m) != heap(m) for m in given):
            sys.exit(f"{name} at {total} tokens: the heap gives other tokens")
        times = alternated([ours, windows, heap], given, rounds)
        raw[f"{name} {total}"] = dict(zip(("quadtree", "windows", "heap"), times, strict=True))
        goal = "—"
        if (grid, total) == (COMPACT, 81):
            goal = "met" if np.median(times[0]) <= GOAL_MS else "missed"
        faster = f"{np.median(times[2]) / np.median(times[0]):.0f}x"
        rows.append((name, str(total), *map(_told, times), faster, goal))
    table = Table(
        title="Allocating tokens, one thread",
        columns=("grid", "tokens", "quadtree", "windows", "heap", "quadtree against heap", "goal 0.2 ms"),
        rows=tuple(rows),
        note="Measured: medians of whole calls with the interquartile range; the heap gives the same tokens.",
    )
    gathered, raw["patches"] = patches(rounds)
    which, raw["found"] = found(3 if options.quick else 400)
    publish(
        "arrcoc-allocation", [table, which, gathered], raw, quick=options.quick, out=options.out, unfit=unfit
    )


def _told(times: list[float]) -> str:
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ms (IQR {high - low:.3f}, n {len(times)})"


if __name__ == "__main__":
    # The folder of this file is not where the benchmarks' own packages lie.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
