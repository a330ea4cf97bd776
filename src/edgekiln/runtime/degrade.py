"""Graceful degradation: what a candidate can't answer, the next one answers within the same deadline.

Engines are opened, watched and opened anew in the background, never in a caller's time. Which candidate is
asked, for how long, and when a failed one is tried again is decided in ``runtime.standing``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner, open_engine
from edgekiln.errors import BadInput, DeadlineMissed, NoAnswer
from edgekiln.records import Scalar, TensorSpec
from edgekiln.runtime import standing as rule
from edgekiln.runtime.faults import GONE, Fault, fault_of, misfit, not_finite
from edgekiln.runtime.isolated import Isolated
from edgekiln.runtime.posts import Post, Seating, key_of, posts_of
from edgekiln.runtime.standing import RULES, Rules, Standing
from edgekiln.runtime.vocabulary import Answer, Candidate, Event, EventKind
from edgekiln.runtime.watchdog import Seat, Threaded

Isolate: TypeAlias = Literal["never", "after-hang", "always"]
_TICK_S = 0.25
_BACK_S = 1.0


def open_candidate(candidate: Candidate) -> Runner:
    """The candidate's engine inside this process."""
    return open_engine(
        candidate.engine, candidate.artifact, Path(candidate.folder), candidate.threads, candidate.rung.size
    )


