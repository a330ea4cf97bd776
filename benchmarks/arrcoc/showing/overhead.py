"""What the three scorers cost by themselves, for a picture of 448 x 448 on one core.

    python benchmarks/arrcoc/overhead.py CHECKPOINT

One thread, one core. Parts, each as it would run by itself on a device:
- texture: the array of 13 channels at 224 x 224 that all scorers read, from the picture of 448 x 448;
- propositional: spatial information on 28 x 28 from that array; and from an array of 448 x 448;
- perspectival, participatory: each with the convolutional network over the texture array that both read;
- unified: one network once, both heads and the balance (``scorer.onnx``);
- all together: texture, propositional and unified: what an answer pays before it allocates.

Contenders take turns in a shuffled order; the first call of a block is not counted. Medians with the 10th and
the 90th percentile; an interval (95 %) of the median is by order statistics.

Goals: all together at most 25 ms, the guide's 15 to 25 ms; propositional alone at 224 under 1 ms. 'met' and
'missed' hold for the whole interval.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arrcoc.showing.latency import told, verdict
from edgekiln.prove.environment import fitness
from edgekiln.prove.statistics import quantile_interval
from edgekiln.records import Record
from measuring.process import keep_to_cores, say
from measuring.table import Table, arguments, publish

GUIDE_MS = (15.0, 25.0)
INFORMATION_MS = 1.0
BLOCK = 4
ALL = "all together: texture, propositional, unified"
PROPOSITIONAL = "propositional, from the array of 224"
QUESTION = "Which digit is the red one?"

Call = Callable[[], Any]


class Times(Record, frozen=True, kw_only=True):
    """Milliseconds of every counted call."""

    part: str
    calls_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.calls_ms))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the median; None where the calls are too few."""
        found = quantile_interval(self.calls_ms, 0.5)
        return None if found is None else (float(found[0]), float(found[1]))


def parts(folder: Path) -> dict[str, Call]:
    """By name; each call does all the work of its part once, on the first scene of the test split."""
    import onnxruntime

    from edgekiln.arrcoc.channels import COLOURED
    from edgekiln.arrcoc.information import information
    from edgekiln.arrcoc.scenes.generate import scene
    from edgekiln.arrcoc.texture import TextureBuffer
    from edgekiln.arrcoc.words import tokens

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(
            folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for name in ("perspectival", "participatory", "scorer")
    }
    picture = scene("test", 0)[0].picture
    small, large = TextureBuffer((224, 224)), TextureBuffer((448, 448))
    array, fine = small.fill(picture), large.fill(picture)
    ids, mask = tokens(QUESTION)
    words = {"ids": ids[None], "mask": mask[None].astype(np.float32)}
    coloured = {"coloured": array[None, :COLOURED], **words}

    def unified() -> Any:
        return sessions["scorer"].run(None, coloured | {"information": information(array, 28, 28)[None]})

    known = information(array, 28, 28)[None]

    def together() -> Any:
        small.fill(picture)
        return unified()

    return {
        "texture, 224 from 448": lambda: small.fill(picture),
        "texture, 448": lambda: large.fill(picture),
        PROPOSITIONAL: lambda: information(array, 28, 28),
        "propositional, from the array of 448": lambda: information(fine, 28, 28),
        "perspectival": lambda: sessions["perspectival"].run(None, {"texture": array[None]}),
        "participatory": lambda: sessions["participatory"].run(None, {"texture": array[None], **words}),
        "unified: perspectival, participatory, balance": lambda: sessions["scorer"].run(
            None, coloured | {"information": known}
        ),
        ALL: together,
    }


def measure(calls: dict[str, Call], rounds: int) -> list[Times]:
    """``rounds`` blocks of each part."""
    shuffle = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _block(call, BLOCK)
    for _ in range(rounds):
        for name in shuffle.permutation(list(calls)):
            found[name] += _block(calls[name], BLOCK + 1)[1:]
    return [Times(part=name, calls_ms=tuple(ms)) for name, ms in found.items()]


def _block(call: Call, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def costs(times: Sequence[Times]) -> Table:
    """What each scorer takes by itself, and all together."""
    rows = []
    for t in times:
        known = t.interval
        interval = "—" if known is None else f"{known[0]:.3f} to {known[1]:.3f}"
        rows.append((t.part, told(t.calls_ms), interval, str(len(t.calls_ms))))
    return Table(
        title="The scorers' own cost, 448 x 448, one core, one thread",
        columns=("part", "ms, median (p10 to p90)", "median, 95 % interval", "calls"),
        rows=tuple(rows),
        note="Measured. 'perspectival' and 'participatory' each contain the network that reads the texture "
        "array; 'unified' runs it once. The texture array is in no row but its own and the last.",
    )


def goals(times: Sequence[Times]) -> Table:
    """Issue 7's goals of the scorers' own cost, each with its verdict."""
    by_part = {t.part: t for t in times}
    whole, blind = by_part[ALL], by_part[PROPOSITIONAL]
    low, high = GUIDE_MS
    times_high, times_low = high / whole.median_ms, low / whole.median_ms
    less = f"{times_high:.1f} times less than {high:g} ms, {times_low:.1f} than {low:g} ms"
    if whole.median_ms > high:
        less = f"{whole.median_ms / high:.1f} times more than {high:g} ms"
    return Table(
        title="Goals of overhead",
        columns=("goal", "median", "verdict", "by how much"),
        rows=(
            (
                f"the three scorers within the guide's {low:g} to {high:g} ms",
                f"{whole.median_ms:.2f} ms",
                verdict(whole.interval, high),
                less,
            ),
            (
                f"propositional alone at 224 under {INFORMATION_MS:g} ms",
                f"{blind.median_ms:.3f} ms",
                verdict(blind.interval, INFORMATION_MS),
                f"{INFORMATION_MS / blind.median_ms:.1f} times less"
                if blind.median_ms <= INFORMATION_MS
                else f"{blind.median_ms / INFORMATION_MS:.1f} times more",
            ),
        ),
        note="Measured; the texture array is paid for in the first, not in the second.",
    )


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=60, help="blocks of each part (default 60)")
    given = parser.parse_args()
    unfit = list(fitness())
    keep_to_cores(1)
    import cv2

    from edgekiln.arrcoc.checkpoint import load
    from edgekiln.arrcoc.exporting import export

    cv2.setNumThreads(1)
    scorer, reader, about = load(given.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        export(scorer, reader, Path(scratch), about.command, about.seed, (49,))
        before = os.getloadavg()[0]
        times = measure(parts(Path(scratch)), 2 if given.quick else given.rounds)
    unfit.append(f"load average {before:.2f} before and {os.getloadavg()[0]:.2f} after the run")
    say("measured")
    publish(
        "arrcoc-overhead", [costs(times), goals(times)], times, quick=given.quick, out=given.out, unfit=unfit
    )
