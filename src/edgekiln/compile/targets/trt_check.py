"""TensorRT's parser and builder judge an artifact here, without a GPU: the tensorrt-rtx wheel.

    python -m edgekiln.compile.targets.trt_check FOLDER SM86

runs the artifact's own ``build_engine`` code against TensorRT-RTX, ahead of time for a compute
capability, and prints one line of JSON. ``check`` runs that in a process of its own, because native code
may crash or hang, and the build goes on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.engines.build_engine import MODEL, BuildFailed, build, create_network
from edgekiln.errors import ConversionFailed
from edgekiln.records import Check, Placement, Record

NAME = "tensorrt-rtx-build"
PROVIDER = "TensorRT (GPU)"
TIME_LIMIT_S = 300.0


class Verdict(Record, frozen=True, kw_only=True):
    """What TensorRT-RTX said. ``ok`` is None where it could not be asked; ``errors`` are its messages.

    ``taken`` of ``operators`` nodes of the graph lie in the ``partitions`` that its parser supports.
    """

    ok: bool | None
    version: str = ""
    seconds: float = 0.0
    engine_bytes: int = 0
    operators: int = 0
    taken: int = 0
    partitions: int = 0
    fallback: dict[str, int] = msgspec.field(default_factory=dict)
    errors: tuple[dict[str, str], ...] = ()


def judge(folder: Path, capability: str) -> Verdict:
    """Parse and build in this process. ``capability`` is a name of TensorRT-RTX, as "SM86"."""
    try:
        import tensorrt_rtx as trt
    except (ImportError, OSError) as error:
        return Verdict(ok=None, errors=({"message": f"tensorrt-rtx can't be loaded: {error}"},))
    if not hasattr(trt.ComputeCapability, capability):
        message = f"TensorRT-RTX {trt.__version__} does not build for {capability}"
        return Verdict(ok=None, version=trt.__version__, errors=({"message": message},))
    start = time.perf_counter()
    try:
        engine, _ = build(trt, folder, capability=capability)
    except BuildFailed as error:
        return Verdict(ok=False, version=trt.__version__, errors=error.errors)
    seconds = time.perf_counter() - start
    return Verdict(
        ok=True, version=trt.__version__, seconds=seconds, engine_bytes=engine.nbytes, **_placed(trt, folder)
    )


def _placed(trt: Any, folder: Path) -> dict[str, Any]:
    """What TensorRT's parser takes of the graph, by its own answer (``supports_model_v2``).

    It lists the nodes that it takes in groups; what it refuses is in none of them.
    """
    import onnx

    data = (folder / MODEL).read_bytes()
    nodes = [n.op_type for n in onnx.load_model_from_string(data).graph.node]
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    parser.supports_model_v2(data)
    groups = [parser.get_subgraph_nodes(i) for i in range(parser.num_subgraphs)]
    taken = {int(node) for group in groups for node in group}
    left = Counter(op for number, op in enumerate(nodes) if number not in taken)
    return {
        "operators": len(nodes),
        "taken": len(taken),
        "partitions": len(groups),
        "fallback": dict(sorted(left.items())),
    }


def check(
    folder: Path, capability: str, remark: str, time_limit_s: float = TIME_LIMIT_S
) -> tuple[Check, Placement]:
    """Judge ``folder`` (model.onnx, plan.json) in a fresh process and say what was found.

    The placement is ``emulated``: TensorRT-RTX's parser stands in for that of TensorRT on the device.

    Raises ConversionFailed with TensorRT's own message, the op and the node, when it rejects the graph or
    dies of it. Where the wheel is missing or the time runs out, the check has not passed nor failed.
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder.resolve()), capability]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=time_limit_s, check=False)
    except subprocess.TimeoutExpired:
        return _unasked(f"not finished after {time_limit_s:.0f} s, given up")
    lines = run.stdout.strip().splitlines()
    if run.returncode != 0 or not lines:
        last = " | ".join(run.stderr.strip().splitlines()[-3:]) or "no message"
        why = f"the TensorRT-RTX process ended with status {run.returncode}: {last}"
        raise ConversionFailed("building a TensorRT engine from", MODEL, why, "Choose another recipe")
    verdict = msgspec.json.decode(lines[-1], type=Verdict)
    if verdict.ok is None:
        return _unasked(verdict.errors[0]["message"])
    if not verdict.ok:
        said = "; ".join(_sentence(e) for e in verdict.errors[:3])
        why = f"TensorRT-RTX {verdict.version} rejects it: {said}"
        cure = "Choose another recipe, or change the model at that node"
        raise ConversionFailed("building a TensorRT engine from", MODEL, why, cure)
    detail = f"parsed and built ahead of time for {capability} with TensorRT-RTX {verdict.version}; {remark}"
    return Check(name=NAME, passed=True, detail=detail), _placement(verdict)


def _placement(verdict: Verdict) -> Placement:
    rule = "TensorRT takes the whole graph or refuses it; a deep learning accelerator (DLA) was not asked"
    return Placement(
        provider=PROVIDER,
        how="emulated",
        operators=verdict.operators,
        taken=verdict.taken,
        partitions=verdict.partitions,
        fallback=verdict.fallback,
        detail=f"the parser of TensorRT-RTX {verdict.version}; {rule}",
    )


def _unasked(why: str) -> tuple[Check, Placement]:
    return Check(name=NAME, passed=None, detail=why), Placement(
        provider=PROVIDER, how="emulated", detail=f"TensorRT's parser was not asked: {why}"
    )


def _sentence(error: dict[str, str]) -> str:
    """Op, node and message on one line; the parser repeats the node in its first line."""
    where = " ".join(filter(None, (error.get("op"), f"'{error['node']}'" if error.get("node") else "")))
    message = " ".join(error.get("message", "").split())
    return f"{where}: {message}" if where else message


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(judge(Path(sys.argv[1]), sys.argv[2])).decode() + "\n")
