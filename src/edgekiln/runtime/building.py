"""What an engine needs before its first start, made in a process of its own while another artifact answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence


class Building:
    """A command that runs in the background. ``done`` is called from its thread, with why it failed or ''.

    It is not called after ``stop``. A command that crashes takes nothing with it.
    """

    def __init__(self, command: Sequence[str], done: Callable[[str], None]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the thread)
        self._child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )
        self._stopped = threading.Event()
        self._done = done
        self._thread = threading.Thread(target=self._follow, name="edgekiln-build", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        code = self._child.wait()
        with self._said:
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").strip().splitlines()
        if not self._stopped.is_set():
            self._done("" if code == 0 else (lines or [f"it ended with code {code}"])[-1])

    def wait(self) -> None:
        """Until it has ended and ``done`` has returned."""
        self._thread.join()

    def stop(self) -> None:
        """End it and its children. Nothing half-made is left: engine files are written aside."""
        self._stopped.set()
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        if threading.current_thread() is not self._thread:
            self._thread.join()
