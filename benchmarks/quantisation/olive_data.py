"""A scene's samples as Olive wants them. Olive's own process imports this file, ours never does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from olive.data.registry import Registry


class Samples:
    """One sample each: the inputs without their axis of the batch, which Olive's loader adds, and a label."""

    def __init__(self, folder: str, labels: Sequence[int] | None, count: int) -> None:
        self.paths = sorted(Path(folder).glob("*.npz"))[:count]
        self.labels = labels or [0] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[dict[str, Any], int]:
        with np.load(self.paths[place], allow_pickle=False) as held:
            return {name: value[0] for name, value in held.items()}, self.labels[place]


@Registry.register_dataset()  # type: ignore[untyped-decorator]
def scene_samples(folder: str, count: int, labels: Sequence[int] | None = None, **_: Any) -> Samples:
    """The data set that the workflow names."""
    return Samples(folder, labels, count)


@Registry.register_post_process()  # type: ignore[untyped-decorator]
def top_class(output: Any, **_: Any) -> Any:
    """The class of each row of the first output."""
    scores = output if hasattr(output, "argmax") else next(iter(output.values()))
    return scores.argmax(-1)
