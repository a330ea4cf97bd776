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
from pathlib import Path

import msgspec

from edgekiln.engines.build_engine import MODEL, BuildFailed, build
from edgekiln.errors import ConversionFailed
from edgekiln.records import Check, Record

NAME = "tensorrt-rtx-build"
TIME_LIMIT_S = 300.0


class Verdict(Record, frozen=True, kw_only=True):
    """What TensorRT-RTX said. ``ok`` is None where it could not be asked; ``errors`` are its messages."""

    ok: bool | None
    version: str = ""
    seconds: float = 0.0
    engine_bytes: int = 0
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
    return Verdict(ok=True, version=trt.__version__, seconds=seconds, engine_bytes=engine.nbytes)


def check(folder: Path, capability: str, remark: str, time_limit_s: float = TIME_LIMIT_S) -> Check:
    """Judge ``folder`` (model.onnx, plan.json) in a fresh process and say what was found.

    Raises ConversionFailed with TensorRT's own message, the op and the node, when it rejects the graph or
    dies of it. Where the wheel is missing or the time runs out, the check has not passed nor failed.
    """
    command = [sys.executable, "-P", "-m", __name__, str(folder.resolve()), capability]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=time_limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Check(name=NAME, passed=None, detail=f"not finished after {time_limit_s:.0f} s, given up")
    lines = run.stdout.strip().splitlines()
    if run.returncode != 0 or not lines:
        last = " | ".join(run.stderr.strip().splitlines()[-3:]) or "no message"
        why = f"the TensorRT-RTX process ended with status {run.returncode}: {last}"
        raise ConversionFailed("building a TensorRT engine from", MODEL, why, "Choose another recipe")
    verdict = msgspec.json.decode(lines[-1], type=Verdict)
    if verdict.ok is None:
        return Check(name=NAME, passed=None, detail=verdict.errors[0]["message"])
    if not verdict.ok:
        said = "; ".join(_sentence(e) for e in verdict.errors[:3])
        why = f"TensorRT-RTX {verdict.version} rejects it: {said}"
        cure = "Choose another recipe, or change the model at that node"
        raise ConversionFailed("building a TensorRT engine from", MODEL, why, cure)
    detail = f"parsed and built ahead of time for {capability} with TensorRT-RTX {verdict.version}; {remark}"
    return Check(name=NAME, passed=True, detail=detail)


def _sentence(error: dict[str, str]) -> str:
    """Op, node and message on one line; the parser repeats the node in its first line."""
    where = " ".join(filter(None, (error.get("op"), f"'{error['node']}'" if error.get("node") else "")))
    message = " ".join(error.get("message", "").split())
    return f"{where}: {message}" if where else message


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(judge(Path(sys.argv[1]), sys.argv[2])).decode() + "\n")
