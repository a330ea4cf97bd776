"""Which recipe is fastest depends on the network: LiteRT's and ExecuTorch's own on two architectures.

A convolutional network (EfficientNet-Lite0, trained) and a transformer (ViT-tiny, random weights) go through
every recipe of the targets litert and executorch, and ONNX Runtime's fp32 for scale. All files of one network
are timed on this machine in one alternated run, each in a fresh process. No goal: the table is the reason why
the build tries all of them and assumes nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from edgekiln.baseline import float_reference
from edgekiln.compile.isolate import Converters
from edgekiln.compile.make import make
from edgekiln.compile.targets import TARGETS
from edgekiln.devices import load as load_device
from edgekiln.errors import EdgekilnError
from edgekiln.job import load
from edgekiln.prove.environment import fitness
from edgekiln.prove.judge import Bound, judge
from edgekiln.prove.timing import Contender, Timing, measure
from edgekiln.records import Artifact, Record
from measuring.process import ROOT, say
from measuring.scene import Scene, scene, scene_of
from measuring.table import Table, arguments, publish, spread

DEVICE = "pixel-9"
SAMPLES = 24
TITLES = {"efficientnet-lite0": "EfficientNet-Lite0, trained", "vit-tiny": "ViT-tiny, random weights"}


class Row(Record, frozen=True, kw_only=True):
    """One file: its figures, or why there are none. ``placement`` is the first provider's row in words."""

    network: str
    target: str
    recipe: str
    size_bytes: int = 0
    sqnr_db: float | None = None
    placement: str = ""
    samples_ms: tuple[float, ...] = ()
    failure: str = ""


def rows_of(network: str, held: Scene, threads: int, count: int, quick: bool) -> list[Row]:
    """Make, prove and time every file of ``network``."""
    wanted = [("onnxruntime", "fp32")]
    wanted += [(t, r) for t in ("litert", "executorch") for r in TARGETS[t].recipes]
    if quick:
        wanted = [("onnxruntime", "fp32"), ("litert", "fp32"), ("litert", "int8-litert-dynamic")]
    made: dict[tuple[str, str], tuple[Path, Artifact, float | None]] = {}
    rows: list[Row] = []
    reference = float_reference(held.intake, threads)
    with Converters(threads=threads) as converters, tempfile.TemporaryDirectory() as scratch:
        for target, recipe in wanted:
            say(f"{network}: {target} {recipe}")
            try:
                folder, artifact = make(held.shop, load_device(DEVICE), target, recipe, converters)
                bound = Bound(SAMPLES, "a benchmark of speed")
                judged = judge(artifact, folder, reference, threads, "", Path(scratch), bound)
            except EdgekilnError as error:
                rows.append(Row(network=network, target=target, recipe=recipe, failure=error.why[:200]))
                continue
            found = next((e.value for e in judged.evidence if e.what == "sqnr_db"), None)
            made[target, recipe] = (folder, artifact, found)
    return rows + timed(network, held, made, threads, count)


def timed(
    network: str,
    held: Scene,
    made: dict[tuple[str, str], tuple[Path, Artifact, float | None]],
    threads: int,
    count: int,
) -> list[Row]:
    """All files of one network in one alternated run."""
    contenders = [
        Contender(id=a.id, folder=str(f), artifact=a, engine=a.proof_engine) for f, a, _ in made.values()
    ]
    sample = next(held.holdout())
    found = measure(contenders, sample, threads, min_samples=count, max_seconds=4.0 * len(contenders))
    rows = []
    for ((target, recipe), (_, artifact, sqnr)), timing in zip(made.items(), found, strict=True):
        row = Row(
            network=network,
            target=target,
            recipe=recipe,
            size_bytes=artifact.size_bytes,
            sqnr_db=sqnr,
            placement=placed(artifact),
        )
        if isinstance(timing, Timing):
            rows.append(msgspec.structs.replace(row, samples_ms=timing.samples_ms))
        else:
            rows.append(msgspec.structs.replace(row, failure=timing.reason[:200]))
    return rows


def placed(artifact: Artifact) -> str:
    """The first provider that could be asked: what it takes, and in how many pieces."""
    row = next((p for p in artifact.placement if p.taken is not None), None)
    if row is None:
        return "not known"
    pieces = "" if row.partitions is None else f" in {row.partitions}"
    return f"{row.provider}: {row.taken} of {row.operators}{pieces}"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    if row.failure:
        return (f"{row.target} {row.recipe}", "—", "—", f"0 samples: {row.failure}", "—")
    decibel = "—" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
    name, size = f"{row.target} {row.recipe}", f"{row.size_bytes / 1e6:.2f} MB"
    return name, size, decibel, spread(row.samples_ms, "ms", 2), row.placement


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args()
    unfit = fitness()
    given.out.mkdir(parents=True, exist_ok=True)
    cache = given.out / "cache"
    if given.quick:
        scenes = {"tiny": scene("tiny", cache, given.threads)}
    else:
        vit = load(ROOT / "examples" / "zoo" / "vit_tiny.toml")
        scenes = {
            "efficientnet-lite0": scene("efficientnet-lite0", cache, given.threads),
            "vit-tiny": scene_of(vit, cache, given.threads),
        }
    count = 5 if given.quick else given.samples
    rows = [
        r for name, held in scenes.items() for r in rows_of(name, held, given.threads, count, given.quick)
    ]
    tables = [
        Table(
            title=f"{TITLES.get(name, name)}, {given.threads} thread",
            columns=("file", "size", f"SQNR, {SAMPLES} samples", "latency, median", "placement"),
            rows=tuple(
                cells(r)
                for r in sorted(
                    (r for r in rows if r.network == name),
                    key=lambda r: float(np.median(r.samples_ms)) if r.samples_ms else np.inf,
                )
            ),
            note="Every file in a fresh process, all alternated in one run; fastest first.",
        )
        for name in scenes
    ]
    publish("mobile", tables, rows, quick=given.quick, out=given.out, unfit=unfit)


if __name__ == "__main__":
    main()
