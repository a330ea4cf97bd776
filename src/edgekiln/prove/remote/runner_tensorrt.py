"""What is copied to a Jetson besides: TensorRT, by its Python package or, where only that is there, trtexec.

An engine is built on the device from the artifact's graph and plan (``build_engine.py`` lies beside), because
it fits one kind of GPU and one TensorRT. It is kept in the user's cache, named after the board, its GPU, the
version and the hash of graph and plan, so that the next measurement finds it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
TO_GPU, FROM_GPU = 1, 2
TRTEXEC = "/usr/src/tensorrt/bin"
"""Where JetPack puts it, outside of the search path."""


def opened(request: Any, folder: Path, refused: Any) -> Any:
    """The engine of ``folder``, built if the cache has none: a callable, or a ``Program``.

    Raises ``refused`` where there is no TensorRT or GPU, or TensorRT refuses the graph.
    """
    builder: Any = importlib.import_module("build_engine")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    into = Path(base) / "edgekiln" / "engines"
    into.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        program = shutil.which("trtexec", path=os.environ.get("PATH", "") + ":" + TRTEXEC)
        if program is None:
            cure = "On a Jetson: sudo apt-get install tensorrt (JetPack brings it)"
            raise refused(f"TensorRT is not there ({error})", cure) from error
        return Program(program, builder.read_plan(folder), folder, into, refused)
    before = set(into.iterdir())
    try:
        path = builder.prepare(trt, folder, into, f"{board()} {builder.gpu_name()}".strip())
        run = Execution(trt, path)
    except OSError as error:
        raise refused(f"no NVIDIA GPU answers ({error})", "Check the driver, and CUDA's libraries") from error
    except builder.BuildFailed as error:
        raise refused(str(error), "Choose another recipe, or another TensorRT version") from error
    run.notes = {"cached": path in before, "program": "tensorrt"}
    return run


def board() -> str:
    """The device's model as its device tree has it; empty elsewhere."""
    try:
        text = Path("/proc/device-tree/model").read_text(errors="replace")
    except OSError:
        return ""
    return text.strip("\0\n ")[:80]


