"""The first scenes of the test split with what was relevant, where it was looked closely, and the answer.

    python benchmarks/arrcoc/gallery.py CHECKPOINT [--count 12] [--total 81]

Nothing is chosen: scenes 0, 1, 2 ... of the split's seed 0, the kinds of question in turn, right or wrong. A
scene is three pictures: itself, with a ring around what the question is about; the relevance over it, drawn
as its square root on a fixed scale, so that a little of it shows; and the tokens: what the reader sees,
coarse where it did not look closely, with the quadtree's lines and a frame around the windows.

Writes gallery.png (one sheet) and gallery.html (the same with text that can be read out and searched) into
``--out``, and prints a row for each scene.
"""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgekiln import files
from edgekiln.arrcoc.compact import Compact, Seen
from edgekiln.arrcoc.mixed import gather, outlined, overlay, paint, pyramid
from edgekiln.arrcoc.quadtree import COMPACT, Allocation
from edgekiln.arrcoc.scenes.generate import Scene, scenes
from edgekiln.arrcoc.scenes.questions import KINDS, Question
from edgekiln.prove.environment import fitness
from edgekiln.records import Record
from measuring.process import say
from measuring.table import Table, arguments, publish

SPLIT, SEED = "test", 0
"""Fixed before any checkpoint was there to choose them by."""
SIDE, EDGE, HEAD, FOOT = 300, 28, 54, 22
COLUMNS = 2
LARGE = 448
"""Pixels on a side of a picture in the page: the canvas's own."""
NO_LINES = Allocation(COMPACT, np.empty((0, 3), np.int32))
NAMES = ("picture, what was asked for ringed", "relevance", "tokens: what the reader sees")
INK, MUTED, RIGHT, WRONG, RING = (30, 28, 25), (100, 95, 87), (10, 107, 80), (176, 38, 29), (255, 255, 255)
Picture = NDArray[np.uint8]


class Shown(Record, frozen=True, kw_only=True):
    """What one scene of the gallery says; ``found`` is the evidence's share at the finest level."""

    number: int
    kind: str
    question: str
    answer: int
    given: int
    chance: float
    tokens: int
    found: float

    @property
    def right(self) -> bool:
        return self.answer == self.given


def shown(made: Scene, question: Question, seen: Seen) -> Shown:
    """What the system saw of a scene and answered, beside what is right."""
    return Shown(
        number=made.index,
        kind=question.kind,
        question=question.text,
        answer=question.answer,
        given=seen.answered.answer,
        chance=max(seen.answered.chances),
        tokens=seen.answered.tokens,
        found=looked_at(made, question, seen),
    )


