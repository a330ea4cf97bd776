"""What is copied to a Linux device, the watch: starts the work, reads sensors, keeps limits, writes it down.

    python3 runner.py FOLDER

Needs Python 3.8; nothing of edgekiln. ``FOLDER/request.json`` says what to do. The program detaches itself
and answers with its process id and start time; a second call gives the same answer, so that whoever lost the
connection may ask again. What it finds out it appends to ``FOLDER/lines.jsonl``, one JSON record a line, each
synced to the disk. Times are seconds of the device's monotonic clock: the clock on the wall may jump.

The *work* (``runner_work.py``) is a process of its own that loads the engine and computes, so that this one
outlives an engine that crashes. When the folder vanishes both end; when nobody fetches the result in time,
the folder is removed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LONGEST = 256
"""Bytes of a sensor's file that are read."""
FAULT_BYTES = 1024
SAID_BYTES = 4096


class Lines:
    """``lines.jsonl``, for several threads. Where the disk is full, the file ``fault`` says so, which has its
    room from the start."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT
        self._file = os.open(folder / "lines.jsonl", flags | os.O_APPEND, 0o600)
        self._fault = os.open(folder / "fault", flags, 0o600)
        os.write(self._fault, b" " * FAULT_BYTES)
        os.fsync(self._fault)
        self._lock = threading.Lock()

    def put(self, kind: str, **fields: Any) -> None:
        self.raw(json.dumps(dict(fields, kind=kind, t=time.monotonic())).encode() + b"\n")

    def raw(self, line: bytes) -> None:
        """Write one line and sync it. Raises OSError where there is no room."""
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._file, line) :]
                os.fsync(self._file)
            except OSError as error:
                os.lseek(self._fault, 0, os.SEEK_SET)
                os.write(self._fault, json.dumps({"why": error.strerror}).encode())
                os.fsync(self._fault)
                raise


# ---------------------------------------------------------------- sensors


def sensor_files(root: Path, patterns: list[str]) -> list[str]:
    """Files below ``root`` that fit the patterns, relative, sorted."""
    found: set[str] = set()
    for pattern in patterns:
        found.update(str(path.relative_to(root)) for path in root.glob(pattern))
    return sorted(found)


def texts(root: Path, names: list[str]) -> dict[str, str | None]:
    """Each file's text, or None where it can't be read."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            with (root / name).open("rb") as opened:
                found[name] = opened.read(LONGEST).decode("utf-8", "replace")
        except OSError:
            found[name] = None
    return found


def tegrastats(interval: float, lines: Lines) -> subprocess.Popen[bytes] | None:
    """Start NVIDIA's sampler where there is one; its lines are written down as they are."""
    program = shutil.which("tegrastats", path=os.environ.get("PATH", "") + ":/usr/bin")
    if program is None:
        return None
    command = [program, "--interval", str(int(interval * 1e3))]
    with contextlib.suppress(OSError):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def read() -> None:
            assert child.stdout is not None
            for raw in child.stdout:
                with contextlib.suppress(OSError):
                    lines.put("tegrastats", text=raw[:4096].decode("utf-8", "replace"))

        threading.Thread(target=read, daemon=True).start()
        return child
    return None


# ---------------------------------------------------------------- the watch


