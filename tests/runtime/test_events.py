"""The log: whole lines, bounded size, and a session that goes on whatever the disk does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.runtime.events import Line, Log, encoded, read
from edgekiln.runtime.metrics import Metrics
from edgekiln.runtime.vocabulary import Event, Goal


def event(n: int, what: str = "int8@160x160") -> Event:
    return Event(
        at_s=float(n), kind="change", what=what, why="the board nears its trip point", done="switched"
    )


def waited_for(truth: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not truth() and time.monotonic() < end:
        time.sleep(0.02)
    return truth()


def test_what_was_logged_can_be_read(tmp_path: Path) -> None:
    metrics = Metrics(Goal(deadline_ms=50.0))
    metrics.frame_in("gate", 3)
    with Log(tmp_path / "run.jsonl") as log:
        log.event(event(1))
        log.snapshot(metrics.snapshot(2.0))
        log.event(event(3, what="Tür \x1b[31m\n\u2028"))
    found = read(tmp_path / "run.jsonl")
    assert [line.at_s for line in found.lines] == [1.0, 2.0, 3.0]
    assert [line.n for line in found.lines] == [1, 2, 3]
    assert found.lines[1].snapshot == metrics.snapshot(2.0)
    assert found.lines[2].event == event(3, what="Tür \x1b[31m\n\u2028")
    assert found.skipped == ()
    assert all(json.loads(text) for text in (tmp_path / "run.jsonl").read_text().split("\n")[:-1])


def test_order_is_the_monotonic_clocks_and_runs_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for _ in range(2):
        with Log(path) as log:
            for n in (2, 1, 3):
                log.event(event(n))
    found = read(path)
    assert [line.at_s for line in found.lines] == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    assert len({line.run for line in found.lines}) == 2


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_wherever_a_kill_cuts_the_last_line_it_is_whole_or_skipped(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "run.jsonl"
    lines = [encoded(Line(run="a", n=n, at_s=float(n), wall="", event=event(n))) for n in range(3)]
    cut = data.draw(st.integers(0, len(lines[2])))
    path.write_bytes(lines[0] + lines[1] + lines[2][:cut])
    found = read(path)
    whole = cut >= len(lines[2]) - 1
    assert len(found.lines) == 2 + whole
    assert len(found.skipped) == (cut > 0 and not whole)
    with Log(path) as log:
        log.event(event(9))
    again = read(path)
    assert [line.at_s for line in again.lines if line.run != "a"] == [9.0], (
        "the next run begins on its own line"
    )
    assert len(again.lines) == 3 + whole


@pytest.mark.parametrize(
    "damage", [b"\0" * 5000, b"{}\n", b"[1]\n", b"\xff\xfe\n", b"x" * (3 << 20) + b"\n", b'{"run":1}\n']
)
def test_damage_is_told_and_skipped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "run.jsonl"
    with Log(path) as log:
        log.event(event(1))
    with path.open("ab") as out:
        out.write(damage)
    with Log(path) as log:
        log.event(event(2))
    found = read(path)
    assert len(found.lines) == 2
    assert [(s.file, s.number) for s in found.skipped] == [("run.jsonl", 2)]
    assert all(s.why for s in found.skipped)


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl").lines == ()


def test_the_size_is_bounded_and_the_newest_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    limit = 40_000
    with Log(path, limit_bytes=limit, files=4) as log:
        for n in range(2000):
            log.event(event(n))
            if n % 500 == 0:
                assert log.flush()
    assert log.lost == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run.jsonl",
        "run.jsonl.1",
        "run.jsonl.2",
        "run.jsonl.3",
    ]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= limit
    found = read(path)
    numbers = [line.n for line in found.lines]
    assert numbers == list(range(numbers[0], 2001))
    assert len(numbers) > 100
    assert found.skipped == ()


def test_after_a_kill_every_line_but_the_last_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    code = (
        "import sys, pathlib\nfrom edgekiln.runtime.events import Log\n"
        "from edgekiln.runtime.vocabulary import Event\n"
        "log = Log(pathlib.Path(sys.argv[1]))\nn = 0\n"
        "while True:\n    n += 1\n    log.event(Event(at_s=float(n), kind='change', what='x' * 300))\n"
        "    log.flush() if n % 200 == 0 else None\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        assert waited_for(lambda: path.exists() and path.stat().st_size > 200_000)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    found = read(path)
    assert len(found.skipped) <= 1
    assert [line.n for line in found.lines] == list(range(1, len(found.lines) + 1))


# ---------------------------------------------------------------- disks that fail


def outage(log: Log, said: list[Event], cure: Callable[[], object], path: Path) -> None:
    """Log into a disk that fails until ``cure``; then every promise of an outage must hold."""
    n = 0
    while not said and n < 5000:
        n += 1
        log.event(event(n))
        assert log.flush()
    for _ in range(200):
        n += 1
        log.event(event(n))
    assert log.flush()
    assert [e.kind for e in said] == ["log-failed"], "said once, not for every line"
    assert said[0].why
    lost = log.lost
    assert lost > 100
    cure()

    def works_again() -> bool:
        nonlocal n
        n += 1
        log.event(event(n))
        log.flush()
        return len(said) == 2

    assert waited_for(works_again)
    log.close()
    assert said[1].kind == "recovered"
    assert said[1].facts["lost_lines"] == log.lost
    found = read(path)
    assert found.skipped == (), "what was cut short was taken back"
    assert len(found.lines) == n - log.lost


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """A real file system of ``size``; skips where this user may mount none."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no right to mount a small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_under_the_log(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        said: list[Event] = []
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 40_000)
        log = Log(disk / "run.jsonl", said.append, retry_s=0.05)
        outage(log, said, ballast.unlink, disk / "run.jsonl")
        assert "space" in said[0].why.lower()


