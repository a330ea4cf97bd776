"""TensorRT 10 or 11 on the device's GPU. Not executed here: no machine of this project had both.

Memory is handled by ``cuda.bindings`` (pip install cuda-python), the smallest that NVIDIA maintains and
what its own TensorRT samples use. The engine is built on first use by ``build_engine`` and kept in the
user's cache folder, never beside the artifact: an engine file is native code, and bundles come from
strangers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, build_engine
from edgekiln.errors import BadInput, MachineFault, NotRunnableHere
from edgekiln.records import Artifact

_DOING = "opening with TensorRT"


def engine_folder() -> Path:
    """Where built engines and the timing cache are kept."""
    import platformdirs

    return platformdirs.user_cache_path("edgekiln") / "engines"


def open(artifact: Artifact, folder: Path, threads: int) -> _Execution:
    """The engine of ``folder`` (model.onnx, plan.json), built if this device has none yet (minutes).

    ``threads`` does not apply to a GPU. Raises NotRunnableHere without tensorrt, cuda-python or a GPU, and
    where TensorRT refuses the graph; MachineFault when CUDA fails.
    """
    return open_concurrent(artifact, folder, threads, 1)[0]


def open_concurrent(artifact: Artifact, folder: Path, threads: int, calls: int) -> tuple[_Execution, ...]:
    """``calls`` execution contexts of one engine, each with a CUDA stream and buffers of its own, so that
    the GPU may run them at the same time. From TensorRT 10 on contexts share the engine's profiles.

    Errors as of ``open``.
    """
    del threads
    trt, cudart, gpu = _machine(artifact.entry)
    with _refusals(artifact.entry):
        path = build_engine.prepare(trt, folder, engine_folder(), gpu)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        cure = f"Delete {path}; it is built anew"
        raise NotRunnableHere(_DOING, artifact.entry, "TensorRT can't read the engine it built", cure)
    opened: list[_Execution] = []
    try:
        for _ in range(calls):
            opened.append(_Execution(trt, cudart, runtime, engine))  # noqa: PERF401 (closed below)
    except BaseException:
        for execution in opened:
            execution.close()
        raise
    return tuple(opened)


def build_command(artifact: Artifact, folder: Path) -> Sequence[str] | None:
    """The command that builds the engine of ``folder`` in a process of its own; None where it lies in the
    user's cache folder already. Raises as ``open`` does where the machine can't run it.
    """
    trt, _, gpu = _machine(artifact.entry)
    with _refusals(artifact.entry):
        path, _ = build_engine.places(trt, folder, engine_folder(), gpu)
    if path.exists():
        return None
    # -P: its folder is not searched, where this file would be taken for NVIDIA's tensorrt.
    script = [sys.executable, "-P", build_engine.__file__]
    return [*script, "--folder", str(folder), "--into", str(engine_folder())]


def _machine(entry: str) -> tuple[Any, Any, str]:
    """TensorRT, CUDA's runtime and the name of the GPU. NotRunnableHere where one is absent."""
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cudart  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        why = f"the Python package {error.name or error} is not installed"
        cure = "On a Jetson, JetPack brings tensorrt; then: pip install cuda-python"
        raise NotRunnableHere(_DOING, entry, why, cure) from error
    try:
        return trt, cudart, build_engine.gpu_name()
    except OSError as error:
        cure = "Run it on a machine with an NVIDIA GPU and its driver"
        raise NotRunnableHere(_DOING, entry, f"no NVIDIA GPU answers ({error})", cure) from error


@contextlib.contextmanager
def _refusals(entry: str) -> Iterator[None]:
    """Turn what TensorRT or the plan's reader says into an error that names the cure."""
    try:
        yield
    except build_engine.BuildFailed as error:
        cure = "Choose another recipe, or another TensorRT version"
        raise NotRunnableHere(_DOING, entry, str(error), cure) from error
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        cure = "Do not use this artifact; build it anew"
        raise BadInput(_DOING, build_engine.PLAN, f"the plan can't be read ({error!r})", cure) from error


def _within(shape: tuple[int, ...], least: Any, _tuned: Any, most: Any) -> bool:
    ranks_agree = len(shape) == len(least) == len(most)
    return ranks_agree and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))


