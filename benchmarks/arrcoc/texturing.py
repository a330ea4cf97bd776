"""What the texture array costs on one core, beside the copy of its own output.

Contenders, for 224 x 224 and 448 x 448:
- copy: ``numpy.copyto`` of the 13 float32 planes into a buffer that exists; and a copy into fresh memory;
- buffer: ``TextureBuffer.fill``, the way of the device, from a picture of that size and of twice that size;
- call: ``texture`` without a buffer; into a given buffer; and by NumPy alone;
- torch (one picture) and the ONNX graph in ONNX Runtime, one thread each;
- for comparison, OpenCV's own 8-bit conversion to LAB, which is left out of ``buffer``.

Two orders, because the copy's cost hangs on what the caches hold. *In turns*: one call of each contender
after one of another, in a shuffled order, as in a program that does other things between two pictures. *In
blocks*: each contender several times on end, the first call of a block not counted. In turns the thread's CPU
time is taken as well: on a machine that does other work it tells more than the clock.

Goal: in turns, ``buffer`` from a picture of the size costs at most 2 times the copy at 224, 3 times at 448.
The interval of a ratio of medians (95 %) is from resampling rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc import channels
from edgekiln.arrcoc.texture import TextureBuffer, reduction, texture
from edgekiln.prove.environment import fitness
from edgekiln.records import Record
from measuring.process import say
from measuring.table import Table, arguments, publish, spread

GOALS = {224: 2.0, 448: 3.0}
BLOCK = 5
SLOW = ("NumPy alone", "torch, one picture", "ONNX Runtime")
SLOW_EVERY = 8
COPY, GOAL_OF = "copy into a buffer", "buffer, same size"

Call = Callable[[], Any]


class Times(Record, frozen=True, kw_only=True):
    """Milliseconds of every call of one contender: of each turn by the clock and in CPU time, and block by
    block by the clock."""

    side: int
    contender: str
    turns_ms: tuple[float, ...]
    turns_cpu_ms: tuple[float, ...]
    blocks_ms: tuple[tuple[float, ...], ...]


def photograph() -> NDArray[np.uint8]:
    """The astronaut of scikit-image, (512, 512, 3)."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut())


def contenders(side: int) -> dict[str, Call]:
    """By name; each call does all the work once."""
    import cv2
    import torch

    from edgekiln.arrcoc import texture_torch

    size = (side, side)
    picture = reduction(photograph(), size)
    large = reduction(photograph(), (2 * side, 2 * side))
    buffer, other = TextureBuffer(size), TextureBuffer(size)
    source = texture(picture, size)
    lab = np.empty_like(picture)
    target, out = np.empty_like(source), np.empty_like(source)
    batch = torch.from_numpy(picture)[None]
    session = _session(size)
    feed = {"picture": np.ascontiguousarray(picture.transpose(2, 0, 1))[None]}
    return {
        COPY: lambda: np.copyto(target, source),
        "copy into fresh memory": source.copy,
        GOAL_OF: lambda: buffer.fill(picture),
        "buffer, twice the size": lambda: other.fill(large),
        "call into a buffer": lambda: texture(picture, size, out=out),
        "call": lambda: texture(picture, size),
        "NumPy alone": lambda: texture(picture, size, out=out, backend="numpy"),
        "torch, one picture": lambda: texture_torch.texture(batch, size),
        "ONNX Runtime": lambda: session.run(None, feed),
        "OpenCV's LAB alone": lambda: cv2.cvtColor(picture, cv2.COLOR_RGB2Lab, dst=lab),
    }


def _session(size: tuple[int, int]) -> Any:
    import onnxruntime as ort

    from edgekiln.arrcoc.texture_onnx import texture_model

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = texture_model(size).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def timed(call: Call) -> tuple[float, float]:
    """Milliseconds of one call, by the clock and in CPU time."""
    cpu, started = time.thread_time_ns(), time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e6, (time.thread_time_ns() - cpu) / 1e6


