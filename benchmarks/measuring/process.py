"""A command run in a process of its own, with its wall time and the peak memory of its process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Finished:
    """``peak_tree_bytes`` is the largest sum of resident memory over the process and its descendants, looked
    at every SAMPLE_SECONDS; pages that several of them share count in each. ``peak_process_bytes`` is the
    largest peak that the kernel kept of one of them, as it was at the last look. ``stopped`` says why this
    program killed it, and is empty where it ended by itself."""

    seconds: float
    peak_tree_bytes: int
    peak_process_bytes: int
    exit_code: int
    stdout: str
    stderr: str
    stopped: str


def environment(**more: str) -> dict[str, str]:
    """This process's environment with this checkout's package first on the path."""
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": search, **more}


def run(
    command: Sequence[str],
    *,
    limit_seconds: float,
    limit_bytes: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``command`` in ROOT, alone in its session; kill it where it passes a limit."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        child = subprocess.Popen(
            list(command),
            cwd=ROOT,
            env=dict(env or environment()),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
        try:
            peak, most, stopped = _watch(child, started + limit_seconds, limit_bytes)
        finally:
            _end(child)
        seconds = time.perf_counter() - started
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Finished(seconds, peak, most, child.returncode, texts[0], texts[1], stopped)


def _watch(child: subprocess.Popen[bytes], deadline: float, limit_bytes: int | None) -> tuple[int, int, str]:
    """The peaks of the tree and of one process in it, and why the child has to end."""
    peak = most = 0
    while True:
        used, one = tree_memory(child.pid)
        peak, most = max(peak, used), max(most, one)
        if limit_bytes is not None and used > limit_bytes:
            return peak, most, f"stopped at this benchmark's limit of {limit_bytes / 1e9:.1f} GB of memory"
        if time.perf_counter() > deadline:
            return peak, most, "stopped at this benchmark's limit of time"
        try:
            child.wait(SAMPLE_SECONDS)
            return peak, most, ""
        except subprocess.TimeoutExpired:
            continue


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's session where it is still there, and reap the child."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def tree_memory(pid: int) -> tuple[int, int]:
    """Resident bytes of ``pid`` and all its descendants, now, and the most that one of them ever had; 0 where
    there is no such process."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold spaces: the fields begin after the last parenthesis.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    total, most, todo = 0, 0, [pid]
    while todo:
        one = todo.pop()
        todo += parents.get(one, [])
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE_BYTES
            most = max(most, memory_bytes("VmHWM", str(one)))
        except (OSError, IndexError):
            continue
    return total, most


def own_memory_bytes(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process, exact, from the kernel."""
    return memory_bytes(key, "self")


def memory_bytes(key: str, pid: str) -> int:
    """The same of another process. Raises OSError where it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status does not say {key}")


def wall_seconds(command: Sequence[str]) -> float:
    """Wall time of a short command from start to end. Raises CalledProcessError where it fails."""
    started = time.perf_counter()
    subprocess.run(
        list(command),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    return time.perf_counter() - started


def keep_to_cores(count: int) -> None:
    """Bind this process to ``count`` of the cores it may use, so that contenders with other defaults for
    their threads have the same hardware."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:count]))


def say(text: str) -> None:
    """Progress goes to standard error: standard output holds the tables alone."""
    print(text, file=sys.stderr, flush=True)
