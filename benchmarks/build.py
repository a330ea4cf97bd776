"""The demo's build from nothing, the same build again, and how soon the command line answers.

Measured on the job of ``make demo`` (EfficientNet-Lite0 for three devices), through the command line:
- a cold build with an empty cache, once: wall time, the time of every step from its own progress lines, and
  the peak memory of the process tree;
- the same build again on that cache, three times;
- alternated, twenty times each: ``python -c pass`` (what Python itself costs), ``import edgekiln`` and
  ``edgekiln --help``, and which heavy packages ``--help`` imports.

The packages' files are in the page cache or not as the machine happens to have them: nothing is evicted.

Goals: cold build at most 180 s on two cores; the same build again at most 10 s; ``--help`` at most
0.3 s (P95) without a heavy package.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.files import write_bytes
from edgekiln.prove.environment import fitness
from edgekiln.prove.statistics import percentiles
from edgekiln.records import Record
from measuring import process
from measuring.process import Finished, say
from measuring.table import Table, against_goal, arguments, megabytes, publish, spread

GOAL_COLD_SECONDS = 180.0
GOAL_AGAIN_SECONDS = 10.0
GOAL_HELP_SECONDS = 0.3
HEAVY = frozenset(
    {
        *(
            "torch",
            "torchvision",
            "onnx",
            "onnxruntime",
            "onnxslim",
            "onnxsim",
            "onnxscript",
            "openvino",
            "nncf",
        ),
        *(
            "tensorrt_rtx",
            "sympy",
            "numpy",
            "scipy",
            "PIL",
            "rich",
            "jinja2",
            "skimage",
            "sklearn",
            "matplotlib",
        ),
    }
)
SLOWEST = 8
LIMIT_SECONDS = 900.0

_STEP = re.compile(r"^ *(\d+\.\d) s  (.+)$")
_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$")


class Step(Record, frozen=True, kw_only=True):
    """One progress line: what took how long (to a tenth of a second)."""

    text: str
    seconds: float


class BuildRun(Record, frozen=True, kw_only=True):
    seconds: float
    peak_tree_bytes: int
    steps: tuple[Step, ...]


class Start(Record, frozen=True, kw_only=True):
    """Wall seconds of every start, by what was started; ``heavy`` is what ``--help`` imported."""

    seconds: dict[str, tuple[float, ...]]
    heavy: tuple[str, ...]
    modules: int


def read_steps(progress: str) -> tuple[Step, ...]:
    """The steps that the command line's progress lines tell of."""
    found = (_STEP.match(line) for line in progress.splitlines())
    return tuple(Step(text=m[2], seconds=float(m[1])) for m in found if m)


def by_station(steps: Sequence[Step]) -> dict[str, float]:
    """Seconds by station: ``make`` and ``prove`` summed over artifacts, everything else as it is."""
    total: dict[str, float] = defaultdict(float)
    for step in steps:
        word = step.text.split()[0]
        total[f"{word} (all artifacts)" if word in {"make", "prove"} else step.text] += step.seconds
    return dict(total)


def build(job: Path, cache: Path, out: Path, more: Sequence[str]) -> BuildRun:
    """Run the job through the command line. Exits where it did not end with a decision."""
    command = [sys.executable, "-m", "edgekiln", "build", str(job), "--cache", str(cache), "--out", str(out)]
    done = process.run([*command, *more], limit_seconds=LIMIT_SECONDS)
    if done.stopped or done.exit_code not in {0, 1} or not (out / "report.html").is_file():
        _give_up(done)
    steps = read_steps(done.stderr)
    return BuildRun(seconds=done.seconds, peak_tree_bytes=done.peak_tree_bytes, steps=steps)


def _give_up(done: Finished) -> None:
    sys.exit(f"the build ended with {done.exit_code} {done.stopped}\n{done.stderr[-4000:]}")


