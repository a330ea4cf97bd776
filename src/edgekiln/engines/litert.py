"""LiteRT (once TensorFlow Lite) on the CPU, with XNNPACK, which its interpreter applies by itself.

The file may hold a tensor in another form than the model does: pictures as NHWC, 64-bit integers as 32-bit
ones. The artifact's options say so, and the runner takes and gives the model's own form all the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import files
from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact, Placement

SIGNATURE = "serving_default"
LAYOUT, DTYPE = "layout.", "dtype."
"""Options ``layout.NAME`` (NHWC where the file holds the model's NCHW input so) and ``dtype.NAME`` (the
model's own dtype where the file holds another)."""
_STDERR = threading.Lock()


class _Interpreter:
    """One interpreter and its only signature. Outputs are copies: a later call leaves them alone."""

    def __init__(self, interpreter: Any, artifact: Artifact) -> None:
        self._artifact = artifact
        self._entry = artifact.entry
        self._run = interpreter.get_signature_runner(SIGNATURE)
        self._inputs: dict[str, Any] = self._run.get_input_details()
        self._outputs: dict[str, Any] = self._run.get_output_details()

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Raises BadInput for a missing or unknown name, another shape or dtype than the model's."""
        if self._run is None:
            raise _refused(self._entry, "the runner is closed")
        if set(inputs) != set(self._inputs):
            why = f"inputs {sorted(inputs)} were given; the model takes {sorted(self._inputs)}"
            raise _refused(self._entry, why)
        fed = {n: file_form(np.asarray(v), self._inputs[n], n, self._artifact) for n, v in inputs.items()}
        try:
            found = self._run(**fed)
        except (ValueError, RuntimeError) as error:
            raise _refused(self._entry, _sentence(error)) from error
        return {name: self._model_form(name, value) for name, value in found.items()}

    def close(self) -> None:
        self._run = None

    def _model_form(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        dtype = self._artifact.options.get(DTYPE + name)
        return value if dtype is None else value.astype(np.dtype(str(dtype)))


def open(artifact: Artifact, folder: Path, threads: int) -> _Interpreter:
    """Load ``artifact.entry`` with ``threads`` threads, XNNPACK wherever it takes the operators.

    Options read: ``layout.NAME`` and ``dtype.NAME`` (see ``LAYOUT``, ``DTYPE``).
    Raises MissingExtra without ai-edge-litert; NotRunnableHere for a file that is damaged, lacks the
    signature, or holds an operator that this interpreter has no kernel for.
    """
    path = files.inside(folder, artifact.entry, "opening with LiteRT")
    try:
        return _Interpreter(interpreter(path, threads, artifact.entry), artifact)
    except (ValueError, KeyError, OSError) as error:
        raise _unrunnable(artifact.entry, error) from error


def interpreter(source: bytes | Path, threads: int, entry: str) -> Any:
    """An ``ai_edge_litert`` interpreter of a file (mapped, not read) or of bytes, tensors allocated.

    It applies XNNPACK, its default delegate. Raises MissingExtra and NotRunnableHere as ``open`` does.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtra("opening with LiteRT", entry, "litert") from error
    given = {"model_path": str(source)} if isinstance(source, Path) else {"model_content": source}
    try:
        with _quiet_stderr():
            made = Interpreter(**given, num_threads=threads)
            made.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _unrunnable(entry, error) from error
    return made


def placement(source: bytes | Path, threads: int, entry: str) -> Placement:
    """What XNNPACK took of a ``.tflite``, asked of the interpreter after it partitioned the graph here.

    The interpreter keeps the graph's own nodes and appends one DELEGATE node per partition. A partition's
    nodes are those from which its outputs come without leaving its inputs. DEQUANTIZE nodes of constant
    weights are unpacked once when the model loads and count for neither side.
    """
    made = interpreter(source, threads, entry)
    nodes = made._get_ops_details()  # the interpreter offers no public way to see them
    own = [n for n in nodes if n["op_name"] != "DELEGATE"]
    delegates = [n for n in nodes if n["op_name"] == "DELEGATE"]
    makers = {int(t): n for n in own for t in n["outputs"]}
    written = set(makers) | {int(d["index"]) for d in made.get_input_details()}
    counted = [n for n in own if n["op_name"] != "DEQUANTIZE" or written & {int(t) for t in n["inputs"]}]
    taken = {i for d in delegates for i in _covered(d, makers)}
    rest = Counter(str(n["op_name"]) for n in counted if n["index"] not in taken)
    where = f"partitioned by LiteRT's interpreter on {platform.machine()}; on another CPU it may differ"
    return Placement(
        provider="XNNPACK (CPU)",
        how="measured",
        operators=len(counted),
        taken=len(counted) - sum(rest.values()),
        partitions=len(delegates),
        fallback=dict(sorted(rest.items())),
        detail=where + ("; the rest runs on LiteRT's own CPU kernels" if rest else ""),
    )


def _covered(delegate: Any, makers: dict[int, Any]) -> set[int]:
    """Indices of the nodes inside a partition: back from its outputs, as far as its inputs."""
    border = {int(t) for t in delegate["inputs"]}
    found: set[int] = set()
    open_tensors = [int(t) for t in delegate["outputs"]]
    while open_tensors:
        tensor = open_tensors.pop()
        node = makers.get(tensor)
        if tensor in border or node is None or node["index"] in found:
            continue
        found.add(int(node["index"]))
        open_tensors.extend(int(t) for t in node["inputs"] if t >= 0)
    return found


def file_form(value: NDArray[Any], details: Any, name: str, artifact: Artifact) -> NDArray[Any]:
    """An input as the file holds it, from the model's own: NHWC and narrower integers as its options say.

    ``details`` is the interpreter's entry for the input: its shape and dtype in the file. Raises BadInput
    where ``value`` has not the model's own shape and dtype, or holds integers that the file's can't.
    """
    dtype = np.dtype(details["dtype"])
    own_dtype = np.dtype(str(artifact.options.get(DTYPE + name, dtype)))
    if value.dtype != own_dtype:
        raise _refused(artifact.entry, f"input '{name}' is {value.dtype}; the model takes {own_dtype}")
    shape = tuple(int(n) for n in details["shape"])
    nhwc = artifact.options.get(LAYOUT + name) == "NHWC"
    own = (shape[0], shape[-1], *shape[1:-1]) if nhwc else shape
    if value.shape != own:
        raise _refused(artifact.entry, f"input '{name}' has shape {value.shape}; the model takes {own}")
    if own_dtype != dtype:
        value = _narrowed(artifact.entry, name, value, dtype)
    return np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if nhwc else value


def _narrowed(entry: str, name: str, value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` as ``dtype``. Integers that do not fit are refused: they would become other numbers."""
    if dtype.kind in "iu" and value.size:
        limits = np.iinfo(dtype)
        if value.min() < limits.min or value.max() > limits.max:
            raise _refused(entry, f"input '{name}' holds integers beyond {dtype}, which the file computes in")
    return value.astype(dtype)


def _refused(entry: str, why: str) -> BadInput:
    return BadInput("running with LiteRT", entry, why, "Give what the model's signature says")


def _unrunnable(entry: str, error: Exception) -> NotRunnableHere:
    import importlib.metadata

    version = importlib.metadata.version("ai-edge-litert")
    cure = f"Check the file, or the ai-edge-litert version (here {version})"
    return NotRunnableHere("opening with LiteRT", entry, _sentence(error), cure)


def _sentence(error: Exception) -> str:
    """The interpreter's message in one line: the operator it names stands in its first ones."""
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]) or type(error).__name__


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2 meanwhile: LiteRT greets and warns there.

    Its errors come as exceptions, so nothing is lost. One thread at a time: the descriptor is the process's.
    """
    with _STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # no such descriptor, as in a daemon
            kept = None
        if kept is not None:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            if kept is not None:
                os.dup2(kept, 2)
                os.close(kept)


__all__ = ["DTYPE", "LAYOUT", "SIGNATURE", "file_form", "interpreter", "open", "placement"]
