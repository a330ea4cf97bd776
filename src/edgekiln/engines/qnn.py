"""Qualcomm's Hexagon NPU by the QNN provider: the NPU itself on a Snapdragon, its simulator elsewhere.

The provider is a plugin of ONNX Runtime (package onnxruntime-qnn). On x86-64 its HTP backend is a simulator:
it computes what the NPU computes, at a speed that says nothing about the NPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln.engines.onnxruntime import Session
from edgekiln.errors import MissingExtra, NotRunnableHere
from edgekiln.records import Artifact

PROVIDER = "QNNExecutionProvider"
OPTIONS = frozenset(
    {
        "backend_type",
        "htp_performance_mode",
        "htp_graph_finalization_optimization_mode",
        "soc_model",
        "htp_arch",
        "offload_graph_io_quantization",
    }
)
"""Provider options that an artifact may carry, as documented in QNN-ExecutionProvider.md of
onnxruntime/onnxruntime-qnn; whatever else stands in ``Artifact.options`` is not the provider's."""

_LOCK = threading.Lock()


def open(artifact: Artifact, folder: Path, threads: int) -> Session:
    """Open ``artifact.entry`` with the provider options that it carries.

    Option read besides: ``cpu_fallback`` (bool, default False). Without it every operator must run on the
    NPU or its simulator. Raises MissingExtra without onnxruntime-qnn, and NotRunnableHere with the
    provider's own words where it can't run the graph.
    """
    provider = {name: str(value) for name, value in artifact.options.items() if name in OPTIONS}
    fallback = bool(artifact.options.get("cpu_fallback", False))
    try:
        session = start(str(folder / artifact.entry), provider, threads, fallback=fallback)
    except MissingExtra:
        raise
    except Exception as error:
        why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        cure = "The artifact's placement names the operators that Hexagon does not take"
        raise NotRunnableHere("opening with QNN", artifact.entry, why, cure) from error
    return Session(session)


def start(
    model: str | bytes,
    provider: Mapping[str, str],
    threads: int,
    *,
    fallback: bool,
    config: Mapping[str, str] | None = None,
) -> Any:
    """An InferenceSession on the QNN provider. ``config`` are further session options.

    Given bytes, a compiled context does not depend on where the model lay. Raises MissingExtra, and what
    ONNX Runtime raises.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if fallback else "1")
    for name, value in (config or {}).items():
        options.add_session_config_entry(name, value)
    with _LOCK, _native_stdout_muted():
        ort.set_default_logger_severity(4)
        options.add_provider_for_devices(_devices(), {"backend_type": "htp", **provider})
        return ort.InferenceSession(model, options)


def _devices() -> list[Any]:
    """The provider's devices, its library registered with ONNX Runtime where it is not yet."""
    import onnxruntime as ort

    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise MissingExtra("opening with QNN", PROVIDER, "qnn") from error
    found = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    if not found:
        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        found = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    return found


@contextlib.contextmanager
def _native_stdout_muted() -> Iterator[None]:
    """The backend's library greets on the process's standard output, which is not its to write on."""
    if os.name != "posix":
        yield
        return
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what the library left in C's buffer must not come out later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
