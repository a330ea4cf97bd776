"""From the frames of one call to their answers, within what is left of each frame's deadline."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, DeadlineMissed, EdgekilnError, NoAnswer
from edgekiln.runtime.degrade import Chain
from edgekiln.runtime.hybrid.offload import Offloader
from edgekiln.runtime.hybrid.privacy import Raw, Sendable
from edgekiln.runtime.pictures import fill
from edgekiln.runtime.slots import Slot
from edgekiln.runtime.steering import Steering
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.vocabulary import Answer, Call, Candidate, EventKind, Setting

LEAST_MS = 1.0
"""Less than this is left of a deadline: the frame is let go, and no engine is asked in vain."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Why a frame has no answer. ``stale``: its deadline had passed before its turn came; ``kind`` is the
    reason in two words, without figures, so that it can be counted."""

    why: str
    kind: str = "too old"
    stale: bool = False


STALE = Missed("its deadline had passed before its turn", stale=True)


class Answering:
    """What a pump calls: ``frames`` and the setting in; an ``Answer`` or a ``Missed`` for each out.

    ``live`` says of a source whether its frames grow old while they wait. ``sendable`` makes of a frame what
    may leave the machine, at the size of ``sent``; it and ``offloader`` are None where nothing does.

    May be called from more threads than the engine has ``calls`` at once: then the next frames are prepared
    while it computes, and wait for their turn where their wait is not taken for the engine's time.
    """

    def __init__(
        self,
        chain: Chain,
        slots: Mapping[str, Slot],
        steering: Steering,
        deadline_ms: float,
        live: Mapping[str, bool],
        offloader: Offloader | None = None,
        sendable: Callable[[Frame, Slot], Sendable] | None = None,
        sent: Slot | None = None,
        calls: int = 1,
    ) -> None:
        self._chain, self._slots, self._steering = chain, slots, steering
        self._deadline_ms, self._live = deadline_ms, live
        self._offloader, self._sendable, self._sent = offloader, sendable, sent
        self._turns = threading.Semaphore(calls)
        self._lock, self._inside = threading.Lock(), 0

    @property
    def idle(self) -> bool:
        """Whether no frame is being answered."""
        return self._inside == 0

    def __call__(self, frames: Sequence[Frame], setting: Setting) -> Sequence[Answer | Missed]:
        with self._lock:
            self._inside += 1
        try:
            return self._each(frames, setting)
        finally:
            with self._lock:
                self._inside -= 1

    def _each(self, frames: Sequence[Frame], setting: Setting) -> Sequence[Answer | Missed]:
        began = time.monotonic()
        waited = [(began - f.at_s) * 1e3 if self._live.get(f.source, True) else 0.0 for f in frames]
        left = [self._deadline_ms - w for w in waited]
        fresh = [at for at, ms in enumerate(left) if ms > LEAST_MS]
        found: list[Answer | Missed] = [STALE] * len(frames)
        if fresh:
            chosen = [frames[at] for at in fresh]
            answers = self._answered(chosen, setting, min(left[at] for at in fresh), max(waited))
            for at, answer in zip(fresh, answers, strict=True):
                found[at] = answer
        return found

    def probe(self, frame: Frame, setting: Setting, limit_ms: float) -> None:
        """Time ``setting`` on a frame that was answered already, in idle time: its answer is of no use."""
        try:
            self._here([frame], setting, limit_ms, None)
        except EdgekilnError:
            return  # the chain told it as an event

    def _answered(
        self, frames: Sequence[Frame], setting: Setting, left_ms: float, waited_ms: float
    ) -> Sequence[Answer | Missed]:
        try:
            if self._offloader is not None and self._sendable is not None and len(frames) == 1:
                made = self._sendable
                slot = self._sent or self._slots[setting.rung]
                edge = lambda: self._here(frames, setting, left_ms, waited_ms)[0]  # noqa: E731
                return [self._hybrid(lambda: made(frames[0], slot), edge, left_ms, waited_ms)]
            return self._here(frames, setting, left_ms, waited_ms)
        except EdgekilnError as error:
            return [Missed(error.why, _kind(error))] * len(frames)

    def _hybrid(
        self, frame: Callable[[], Sendable], edge: Callable[[], Answer], left_ms: float, waited_ms: float
    ) -> Answer:
        assert self._offloader is not None
        kept: list[Answer] = []

        def here() -> Mapping[str, NDArray[Any]]:
            kept.append(edge())
            return kept[-1].outputs

        found = self._offloader.answer(frame, here, left_ms, health=self._steering.health)
        total = waited_ms + found.latency_ms
        late = total > self._deadline_ms
        rung = found.rung if found.place == "cloud" or not kept else kept[-1].rung
        return Answer(found.outputs, rung, found.place, total, late, found.hops)

    def _here(
        self, frames: Sequence[Frame], setting: Setting, left_ms: float, waited_ms: float | None
    ) -> Sequence[Answer]:
        """The answers of this machine. ``waited_ms`` is None for a probe, which tells of no overhead.

        Calls of the rung that was asked for are told to the steering, those that failed too. What a rung
        took that stood in for it is not: it had the time and the cores that the other one left.
        """
        began = time.monotonic()
        prepared: dict[tuple[int, ...], Arrays] = {}
        inside_ms = 0.0  # preparing for a rung that takes over, between one call and the next

        def inputs_for(candidate: Candidate) -> Arrays:
            nonlocal inside_ms
            at = time.monotonic()
            key = tuple(candidate.rung.size or ())
            if key not in prepared:
                prepared[key] = tensors(self._slots[candidate.rung.id], frames)
            inside_ms += (time.monotonic() - at) * 1e3
            return prepared[key]

        told: list[tuple[str, float, EventKind | None]] = []
        inputs_for(self._slots[setting.rung].candidate)
        inside_ms = 0.0
        with self._turn(began, left_ms):
            called = time.monotonic()
            aside_ms = (called - began) * 1e3
            given_ms = left_ms - aside_ms
            try:
                found = self._chain.answer(inputs_for, given_ms, setting.rung, lambda *one: told.append(one))
            finally:
                ended = time.monotonic()
                overhead_ms = None if waited_ms is None else waited_ms + aside_ms + inside_ms
                for call in calls_told(told, setting.rung, len(frames), ended, given_ms):
                    self._steering.called(call, overhead_ms, learned=call.rung == setting.rung)
        total = (ended - began) * 1e3 + (waited_ms or 0.0)
        late = total > self._deadline_ms
        return [
            Answer(outputs, found.rung, "edge", total, late, found.hops)
            for outputs in _parted(found.outputs, len(frames))
        ]

    @contextlib.contextmanager
    def _turn(self, began: float, left_ms: float) -> Iterator[None]:
        """The engine's turn. Raises DeadlineMissed where it does not come before the deadline."""
        until = began + left_ms / 1e3
        if not self._turns.acquire(timeout=max(0.0, until - time.monotonic())):
            why = "the engine was with earlier frames until the deadline"
            raise DeadlineMissed("answering on", "the engine", why, "Allow more time, or fewer streams")
        try:
            yield
        finally:
            self._turns.release()


