"""The fine-tuned float graph of a build: trained once in a process of its own, then kept."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekiln.cache import step
from edgekiln.compile.finetune.order import NoTraining, Train, Trained, Training
from edgekiln.compile.graph import optimise
from edgekiln.compile.isolate import MEMORY_SHARE, error_of
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


def fine_tuned(shop: Workshop, most: int, command: Sequence[str] = COMMAND) -> tuple[Path, str]:
    """The path of the fine-tuned, optimised float graph and a note, from the cache where it is there.

    ``most`` is the end of the weights' grid: recipes, dialects and targets of one grid share one training.
    Raises ConversionFailed and BadInput that name what the trainer did, MissingExtra without torchao.
    """
    training = shop.training
    assert isinstance(training, Training)  # make refuses the recipe otherwise
    assert shop.calibration is not None
    probe = next(iter(shop.calibration.samples()))

    def produce(into: Path) -> Trained:
        order = Train(training=training, graph=str(shop.graph.resolve()), most=most, into=str(into.resolve()))
        found = _in_its_process(order, shop.threads, command)
        shapes = {i.name: tuple(i.shape) for i in shop.model.signature.inputs}
        optimise(into / found.path, shapes, probe, into / "graph.onnx")
        return found

    key = [shop.model_sha256, training.sha256, most, shop.threads, tools()]
    folder, found, _ = step(shop.cache, "fine-tune", key, Trained, produce)
    return folder / "graph.onnx", found.note


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
