"""OpenVINO on the CPU, in the precision that the artifact states and no other.

OpenVINO computes in bfloat16 by default on CPUs that have it. Here the precision is always set, f32 unless
the artifact says otherwise, and read back from the compiled model. Nor does it quantise activations on its
own, as OpenVINO does by default where weights are compressed: the artifact must ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.engines.options import choice, number, switch, thread_count
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact

PRECISIONS = {"f32": "f32", "bf16": "bf16", "f16": "f16"}
"""Values of INFERENCE_PRECISION_HINT, and the OpenVINO element type that must be read back."""
CORES = ("ANY_CORE", "PCORE_ONLY", "ECORE_ONLY")
PARTITIONERS = ("STATIC", "AUTO")
MAX_GROUP = 1 << 16


class _Request:
    """One inference request, used again and again. Outputs are copies: a later call leaves them alone.

    Of a flexible artifact every size within the bounds of its inputs runs; memory grows to the largest seen.
    """

    def __init__(self, compiled: Any, names: Sequence[str], share_inputs: bool = False) -> None:
        self._share_inputs = share_inputs
        self._request = compiled.create_infer_request()
        # OpenVINO itself lets some shapes beyond a bound through; static inputs it checks.
        self._bounds = {port.get_any_name(): _bounds(port) for port in compiled.inputs if _is_open(port)}
        self._outputs = list(zip(names, compiled.outputs, strict=True))

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        for name, bounds in self._bounds.items():
            if name in inputs:
                _check_shape(name, inputs[name].shape, bounds)
        if self._bounds:
            _spoil(self._request, len(self._outputs))
        results = self._request.infer(dict(inputs), share_inputs=self._share_inputs, share_outputs=False)
        return {name: results[port] for name, port in self._outputs}

    def bind(self) -> _InPlace:
        """The same request on the caller's memory."""
        return _InPlace(self._request, self._bounds, self._outputs)

    def close(self) -> None:
        self._request = None


class _InPlace:
    """A request that reads its inputs where the caller has them (``engines.bind``)."""

    def __init__(
        self, request: Any, bounds: dict[str, list[tuple[int, int]]], outputs: list[tuple[str, Any]]
    ) -> None:
        self._request, self._bounds, self._outputs = request, bounds, outputs
        self.takes = {port.get_any_name(): _axes(port) for port in request.model_inputs}
        self._bound: dict[str, NDArray[Any]] = {}
        # Outputs of a fixed shape have memory of ours: to ask the results for a port costs microseconds.
        self._results: dict[str, NDArray[Any]] = {}
        if all(port.partial_shape.is_static for _, port in outputs):
            self._results = {name: self._own_output(port) for name, port in outputs}

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        for name, array in inputs.items():
            if self._bound.get(name) is not array:
                self._bind(name, array)
        if self._bounds:
            _spoil(self._request, len(self._outputs))
        results = self._request.infer(share_outputs=True)
        if self._results:
            return dict(self._results)
        return {name: results[port] for name, port in self._outputs}

    def _own_output(self, port: Any) -> NDArray[Any]:
        import openvino

        tensor = openvino.Tensor(port.get_element_type(), port.get_shape())
        self._request.set_tensor(port, tensor)
        array: NDArray[Any] = tensor.data
        return array

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        import openvino

        if name in self._bounds:
            _check_shape(name, array.shape, self._bounds[name])
        self._bound.pop(name, None)
        self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._bound[name] = array

    def close(self) -> None:
        self._request = None
        self._bound.clear()


def _spoil(request: Any, outputs: int) -> None:
    """Fill the request's old float outputs with NaN.

    Where memory runs out in a call of a model with open axes, OpenVINO on one thread (seen with 2026.4)
    raises nothing and leaves the outputs of the call before: they must not pass for an answer.
    """
    for index in range(outputs):
        data = request.get_output_tensor(index).data
        if data.dtype.kind == "f" and data.flags.writeable:
            data.fill(math.nan)


def _is_open(port: Any) -> bool:
    return bool(port.partial_shape.is_dynamic) and bool(port.partial_shape.rank.is_static)


def _bounds(port: Any) -> list[tuple[int, int]]:
    """Least and greatest size of each axis; -1 where there is no greatest."""
    return [(dim.get_min_length(), dim.get_max_length()) for dim in port.partial_shape]


def _axes(port: Any) -> tuple[int | None, ...]:
    """Its shape, None where an axis is open; empty where the rank is."""
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return ()
    return tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)


