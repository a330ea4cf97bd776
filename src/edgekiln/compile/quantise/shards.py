"""Observing in several processes: each takes every N-th sample, and their observations merge exactly.

The samples are a stream that only this process can make, so it makes them and writes them down the workers'
pipes, which hold back whoever is ahead. Extremes and histograms are those of one pass, bit for bit; sums per
channel are equal up to rounding. Each process holds the model and its activations for itself.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.histogram import Observation
from edgekiln.compile.quantise.observation_file import load, save
from edgekiln.compile.quantise.watch import observe
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed, MachineFault
from edgekiln.prove.arrays import npz_bytes
from edgekiln.prove.timing import worker_environment

_COMMAND = (sys.executable, "-m", "edgekiln.compile.quantise.shards")
_LENGTH = struct.Struct("<Q")
_REFUSED = 3


def observe_in_processes(
    graph: Path, samples: Iterable[Arrays], threads: int, processes: int
) -> dict[str, Observation]:
    """What ``watch.observe`` gives, from ``processes`` processes with their share of ``threads`` each.

    Raises as ``observe`` does, and MachineFault where a process died.
    """
    if processes < 2:
        return observe(graph, samples, threads)
    stream = iter(samples)
    firsts = list(itertools.islice(stream, processes))
    if len(firsts) < processes:
        return observe(graph, firsts, threads)
    share = max(1, threads // processes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for k in range(processes):
                order = [str(graph.resolve()), str(folder), str(k), str(processes), str(share)]
                environment = worker_environment(share)
                workers.append(_started([*_COMMAND, *order], environment))
            _feed(workers, itertools.chain(firsts, stream))
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                with contextlib.suppress(BrokenPipeError):
                    _pipe(worker).close()
        _raise_refusal(folder, graph.name, codes)
        return _merged([load(folder / f"{k}.npz") for k in range(processes)])


def _started(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C comes to this process, which ends the others.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def _pipe(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    assert worker.stdin is not None  # each was started with one
    return worker.stdin


def _feed(workers: Sequence[subprocess.Popen[bytes]], samples: Iterable[Arrays]) -> None:
    """Write each sample to the next worker; one that stopped reading will say why."""
    try:
        for sample, worker in zip(samples, itertools.cycle(workers), strict=False):
            data = npz_bytes(sample)
            _pipe(worker).write(_LENGTH.pack(len(data)))
            _pipe(worker).write(data)
            _pipe(worker).flush()
        for worker in workers:
            _pipe(worker).close()
    except BrokenPipeError:
        # The one that stopped has refused its sample and says so before it ends; the others' work is lost.
        while all(worker.poll() is None for worker in workers):
            time.sleep(0.01)
        for worker in workers:
            worker.kill()


def _raise_refusal(folder: Path, graph: str, codes: Sequence[int]) -> None:
    """The first refusal in the order of the samples, else the death of a process."""
    told = [msgspec.json.decode(p.read_bytes(), type=tuple[int, str, str]) for p in folder.glob("*.json")]
    if told:
        _, why, cure = min(told)
        raise ConversionFailed("calibrating", graph, why, cure)
    if any(codes):
        why = f"a process of {len(codes)} ended with code {next(c for c in codes if c)}"
        raise MachineFault("calibrating", graph, why, "Give calibrate_processes = 1, or free some memory")


def _merged(parts: Sequence[dict[str, Observation]]) -> dict[str, Observation]:
    seen = dict(parts[0])
    for part in parts[1:]:
        for name, one in part.items():
            seen[name] = seen[name].merge(one) if name in seen else one
    return seen


# ---------------------------------------------------------------- the worker


def _received(source: IO[bytes]) -> Iterator[dict[str, NDArray[Any]]]:
    while head := source.read(_LENGTH.size):
        data = source.read(_LENGTH.unpack(head)[0])
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            yield {name: held[name] for name in held.files}


def main() -> int:
    """See the module."""
    graph, folder, start, stride, threads = sys.argv[1:]
    try:
        stream = _received(sys.stdin.buffer)
        seen = observe(Path(graph), stream, int(threads), start=int(start), stride=int(stride))
    except ConversionFailed as error:
        said = msgspec.json.encode((int(start), error.why, error.cure))
        (Path(folder) / f"{start}.json").write_bytes(said)
        return _REFUSED
    save(seen, Path(folder) / f"{start}.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
