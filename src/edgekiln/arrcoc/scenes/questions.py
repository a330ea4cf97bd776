"""Questions about a scene whose answer is exactly one digit 0..9, and their phrasings.

Places are those of box centres, in pixels of the canvas. A question by place is asked only where the winner
leads the second by ``LEAST_LEAD``; one by colour only where one glyph has that colour; one by count only
where at most nine have it. The phrasings of the test split are in no other split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from edgekiln.arrcoc.scenes.colours import COLOURS
from edgekiln.arrcoc.scenes.photographs import CANVAS, Split
from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Record

Kind: TypeAlias = Literal["colour", "place", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Box: TypeAlias = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, half-open."""
LEAST_LEAD = 12.0
"""Pixels, the height of a large digit: a person sees without a ruler which is nearer."""


class Glyph(Record, frozen=True, kw_only=True):
    """One digit on the canvas. ``box`` fits its ink."""

    digit: int
    colour: str
    rgb: tuple[int, int, int]
    font: str
    size: float
    phase: tuple[float, float]
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        y0, x0, y1, x1 = self.box
        return (y0 + y1) / 2, (x0 + x1) / 2


class Question(Record, frozen=True, kw_only=True):
    """``topic`` is the colour or the place asked for. ``evidence`` are the indices of the glyphs that matter
    for the answer: the one to read, or all that are counted (none where the answer is 0)."""

    text: str
    kind: Kind
    topic: str
    answer: int
    evidence: tuple[int, ...]


# ---------------------------------------------------------------- what is asked

Distance: TypeAlias = Callable[[float, float], float]


def _from(y: float, x: float) -> Distance:
    return lambda at_y, at_x: math.hypot(at_y - y, at_x - x)


PLACES: dict[str, Distance] = {
    "left": lambda y, x: x,
    "right": lambda y, x: CANVAS - x,
    "top": lambda y, x: y,
    "bottom": lambda y, x: CANVAS - y,
    "top left": _from(0, 0),
    "top right": _from(0, CANVAS),
    "bottom left": _from(CANVAS, 0),
    "bottom right": _from(CANVAS, CANVAS),
    "centre": _from(CANVAS / 2, CANVAS / 2),
}
"""How far a centre (y, x) is from each place, in pixels."""


def topics(kind: Kind) -> tuple[str, ...]:
    """What a question of this kind can be about."""
    return tuple(PLACES) if kind == "place" else tuple(COLOURS)


def answered(glyphs: Sequence[Glyph], kind: Kind, topic: str) -> tuple[int, tuple[int, ...]] | None:
    """The answer and the indices of its evidence, or None where there is not exactly one answer."""
    if kind == "place":
        ranked = sorted((PLACES[topic](*g.centre), i) for i, g in enumerate(glyphs))
        if not ranked or (len(ranked) > 1 and ranked[1][0] - ranked[0][0] < LEAST_LEAD):
            return None
        winner = ranked[0][1]
        return glyphs[winner].digit, (winner,)
    of_colour = tuple(i for i, g in enumerate(glyphs) if g.colour == topic)
    if kind == "count":
        return (len(of_colour), of_colour) if len(of_colour) <= 9 else None
    return (glyphs[of_colour[0]].digit, of_colour) if len(of_colour) == 1 else None


# ---------------------------------------------------------------- how it is put

_COLOUR = (
    "Which digit is the {} one?",
    "What is the {} digit?",
    "Which number is {}?",
    "Read the {} digit.",
    "What number is written in {}?",
    "Tell me the {} number.",
)
_COLOUR_HELD_OUT = (
    "What digit is written in {}?",
    "Please read the {} number.",
    "Which one is the {} digit?",
    "What does the {} digit say?",
)
_COUNT = (
    "How many {} digits are there?",
    "Count the {} digits.",
    "How many digits are {}?",
    "What is the count of {} numbers?",
    "How many of the numbers are {}?",
)
_COUNT_HELD_OUT = (
    "How many {} numbers are there?",
    "Please count the {} numbers in the picture.",
    "How many of the digits are {}?",
)
_PLACE = (
    "Which digit is {}?",
    "What number is {}?",
    "What is the digit {}?",
    "Read the digit {}.",
    "Tell me which number is {}.",
)
_PLACE_HELD_OUT = (
    "Which one of the digits is {}?",
    "Please read the number that is {}.",
    "Tell me the digit {}.",
)
_EDGE = ("nearest to the {} edge", "closest to the {} edge", "furthest to the {}")
_EDGE_HELD_OUT = ("closest to the {}", "most to the {}")
_CORNER = ("nearest to the {} corner", "closest to the {} corner")
_CORNER_HELD_OUT = ("closest of all to the {} corner", "furthest into the {} corner")
_CENTRE = ("nearest to the centre", "closest to the middle")
_CENTRE_HELD_OUT = ("closest to the centre", "nearest to the middle of the picture")
_MOST = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}


def _wheres(topic: str, held_out: bool) -> tuple[str, ...]:
    if topic == "centre":
        return _CENTRE_HELD_OUT if held_out else _CENTRE
    if topic in _MOST:
        made = tuple(w.format(topic) for w in (_EDGE_HELD_OUT if held_out else _EDGE))
        return made if held_out else (*made, f"the {_MOST[topic]} one")
    return tuple(w.format(topic) for w in (_CORNER_HELD_OUT if held_out else _CORNER))


def phrasings(kind: Kind, topic: str, split: Split) -> tuple[str, ...]:
    """Every text of this question in a split; those of ``test`` are in neither other split."""
    held_out = split == "test"
    if kind == "place":
        frames = _PLACE_HELD_OUT if held_out else _PLACE
        return tuple(f.format(w) for f in frames for w in _wheres(topic, held_out))
    if kind == "count":
        return tuple(f.format(topic) for f in (_COUNT_HELD_OUT if held_out else _COUNT))
    return tuple(f.format(topic) for f in (_COLOUR_HELD_OUT if held_out else _COLOUR))


def put(
    glyphs: Sequence[Glyph], kind: Kind, topic: str, split: Split, random: np.random.Generator
) -> Question | None:
    """The question in one of its phrasings, or None where it has not exactly one answer."""
    found = answered(glyphs, kind, topic)
    if found is None:
        return None
    texts = phrasings(kind, topic, split)
    text = texts[int(random.integers(len(texts)))]
    return Question(text=text, kind=kind, topic=topic, answer=found[0], evidence=found[1])


def check_kinds(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds in the order given; BadInput for an unknown one or none at all."""
    made: list[Kind] = []
    for name in kinds:
        known: Kind | None = next((k for k in KINDS if k == name), None)
        if known is None:
            raise BadInput(
                "making questions of the kind", repr(name), "there is none", did_you_mean(name, KINDS)
            )
        made.append(known)
    if not made:
        raise BadInput(
            "making questions", "of no kind", "none was given", f"Name some of: {', '.join(KINDS)}."
        )
    return tuple(made)
