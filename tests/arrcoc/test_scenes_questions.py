"""Questions have exactly one answer, the right one, and the test split's phrasings are nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.arrcoc.scenes import Glyph, Question, questions_about, scenes
from edgekiln.arrcoc.scenes.colours import COLOURS
from edgekiln.arrcoc.scenes.photographs import CANVAS, SPLITS
from edgekiln.arrcoc.scenes.questions import KINDS, LEAST_LEAD, answered, phrasings, topics

CORNERS = {
    "top left": (0, 0),
    "top right": (0, CANVAS),
    "bottom left": (CANVAS, 0),
    "bottom right": (CANVAS, CANVAS),
    "centre": (CANVAS / 2, CANVAS / 2),
}


def distances(glyphs: tuple[Glyph, ...], topic: str) -> np.ndarray:
    """From the boxes alone, in another way than the generator's."""
    boxes = np.array([g.box for g in glyphs], float)
    y, x = boxes[:, [0, 2]].mean(axis=1), boxes[:, [1, 3]].mean(axis=1)
    if topic in CORNERS:
        at_y, at_x = CORNERS[topic]
        return np.sqrt((y - at_y) ** 2 + (x - at_x) ** 2)
    return {"left": x, "right": -x, "top": y, "bottom": -y}[topic]


def check(glyphs: tuple[Glyph, ...], question: Question) -> None:
    if question.kind == "place":
        away = distances(glyphs, question.topic)
        first, second = np.sort(away)[:2]
        assert second - first >= LEAST_LEAD, "an ambiguous place was asked for"
        assert question.evidence == (int(away.argmin()),)
        assert question.answer == glyphs[int(away.argmin())].digit
        return
    of_colour = [i for i, g in enumerate(glyphs) if g.colour == question.topic]
    assert list(question.evidence) == of_colour
    if question.kind == "count":
        assert question.answer == len(of_colour)
    else:
        assert len(of_colour) == 1
        assert question.answer == glyphs[of_colour[0]].digit
    assert question.topic in question.text


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_right_and_the_only_one(split: str) -> None:
    for made, question in scenes(split, 60, seed=13):
        check(made.glyphs, question)
        assert 0 <= question.answer <= 9
        assert question.text in phrasings(question.kind, question.topic, made.split)


def test_all_questions_about_a_scene_are_right_and_none_is_left_out() -> None:
    for made, question in scenes("train", 12, seed=4):
        every = questions_about(made)
        for one in every:
            check(made.glyphs, one)
        asked = {(q.kind, q.topic) for q in every}
        assert (question.kind, question.topic) in asked
        for topic in topics("place"):
            first, second = np.sort(distances(made.glyphs, topic))[:2]
            assert (("place", topic) in asked) == (second - first >= LEAST_LEAD)
        assert {t for k, t in asked if k == "count"} == set(COLOURS)
        assert questions_about(made) == every, "the same texts again"


def test_held_out_phrasings_are_in_no_other_split() -> None:
    for kind in KINDS:
        seen = {t for topic in topics(kind) for t in phrasings(kind, topic, "train")}
        held_out = {t for topic in topics(kind) for t in phrasings(kind, topic, "test")}
        assert seen == {t for topic in topics(kind) for t in phrasings(kind, topic, "validation")}
        assert not seen & held_out
        assert len(held_out) >= 3 * len(topics(kind))


def test_no_text_asks_two_different_things() -> None:
    asked: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for kind in KINDS:
            for topic in topics(kind):
                for text in phrasings(kind, topic, split):
                    assert asked.setdefault(text, (kind, topic)) == (kind, topic), text


def glyph(digit: int, colour: str, y: int, x: int) -> Glyph:
    return Glyph(
        digit=digit,
        colour=colour,
        rgb=COLOURS[colour],
        font="cmr10",
        size=12.0,
        phase=(0.0, 0.0),
        box=(y, x, y + 8, x + 6),
    )


def test_a_near_tie_has_no_answer() -> None:
    far = glyph(3, "red", 200, 50)
    assert answered((far, glyph(4, "blue", 200, 61)), "place", "left") is None
    assert answered((far, glyph(4, "blue", 200, 62)), "place", "left") == (3, (0,))


def test_a_colour_twice_or_never_has_no_digit_but_a_count() -> None:
    both = (glyph(3, "red", 10, 50), glyph(4, "red", 90, 50))
    assert answered(both, "colour", "red") is None
    assert answered(both, "count", "red") == (2, (0, 1))
    assert answered(both, "colour", "blue") is None
    assert answered(both, "count", "blue") == (0, ())


def test_ten_of_a_colour_are_not_counted() -> None:
    ten = tuple(glyph(1, "pink", 20 * i + 5, 9) for i in range(10))
    assert answered(ten, "count", "pink") is None
    assert answered(ten[:9], "count", "pink") == (9, tuple(range(9)))


@given(st.permutations(range(6)))
def test_the_order_of_the_glyphs_makes_no_difference(order: list[int]) -> None:
    names = list(COLOURS)
    glyphs = [glyph(i, names[i], 17 * i * i % 400 + 4, 61 * i + 9) for i in range(6)]
    turned = [glyphs[i] for i in order]
    for kind in KINDS:
        for topic in topics(kind):
            a, b = answered(glyphs, kind, topic), answered(turned, kind, topic)
            assert (a and a[0]) == (b and b[0])
