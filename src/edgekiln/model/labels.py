"""Class names and indices, as people write them in folders and tables."""

from __future__ import annotations

from collections import Counter

from edgekiln.errors import BadInput, did_you_mean


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


class Classes:
    """Finds the index of a class by its name or its number."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._exact = {name: i for i, name in enumerate(labels)}
        self._plain = {_plain(name): i for i, name in enumerate(labels)}
        self._times = Counter(map(_plain, labels))

    def index(self, text: str, where: object) -> int:
        """The index that ``text`` means: a label, then a label but for case, "_" and "-", then a number.

        Raises BadInput for no class, a number outside the labels, or a name that two classes share.
        """
        doing = f"finding the class of label '{text}' in"
        plain = _plain(text)
        if self._times[plain] > 1 and not (text in self._exact and self._labels.count(text) == 1):
            why = f"{self._times[plain]} classes have this name"
            raise BadInput(doing, where, why, "Write the index of the class instead.")
        if text in self._exact:
            return self._exact[text]
        if plain in self._plain:
            return self._plain[plain]
        if text.isascii() and text.isdigit() and len(text) < 10:
            return self._number(int(text), doing, where)
        if not self._labels:
            cure = "Give the model's labels, or write indices (0, 1, 2 ...)."
            raise BadInput(doing, where, "the model has no labels", cure)
        raise BadInput(doing, where, "no class has this name", did_you_mean(text, self._labels[:2000]))

    def _number(self, index: int, doing: str, where: object) -> int:
        if self._labels and index >= len(self._labels):
            cure = f"Indices go from 0 to {len(self._labels) - 1}."
            raise BadInput(doing, where, f"there are {len(self._labels)} classes", cure)
        return index
