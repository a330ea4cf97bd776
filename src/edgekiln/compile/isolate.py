"""Converters held apart: one that crashes, hangs or eats the memory costs its own row and no other.

A target's conversions share one process, because importing a converter takes seconds; after a conversion
that did not end well the process is killed and the next one gets a new one.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgekiln.compile.targets import Conversion
from edgekiln.compile.worker import Answer, Convert, Converted, NotConverted
from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError, MachineFault, MissingExtra
from edgekiln.prove.environment import memory_bytes
from edgekiln.prove.process import Lost, Process
from edgekiln.prove.timing import worker_environment
from edgekiln.records import Artifact

SECONDS = 1200.0
MEMORY_SHARE = 0.8
COMMAND = (sys.executable, "-m", "edgekiln.compile.worker")


@dataclass(frozen=True)
class Limits:
    """What one conversion may take. ``memory_bytes`` None: four fifths of the machine's memory."""

    seconds: float = SECONDS
    memory_bytes: int | None = None


class Converters:
    """A process per target, started when it is first needed, all ended on leaving the ``with`` block."""

    def __init__(
        self, limits: Limits | None = None, threads: int = 2, command: Sequence[str] = COMMAND
    ) -> None:
        self._limits, self._threads, self._command = limits or Limits(), threads, command
        self._running: dict[str, Process] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Converters:
        scratch = tempfile.TemporaryDirectory(prefix="edgekiln-convert-", ignore_cleanup_errors=True)
        self._scratch = Path(self._stack.enter_context(scratch))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.end()
        self._running.clear()
        self._stack.close()

    def convert(self, target: str, order: Conversion, into: Path) -> Artifact:
        """What ``TARGETS[target].convert(order, into)`` gives or raises, computed in its own process.

        Raises ConversionFailed as well where that process crashed, hung or took too much memory: the
        reason ends with the last line that it wrote.
        """
        process = self._running.get(target) or self._start(target)
        limit = self._limits.memory_bytes or int((memory_bytes() or 1 << 62) * MEMORY_SHARE)
        request = Convert(target=target, order=order, into=str(into))
        try:
            answer = process.answer_to(request, self._limits.seconds, limit)
        except Lost as lost:
            process.end()
            del self._running[target]
            raise _unended(lost, process, target, order) from None
        except BaseException:  # Ctrl-C: the answer to this order must not be read as the next one's
            process.end()
            self._running.pop(target, None)
            raise
        if isinstance(answer, Converted):
            return answer.artifact
        raise error_of(answer)

    def _start(self, target: str) -> Process:
        folder = self._scratch / target
        folder.mkdir(exist_ok=True)
        # Converters write into the working folder and the temporary one: both are ours, and go.
        around = worker_environment(self._threads) | {"TMPDIR": str(folder)}
        process = Process(self._command, around, self._scratch / f"{target}.stderr", Answer, folder)
        self._running[target] = process
        return process


def _unended(lost: Lost, process: Process, target: str, order: Conversion) -> ConversionFailed:
    """The row of a conversion whose process is gone: how it ended, and its last words."""
    how = {
        "crashed": lost.reason.replace("the worker", "its process"),
        "hung": f"it did not end {lost.reason.removeprefix('no answer ')}",
        "memory": lost.reason,
    }.get(lost.kind, lost.reason)
    words = [line.strip() for line in process.last_words() if line.strip()]
    said = f"; its last lines: {' | '.join(words[-3:])[:400]}" if words else "; it wrote nothing"
    cure = {
        "hung": "Allow it more seconds ([search] convert_seconds), or leave this target or recipe out",
        "memory": "Allow it more memory ([search] convert_memory_mb), or leave this target or recipe out",
    }.get(lost.kind, "Leave this target or recipe out, or report it to the converter's makers with the model")
    return ConversionFailed(f"converting for {target}", order.variant.recipe.name, how + said, cure)


def error_of(answer: NotConverted) -> EdgekilnError:
    """The error that a worker process met, to be raised in this one."""
    if answer.kind == "missing-extra":
        return MissingExtra(answer.doing, answer.to, answer.extra)
    kind = {"failed": ConversionFailed, "bad-input": BadInput, "machine": MachineFault}[answer.kind]
    return kind(answer.doing, answer.to, answer.why, answer.cure)


__all__ = ["Converters", "Limits", "error_of"]
