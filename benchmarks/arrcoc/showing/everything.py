"""Everything that shows ARR-COC, into one folder with one page.

    python benchmarks/arrcoc/run.py CHECKPOINT [CHECKPOINT ...] [--out build/arrcoc]

Give a checkpoint for each training seed: accuracies then have intervals over the seeds. Latency, overhead and
the gallery take the first one. The steps run one after the other, each a command of its own that stands in
the page beside what it printed:
1. accuracy.py: every contender and every ablation, on each kind of question;
2. latency.py, joined with the accuracies, with a chart for each kind;
3. overhead.py: what the scorers cost by themselves;
4. texture.py and allocation.py: the parts that need no checkpoint (left out with --short);
5. gallery.py.

A step that fails is told with its last words, and the others go on; the exit code is then 1. With --keep a
step whose result is there already is not run again.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from arrcoc.showing import accuracies
from edgekiln import files
from edgekiln.records import Record
from measuring.process import ROOT, environment, say
from measuring.table import Benchmark, Table

DEFAULT_OUT = ROOT / "build" / "arrcoc"
FOLDER = "benchmarks/arrcoc"
LAST_WORDS = 12


class Step(Record, frozen=True, kw_only=True):
    """A command, and where its standard output is kept."""

    name: str
    title: str
    command: tuple[str, ...]
    printed: Path

    @property
    def shown(self) -> str:
        """The command as a user types it."""
        return shlex.join(["python", *self.command])


class Ended(Record, frozen=True, kw_only=True):
    step: Step
    seconds: float
    failure: str = ""


def steps(given: argparse.Namespace) -> list[Step]:
    """What is run, in order, as the options say."""
    out = given.out
    first = _told(given.checkpoints[0])
    quick = ("--quick",) if given.quick else ()
    into = ("--out", _told(out))
    accuracy = _told(out / "accuracy.json")
    scenes = ("--scenes", str(25 if given.quick else given.scenes), "--kinds", *given.kinds)
    found = [
        ("accuracy", "Accuracy", (*map(_told, given.checkpoints), *scenes, "--json", accuracy)),
        ("latency", "Latency", (first, "--accuracy", accuracy, *into, *quick)),
        ("overhead", "The scorers' own cost", (first, *into, *quick)),
    ]
    if not given.short:
        found += [
            ("texture", "The texture array", (*into, *quick)),
            ("allocation", "Allocation", (*into, *quick)),
        ]
    found.append(("gallery", "Gallery", (first, *into, *quick)))
    return [
        Step(name=name, title=title, command=(f"{FOLDER}/{name}.py", *more), printed=out / f"{name}.md")
        for name, title, more in found
    ]


def _told(path: Path) -> str:
    """Relative to the checkout where it lies inside, so that the page holds no folder of one machine."""
    whole = path.resolve()
    return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else str(path)


def run(step: Step, keep: bool) -> Ended:
    """Its output goes to a file aside first, so that what is there is whole."""
    if keep and step.printed.exists():
        return Ended(step=step, seconds=0.0)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *step.command],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-LAST_WORDS:]
        return Ended(step=step, seconds=seconds, failure="\n".join([f"exit code {done.returncode}", *words]))
    files.write_bytes(step.printed, done.stdout.encode())
    return Ended(step=step, seconds=seconds)


# ---------------------------------------------------------------- the page


def page(ended: Sequence[Ended], out: Path, quick: bool) -> str:
    """Every table with its command, the charts and the gallery's sheet."""
    lines = ["# ARR-COC, measured", ""]
    if quick:
        lines += ["**Smoke run (`--quick`): it shows that everything works, its figures mean nothing.**", ""]
    for one in ended:
        if one.failure:
            lines += [f"**{one.step.title} failed**: see there.", ""]
    lines += _goals([e for e in ended if not e.failure], out)
    for one in ended:
        lines += [f"## {one.step.title}", "", "```sh", one.step.shown, "```", ""]
        if one.failure:
            lines += ["It failed:", "", "```", one.failure, "```", ""]
        elif one.step.name == "accuracy":
            lines += _accuracy(out / "accuracy.json")
        else:
            lines += [_lowered(one.step.printed.read_text(encoding="utf-8")), ""]
        lines += _pictures(one, out)
    return "\n".join(lines).rstrip() + "\n"


def _goals(well: Sequence[Ended], out: Path) -> list[str]:
    """What was asked for, met or missed, from the steps that have ended well."""
    names = {e.step.name for e in well}
    tables = []
    if "accuracy" in names and "colour" in accuracies.kinds(rows := accuracies.read(out / "accuracy.json")):
        tables.append(accuracies.goals(rows))
    for name in ("latency", "overhead"):
        if name in names:
            found = msgspec.json.decode((out / f"arrcoc-{name}.json").read_bytes(), type=Benchmark)
            tables += [t for t in found.tables if t.title.startswith("Goal")]
    return ["## Goals", "", *(line for table in tables for line in _table(table))] if tables else []


def _accuracy(path: Path) -> list[str]:
    return [line for table in accuracies.tables(accuracies.read(path)) for line in _table(table)]


def _table(table: Table) -> list[str]:
    rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows), "", table.note, ""]


def _lowered(text: str) -> str:
    """What a benchmark printed, without the heading that bears its name and the goals, which stand above."""
    _, *sections = re.split(r"^(?=### )", text, flags=re.MULTILINE)
    kept = [s for s in sections if not s.startswith("### Goal")]
    # The machine's lines come after the last table, which may be one of the goals'.
    if len(kept) < len(sections) and sections[-1].startswith("### Goal"):
        kept.append(sections[-1][sections[-1].index("\nMachine: ") + 1 :])
    return "".join(kept).strip()


def _pictures(one: Ended, out: Path) -> list[str]:
    if one.failure:
        return []
    if one.step.name == "latency":
        charts = sorted(out.glob("arrcoc-accuracy-*.svg"))
        return [
            line
            for path in charts
            for line in (
                f"![Accuracy against tokens and latency, {path.stem.rsplit('-', 1)[1]}]({path.name})",
                "",
            )
        ]
    if one.step.name == "gallery":
        return ["![The gallery's sheet](gallery.png)", "", "[The same as a page](gallery.html)", ""]
    return []


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the folder (build/arrcoc)")
    parser.add_argument("--scenes", type=int, default=1000, help="a kind of question; a multiple of 25")
    parser.add_argument("--kinds", nargs="+", default=["colour", "place", "count"])
    parser.add_argument("--short", action="store_true", help="without texture.py and allocation.py")
    parser.add_argument("--keep", action="store_true", help="run only what has no result yet")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    given = parser.parse_args()
    for path in given.checkpoints:
        if not path.is_file():
            sys.exit(
                f"error: there is no checkpoint {path}; train one: python -m edgekiln.arrcoc.train {path}"
            )
    given.checkpoints = [path.resolve() for path in given.checkpoints]
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    ended = []
    for step in steps(given):
        say(f"{step.name}: {step.shown}")
        ended.append(run(step, given.keep))
        say(f"{step.name}: {'FAILED' if ended[-1].failure else 'done'} after {ended[-1].seconds:.0f} s")
        # After every step, so that whoever ends a long run has what was found until then.
        files.write_bytes(given.out / "README.md", page(ended, given.out, given.quick).encode())
    say(f"wrote {given.out / 'README.md'}")
    sys.exit(any(e.failure for e in ended))
