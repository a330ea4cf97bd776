"""What went wrong with an engine: its kind, read from the error, the files or the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, at_size
from edgekiln.errors import Corrupt, EdgekilnError, EngineFault
from edgekiln.files import inside, sha256_file
from edgekiln.records import Record, TensorSpec
from edgekiln.runtime.vocabulary import Candidate, EventKind

MEMORY = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "out of memory",
    "cannot allocate memory",
    "alloc_failed",
    "cudaerrormemoryallocation",
)
"""What ONNX Runtime, OpenVINO, CUDA and the C++ library say when an allocation failed."""
ACCELERATOR = (
    "cuda failure",
    "cuda error",
    "cudaerror",
    "cublas failure",
    "cudnn failure",
    "cuda_error",
    "no cuda-capable device",
    "nvml",
    "device removed",
    "device lost",
    "device_lost",
    "device is lost",
    "hip error",
    "hip failure",
    "clenqueue",
    "ze_result_error",
    "unspecified launch failure",
    "qnn_common_error",
    "executionprovider is not available",
)
"""What execution providers say when their device is gone or no longer answers."""
GONE: frozenset[EventKind] = frozenset({"crashed", "hung", "memory", "corrupt", "accelerator-lost"})
"""Faults after which the engine is closed and opened anew. After ``memory`` it is closed so that what it
holds is free for the candidate that takes over."""

Stamp: TypeAlias = tuple[int, int, int, int] | None


class Fault(Record, frozen=True, kw_only=True):
    kind: EventKind
    why: str


def fault_of(error: BaseException) -> Fault:
    """The kind and the reason of an engine's error."""
    if isinstance(error, EngineFault):
        return Fault(kind=error.kind, why=error.why)
    if isinstance(error, Corrupt):
        return Fault(kind="corrupt", why=error.why)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    why = (
        error.why if isinstance(error, EdgekilnError) else f"{type(error).__name__}: {'; '.join(lines[-2:])}"
    )
    if isinstance(error, MemoryError) or is_memory_text(str(error)):
        return Fault(kind="memory", why=why)
    return Fault(kind="accelerator-lost" if is_accelerator_text(str(error)) else "refused", why=why)


def is_memory_text(text: str) -> bool:
    return any(sign in text.lower() for sign in MEMORY)


def is_accelerator_text(text: str) -> bool:
    return any(sign in text.lower() for sign in ACCELERATOR)


# ---------------------------------------------------------------- outputs


def not_finite(arrays: Arrays) -> str | None:
    """The name of the first array with a NaN or an infinity.

    A sum is finite only where every addend is, and costs a third of looking at each; where it overflows, each
    is looked at after all.
    """
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not _finite(value):
            return name
    return None


def _finite(value: NDArray[Any]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(value, axis=None))) or bool(np.isfinite(value).all())


def misfit(outputs: Arrays, specs: Sequence[TensorSpec], *, sized: bool) -> str | None:
    """Why ``outputs`` are not what the model's signature says: a name, dtype, rank or fixed axis; or None.

    ``sized``: at another input size than the signature's, where fixed axes may differ.
    """
    for spec in specs:
        value = outputs.get(spec.name)
        if value is None:
            return f"the output '{spec.name}' is missing"
        if str(value.dtype) != spec.dtype:
            return f"the output '{spec.name}' is {value.dtype}, not {spec.dtype}"
        fits = len(value.shape) == len(spec.shape) and (
            sized or all(isinstance(b, str) or a == b for a, b in zip(value.shape, spec.shape, strict=True))
        )
        if not fits:
            return f"the output '{spec.name}' has shape {value.shape}, not {spec.shape}"
    return None


# ---------------------------------------------------------------- files


def stamps(candidate: Candidate) -> tuple[Stamp, ...]:
    """Device, inode, size and time of change of each of the artifact's files; None for one that is gone."""
    found: list[Stamp] = []
    for path, _ in _files(candidate):
        try:
            told = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns))
    return tuple(found)


def check_files(candidate: Candidate) -> tuple[Stamp, ...]:
    """Hash the artifact's files anew; their stamps, taken before. Raises Corrupt naming the first that is
    not, or no longer, what the bundle's manifest says."""
    before = stamps(candidate)
    for path, entry in _files(candidate):
        why = ""
        try:
            size = path.stat().st_size
            if size != entry.size_bytes:
                why = f"it has {size} bytes, the manifest says {entry.size_bytes}"
            elif sha256_file(path) != entry.sha256:
                why = "it does not have the hash that the manifest names"
        except OSError as error:
            why = f"it can't be read ({error.strerror or error})"
        if why:
            cure = "Unpack the bundle again, and check the disk"
            raise Corrupt("opening", candidate.rung.id, f"{entry.path}: {why}", cure)
    return before


def _files(candidate: Candidate) -> list[tuple[Path, Any]]:
    """The files that this candidate's size needs, with their entries."""
    artifact, folder = at_size(candidate.artifact, Path(candidate.folder), candidate.rung.size)
    return [(inside(folder, entry.path, "opening"), entry) for entry in artifact.files]
