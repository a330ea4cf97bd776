"""Scenes: the same from one seed everywhere, glyphs where their boxes say, readable, no shortcuts."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgekiln.arrcoc.scenes import Glyph, Question, Scene, fonts, relevance_target, scene, scenes
from edgekiln.arrcoc.scenes.colours import COLOURS, JITTER, LEAST_DIFFERENCE, LEAST_LIGHTNESS, contrast, lab
from edgekiln.arrcoc.scenes.generate import COUNTED_TOTALS, GAP, MARGIN, background, ground
from edgekiln.arrcoc.scenes.photographs import CANVAS, SPLITS, Split, photographs
from edgekiln.arrcoc.scenes.questions import KINDS
from edgekiln.errors import BadInput

Made = list[tuple[Scene, Question]]
Facts = list[tuple[tuple[Glyph, ...], Question]]


@pytest.fixture(scope="module")
def few() -> Made:
    """Some scenes of every split and kind, with their pictures."""
    return [pair for split in SPLITS for pair in scenes(split, 15, seed=5)]


@pytest.fixture(scope="module")
def many() -> dict[str, Facts]:
    """Enough of each kind to count on, without their pictures."""
    return {kind: [(s.glyphs, q) for s, q in scenes("train", 200, 7, (kind,))] for kind in KINDS}


def fingerprint(made: Iterable[tuple[Scene, Question]]) -> list[str]:
    return sorted(
        hashlib.sha256(s.picture.tobytes() + repr((s.glyphs, s.cut, q)).encode()).hexdigest() for s, q in made
    )


# ---------------------------------------------------------------- the same everywhere


def test_another_process_makes_the_same_scenes_in_any_order() -> None:
    code = (
        "import hashlib\nfrom edgekiln.arrcoc.scenes import scene\n"
        "for split in ('test', 'train'):\n"
        "    for i in (5, 2, 4, 3):\n"
        "        s, q = scene(split, i, 11)\n"
        "        text = repr((s.glyphs, s.cut, q)).encode()\n"
        "        print(hashlib.sha256(s.picture.tobytes() + text).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [pair for split in ("train", "test") for pair in scenes(split, 4, 11, start=2)]
    assert sorted(done.stdout.split()) == fingerprint(here)


def test_seeds_splits_and_numbers_give_different_scenes() -> None:
    made = [scene(split, i, seed) for split in SPLITS for i in (0, 3) for seed in (0, 1)]
    assert len(set(fingerprint(made))) == len(made)


def test_a_scene_does_not_change_with_what_is_done_to_another() -> None:
    first, _ = scene("train", 9, 3)
    first.picture[:] = 0
    again, _ = scene("train", 9, 3)
    assert again.picture.any()
    assert fingerprint([scene("train", 9, 3)]) == fingerprint([scene("train", 9, 3)])


# ---------------------------------------------------------------- glyphs and boxes


def test_a_picture_differs_from_its_photograph_inside_the_boxes_only(few: Made) -> None:
    for made, _ in few:
        assert made.picture.shape == (CANVAS, CANVAS, 3)
        assert made.picture.dtype == np.uint8
        changed = (made.picture != background(made.cut)).any(axis=2)
        for glyph in made.glyphs:
            y0, x0, y1, x1 = glyph.box
            inside = changed[y0:y1, x0:x1]
            assert inside.mean() > 0.2, "the glyph is there"
            coverage = fonts.mask(glyph.font, glyph.size, glyph.digit, *glyph.phase)
            assert inside.shape == coverage.shape
            assert not inside[coverage == 0].any(), "nothing but its strokes"
            assert inside[coverage > 128].all()
            changed[y0:y1, x0:x1] = False
        assert not changed.any()


def test_boxes_lie_apart_and_within_the_canvas(many: dict[str, Facts]) -> None:
    for glyphs, _ in (pair for facts in many.values() for pair in facts):
        painted = np.zeros((CANVAS, CANVAS), np.uint8)
        for y0, x0, y1, x1 in (g.box for g in glyphs):
            assert min(y0, x0) >= MARGIN
            assert max(y1, x1) <= CANVAS - MARGIN
            # One box grown by the gap on two sides touches no other; which sides does not matter.
            painted[y0 : y1 + GAP, x0 : x1 + GAP] += 1
        for y0, x0, y1, x1 in (g.box for g in glyphs):
            assert painted[y0:y1, x0:x1].max() == 1


def test_the_splits_keep_to_their_own_photographs_and_fonts(few: Made) -> None:
    for made, _ in few:
        assert made.cut.photograph in {p.name for p in photographs(made.split)}
        assert {g.font for g in made.glyphs} <= {f.name for f in fonts.fonts(made.split)}


def test_every_photograph_and_font_of_a_split_is_used() -> None:
    used: dict[Split, set[str]] = defaultdict(set)
    for split in SPLITS:
        for made, _ in scenes(split, 80 if split == "train" else 30, 2, ("colour",)):
            used[split] |= {made.cut.photograph, *(g.font for g in made.glyphs)}
        assert used[split] == {p.name for p in photographs(split)} | {f.name for f in fonts.fonts(split)}


# ---------------------------------------------------------------- readable


def test_every_glyph_stands_out_from_what_is_behind_it(few: Made) -> None:
    for made, _ in few:
        behind = background(made.cut)
        for glyph in made.glyphs:
            tint = lab(np.array(glyph.rgb, np.uint8))
            difference, lightness = contrast(tint, ground(behind, glyph.box)[None])
            assert difference[0] >= LEAST_DIFFERENCE
            assert lightness[0] >= LEAST_LIGHTNESS


def test_lab_is_that_of_the_standard() -> None:
    # White, black, and the sRGB primaries under D65 as every colour calculator gives them.
    rgb = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    assert np.abs(lab(rgb) - known).max() < 0.05


def test_a_jittered_colour_stays_nearest_to_its_own_name() -> None:
    names = list(COLOURS)
    centres = lab(np.array([COLOURS[n] for n in names], np.uint8))
    corners = np.stack(np.meshgrid(*[[-JITTER, 0, JITTER]] * 3), axis=-1).reshape(-1, 3)
    for index, name in enumerate(names):
        around = lab(np.clip(np.array(COLOURS[name]) + corners, 0, 255).astype(np.uint8))
        away = np.linalg.norm(around[:, None] - centres, axis=2)
        assert (away.argmin(axis=1) == index).all()
        others = np.delete(away, index, axis=1)
        assert others.min() > 25, f"{name} could be taken for another"


def ink(made: Scene, glyph: Glyph) -> NDArray[np.float32]:
    """How much of the glyph's colour each pixel of its box has, judged by the ring around the box alone."""
    y0, x0, y1, x1 = glyph.box
    around = made.picture[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2].astype(np.float32)
    ring = np.ones(around.shape[:2], bool)
    ring[2:-2, 2:-2] = False
    mean = around[ring].mean(axis=0)
    towards = np.array(glyph.rgb, np.float32) - mean
    return np.clip((around[2:-2, 2:-2] - mean) @ towards / (towards @ towards), 0, 1).astype(np.float32)


