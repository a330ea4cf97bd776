"""Graceful degradation: what a candidate can't answer, the next one answers within the same deadline.

Engines are opened, watched and opened anew in the background, never in a caller's time. Which candidate is
asked, for how long, and when a failed one is tried again is decided in ``runtime.standing``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from edgekiln.engines import Arrays, Runner, open_concurrent, open_engine
from edgekiln.errors import BadInput, DeadlineMissed, NoAnswer, NotRunnableHere
from edgekiln.records import TensorSpec
from edgekiln.runtime import standing as rule
from edgekiln.runtime.faults import GONE, Fault, fault_of, misfit, not_finite
from edgekiln.runtime.isolated import Isolated
from edgekiln.runtime.journal import Journal
from edgekiln.runtime.posts import Post, Seating, key_of, posts_of
from edgekiln.runtime.seat import Seat, Threaded
from edgekiln.runtime.seats import Several
from edgekiln.runtime.standing import RULES, Rules, Standing
from edgekiln.runtime.streams.execute import Concurrent
from edgekiln.runtime.vocabulary import Answer, Candidate, Event, EventKind
from edgekiln.runtime.watchdog import Isolate, Watchdog

Asked: TypeAlias = Callable[[str, float, EventKind | None], None]
"""Told of each candidate that was asked: its rung, how many milliseconds that took, and its fault if any."""


def open_candidate(candidate: Candidate, calls: int = 1) -> Runner:
    """The candidate's engine inside this process; for several ``calls`` at once where it offers that, else
    they take turns."""
    one, where = candidate, Path(candidate.folder)
    if calls > 1:
        try:
            return Concurrent(
                open_concurrent(one.engine, one.artifact, where, one.threads, calls, one.rung.size)
            )
        except NotRunnableHere:
            return Concurrent([open_engine(one.engine, one.artifact, where, one.threads, one.rung.size)])
    return open_engine(one.engine, one.artifact, where, one.threads, one.rung.size)


def _nobody(rung: str, took_ms: float, fault: EventKind | None) -> None:
    """Where no caller wants to know."""


class Chain:
    """The candidates of a bundle, in its order, as one that answers as long as any of them can.

    ``open`` makes an engine in this process, ``open_apart`` in one of its own; ``isolate`` says which are
    apart: an in-process engine that hung is replaced by an isolated one, unless ``never``. ``outputs`` is the
    model's signature, which answers must keep. ``warm`` gives an example input for the first calls of an
    engine that was just opened; from them a standby's latency is known before it is needed.

    With ``direct`` an engine in this process runs on its caller's thread: quicker by a change of threads, but
    then nothing can bring that caller back in time from an engine that hangs. ``calls`` of an engine inside
    this process may run at once: ``open`` has to give a runner for so many. ``tell`` is handed every event
    on the watchdog's thread, and should not hold that up. ``clock`` is monotonic; where it goes back all the
    same, its step is taken out. ``tending=False`` leaves the background work to whoever calls ``tend``.
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
        calls: int = 1,
        clock: Callable[[], float] = time.monotonic,
        seating: Seating | None = None,
        tending: bool = True,
    ) -> None:
        if not candidates:
            raise BadInput("opening", "the chain", "there is no candidate", "Give a bundle that runs here")
        self._candidates = {c.rung.id: c for c in candidates}
        self._names = tuple(self._candidates)
        self._outputs, self._rules, self._seed = tuple(outputs), rules, seed
        self._journal = Journal(clock, tell)
        self._now, self._note = self._journal.now, self._journal.note
        self._standings = {name: Standing() for name in self._names}
        self._needs = {name: self._need(name) for name in self._names}
        self._orders: dict[str | None, list[str]] = {}
        self._orders_until_s = -1.0
        self._serving: dict[str | None, str] = {}
        self._closed = False
        posts = posts_of(
            candidates,
            open=open,
            open_apart=open_apart,
            apart=isolate == "always",
            warm=warm,
            seating=seating or self._seating(direct, calls),
        )
        self._post = {c.rung.id: posts[key_of(c)] for c in candidates}
        self._watchdog = Watchdog(
            tuple(posts.values()), self._journal, rules=rules, seed=seed, isolate=isolate, opened=self._learn
        )
        self._lock = self._watchdog.lock
        self.tend()
        if tending:
            self._watchdog.start()

    def tend(self) -> float:
        """One round of the background work, which a thread does by itself unless ``tending`` is off."""
        return self._watchdog.tend()

    def settled(self, timeout_s: float) -> bool:
        """Wait until no engine is being opened, well or not; False where ``timeout_s`` passes before."""
        until = self._now() + timeout_s
        with self._lock:
            for name in self._names:
                self._post[name].wanted = True
            self._watchdog.nudge()
            while any(p.opening or (p.seat is None and not p.why) for p in self._post.values()):
                left = until - self._now()
                if left <= 0 or self._closed:
                    return False
                self._lock.wait(min(left, 0.05))
        return True

    def close(self) -> None:
        """Close every engine, waiting a second for those that hang. Safe to call twice."""
        self._closed = True
        self._watchdog.close()

    def answer(
        self,
        inputs_for: Callable[[Candidate], Arrays],
        deadline_ms: float,
        rung: str | None = None,
        asked: Asked = _nobody,
    ) -> Answer:
        """The first sound answer: of ``rung`` where one is named, else of the first candidate, else of those
        behind it. ``inputs_for`` gives a candidate's input tensors; what it raises passes through.

        A rung that was named and is too slow for its time is no fault of its engine: whoever named it hears
        of it by ``asked``, and it does not rest. One that the chain chose itself does.

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
                at = self._now()
                if at >= until:
                    break  # making the input took what was left: no fault of an engine that nobody asked
                by_s = by_s if by_s > at else until
                found = self._ask(candidate, seat, inputs, by_s - at)
                now = self._now()
                asked(name, (now - at) * 1e3, found.kind if isinstance(found, Fault) else None)
                if not isinstance(found, Fault):
                    self._answered(name, rung, now, (now - at) * 1e3, faults)
                    total = (now - began) * 1e3
                    return Answer(found, name, "edge", total, now > until, tuple(hops))
                if found.kind == "not-finite" and (bad := not_finite(inputs)):
                    why = f"the input '{bad}' holds NaN or infinity"
                    raise BadInput("answering on", name, why, "Give an input without them")
                hops.append(name)
                faults[name] = found
                self._failed(name, seat, found, now, (now - at) * 1e3, named=name == rung)
            raise self._no_answer(faults, deadline_ms, until)
        finally:
            if self._journal.waiting:
                self._watchdog.nudge()

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
                coming = (p.opening and p.seat and p.seat.broken is None for p in self._untried(hops))
                if not any(coming) or not self._watchdog.awake:
                    return None
                self._lock.wait(left / 1e3)

    def _untried(self, hops: Sequence[str]) -> list[Post]:
        return [self._post[name] for name in self._names if name not in hops]

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
                why = f"it answered after {before.failures} failures"
                self._note("recovered", name, why, "its back-off is reset")
            post = self._post[name]
            if post.standing.failures:
                post.standing = rule.answered(post.standing, now, latency_ms, self._rules)
            for other, fault in faults.items():
                if fault.kind == "refused":  # so it is not the frame's fault: another took it
                    self._fall(other, fault, now)
            serving = self._serving.get(rung)
            if serving != name and not self._only_late(rung or self._names[0], name, faults):
                self._serving[rung] = name
                self._changed_over(serving, name, rung, now, faults)

    def _only_late(self, wanted: str, name: str, faults: Mapping[str, Fault]) -> bool:
        """Whether ``name`` answers for ``wanted`` only because that is late, or still busy with a call that
        was cut off: news of one frame, and no change."""
        if name == wanted or self._standings[wanted].failures:
            return False
        fault, seat = faults.get(wanted), self._post[wanted].seat
        return fault.kind == "timeout" if fault else bool(seat and seat.ready and seat.stuck)

    def _changed_over(
        self, before: str | None, name: str, rung: str | None, now: float, faults: Mapping[str, Fault]
    ) -> None:
        wanted = rung or self._names[0]
        if name == wanted:
            if before is not None:
                self._note("recovered", name, "it is well again", f"it answers again, no longer {before}")
            return
        fault = faults.get(wanted)
        why = fault.why if fault else "it is not open or rests after a failure"
        self._note("fallback", wanted, why, f"{name} answers in its place")

    def _failed(
        self, name: str, seat: Seat, fault: Fault, now: float, took_ms: float, *, named: bool
    ) -> None:
        with self._lock:
            if fault.kind == "timeout":
                self._set(name, rule.timed(self._standings[name], took_ms))
            if fault.kind == "timeout" and named:
                self._note("timeout", name, fault.why, "its time is told to who named it")
            elif fault.kind not in {"refused", "closed"}:
                # What the watchdog took out of service, it told of: its kill is no crash of its own.
                told = fault.kind in GONE and self._post[name].seat is not seat
                self._fall(name, fault, now, quiet=told)
            post, worn = self._post[name], self._standings[name].failures >= self._rules.reopen_after
            if (fault.kind in GONE or (fault.kind == "not-finite" and worn)) and post.seat is seat:
                self._watchdog.vacate(post, fault)

    def _fall(self, name: str, fault: Fault, now: float, *, quiet: bool = False) -> None:
        before = self._standings[name]
        after = rule.failed(before, now, f"{self._seed}/{name}", self._rules)
        self._set(name, after)
        self._orders.clear()
        done = f"not asked for {after.until_s - now:.2f} s where another can be"
        if after.demotions > before.demotions:
            done = f"it keeps failing: behind the others for {after.demoted_until_s - now:.0f} s"
        if not quiet:
            self._note(fault.kind, name, fault.why, done, failures=after.failures)

    def _no_answer(
        self, faults: Mapping[str, Fault], deadline_ms: float, until: float
    ) -> DeadlineMissed | NoAnswer:
        reasons = [f"{name}: {fault.why}" for name, fault in faults.items()]
        with self._lock:
            silent = {p.name: p.why for p in self._post.values() if p.seat is None and p.why}
        reasons += [f"{name}: {why}" for name, why in silent.items() if name not in faults]
        why = "; ".join(reasons) or "no engine is open yet"
        if self._now() >= until or any(f.kind == "timeout" for f in faults.values()):
            why = f"nothing answered within {deadline_ms:g} ms ({why})"
            return DeadlineMissed("answering on", self._names[0], why, "Allow more time, or a smaller rung")
        cure = "The engines are opened again in the background; see the events for what to repair"
        return NoAnswer("answering on", self._names[0], why, cure)

    def _learn(self, post: Post) -> None:
        """Take the warm-up's latency for what the candidate needs, where nothing is known of it."""
        name = post.candidate.rung.id
        if post.warm_ms is not None and self._standings[name].mean_ms is None:
            self._set(name, rule.timed(self._standings[name], post.warm_ms))

    def _seating(self, direct: bool, calls: int) -> Seating:
        def seating(open: Callable[[], Runner], changed: Callable[[], None], apart: bool) -> Seat:
            if calls > 1 and not apart:
                return Several(open, changed, calls, clock=self._now)
            return Threaded(open, changed, direct=direct and not apart, clock=self._now)

        return seating

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
