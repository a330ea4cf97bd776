"""Metrics of a task: how good an artifact's answers are, what they lost, and how sure that is.

A metric (``score.Metric``) decodes a sample's outputs, reduces them to a small row against a truth, and
scores a set of rows. A new one is a file here with ``make(order, model)`` and a row in METRICS.

For a search that has to judge many candidates on the same N samples, this is all there is to call:

    metric = metric_of(model.task, order, model)              # None for 'tensors': judge by SQNR
    found = score(metric, inputs, float_outputs, outputs, truths)   # truths=None: agreement with float
    found.value, found.drop, found.drop_interval               # drop > 0 is a loss; 95 % interval

``score.compare`` takes rows instead, so that the float model's are made once: ``metric.row(metric.decode(
outputs, inputs), truth)``. Memory is one row a sample; nothing else is kept.
"""

from __future__ import annotations

import importlib

from edgekiln.job import MetricOrder
from edgekiln.prove.metrics.score import Comparison, Labelled, Metric, compare, score, too_few
from edgekiln.records import Model, Task

METRICS: dict[Task, str] = {
    "classification": "edgekiln.prove.metrics.classification",
    "detection": "edgekiln.prove.metrics.detection",
    "segmentation": "edgekiln.prove.metrics.segmentation",
    "text": "edgekiln.prove.metrics.text",
    "embedding": "edgekiln.prove.metrics.embedding",
}

__all__ = ["METRICS", "Comparison", "Labelled", "Metric", "compare", "metric_of", "score", "too_few"]


def metric_of(task: Task, order: MetricOrder, model: Model) -> Metric | None:
    """The metric of ``task``, None where it has none. Raises BadInput where ``order`` doesn't fit."""
    if task not in METRICS:
        return None
    made: Metric = importlib.import_module(METRICS[task]).make(order, model)
    return made
