"""What a session adds to the engine beneath it: time for each call, resident memory, and time to import.

Calls: ``edgekiln.runtime.session`` on a bundle against the bare runtime on the same file with the same
options, in one process per engine, in alternated blocks. Three ways of calling it:
- new arrays: another input array each call, as a program without buffers of its own does;
- one array: the same input array each call; the bare runtime is called as its documentation shows first;
- in place: the bare runtime at its best (ONNX Runtime with an IO binding made once, OpenVINO with its tensors
  set once and outputs shared) against the session's own buffer with ``copy=False``.
On a network of one node, where the call itself is nearly all, on a tiny convolutional one, and on
EfficientNet-Lite0 in fp32 and INT8. The figure is the difference of the medians with a 95 % interval from
resampling whole rounds; an interval that holds 0 says that this run can't tell.

Memory: what a process holds after 50 calls, with the bundle in a session or with the bare runtime alone,
fresh processes in turns. Import: ``import edgekiln.runtime.session`` in a fresh interpreter, beside NumPy's.

Goal: at most 30 microseconds a call and at most 1 % of a call of EfficientNet-Lite0; import within 0.3 s.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.prove.environment import fitness
from edgekiln.records import Artifact, Choice, Model, Proof, Record
from measuring import process
from measuring.process import say
from measuring.table import Table, arguments, megabytes, publish, spread
from overhead import (
    ENGINES,
    INT8,
    Call,
    Pair,
    alternate,
    difference,
    onnxruntime_session,
    openvino_request,
)

GOAL_US = 30.0
GOAL_SHARE = 0.01
GOAL_IMPORT_S = 0.3
MODES = ("new arrays", "one array", "in place")
CALLS = 50
ARRAYS = 8
PROGRAM = str(Path(__file__).with_name("overhead.py"))


class Place(Record, frozen=True, kw_only=True):
    """An artifact on disk, the bundle that holds it, and the name of its network and recipe."""

    network: str
    recipe: str
    folder: str
    artifact: Artifact
    bundle: str


class Memory(Record, frozen=True, kw_only=True):
    """Resident bytes after CALLS calls, run by run: in a session, and with the bare runtime alone."""

    engine: str
    network: str
    session_bytes: tuple[int, ...]
    bare_bytes: tuple[int, ...]


class Found(Record, frozen=True, kw_only=True):
    pairs: tuple[Pair, ...]
    memory: tuple[Memory, ...]
    import_s: dict[str, tuple[float, ...]]


# ---------------------------------------------------------------- the workers


def prepare(folder: Path, cache: Path, engine: str, threads: int, quick: bool) -> None:
    """Make the artifacts and bundles of ``engine`` and write where they lie, with two inputs each."""
    from edgekiln.compile.make import make
    from edgekiln.devices import load
    from edgekiln.files import write_bytes, write_json
    from edgekiln.prove.arrays import npz_bytes
    from measuring.scene import Network, scene

    wanted: list[tuple[Network, str]] = [("one-node", "fp32"), ("tiny", "fp32")]
    if not quick:
        wanted += [("efficientnet-lite0", "fp32"), ("efficientnet-lite0", INT8[engine])]
    places: list[Place] = []
    for network, recipe in wanted:
        made = scene(network, cache, threads)
        where, artifact = make(made.shop, load("host"), engine, recipe)
        name = f"{engine}-{len(places)}"
        write_bytes(folder / f"{name}.npz", npz_bytes(next(made.holdout())))
        _pack(folder / f"{name}.edgekiln", made.intake.model, artifact, where)
        places.append(
            Place(
                network=network,
                recipe=recipe,
                folder=str(where.resolve()),
                artifact=artifact,
                bundle=str(folder / f"{name}.edgekiln"),
            )
        )
    write_json(folder / f"{engine}.json", places)


def _pack(path: Path, model: Model, artifact: Artifact, folder: Path) -> None:
    from edgekiln import __version__
    from edgekiln.bundle.pack import pack

    pack(
        path,
        version=__version__,
        model=model,
        proof=Proof(device="host", artifact=artifact, evidence=()),
        choice=Choice(device="host", status="unproven", artifact_id=artifact.id, basis="a benchmark's"),
        artifact_folder=folder,
        golden=None,
        golden_folder=None,
        provenance={},
    )


def work(folder: Path, engine: str, threads: int, rounds: int) -> list[Pair]:
    """Time every place of ``engine`` in this process."""
    from edgekiln.runtime.session import open_session

    pairs = []
    for number, place in enumerate(places_of(folder, engine)):
        path = Path(place.folder) / place.artifact.entry
        feeds = _feeds(folder / f"{engine}-{number}.npz")
        with open_session(Path(place.bundle), threads) as session:
            buffer = session.input_buffer()
            for name, array in feeds[0].items():
                buffer[name][:] = array
            plain = PLAIN[engine](path, place.artifact, threads)
            at_best = IN_PLACE[engine](path, place.artifact, threads, feeds[0])
            contenders: dict[str, tuple[Call, Call]] = {
                "new arrays": (_in_turn(session, feeds), _in_turn(plain, feeds)),
                "one array": (partial(session, feeds[0]), partial(plain, feeds[0])),
                "in place": (partial(session, buffer, copy=False), at_best),
            }
            for mode, (ours, bare) in contenders.items():
                ours_us, bare_us = alternate(ours, bare, rounds)
                pairs.append(
                    Pair(
                        network=place.network,
                        recipe=f"{place.recipe}, {mode}",
                        engine=engine,
                        ours_us=ours_us,
                        bare_us=bare_us,
                    )
                )
    return pairs


def places_of(folder: Path, engine: str) -> list[Place]:
    """What ``prepare`` wrote."""
    return msgspec.json.decode((folder / f"{engine}.json").read_bytes(), type=list[Place])


def _feeds(path: Path) -> list[dict[str, NDArray[Any]]]:
    """ARRAYS copies of one input, each at an address of its own."""
    with np.load(path) as held:
        first = dict(held)
    return [{name: array.copy() for name, array in first.items()} for _ in range(ARRAYS)]


def _in_turn(call: Callable[[dict[str, NDArray[Any]]], Any], feeds: list[dict[str, NDArray[Any]]]) -> Call:
    each = itertools.cycle(feeds)
    return lambda: call(next(each))


def _in_place_onnxruntime(path: Path, artifact: Artifact, threads: int, feed: Mapping[str, Any]) -> Call:
    import onnxruntime as ort

    session = onnxruntime_session(path, artifact, threads)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        value = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        binding.bind_ortvalue_output(output.name, value)
    return lambda: session.run_with_iobinding(binding)


def _in_place_openvino(path: Path, artifact: Artifact, threads: int, feed: Mapping[str, Any]) -> Call:
    import openvino

    request = openvino_request(path, artifact, threads)
    for name, array in feed.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return lambda: request.infer(share_outputs=True)


def _plain_onnxruntime(path: Path, artifact: Artifact, threads: int) -> Callable[[Any], Any]:
    session = onnxruntime_session(path, artifact, threads)
    return lambda feed: session.run(None, feed)


def _plain_openvino(path: Path, artifact: Artifact, threads: int) -> Callable[[Any], Any]:
    infer: Callable[[Any], Any] = openvino_request(path, artifact, threads).infer
    return infer


PLAIN: dict[str, Callable[[Path, Artifact, int], Callable[[Any], Any]]] = {
    "onnxruntime": _plain_onnxruntime,
    "openvino": _plain_openvino,
}
IN_PLACE: dict[str, Callable[[Path, Artifact, int, Mapping[str, Any]], Call]] = {
    "onnxruntime": _in_place_onnxruntime,
    "openvino": _in_place_openvino,
}


BARE_MEMORY = {
    "onnxruntime": """
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
call = lambda feed: session.run(None, feed)
""",
    "openvino": """
