"""Whether a device is fit to measure on: the checks that judge this machine, on a copy of its files."""

from __future__ import annotations

from pathlib import Path

from edgekiln.errors import DeviceFault
from edgekiln.prove.fitness import findings


def fit_to_measure(where: str, tree: Path, strict: bool) -> tuple[str, ...]:
    """Each shortcoming of the device with its cure; () is fit. ``tree`` is what ``gather_machine`` copied.

    What only shows between two looks (stolen time, a quota at work) is not asked. Raises DeviceFault with all
    cures where ``strict`` and there is any.
    """
    found = findings(tree, 0.0)
    if strict and found:
        cures = "; ".join(one.cure for one in found)
        why = "; ".join(one.what for one in found)
        raise DeviceFault("measuring on", where, why, f"There {cures}; or measure without --strict")
    return tuple(one.sentence for one in found)
