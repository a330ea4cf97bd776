"""What edgekiln's engines add to a call of the runtime beneath them.

Compared in one process per engine, in alternated blocks: a call of the runner that ``edgekiln.engines``
opens, and what a user would write without it on the same file with the same options:
- ONNX Runtime: ``session.run(None, {name: array})``;
- OpenVINO: ``request.infer({name: array})``, which copies its outputs as the runner does.

On a tiny network, where the call itself is most of the time, and on EfficientNet-Lite0 in fp32 and INT8,
where the question is whether anything is left of it. The figure is the difference of the medians with a 95 %
interval from resampling whole rounds (one block of each); an interval that holds 0 says that this run can't
tell.

Goal: at most 20 microseconds a call of the tiny network, at most 1 % of a call of EfficientNet-Lite0.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.environment import fitness
from edgekiln.records import Artifact, Record
from measuring import process
from measuring.process import say
from measuring.table import Table, arguments, publish

GOAL_US = 20.0
GOAL_SHARE = 0.01
BLOCK_SECONDS = 0.01
LEAD_IN = 2
ENGINES = ("onnxruntime", "openvino")
INT8 = {"onnxruntime": "int8-static-minmax", "openvino": "int8-nncf-performance"}

Call = Callable[[], Any]


class Place(Record, frozen=True, kw_only=True):
    """An artifact on disk, and the name of its network and recipe."""

    network: str
    recipe: str
    folder: str
    artifact: Artifact


class Pair(Record, frozen=True, kw_only=True):
    """Microseconds of every call, block by block; block i of both ran next to each other."""

    network: str
    recipe: str
    engine: str
    ours_us: tuple[tuple[float, ...], ...]
    bare_us: tuple[tuple[float, ...], ...]


# ---------------------------------------------------------------- the workers


def prepare(folder: Path, cache: Path, engine: str, threads: int, quick: bool) -> None:
    """Make the artifacts of ``engine`` and write where they lie, with one input each."""
    from edgekiln.compile.make import make
    from edgekiln.devices import load
    from edgekiln.files import write_bytes, write_json
    from edgekiln.prove.arrays import npz_bytes
    from measuring.scene import scene

    host = load("host")
    wanted = [("tiny", "fp32")]
    if not quick:
        wanted += [("efficientnet-lite0", "fp32"), ("efficientnet-lite0", INT8[engine])]
    places: list[Place] = []
    for network, recipe in wanted:
        made = scene("tiny" if network == "tiny" else "efficientnet-lite0", cache, threads)
        where, artifact = make(made.shop, host, engine, recipe)
        write_bytes(folder / f"{engine}-{len(places)}.npz", npz_bytes(next(made.holdout())))
        places.append(Place(network=network, recipe=recipe, folder=str(where.resolve()), artifact=artifact))
    write_json(folder / f"{engine}.json", places)


def work(folder: Path, engine: str, threads: int, rounds: int) -> list[Pair]:
    """Time every place of ``engine`` in this process."""
    from edgekiln.engines import open_engine

    places = msgspec.json.decode((folder / f"{engine}.json").read_bytes(), type=list[Place])
    pairs = []
    for number, place in enumerate(places):
        with np.load(folder / f"{engine}-{number}.npz") as held:
            inputs = dict(held)
        runner = open_engine(engine, place.artifact, Path(place.folder), threads)
        bare = BARE[engine](Path(place.folder) / place.artifact.entry, place.artifact, threads, inputs)
        ours_us, bare_us = alternate(lambda r=runner, i=inputs: r(i), bare, rounds)  # type: ignore[misc]
        runner.close()
        pairs.append(
            Pair(network=place.network, recipe=place.recipe, engine=engine, ours_us=ours_us, bare_us=bare_us)
        )
    return pairs


def onnxruntime_session(path: Path, artifact: Artifact, threads: int) -> Any:
    """ONNX Runtime as a user would open the file, with the artifact's options."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    spinning = "1" if artifact.options.get("spinning", False) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def openvino_request(path: Path, artifact: Artifact, threads: int) -> Any:
    """An inference request of OpenVINO as a user would make it, with the artifact's options."""
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": str(artifact.options.get("INFERENCE_PRECISION_HINT", "f32")),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "CACHE_DIR": "",
    }
    return openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()


def _bare_onnxruntime(path: Path, artifact: Artifact, threads: int, inputs: Mapping[str, Any]) -> Call:
    session, feed = onnxruntime_session(path, artifact, threads), dict(inputs)
    return lambda: session.run(None, feed)


def _bare_openvino(path: Path, artifact: Artifact, threads: int, inputs: Mapping[str, Any]) -> Call:
    request, feed = openvino_request(path, artifact, threads), dict(inputs)
    return lambda: request.infer(feed)


BARE: dict[str, Callable[[Path, Artifact, int, Mapping[str, Any]], Call]] = {
    "onnxruntime": _bare_onnxruntime,
    "openvino": _bare_openvino,
}


