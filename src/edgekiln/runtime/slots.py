"""A rung's place in a session: what it takes, its buffers, and the engine that holds it at the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.model.signature import image_layout
from edgekiln.records import Manifest, Preprocess, TensorSpec
from edgekiln.runtime.building import Building
from edgekiln.runtime.candidates import Unusable
from edgekiln.runtime.loaded import Loaded, aligned
from edgekiln.runtime.vocabulary import Candidate


@dataclass(frozen=True, slots=True)
class Port:
    """An input: its name, dtype, and shape with the names of open axes. ``fixed``: no axis is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    fixed: bool

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` goes in."""
        return len(shape) == len(self.shape) and all(
            want == n or isinstance(want, str) for want, n in zip(self.shape, shape, strict=True)
        )


class Slot:
    """One rung. ``candidate`` says how it runs now, ``own`` how it would by the artifact's own engine.

    ``refused`` is why no engine here takes it. Changed only by the session, under its lock.
    """

    def __init__(self, candidate: Candidate, ports: tuple[Port, ...], preprocess: Preprocess | None) -> None:
        self.own = self.candidate = candidate
        self.id = candidate.rung.id
        self.ports = ports
        self.preprocess = preprocess
        self.loaded: Loaded | None = None
        self.building: Building | None = None
        self.refused: Unusable | None = None
        self.known_bytes = candidate.rung.memory_bytes or candidate.artifact.size_bytes
        self.settled = False
        self._buffers: dict[str, NDArray[Any]] | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be called now, or would be opened by a call."""
        return self.refused is None and (self.building is None or self.loaded is not None)

    @property
    def file(self) -> tuple[str, str, str]:
        """What is loaded for it: rungs of one file and engine share it."""
        artifact, size = self.candidate.artifact, self.candidate.rung.size
        at = next((r.entry for r in artifact.resolutions if (r.height, r.width) == size), artifact.entry)
        return artifact.id, self.candidate.engine, at

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """Its own input arrays, the same each time."""
        if self._buffers is None:
            self._buffers = self.new_buffers({})
        return self._buffers

    def new_buffers(self, axes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """Zeros for every input; ``axes`` are the lengths of open axes, 1 where one is not named."""
        names = {n for port in self.ports for n in port.shape if isinstance(n, str)}
        if unknown := sorted(set(axes) - names):
            why = f"it has no open axis '{unknown[0]}'"
            cure = f"Its open axes: {', '.join(sorted(names)) or 'none'}"
            raise BadInput("making buffers for", self.id, why, cure)
        if wrong := next((n for n, length in axes.items() if length < 1), None):
            raise BadInput("making buffers for", self.id, f"axis '{wrong}' has no length", "Give 1 or more")
        return {
            p.name: aligned([n if isinstance(n, int) else axes.get(n, 1) for n in p.shape], p.dtype)
            for p in self.ports
        }

    def settle(self, takes: Mapping[str, Sequence[int | None]]) -> None:
        """Fix the axes that the signature leaves open and the loaded artifact does not (None: it does)."""
        self.ports = tuple(_narrowed(port, takes.get(port.name)) for port in self.ports)
        self.settled = True

    def checked(self, inputs: Arrays) -> Arrays:
        """``inputs`` as an engine may read them in place; copies of those that it could not.

        Raises BadInput for missing and unknown names, another dtype or shape, and what is no array.
        """
        if len(inputs) != len(self.ports):
            raise self._misnamed(inputs)
        copied: dict[str, NDArray[Any]] | None = None
        for port in self.ports:
            array = inputs.get(port.name)
            if type(array) is not np.ndarray or array.dtype != port.dtype:
                raise self._mistyped(inputs, port)
            if array.shape != port.shape and (port.fixed or not port.takes(array.shape)):
                raise self._misshaped(array, port)
            if not array.flags.carray:
                copied = dict(inputs) if copied is None else copied
                copied[port.name] = np.array(array, order="C")
        return inputs if copied is None else copied

    def _misnamed(self, inputs: Arrays) -> BadInput:
        why = f"the inputs {sorted(map(str, inputs))} were given"
        return self._bad(why, f"Give {', '.join(p.name for p in self.ports)}")

    def _mistyped(self, inputs: Arrays, port: Port) -> BadInput:
        if port.name not in inputs:
            return self._misnamed(inputs)
        array: Any = inputs[port.name]
        if not isinstance(array, np.ndarray):
            why = f"input '{port.name}' is a {type(array).__name__}"
            return self._bad(why, f"Give a NumPy array of {port.dtype}")
        if type(array) is not np.ndarray:
            why = f"input '{port.name}' is a {type(array).__name__}, whose memory may be laid out otherwise"
            return self._bad(why, "Give numpy.asarray of it")
        why = f"input '{port.name}' is {array.dtype}, the rung takes {port.dtype}"
        return self._bad(why, f"Convert it: .astype('{port.dtype}')")

    def _misshaped(self, array: NDArray[Any], port: Port) -> BadInput:
        takes = "x".join(map(str, port.shape))
        why = f"input '{port.name}' has shape {array.shape}, the rung takes {takes}"
        return self._bad(why, "Prepare it for this rung: Session.preprocess, Session.input_buffer")

    def _bad(self, why: str, cure: str) -> BadInput:
        return BadInput("running", self.id, why, cure)


def slots_of(manifest: Manifest, found: Sequence[Candidate]) -> dict[str, Slot]:
    """A slot for each candidate, by the id of its rung, in the order given.

    Raises BadInput for a preprocessing that can't be meant or does not fit the model: it is a stranger's.
    """
    from edgekiln.model.preprocess import check

    inputs = manifest.signature.inputs
    pictures = [s.name for s in inputs if image_layout(s) is not None]
    made = {}
    for one in found:
        specs = [_at(s, one.rung.size) if [s.name] == pictures else s for s in inputs]
        spec = manifest.preprocess
        if spec is not None and len(inputs) == 1 and pictures:
            size = one.rung.size or (spec.height, spec.width)
            spec = msgspec.structs.replace(spec, height=size[0], width=size[1])
            check(spec, specs[0])
        made[one.rung.id] = Slot(one, tuple(map(_port, specs)), spec if len(pictures) == 1 else None)
    return made


def _at(spec: TensorSpec, size: tuple[int, int] | None) -> TensorSpec:
    """The picture input at ``size`` (height, width)."""
    if size is None:
        return spec
    shape = spec.shape
    if image_layout(spec) == "NCHW":
        return msgspec.structs.replace(spec, shape=(*shape[:2], *size))
    return msgspec.structs.replace(spec, shape=(shape[0], *size, shape[3]))


def _port(spec: TensorSpec) -> Port:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        why = f"its input '{spec.name}' is {spec.dtype}, which NumPy has no type for"
        raise BadInput("opening a session", "of the model", why, "Run it by its own engine") from error
    return Port(spec.name, dtype, spec.shape, all(isinstance(n, int) for n in spec.shape))


def _narrowed(port: Port, shape: Sequence[int | None] | None) -> Port:
    if shape is None or port.fixed or len(shape) != len(port.shape):
        return port
    known = tuple(
        n if isinstance(own, str) and n is not None else own for own, n in zip(port.shape, shape, strict=True)
    )
    return Port(port.name, port.dtype, known, all(isinstance(n, int) for n in known))
