"""The engines behind a chain's candidates: how each is opened, and what is known of its files.

Rungs of one flexible artifact share an engine; everything else has its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from edgekiln.engines import Arrays, Runner
from edgekiln.errors import Corrupt
from edgekiln.records import Record
from edgekiln.runtime.faults import Stamp, check_files, stamps
from edgekiln.runtime.seat import Seat
from edgekiln.runtime.standing import Standing
from edgekiln.runtime.vocabulary import Candidate

Seating: TypeAlias = Callable[[Callable[[], Runner], Callable[[], None], bool], Seat]
"""From how to open an engine, whom to tell when it is open, and whether it is a process of its own."""
Key: TypeAlias = tuple[str, str, tuple[int, int] | None]
_WARM_CALLS = 2


class Damage(Record, frozen=True, kw_only=True):
    """``in_place``: the very file that the engine opened has other content; else another lies in its place,
    or none."""

    in_place: bool
    why: str


@dataclass(slots=True)
class Post:
    """One engine's place. ``seat`` is None while it is closed, ``why`` the last reason for that.

    ``opening`` lasts from ``open`` until the watchdog saw it ready or broken; ``wanted`` says that a caller
    asked for one of its rungs by name.
    """

    candidate: Candidate
    how: Callable[[Candidate], Runner]
    how_apart: Callable[[Candidate], Runner]
    warm: Callable[[Candidate], Arrays] | None
    seating: Seating
    apart: bool
    seat: Seat | None = None
    opening: bool = False
    wanted: bool = False
    why: str = ""
    standing: Standing = field(default_factory=Standing)
    warm_ms: float | None = None
    next_look_s: float = 0.0
    files: tuple[Stamp, ...] = ()
    noted: tuple[Stamp, ...] | None = None

    @property
    def name(self) -> str:
        return self.candidate.rung.id

    def open(self, changed: Callable[[], None]) -> None:
        """Begin to open the engine; ``changed`` is called when that ended, well or not."""
        self.opening = True
        self.seat = self.seating(self._opened, changed, self.apart)

    def _opened(self) -> Runner:
        """The engine, after its files were hashed anew and before any call. Raises Corrupt, and what the
        engine raises."""
        files = check_files(self.candidate)
        runner = (self.how_apart if self.apart else self.how)(self.candidate)
        try:
            if stamps(self.candidate) != files:  # damaged between the hash and the engine's own reading
                files = check_files(self.candidate)
            self.files, self.noted = files, None
            if self.warm is not None:
                inputs = self.warm(self.candidate)
                for _ in range(_WARM_CALLS * getattr(runner, "calls", 1)):
                    began = time.perf_counter()
                    runner(inputs)
                    self.warm_ms = (time.perf_counter() - began) * 1e3
        except BaseException:
            runner.close()
            raise
        return runner

    def damage(self) -> Damage | None:
        """What became of the files since they were opened, told once; None where they are as they were."""
        now = stamps(self.candidate)
        if now in (self.files, self.noted):
            return None
        self.noted = now
        try:
            self.files = check_files(self.candidate)  # touched, or replaced by its like
        except Corrupt as error:
            same = any(
                a is not None and b is not None and a != b and a[:2] == b[:2]
                for a, b in zip(self.files, now, strict=True)
            )
            return Damage(in_place=same, why=error.why)
        return None


def posts_of(
    candidates: Sequence[Candidate],
    *,
    open: Callable[[Candidate], Runner],
    open_apart: Callable[[Candidate], Runner],
    apart: bool,
    warm: Callable[[Candidate], Arrays] | None,
    seating: Seating,
) -> dict[Key, Post]:
    """A post per engine, in the order in which the candidates name them."""
    posts: dict[Key, Post] = {}
    for candidate in candidates:
        if key_of(candidate) not in posts:
            posts[key_of(candidate)] = Post(candidate, open, open_apart, warm, seating, apart)
    return posts


def key_of(candidate: Candidate) -> Key:
    """What candidates that share an engine have in common."""
    artifact = candidate.artifact
    own = artifact.resolutions and not artifact.flexible
    return artifact.id, candidate.engine, candidate.rung.size if own else None
