"""The command line as a user runs it: a process of its own, with everything it printed."""

from __future__ import annotations

import functools
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.warm import Warm

SOURCE = Path(__file__).resolve().parents[2] / "src"
TIME_LIMIT_S = 300


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """All of standard output as one JSON value: anything else there raises."""
        return json.loads(self.stdout)

    def refused(self, *words: str) -> None:
        """Assert an orderly refusal: exit code 2, why and cure, each of ``words``, no traceback."""
        assert self.code == 2, (self.code, self.stdout, self.stderr)
        said = self.stderr
        assert "Traceback" not in said
        assert "fault of edgekiln" not in said
        lines = said.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert sum(line.startswith("  why:  ") for line in lines) == 1
        assert sum(line.startswith("  cure: ") and len(line) > 12 for line in lines) == 1
        for word in words:
            assert word in said, f"{word!r} is not in: {said}"


@functools.cache
def _warm() -> Warm:
    return Warm(Kiln(Path(), Path()).environment())


class Kiln:
    """``kiln("build", ...)`` runs ``edgekiln build ...`` in ``folder``, in a process of its own, and waits.

    ``cold`` starts that process anew, as a user does: ``python -m edgekiln``. Else it is a fork of one that
    has imported the packages already, which is the same to the verb and a second quicker.
    """

    def __init__(self, folder: Path, cache: Path, cold: bool = False) -> None:
        self.folder, self.cache, self.cold = folder, cache, cold

    def environment(self) -> dict[str, str]:
        """One thread for every pool, so that tests do not fight for cores."""
        search = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH", ""))))
        fixed = {"EDGEKILN_CACHE": str(self.cache), "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
        return {**os.environ, **fixed}

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "edgekiln", *map(str, arguments)]

    def __call__(self, *arguments: object, before: Callable[[], None] | None = None) -> Done:
        if before is None and not self.cold:
            given = [str(a) for a in arguments]
            return Done(*_warm().ask(given, self.folder, self.environment(), TIME_LIMIT_S))
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
            preexec_fn=before,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def on_terminal(self, *arguments: object, **environment: str) -> tuple[int, bytes]:
        """Exit code, and all that it shows on a pseudo-terminal that is both of its streams."""
        leader, follower = pty.openpty()
        shown: list[bytes] = []
        reader = threading.Thread(target=lambda: shown.extend(_until_closed(leader)))
        reader.start()
        terminal = Path(os.ttyname(follower))
        try:
            given = [str(a) for a in arguments]
            told = {**self.environment(), **environment}
            code = _warm().tell(given, self.folder, told, (terminal, terminal), TIME_LIMIT_S)
        finally:
            os.close(follower)
            reader.join()
            os.close(leader)
        return code, b"".join(shown)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The process under way, in a process group of its own, as a shell starts it."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )


def _until_closed(leader: int) -> Iterator[bytes]:
    """What is written to the other side, until nobody holds that open any more."""
    while True:
        try:
            chunk = os.read(leader, 1 << 16)
        except OSError:
            return
        if not chunk:
            return
        yield chunk


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
