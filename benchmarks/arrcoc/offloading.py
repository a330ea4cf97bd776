"""The Android plan's three ways with a server: who answers, how fast, and how many bytes a question costs.

The tail of the reader is served on this machine over loopback, so what is measured is the way and not a
network. Bytes are counted at the server: request bodies as they came, deflated.

    python benchmarks/arrcoc/offloading.py CHECKPOINT [--scenes 30] [--tokens 81] [--deadline-ms 500]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from edgekiln.arrcoc.plans import write_plan
from edgekiln.arrcoc.plans.execute import ask, exported
from edgekiln.arrcoc.plans.offload import offloading
from edgekiln.arrcoc.plans.records import Plan
from edgekiln.arrcoc.scenes.generate import scenes
from edgekiln.job import load
from edgekiln.runtime.hybrid.client import Server
from edgekiln.runtime.hybrid.offload import OffloadRules
from edgekiln.runtime.vocabulary import Answer
from edgekiln.splitting import split
from measuring.model_server import served, serving

GAIN = 0.05
"""What the answer of a larger reader there would be better by; without it nothing is sent adaptively."""


@contextmanager
def parted(plan: Plan, folder: Path, tokens: int) -> Iterator[tuple[Path, int]]:
    """The split model of the reader at ``tokens`` in a scratch folder, and its bytes a question."""
    part = plan.part(f"look_{tokens}")
    cut = next(c for c in plan.cuts if c.part == part.name)
    with tempfile.TemporaryDirectory() as scratch:
        job = load(folder / part.job)
        made = split(msgspec.structs.replace(job, out=f"{scratch}/split"), cut.at, cut.beside)
        yield Path(scratch) / "split", made.sent_bytes


def row(
    way: str, found: Sequence[Answer], wanted: Sequence[int], truth: Sequence[int], sent: list[int]
) -> str:
    """A line of the table: ``wanted`` are the whole reader's answers, ``truth`` the right ones."""
    answers = [int(a.outputs["logits"].argmax()) for a in found]
    cells = (
        way,
        f"{np.mean([a.place == 'cloud' for a in found]):.0%}",
        f"{np.mean([a.late for a in found]):.0%}",
        f"{statistics.median(a.latency_ms for a in found):.1f}",
        f"{statistics.median(sent) if sent else 0:,.0f}",
        f"{np.mean(np.equal(answers, wanted)):.3f}",
        f"{np.mean(np.equal(answers, truth)):.3f}",
    )
    return f"| {' | '.join(cells)} |"


def compare(plan: Plan, folder: Path, given: argparse.Namespace) -> None:
    """Asks the same questions in each way, and prints the table."""
    asked = list(scenes("test", given.scenes, 0, ("colour",)))
    truth = [question.answer for _, question in asked]
    with exported(plan, folder) as floats, parted(plan, folder, given.tokens) as (parts, raw):
        wanted = [int(ask(plan, floats, s.picture, q.text, given.tokens).argmax()) for s, q in asked]
        print(f"{given.tokens} tokens, {given.scenes} held-out scenes, {raw:,} bytes a question undeflated")
        print("\n| way | by the server | late | median ms | bytes sent | same answer as whole | right |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        tail = {"tail": served(parts / "tail.onnx")}
        for way in plan.ways:
            rules = OffloadRules(mode=way.mode, gain=GAIN)
            with (
                serving(tail) as server,
                offloading(
                    plan, given.tokens, floats, parts, Server(url=server.url), "tail", rules
                ) as opened,
            ):
                found = [opened.ask(s.picture, q.text, given.deadline_ms) for s, q in asked]
            print(row(way.mode, found, wanted, truth, server.received), flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=81)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "plan"
        buckets = (given.tokens,)
        plan = write_plan(given.checkpoint, folder, "android", buckets=buckets, calibration=8, validation=2)
        compare(plan, folder, given)


if __name__ == "__main__":
    main()
