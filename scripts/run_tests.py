"""Run the tests: the folders of ``tests/`` in a process each, two of them at a time.

The native libraries of eight vendors in one process get in each other's way, and what crashes one part must
not hide what the others say. What measures time runs last, by itself. Each part's output is printed when it
ends. Arguments go to pytest. Exits with 1 where any part failed, after all of them ran.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANES = 2
TOP = "tests/*.py"
LONGEST = (TOP, "tests/compile")
ALONE = ("tests/prove", "tests/runtime", "tests/sensors")
PYTEST = (sys.executable, "-m", "pytest", "--durations=12", "--durations-min=5", *sys.argv[1:])


def parts() -> list[str]:
    """The parts, longest first."""
    files = (f.relative_to(ROOT).parts for f in ROOT.glob("tests/*/**/test_*.py"))
    folders = sorted({"/".join(names[:2]) for names in files})
    return [*LONGEST, *(f for f in folders if f not in LONGEST)]


def run(part: str) -> tuple[bool, str]:
    """Whether it passed, and a line that says so after its output was printed."""
    paths = [str(p) for p in sorted(ROOT.glob("tests/test_*.py"))] if part == TOP else [part]
    began = time.monotonic()
    done = subprocess.run(
        [*PYTEST, *paths], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    code, took = done.returncode, time.monotonic() - began
    end = f", ended by signal {-code}" if code < 0 else ""
    line = f"{'FAILED' if code else 'passed'}  {part}  in {took / 60:.1f} min{end}"
    print(f"\n== {part}\n{done.stdout}== {line}", flush=True)
    return code == 0, line


def main() -> int:
    beside = [p for p in parts() if p not in ALONE]
    print(f"Running {len(beside)} parts, {LANES} at a time, then {len(ALONE)} alone", flush=True)
    pool = ThreadPoolExecutor(LANES)
    try:
        results = [*pool.map(run, beside), *map(run, ALONE)]
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        return 130
    print("", *(line for _, line in results), sep="\n")
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