def looked_at(made: Scene, question: Question, seen: Seen) -> float:
    """The share of the evidence's area that lies under tokens of the finest level; 1 where there is none."""
    fine = np.zeros(COMPACT.canvas, bool)
    for level, row, column in seen.allocation.tokens:
        if level == COMPACT.levels - 1:
            fine[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = True
    boxes = [made.glyphs[i].box for i in question.evidence]
    areas = [(y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes]
    inside = [int(fine[y0:y1, x0:x1].sum()) for y0, x0, y1, x1 in boxes]
    return sum(inside) / sum(areas) if areas else 1.0


def panels(made: Scene, question: Question, seen: Seen, side: int) -> tuple[Image.Image, ...]:
    """The three pictures of a scene, ``side`` pixels square."""
    picture = made.picture
    first = Image.fromarray(picture).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    pen, scale = ImageDraw.Draw(first), 2 * side / picture.shape[0]
    for index in question.evidence:
        y0, x0, y1, x1 = (v * scale for v in made.glyphs[index].box)
        y, x, reach = (y0 + y1) / 2, (x0 + x1) / 2, max(y1 - y0, x1 - x0) / 2 + 12
        for rim, shade in ((2, INK), (0, RING)):  # dark around light, to be seen on both
            around = (x - reach - rim, y - reach - rim, x + reach + rim, y + reach + rim)
            pen.ellipse(around, outline=shade, width=5 + 2 * rim)
    relevance = seen.relevance.clip(0, 1)
    glow = overlay(picture, NO_LINES, np.sqrt(relevance), scale=2)
    levels, tokens = pyramid(picture, COMPACT), seen.allocation.tokens
    sight = outlined(paint(gather(levels, tokens), tokens, COMPACT), seen.allocation, scale=2)
    return tuple(
        one.resize((side, side), Image.Resampling.LANCZOS)
        for one in (first, Image.fromarray(glow), Image.fromarray(sight))
    )


# ---------------------------------------------------------------- the sheet


def sheet(cards: Sequence[tuple[Shown, tuple[Image.Image, ...]]], title: str) -> Image.Image:
    """All scenes on one page, ``COLUMNS`` beside each other."""
    width = len(NAMES) * SIDE + (len(NAMES) - 1) * 8
    height = HEAD + SIDE + FOOT
    columns = min(COLUMNS, len(cards))
    rows = -(-len(cards) // columns)
    top = 112
    page = Image.new(
        "RGB",
        (EDGE + columns * (width + EDGE), top + rows * (height + EDGE)),
        (255, 255, 255),
    )
    pen = ImageDraw.Draw(page)
    large, normal, small = (ImageFont.load_default(size) for size in (26, 19, 14))
    pen.text((EDGE, 24), title, INK, large)
    right = sum(card.right for card, _ in cards)
    said = f"{right} of these {len(cards)} answers are right. White ring: what was asked for."
    pen.text((EDGE, 60), said, MUTED, normal)
    for number, (card, pictures) in enumerate(cards):
        left = EDGE + number % columns * (width + EDGE)
        above = top + number // columns * (height + EDGE)
        _write(pen, card, left, above, width, (normal, small))
        for place, (name, picture) in enumerate(zip(NAMES, pictures, strict=True)):
            at = left + place * (SIDE + 8)
            page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (at, above + HEAD))
            pen.text((at, above + HEAD + SIDE + 4), name, MUTED, small)
    return page


def _write(
    pen: ImageDraw.ImageDraw,
    card: Shown,
    left: int,
    above: int,
    width: int,
    fonts: Sequence[ImageFont.FreeTypeFont | ImageFont.ImageFont],
) -> None:
    normal, small = fonts
    pen.text((left, above), f"{card.number}  {card.question}", INK, normal)
    verdict = f"answer {card.given}, right" if card.right else f"answer {card.given}, true {card.answer}"
    pen.text((left + width, above), verdict, RIGHT if card.right else WRONG, normal, anchor="ra")
    pen.text((left, above + 28), told(card), MUTED, small)


def told(card: Shown) -> str:
    """The rest of what there is to say of a scene."""
    return (
        f"by {card.kind}; chance given {card.chance:.2f}; {card.tokens} tokens; "
        f"{card.found:.0%} of what was asked for at the finest level"
    )


STYLE = """
body { margin: 0; background: #faf9f6; color: #1e1c19;
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 8px; }
p { margin: 0; } .lead { color: #645f57; max-width: 72ch; }
article { background: #fff; border: 1px solid #e7e3db; border-radius: 14px; padding: 20px 22px;
  margin-top: 22px; }
.top { display: flex; flex-wrap: wrap; gap: 4px 20px; justify-content: space-between;
  align-items: baseline; }
h2 { font-size: 17px; margin: 0; font-weight: 650; }
h2 span { color: #645f57; font-weight: 450; margin-right: 8px; }
.right { color: #0a6b50; font-weight: 600; } .wrong { color: #b0261d; font-weight: 600; }
.small { color: #645f57; font-size: 13px; }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; margin-top: 14px; }
figure { margin: 0; } img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { font-size: 13px; color: #645f57; padding-top: 4px; }
@media (max-width: 640px) { .row { grid-template-columns: 1fr; } main { padding: 24px 14px; } }
@media (prefers-color-scheme: dark) {
  body { background: #151412; color: #efece6; } article { background: #1d1b19; border-color: #35322d; }
  .lead, .small, figcaption, h2 span { color: #aaa49a; } .right { color: #63cba7; } .wrong { color: #ff938a; }
}
"""


def page(cards: Sequence[tuple[Shown, tuple[Image.Image, ...]]], title: str, lead: str) -> str:
    """One HTML file that opens without a network and runs no script."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; "
        'img-src data:">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
    ]
    for card, pictures in cards:
        css, verdict = (
            ("right", f"{card.given}, right")
            if card.right
            else ("wrong", f"{card.given}, true {card.answer}")
        )
        figures = "".join(
            f'<figure><img src="{_data(picture)}" alt="{html.escape(alt)}">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, alt, picture in zip(
                NAMES,
                (
                    f"scene {card.number}: coloured digits on a photograph",
                    "where the scorers see relevance, glowing",
                    f"the {card.tokens} tokens: coarse squares, fine ones where it looked closely",
                ),
                pictures,
                strict=True,
            )
        )
        parts.append(
            f'<article><div class="top"><h2><span>{card.number}</span>{html.escape(card.question)}</h2>'
            f'<p class="{css}">answer {verdict}</p></div>'
            f'<p class="small">{html.escape(told(card))}</p><div class="row">{figures}</div></article>\n'
        )
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _data(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


# ---------------------------------------------------------------- the command


def main() -> None:
    """See the module."""
    from edgekiln.arrcoc.checkpoint import load
    from edgekiln.arrcoc.exporting import export

    parser = arguments(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=12, help="scenes (default 12)")
    parser.add_argument("--total", type=int, default=81, help="tokens (default 81)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    unfit = fitness()
    scorer, reader, about = load(given.checkpoint)
    cards = []
    with tempfile.TemporaryDirectory() as scratch:
        export(scorer, reader, Path(scratch), about.command, about.seed)
        compact = Compact(Path(scratch))
        for made, question in scenes(SPLIT, 2 if given.quick else given.count, SEED, given.kinds):
            seen = compact.ask(made.picture, question.text, given.total)
            cards.append((shown(made, question, seen), panels(made, question, seen, LARGE)))
    title = f"ARR-COC: the first {len(cards)} scenes of the test split, {given.total} tokens"
    lead = (
        f"Scenes 0 to {len(cards) - 1} of seed {SEED}, none left out; no photograph or font of them was in "
        f"training. {sum(card.right for card, _ in cards)} answers are right. Trained by: {about.command}. "
        "A ring marks what was asked for; the relevance glows (its square root, on a fixed scale); the "
        "windows that were read in full detail are framed."
    )
    held = io.BytesIO()
    sheet(cards, title).save(held, "PNG", optimize=True)
    files.write_bytes(given.out / "gallery.png", held.getvalue())
    files.write_bytes(given.out / "gallery.html", page(cards, title, lead).encode())
    say(f"wrote {given.out / 'gallery.png'} and gallery.html")
    rows = [card for card, _ in cards]
    table = Table(
        title=title,
        columns=(
            "scene",
            "question",
            "answer",
            "true",
            "right",
            "chance given",
            "of the evidence at the finest level",
        ),
        rows=tuple(
            (
                str(c.number),
                c.question,
                str(c.given),
                str(c.answer),
                "yes" if c.right else "no",
                f"{c.chance:.2f}",
                f"{c.found:.0%}",
            )
            for c in rows
        ),
        note="Measured, on a dozen scenes: to look at, not to conclude from.",
    )
    publish("arrcoc-gallery", [table], rows, quick=given.quick, out=given.out, unfit=unfit)