def same_size(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    resized = Image.fromarray(coverage).resize((8, 12), Image.Resampling.BILINEAR)
    values = np.append(np.asarray(resized).ravel(), 8 * coverage.shape[1] / coverage.shape[0])
    return values.astype(np.float32)


def test_a_plain_reader_that_never_saw_the_fonts_reads_most_digits(few: Made) -> None:
    """Nearest template among the training fonts. Digits on quiet and on busy ground, unknown fonts."""
    templates, digits = [], []
    for font in fonts.fonts("train"):
        for size in fonts.SIZES:
            for digit in range(10):
                mask = fonts.mask(font.name, size, digit, 0.0, 0.0)
                templates.append(same_size(mask.astype(np.float32) / 255))
                digits.append(digit)
    known = np.stack(templates)
    read: dict[str, list[bool]] = defaultdict(list)
    for made, _ in few:
        for glyph in made.glyphs:
            away = np.abs(known - same_size(ink(made, glyph))).sum(axis=1)
            read[made.split].append(digits[int(away.argmin())] == glyph.digit)
    share = {split: float(np.mean(hits)) for split, hits in read.items()}
    print("read by the nearest template:", share)
    assert share["train"] >= 0.95
    assert share["validation"] >= 0.9
    assert share["test"] >= 0.75


# ---------------------------------------------------------------- no shortcuts


def test_no_answer_is_much_more_frequent_than_another(many: dict[str, Facts]) -> None:
    for kind, facts in many.items():
        answers = Counter(q.answer for _, q in facts)
        assert set(answers) == set(range(10))
        assert max(answers.values()) / len(facts) <= 0.15, kind


def test_no_digit_and_no_colour_is_much_more_frequent_than_another(many: dict[str, Facts]) -> None:
    for facts in many.values():
        digits = Counter(g.digit for glyphs, _ in facts for g in glyphs)
        named = Counter(g.colour for glyphs, _ in facts for g in glyphs)
        assert max(digits.values()) / digits.total() < 0.12
        assert min(named.values()) / named.total() > 0.09
        assert max(named.values()) / named.total() < 0.16


def test_neither_the_total_nor_the_topic_tells_a_count(many: dict[str, Facts]) -> None:
    facts = many["count"]
    totals = np.array([len(glyphs) for glyphs, _ in facts], float)
    answers = np.array([q.answer for _, q in facts], float)
    assert set(totals) == set(COUNTED_TOTALS)
    assert abs(np.corrcoef(totals, answers)[0, 1]) < 0.1
    for topic in COLOURS:
        assert 3 < answers[[q.topic == topic for _, q in facts]].mean() < 6


def test_digits_and_colours_to_be_read_are_all_different(many: dict[str, Facts]) -> None:
    for kind in ("colour", "place"):
        for glyphs, _ in many[kind]:
            assert len(glyphs) == 6
            assert len({g.digit for g in glyphs}) == len({g.colour for g in glyphs}) == 6


# ---------------------------------------------------------------- relevance


def test_the_target_is_one_where_a_box_lies_within_a_cell(few: Made) -> None:
    for made, question in few:
        target = relevance_target(made, question)
        assert target.shape == (28, 28)
        assert target.dtype == np.float32
        boxes = [made.glyphs[i].box for i in question.evidence]
        touched = np.zeros((28, 28), bool)
        for y0, x0, y1, x1 in boxes:
            touched[y0 // 16 : (y1 - 1) // 16 + 1, x0 // 16 : (x1 - 1) // 16 + 1] = True
            if y0 // 16 == (y1 - 1) // 16 and x0 // 16 == (x1 - 1) // 16:
                assert target[y0 // 16, x0 // 16] == pytest.approx(1)
        assert ((target > 0) == touched).all()
        assert target.sum() <= len(boxes) + 1e-4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 30))
def test_each_box_weighs_one_on_any_grid(rows: int, columns: int, number: int) -> None:
    made, question = ONE_SCENE
    one = Question(text="", kind="colour", topic="", answer=0, evidence=(number % len(made.glyphs),))
    target = relevance_target(made, one, (rows, columns))
    assert target.shape == (rows, columns)
    assert target.sum() == pytest.approx(1, abs=1e-4)
    assert relevance_target(made, question, (rows, columns)).max() <= 1


ONE_SCENE = scene("validation", 0, 1)


# ---------------------------------------------------------------- what is asked of it


def test_the_number_of_glyphs_can_be_chosen() -> None:
    for n in (1, 8):
        made, _ = scene("train", 0, kinds=("colour",), glyphs=n)
        assert len(made.glyphs) == n


@pytest.mark.parametrize("glyphs", [0, 9, -1])
def test_more_glyphs_than_colours_are_refused(glyphs: int) -> None:
    with pytest.raises(BadInput, match="1 to 8 glyphs"):
        scene("train", 0, glyphs=glyphs)


def test_kinds_take_turns() -> None:
    asked = [q.kind for _, q in scenes("train", 4, kinds=("count", "colour"))]
    assert asked == ["count", "colour", "count", "colour"]


def test_wrong_kinds_seeds_and_numbers_are_refused() -> None:
    with pytest.raises(BadInput, match="Did you mean 'colour'"):
        scene("train", 0, kinds=("color",))
    with pytest.raises(BadInput, match="colour, place, count"):
        scene("train", 0, kinds=())
    with pytest.raises(BadInput, match="count from 0"):
        scene("train", -1)
    with pytest.raises(BadInput, match="count from 0"):
        scene("train", 0, -1)
