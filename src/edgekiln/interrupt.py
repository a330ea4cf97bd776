"""Ctrl-C that can't get lost.

A KeyboardInterrupt that strikes while native code imports Python (openvino, torch) comes out of it as an
ImportError, and one that strikes in a destructor is printed and dropped. So the command line remembers that
the key was pressed, and every step asks once more before its result counts.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

PATIENCE_SECONDS = 5.0
"""For so long after Ctrl-C another one is ignored: impatience must not cut the tidying up."""

_pressed = threading.Event()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Remember Ctrl-C for as long as the block lasts.

    Does nothing outside the main thread, nor where the caller ignores Ctrl-C (nohup, a shell's background).
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    _pressed.clear()

    first = 0.0

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if _pressed.is_set() and time.monotonic() - first < PATIENCE_SECONDS:
            return
        first = time.monotonic()
        _pressed.set()
        # Objects that are half made when the key strikes complain in their destructors; nobody is helped.
        sys.unraisablehook = lambda _: None
        signal.default_int_handler(number, frame)

    before, hook = signal.signal(signal.SIGINT, press), sys.unraisablehook
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _pressed.clear()


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and something swallowed it."""
    if _pressed.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Turn whatever the block does after a swallowed Ctrl-C, success or failure, into KeyboardInterrupt."""
    try:
        yield
    except Exception:
        check()
        raise
    check()
