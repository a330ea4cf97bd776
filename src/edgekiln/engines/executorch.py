"""ExecuTorch: a ``.pte`` file, its XNNPACK delegate and its portable kernels, on the CPU.

A ``.pte`` numbers its inputs and outputs; the artifact's options ``inputs`` and ``outputs`` hold the model's
names in that order, as JSON lists.

Threads: the runtime has one pool for the whole process, and a loaded method keeps a pointer to it. So the
pool is set before a method is loaded, and artifacts that are open at the same time share one number.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact

DOING = "opening with ExecuTorch"
METHOD = "forward"
_NOISE = ("cpuinfo_utils.cpp", "operator_registry.cpp:278", "See logs for details")
"""Lines of the runtime's log that say nothing about why it failed."""


class _Method:
    """A loaded ``forward``. Outputs are copies: a later call leaves them alone."""

    def __init__(self, program: Any, method: Any, inputs: list[str], outputs: list[str]) -> None:
        self._program, self._method = program, method
        self._inputs, self._outputs = inputs, outputs

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Raises BadInput where an input is missing, or the runtime refuses shapes, types or the run."""
        import torch

        missing = [n for n in self._inputs if n not in inputs]
        if missing:
            why = f"the input '{missing[0]}' is missing"
            raise BadInput("running", f"{METHOD} of a .pte", why, f"Give {', '.join(self._inputs)}")
        # The runtime reads the memory as it lies, so each array is contiguous and writable.
        given = [torch.from_numpy(np.require(inputs[n], requirements=["C", "W"])) for n in self._inputs]
        try:
            found = self._method(given)
        except RuntimeError as error:
            cure = "Check the shapes and types of the inputs against the model's signature"
            raise BadInput("running", f"{METHOD} of a .pte", str(error).strip(), cure) from error
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, found, strict=True)}

    def close(self) -> None:
        self._method = self._program = None
        _OPEN.discard(self)


_OPEN: weakref.WeakSet[_Method] = weakref.WeakSet()


def open(artifact: Artifact, folder: Path, threads: int) -> _Method:
    """Load ``forward`` of ``artifact.entry`` with a pool of ``threads`` threads.

    Raises MissingExtra without executorch; NotRunnableHere with the runtime's own words where the file is
    damaged, needs a kernel or delegate that this runtime lacks, or other artifacts are open with another
    number of threads; BadInput where the options don't name the inputs and outputs.
    """
    path = folder / artifact.entry
    inputs, outputs = (_names(artifact, key) for key in ("inputs", "outputs"))
    with spoken() as said:
        runtime = _runtime(artifact.entry)
        _set_threads(runtime, threads, artifact.entry)
        try:
            data = path.read_bytes()
            checked = runtime.Verification.InternalConsistency
            program = runtime._load_program_from_buffer(data, program_verification=checked)
            method = program.load_method(METHOD)
            meta = program.method_meta(METHOD)
        except (RuntimeError, OSError, ValueError) as error:
            why = "; ".join([str(error).strip(), *said()])
            cure = "Convert the model anew, or install the executorch version that made it"
            raise NotRunnableHere(DOING, artifact.entry, why, cure) from error
    if (meta.num_inputs(), meta.num_outputs()) != (len(inputs), len(outputs)):
        why = f"it has {meta.num_inputs()} inputs and {meta.num_outputs()} outputs, its options say otherwise"
        raise BadInput(DOING, artifact.entry, why, "Convert the model anew")
    # The program reads the file's bytes in place: they stay as long as it does.
    runner = _Method((program, data), method, inputs, outputs)
    _OPEN.add(runner)
    return runner


def _names(artifact: Artifact, key: str) -> list[str]:
    try:
        names = json.loads(str(artifact.options.get(key, "")))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        why = f"the option '{key}' is not a JSON list of names"
        raise BadInput(DOING, artifact.entry, why, "Convert the model anew")
    return names


def _runtime(to: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise MissingExtra(DOING, to, "executorch") from error
    return portable_lib


def _set_threads(runtime: Any, threads: int, to: str) -> None:
    if runtime._threadpool_get_thread_count() == threads:
        return
    if len(_OPEN):
        have = runtime._threadpool_get_thread_count()
        why = f"another .pte is open with {have} threads, and ExecuTorch has one pool per process"
        raise NotRunnableHere(DOING, to, why, "Close it first, or open both with the same number of threads")
    runtime._unsafe_reset_threadpool(threads)


@contextlib.contextmanager
def spoken() -> Iterator[Callable[[], list[str]]]:
    """Catch what is written to standard error, natively or by Python; a function that gives its last lines.

    The runtime logs there and nowhere else: its exceptions carry a number only. Standard error is the
    whole process's, so this stands around loading and not around each run.
    """
    with tempfile.TemporaryFile() as aside, contextlib.ExitStack() as undo:
        stream = undo.enter_context(
            io.TextIOWrapper(os.fdopen(os.dup(aside.fileno()), "wb"), "utf-8", "replace")
        )
        undo.enter_context(contextlib.redirect_stderr(stream))
        with contextlib.suppress(OSError):  # a process may have closed it
            before = os.dup(2)
            undo.callback(os.close, before)
            undo.callback(os.dup2, before, 2)
            os.dup2(aside.fileno(), 2)

        def lines() -> list[str]:
            stream.flush()
            found = os.pread(aside.fileno(), 1 << 16, 0).decode(errors="replace").splitlines()
            return [n for n in found if n.strip() and not any(noise in n for noise in _NOISE)][-4:]

        yield lines


__all__ = ["open", "spoken"]
