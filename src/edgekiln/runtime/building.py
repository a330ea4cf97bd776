"""What an engine needs before its first start, made in a process of its own while another one answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO


class Building:
    """A command that runs in the background. ``done`` is called from its thread, with why it failed or ''.

    It is not called after ``stop``. A command that crashes takes nothing with it. Those that share ``turn``
    follow one another.
    """

    def __init__(self, command: Sequence[str], done: Callable[[str], None], turn: threading.Lock) -> None:
        self._command, self._done, self._turn = list(command), done, turn
        self._child: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="edgekiln-build", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self._turn, tempfile.TemporaryFile() as said:
            why = self._run(said)
        if not self._stopped:
            self._done(why)

    def _run(self, said: IO[bytes]) -> str:
        """Why the command failed; empty where it did not."""
        with self._changing:
            if self._stopped:
                return "it was stopped"
            try:
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
            except OSError as error:
                return f"it can't be started ({error.strerror})"
        code = self._child.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        return "" if code == 0 else (lines or [f"it ended with code {code}"])[-1]

    def wait(self) -> None:
        """Until it has ended and ``done`` has returned."""
        self._thread.join()

    def stop(self) -> None:
        """End it and its children. Nothing half-made is left: engine files are written aside."""
        with self._changing:
            self._stopped = True
            if self._child is not None and self._child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
        if threading.current_thread() is not self._thread:
            self._thread.join()
