"""``edgekiln bench --soak``: one model or bundle for minutes or hours, with this machine's sensors beside."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from edgekiln.benching import contender, fit_to_measure
from edgekiln.intake import random_inputs
from edgekiln.progress import Progress, Silent
from edgekiln.prove.machine import ROOT
from edgekiln.prove.soak import soak as run
from edgekiln.prove.soak_record import Soak
from edgekiln.prove.timing import TimingFailure

TOLD_EVERY_SECONDS = 30


def soak(
    path: Path,
    seconds: float,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    threads: int = 2,
    strict: bool = False,
    progress: Progress | None = None,
    root: Path = ROOT,
) -> Soak | TimingFailure:
    """Run ``path`` (an ONNX file or a bundle) on seeded random input for ``seconds`` without a pause.

    Ctrl-C ends it with what was measured so far, and the result says so. Raises BadInput for a file that
    can't be read, NotRunnableHere for a bundle whose arithmetic this machine only emulates, and, where
    ``strict``, MachineFault for a machine that is not fit to measure on. ``root`` is where the machine's
    files lie.
    """
    say = progress or Silent()
    with contender(path, shapes or {}, "a") as (one, takes):
        unfit = fit_to_measure(strict, progress, root)
        say.note(f"soaking for {duration(seconds)}; Ctrl-C keeps what was measured")
        return run(one, random_inputs(takes), threads, seconds, unfit=unfit, progress=_teller(say), root=root)


def duration(seconds: float) -> str:
    """``45 s``, ``2 min 5 s``, ``1 h 30 min``: whole seconds, and none from an hour on."""
    whole = math.floor(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


def _teller(say: Progress) -> Callable[[str, int, int], None]:
    """A line now and then: a tenth of the soak apart, and not more often than every half minute."""
    due = 0

    def tell(text: str, done: int, total: int) -> None:
        nonlocal due
        if text == "idle":
            say.note("looking at the idle machine")
        if text == "soaking" and done >= due:
            if done:
                say.note(f"{duration(done)} of {duration(total)}")
            due = done + max(TOLD_EVERY_SECONDS, total // 10)

    return tell
