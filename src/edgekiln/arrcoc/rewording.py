"""Questions in other words than the training's phrasings: what is meant should be heard, no frame learned.

Words are left out at random and foreign ones put in (word dropout, Iyyer et al. 2015, "Deep unordered
composition rivals syntactic methods for text classification"), never those that say what is asked for.
"""

from __future__ import annotations

import numpy as np

from edgekiln.arrcoc.words import words

_MEANT = """
red orange yellow green cyan blue purple pink count how many
left right top bottom centre middle leftmost rightmost topmost lowest
"""
MEANT = frozenset(_MEANT.split())
"""Words that no question of the training means the same without."""
LEFT_OUT, PUT_IN = 0.6, 0.15
"""Chance of a word to be left out at most, and of a foreign word before each."""
AS_IT_IS = 0.3
"""Share of the questions that stay as they are."""


def reworded(question: str, random: np.random.Generator) -> str:
    """The question without some of its words, with foreign ones between them; those of ``MEANT`` stay, in
    their order. Raises BadInput as ``words`` does."""
    found = words(question)
    if random.random() < AS_IT_IS:
        return " ".join(found)
    left_out = random.random() * LEFT_OUT
    made: list[str] = []
    for word in found:
        if random.random() < PUT_IN:
            made.append(f"foreign{random.integers(1 << 16)}")  # in any of the buckets
        if word in MEANT or random.random() >= left_out:
            made.append(word)
    return " ".join(made or found)
