"""ONNX Runtime on the CPU: fixed threads, no spinning unless the artifact asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import NotRunnableHere
from edgekiln.records import Artifact


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        self._session = None


def open(artifact: Artifact, folder: Path, threads: int) -> _Session:
    """Open ``artifact.entry``. Options read: ``spinning`` (bool, default False).

    Spinning threads win a little on an idle machine and lose half under contention, so it is an option
    of the artifact, never a silent default. Raises NotRunnableHere when the runtime refuses the graph.
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
        session = ort.InferenceSession(
            str(folder / artifact.entry), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise NotRunnableHere(
            "opening with ONNX Runtime",
            artifact.entry,
            str(error).strip().splitlines()[-1],
            f"Check the graph, or the onnxruntime version (here {ort.__version__})",
        ) from error
    return _Session(session)