class _Execution:
    """One execution context, one stream, one buffer per tensor that grows and is used again."""

    def __init__(self, trt: Any, cudart: Any, runtime: Any, engine: Any) -> None:
        self._cudart = cudart
        # The runtime must outlive the engine, and the engine its context.
        self._alive = [runtime, engine]
        self._engine = engine
        self._context = engine.create_execution_context()
        self._stream = self._cuda(cudart.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if n not in self._inputs]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        if set(inputs) != set(self._inputs):
            why = f"the inputs are {', '.join(sorted(inputs))}"
            raise BadInput("running with TensorRT", "engine", why, f"Give {', '.join(self._inputs)}")
        host = {n: np.ascontiguousarray(inputs[n], dtype=self._dtypes[n]) for n in self._inputs}
        kinds = self._cudart.cudaMemcpyKind
        self._choose_profile({n: array.shape for n, array in host.items()})
        for name, array in host.items():
            if not self._context.set_input_shape(name, array.shape):
                cure = "Give a shape between the profile's min and max (plan.json)"
                raise BadInput("running with TensorRT", name, f"shape {array.shape} is outside", cure)
            self._copy(
                self._place(name, array.nbytes), array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice
            )
        results = {name: self._result(name) for name in self._outputs}
        for name, array in results.items():
            self._place(name, array.nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise MachineFault(
                "running with TensorRT", "engine", "it reports failure", "See TensorRT's log above"
            )
        for name, array in results.items():
            self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, kinds.cudaMemcpyDeviceToHost)
        self._cuda(self._cudart.cudaStreamSynchronize(self._stream))
        return results

    def close(self) -> None:
        for pointer, _ in self._buffers.values():
            self._cuda(self._cudart.cudaFree(pointer))
        self._buffers.clear()
        if self._stream is not None:
            self._cuda(self._cudart.cudaStreamDestroy(self._stream))
        self._stream = self._context = self._engine = None
        self._alive.clear()

    def _choose_profile(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Of an engine's several profiles make one active that these shapes fit, tuned for them if possible.

        Raises BadInput where they fit none. Switching forgets all input shapes, which every call sets anew.
        """
        count = self._engine.num_optimization_profiles
        if count < 2:
            return
        ranges = [{n: self._engine.get_tensor_profile_shape(n, i) for n in shapes} for i in range(count)]
        fits = [i for i in range(count) if all(_within(shapes[n], *ranges[i][n]) for n in shapes)]
        if not fits:
            optima = "; ".join(", ".join(f"{n} {tuple(r[1])}" for n, r in one.items()) for one in ranges)
            given = ", ".join(f"{n} {shape}" for n, shape in shapes.items())
            cure = f"Give shapes that one profile takes: {optima}"
            raise BadInput("running with TensorRT", "engine", f"no profile takes {given}", cure)
        tuned = (i for i in fits if all(tuple(ranges[i][n][1]) == shapes[n] for n in shapes))
        best = next(tuned, fits[0])
        if best == self._context.active_optimization_profile:
            return
        if not self._context.set_optimization_profile_async(best, self._stream):
            why = f"it refuses profile {best}"
            raise MachineFault("running with TensorRT", "engine", why, "See TensorRT's log above")
        self._cuda(self._cudart.cudaStreamSynchronize(self._stream))

    def _result(self, name: str) -> NDArray[Any]:
        """An empty array for an output, of the shape that the inputs of this call give it."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            why = f"the shape of output {name} depends on the data, {shape}"
            cure = "Change the model so that its output has a fixed size"
            raise NotRunnableHere("running with TensorRT", name, why, cure)
        return np.empty(shape, dtype=self._dtypes[name])

    def _place(self, name: str, size: int) -> int:
        """The address of the device buffer of ``name`` with room for ``size`` bytes, told to the context."""
        pointer, room = self._buffers.get(name, (0, 0))
        if room < size:
            if room:
                self._cuda(self._cudart.cudaFree(pointer))
                del self._buffers[name]
            pointer = int(self._cuda(self._cudart.cudaMalloc(size)))
            self._buffers[name] = pointer, size
        self._context.set_tensor_address(name, pointer)
        return pointer

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._cuda(self._cudart.cudaMemcpyAsync(to, source, size, kind, self._stream))

    def _cuda(self, answer: Any) -> Any:
        """The value of a CUDA call; raises MachineFault with CUDA's name for the error."""
        status, *values = answer
        if int(status) != 0:
            name = self._cudart.cudaGetErrorName(status)[1]
            why = name.decode() if isinstance(name, bytes) else str(name)
            raise MachineFault("running with TensorRT", "CUDA", why, "Free GPU memory, or check the driver")
        return values[0] if values else None
