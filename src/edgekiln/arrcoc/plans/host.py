"""The steps of a plan that the application does itself, between one artifact and the next.

Each takes arrays by name and gives arrays by name, as an artifact does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from edgekiln.arrcoc.allocate import allocate
from edgekiln.arrcoc.compact import PEAK, look_inputs, question_inputs
from edgekiln.arrcoc.mixed import resized
from edgekiln.arrcoc.quadtree import COMPACT

Values: TypeAlias = dict[str, Any]
Host: TypeAlias = Callable[[Mapping[str, Any], int], Values]
"""``host(inputs, total)``: what a step gives, where at most ``total`` tokens are to be spent."""


def _canvas(given: Mapping[str, Any], total: int) -> Values:
    """A picture (H, W, 3) of any size on the canvas: uint8 (1, 3, 448, 448), 0 to 255."""
    canvas = resized(given["picture"], COMPACT)
    return {"pixels": np.ascontiguousarray(canvas.transpose(2, 0, 1))[None]}


def _words(given: Mapping[str, Any], total: int) -> Values:
    """A question as ids int64 (1, 16) and mask float32 (1, 16)."""
    return question_inputs(given["question"])


def _allocation(given: Mapping[str, Any], total: int) -> Values:
    """Relevance (1, 28, 28) and pixels to what the reader of ``total`` tokens takes but the words."""
    relevance = np.clip(given["relevance"][0], 0, 1)
    canvas = given["pixels"][0].transpose(1, 2, 0)
    found = allocate(relevance, total, mode="windows", peak=PEAK)
    return look_inputs(canvas, relevance, found)


HOST: dict[str, Host] = {"canvas": _canvas, "words": _words, "allocation": _allocation}
