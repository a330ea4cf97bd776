"""Memory of a run that nobody made: what must be held. Published peaks hardly follow it
(docs/prediction.md)."""

from __future__ import annotations

from edgekiln.model.workload import Workload

BYTES = {"FP32": (4, 4), "FP16": (2, 2), "float": (2, 2), "INT8": (1, 1), "w8a8": (1, 1), "w8a16": (1, 2)}
"""Bytes of a weight and of an activation. ``float`` on a Hexagon NPU is FP16."""


def arena_bytes(work: Workload, precision: str) -> int:
    """Weights, and the activations that are alive together in the order of the graph: no engine needs less
    without streaming weights or recomputing, and any needs more (alignment, workspaces, its own code)."""
    weight, activation = BYTES[precision]
    return work.weights * weight + work.peak * activation
