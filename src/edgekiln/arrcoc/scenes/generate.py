"""Scenes: a cut of a real photograph with small coloured digits on it, and a question about them.

A scene is a function of (split, index, seed, kinds, glyph count), whatever was made before it or beside it:
each has a random stream of its own. Digits, fonts and topics are drawn evenly and independently of the rest,
so that neither the photograph nor the question's wording tells the answer; colours and places as evenly as
the contrast allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.scenes import colours, fonts, photographs
from edgekiln.arrcoc.scenes.photographs import CANVAS, SPLITS, Photograph, Split
from edgekiln.arrcoc.scenes.questions import KINDS, Box, Glyph, Kind, Question, check_kinds, put, topics
from edgekiln.errors import BadInput
from edgekiln.records import Record

GLYPHS = 6
COUNTED_TOTALS = (10, 11, 12)
"""Glyphs in a scene with a question by count: drawn without regard to the answer."""
MARGIN = 2
"""Pixels between a box and the canvas's edge, at least."""
GAP = 4
"""Pixels between two boxes, at least, along one axis."""
GROUND = 1
"""Pixels around a box that count as behind its glyph."""
PLACES_TRIED = 150
PLACES_AT_ONCE = 4
"""Judged in one go: most glyphs find a place among four, and arrays this small cost by the call."""
ATTEMPTS = 200


class Cut(Record, frozen=True, kw_only=True):
    """Where the canvas was cut from: the photograph's scale, the corner in it, and mirrored or not."""

    photograph: str
    scale: int
    y: int
    x: int
    mirrored: bool


@dataclass(frozen=True, eq=False)
class Scene:
    """``picture`` is uint8 (448, 448, 3), RGB, and belongs to the scene."""

    picture: NDArray[np.uint8]
    glyphs: tuple[Glyph, ...]
    cut: Cut
    split: Split
    index: int
    seed: int


def scenes(
    split: str,
    count: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    *,
    glyphs: int = GLYPHS,
    start: int = 0,
) -> Iterator[tuple[Scene, Question]]:
    """``count`` scenes from ``start`` on, each with its question; scene i has the kind ``kinds[i % len]``.

    Raises BadInput for an unknown split or kind, MissingExtra where the photographs' packages are absent.
    """
    for index in range(start, start + count):
        yield scene(split, index, seed, kinds, glyphs=glyphs)


def scene(
    split: str, index: int, seed: int = 0, kinds: Sequence[str] = KINDS, *, glyphs: int = GLYPHS
) -> tuple[Scene, Question]:
    """The scene of this number. ``glyphs`` (1..8) is for questions by colour and place; those by count have
    ``COUNTED_TOTALS`` of them."""
    known, asked = photographs.check_split(split), check_kinds(kinds)
    if not 1 <= glyphs <= len(colours.COLOURS):
        raise BadInput(
            "making a scene of",
            f"{glyphs} glyphs",
            f"there are {len(colours.COLOURS)} colours and each is used once",
            f"Ask for 1 to {len(colours.COLOURS)} glyphs.",
        )
    if index < 0 or seed < 0:
        raise BadInput(
            "making a scene of", f"seed {seed}, number {index}", "both count from 0", "Give 0 or more."
        )
    kind = asked[index % len(asked)]
    for attempt in range(ATTEMPTS):
        random = np.random.default_rng([seed, SPLITS.index(known), index, KINDS.index(kind), attempt])
        topic = topics(kind)[int(random.integers(len(topics(kind))))]
        cut = _any_cut(known, random)
        picture = background(cut)
        placed = _placed(picture, _figures(kind, topic, glyphs, random), known, random)
        question = put(placed, kind, topic, known, random) if placed else None
        if question is not None:
            made = Scene(picture=picture, glyphs=placed, cut=cut, split=known, index=index, seed=seed)
            return made, question
    raise AssertionError(f"no readable scene in {ATTEMPTS} attempts")


