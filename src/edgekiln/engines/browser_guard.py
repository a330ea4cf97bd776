"""A small parent for one browser, so that the browser never outlives the program that opened it.

Run as a file: ``python -I -S browser_guard.py PROFILE PROGRAM ARGUMENT...``. It starts PROGRAM in a process
group of its own and waits until its standard input ends (the opener closed it, or died however it died) or
the browser does; then it kills the whole group and removes PROFILE. It exits 0 when it was told to end and
3 when the browser ended by itself. Needs the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

ENDED_BY_ITSELF = 3


def main(profile: str, command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of standard input is the one way to end
    # WebAssembly reserves tens of gigabytes of addresses: a limit on those (not on memory) stops Chromium.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    browser = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    told = False
    while not told and browser.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], 0.25)
        told = bool(ready) and not os.read(sys.stdin.fileno(), 1)
    _kill(browser)
    _remove(profile)
    return 0 if told else ENDED_BY_ITSELF


def _kill(browser: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(browser.pid, signal.SIGKILL)
    browser.wait()


def _remove(profile: str) -> None:
    """Children that were killed may still be closing files, so it is tried for two seconds."""
    for _ in range(20):
        shutil.rmtree(profile, ignore_errors=True)
        if not os.path.lexists(profile):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
