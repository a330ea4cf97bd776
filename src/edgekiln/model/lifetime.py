"""The least memory in which values of known lifetimes can live."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Step = tuple[list[str], list[str], bool]
"""(values read, values written, whether the first may be overwritten by the second)."""


def peak_bytes(steps: list[Step], bytes_of: Callable[[str], int], kept: Iterable[str]) -> int:
    """The largest sum of values alive at one step, in bytes; values in ``kept`` live to the end.

    A value lives from the step that writes it to the last that reads it. A step that may work in place
    counts its output and a dying input of at least that size once. No packing of an arena can need less.
    """
    last: dict[str, int] = {}
    for index, (ins, outs, _) in enumerate(steps):
        for name in (*ins, *outs):
            last[name] = index
    for name in kept:
        last[name] = len(steps)
    alive: dict[str, int] = {}
    peak = 0
    for index, (ins, outs, in_place) in enumerate(steps):
        for name in outs:
            alive[name] = bytes_of(name)
        now = sum(alive.values())
        dying = [n for n in ins if last[n] == index and n not in outs]
        if in_place and len(outs) == 1:
            reused = [alive[outs[0]] for n in dying if alive.get(n, 0) >= alive[outs[0]]]
            now -= max(reused, default=0)
        peak = max(peak, now)
        for name in [n for n in alive if last.get(n, index) <= index]:
            del alive[name]
    return peak
