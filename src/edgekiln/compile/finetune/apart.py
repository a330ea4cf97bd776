"""The fine-tuned float graph of a build: trained once in a process of its own, then kept."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekiln.cache import step
from edgekiln.compile.finetune.learned import placed
from edgekiln.compile.finetune.order import NoTraining, Train, Trained, Training, Tuned
from edgekiln.compile.graph import optimise
from edgekiln.compile.isolate import MEMORY_SHARE, error_of
from edgekiln.compile.quantise.histogram import Observation
from edgekiln.compile.worker import NotConverted
from edgekiln.compile.workshop import Workshop, tools
from edgekiln.errors import ConversionFailed
from edgekiln.prove.environment import memory_bytes
from edgekiln.prove.process import Lost, Process
from edgekiln.prove.timing import worker_environment

DOING = "fine-tuning with"
COMMAND = (sys.executable, "-m", "edgekiln.compile.finetune.worker")


def check_training(shop: Workshop, recipe: str) -> None:
    """Raises ConversionFailed where ``recipe`` asks for fine-tuning and the build has no trainer for it."""
    if isinstance(shop.training, NoTraining):
        raise ConversionFailed("fine-tuning for", recipe, shop.training.why, shop.training.cure)


def fine_tuned(shop: Workshop, most: int, command: Sequence[str] = COMMAND) -> tuple[Path, Tuned]:
    """The path of the fine-tuned, optimised float graph and what is known of it, from the cache if there.

    ``most`` is the end of the weights' grid: recipes, dialects and targets of one grid share one training.
    Raises ConversionFailed and BadInput that name what the trainer did, MissingExtra without torchao.
    """
    training = shop.training
    assert isinstance(training, Training)  # make refuses the recipe otherwise
    assert shop.calibration is not None
    sample = next(iter(shop.calibration.samples()))

    def produce(into: Path) -> Tuned:
        order = Train(training=training, graph=str(shop.graph.resolve()), most=most, into=str(into.resolve()))
        found = _in_its_process(order, shop.threads, command)
        shapes = {i.name: tuple(i.shape) for i in shop.model.signature.inputs}
        optimise(into / found.path, shapes, sample, into / "graph.onnx")
        with np.load(into / found.probe, allow_pickle=False) as arrays:
            probe = {name: arrays[name] for name in arrays.files}
        return Tuned(note=found.note, learned=placed(into / "graph.onnx", found.marks, probe))

    key = [shop.model_sha256, training.sha256, most, shop.threads, tools()]
    folder, tuned, _ = step(shop.cache, "fine-tune", key, Tuned, produce)
    return folder / "graph.onnx", tuned


def as_learned(
    shop: Workshop, most: int, seen: Mapping[str, Observation]
) -> tuple[dict[str, Observation], str]:
    """``seen`` with the learned range in the place of the extremes where training left one, and a remark.

    Raises ConversionFailed where it left none that a tensor of the graph could be told by.
    """
    learned = fine_tuned(shop, most)[1].learned
    made = dict(seen)
    known = made.keys() & learned.keys()
    if not known:
        why = "training left no range that a tensor of the graph could be told by"
        raise ConversionFailed("quantising", shop.graph.name, why, "Use int8-static-minmax+qat")
    for name in known:
        low, high = learned[name]
        made[name] = dataclasses.replace(made[name], lowest=low, highest=high)
    return made, f"; {len(known)} of them as training left them, the others by minmax"


def _in_its_process(order: Train, threads: int, command: Sequence[str]) -> Trained:
    training = order.training
    limit = training.memory_bytes or int((memory_bytes() or 1 << 62) * MEMORY_SHARE)
    with tempfile.TemporaryDirectory(prefix="edgekiln-train-", ignore_cleanup_errors=True) as scratch:
        said = Path(scratch) / "stderr"
        process = Process(command, worker_environment(threads), said, Trained | NotConverted)
        try:
            answer = process.answer_to(order, training.seconds, limit)
        except Lost as lost:
            raise _unended(lost, process, training) from None
        finally:
            process.end()
    if isinstance(answer, NotConverted):
        raise error_of(answer)
    trained: Trained = answer
    return trained


def _unended(lost: Lost, process: Process, training: Training) -> ConversionFailed:
    """The row of a training whose process is gone: how it ended, and its last words."""
    why = {
        "crashed": lost.reason.replace("the worker", "its process"),
        "hung": f"it did not end within {training.seconds:.0f} s",
    }.get(lost.kind, lost.reason)
    words = [line.strip() for line in process.last_words() if line.strip()]
    why += f"; its last lines: {' | '.join(words[-3:])[:400]}" if words else ""
    cure = {
        "hung": "Allow it more ([qat] seconds), or train fewer steps",
        "memory": "Allow it more ([search] convert_memory_mb), or train in smaller batches",
    }.get(lost.kind, "Run the trainer by itself and mend it, or leave +qat out")
    return ConversionFailed(DOING, training.trainer, why, cure)
