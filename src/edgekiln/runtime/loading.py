"""The engines of a session: which rung is open, being built or refused, within a bound of memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekiln.engines import build_command, open_engine
from edgekiln.errors import BadInput, EdgekilnError, MachineFault, NotRunnableHere, did_you_mean
from edgekiln.records import Scalar
from edgekiln.runtime.building import Building
from edgekiln.runtime.candidates import Unusable, nothing_runs, stand_in
from edgekiln.runtime.loaded import Loaded, Warmth, resident_bytes, warm
from edgekiln.runtime.slots import Slot
from edgekiln.runtime.vocabulary import Candidate, Event, EventKind

CLOSING_S = 10.0
MOST_SAID = 300
BUILT = frozenset(("tensorrt",))
"""Engines that may have to be built on the first start."""


class Loading:
    """The slots of a session and what is loaded for them. ``default`` answers where a call names no rung.

    Whatever opens, closes or builds holds ``structure``; a call of an open rung does without it. ``fixed``:
    somebody chose ``default``, so that nothing takes over by itself.
    """

    def __init__(
        self,
        bundle: Path,
        slots: dict[str, Slot],
        unusable: Sequence[Unusable],
        *,
        emulated: bool,
        memory_bytes: int | None,
        warm_s: float,
        on_event: Callable[[Event], None] | None,
        now: Callable[[], float],
    ) -> None:
        self.bundle, self.slots = bundle, slots
        self.unusable = list(unusable)
        self.emulated = emulated
        self._most_bytes, self._warm_s = memory_bytes, warm_s
        self._on_event, self.now = on_event, now
        self.default: Slot | None = None
        self.fixed = self.closed = False
        self.structure = threading.RLock()
        self._turn = threading.Lock()  # builds follow one another: each may want all the memory there is
        self.uses = 0

    def start(self, every: bool) -> None:
        """Open the first rung that answers, in the bundle's order, and start what has to be built before."""
        for slot in self.slots.values():
            if every or self.default is None or slot.candidate.engine in BUILT:
                # What fails is a row of ``unusable`` by then.
                with contextlib.suppress(EdgekilnError), self.structure:
                    if not self._building(slot) and (every or self.default is None):
                        self.open(slot)
                        self.default = self.default or slot
        if self.default is None:
            self._bridge()
        if self.default is None:
            raise nothing_runs(self.bundle, self.unusable)

    def _building(self, slot: Slot) -> bool:
        """Whether the slot's engine has to be built first; that has begun then. Raises where it can't be."""
        one = slot.candidate
        try:
            command = build_command(one.engine, one.artifact, Path(one.folder), _size(one))
        except EdgekilnError as error:
            self._refuse(slot, error)
            raise
        if command is None:
            return False
        slot.building = Building(command, lambda why: self._built(slot, why), self._turn)
        done = "another rung answers until it is ready"
        self.tell("fallback", slot.id, f"its {one.engine} engine has to be built first", done)
        return True

    def _bridge(self) -> None:
        """Nothing answers but what is being built: its proof engine does meanwhile, else wait for it."""
        for slot in [s for s in self.slots.values() if s.building is not None]:
            with self.structure:
                other = stand_in(slot.own, "its own engine is being built") if self.emulated else None
                if other is not None and slot.building is not None:
                    slot.candidate = other
                    with contextlib.suppress(EdgekilnError):
                        self._load(slot)
                        self.default = slot
                        return
                    slot.candidate = slot.own
        for slot in list(self.slots.values()):
            building = slot.building
            if self.default is None and building is not None:
                building.wait()

    def _built(self, slot: Slot, why: str) -> None:
        """The build of the slot's engine has ended, or failed for ``why``: open it, let it take over."""
        with self.structure:
            slot.building = None
            if self.closed:
                return
            bridge, other = slot.loaded, slot.candidate  # which goes on answering while the other loads
            slot.candidate = slot.own
            try:
                if why:
                    cure = "The log of its builder says more: edgekiln.engines.build_engine"
                    raise NotRunnableHere("building the engine of", slot.id, why, cure)
                self._load(slot)
            except EdgekilnError as error:
                if bridge is None:
                    self._refuse(slot, error)
                else:
                    slot.candidate = other
                    self.tell("refused", slot.id, error.why, f"{other.engine} goes on standing in")
                return
            order = list(self.slots.values())
            first = self.default is None or order.index(slot) <= order.index(self.default)
            if first and not self.fixed:
                self.default = slot
            self.tell("change", slot.id, "its engine is built", "it takes over" if first else "it is ready")
            if bridge is not None:
                bridge.retire(CLOSING_S)

    def open(self, slot: Slot) -> Loaded:
        """The slot's engine, loaded and warmed where it is not."""
        with self.structure:
            if self.closed:
                raise BadInput("running", slot.id, "the session is closed", "Open the bundle again")
            if slot.loaded is not None:
                return slot.loaded
            if slot.refused is not None:
                raise NotRunnableHere("opening", slot.id, slot.refused.why, slot.refused.cure)
            if slot.building is not None:
                cure = "Call another rung (Session.ladder) until it is ready"
                raise NotRunnableHere("opening", slot.id, "its engine is being built", cure)
            try:
                return self._load(slot)
            except EdgekilnError as error:
                other = stand_in(slot.candidate, error.why) if self.emulated else None
                if other is None:
                    self._refuse(slot, error)
                    raise
                self.tell("refused", slot.id, error.why, f"{other.engine} stands in")
                slot.candidate = other
                return self.open(slot)

    def _load(self, slot: Slot) -> Loaded:
        """Load and warm the slot's file, or share it with a rung that has it; within the bound of memory."""
        loaded = next((one for one in self.loaded() if one.file == slot.file), None)
        fresh, before, started = loaded is None, resident_bytes(), self.now()
        if loaded is None:
            self._make_room(slot.known_bytes, slot)
            loaded = _loaded(slot)
        try:
            slot.settle(loaded.takes)
            warmth = _warmed(slot, loaded, self._warm_s)
            if fresh:
                loaded.memory_bytes = max(resident_bytes() - before, slot.candidate.artifact.size_bytes)
                slot.known_bytes = loaded.memory_bytes
                self._make_room(loaded.memory_bytes, slot, exact=True)
        except EdgekilnError:
            if fresh:
                loaded.retire(CLOSING_S)
            raise
        self.uses += 1
        loaded.used, slot.loaded = self.uses, loaded
        facts: dict[str, Scalar] = {
            "engine": slot.candidate.engine,
            "took_s": self.now() - started,
            "memory_bytes": loaded.memory_bytes,
            "warm_calls": warmth.calls,
            "steady": warmth.steady,
            "in_place": loaded.in_place,
        }
        self.tell("opened", slot.id, slot.candidate.note, facts=facts)
        return loaded

    def _make_room(self, needed_bytes: int, slot: Slot, exact: bool = False) -> None:
        """Close engines, the one used longest ago first and the one in use last, until ``needed_bytes`` fit.

        Raises MachineFault where they do not even then and are ``exact``, which an estimate is not.
        """
        if self._most_bytes is None:
            return
        used = None if self.default is None else self.default.loaded
        for old in sorted(self.loaded(), key=lambda one: (one is used, one.used)):
            if self.memory_bytes + needed_bytes <= self._most_bytes:
                return
            names = ", ".join(s.id for s in self.slots.values() if s.loaded is old)
            self.drop(old, CLOSING_S)
            self.tell("memory", names, f"{slot.id} needs {needed_bytes / 1e6:.1f} MB", "its engine is closed")
        if exact and needed_bytes > self._most_bytes:
            why = (
                f"it takes {needed_bytes / 1e6:.1f} MB, the session may hold {self._most_bytes / 1e6:.1f} MB"
            )
            raise MachineFault("opening", slot.id, why, "Raise memory_bytes, or use a smaller artifact")

    def close(self, wait_s: float) -> bool:
        """Stop what is built and close every engine; False where they were closed before."""
        with self.structure:
            if self.closed:
                return False
            self.closed = True
            builds = [s.building for s in self.slots.values() if s.building is not None]
        for build in builds:  # outside of the lock, which the end of a build takes
            build.stop()
        with self.structure:
            end = time.monotonic() + wait_s
            for loaded in self.loaded():
                self.drop(loaded, max(0.0, end - time.monotonic()))
            self.default = None
        self.tell("closed", self.bundle.name)
        return True

    def _refuse(self, slot: Slot, error: EdgekilnError) -> None:
        rung = slot.candidate.rung
        slot.refused = Unusable(
            artifact_id=rung.artifact_id,
            engine=slot.candidate.engine,
            why=error.why,
            cure=error.cure,
            size=_size(slot.candidate),
        )
        self.unusable.append(slot.refused)
        self.tell("refused", slot.id, error.why, "it is left out")

    @property
    def memory_bytes(self) -> int:
        """What the engines took when they were opened and warmed, together."""
        return sum(loaded.memory_bytes for loaded in self.loaded())

    def loaded(self) -> list[Loaded]:
        """Every engine that is in memory, once."""
        return list(dict.fromkeys(s.loaded for s in self.slots.values() if s.loaded is not None))

    def drop(self, loaded: Loaded, wait_s: float) -> None:
        """Close ``loaded`` for all rungs that share it, now or when its call has ended."""
        names = [s.id for s in self.slots.values() if s.loaded is loaded]
        for name in names:
            self.slots[name].loaded = None
        loaded.retire(wait_s)
        if loaded.fault:
            self.tell("crashed", ", ".join(names), f"closing its engine fails: {loaded.fault}")

    def slot(self, rung: str | None) -> Slot:
        """The slot of ``rung``, or the one in use. Raises BadInput for a rung that the bundle has not."""
        slot = self.default if rung is None else self.slots.get(rung)
        if slot is not None:
            return slot
        if self.closed or rung is None:
            raise BadInput("running", self.bundle, "the session is closed", "Open the bundle again")
        row = next((u for u in self.unusable if u.artifact_id == rung), None)
        if row is not None:
            raise NotRunnableHere("running", rung, row.why, row.cure)
        raise BadInput("running", rung, "no rung bears that name", did_you_mean(rung, self.slots))

    def settled(self, rung: str | None) -> Slot:
        """The same, after it was open once: only then all of its axes are known."""
        slot = self.slot(rung)
        if not slot.settled:
            self.open(slot)
        return slot

    def tell(
        self,
        kind: EventKind,
        what: str,
        why: str = "",
        done: str = "",
        facts: dict[str, Scalar] | None = None,
    ) -> None:
        if self._on_event is not None:
            self._on_event(
                Event(at_s=self.now(), kind=kind, what=what, why=why, done=done, facts=facts or {})
            )


