"""Which of a model's outputs a metric reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, did_you_mean


def chosen(outputs: Arrays, names: tuple[str, ...]) -> list[NDArray[Any]]:
    """The outputs called ``names`` in that order, or all. Raises BadInput for a name that is not there."""
    for name in names:
        if name not in outputs:
            cure = did_you_mean(name, outputs)
            raise BadInput("reading [metric] outputs", name, "the model has no such output", cure)
    return [np.asarray(outputs[name]) for name in names or outputs]