def _check_shape(name: str, shape: tuple[int, ...], bounds: list[tuple[int, int]]) -> None:
    """Raise BadInput for a shape that the model's bounds leave out."""
    fits = len(shape) == len(bounds) and all(
        low <= n and (high < 0 or n <= high) for n, (low, high) in zip(shape, bounds, strict=True)
    )
    if not fits:
        allowed = "x".join(str(a) if a == b else f"{a}..{b}" if b >= 0 else f"{a} or more" for a, b in bounds)
        why = f"the shape {shape} is outside {allowed}"
        raise BadInput("running with OpenVINO", name, why, "Give a size that the artifact was made for")


def open(artifact: Artifact, folder: Path, threads: int) -> _Request:
    """Compile ``artifact.entry`` for the CPU with ``threads`` threads and one stream.

    Options read, each with what holds where it is left out: ``INFERENCE_PRECISION_HINT`` (f32; bf16, f16),
    ``threads`` (``threads``, and never more), ``ENABLE_CPU_PINNING``, ``ENABLE_HYPER_THREADING``,
    ``SCHEDULING_CORE_TYPE`` and ``TBB_PARTITIONER`` (OpenVINO's own choice), ``share_inputs`` (False; True
    hands arrays over without a copy), ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` (0: activations stay as they are).
    Nothing is cached on disk. Raises MissingExtra without openvino; NotRunnableHere when the CPU does not
    compute in the precision asked for or OpenVINO refuses the graph; BadInput for another value of an option.
    """
    return open_concurrent(artifact, folder, threads, 1)[0]


def open_concurrent(artifact: Artifact, folder: Path, threads: int, calls: int) -> tuple[_Request, ...]:
    """``calls`` inference requests of one compiled model with as many streams: ``threads`` are shared out
    among them. Options and errors as of ``open``."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("opening with OpenVINO", artifact.entry, "openvino") from error
    config = compile_config(artifact, max(threads, calls)) | {"NUM_STREAMS": str(calls)}
    asked, share = config["INFERENCE_PRECISION_HINT"], switch(artifact, "share_inputs", False)
    core = openvino.Core()
    try:
        model = core.read_model(folder / artifact.entry)
        # Asked before compiling: afterwards an output bears the names of all that was fused into it.
        names = [port.get_any_name() for port in model.outputs]
        compiled = core.compile_model(model, "CPU", config)
        effective = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise NotRunnableHere(
            "opening with OpenVINO",
            artifact.entry,
            str(error).strip().splitlines()[-1],
            f"Check the graph, or the openvino version (here {openvino.__version__})",
        ) from error
    require_precision(artifact.entry, asked, effective, tuple(capable))
    return tuple(_Request(compiled, names, share) for _ in range(calls))


def compile_config(artifact: Artifact, threads: int) -> dict[str, str]:
    """The artifact's options as properties of ``compile_model``. Raises BadInput for a bad one."""
    config = {
        "INFERENCE_PRECISION_HINT": choice(artifact, "INFERENCE_PRECISION_HINT", tuple(PRECISIONS), "f32"),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(thread_count(artifact, threads)),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(
            number(artifact, "DYNAMIC_QUANTIZATION_GROUP_SIZE", 0, MAX_GROUP, 0)
        ),
        "CACHE_DIR": "",
    }
    # What is left out stays OpenVINO's choice, which differs from CPU to CPU.
    for name in ("ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING"):
        if name in artifact.options:
            config[name] = "YES" if switch(artifact, name, True) else "NO"
    for name, known in (("SCHEDULING_CORE_TYPE", CORES), ("TBB_PARTITIONER", PARTITIONERS)):
        if name in artifact.options:
            config[name] = choice(artifact, name, known, known[0])
    return config


def require_precision(entry: str, asked: str, effective: str, capable: tuple[str, ...]) -> None:
    """Raise NotRunnableHere unless the compiled model computes in the precision that was asked for.

    ``effective`` is what the compiled model reports, ``capable`` the CPU's OPTIMIZATION_CAPABILITIES
    (BF16, FP16 ... where it has them; float32 is always there).
    """
    known = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
    has = asked == "f32" or {"bf16": "BF16", "f16": "FP16"}[asked] in capable
    if has and known.get(effective, effective) == asked:
        return
    why = f"it asks for {asked} arithmetic, and this CPU computes it in {known.get(effective, effective)}"
    if not has:
        why = f"it asks for {asked} arithmetic, which this CPU does not have (it has {', '.join(capable)})"
    raise NotRunnableHere("opening with OpenVINO", entry, why, "Use the fp32 artifact on this machine")
