"""What holds more than a tensor: lists, classifier scores. Blocks and states are run by ``program``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekiln.engines.mil.moves import bounded
from edgekiln.engines.mil.values import TORCH, Function, Value, integer, ints


@dataclass(frozen=True)
class Scores:
    """A classifier's scores: Core ML hands out a dictionary from class to score."""

    classes: tuple[str | int, ...]
    tensor: Tensor

    def by_class(self) -> dict[str | int, float]:
        return dict(zip(self.classes, self.tensor.reshape(-1).tolist(), strict=True))


def classify(probabilities: Tensor, classes: Value) -> tuple[Value, Scores]:
    """The best class and the scores. Raises ValueError where the labels are too few, too many, or not
    distinct: a dictionary would lose the scores of the first of two that are equal."""
    names = tuple(c if isinstance(c, str) else int(c) for c in _plain(classes))
    if len(names) != probabilities.numel():
        raise ValueError(f"{len(names)} class labels for {probabilities.numel()} scores")
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"the class label '{twice}' stands for two scores, and only one can be asked for")
    best = names[int(torch.argmax(probabilities))]
    return best if isinstance(best, str) else torch.tensor(best), Scores(names, probabilities)


def _plain(classes: Value) -> list[Value]:
    return ints(classes) if isinstance(classes, Tensor) else list(classes)


def make_list(
    init_length: Tensor | None = None,
    dynamic_length: Tensor | None = None,
    elem_shape: Value = (),
    dtype: str = "fp32",
) -> list[Tensor]:
    """Elements begin as zeros; lengths that only the run decides begin as 1."""
    length = integer(init_length, 1)
    shape = [1 if isinstance(n, str) else int(n) for n in elem_shape]
    bounded([length, *shape])
    return [torch.zeros(shape, dtype=TORCH[dtype]) for _ in range(length)]


def list_length(ls: list[Tensor]) -> Tensor:
    return torch.tensor(len(ls), dtype=torch.int32)


def list_read(ls: list[Tensor], index: Tensor) -> Tensor:
    return ls[_place(integer(index), len(ls))]


def list_write(ls: list[Tensor], index: Tensor, value: Tensor) -> list[Tensor]:
    return list_scatter(ls, index.reshape(1), value[None])


def list_gather(ls: list[Tensor], indices: Tensor) -> Tensor:
    return torch.stack([ls[_place(i, len(ls))] for i in ints(indices)])


def list_scatter(ls: list[Tensor], indices: Tensor, value: Tensor) -> list[Tensor]:
    """A list that is too short grows to the last place that is written."""
    places = ints(indices)
    bounded([max(places, default=0), 1])
    grown = list(ls)
    for place, item in zip(places, value, strict=True):
        at = _place(place, max(place + 1, len(grown)))
        grown.extend(torch.zeros_like(item) for _ in range(at + 1 - len(grown)))
        grown[at] = item
    return grown


def _place(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise ValueError(f"index {index} into a list of length {length}")
    return index


OPS: dict[str, Function] = {
    "classify": classify,
    "list_gather": list_gather,
    "list_length": list_length,
    "list_read": list_read,
    "list_scatter": list_scatter,
    "list_write": list_write,
    "make_list": make_list,
}
