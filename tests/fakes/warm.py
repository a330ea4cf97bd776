"""A process that has imported what the verbs import, and answers each command line with a fork of itself.

The fork is a process of its own, with its own folder, environment, streams and exit code, as ``python -m
edgekiln`` is one; only what every start spends on imports is spent once. The process that forks runs no verb
itself, so what one leaves in memory does not reach the next.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

IMPORTS = (
    *(f"edgekiln.{name}" for name in ("road", "verification", "inspection", "diagnosis", "report.html")),
    *("edgekiln.cli.commands", "edgekiln.cli.show", "edgekiln.benching", "edgekiln.runtime.once"),
    *("onnx", "onnxruntime", "PIL.Image", "rich.table"),
)


class Warm:
    """``ask`` runs a command line in a fork of the waiting process, which ends when this one does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._waiting = subprocess.Popen(
            [sys.executable, "-m", "fakes.warm"],
            cwd=Path(__file__).resolve().parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, arguments: list[str], folder: Path, environment: dict[str, str], limit_s: float
    ) -> tuple[int, str, str]:
        """Exit code, standard output and error of ``edgekiln *arguments``; killed after ``limit_s``."""
        with tempfile.TemporaryDirectory() as aside:
            streams = [Path(aside, "out"), Path(aside, "err")]
            for stream in streams:
                stream.touch()
            code = self.tell(arguments, folder, environment, streams, limit_s)
            out, err = (stream.read_text(encoding="utf-8") for stream in streams)
        return code, out, err

    def tell(
        self,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        streams: Sequence[Path],
        limit_s: float,
    ) -> int:
        """The same into two files or terminals that are there: the exit code."""
        asked, told = self._waiting.stdin, self._waiting.stdout
        assert asked is not None
        assert told is not None
        order = [arguments, str(folder), environment, [str(stream) for stream in streams]]
        print(json.dumps(order), file=asked, flush=True)
        child = int(told.readline())
        late = threading.Timer(limit_s, os.kill, (child, signal.SIGKILL))
        late.start()
        code = int(told.readline())
        late.cancel()
        return code


def serve() -> None:
    """Fork for each line of standard input: the child's number, then its exit code, as lines."""
    before = set(os.environ)
    for name in IMPORTS:
        importlib.import_module(name)
    added = {name: os.environ[name] for name in set(os.environ) - before}
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose a library's threads"
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            answer.close()
            break
        print(child, file=answer)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answer)
    else:
        return
    arguments, folder, environment, streams = json.loads(line)
    for number, path in enumerate((os.devnull, *streams)):
        stream = os.open(path, os.O_WRONLY | os.O_NOCTTY if number else os.O_RDONLY)
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    sys.path[0] = folder
    os.environ.clear()
    os.environ.update(added | environment)
    tempfile.tempdir = None  # TMPDIR may be another
    from edgekiln.cli import main

    sys.exit(main(arguments))


if __name__ == "__main__":
    serve()
