"""A bundle, opened to run: verified, unpacked, its engines warm, no copy of an input where the engine allows.

    with open_session(Path("host.edgekiln")) as session:
        outputs = session(session.preprocess(frame))

What a rung is stands in ``vocabulary``; which of them run here is found out by ``candidates``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.bundle.unpack import Opened, opened
from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.records import Manifest
from edgekiln.runtime.candidates import Unusable, ladder, survey
from edgekiln.runtime.loading import CLOSING_S, Loading, engine_fault
from edgekiln.runtime.slots import slots_of
from edgekiln.runtime.vocabulary import Candidate, Event, Rung

WARM_S = 1.0


def open_session(
    bundle: Path,
    threads: int = 2,
    *,
    every: bool = False,
    emulated: bool = True,
    memory_bytes: int | None = None,
    warm_s: float = WARM_S,
    on_event: Callable[[Event], None] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Session:
    """Verify and unpack ``bundle``, and open the first of its artifacts that runs here, warm.

    ``every`` opens all rungs now; else each is opened by its first call or by ``prepare``. ``memory_bytes``
    bounds what the engines of this session take together: the one that was used longest ago is closed for
    another. ``warm_s`` bounds the warm-up of each rung. ``on_event`` is told what happens, from the thread in
    which it happens. Without ``emulated`` nothing stands in for an engine or arithmetic that is not here.

    Where an artifact's engine has to be built first (TensorRT: minutes), that is done by a process in the
    background, and the next artifact answers until it takes over, between two calls.

    Raises BadInput for a bundle that is not sound, NotRunnableHere with each artifact's reason where none
    runs here.
    """
    stack = contextlib.ExitStack()
    with stack:
        held = stack.enter_context(opened(bundle))
        found, unusable = survey(held, threads, emulated=emulated)
        loading = Loading(
            bundle,
            slots_of(held.manifest, found),
            unusable,
            emulated=emulated,
            memory_bytes=memory_bytes,
            warm_s=warm_s,
            on_event=on_event,
            now=now,
        )
        stack.callback(loading.close, CLOSING_S)
        loading.start(every)
        session = Session(bundle, held, loading)
        session._cleanup = stack.pop_all()
    return session


class Session:
    """An opened bundle. Made by ``open_session``; a context manager.

    Several threads may use one session: calls of the same artifact follow one another, those of different
    ones run side by side. Arrays that are given must not change until their call has ended, and the session
    holds them until the artifact's next call. What ``input_buffer`` and ``copy=False`` give is for one thread
    at a time.
    """

    def __init__(self, bundle: Path, held: Opened, loading: Loading) -> None:
        self.bundle = bundle
        self.manifest: Manifest = held.manifest
        self._held = held
        self._all = loading
        self._cleanup = contextlib.ExitStack()

    # ------------------------------------------------------------ what there is

    @property
    def rung(self) -> str:
        """The id of the rung that answers where a call names none."""
        return self._all.slot(None).id

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """How each rung runs that can be called now, in the bundle's order."""
        return tuple(s.candidate for s in self._all.slots.values() if s.usable)

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The rungs that can be called now, the best first; one that is being built joins when ready."""
        return ladder(self.candidates)

    @property
    def unusable(self) -> tuple[Unusable, ...]:
        """What of the bundle does not run here, and why; it grows where an engine refuses an artifact."""
        return tuple(self._all.unusable)

    @property
    def building(self) -> tuple[str, ...]:
        """The rungs whose engine is being built."""
        return tuple(name for name, s in self._all.slots.items() if s.building is not None)

    @property
    def opened(self) -> tuple[str, ...]:
        """The rungs whose engine is in memory."""
        return tuple(name for name, s in self._all.slots.items() if s.loaded is not None)

    @property
    def memory_bytes(self) -> int:
        """What the engines of this session took when they were opened and warmed, together."""
        return self._all.memory_bytes

    @property
    def labels(self) -> tuple[str, ...]:
        """The bundle's class names; empty where it has none."""
        return self._held.labels

    # ------------------------------------------------------------ the hot path

    def __call__(
        self, inputs: Arrays, rung: str | None = None, *, copy: bool = True
    ) -> dict[str, NDArray[Any]]:
        """The outputs of ``inputs`` by name, on ``rung`` or on the one in use (``rung``, ``use``).

        Arrays that are C-contiguous, aligned and writeable are read where they lie, others are copied first.
        With ``copy=False`` outputs are views of the engine's memory where it allows: the next call of the
        same artifact overwrites them. Raises BadInput for another name, shape or dtype than the rung takes
        and for a closed session, NotRunnableHere for a rung that is being built or that its engine refuses to
        open, MachineFault where the engine fails.
        """
        slot = self._all.default if rung is None else self._all.slots.get(rung)
        if slot is None:
            slot = self._all.slot(rung)
        while True:
            loaded = slot.loaded or self._all.open(slot)
            fed = slot.checked(inputs)
            with loaded.lock:
                runner = loaded.runner
                if runner is None:
                    continue  # closed for another between the two lines above
                self._all.uses += 1
                loaded.used = self._all.uses
                try:
                    found = runner(fed)
                    if copy and loaded.in_place:
                        return {name: array.copy() for name, array in found.items()}
                    return found
                except EdgekilnError:
                    raise
                except Exception as error:
                    raise engine_fault(slot, error) from error
                finally:
                    if loaded.retired:
                        loaded.close()

    def input_buffer(
        self, rung: str | None = None, axes: Mapping[str, int] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Arrays for each input of ``rung``, aligned as engines like it: filled and given to a call, they are
        read where they lie and bound only once.

        The same arrays each time, so one thread at a time. ``axes`` gives the length of open axes by name
        (``{"batch": 8}``), 1 where it is left out; such arrays are new ones each time.
        """
        slot = self._all.settled(rung)
        return slot.new_buffers(axes) if axes else slot.buffers

    def preprocess(
        self,
        frame: NDArray[np.uint8],
        rung: str | None = None,
        into: Mapping[str, NDArray[Any]] | None = None,
        at: int = 0,
    ) -> Arrays:
        """``frame`` (height, width, 3; RGB) as the model's preprocessing wants it, at the rung's size.

        It is written straight into ``into`` (made by ``input_buffer``; the rung's own where it is left out),
        as picture ``at`` of the batch, and that is given back. Raises BadInput for a model that takes no
        single picture and for another kind of frame.
        """
        from edgekiln.runtime.pictures import fill

        slot = self._all.settled(rung)
        held = slot.buffers if into is None else into
        ((_, array),) = held.items() if len(held) == 1 else ((None, None),)
        if slot.preprocess is None or array is None:
            cure = "Give it the input arrays themselves"
            raise BadInput("preprocessing for", slot.id, "its model takes no single picture", cure)
        if not 0 <= at < len(array):
            raise BadInput(
                "preprocessing for", slot.id, f"it has no place {at}", f"Use 0 to {len(array) - 1}"
            )
        fill(slot.preprocess, frame, array[at])
        return held

    # ------------------------------------------------------------ opening and closing

    def use(self, rung: str) -> None:
        """Answer on ``rung`` from the next call on that names none, opened where it is not; nothing that is
        built later takes over by itself then. Raises as a call does."""
        slot = self._all.slot(rung)
        if slot.loaded is None:
            self._all.open(slot)
        self._all.default, self._all.fixed = slot, True

    def prepare(self, rung: str) -> None:
        """Open and warm ``rung`` now, so that its first call is not slow. Raises as a call does."""
        slot = self._all.slot(rung)
        if slot.loaded is None:
            self._all.open(slot)

    def release(self, rung: str) -> None:
        """Close the engine of ``rung`` after the call that runs, and those of rungs that share it. Its next
        call opens it again: so a hung or poisoned engine can be given up too."""
        with self._all.structure:
            slot = self._all.slot(rung)
            if slot.loaded is not None:
                self._all.drop(slot.loaded, wait_s=0.0)

    def close(self, wait_s: float = CLOSING_S) -> None:
        """Close every engine and remove the unpacked files; again is no error.

        A call that runs ends first. One that has not after ``wait_s`` is left alone: it frees its engine
        itself when it ends. Calls that come later raise BadInput.
        """
        if self._all.close(wait_s):
            self._cleanup.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
