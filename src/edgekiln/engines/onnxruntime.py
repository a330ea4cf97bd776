"""ONNX Runtime on the CPU: fixed threads, no spinning unless the artifact asks for it.

Also the proof engine of artifacts that another engine runs on their device.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.engines.emulate import ARITHMETIC, emulate
from edgekiln.errors import ConversionFailed, NotRunnableHere
from edgekiln.records import Artifact


class Session:
    """A session of ONNX Runtime as a runner."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        self._session = None


def open(artifact: Artifact, folder: Path, threads: int) -> Session:
    """Open ``artifact.entry``. Options read: ``spinning`` (bool, default False), ``arithmetic``.

    Spinning threads win a little on an idle machine and lose half under contention, so it is an option
    of the artifact, never a silent default. Where ``arithmetic`` (fp16, bf16) is the device's and not this
    machine's, the graph is emulated (``engines.emulate``): its numbers are the device's, its speed is not.
    Raises NotRunnableHere when the runtime refuses the graph.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    spin = "1" if artifact.options.get("spinning", False) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    try:
        model = _emulation(folder / artifact.entry) if emulates(artifact) else str(folder / artifact.entry)
        session = ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        why = error.why if isinstance(error, ConversionFailed) else str(error).strip().splitlines()[-1]
        raise NotRunnableHere(
            "opening with ONNX Runtime",
            artifact.entry,
            why,
            f"Check the graph, or the onnxruntime version (here {ort.__version__})",
        ) from error
    return Session(session)


def emulates(artifact: Artifact) -> bool:
    """Whether ``open`` rounds by emulation: half precision, and not on the artifact's own kind of machine.

    An x86 CPU runs a float16 graph in float32 without saying so; Arm CPUs have ONNX Runtime's float16
    kernels, so there the artifact's own engine needs no emulation.
    """
    if artifact.options.get("arithmetic") not in ARITHMETIC:
        return False
    at_home = artifact.engine == "onnxruntime" and platform.machine() in {"aarch64", "arm64"}
    return not at_home


def _emulation(path: Path) -> bytes:
    import onnx

    graph: bytes = emulate(onnx.load(path)).SerializeToString()
    return graph


def float_artifact(entry: str, name: str) -> Artifact:
    """A float ONNX file as it is, for ONNX Runtime."""
    return Artifact(
        id=name,
        target="onnxruntime",
        recipe="fp32",
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry=entry,
        files=(),
        options={},
        tools={},
        precisions={},
    )
