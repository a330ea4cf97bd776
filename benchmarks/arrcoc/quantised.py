"""What 8 bits, or 16, cost on the final task: the right digit, by the whole compact system.

Writes the plan of a platform, builds each of its parts with one recipe (``edgekiln build``, the budget left
out), and answers the same held-out scenes with the float system, with each built part in its place, and with
all of them. The artifacts are run by the engine that proves them on this machine.

    python benchmarks/arrcoc/quantised.py CHECKPOINT --platform jetson --device host --target onnxruntime \\
        --recipe int8-static-mse [--scenes 500] [--tokens 81] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from edgekiln.arrcoc.plans import PLATFORMS, Plan, write_plan
from edgekiln.arrcoc.plans.execute import exported
from edgekiln.arrcoc.plans.judge import Judged, bundled, judge
from edgekiln.arrcoc.scenes.generate import scenes
from edgekiln.arrcoc.scenes.questions import KINDS
from edgekiln.job import BudgetOrder, SearchOrder, load
from edgekiln.road import build

HOST = "host"
ANYTHING = BudgetOrder(sqnr_db=-300.0)
"""A budget that everything keeps: what a recipe costs is asked here, not whether it is good enough."""


def built(
    plan: Plan, folder: Path, device: str, target: str, recipe: str
) -> tuple[dict[str, Path], dict[str, str]]:
    """The bundles of all parts, and for a part without one the reason."""
    bundles, lacking = {}, {}
    for part in plan.parts:
        job = load(folder / part.job)
        search = SearchOrder(targets=(target,), recipes=(recipe,), threads=1, samples=1)
        out = f"out-{device}-{target}-{recipe}"
        told = {"devices": (device,), "search": search, "budget": ANYTHING, "out": out}
        found = build(msgspec.structs.replace(job, **told))
        bundle = folder / part.name / out / "bundles" / f"{device}.edgekiln"
        if found.decision.met and bundle.is_file():
            bundles[part.name] = bundle
        else:
            lacking[part.name] = "; ".join(f.reason for f in found.failures) or "nothing was chosen"
    return bundles, lacking


def row(found: Judged) -> str:
    """A line of the table."""
    low, high = found.drop_interval
    drop = "" if not found.swapped else f"{found.drop:+.3f} ({low:+.3f} to {high:+.3f})"
    return (
        f"| {found.name} | {found.accuracy:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f}) | "
        f"{drop} | {found.agreed / found.questions:.3f} |"
    )


def compare(plan: Plan, folder: Path, given: argparse.Namespace) -> None:
    """Builds and judges one plan, and prints a table for each kind of question."""
    bundles, lacking = built(plan, folder, given.device, given.target, given.recipe)
    how = "measured on this machine" if given.device == HOST else "emulated: run by what proves it here"
    print(f"{plan.title}: {given.recipe} of {given.target} for {given.device} ({how})")
    for name, why in lacking.items():
        print(f"{name} is left as it is: {why}")
    with exported(plan, folder) as floats, bundled(bundles) as runners:
        for kind in given.kinds:
            asked = list(scenes("test", given.scenes, 0, (kind,)))
            print(f"\nQuestions by {kind}, {given.tokens} tokens, {given.scenes} held-out scenes\n")
            print("| replaced | right (95 %) | lost (95 %, paired) | same answer as float |")
            print("| --- | --- | --- | --- |")
            for found in judge(plan, floats, runners, asked, given.tokens):
                print(row(found), flush=True)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--platform", default="jetson", choices=sorted(PLATFORMS))
    parser.add_argument("--device", default=HOST)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--recipe", default="int8-static-mse")
    parser.add_argument("--tokens", type=int, default=81)
    parser.add_argument("--scenes", type=int, default=500, help="of each kind of question")
    parser.add_argument("--samples", type=int, default=64, help="scenes for calibration, and for validation")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--keep", type=Path, help="a new folder for the plan and what is built")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "plan"
        counts = {"calibration": given.samples, "validation": given.samples}
        plan = write_plan(given.checkpoint, folder, given.platform, buckets=(given.tokens,), **counts)
        compare(plan, folder, given)


if __name__ == "__main__":
    main()
