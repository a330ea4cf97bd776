"""Word and character error rates of a line recogniser with a CTC head.

Edits (Levenshtein, Soviet Physics Doklady 10, 1966) are summed over all samples and divided by the words, or
characters, of the reference texts. Greedy decoding (Graves et al., ICML 2006): the best class of each step,
repeats merged, blanks dropped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.job import MetricOrder
from edgekiln.model.data import MAX_CSV_BYTES
from edgekiln.prove.metrics.outputs import chosen
from edgekiln.prove.metrics.score import Labelled
from edgekiln.records import Dataset, Model, Task

MAX_TEXT = 4096
_CURE = "Give a UTF-8 CSV file whose first line is: path,text"


class Edits:
    """(n, 4) of word edits, words, character edits, characters."""

    def __init__(self, rows: Sequence[tuple[int, int, int, int]], by_character: bool) -> None:
        self.each = np.asarray(rows, np.float64).reshape(-1, 4)
        self.hits = None
        first = 2 if by_character else 0
        self._edits, self._length = self.each[:, first], self.each[:, first + 1]
        words, characters = self.each[:, 1].sum(), self.each[:, 3].sum()
        found = {} if not words else {"wer": float(self.each[:, 0].sum() / words)}
        found |= {} if not characters else {"cer": float(self.each[:, 2].sum() / characters)}
        self.figures = dict(reversed(found.items())) if by_character else found

    def at(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        edits, length = counts @ self._edits, counts @ self._length
        rate: NDArray[np.float64] = np.full(len(counts), np.nan)
        np.divide(edits, length, out=rate, where=length > 0)
        return 1 - rate


class Text:
    task: Task = "text"
    lower_is_better = True

    def __init__(self, order: MetricOrder, characters: tuple[str, ...]) -> None:
        self._order, self._characters = order, characters
        self.title = "Word error" if order.unit == "word" else "Character error"
        self.likeness = f"1 less the {self.title.lower()} against the float model's own text"

    def decode(self, outputs: Arrays, inputs: Arrays) -> str:
        """The greedy text of (1, T, C) or (T, 1, C) scores."""
        values = chosen(outputs, self._order.outputs)[0]
        steps = np.argmax(values.reshape(-1, values.shape[-1]), axis=1)
        kept = steps[np.concatenate([[True], steps[1:] != steps[:-1]])] if steps.size else steps
        blank = self._order.blank % (len(self._characters) + 1)
        return "".join(self._characters[k - (k > blank)] for k in map(int, kept) if k != blank)

    def truth(self, decoded: str) -> str:
        return decoded

    def row(self, decoded: str, truth: str) -> tuple[int, int, int, int]:
        words, wanted = decoded.split(), truth.split()
        characters, letters = " ".join(words), " ".join(wanted)
        return distance(words, wanted), len(wanted), distance(characters, letters), len(letters)

    def scores(self, rows: Sequence[Any]) -> Edits:
        return Edits(rows, self._order.unit == "character")

    def labels(self, given: Path | None, dataset: Dataset) -> Labelled:
        """From a CSV with the columns path,text; paths are those of the samples below ``eval``."""
        if given is None:
            why, cure = "no table of reference texts was given", 'Give [metric] labels = "texts.csv"'
            raise BadInput("reading the reference texts", dataset.root, why, cure)
        texts = _table(given)
        truths: list[str | None] = []
        reasons: dict[str, str] = {}
        for sample in dataset.samples:
            text = texts.get(sample.path)
            why = "it has no row in the table of texts" if text is None else ""
            why = why or ("its reference text is empty" if text is not None and not text.split() else "")
            why = why or (
                f"its text is longer than {MAX_TEXT} characters" if len(text or "") > MAX_TEXT else ""
            )
            truths.append(None if why else text)
            reasons |= {sample.path: why} if why else {}
        return Labelled(truths=tuple(truths), reasons=reasons)


def distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The least insertions, deletions and substitutions that turn ``a`` into ``b``."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return before[-1]


def _table(path: Path) -> dict[str, str]:
    doing = "reading the table of texts"
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise BadInput(doing, path, "it is larger than 64 MiB", _CURE)
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig")), strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(doing, path, str(error), _CURE) from error
    if not {"path", "text"} <= set(reader.fieldnames or ()):
        why = f"its columns are {', '.join(reader.fieldnames or ()) or 'missing'}"
        raise BadInput(doing, path, why, _CURE)
    return {(row["path"] or "").strip(): row["text"] or "" for row in rows}


def make(order: MetricOrder, model: Model) -> Text:
    """Raises BadInput without a charset, or with one whose length is not the model's.

    A model of one class more than charset and blank has the space as its last character, as PP-OCR does.
    """
    doing = "preparing the metric of"
    cure = 'Give [metric] charset = "characters.txt", one a line, or "metadata:KEY" of the ONNX file'
    if not order.characters:
        raise BadInput(doing, model.name, "no charset was given", cure)
    specs = {s.name: s for s in model.signature.outputs}
    spec = specs.get(order.outputs[0]) if order.outputs else model.signature.outputs[0]
    classes = spec.shape[-1] if spec is not None and spec.shape else None
    characters = order.characters
    if classes == len(characters) + 2:
        characters = (*characters, " ")
    if classes != len(characters) + 1:
        why = (
            f"the charset has {len(order.characters)} characters, the model {classes} classes with the blank"
        )
        raise BadInput(doing, model.name, why, cure)
    if not -classes <= order.blank < classes:
        raise BadInput(doing, model.name, f"there is no class {order.blank} for the blank", "Give 0 or -1")
    return Text(order, characters)