def test_a_disk_that_becomes_read_only_under_the_log(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        said: list[Event] = []
        log = Log(disk / "run.jsonl", said.append, retry_s=0.05)
        log.event(event(0))
        assert log.flush()
        log._file.close()  # a file system with a writer can't be made read-only: a failing card closes none

        def mounted(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

        mounted("ro")
        n = 0
        while not said and n < 50:
            n += 1
            log.event(event(n))
            log.flush()
        assert [e.kind for e in said] == ["log-failed"]
        assert "read-only" in said[0].why.lower()
        mounted("rw")
        assert waited_for(lambda: (log.event(event(1)), log.flush(), len(said) == 2)[-1])
        log.close()


def test_a_limit_of_file_sizes_under_the_log(tmp_path: Path) -> None:
    code = """
import pathlib, resource, signal, sys
from edgekiln.runtime.events import Log, read
from edgekiln.runtime.vocabulary import Event
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
said, path = [], pathlib.Path(sys.argv[1])
log = Log(path, said.append, retry_s=0.01)
for n in range(300):
    log.event(Event(at_s=float(n), kind="change", what="x" * 100))
assert log.flush()
assert [e.kind for e in said] == ["log-failed"], said
found = read(path)
assert found.skipped == (), found.skipped
assert len(found.lines) + log.lost == 300 and log.lost > 100
log.close()
print(said[0].why)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run.jsonl")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout


def test_dev_full_under_the_log() -> None:
    said: list[Event] = []
    with Log(Path("/dev/full"), said.append) as log:
        for n in range(50):
            log.event(event(n))
        assert log.flush()
    assert log.lost == 50
    assert [(e.kind, e.why) for e in said] == [("log-failed", "No space left on device")]


def test_a_folder_that_vanishes_and_returns(tmp_path: Path) -> None:
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    said: list[Event] = []
    log = Log(folder / "run.jsonl", said.append, retry_s=0.05)
    log.event(event(0))
    assert log.flush()
    folder.rename(away)
    outage_lines = 150
    for n in range(1, outage_lines + 1):
        log.event(event(n))
    assert log.flush()
    assert [e.kind for e in said] == ["log-failed"]
    assert not folder.exists(), "an empty mount point must not be filled"
    away.rename(folder)
    assert waited_for(lambda: (log.event(event(999)), log.flush(), len(said) == 2)[-1])
    log.close()
    held = read(folder / "run.jsonl").lines
    assert held[0].n == 1
    assert held[-1].n - len(held) == log.lost, "the numbers show the gap"


def test_a_removed_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Log(path) as log:
        log.event(event(1))
        assert log.flush()
        path.unlink()
        log.event(event(2))
    assert [line.n for line in read(path).lines] == [2]


def test_a_folder_that_never_was(tmp_path: Path) -> None:
    said: list[Event] = []
    with Log(tmp_path / "none" / "run.jsonl", said.append) as log:
        log.event(event(1))
    assert log.lost == 1
    assert [e.why for e in said] == ["No such file or directory"]


def test_a_disk_that_hangs_holds_no_frame_up(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # nobody empties it: the writer hangs for good
    log = Log(path)
    start = time.monotonic()
    for n in range(5000):
        log.event(event(n))
    took = time.monotonic() - start
    assert log.lost > 3000
    assert took < 10.0
    log.close(timeout_s=0.2)
    os.close(reader)


def test_a_string_that_is_no_text_is_logged_without_what_is_none(tmp_path: Path) -> None:
    with Log(tmp_path / "run.jsonl") as log:
        log.event(event(1, what="gate \ud800"))
    assert [line.event.what for line in read(tmp_path / "run.jsonl").lines if line.event] == ["gate ?"]


def test_a_line_that_no_reader_takes_is_lost_alone(tmp_path: Path) -> None:
    said: list[Event] = []
    with Log(tmp_path / "run.jsonl", said.append) as log:
        for n, what in enumerate(("a", "x" * (2 << 20), "b"), 1):
            log.event(event(n, what=what))
    assert [line.n for line in read(tmp_path / "run.jsonl").lines] == [1, 3]
    assert log.lost == 1


def test_a_listener_that_fails_does_not_end_the_log(tmp_path: Path) -> None:
    def fail(_: Event) -> None:
        raise RuntimeError("closed")

    with Log(tmp_path / "none" / "run.jsonl", fail) as log:
        log.event(event(1))
        assert log.flush()
        log.event(event(2))
        assert log.flush()
    assert log.lost == 2
