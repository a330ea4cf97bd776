"""Run the tests: the folders of ``tests/`` in a process each, two of them at a time.

The native libraries of eight vendors in one process get in each other's way, and what crashes one part must
not hide what the others say. What measures time runs last, by itself. Each part's output is printed when it
ends. Arguments go to pytest. Exits with 1 where any part failed, after all of them ran.

A test that failed runs once more at the end, when nothing else does: on two cores that others share, a
deadline or a slow-down is sometimes somebody else's. What passes only then is named in the last lines and not
hidden. A part that was ended by a signal has failed, whatever its tests say.
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
TESTS_FAILED = 1
"""Pytest's exit code where tests ran and some failed; others mean that it could not do its work."""
CACHES = ROOT / "build" / "failed-tests"
PYTEST = (sys.executable, "-m", "pytest", "--durations=12", "--durations-min=5", *sys.argv[1:])


def parts() -> list[str]:
    """The parts, longest first."""
    files = (f.relative_to(ROOT).parts for f in ROOT.glob("tests/*/**/test_*.py"))
    folders = sorted({"/".join(names[:2]) for names in files})
    return [*LONGEST, *(f for f in folders if f not in LONGEST)]


def run(part: str) -> int:
    """The exit code, after the output was printed."""
    paths = [str(p) for p in sorted(ROOT.glob("tests/test_*.py"))] if part == TOP else [part]
    return _pytest(part, *paths)


def again(part: str) -> int:
    """The exit code of the tests that failed in this part, and of no others."""
    return _pytest(part, "--last-failed", "--last-failed-no-failures=none", "-rA")


def _pytest(part: str, *more: str) -> int:
    began = time.monotonic()
    kept = ("-o", f"cache_dir={CACHES / part.replace('/', '-').replace('*', 'all')}")
    done = subprocess.run(
        [*PYTEST, *kept, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    took = (time.monotonic() - began) / 60
    said = told(done.returncode)
    print(f"\n== {part}\n{done.stdout}== {said}  {part}  in {took:.1f} min", flush=True)
    return done.returncode


def told(code: int) -> str:
    """What an exit code means, in a word or two."""
    return "passed" if code == 0 else f"FAILED, ended by signal {-code}," if code < 0 else "FAILED"


def main() -> int:
    """Runs every part, then what failed."""
    beside = [p for p in parts() if p not in ALONE]
    print(f"Running {len(beside)} parts, {LANES} at a time, then {len(ALONE)} alone", flush=True)
    pool = ThreadPoolExecutor(LANES)
    every = [*beside, *ALONE]
    try:
        codes = dict(zip(every, [*pool.map(run, beside), *map(run, ALONE)], strict=True))
        second = {part: again(part) for part, code in codes.items() if code == TESTS_FAILED}
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        return 130
    print()
    for part, code in codes.items():
        late = second.get(part) == 0
        print(f"passed at the second try alone, see above  {part}" if late else f"{told(code)}  {part}")
    return int(any(second.get(part, code) for part, code in codes.items()))


if __name__ == "__main__":
    sys.exit(main())
