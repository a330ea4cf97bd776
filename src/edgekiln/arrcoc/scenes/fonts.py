"""The typefaces of the digits, split by family, and their digits as masks of coverage.

They are files of matplotlib and the one face inside Pillow. Left out of matplotlib's are those without
digits (the symbol faces), and Computer Modern's mathematical italic, whose digits hang below the line.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from edgekiln.arrcoc.scenes.photographs import Split, package_file
from edgekiln.errors import NotRunnableHere
from edgekiln.records import Record

SIZES = (11.0, 11.5, 12.0, 12.5, 13.0, 13.5, 14.0)
"""Points at 72 dpi, so pixels to the em; a digit is about 0.7 of that high."""
PHASES = (0.0, 0.5)
"""Where between two pixels a glyph starts, along each axis."""
LEAST_COVERAGE = 12
"""Coverage (0..255) below this is no ink: nobody sees it, and boxes would be a pixel too wide."""

_TTF = "mpl-data/fonts/ttf"


class Font(Record, frozen=True, kw_only=True):
    """A face; ``file`` is empty for the one inside Pillow itself."""

    name: str
    family: str
    split: Split
    file: str
    sha256_head: str
    licence: str


def _family(family: str, split: Split, licence: str, **faces: str) -> tuple[Font, ...]:
    return tuple(
        Font(
            name=name.replace("_", "-"),
            family=family,
            split=split,
            file=f"{_TTF}/{name.replace('_', '-')}.ttf",
            sha256_head=head,
            licence=licence,
        )
        for name, head in faces.items()
    )


_VERA = "Bitstream Vera licence"
_BAKOMA = "BaKoMa Fonts licence"
FONTS: tuple[Font, ...] = (
    *_family(
        "DejaVu Sans",
        "train",
        _VERA,
        DejaVuSans="3fdf69cabf06049e",
        DejaVuSans_Bold="b184b89e3c1075f2",
        DejaVuSans_Oblique="ccdf74b350f11fd3",
        DejaVuSans_BoldOblique="6edf0283160186af",
    ),
    *_family(
        "DejaVu Sans Mono",
        "train",
        _VERA,
        DejaVuSansMono="602ec86b8948cfcd",
        DejaVuSansMono_Bold="baada9a5172fe208",
        DejaVuSansMono_Oblique="28052813f7a709fc",
        DejaVuSansMono_BoldOblique="a69081c15c76c827",
    ),
    *_family(
        "DejaVu Serif",
        "train",
        _VERA,
        DejaVuSerif="107244956e9962b9",
        DejaVuSerif_Bold="c3753f2ed6bc673f",
        DejaVuSerif_Italic="3e7994fbc54fa10c",
        DejaVuSerif_BoldItalic="d93efec7a9d2e826",
    ),
    *_family(
        "STIX General",
        "train",
        "STIX Font licence",
        STIXGeneral="167378031e2dddc6",
        STIXGeneralBol="e8533dc7083fa346",
        STIXGeneralItalic="6cfcb333d22b7c3c",
        STIXGeneralBolIta="98788fd4ba48dfbb",
    ),
    *_family("Computer Modern Sans", "validation", _BAKOMA, cmss10="7df91a83d05b2e47"),
    *_family("Computer Modern Typewriter", "validation", _BAKOMA, cmtt10="6211f09ae9359999"),
    *_family(
        "Computer Modern Roman",
        "test",
        _BAKOMA,
        cmr10="4dd9761b058c009d",
        cmb10="074497b50c43ea57",
        cmti10="f9f1f9f654308ae8",
    ),
    Font(name="Aileron", family="Aileron", split="test", file="", sha256_head="", licence="CC0"),
)


@functools.cache
def fonts(split: Split) -> tuple[Font, ...]:
    """The fonts of one split, in the order of the table."""
    return tuple(f for f in FONTS if f.split == split)


@functools.cache
def _content(font: Font) -> bytes:
    return package_file("matplotlib", font.file, font.sha256_head, "reading the font")


@functools.cache
def _face(name: str, size: float) -> ImageFont.FreeTypeFont:
    font = next(f for f in FONTS if f.name == name)
    if not features.check("freetype2"):
        cure = "Install Pillow from a wheel, or build it with FreeType."
        raise NotRunnableHere("drawing with the font", name, "this Pillow has no FreeType", cure)
    if font.file:
        return ImageFont.truetype(io.BytesIO(_content(font)), size, layout_engine=ImageFont.Layout.BASIC)
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


@functools.cache
def mask(name: str, size: float, digit: int, phase_y: float, phase_x: float) -> NDArray[np.uint8]:
    """One antialiased digit of the named font, cut to its ink: coverage 0..255, read-only uint8 (h, w)."""
    side = int(4 * size)
    ground = Image.new("L", (side, side))
    start = (side // 4 + phase_x, side // 4 + phase_y)
    ImageDraw.Draw(ground).text(start, str(digit), fill=255, font=_face(name, size))
    coverage: NDArray[np.uint8] = np.array(ground)
    coverage[coverage < LEAST_COVERAGE] = 0
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    cut = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    cut.setflags(write=False)
    return cut
