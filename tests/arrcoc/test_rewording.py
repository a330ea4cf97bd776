"""Rewording: what is asked for stays, the frame around it varies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.arrcoc.rewording import AS_IT_IS, MEANT, reworded
from edgekiln.arrcoc.scenes.questions import KINDS, phrasings, topics
from edgekiln.arrcoc.training import Course, Scenes
from edgekiln.arrcoc.words import BUCKETS, VOCABULARY, number, tokens, words
from edgekiln.errors import BadInput

TEXTS = [text for kind in KINDS for topic in topics(kind) for text in phrasings(kind, topic, "train")]


@given(st.sampled_from(TEXTS), st.integers(0, 2**32 - 1))
def test_the_words_that_are_meant_stay_in_their_order(text, seed):
    found = words(reworded(text, np.random.default_rng(seed)))
    assert [w for w in found if w in MEANT] == [w for w in words(text) if w in MEANT]
    known = iter(words(text))
    assert all(w in known for w in found if w in VOCABULARY), "nothing known is put in or moved"


def test_every_question_of_the_training_means_something():
    """A question of which nothing has to stay could be reworded into any other."""
    for text in TEXTS:
        assert MEANT & set(words(text)), text
    assert set(VOCABULARY) >= MEANT


def test_frames_vary_and_some_questions_stay():
    random = np.random.default_rng(0)
    found = [reworded("What is the red digit?", random) for _ in range(600)]
    assert AS_IT_IS - 0.06 < np.mean([f == "what is the red digit" for f in found]) < AS_IT_IS + 0.15
    assert len(set(found)) > 200
    assert "red" in {f for f in found if len(f.split()) == 1}
    foreign = {number(w) for f in found for w in f.split() if w not in VOCABULARY}
    assert len(foreign) == BUCKETS, "each bucket is met"


def test_the_same_random_stream_gives_the_same_words():
    twice = [[reworded(t, np.random.default_rng(4)) for t in TEXTS] for _ in range(2)]
    assert twice[0] == twice[1]


def test_only_the_training_is_reworded():
    """What judges is asked as it is written."""
    for split, same in (("train", False), ("validation", True), ("test", True)):
        sample = [Scenes(split, 0, 12, Course(questions=1))[n]["ids"][0] for n in range(12)]
        asked = {tuple(tokens(t)[0]) for k in KINDS for o in topics(k) for t in phrasings(k, o, split)}
        assert all(tuple(ids) in asked for ids in sample) == same


def test_a_question_without_words_is_refused():
    with pytest.raises(BadInput, match="no word"):
        reworded("?", np.random.default_rng(0))