def questions_about(made: Scene, kinds: Sequence[str] = KINDS) -> tuple[Question, ...]:
    """Every question of these kinds that has exactly one answer in this scene, each in one phrasing."""
    random = np.random.default_rng([made.seed, SPLITS.index(made.split), made.index, len(KINDS)])
    every = (put(made.glyphs, k, t, made.split, random) for k in check_kinds(kinds) for t in topics(k))
    return tuple(q for q in every if q is not None)


# ---------------------------------------------------------------- the photograph


@cache
def _by_name() -> dict[str, Photograph]:
    return {p.name: p for p in photographs.PHOTOGRAPHS}


def _any_cut(split: Split, random: np.random.Generator) -> Cut:
    choice = photographs.photographs(split)
    photograph = choice[int(random.integers(len(choice)))]
    kept = photographs.scales(photograph)
    scale = int(random.integers(len(kept)))
    height, width, _ = kept[scale].shape
    return Cut(
        photograph=photograph.name,
        scale=scale,
        y=int(random.integers(height - CANVAS + 1)),
        x=int(random.integers(width - CANVAS + 1)),
        mirrored=bool(random.integers(2)),
    )


def background(cut: Cut) -> NDArray[np.uint8]:
    """The cut alone, without glyphs: a new uint8 (448, 448, 3)."""
    whole = photographs.scales(_by_name()[cut.photograph])[cut.scale]
    part = whole[cut.y : cut.y + CANVAS, cut.x : cut.x + CANVAS]
    made = np.empty((CANVAS, CANVAS, 3), np.uint8)
    if not cut.mirrored:
        made[:] = part
        return made
    for channel in range(3):  # six times faster than all three at once
        made[..., channel] = part[:, ::-1, channel]
    return made


# ---------------------------------------------------------------- the glyphs


def _figures(kind: Kind, topic: str, glyphs: int, random: np.random.Generator) -> list[tuple[int, str]]:
    """Digit and colour of each glyph. Where one is to be read, digits and colours are all different."""
    names = tuple(colours.COLOURS)
    if kind != "count":
        used = [names[i] for i in random.permutation(len(names))[:glyphs]]
        if kind == "colour" and topic not in used:
            used[int(random.integers(glyphs))] = topic
        return list(zip(random.permutation(10)[:glyphs].tolist(), used, strict=True))
    total = COUNTED_TOTALS[int(random.integers(len(COUNTED_TOTALS)))]
    answer = int(random.integers(10))
    others = [name for name in names if name != topic]
    chosen = [topic] * answer + [others[i] for i in random.integers(len(others), size=total - answer)]
    shuffled = [chosen[i] for i in random.permutation(total)]
    return list(zip(random.integers(10, size=total).tolist(), shuffled, strict=True))


def _placed(
    picture: NDArray[np.uint8], figures: list[tuple[int, str]], split: Split, random: np.random.Generator
) -> tuple[Glyph, ...]:
    """Draws the figures into ``picture`` where they can be read; nothing where one finds no place."""
    placed: list[Glyph] = []
    dressed = _dressed(figures, split, random)
    tints = colours.lab(np.array([g.rgb for g in dressed], np.uint8))
    for glyph, tint in zip(dressed, tints, strict=True):
        coverage = _coverage(glyph)
        height, width = coverage.shape
        ys = random.integers(MARGIN, CANVAS - MARGIN - height + 1, size=PLACES_TRIED).tolist()
        xs = random.integers(MARGIN, CANVAS - MARGIN - width + 1, size=PLACES_TRIED).tolist()
        boxes = ((y, x, y + height, x + width) for y, x in zip(ys, xs, strict=True))
        box = _first_readable(picture, (b for b in boxes if all(_apart(b, o.box) for o in placed)), tint)
        if box is None:
            return ()
        placed.append(msgspec.structs.replace(glyph, box=box))
        draw(picture, placed[-1])
    return tuple(placed)