class Execution:
    """One context and one stream; buffers on the GPU are used again. A call copies inputs and outputs."""

    def __init__(self, trt: Any, path: Path) -> None:
        self.notes: Any = {}
        self._cuda = _runtime()
        self._alive = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._alive.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            path.unlink()
            raise OSError("TensorRT can't read the engine it built; it was removed, measure again")
        self._context = self._engine.create_execution_context()
        self._stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self._stream))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._dtypes = {n: trt.nptype(self._engine.get_tensor_dtype(n)) for n in names}
        self._outputs = [n for n in names if n not in inputs]
        self._buffers: dict[str, tuple[int, int]] = {}

    def __call__(self, inputs: Any) -> Any:
        import numpy as np

        fed = {n: np.ascontiguousarray(array, self._dtypes[n]) for n, array in inputs.items()}
        for name, array in fed.items():
            if not self._context.set_input_shape(name, array.shape):
                raise ValueError(f"the engine does not take the shape {array.shape} for {name}")
            self._copy(self._place(name, array.nbytes), array.ctypes.data, array.nbytes, TO_GPU)
        shapes = {n: tuple(self._context.get_tensor_shape(n)) for n in self._outputs}
        found = {n: np.empty(shape, self._dtypes[n]) for n, shape in shapes.items()}
        for name, array in found.items():
            self._place(name, array.nbytes)
        if not self._context.execute_async_v3(self._stream.value):
            raise RuntimeError("TensorRT could not run the engine")
        for name, array in found.items():
            self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, FROM_GPU)
        self._call("cudaStreamSynchronize", self._stream)
        return found

    def _place(self, name: str, size: int) -> int:
        """The address of this tensor's buffer on the GPU, made larger where it must be."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if room:
                self._call("cudaFree", ctypes.c_void_p(address))
            made = ctypes.c_void_p()
            self._call("cudaMalloc", ctypes.byref(made), ctypes.c_size_t(size))
            address = int(made.value or 0)
            self._buffers[name] = address, size
        self._context.set_tensor_address(name, address)
        return address

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), kind, self._stream)

    def _call(self, name: str, *arguments: Any) -> None:
        failed = getattr(self._cuda, name)(*arguments)
        if failed:
            raise RuntimeError(f"{name} gives CUDA error {failed}")


def _runtime() -> Any:
    """The CUDA runtime by ctypes: JetPack brings it, and no Python package for it."""
    for name in RUNTIMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no libcudart.so was found: add CUDA's lib64 folder to LD_LIBRARY_PATH")


# ---------------------------------------------------------------- trtexec


class Program:
    """``trtexec``: it builds, and times in a process of its own, with random inputs of its own.

    A latency of its is the time on the GPU with both copies, without what the host takes around it.
    """

    first_ms = None

    def __init__(self, program: str, plan: Any, folder: Path, into: Path, refused: Any) -> None:
        self._program, self._refused = program, refused
        said = self._said(["--help"])
        version = re.search(r"\[TensorRT v(\d+)\]", said)
        self.version = _dotted(int(version.group(1))) if version else "unknown"
        graph, order = (folder / "model.onnx").read_bytes(), (folder / "plan.json").read_bytes()
        slug = re.sub(r"[^A-Za-z0-9]+", "-", board() or "gpu").strip("-").lower()
        name = f"{slug}-trtexec{self.version}-{sha256(order + graph).hexdigest()[:16]}.engine"
        self._engine, self._shapes = into / name, _shapes(plan)
        cached = self._engine.exists()
        if not cached:
            part = self._engine.with_suffix(f".part{os.getpid()}")
            try:
                self._said([f"--onnx={folder / 'model.onnx'}", f"--saveEngine={part}", *_options(plan)], part)
                part.replace(self._engine)
            finally:
                if part.exists():
                    part.unlink()
        self.notes = {"cached": cached, "program": "trtexec", "version": self.version}

    def measure(self, request: Any, tell: Any) -> None:
        """Warm up and time, in one call of the program; its raw times are one block."""
        times = self._engine.parent / f"times{os.getpid()}.json"
        options = [
            f"--loadEngine={self._engine}",
            f"--iterations={request['samples']}",
            f"--duration={int(request['least_seconds'] + 0.999)}",
            f"--warmUp={int(request['warmup_seconds'] * 1e3)}",
            f"--exportTimes={times}",
            *self._shapes,
        ]
        begun = time.monotonic() + request["warmup_seconds"]
        try:
            said = self._said(options, times)
            samples = [float(row["latencyMs"]) for row in json.loads(times.read_text())]
        except (ValueError, KeyError, TypeError) as error:
            why = f"trtexec wrote times that are not as expected ({error}): {said[:300]}"
            raise self._refused(why, "Use the Python package tensorrt there") from error
        finally:
            if times.exists():
                times.unlink()
        ended = time.monotonic()
        tell("block", begun=min(begun, ended), ended=ended, ms=samples)

    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024

    def _said(self, options: list[str], wanted: Path | None = None) -> str:
        """What the program prints. Raises ``refused`` with its errors where it fails or makes no file."""
        done = subprocess.run(
            [self._program, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        said = done.stdout.decode("utf-8", "replace")
        print(said[-2000:], flush=True)
        if wanted is not None and (done.returncode != 0 or not wanted.exists()):
            errors = [line.strip() for line in said.splitlines() if "[E]" in line]
            why = "; ".join(errors[-3:]) or f"trtexec ended with exit code {done.returncode}"
            raise self._refused(why, "Choose another recipe, or another TensorRT version")
        return said


def _dotted(number: int) -> str:
    """``v100300`` is 10.3.0 and ``v8601`` 8.6.1."""
    major = 10000 if number >= 100000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _options(plan: Any) -> list[str]:
    """The plan as options. They are made here and not taken from it: it came with a stranger's bundle."""
    made = [
        "--stronglyTyped",
        "--skipInference",
        f"--builderOptimizationLevel={int(plan['builder_optimization_level'])}",
    ]
    made += [] if plan["tf32"] else ["--noTF32"]
    if plan["workspace_bytes"] is not None:
        made.append(f"--memPoolSize=workspace:{int(plan['workspace_bytes']) >> 20}")
    for number, profile in enumerate(plan["profiles"]):
        made += [f"--profile={number}"] if len(plan["profiles"]) > 1 else []
        made += [f"--{end}Shapes={_listed(profile, end)}" for end in ("min", "opt", "max")]
    return made


def _shapes(plan: Any) -> list[str]:
    return [f"--shapes={_listed(plan['profiles'][0], 'opt')}"] if plan["profiles"] else []


def _listed(profile: Any, end: str) -> str:
    parts = []
    for name, shape in profile.items():
        quoted = f"'{name}'" if ":" in name else name
        parts.append(f"{quoted}:{'x'.join(str(int(n)) for n in shape[end])}")
    return ",".join(parts)
