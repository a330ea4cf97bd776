"""How an artifact runs, wherever it is: one file per engine, each with a function ``open``.

A runner maps named arrays to named arrays. ``open`` raises NotRunnableHere with the reason where the
machine can't execute the artifact, and MissingExtra where only a package is absent.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
from numpy.typing import NDArray

from edgekiln.errors import BadInput, NotRunnableHere, did_you_mean
from edgekiln.files import inside
from edgekiln.records import Artifact

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

ENGINES = {
    "onnxruntime": "edgekiln.engines.onnxruntime",
    "openvino": "edgekiln.engines.openvino",
    "tensorrt": "edgekiln.engines.tensorrt",
    "coreml": "edgekiln.engines.coreml",
    "litert": "edgekiln.engines.litert",
    "executorch": "edgekiln.engines.executorch",
    "qnn": "edgekiln.engines.qnn",
    "web": "edgekiln.engines.web",
}


class Runner(Protocol):
    """A loaded artifact. Arrays keep the artifact's own names, shapes and dtypes."""

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...


class InPlace(Runner, Protocol):
    """A runner that reads its inputs where the caller has them. ``takes`` is the shape of each input as the
    loaded artifact states it; None is an open axis."""

    @property
    def takes(self) -> Mapping[str, tuple[int | None, ...]]: ...


@runtime_checkable
class Bindable(Protocol):
    """A runner of an engine that can work on the caller's own memory."""

    def bind(self) -> InPlace | None: ...


def bind(runner: Runner) -> InPlace | None:
    """The same engine without copies, or None where it has no such path or the artifact's tensors none.

    What is given is read where it lies, so every array is C-contiguous, aligned and writeable, and stays as
    it is until the call has ended; an array that was given before is known again by its identity and not
    bound anew. The outputs are the engine's memory: the next call overwrites them. One call at a time.
    """
    return runner.bind() if isinstance(runner, Bindable) else None


def open_engine(
    name: str, artifact: Artifact, folder: Path, threads: int, size: tuple[int, int] | None = None
) -> Runner:
    """Load ``artifact`` (its files lie in ``folder``) with engine ``name`` on ``threads`` threads.

    ``size`` is the (height, width) to be run where the artifact has several; None is its base. Raises
    NotRunnableHere, MissingExtra, or BadInput for an engine nobody knows or a size that it has not.
    """
    if name not in ENGINES:
        raise BadInput("opening", artifact.entry, f"unknown engine '{name}'", did_you_mean(name, ENGINES))
    one, where = at_size(artifact, folder, size)
    runner: Runner = importlib.import_module(ENGINES[name]).open(one, where, threads)
    return runner


def build_command(
    name: str, artifact: Artifact, folder: Path, size: tuple[int, int] | None = None
) -> Sequence[str] | None:
    """The command that makes what engine ``name`` needs before it can open ``artifact``, where that takes
    minutes; None where it is there, or the engine needs nothing. Raises as ``open_engine`` does.
    """
    one, where = at_size(artifact, folder, size)
    asked = getattr(importlib.import_module(ENGINES[name]), "build_command", None)
    command: Sequence[str] | None = None if asked is None else asked(one, where)
    return command


def open_concurrent(
    name: str,
    artifact: Artifact,
    folder: Path,
    threads: int,
    calls: int,
    size: tuple[int, int] | None = None,
) -> tuple[Runner, ...]:
    """``calls`` runners of one loaded artifact that may be called at the same time, each by one thread.

    They share the weights and ``threads`` threads in all. Raises as ``open_engine``, and NotRunnableHere
    where the engine has no concurrent calls and more than one is asked for.
    """
    if calls == 1 or name not in ENGINES:
        return (open_engine(name, artifact, folder, threads, size),)
    one, where = at_size(artifact, folder, size)
    module = importlib.import_module(ENGINES[name])
    if not hasattr(module, "open_concurrent"):
        why = f"the engine {name} answers one call at a time"
        raise NotRunnableHere("opening", artifact.entry, why, "Open it for one call at a time")
    runners: tuple[Runner, ...] = module.open_concurrent(one, where, threads, calls)
    return runners


def at_size(artifact: Artifact, folder: Path, size: tuple[int, int] | None) -> tuple[Artifact, Path]:
    """The artifact and folder of one size: as they are where it is flexible or has one size.

    One file per size lies in a folder per size that is whole in itself (``320x416/``); options that differ
    between the sizes bear that prefix too. Raises BadInput for a size that the artifact does not take.
    """
    if not artifact.resolutions:
        return artifact, folder
    sizes = {(r.height, r.width): r.entry for r in artifact.resolutions}
    if size is not None and size not in sizes:
        known = ", ".join(f"{h}x{w}" for h, w in sizes)
        doing, why = "opening at", f"the artifact takes {known}"
        raise BadInput(doing, f"{size[0]}x{size[1]}", why, "Choose one of these sizes")
    if artifact.flexible:
        return artifact, folder
    entry = artifact.entry if size is None else sizes[size]
    inner, _, own = entry.partition("/")
    if not inner or not own:
        why = "an artifact of one file per size keeps each in a folder of its own"
        raise BadInput("opening", entry, why, "Fetch the bundle again; it is damaged")
    every = {f"{h}x{w}/" for h, w in sizes}
    plain = {k: v for k, v in artifact.options.items() if not any(k.startswith(p) for p in every)}
    prefix = f"{inner}/"
    special = {k.removeprefix(prefix): v for k, v in artifact.options.items() if k.startswith(prefix)}
    files = tuple(
        msgspec.structs.replace(f, path=f.path.removeprefix(prefix))
        for f in artifact.files
        if f.path.startswith(prefix)
    )
    one = msgspec.structs.replace(artifact, entry=own, files=files, options=plain | special, resolutions=())
    where = inside(folder, inner, "opening")
    inside(where, own, "opening")
    return one, where


__all__ = [
    "ENGINES",
    "Arrays",
    "Bindable",
    "InPlace",
    "Runner",
    "at_size",
    "bind",
    "build_command",
    "open_concurrent",
    "open_engine",
]