def _first_readable(
    picture: NDArray[np.uint8], boxes: Iterator[Box], tint: NDArray[np.float32]
) -> Box | None:
    while tried := list(islice(boxes, PLACES_AT_ONCE)):
        fit = colours.readable(tint, np.stack([ground(picture, box) for box in tried]))
        if fit.any():
            return tried[int(fit.argmax())]
    return None


def _apart(a: Box, b: Box) -> bool:
    return a[0] >= b[2] + GAP or b[0] >= a[2] + GAP or a[1] >= b[3] + GAP or b[1] >= a[3] + GAP


def ground(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The pixels of ``picture`` behind a glyph in ``box``: the box and ``GROUND`` pixels around it."""
    y0, x0, y1, x1 = box
    return picture[y0 - GROUND : y1 + GROUND, x0 - GROUND : x1 + GROUND]


def _dressed(figures: list[tuple[int, str]], split: Split, random: np.random.Generator) -> list[Glyph]:
    """Glyphs with everything but their places."""
    choice, n = fonts.fonts(split), len(figures)
    faces = random.integers(len(choice), size=n).tolist()
    sizes = random.integers(len(fonts.SIZES), size=n).tolist()
    phases = random.integers(len(fonts.PHASES), size=(n, 2)).tolist()
    off = random.integers(-colours.JITTER, colours.JITTER + 1, size=(n, 3)).tolist()
    made = []
    for i, (digit, colour) in enumerate(figures):
        red, green, blue = (
            min(max(c + d, 0), 255) for c, d in zip(colours.COLOURS[colour], off[i], strict=True)
        )
        made.append(
            Glyph(
                digit=digit,
                colour=colour,
                rgb=(red, green, blue),
                font=choice[faces[i]].name,
                size=fonts.SIZES[sizes[i]],
                phase=(fonts.PHASES[phases[i][0]], fonts.PHASES[phases[i][1]]),
                box=(0, 0, 0, 0),
            )
        )
    return made


def _coverage(glyph: Glyph) -> NDArray[np.uint8]:
    return fonts.mask(glyph.font, glyph.size, glyph.digit, *glyph.phase)


def draw(picture: NDArray[np.uint8], glyph: Glyph) -> None:
    """Blends the glyph into ``picture`` by its coverage; nothing outside its box changes."""
    y0, x0, y1, x1 = glyph.box
    coverage = _coverage(glyph)[..., None].astype(np.int32)
    behind = picture[y0:y1, x0:x1].astype(np.int32)
    mixed = (behind * (255 - coverage) + np.array(glyph.rgb, np.int32) * coverage + 127) // 255
    picture[y0:y1, x0:x1] = mixed.astype(np.uint8)


# ---------------------------------------------------------------- what the scorers learn from


def relevance_target(
    made: Scene, question: Question, grid: tuple[int, int] = (28, 28)
) -> NDArray[np.float32]:
    """Where the question needs a close look: float32 ``grid`` (rows, columns), 0..1.

    A cell has the share of an evidence box's area that lies in it: 1 where the box lies in one cell, and
    over the grid each box sums to 1 (shares of several boxes in a cell add up to 1 at most).
    """
    target = np.zeros(grid, np.float32)
    for index in question.evidence:
        y0, x0, y1, x1 = made.glyphs[index].box
        target += np.outer(_shares(y0, y1, grid[0]), _shares(x0, x1, grid[1]))
    return np.minimum(target, np.float32(1))


def _shares(start: int, stop: int, cells: int) -> NDArray[np.float32]:
    """The share of the interval (pixels of the canvas) in each of ``cells`` equal cells."""
    edges = np.arange(cells + 1) * (CANVAS / cells)
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    shares: NDArray[np.float32] = (np.maximum(inside, 0) / (stop - start)).astype(np.float32)
    return shares