def measure(side: int, rounds: int) -> list[Times]:
    """Both orders, ``rounds`` rounds each; the slow contenders take part in every eighth."""
    calls = contenders(side)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    shuffle = np.random.default_rng(side)
    for call in calls.values():
        timed(call)
        timed(call)
    for number in range(rounds):
        names = [name for name in calls if name not in SLOW or number % SLOW_EVERY == 0]
        for name in shuffle.permutation(names):
            turns[name].append(timed(calls[name]))
        for name in shuffle.permutation(names):
            blocks[name].append(tuple([timed(calls[name])[0] for _ in range(BLOCK + 1)][1:]))
    return [
        Times(
            side=side,
            contender=name,
            turns_ms=tuple(clock for clock, _ in turns[name]),
            turns_cpu_ms=tuple(cpu for _, cpu in turns[name]),
            blocks_ms=tuple(blocks[name]),
        )
        for name in calls
    ]


def ratio(ours: Sequence[Any], copy: Sequence[Any], resamples: int = 1000) -> tuple[float, float, float]:
    """Median of ``ours`` over that of ``copy``, with its 95 % interval; rows are drawn with replacement."""
    above, below = (np.asarray(rows).reshape(len(rows), -1) for rows in (ours, copy))
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        picks = [rows[draw.integers(0, len(rows), len(rows))] for rows in (above, below)]
        drawn.append(float(np.median(picks[0]) / np.median(picks[1])))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(above) / np.median(below)), float(low), float(high)


def verdict(found: tuple[float, float, float], goal: float) -> str:
    """Whether the whole interval of a ratio keeps the goal."""
    _, low, high = found
    return "met" if high <= goal else "not shown" if low <= goal else "missed"


def _row(found: Times, copy: Times) -> tuple[str, ...]:
    turns = ratio(found.turns_ms, copy.turns_ms)
    ratios = [
        f"{value:.2f} ({low:.2f} to {high:.2f})"
        for value, low, high in (
            turns,
            ratio(found.turns_cpu_ms, copy.turns_cpu_ms),
            ratio(found.blocks_ms, copy.blocks_ms),
        )
    ]
    return (
        found.contender,
        spread(found.turns_ms, "ms", 3),
        *ratios[:2],
        spread([value for block in found.blocks_ms for value in block], "ms", 3),
        ratios[2],
        str(len(found.turns_ms)),
        verdict(turns, GOALS[found.side]) if found.contender == GOAL_OF else "—",
    )


def _table(side: int, times: list[Times]) -> Table:
    copy = next(t for t in times if t.contender == COPY)
    return Table(
        title=f"{side} x {side}: 13 float32 planes, {channels.COUNT * side * side * 4 / 1e6:.1f} MB",
        columns=(
            "contender",
            "in turns",
            "of the copy",
            "of the copy, CPU time",
            "in blocks",
            "of the copy",
            "rounds",
            "goal",
        ),
        rows=tuple(_row(found, copy) for found in times),
        note=f"Measured on one core, one thread. Goal: at most {GOALS[side]:g} times the copy into a buffer, "
        "in turns, by the clock. 'met' and 'missed' hold for the whole interval; 'not shown' means that the "
        "goal lies inside it.",
    )


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="calls of each contender in turns (400)")
    parser.add_argument("--core", type=int, help="the core to run on (default: the last one usable)")
    given = parser.parse_args()
    unfit = fitness()
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0)) if given.core is None else given.core
        os.sched_setaffinity(0, {core})
        say(f"on core {core}")
    else:
        unfit = (*unfit, "this system can't pin a process to a core")
    _one_thread()
    rounds = min(given.rounds, 16) if given.quick else given.rounds
    times: list[Times] = []
    tables = []
    for side in GOALS:
        found = measure(side, rounds)
        times += found
        tables.append(_table(side, found))
        say(f"{side} done")
    publish("arrcoc-texture", tables, times, quick=given.quick, out=given.out, unfit=unfit)


def _one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
