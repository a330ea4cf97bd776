"""The script behind ``make test``: what failed gets a second try alone, and nothing is hidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run_tests.py"
GOOD = "def test_good():\n    pass\n"
ONCE = """
from pathlib import Path

def test_first_time():
    seen = Path(__file__).with_suffix(".seen")
    known = seen.exists()
    seen.touch()
    assert known

def test_beside():
    counted = Path(__file__).with_suffix(".counted")
    assert not counted.exists()
    counted.touch()
"""
NEVER = "def test_never():\n    assert False\n"
CRASH = "import os, signal\n\ndef test_crash():\n    os.kill(os.getpid(), signal.SIGKILL)\n"


def run(folder: Path) -> tuple[int, list[str]]:
    """The exit code, and the lines that sum up."""
    done = subprocess.run(
        [sys.executable, "scripts/run_tests.py"],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # quicker to start
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout.split("\n\n")[-1].splitlines()


def test_a_second_try_is_told_and_a_failure_stays_one(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    tests = tmp_path / "tests"
    parts = ("compile", "prove", "runtime", "sensors")
    odd = {"once": ONCE, "never": NEVER, "crash": CRASH}
    for part, text in (dict.fromkeys(parts, GOOD) | odd).items():
        (tests / part).mkdir(parents=True)
        (tests / part / f"test_{part}.py").write_text(text)
    (tests / "test_top.py").write_text(GOOD)
    late = "passed at the second try alone, see above  tests/once"
    code, last = run(tmp_path)
    assert code == 1
    assert {"passed  tests/compile", "passed  tests/prove", "passed  tests/*.py", late} <= set(last)
    assert {"FAILED  tests/never", "FAILED, ended by signal 9,  tests/crash"} <= set(last)

    for part in ("never", "crash"):
        shutil.rmtree(tests / part)
    for mark in ("seen", "counted"):
        (tests / "once" / f"test_once.{mark}").unlink()
    code, last = run(tmp_path)
    assert code == 0
    assert late in last
    code, last = run(tmp_path)  # .counted is there now: the other test fails, at both tries
    assert code == 1
    assert "FAILED  tests/once" in last
