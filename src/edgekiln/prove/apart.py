"""An engine in a process of its own, called like any runner.

Native runtimes of files that were just made may crash, hang or eat the memory; held apart, that costs the
row of one artifact and no other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner, at_size, open_engine
from edgekiln.errors import ConversionFailed, EdgekilnError, NotRunnableHere
from edgekiln.prove.arrays import npz_bytes, read_npz
from edgekiln.prove.process import Lost, Process
from edgekiln.prove.timing import worker_environment
from edgekiln.prove.worker import Call, Called, Open, Opened
from edgekiln.records import Artifact

SECONDS = 300.0
APART = frozenset({"coreml", "litert", "executorch", "qnn"})
"""Engines that run native code on files of a format which only they read, and the interpreter of Core ML,
whose library floods the terminal with warnings."""

COMMAND = (sys.executable, "-m", "edgekiln.prove.worker")


def open_proof(artifact: Artifact, folder: Path, threads: int, size: tuple[int, int] | None = None) -> Runner:
    """The proof engine of ``artifact``, held apart where it may crash. Raises as ``open_engine``."""
    if artifact.proof_engine in APART:
        return Apart(artifact.proof_engine, artifact, folder, threads, size=size)
    return open_engine(artifact.proof_engine, artifact, folder, threads, size)


class Apart:
    """A runner whose engine lives in a child process, started by the first call.

    A call raises NotRunnableHere where the engine refuses the artifact, and ConversionFailed where its
    process crashed, hung for ``seconds`` or refused the inputs: such an artifact is never a candidate.
    """

    def __init__(
        self,
        engine: str,
        artifact: Artifact,
        folder: Path,
        threads: int,
        seconds: float = SECONDS,
        command: Sequence[str] = COMMAND,
        size: tuple[int, int] | None = None,
    ) -> None:
        artifact, folder = at_size(artifact, folder, size)
        self._engine, self._artifact, self._folder, self._threads = engine, artifact, folder, threads
        self._seconds, self._opened = seconds, False
        self._scratch = tempfile.TemporaryDirectory(prefix="edgekiln-prove-", ignore_cleanup_errors=True)
        self._place = Path(self._scratch.name)
        environment = worker_environment(threads)
        self._process = Process(command, environment, self._place / "stderr", folder=self._place)

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        given, made = self._place / "inputs.npz", self._place / "outputs.npz"
        given.write_bytes(npz_bytes(inputs))
        try:
            if not self._opened:
                self._process.ask(self._order(given), Opened, self._seconds)
                self._opened = True
            self._process.ask(Call(inputs=str(given), outputs=str(made)), Called, self._seconds)
        except Lost as lost:
            raise self._error(lost) from None
        return read_npz(made)

    def close(self) -> None:
        self._process.end()
        self._scratch.cleanup()

    def _order(self, inputs: Path) -> Open:
        return Open(
            folder=str(self._folder.resolve()),
            artifact=self._artifact,
            engine=self._engine,
            threads=self._threads,
            inputs=str(inputs),
        )

    def _error(self, lost: Lost) -> EdgekilnError:
        doing, to = f"proving with {self._engine}", self._artifact.entry
        if lost.kind == "refused" and not self._opened:
            return NotRunnableHere(doing, to, lost.reason, lost.cure)
        words = [line for line in self._process.last_words() if line.strip()]
        said = f"; its last lines: {' | '.join(words[-3:])[:400]}" if words else ""
        why = lost.reason.replace("the worker", "the engine's process")
        return ConversionFailed(doing, to, why + said, lost.cure)