class Chain:
    """The candidates of a bundle, in its order, as one that answers as long as any of them can.

    ``open`` makes an engine in this process, ``open_apart`` in one of its own; ``isolate`` says which are
    apart: an in-process engine that hung is replaced by an isolated one, unless ``never``. ``outputs`` is the
    model's signature, which answers must keep. ``warm`` gives an example input for the first calls of an
    engine that was just opened; from them a standby's latency is known before it is needed.

    With ``direct`` an engine in this process runs on its caller's thread: quicker by a change of threads, but
    then nothing can bring that caller back in time from an engine that hangs. ``tell`` is handed every event,
    on whatever thread it happened. ``clock`` is monotonic; where it goes back all the same, its step is
    taken out. ``tending=False`` leaves the background work to whoever calls ``tend``.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        open: Callable[[Candidate], Runner] = open_candidate,
        open_apart: Callable[[Candidate], Runner] = Isolated,
        isolate: Isolate = "after-hang",
        outputs: Sequence[TensorSpec] = (),
        warm: Callable[[Candidate], Arrays] | None = None,
        rules: Rules = RULES,
        tell: Callable[[Event], None] = lambda event: None,
        seed: str = "",
        direct: bool = False,
        clock: Callable[[], float] = time.monotonic,
        seating: Seating | None = None,
        tending: bool = True,
    ) -> None:
        if not candidates:
            raise BadInput("opening", "the chain", "there is no candidate", "Give a bundle that runs here")
        self._candidates = {c.rung.id: c for c in candidates}
        self._names = tuple(self._candidates)
        self._isolate, self._outputs, self._rules = isolate, tuple(outputs), rules
        self._tell, self._seed, self._clock = tell, seed, clock
        self._last_s, self._shift_s = clock(), 0.0
        self._lock = threading.Condition()
        self._standings = {name: Standing() for name in self._names}
        self._needs = {name: self._need(name) for name in self._names}
        self._orders: dict[str | None, list[str]] = {}
        self._orders_until_s = -1.0
        self._serving: dict[str | None, str] = {}
        self._untold: list[Event] = []
        self._closed = False
        self._posts = posts_of(
            candidates,
            open=open,
            open_apart=open_apart,
            apart=isolate == "always",
            warm=warm,
            seating=seating or self._seat(direct),
        )
        self._post = {c.rung.id: self._posts[key_of(c)] for c in candidates}
        self._nudge = threading.Event()
        self.tend()
        self._tender = threading.Thread(target=self._keep_tending, daemon=True, name="edgekiln-watchdog")
        if tending:
            self._tender.start()

    # ------------------------------------------------------------ the caller's side

    def answer(
        self, inputs_for: Callable[[Candidate], Arrays], deadline_ms: float, rung: str | None = None
    ) -> Answer:
        """The first sound answer: of ``rung`` where one is named, else of the first candidate, else of those
        behind it. ``inputs_for`` gives a candidate's input tensors; what it raises passes through.

        Raises DeadlineMissed or NoAnswer, ``deadline_ms`` milliseconds from now at the latest; BadInput for
        a rung that nobody knows or an input that holds a NaN itself.
        """
        if rung is not None and rung not in self._candidates:
            raise BadInput(
                "answering on", rung, "no candidate has this name", f"Known: {', '.join(self._names)}"
            )
        began = self._now()
        until = began + deadline_ms / 1e3
        hops: list[str] = []
        faults: dict[str, Fault] = {}
        try:
            while (turn := self._next(rung, hops, until)) is not None:
                name, seat, by_s = turn
                candidate = self._candidates[name]
                inputs = inputs_for(candidate)
                asked = self._now()
                found = self._ask(candidate, seat, inputs, by_s - asked)
                now = self._now()
                if not isinstance(found, Fault):
                    self._answered(name, rung, now, (now - asked) * 1e3, faults)
                    total = (now - began) * 1e3
                    return Answer(found, name, "edge", total, now > until, tuple(hops))
                if found.kind == "not-finite" and (bad := not_finite(inputs)):
                    why = f"the input '{bad}' holds NaN or infinity"
                    raise BadInput("answering on", name, why, "Give an input without them")
                hops.append(name)
                faults[name] = found
                self._failed(name, seat, found, now, (now - asked) * 1e3)
            raise self._no_answer(faults, deadline_ms, until)
        finally:
            if self._untold:
                self._tell_all()

    def _ask(
        self, candidate: Candidate, seat: Seat, inputs: Arrays, limit_s: float
    ) -> dict[str, NDArray[Any]] | Fault:
        try:
            outputs = seat.call(inputs, limit_s)
        except Exception as error:
            return fault_of(error)
        if self._outputs:
            sized = bool(candidate.artifact.resolutions)
            if why := misfit(outputs, self._outputs, sized=sized):
                return Fault(kind="refused", why=why)
        if (bad := not_finite(outputs)) is not None:
            return Fault(kind="not-finite", why=f"the output '{bad}' holds NaN or infinity")
        return outputs

    def _next(self, rung: str | None, hops: Sequence[str], until: float) -> tuple[str, Seat, float] | None:
        """Who is asked next, and until when it may compute. Waits for an engine that is being opened where
        no other is there; None where nobody can be asked in time."""
        with self._lock:
            while True:
                now = self._now()
                left = (until - now) * 1e3
                if left <= 0 or self._closed:
                    return None
                wanted = rung or self._names[0]
                self._post[wanted].wanted = True
                ready = [
                    (name, self._needs[name])
                    for name in self._order(rung, now)
                    if name not in hops
                    and (seat := self._post[name].seat) is not None
                    and seat.ready
                    and not seat.stuck
                ]
                if ready:
                    return self._picked(ready, left, now, first=not hops and ready[0][0] == wanted)
                opening = any(p.opening and not hops for p in self._posts.values())
                if not opening or not self._tender.is_alive():
                    return None
                self._lock.wait(left / 1e3)

    def _picked(
        self, ready: list[tuple[str, float | None]], left: float, now: float, *, first: bool
    ) -> tuple[str, Seat, float]:
        unknown = self._rules.reserve * left
        needs = [(name, unknown if need is None else need) for name, need in ready]
        index = rule.pick(needs, left, first=first)
        for name, _ in needs[:index]:
            self._set(name, rule.passed_over(self._standings[name]))
        name, need = needs[index]
        others = [n for i, (_, n) in enumerate(needs) if i != index]
        limit = rule.limit_ms(left, need, others)
        seat = self._post[name].seat
        assert seat is not None
        return name, seat, now + limit / 1e3

    def _answered(
        self, name: str, rung: str | None, now: float, latency_ms: float, faults: Mapping[str, Fault]
    ) -> None:
        with self._lock:
            before = self._standings[name]
            self._set(name, rule.answered(before, now, latency_ms, self._rules))
            if before.failures:
                self._orders.clear()
                self._note(now, "recovered", name, f"it answered after {before.failures} failures")
            post = self._post[name]
            if post.standing.failures:
                post.standing = rule.answered(post.standing, now, latency_ms, self._rules)
            for other, fault in faults.items():
                if fault.kind == "refused":  # not the frame's fault: another took it
                    self._fall(other, fault, now)
            serving = self._serving.get(rung)
            if serving != name:
                self._serving[rung] = name
                self._changed_over(serving, name, rung, now, faults)

    def _changed_over(
        self, before: str | None, name: str, rung: str | None, now: float, faults: Mapping[str, Fault]
    ) -> None:
        wanted = rung or self._names[0]
        if name == wanted:
            if before is not None:
                self._note(
                    now, "recovered", name, "it is well again", f"it answers again, no longer {before}"
                )
            return
        fault = faults.get(wanted)
        why = fault.why if fault else "it is not open or rests after a failure"
        self._note(now, "fallback", wanted, why, f"{name} answers in its place")

    def _failed(self, name: str, seat: Seat, fault: Fault, now: float, took_ms: float) -> None:
        with self._lock:
            if fault.kind == "timeout":
                self._set(name, rule.timed(self._standings[name], took_ms))
            if fault.kind not in {"refused", "closed"}:
                self._fall(name, fault, now)
            post = self._post[name]
            if fault.kind in GONE and post.seat is seat:
                self._vacate(post, now, fault)
                self._nudge.set()

    def _fall(self, name: str, fault: Fault, now: float) -> None:
        before = self._standings[name]
        after = rule.failed(before, now, f"{self._seed}/{name}", self._rules)
        self._set(name, after)
        self._orders.clear()
        done = f"not asked for {after.until_s - now:.2f} s where another can be"
        if after.demotions > before.demotions:
            done = f"it keeps failing: behind the others for {after.demoted_until_s - now:.0f} s"
        self._note(now, fault.kind, name, fault.why, done, failures=after.failures)

    def _no_answer(
        self, faults: Mapping[str, Fault], deadline_ms: float, until: float
    ) -> DeadlineMissed | NoAnswer:
        reasons = [f"{name}: {fault.why}" for name, fault in faults.items()]
        with self._lock:
            silent = {p.name: p.why for p in self._posts.values() if p.seat is None and p.why}
        reasons += [f"{name}: {why}" for name, why in silent.items() if name not in faults]
        why = "; ".join(reasons) or "no engine is open yet"
        if self._now() >= until or any(f.kind == "timeout" for f in faults.values()):
            why = f"nothing answered within {deadline_ms:g} ms ({why})"
            return DeadlineMissed("answering on", self._names[0], why, "Allow more time, or a smaller rung")
        cure = "The engines are opened again in the background; see the events for what to repair"
        return NoAnswer("answering on", self._names[0], why, cure)

    # ------------------------------------------------------------ the watchdog's side

    def tend(self) -> float:
        """One round of the background work; seconds until the next. Notices engines that were opened, refused
        or died, calls that hang and files that changed; opens what is due."""
        with self._lock:
            if self._closed:
                return _TICK_S
            now = self._now()
            for post in self._posts.values():
                self._look_at(post, now)
            self._open_due(now)
            waits = [p.standing.until_s - now for p in self._posts.values() if p.seat is None]
        self._tell_all()
        return max(0.01, min([_TICK_S, *(w for w in waits if w > 0)]))

    def _look_at(self, post: Post, now: float) -> None:
        seat, rules = post.seat, self._rules
        if seat is None:
            return
        if seat.broken is not None:
            fault = fault_of(seat.broken)
            self._vacate(post, now, fault)
            rest = post.standing.until_s - now
            self._note(now, fault.kind, post.name, fault.why, f"opened again in {rest:.2f} s")
            return
        if post.opening and seat.ready:
            post.opening = False
            post.next_look_s = now + rules.files_every_s
            self._learn(post)
            self._note(now, "opened", post.name, "", "in a process of its own" if post.apart else "")
        busy_s = 0.0 if seat.since_s is None else now - seat.since_s
        if busy_s > (rules.open_s if post.opening else rules.hung_ms / 1e3):
            what = "opening it" if post.opening else "its call"
            self._hung(post, now, f"{what} has taken {busy_s:.1f} s")
        elif not seat.alive:
            self._lose(post, now, Fault(kind="crashed", why="its process ended while it was idle"))
        elif not post.opening and now >= post.next_look_s:
            post.next_look_s = now + rules.files_every_s
            self._look_at_files(post, now)

    def _hung(self, post: Post, now: float, why: str) -> None:
        done = "its process was killed and is started again"
        if not post.apart:
            done = "its thread is abandoned"
            if self._isolate == "after-hang":
                post.apart = True
                done += "; a process of its own takes its place"
        self._vacate(post, now, Fault(kind="hung", why=why))
        self._note(now, "hung", post.name, why, done)

    def _lose(self, post: Post, now: float, fault: Fault) -> None:
        self._vacate(post, now, fault)
        rest = post.standing.until_s - now
        self._note(now, fault.kind, post.name, fault.why, f"opened again in {rest:.2f} s")

    def _look_at_files(self, post: Post, now: float) -> None:
        damage = post.damage()
        if damage is None:
            return
        where, why = damage
        if where == "in-place":  # the engine may have the file mapped: its numbers are no longer the model's
            self._lose(post, now, Fault(kind="corrupt", why=why))
        else:
            done = "the open engine holds the old file and goes on; it can't be opened again"
            self._note(now, "corrupt", post.name, why, done)

    def _open_due(self, now: float) -> None:
        """Open the best engines, ``standby`` of them beyond the first that is well, and those asked for."""
        needed = 1 + self._rules.standby
        for post in self._posts.values():
            due = post.seat is None and (needed > 0 or post.wanted) and now >= post.standing.until_s
            if due:
                post.open(self._ready_or_broken)
            if post.seat is not None and not post.standing.failures:
                needed -= 1

    def _vacate(self, post: Post, now: float, fault: Fault) -> None:
        seat, post.seat, post.opening, post.why = post.seat, None, False, fault.why
        post.standing = rule.failed(post.standing, now, f"{self._seed}//{post.name}", self._rules)
        if seat is not None:
            seat.close()

    def _learn(self, post: Post) -> None:
        """Take the warm-up's latency for what the engine's candidates need, where nothing is known of them."""
        name = post.candidate.rung.id
        if post.warm_ms is not None and self._standings[name].mean_ms is None:
            self._set(name, rule.timed(self._standings[name], post.warm_ms))

    def _ready_or_broken(self) -> None:
        self._nudge.set()
        with self._lock:
            self._lock.notify_all()

    def _keep_tending(self) -> None:
        while not self._closed:
            self._nudge.wait(self.tend())
            self._nudge.clear()

    def close(self) -> None:
        """Close every engine, without waiting for those that hang. Safe to call twice."""
        with self._lock:
            self._closed = True
            for post in self._posts.values():
                seat, post.seat = post.seat, None
                if seat is not None:
                    seat.close()
            self._lock.notify_all()
        self._nudge.set()
        if self._tender.is_alive():
            self._tender.join()
        self._tell_all()

    # ------------------------------------------------------------ small things

    def _seat(self, direct: bool) -> Seating:
        def seating(open: Callable[[], Runner], changed: Callable[[], None], apart: bool) -> Seat:
            return Threaded(open, changed, direct=direct and not apart, clock=self._now)

        return seating

    def _now(self) -> float:
        """Seconds that never go back."""
        now = self._clock() + self._shift_s
        if now >= self._last_s:
            self._last_s = now
        elif now < self._last_s - _BACK_S:  # less is two threads in a race
            self._shift_s += self._last_s - now
            self._note(self._last_s, "clock", "the clock", f"it went back by {self._last_s - now:.1f} s")
        return self._last_s

    def _set(self, name: str, standing: Standing) -> None:
        self._standings[name] = standing
        self._needs[name] = self._need(name)

    def _need(self, name: str) -> float | None:
        return rule.need_ms(self._standings[name], self._candidates[name].rung.expected_ms)

    def _order(self, rung: str | None, now: float) -> list[str]:
        """``rule.order``, remembered until a failure, a success after one, or the end of a rest."""
        if now >= self._orders_until_s:
            self._orders.clear()
        if (known := self._orders.get(rung)) is not None:
            return known
        if not self._orders:
            ends = [t for s in self._standings.values() for t in (s.until_s, s.demoted_until_s) if t > now]
            self._orders_until_s = min(ends, default=float("inf"))
        self._orders[rung] = rule.order(self._names, self._standings, rung, now)
        return self._orders[rung]

    def _note(
        self, now: float, kind: EventKind, what: str, why: str, done: str = "", **facts: Scalar
    ) -> None:
        self._untold.append(Event(at_s=now, kind=kind, what=what, why=why, done=done, facts=facts))

    def _tell_all(self) -> None:
        while self._untold:
            with contextlib.suppress(IndexError):
                event = self._untold.pop(0)
                self._tell(event)
