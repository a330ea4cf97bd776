"""What each engine option is worth on this machine, idle and beside a busy process.

For ONNX Runtime and OpenVINO, each option that tuning may try (``edgekiln.prove.tuning.space``) against the
artifact as it is, all alternated in one run in fresh processes. Then the same run again beside a process
that keeps a core busy, because an option such as spinning may win on an idle machine and lose on a busy one.
Padded channels (``fp32+align16``) stand in a table of their own, against the same recipe without padding.

On EfficientNet-Lite0 in fp32 and INT8, and on a transformer (ViT-tiny of examples/zoo, random weights). A
ratio below 1 is faster; it is that of the medians, with a 95 % interval from resampling whole rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekiln.prove.environment import fitness
from edgekiln.prove.statistics import TIE_MARGIN, Blocks, Ratio, ratio_of_medians
from edgekiln.prove.timing import Contender, Timing, measure
from edgekiln.prove.tuning import Options, space, timer
from edgekiln.records import Artifact, Record
from measuring.process import ROOT, say
from measuring.scene import Inputs, Scene, scene, scene_of
from measuring.table import Table, arguments, publish

ENGINES = ("onnxruntime", "openvino")
RECIPES = {"onnxruntime": ("fp32", "int8-static-minmax"), "openvino": ("fp32", "int8-nncf-performance")}
PADDED = ("fp32", "int8-static-minmax")


class Row(Record, frozen=True, kw_only=True):
    """One option (or padding) of one artifact, idle and loaded; None where it could not run."""

    engine: str
    model: str
    option: str
    idle: Ratio | None
    loaded: Ratio | None


def scenes(cache: Path, threads: int, quick: bool) -> Iterator[tuple[str, Scene, bool]]:
    """Name, scene, and whether its INT8 recipes are timed too."""
    if quick:
        yield "tiny", scene("tiny", cache, threads), False
        return
    yield "efficientnet-lite0", scene("efficientnet-lite0", cache, threads), True
    from edgekiln.job import load

    sys.path.insert(0, str(ROOT / "examples" / "zoo"))
    yield "vit-tiny", scene_of(load(ROOT / "examples" / "zoo" / "vit_tiny.toml"), cache, threads), False


def rows_of(name: str, where: Scene, given: Any, int8: bool) -> Iterator[Row]:
    """Every option of every artifact of one scene."""
    from edgekiln.compile.make import make
    from edgekiln.devices import load

    host, sample = load("host"), next(where.holdout())
    for engine in ENGINES:
        for recipe in RECIPES[engine] if int8 else RECIPES[engine][:1]:
            folder, artifact = make(where.shop, host, engine, recipe)
            yield from _options(f"{name} {recipe}", folder, artifact, sample, given)


def _options(model: str, folder: Path, artifact: Artifact, sample: Inputs, given: Any) -> Iterator[Row]:
    contender = Contender(
        id=artifact.id, folder=str(folder.resolve()), artifact=artifact, engine=artifact.engine
    )
    changes: list[Options] = [{}, *space(artifact, given.threads)]
    changes = changes[: 3 if given.quick else None]
    timed = timer(contender, sample, given.threads)
    idle = _ratios(timed(changes, given.seconds, False))
    loaded = _ratios(timed(changes, given.seconds, True))
    for change, one, other in zip(changes[1:], idle, loaded, strict=True):
        told = ", ".join(f"{k}={v}" for k, v in change.items())
        yield Row(engine=artifact.engine, model=model, option=told, idle=one, loaded=other)
    say(f"{model} in {artifact.engine}")


def _ratios(blocks: Sequence[Blocks]) -> list[Ratio | None]:
    base, *others = blocks
    return [ratio_of_medians(b, base) if len(b) and len(base) else None for b in others]


def padding_of(name: str, where: Scene, given: Any) -> Iterator[Row]:
    """Padded channels against the same recipe without, in ONNX Runtime."""
    from edgekiln.compile.make import make
    from edgekiln.devices import load

    host, sample = load("host"), next(where.holdout())
    for recipe in PADDED[: 1 if given.quick else None]:
        made = [make(where.shop, host, "onnxruntime", f"{recipe}{end}") for end in ("", "+align16")]
        contenders = [
            Contender(id=a.id, folder=str(f.resolve()), artifact=a, engine="onnxruntime") for f, a in made
        ]
        found = measure(
            contenders, sample, given.threads, min_samples=given.samples, max_seconds=given.seconds
        )
        (idle,) = _ratios([t.blocks_ms if isinstance(t, Timing) else () for t in found])
        note = made[1][1].passes[0].note
        yield Row(engine="onnxruntime", model=f"{name} {recipe}", option=note, idle=idle, loaded=None)


def _cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return "—", "could not run"
    if ratio.interval is None:
        return f"{ratio.value:.3f}", f"not known: {ratio.rounds} rounds"
    return f"{ratio.value:.3f} ({ratio.interval[0]:.3f} to {ratio.interval[1]:.3f})", verdict(ratio)


def verdict(ratio: Ratio) -> str:
    """Faster or slower only where the whole interval lies beyond the margin of a tie."""
    if ratio.interval is None:
        return "not known"
    low, high = ratio.interval
    if high < 1 / (1 + TIE_MARGIN):
        return "faster"
    return "slower" if low > 1 + TIE_MARGIN else "no difference shown"


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of sampling in each run (default 30)")
    parser.add_argument("--samples", type=int, default=400, help="calls of each at most (default 400)")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.samples = 0.5, 20
    unfit = fitness()
    given.out.mkdir(parents=True, exist_ok=True)
    options: list[Row] = []
    padding: list[Row] = []
    for name, where, int8 in scenes(given.out / "cache", given.threads, given.quick):
        options += rows_of(name, where, given, int8)
        padding += padding_of(name, where, given) if int8 or given.quick else ()
    both = ("idle, ratio", "idle", "beside a load, ratio", "beside a load")
    tables = [
        Table(
            title=f"Engine options against none, {given.threads} threads",
            columns=("engine", "model", "option", *both),
            rows=tuple((r.engine, r.model, r.option, *_cells(r.idle), *_cells(r.loaded)) for r in options),
            note="Ratio of the medians with its 95 % interval, below 1 is faster. The load is one process "
            "that keeps a core busy. A difference counts where the whole interval lies beyond "
            f"{TIE_MARGIN:.0%}.",
        ),
        Table(
            title="Channels padded to a multiple of 16 against the same recipe without",
            columns=("engine", "model", "what was padded", *both[:2]),
            rows=tuple((r.engine, r.model, r.option, *_cells(r.idle)) for r in padding),
        ),
    ]
    publish("host_options", tables, options + padding, quick=given.quick, out=given.out, unfit=unfit)


if __name__ == "__main__":
    main()
