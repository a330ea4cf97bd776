"""What a job says of fine-tuning, and what the process that runs the trainer is told and answers."""

from __future__ import annotations

from edgekiln.records import Preprocess, Record, Scalar, Task


class Training(Record, frozen=True, kw_only=True):
    """A trainer and the PyTorch source that it trains, from the job.

    ``trainer`` and ``source`` are ``package.module:function``, found on ``search_path``; ``weights`` and
    ``data`` are absolute. ``shapes``, ``preprocess``, ``labels`` and ``task`` are the import's, so that the
    fine-tuned model is exported as the original was. ``arguments`` go to the trainer by name, and so does
    ``data`` where it is given. ``sha256`` stands for all code and data that a fine-tuned model follows from.
    ``seconds`` and ``memory_bytes`` (None: four fifths of the machine's) bound the process.
    """

    trainer: str
    source: str
    weights: str | None
    search_path: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    task: Task
    arguments: dict[str, Scalar]
    data: str | None
    seed: int
    seconds: float
    memory_bytes: int | None
    sha256: str


class NoTraining(Record, frozen=True, kw_only=True):
    """Why a build can't fine-tune, and what the user can do: the row of each recipe that asks for it."""

    why: str
    cure: str


class Train(Record, frozen=True, kw_only=True, tag="train"):
    """Fine-tune and write the exported model into the folder ``into``.

    ``graph`` is the build's float graph, which the source has to agree with. ``most`` is the end of the
    weights' grid: 127, or 63 where products of 8 bits would saturate.
    """

    training: Training
    graph: str
    most: int
    into: str


class Mark(Record, frozen=True, kw_only=True):
    """What tells one tensor from others, and the range (low, high) of the grid that training left on it.

    ``values`` are some of its values on the probe, at even distances.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...]
    low: float
    high: float


class Trained(Record, frozen=True, kw_only=True, tag="trained"):
    """Paths of the exported float graph and of the ``probe`` (.npz) below the folder, what was done, and the
    grids that training left on activations."""

    path: str
    probe: str
    note: str
    marks: tuple[Mark, ...]


class Tuned(Record, frozen=True, kw_only=True):
    """A fine-tuned graph, kept: what was done, and the learned range (low, high) by tensor of the graph."""

    note: str
    learned: dict[str, tuple[float, float]]