import openvino
config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
call = openvino.Core().compile_model(path, "CPU", config).create_infer_request().infer
""",
}
"""A process without edgekiln, with the options that its artifacts have by default."""
SESSION_MEMORY = """
from pathlib import Path
from edgekiln.runtime.session import open_session
call = open_session(Path(path), threads)
"""
MEMORY = """
import sys
import numpy as np
path, threads, feed = sys.argv[1], int(sys.argv[2]), dict(np.load(sys.argv[3]))
{opens}
for _ in range({calls}):
    call(feed)
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")][0])
"""
IMPORT = "import time; a = time.perf_counter(); import {module}; print(time.perf_counter() - a)"
IMPORTS = ("numpy", "edgekiln.runtime.session")


def printed(code: str, *given: str) -> float:
    """The number that a fresh interpreter prints. Exits with what it said where it fails."""
    done = process.run([sys.executable, "-c", code, *given], limit_seconds=120)
    if done.exit_code:
        sys.exit(f"a process of the benchmark failed\n{done.stderr}")
    return float(done.stdout.split()[-1])


def memory(folder: Path, engine: str, threads: int, runs: int) -> list[Memory]:
    """Resident memory of fresh processes in turns, on each network."""
    found = []
    for number, place in enumerate(places_of(folder, engine)):
        if place.network == "tiny":
            continue  # its engine is the library alone, as with one node
        common = [str(threads), str(folder / f"{engine}-{number}.npz")]
        entry = str(Path(place.folder) / place.artifact.entry)
        session, bare = [], []
        for _ in range(runs):
            code = MEMORY.format(opens=BARE_MEMORY[engine], calls=CALLS)
            bare.append(round(printed(code, entry, *common) * 1024))
            code = MEMORY.format(opens=SESSION_MEMORY, calls=CALLS)
            session.append(round(printed(code, place.bundle, *common) * 1024))
        name = f"{place.network} {place.recipe}"
        one = Memory(engine=engine, network=name, session_bytes=tuple(session), bare_bytes=tuple(bare))
        found.append(one)
    return found


def imports(runs: int) -> dict[str, tuple[float, ...]]:
    """Seconds to import each module in a fresh interpreter, in turns, after one round that fills the disk's
    cache."""
    rounds = [{name: printed(IMPORT.format(module=name)) for name in IMPORTS} for _ in range(runs + 1)]
    return {name: tuple(one[name] for one in rounds[1:]) for name in IMPORTS}


# ---------------------------------------------------------------- the answer


def _row(pair: Pair) -> tuple[str, ...]:
    value, low, high = difference(pair)
    bare, ours = (np.concatenate([np.asarray(b) for b in side]) for side in (pair.bare_us, pair.ours_us))
    middle = float(np.median(bare))
    large = pair.network == "efficientnet-lite0"
    goal = min(GOAL_US, GOAL_SHARE * middle) if large else GOAL_US
    verdict = "met" if high <= goal else "not shown" if low <= goal else "missed"
    return (
        pair.engine,
        f"{pair.network} {pair.recipe}",
        spread(bare.tolist(), "µs", 1),
        spread(ours.tolist(), "µs", 1),
        f"{value:+.1f} µs ({low:+.1f} to {high:+.1f})",
        f"{value / middle:+.2%}",
        f"{len(pair.ours_us)} rounds of {len(pair.ours_us[0])}",
        verdict,
    )


def tables(found: Found, threads: int) -> list[Table]:
    """Calls, memory and imports."""
    calls = Table(
        title=f"A session against the bare runtime, {threads} threads",
        columns=("engine", "model, call", "bare, median", "session, median", "added", "share", "n", "goal"),
        rows=tuple(_row(pair) for pair in found.pairs),
        note="Measured in one process per engine, blocks alternated. New arrays and one array: the bare "
        "runtime copies its outputs, as the session does; in place: neither copies anything. Goal: at most "
        f"{GOAL_US:g} µs, on EfficientNet-Lite0 at most {GOAL_SHARE:.0%} of a call too. 'met' and 'missed' "
        "hold for the whole interval; 'not shown' means that the goal lies inside it.",
    )
    held = Table(
        title=f"Resident memory after {CALLS} calls",
        columns=("engine", "model", "bare runtime", "session", "difference of the medians"),
        rows=tuple(
            (
                one.engine,
                one.network,
                megabytes(one.bare_bytes),
                megabytes(one.session_bytes),
                f"{(np.median(one.session_bytes) - np.median(one.bare_bytes)) / 1e6:+.1f} MB",
            )
            for one in found.memory
        ),
        note="VmRSS of fresh processes in turns; the bare one imports numpy and the runtime alone.",
    )
    imported = Table(
        title="Import in a fresh interpreter",
        columns=("module", "wall time", "n", "goal"),
        rows=tuple(
            (
                name,
                spread([1000 * s for s in seconds], "ms", 0),
                str(len(seconds)),
                ("met" if np.median(seconds) <= GOAL_IMPORT_S else "missed") if name != "numpy" else "—",
            )
            for name, seconds in found.import_s.items()
        ),
        note=f"Goal: at most {GOAL_IMPORT_S:g} s, NumPy included.",
    )
    return [calls, held, imported]


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100, help="blocks of each contender (default 100)")
    parser.add_argument("--runs", type=int, default=7, help="processes for memory and imports (default 7)")
    worker = parser.add_argument_group("what the benchmark starts itself with")
    worker.add_argument("--prepare", choices=ENGINES)
    worker.add_argument("--worker", choices=ENGINES)
    worker.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.runs = min(given.rounds, 5), 1
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
    held: list[Memory] = []
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as scratch:
        common = ["--folder", scratch, "--threads", str(given.threads), "--rounds", str(given.rounds)]
        common += ["--out", str(given.out), *(["--quick"] if given.quick else [])]
        for engine in ENGINES:
            for stage in ("--prepare", "--worker"):
                done = process.run([sys.executable, PROGRAM, stage, engine, *common], limit_seconds=600)
                if done.stopped or done.exit_code:
                    sys.exit(f"{stage} {engine} failed: {done.stopped}\n{done.stderr}")
                say(f"{done.seconds:7.1f} s  {stage[2:]} {engine}")
            pairs += msgspec.json.decode(done.stdout.splitlines()[-1].encode(), type=list[Pair])
            held += memory(Path(scratch), engine, given.threads, given.runs)
            say(f"          memory {engine}")
    found = Found(pairs=tuple(pairs), memory=tuple(held), import_s=imports(given.runs))
    publish(
        "runtime-overhead",
        tables(found, given.threads),
        found,
        quick=given.quick,
        out=given.out,
        unfit=unfit,
    )
