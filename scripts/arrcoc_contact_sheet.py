"""Draws a sheet of scenes with their boxes and questions: is every digit legible to a person?

    python scripts/arrcoc_contact_sheet.py --split train --count 6 --out sheet.png
    python scripts/arrcoc_contact_sheet.py --crops --count 40 --out crops.png

Evidence boxes are white, the others black; ``--crops`` shows single glyphs, enlarged, without boxes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from PIL import Image, ImageDraw

from edgekiln.arrcoc.scenes import Glyph, Question, Scene, scenes
from edgekiln.arrcoc.scenes.photographs import CANVAS, SPLITS
from edgekiln.arrcoc.scenes.questions import KINDS

CAPTION = 28
HALF = 16
ENLARGED = 4


def sheet(made: list[tuple[Scene, Question]], columns: int, boxes: bool) -> Image.Image:
    """Scenes at their own size, the question and the answer below each."""
    rows = math.ceil(len(made) / columns)
    page = Image.new("RGB", (columns * (CANVAS + 4), rows * (CANVAS + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    for number, (scene, question) in enumerate(made):
        x, y = number % columns * (CANVAS + 4), number // columns * (CANVAS + CAPTION)
        page.paste(Image.fromarray(scene.picture), (x, y))
        for index, glyph in enumerate(scene.glyphs if boxes else ()):
            y0, x0, y1, x1 = glyph.box
            shade = "white" if index in question.evidence else "black"
            pen.rectangle((x + x0 - 3, y + y0 - 3, x + x1 + 2, y + y1 + 2), outline=shade)
        pen.text((x + 2, y + CANVAS + 2), f"{question.text}  {question.answer}", fill="black")
        pen.text((x + 2, y + CANVAS + 14), f"{scene.cut.photograph} #{scene.index}", fill="grey")
    return page


def crops(glyphs: list[tuple[Scene, Glyph]], columns: int) -> Image.Image:
    """Single glyphs with what surrounds them, enlarged, each with its digit, colour, font and size."""
    side = 2 * HALF * ENLARGED
    rows = math.ceil(len(glyphs) / columns)
    page = Image.new("RGB", (columns * (side + 4), rows * (side + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    for number, (scene, glyph) in enumerate(glyphs):
        x, y = number % columns * (side + 4), number // columns * (side + CAPTION)
        middle = [round(min(max(c, HALF), CANVAS - HALF)) for c in glyph.centre]
        around = (middle[1] - HALF, middle[0] - HALF, middle[1] + HALF, middle[0] + HALF)
        crop = Image.fromarray(scene.picture).crop(around)
        page.paste(crop.resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 1), f"{glyph.digit} {glyph.colour} {glyph.size:g}", fill="black")
        pen.text((x, y + side + 13), glyph.font, fill="grey")
    return page


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--split", choices=SPLITS, default="train")
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--count", type=int, default=6, help="scenes, or glyphs with --crops")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--columns", type=int, default=3)
    arguments.add_argument("--crops", action="store_true")
    arguments.add_argument("--no-boxes", action="store_true")
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    made = list(scenes(given.split, given.count, given.seed, given.kinds))
    if given.crops:
        page = crops([(s, s.glyphs[0]) for s, _ in made], given.columns)
    else:
        page = sheet(made, given.columns, not given.no_boxes)
    page.save(given.out)


if __name__ == "__main__":
    main()