def calls_told(
    asked: Sequence[tuple[str, float, EventKind | None]], rung: str, batch: int, at_s: float, given_ms: float
) -> Iterator[Call]:
    """What the candidates that were asked took, as calls that ended at ``at_s``.

    One that was cut off would have taken at least the ``given_ms`` that were left of the deadline. ``rung``,
    which was asked for, has failed where it was not asked: its engine is gone, or busy with a call that was
    cut off.
    """
    if asked and all(name != rung for name, _, _ in asked):
        yield Call(at_s=at_s, rung=rung, batch=batch, latency_ms=0.0, ok=False)
    for name, took_ms, fault in asked:
        ms = max(took_ms, given_ms) if fault == "timeout" else took_ms
        yield Call(at_s=at_s, rung=name, batch=batch, latency_ms=ms, ok=fault in (None, "timeout"))


def tensors(slot: Slot, frames: Sequence[Frame]) -> Arrays:
    """The input of one call for ``frames``, at the slot's size, in memory of its own.

    Raises BadInput for a model that takes no pictures, or not so many at once.
    """
    spec, (port, *others) = slot.preprocess, slot.ports
    if spec is None or others:
        cure = "Run it from Python: edgekiln.runtime.session.open_session"
        raise BadInput("preprocessing for", slot.id, "its model takes no single picture", cure)
    shape = (len(frames), *(n for n in port.shape[1:] if isinstance(n, int)))
    if len(shape) != len(port.shape) or not port.takes(shape):
        why = f"it takes {'x'.join(map(str, port.shape))}, not {len(frames)} frames a call"
        raise BadInput("preprocessing for", slot.id, why, "Give --most-batch 1")
    array = np.empty(shape, port.dtype)
    for at, frame in enumerate(frames):
        fill(spec, frame.pixels, array[at])
    return {port.name: array}


def _kind(error: EdgekilnError) -> str:
    kinds = {DeadlineMissed: "no answer in time", NoAnswer: "no engine could", BadInput: "bad input"}
    return kinds.get(type(error), "error")


def as_tensors(frame: Frame, slot: Slot) -> Sendable:
    """What leaves under the rule ``raw``: the input tensor of the rung."""
    return Raw(tensors(slot, [frame]))


def _parted(outputs: Mapping[str, NDArray[Any]], n: int) -> list[Mapping[str, NDArray[Any]]]:
    """One frame's outputs each: a row of every output, with a batch axis of 1."""
    if n == 1:
        return [outputs]
    return [{name: array[at : at + 1] for name, array in outputs.items()} for at in range(n)]
