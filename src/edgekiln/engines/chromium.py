"""A headless Chromium on one page, with a profile of its own that goes when it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekiln.engines import browser_guard
from edgekiln.errors import MachineFault, NotRunnableHere

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-breakpad",
)  # fmt: skip
MAX_STDERR_BYTES = 1 << 20


def find(doing: str, to: object) -> str:
    """The path of the first Chromium on the PATH. Raises NotRunnableHere with the cure."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    cure = "Run `make setup`, or as root: apt-get install chromium"
    raise NotRunnableHere(doing, to, "no Chromium is on the PATH", cure)


def flags() -> tuple[str, ...]:
    """FLAGS, and --no-sandbox for root, as whom Chromium does not start otherwise."""
    return (*FLAGS, "--no-sandbox") if os.geteuid() == 0 else FLAGS


class Browser:
    """One browser process on ``url``. ``close`` kills it with all its children; so does our own end."""

    def __init__(self, program: str, url: str) -> None:
        # Removed by the guard, which also outlives a kill of this process.
        self._folder = tempfile.mkdtemp(prefix="edgekiln-chromium-")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        profile = str(Path(self._folder) / "profile")
        guard = [sys.executable, "-I", "-S", str(browser_guard.__file__), self._folder]
        try:
            self._guard = subprocess.Popen(
                [*guard, program, *flags(), f"--user-data-dir={profile}", url],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C goes to this program alone, which then closes
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            why = error.strerror or str(error)
            raise MachineFault("starting", program, why, "Free some memory and try again") from error

    @property
    def alive(self) -> bool:
        return self._guard.poll() is None

    def last_words(self) -> str:
        """The last line that the browser wrote to its standard error, which is often noise."""
        end = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, end - MAX_STDERR_BYTES))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def close(self) -> None:
        if self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
        try:
            self._guard.wait(10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._said.close()
