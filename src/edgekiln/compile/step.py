"""One pass of a recipe: what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.records import LayerLoss, Pass


@dataclass(frozen=True)
class Step:
    """One pass to apply: ``path`` is the graph so far, ``into`` the file to write, ``form`` the dialect.

    ``origin`` is the float graph that this one's weights were rounded from, where that is not the shop's own:
    the same function with its channels levelled, or the fine-tuned one.
    """

    one: Pass
    shop: Workshop
    form: str
    path: Path
    into: Path
    origin: Path | None = None


class Applied(NamedTuple):
    """The path of the result (``into``, a file of another suffix beside it, or the graph given where
    there was nothing to do), a note, and what quantising cost each layer where that was looked at."""

    path: Path
    note: str
    layers: tuple[LayerLoss, ...] = ()


Apply: TypeAlias = Callable[[Step], Applied]


def left(one: Step) -> Applied:
    """Nothing done here: the target applies the pass."""
    one.into.write_bytes(one.path.read_bytes())
    return Applied(one.into, "left to the target, which applies it in its own format")


def given(one: Step) -> Calibration:
    """The samples that a pass finds something on."""
    data = one.shop.calibration
    assert data is not None  # make refuses the recipe otherwise
    return data