def _size(one: Candidate) -> tuple[int, int] | None:
    """The size to open the artifact at: None where it has but one."""
    return one.rung.size if one.artifact.resolutions else None


def _loaded(slot: Slot) -> Loaded:
    """The slot's file in its engine. Whatever a runtime says to it becomes NotRunnableHere."""
    one = slot.candidate
    try:
        runner = open_engine(one.engine, one.artifact, Path(one.folder), one.threads, _size(one))
        return Loaded(runner, slot.file)
    except EdgekilnError:
        raise
    except Exception as error:
        why = f"{one.engine} fails: {_sentence(error)}"
        raise NotRunnableHere("opening", slot.id, why, "Use another artifact, or another version") from error


def _warmed(slot: Slot, loaded: Loaded, most_s: float) -> Warmth:
    """Calls with zeros until they are alike."""

    def call() -> None:
        with loaded.lock:
            if loaded.runner is not None:
                loaded.runner(slot.buffers)

    try:
        return warm(call, most_s)
    except EdgekilnError:
        raise
    except Exception as error:
        why = f"its first call fails: {_sentence(error)}"
        raise NotRunnableHere("warming up", slot.id, why, "Use another artifact") from error


def engine_fault(slot: Slot, error: Exception) -> MachineFault:
    """What an engine raised in a call, as an error that names the rung."""
    why = "no memory is left" if isinstance(error, MemoryError) else _sentence(error)
    cure = "Another rung of the bundle may do; free memory, or open the session anew"
    return MachineFault(f"running with {slot.candidate.engine}", slot.id, why, cure)


def _sentence(error: Exception) -> str:
    """What a runtime said, in one line of bounded length."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(filter(None, lines))[:MOST_SAID] or type(error).__name__