class Watch:
    """Reads sensors at a fixed interval, passes on what the work tells, and ends it when it is too long."""

    def __init__(self, request: Any, folder: Path) -> None:
        self.request, self.folder = request, folder
        self.root, self.interval = Path(request["root"]), request["interval_seconds"]
        self.names = sensor_files(self.root, request["sensors"])
        self.lines = Lines(folder)
        self.next = time.monotonic()

    def sample(self) -> float:
        """Read all sensors if it is time. Seconds until the next time."""
        now = time.monotonic()
        if now >= self.next:
            if not self.folder.is_dir():
                raise SystemExit  # whoever sent us has tidied up
            found = texts(self.root, self.names)
            self.lines.put("sensors", texts=found, took_seconds=time.monotonic() - now)
            self.next = max(self.next + self.interval, time.monotonic())
        return max(0.0, self.next - time.monotonic())

    def rest(self, seconds: float) -> None:
        """Sample for so long while nothing computes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(self.sample(), max(0.0, until - time.monotonic())))

    def follow(self, pid: int, pipe: int) -> dict[str, str] | None:
        """Until the work closes its pipe, is silent too long, or lasts too long. None is an orderly end."""
        limit = time.monotonic() + self.request["limit_seconds"]
        rest, heard = b"", time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if selector.select(self.sample()):
                    chunk = os.read(pipe, 1 << 16)
                    if not chunk:
                        return how_it_ended(pid)
                    *whole, rest = (rest + chunk).split(b"\n")
                    heard = time.monotonic()
                    for line in whole:
                        self.lines.raw(line + b"\n")
                cure = "Allow it more time, or use a smaller model"
                if time.monotonic() - heard > self.request["silent_seconds"]:
                    why = f"it was silent for {time.monotonic() - heard:.0f} s"
                    return {"how": "hung", "why": why, "cure": cure}
                if time.monotonic() > limit:
                    return {"how": "hung", "why": "it took too long", "cure": cure}

    def said(self) -> str:
        """The last of what the engine printed."""
        with contextlib.suppress(OSError):
            return (self.folder / "said").read_bytes()[-SAID_BYTES:].decode("utf-8", "replace")
        return ""

    def run(self) -> None:
        """Rest, work, rest; with sensors all the time."""
        self.lines.put("begun", python=platform.python_version(), machine=platform.machine())
        sampler = tegrastats(self.interval, self.lines)
        try:
            self.lines.put("phase", name="idle")
            self.rest(self.request["idle_seconds"])
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(ours)
                    importlib.import_module("runner_work").worker(self.request, self.folder, theirs)
                finally:
                    os._exit(70)  # it should have ended by itself
            os.close(theirs)
            try:
                failed = self.follow(pid, ours)
            finally:
                kill(pid)
            self.lines.put("phase", name="after")
            self.rest(3 * self.interval)  # so that the log of power covers the end of the last call
            if failed:
                self.lines.put("failed", **failed)
            self.lines.put("end", said=self.said())
        finally:
            if sampler is not None:
                sampler.kill()
                sampler.wait()


def how_it_ended(pid: int) -> dict[str, str] | None:
    """None after an orderly end, else what the system says of it."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return None
    cure = "Try another version of the engine there"
    if not os.WIFSIGNALED(status):
        why = f"the engine ended the process with exit code {os.WEXITSTATUS(status)}"
        return {"how": "crashed", "why": why, "cure": cure}
    if os.WTERMSIG(status) == signal.SIGKILL:
        why = "the system killed it, most likely because memory ran out"
        return {"how": "memory", "why": why, "cure": "Free some memory there, or use a smaller model"}
    why = f"the engine crashed with signal {os.WTERMSIG(status)}"
    return {"how": "crashed", "why": why, "cure": cure}


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---------------------------------------------------------------- detached


def start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its id it names one process for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def detached(folder: Path) -> None:
    """Measure; then wait until the result was fetched and the folder removed, or remove it. Never returns."""
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        for number in (signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it started is ended first
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        request = json.loads((folder / "request.json").read_text())
        part = folder / "pid.part"
        part.write_text(json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}))
        part.rename(folder / "pid.json")
        with contextlib.suppress(OSError):  # a full disk is told by the file "fault"
            Watch(request, folder).run()
        until = time.monotonic() + request["keep_seconds"]
        while folder.is_dir() and time.monotonic() < until:
            time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # an isolated Python leaves it out
    with contextlib.suppress(FileExistsError):
        # only one call may start the measurement; another waits for the answer of the first
        os.close(os.open(folder / "started", os.O_CREAT | os.O_EXCL, 0o600))
        if os.fork() == 0:
            detached(folder)
    until = time.monotonic() + 10
    while not (folder / "pid.json").exists() and time.monotonic() < until:
        time.sleep(0.02)
    print((folder / "pid.json").read_text())


if __name__ == "__main__":
    main()
