"""Long work shows where it is: one plain line per finished step, or a live bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from edgekiln import interrupt


class Progress(Protocol):
    """``expect(n)`` announces n more steps; ``step`` wraps one; ``note`` speaks between steps."""

    def expect(self, steps: int) -> None: ...

    def step(self, text: str) -> contextlib.AbstractContextManager[None]: ...

    def note(self, text: str) -> None: ...


def _line(started: float, text: str, error: BaseException | None = None) -> str:
    """Seconds, the step, and how it ended where it did not end well."""
    how = ""
    if isinstance(error, KeyboardInterrupt):
        how = ": interrupted"
    elif error is not None:
        how = f": {getattr(error, 'why', type(error).__name__)}"
    return f"{time.perf_counter() - started:7.1f} s  {text}{how}"


class Silent:
    """Says nothing: the default of the Python API."""

    def expect(self, steps: int) -> None:
        return None

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        with interrupt.kept():
            yield

    def note(self, text: str) -> None:
        return None


class Lines:
    """One line when a step ends, for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def expect(self, steps: int) -> None:
        return None

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with interrupt.kept():
                yield
        except BaseException as error:
            self.note(_line(started, text, error))
            raise
        self.note(_line(started, text))

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Bar:
    """A live bar with the step at work; finished steps scroll by above it."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._rich.add_task("starting", total=0)
        self._steps = 0

    def expect(self, steps: int) -> None:
        self._steps += steps
        self._rich.update(self._task, total=self._steps)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self._rich.start()
        self._rich.update(self._task, description=text)
        started = time.perf_counter()
        try:
            with interrupt.kept():
                yield
        except BaseException as error:
            self.note(_line(started, text, error))
            raise
        else:
            self.note(_line(started, text))
        finally:
            self._rich.advance(self._task)

    def note(self, text: str) -> None:
        self._rich.console.print(text, style="dim", markup=False, highlight=False)

    def close(self) -> None:
        self._rich.stop()


@contextlib.contextmanager
def shown(silent: bool = False) -> Iterator[Progress]:
    """The progress that fits standard error: a bar on a terminal, lines elsewhere, or nothing."""
    if silent:
        yield Silent()
    elif sys.stderr.isatty():
        from rich.console import Console

        bar = Bar(Console(stderr=True))
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield Lines(sys.stderr)
