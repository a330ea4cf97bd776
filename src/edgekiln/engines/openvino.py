"""OpenVINO on the CPU, in the precision that the artifact states and no other.

OpenVINO computes in bfloat16 by default on CPUs that have it. Here the precision is always set, f32 unless
the artifact says otherwise, and read back from the compiled model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact

PRECISIONS = {"f32": "f32", "bf16": "bf16", "f16": "f16"}
"""Values of INFERENCE_PRECISION_HINT, and the OpenVINO element type that must be read back."""


class _Request:
    """One inference request, used again and again. Outputs are copies: a later call leaves them alone.

    Of a flexible artifact every size within the bounds of its inputs runs; memory grows to the largest seen.
    """

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = {name: port for port in compiled.inputs for name in port.names}
        self._outputs = [(port.get_any_name(), port) for port in compiled.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            results = self._request.infer(dict(inputs), share_inputs=False, share_outputs=False)
        except RuntimeError as error:
            self._check_shapes(inputs)
            why = str(error).strip().splitlines()[-1]
            cure = "Check the inputs' names and types, or report the graph"
            raise BadInput("running with OpenVINO", ", ".join(inputs), why, cure) from error
        return {name: results[port] for name, port in self._outputs}

    def _check_shapes(self, inputs: Arrays) -> None:
        """Raise BadInput for an input that the model's own bounds leave out."""
        from openvino import PartialShape

        for name, array in inputs.items():
            port = self._inputs.get(name)
            if port is not None and not port.partial_shape.compatible(PartialShape(list(array.shape))):
                why = f"the shape {array.shape} is outside {port.partial_shape}"
                raise BadInput(
                    "running with OpenVINO", name, why, "Give a size that the artifact was made for"
                )

    def close(self) -> None:
        self._request = None


def open(artifact: Artifact, folder: Path, threads: int) -> _Request:
    """Compile ``artifact.entry`` for the CPU with ``threads`` threads and one stream.

    Options read: ``INFERENCE_PRECISION_HINT`` (f32, bf16, f16; default f32). Nothing is cached on disk.
    Raises MissingExtra without openvino; NotRunnableHere when the CPU does not compute in the precision
    asked for or OpenVINO refuses the graph; BadInput for another value of the option.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("opening with OpenVINO", artifact.entry, "openvino") from error
    asked = str(artifact.options.get("INFERENCE_PRECISION_HINT", "f32"))
    if asked not in PRECISIONS:
        why = f"INFERENCE_PRECISION_HINT is '{asked}'"
        raise BadInput("opening with OpenVINO", artifact.entry, why, f"Use one of {', '.join(PRECISIONS)}")
    core = openvino.Core()
    config = {
        "INFERENCE_PRECISION_HINT": asked,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "CACHE_DIR": "",
    }
    try:
        compiled = core.compile_model(core.read_model(folder / artifact.entry), "CPU", config)
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
    return _Request(compiled)


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
