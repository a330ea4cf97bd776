"""The tokeniser of the compact system: the words of a question as sixteen numbers.

The vocabulary is fixed, for a checkpoint's embeddings go by these numbers: it holds the words of the
phrasings that the system is trained on. Any other word falls into one of a few buckets by its hash.
"""

from __future__ import annotations

import re
import unicodedata
import zlib

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput

LENGTH = 16
"""Words in the result; the longest phrasing of the training has 9."""
LONGEST = 2_000
"""Characters that a question may have."""
BUCKETS = 8
"""Numbers for words outside the vocabulary."""
_WORDS = """
are blue bottom centre closest corner count cyan digit digits edge furthest green how in is left
leftmost lowest many me middle nearest number numbers of one orange pink purple read red right rightmost
tell the there to top topmost what which written yellow
"""
VOCABULARY = tuple(_WORDS.split())
TOKENS = 1 + len(VOCABULARY) + BUCKETS
"""How many different numbers there are: 0 fills up, then the vocabulary from 1 on, then the buckets."""

_NUMBER = {word: number for number, word in enumerate(VOCABULARY, start=1)}
_SPELLED = {"center": "centre", "farthest": "furthest"}
_WORD = re.compile(r"[^\W_]+")


def words(question: str) -> list[str]:
    """The words in order: lower case, in composed form, without punctuation, in the vocabulary's spelling.

    Raises BadInput for a question without a word or of more than ``LONGEST`` characters.
    """
    if len(question) > LONGEST:
        raise BadInput(
            "reading the question",
            f"of {len(question):,} characters",
            f"it has more than {LONGEST:,}",
            "Ask one short question about the picture.",
        )
    found = _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
    if not found:
        raise BadInput(
            "reading the question",
            repr(question[:40]),
            "there is no word in it",
            "Ask something like: Which digit is the red one?",
        )
    return [_SPELLED.get(word, word) for word in found]


def number(word: str) -> int:
    """The number of a word, 1..``TOKENS`` - 1; the same on every machine and in every run."""
    known = _NUMBER.get(word)
    return known if known else 1 + len(VOCABULARY) + zlib.crc32(word.encode()) % BUCKETS


def tokens(question: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``ids`` int64 (16,) filled up with 0, and ``mask`` bool (16,), true where a word is.

    Of a longer question the words of the vocabulary are kept first, then the others, earliest first; those
    kept stay in their order. Raises BadInput as ``words`` does.
    """
    numbers = [number(word) for word in words(question)]
    first_bucket = 1 + len(VOCABULARY)
    ranked = sorted(range(len(numbers)), key=lambda i: (numbers[i] >= first_bucket, i))
    kept = [numbers[i] for i in sorted(ranked[:LENGTH])]
    ids = np.zeros(LENGTH, np.int64)
    ids[: len(kept)] = kept
    return ids, ids > 0