def starts(repetitions: int) -> Start:
    """Alternated starts of Python, of Python with the package, and of ``--help``."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import edgekiln'": [sys.executable, "-c", "import edgekiln"],
        "edgekiln --help": [sys.executable, "-m", "edgekiln", "--help"],
    }
    for command in commands.values():
        process.wall_seconds(command)  # once uncounted: byte code is compiled, files are in the page cache
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repetitions):
        for name, command in commands.items():
            seconds[name].append(process.wall_seconds(command))
    modules = imported_by([sys.executable, "-X", "importtime", "-m", "edgekiln", "--help"])
    heavy = sorted(HEAVY & {name.split(".")[0] for name in modules})
    return Start(
        seconds={name: tuple(values) for name, values in seconds.items()},
        heavy=tuple(heavy),
        modules=len(modules),
    )


def imported_by(command: Sequence[str]) -> list[str]:
    """Dotted names of the modules that Python reports with ``-X importtime``."""
    done = subprocess.run(
        list(command),
        cwd=process.ROOT,
        env=process.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    found = (_IMPORTED.match(line) for line in done.stderr.splitlines())
    return [m[1] for m in found if m]


# ---------------------------------------------------------------- tables


def builds_table(cold: BuildRun, again: Sequence[BuildRun]) -> Table:
    """The cold build beside the builds after it."""
    later = [run.seconds for run in again]
    middle = percentiles(later).p50
    return Table(
        title="The demo's build",
        columns=("build", "wall time", "goal", "", "peak memory of the process tree"),
        rows=(
            (
                "cold, empty cache",
                f"{cold.seconds:.1f} s (once)",
                f"≤ {GOAL_COLD_SECONDS:.0f} s",
                against_goal(cold.seconds, GOAL_COLD_SECONDS),
                megabytes([cold.peak_tree_bytes]),
            ),
            (
                "the same again",
                spread(later, "s", 2),
                f"≤ {GOAL_AGAIN_SECONDS:.0f} s",
                against_goal(middle, GOAL_AGAIN_SECONDS),
                megabytes([run.peak_tree_bytes for run in again]),
            ),
        ),
        note="Measured. Memory is the largest sum of resident memory over the process and its descendants, "
        f"looked at every {process.SAMPLE_SECONDS * 1e3:.0f} ms; pages that several share count in each.",
    )


def steps_table(cold: BuildRun) -> Table:
    """Where the cold build's time went."""
    stations = by_station(cold.steps)
    rows = [(name, f"{seconds:.1f}", f"{seconds / cold.seconds:.0%}") for name, seconds in stations.items()]
    rest = cold.seconds - sum(stations.values())
    rows.append(("outside the steps (start, bundles, report)", f"{rest:.1f}", f"{rest / cold.seconds:.0%}"))
    singles = [s for s in cold.steps if s.text.split()[0] in {"make", "prove"}]
    slowest = sorted(singles, key=lambda s: -s.seconds)[:SLOWEST]
    rows += [(f"of these: {s.text}", f"{s.seconds:.1f}", f"{s.seconds / cold.seconds:.0%}") for s in slowest]
    return Table(
        title="Steps of the cold build",
        columns=("step", "seconds", "share"),
        rows=tuple(rows),
        note=f"From the {len(cold.steps)} progress lines, to a tenth of a second; every one is in the JSON.",
    )


def starts_table(start: Start) -> Table:
    """How soon the command line answers."""
    rows = []
    for name, values in start.seconds.items():
        found = percentiles(values)
        # P95 needs 20 samples; with fewer the largest is said, and called so.
        p95 = f"{found.p95 * 1e3:.0f} ms" if found.p95 is not None else f"max {max(values) * 1e3:.0f} ms"
        is_help = name == "edgekiln --help"
        upper = found.p95 if found.p95 is not None else max(values)
        goal = f"≤ {GOAL_HELP_SECONDS * 1e3:.0f} ms" if is_help else "—"
        verdict = against_goal(upper, GOAL_HELP_SECONDS) if is_help else "—"
        rows.append((name, spread([v * 1e3 for v in values], "ms", 0), p95, goal, verdict, str(len(values))))
    heavy = ", ".join(start.heavy) or "none"
    return Table(
        title="Start of the command line",
        columns=("command", "median", "P95", "goal", "", "n"),
        rows=tuple(rows),
        note=f"Measured, alternated, run as `python -m edgekiln`. `--help` imports {start.modules} modules; "
        f"heavy ones among them: {heavy} (goal: none).",
    )


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    given = parser.parse_args()
    unfit = fitness()
    repetitions, again_count, more = (3, 1, ["--samples", "20"]) if given.quick else (20, 3, [])
    start = starts(repetitions)
    say("starts are measured")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as scratch:
        folder = Path(scratch)
        job = _job(folder, given.quick)
        cold = build(job, folder / "cache", folder / "out", more)
        say(f"{cold.seconds:7.1f} s  cold build")
        again = []
        for _ in range(again_count):
            again.append(build(job, folder / "cache", folder / "out", more))
            say(f"{again[-1].seconds:7.1f} s  the same again")
    raw: Any = {"cold": cold, "again": again, "starts": start}
    tables = [builds_table(cold, again), steps_table(cold), starts_table(start)]
    publish("build", tables, raw, quick=given.quick, out=given.out, unfit=unfit)


def _job(folder: Path, quick: bool) -> Path:
    """The demo's job, its data prepared; for a smoke run one of a tiny network without data."""
    from measuring.scene import EXAMPLE, demo_data, tiny_network

    if not quick:
        demo_data()
        return EXAMPLE / "job.toml"
    write_bytes(folder / "tiny.onnx", tiny_network())
    text = '[model]\nsource = "tiny.onnx"\n[search]\ntargets = ["onnxruntime"]\nrecipes = ["fp32", "fp16"]\n'
    write_bytes(folder / "job.toml", text.encode())
    return folder / "job.toml"


if __name__ == "__main__":
    main()
