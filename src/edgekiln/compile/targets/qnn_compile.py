"""Hexagon's own compiler and simulator judge a graph here, in a process of their own.

    python -m edgekiln.compile.targets.qnn_compile FOLDER ANSWER.json < order.json

A process of its own for two reasons: it is native code that may crash or hang, and what it compiles holds
counters of the process, so that only a fresh one gives the same bytes for the same graph.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.engines import qnn as engine
from edgekiln.errors import ConversionFailed
from edgekiln.records import Record

TIME_LIMIT_S = 600.0
MODEL, CONTEXT = "model.onnx", "model_ctx.onnx"
_COMPATIBILITY = f"ep_compatibility_info.{engine.PROVIDER}"


class Order(Record, frozen=True, kw_only=True):
    """``provider`` are the QNN provider's options. ``compile`` asks for a context binary."""

    provider: dict[str, str]
    compile: bool


class Verdict(Record, frozen=True, kw_only=True):
    """Where the nodes of the graph went, as ONNX Runtime's own partitioner reports it.

    ``compiled_for`` is what the provider wrote into the context about its target; ``same_outputs``: the
    context and the graph gave the same bits on one probe, in the simulator.
    """

    taken: int
    partitions: int
    quantisers: int
    fallback: dict[str, int]
    compiled_for: str = ""
    same_outputs: bool | None = None


def examine(folder: Path, order: Order) -> Verdict:
    """Partition ``folder/model.onnx`` in this process, the CPU allowed for what the provider refuses.

    With ``order.compile`` model_ctx.onnx and its binary are written beside it. Raises what ONNX Runtime
    raises.
    """
    graph = (folder / MODEL).read_bytes()
    config = {"session.record_ep_graph_assignment_info": "1"}
    if order.compile:
        config |= {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": str(folder / CONTEXT),
        }
    session = engine.start(graph, order.provider, 1, fallback=True, config=config)
    taken, fallback, partitions = Counter[str](), Counter[str](), 0
    for part in session.get_provider_graph_assignment_info():
        ours = part.ep_name == engine.PROVIDER
        partitions += ours
        (taken if ours else fallback).update(n.op_type for n in part.get_nodes())
    del session
    compiled_for, same = "", None
    if (folder / CONTEXT).exists():
        compiled_for = _compatibility(folder / CONTEXT)
        same = _same_outputs(graph, folder / CONTEXT, order.provider)
    return Verdict(
        taken=taken.total(),
        partitions=partitions,
        quantisers=taken["QuantizeLinear"] + taken["DequantizeLinear"],
        fallback=dict(sorted(fallback.items())),
        compiled_for=compiled_for,
        same_outputs=same,
    )


def ask(folder: Path, order: Order, time_limit_s: float = TIME_LIMIT_S) -> Verdict:
    """``examine`` in a fresh process, whose own files and words go into a folder that is deleted.

    Raises ConversionFailed with its last words where it refuses, crashes or takes too long.
    """
    doing = "compiling for Hexagon"
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, "-P", "-m", __name__, str(folder.resolve()), str(answer)]
        try:
            run = subprocess.run(
                command,
                input=msgspec.json.encode(order),
                capture_output=True,
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            why, cure = f"not finished after {time_limit_s:.0f} s, given up", "Use a smaller model"
            raise ConversionFailed(doing, MODEL, why, cure) from error
        if run.returncode != 0 or not answer.exists():
            last = run.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            why = f"the QNN process ended with status {run.returncode}: {last[0][-400:]}"
            raise ConversionFailed(doing, MODEL, why, "Choose another recipe or target")
        return msgspec.json.decode(answer.read_bytes(), type=Verdict)


def _compatibility(context: Path) -> str:
    import onnx

    stated = {p.key: p.value for p in onnx.load(context, load_external_data=False).metadata_props}
    return str(stated.get(_COMPATIBILITY, ""))


def _same_outputs(graph: bytes, context: Path, provider: dict[str, str]) -> bool:
    sessions = [engine.start(m, provider, 1, fallback=True) for m in (graph, str(context))]
    feeds = {i.name: _probe(i) for i in sessions[0].get_inputs()}
    first, second = (s.run(None, feeds) for s in sessions)
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def _probe(given: Any) -> Any:
    """Numbers of one fixed seed for an input, as ONNX Runtime describes it. Shapes are static for QNN."""
    import numpy as np

    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if given.type in kinds:
        return np.random.default_rng(0).standard_normal(given.shape).astype(kinds[given.type])
    integers = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
    return np.zeros(given.shape, integers.get(given.type, np.bool_))


if __name__ == "__main__":
    os.chdir(Path(sys.argv[2]).parent)  # whatever the native code leaves about is deleted with the answer
    made = examine(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=Order))
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(made))
