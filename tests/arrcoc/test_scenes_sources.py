"""Photographs and fonts: what the installed packages hold, and that no split shares any."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekiln.arrcoc.scenes import fonts, photographs, scene
from edgekiln.arrcoc.scenes.photographs import CANVAS, PHOTOGRAPHS, SPLITS
from edgekiln.errors import BadInput, Corrupt, MissingExtra

NOT_PHOTOGRAPHS = {"color.png", "phantom.png", "logo.png", "horse.png", "chessboard_RGB.png"}
OTHER_HALF_OF_A_STEREO_PAIR = {"motorcycle_right.png"}


def folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def colour_pictures(where: Path, least_side: int) -> set[str]:
    found = set()
    for path in where.iterdir():
        if path.suffix in {".png", ".jpg"}:
            with Image.open(path) as opened:
                if opened.mode in {"RGB", "RGBA", "P"} and min(opened.size) >= least_side:
                    found.add(path.name)
    return found


def of_package(package: str) -> set[str]:
    return {Path(p.path).name for p in PHOTOGRAPHS if p.package == package}


def test_the_table_names_every_colour_photograph_of_the_packages() -> None:
    skimage = colour_pictures(folder("skimage") / "data", 300)
    assert of_package("skimage") == skimage - NOT_PHOTOGRAPHS - OTHER_HALF_OF_A_STEREO_PAIR
    assert of_package("sklearn") == colour_pictures(folder("sklearn") / "datasets" / "images", 300)
    assert of_package("foolbox") == colour_pictures(folder("foolbox") / "data", 300)
    assert of_package("matplotlib") == colour_pictures(
        folder("matplotlib") / "mpl-data" / "sample_data", 300
    ) - {"logo2.png"}


def test_no_split_shares_a_photograph_or_a_font_family() -> None:
    assert {p.split for p in PHOTOGRAPHS} == {f.split for f in fonts.FONTS} == set(SPLITS)
    assert len({p.sha256_head for p in PHOTOGRAPHS}) == len({p.name for p in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    family_splits = {(f.family, f.split) for f in fonts.FONTS}
    assert max(Counter(family for family, _ in family_splits).values()) == 1
    assert len({f.name for f in fonts.FONTS}) == len(fonts.FONTS)


def test_every_source_states_its_licence() -> None:
    assert all(p.licence for p in PHOTOGRAPHS)
    assert all(f.licence for f in fonts.FONTS)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda p: p.name)
def test_every_photograph_covers_the_canvas_in_colour(photograph: photographs.Photograph) -> None:
    kept = photographs.scales(photograph)
    assert 1 <= len(kept) <= len(photographs.SHORT_SIDES)
    for pixels, side in zip(kept, photographs.SHORT_SIDES, strict=False):
        assert pixels.dtype == np.uint8
        assert min(pixels.shape[:2]) == side >= CANVAS
        assert not pixels.flags.writeable, "shared between scenes"
    assert np.ptp(kept[0].astype(int), axis=2).mean() > 4, "grey: digits would be its only colour"


@pytest.mark.parametrize("font", fonts.FONTS, ids=lambda f: f.name)
def test_every_font_has_ten_different_digits_with_enough_ink(font: fonts.Font) -> None:
    for size in fonts.SIZES:
        seen = set()
        for digit in range(10):
            for y in fonts.PHASES:
                for x in fonts.PHASES:
                    mask = fonts.mask(font.name, size, digit, y, x)
                    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
                        assert edge.any(), "cut to the ink"
                    assert 0.5 * size < mask.shape[0] < size
                    assert mask.max() > 150, "no stroke is fully inked"
            seen.add(fonts.mask(font.name, size, digit, 0.0, 0.0).tobytes())
        assert len(seen) == 10


def test_an_absent_package_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtra, match=r"foolbox.*'demo'") as caught:
        photographs.scales.__wrapped__(photographs.photographs("train")[0])
    assert caught.value.cure == "Run: pip install 'edgekiln[demo]'"


def test_another_file_in_the_package_is_noticed() -> None:
    with pytest.raises(Corrupt, match="another file") as caught:
        photographs.package_file("skimage", "data/astronaut.png", "00", "reading")
    assert "constraints.txt" in caught.value.cure
    with pytest.raises(Corrupt, match="no such file"):
        photographs.package_file("skimage", "data/astronaut.webp", "00", "reading")


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="Did you mean 'train'"):
        scene("training", 0)


def test_the_documentation_lists_every_source() -> None:
    text = (Path(__file__).parents[2] / "docs" / "arrcoc" / "scenes.md").read_text(encoding="utf-8")
    for p in PHOTOGRAPHS:
        assert f"| {p.name} | {p.package} | {p.split} | {p.licence} |" in text
    for f in fonts.FONTS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {f.family} |"))
        assert row.endswith(f"| {f.split} | {f.licence} |")
        assert f.name in row