def alternate(
    ours: Call, bare: Call, rounds: int
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """``rounds`` blocks of each, in turns, the first of a round by a seeded coin. Warms up both first."""
    once = min(timed_block(ours, 5)[-1], timed_block(bare, 5)[-1])
    timed_block(ours, calls := max(5, min(200, round(BLOCK_SECONDS * 1e6 / once))))
    timed_block(bare, calls)
    found: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    coin = np.random.default_rng(0)
    for _ in range(rounds):
        first = int(coin.integers(2))
        for which in (first, 1 - first):
            # The other contender has just emptied the caches: the first calls of a block do not count.
            found[which].append(timed_block((ours, bare)[which], LEAD_IN + calls)[LEAD_IN:])
    return tuple(found[0]), tuple(found[1])


def timed_block(call: Call, calls: int) -> tuple[float, ...]:
    """Microseconds of ``calls`` calls."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(calls):
        started = clock()
        call()
        times.append((clock() - started) / 1e3)
    return tuple(times)


# ---------------------------------------------------------------- the answer


def difference(pair: Pair, resamples: int = 2000) -> tuple[float, float, float]:
    """Median of ours less median of the bare call in microseconds, and its 95 % interval.

    A round is the unit that is drawn with replacement (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 8): what slowed the machine slows both and cancels.
    """
    ours = [np.asarray(block) for block in pair.ours_us]
    bare = [np.asarray(block) for block in pair.bare_us]

    def gap(rows: Any) -> float:
        return float(_median(ours, rows) - _median(bare, rows))

    draws = np.random.default_rng(0).integers(0, len(ours), (resamples, len(ours)))
    low, high = np.quantile([gap(rows) for rows in draws], [0.025, 0.975])
    return gap(range(len(ours))), float(low), float(high)


def _median(blocks: list[NDArray[np.float64]], rows: Any) -> float:
    return float(np.median(np.concatenate([blocks[i] for i in rows])))


def _row(pair: Pair) -> tuple[str, ...]:
    value, low, high = difference(pair)
    bare = np.concatenate([np.asarray(b) for b in pair.bare_us])
    ours = np.concatenate([np.asarray(b) for b in pair.ours_us])
    share = value / float(np.median(bare))
    goal = GOAL_US if pair.network == "tiny" else GOAL_SHARE * float(np.median(bare))
    verdict = "met" if high <= goal else "not shown" if low <= goal else "missed"
    return (
        pair.engine,
        f"{pair.network} {pair.recipe}",
        f"{np.median(bare):.1f} µs (IQR {np.subtract(*np.quantile(bare, [0.75, 0.25])):.1f})",
        f"{np.median(ours):.1f} µs (IQR {np.subtract(*np.quantile(ours, [0.75, 0.25])):.1f})",
        f"{value:+.1f} µs ({low:+.1f} to {high:+.1f})",
        f"{share:+.2%}",
        f"{len(pair.ours_us)} rounds of {len(pair.ours_us[0])}",
        verdict,
    )


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200, help="blocks of each contender (default 200)")
    worker = parser.add_argument_group("what the benchmark starts itself with")
    worker.add_argument("--prepare", choices=ENGINES)
    worker.add_argument("--worker", choices=ENGINES)
    worker.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.rounds = min(given.rounds, 10)
    if given.prepare:
        prepare(given.folder, given.out / "cache", given.prepare, given.threads, given.quick)
    elif given.worker:
        pairs = work(given.folder, given.worker, given.threads, given.rounds)
        print(json.dumps(msgspec.to_builtins(pairs)))
    else:
        _benchmark(given)


def _benchmark(given: Any) -> None:
    unfit = fitness()
    pairs: list[Pair] = []
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as scratch:
        common = ["--folder", scratch, "--threads", str(given.threads), "--rounds", str(given.rounds)]
        common += ["--out", str(given.out), *(["--quick"] if given.quick else [])]
        for engine in ENGINES:
            for stage in ("--prepare", "--worker"):
                done = process.run([sys.executable, __file__, stage, engine, *common], limit_seconds=300)
                if done.stopped or done.exit_code:
                    sys.exit(f"{stage} {engine} failed: {done.stopped}\n{done.stderr}")
                say(f"{done.seconds:7.1f} s  {stage[2:]} {engine}")
            pairs += msgspec.json.decode(done.stdout.splitlines()[-1].encode(), type=list[Pair])
    table = Table(
        title=f"The engines against the bare runtime, {given.threads} threads",
        columns=("engine", "model", "bare, median", "edgekiln, median", "added", "share", "n", "goal"),
        rows=tuple(_row(pair) for pair in pairs),
        note=f"Measured in one process per engine, blocks alternated. Goal: at most {GOAL_US:g} µs on the "
        f"tiny network, at most {GOAL_SHARE:.0%} of a call on EfficientNet-Lite0. 'met' and 'missed' hold "
        "for the whole interval; 'not shown' means that the goal lies inside it.",
    )
    publish("overhead", [table], pairs, quick=given.quick, out=given.out, unfit=unfit)


if __name__ == "__main__":
    main()
