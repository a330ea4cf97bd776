"""The tokeniser: fixed numbers, fixed length, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.arrcoc import words
from edgekiln.arrcoc.scenes.questions import KINDS, phrasings, topics
from edgekiln.errors import BadInput

FIRST_BUCKET = 1 + len(words.VOCABULARY)


def trained_words() -> set[str]:
    texts = [t for k in KINDS for topic in topics(k) for t in phrasings(k, topic, "train")]
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def test_the_vocabulary_is_the_words_of_the_training_phrasings() -> None:
    assert set(words.VOCABULARY) == trained_words()
    assert list(words.VOCABULARY) == sorted(set(words.VOCABULARY)), "in alphabetical order, none twice"


def test_every_phrasing_of_every_split_fits_whole() -> None:
    for kind in KINDS:
        for topic in topics(kind):
            for split in ("train", "validation", "test"):
                for text in phrasings(kind, topic, split):  # type: ignore[arg-type]
                    assert len(words.words(text)) <= words.LENGTH


def test_what_is_asked_for_is_known_in_the_held_out_phrasings_too() -> None:
    for kind in KINDS:
        for topic in topics(kind):
            for text in phrasings(kind, topic, "test"):
                said = set(words.words(text)) & set(words.VOCABULARY)
                assert set(topic.split()) <= said | {"centre"}, text


def test_numbers_do_not_change_between_releases() -> None:
    ids, mask = words.tokens("Which digit is the red one?")
    assert ids.tolist() == [42, 9, 16, 36, 32, 27, *[0] * 10]
    assert mask.tolist() == [True] * 6 + [False] * 10
    assert ids.dtype == np.int64
    assert mask.dtype == np.bool_


def test_another_process_gives_unknown_words_the_same_bucket() -> None:
    code = "from edgekiln.arrcoc.words import number; print(number('zebra'), number('übergröße'))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        )
        assert done.stdout.split() == [str(words.number("zebra")), str(words.number("übergröße"))]


def test_case_punctuation_and_spelling_make_no_difference() -> None:
    plain, _ = words.tokens("closest to the centre")
    for text in ("Closest to the CENTER!", "  closest,to\tthe\ncentre?? ", "closest to the ｃｅｎｔｒｅ"):
        assert words.tokens(text)[0].tolist() == plain.tolist()


def test_of_a_long_question_the_known_words_are_kept_first_and_in_order() -> None:
    noise = " ".join(f"blah{i}" for i in range(30))
    ids, mask = words.tokens(f"{noise} which digit {noise} is the red one")
    known = [i for i in ids.tolist() if i < FIRST_BUCKET]
    assert known == [words.number(w) for w in ("which", "digit", "is", "the", "red", "one")]
    assert mask.all()
    assert ids[:10].tolist() == [words.number(f"blah{i}") for i in range(10)], "then the earliest others"


def test_of_more_than_sixteen_known_words_the_first_are_kept() -> None:
    ids, _ = words.tokens(" ".join(words.VOCABULARY))
    assert ids.tolist() == list(range(1, 17))


@pytest.mark.parametrize("text", ["", "   ", "?!…", "\n\t", "___", "🎈"])
def test_a_question_without_a_word_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match="no word") as caught:
        words.tokens(text)
    assert "Which digit" in caught.value.cure


def test_an_enormous_question_is_refused_and_the_longest_one_is_not() -> None:
    with pytest.raises(BadInput, match="2,001 characters") as caught:
        words.tokens("a" * 2_001)
    assert "short" in caught.value.cure
    words.tokens("a " * 1_000)


@given(st.text(max_size=400))
def test_any_text_is_refused_or_gives_numbers_in_range(text: str) -> None:
    try:
        ids, mask = words.tokens(text)
    except BadInput:
        return
    assert ids.shape == mask.shape == (words.LENGTH,)
    n = int(mask.sum())
    assert n >= 1
    assert mask.tolist() == [True] * n + [False] * (words.LENGTH - n)
    assert ((ids[:n] > 0) & (ids[:n] < words.TOKENS)).all()
    assert not ids[n:].any()
