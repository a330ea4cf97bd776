"""``edgekiln run BUNDLE --input``: sources in, answers out, and all that keeps the deadline in between.

The way of a frame: a source reads it (``streams``), the pump takes it in its turn, the chain answers it on
the rung that the steering chose (``answering``, ``degrade``, ``steering``), and what became of it is counted
(``metrics``), logged (``events``) and shown.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from edgekiln import interrupt
from edgekiln.bundle.unpack import Opened, opened
from edgekiln.engines import Runner, open_concurrent
from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.records import Manifest, Record
from edgekiln.runtime import health as machine
from edgekiln.runtime.answering import Answering, Missed, as_tensors
from edgekiln.runtime.candidates import Unusable, ladder, nothing_runs, survey
from edgekiln.runtime.degrade import Chain, open_candidate
from edgekiln.runtime.events import Log
from edgekiln.runtime.hybrid.offload import Offloader
from edgekiln.runtime.hybrid.privacy import Sendable
from edgekiln.runtime.metrics import PASSED_OVER, Metrics, Snapshot
from edgekiln.runtime.slots import Slot, slots_of
from edgekiln.runtime.steering import Steering
from edgekiln.runtime.streams.execute import measure_calls
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.streams.pump import Pump, Result
from edgekiln.runtime.streams.schedule import choose_calls
from edgekiln.runtime.streams.sources import Pace, Source, names_of, open_source
from edgekiln.runtime.summary import Ended, Played, Timeline, played
from edgekiln.runtime.vocabulary import Answer, Candidate, Event, Goal, Rung, Setting
from edgekiln.runtime.watchdog import Isolate

SHOW_S = 0.25
LOG_S = 10.0
RATE_S = 3.0
"""Frames that came in so many seconds give the rate that the policies reckon with."""
MOST_EVENTS = 400
FIRST_S = 120.0
"""An engine may take so long to open before the first frame is read."""
CALLS = (1, 2)
"""Numbers of calls at once that are tried at the start; so long is each measured."""
CALLS_S, CALLS_ROUNDS = 0.15, 3
OTHERS_S = 20.0
"""So long the first frame waits for the others: opening them takes the cores that a deadline needs."""


class Order(Record, frozen=True, kw_only=True):
    """What is to be run. ``inputs`` are sources as the user wrote them; ``seconds`` ends live ones.

    ``isolate``: which engines run in a process of their own. ``idle_watts`` is the machine's power without
    us, for the energy per inference. ``calls`` is how many calls of the engine run at once, sharing its
    threads; None: one for a single source, what a measurement at the start finds best for several.
    """

    bundle: str
    inputs: tuple[str, ...]
    goal: Goal
    threads: int = 2
    pace: Pace = "real"
    repeat: bool = False
    seconds: float | None = None
    isolate: Isolate = "after-hang"
    idle_watts: float | None = None
    calls: int | None = None


class Seen(Protocol):
    """Who watches: ``event`` from any thread, ``show`` some times a second from one."""

    def event(self, event: Event) -> None: ...

    def show(self, found: Snapshot) -> None: ...


Look: TypeAlias = Callable[[Callable[[], Snapshot]], contextlib.AbstractContextManager[object]]
"""Serves what the function gives for as long as the context lasts."""


Offload: TypeAlias = Callable[
    [Manifest, Sequence[Rung], Callable[[Event], None]], contextlib.AbstractContextManager[Offloader]
]
"""Makes the server's side for a bundle and its ladder, the best rung first."""


@dataclass(frozen=True)
class Shown:
    """What a session is, for a title: known once the bundle is open."""

    bundle: str
    model: str
    device: str
    engine: str
    ladder: tuple[Rung, ...]
    notes: tuple[str, ...]
    labels: tuple[str, ...]
    task: str
    goal: Goal
    unusable: tuple[Unusable, ...] = ()


def play(
    order: Order,
    watch: Callable[[Shown], contextlib.AbstractContextManager[Seen]],
    *,
    log: Path | None = None,
    answered: Callable[[Result], None] = lambda result: None,
    offload: Offload | None = None,
    sendable: Callable[[Frame, Slot], Sendable] = as_tensors,
    look: Look | None = None,
    root: Path = Path("/"),
) -> Played:
    """Run ``order`` until its sources end, its seconds are over, or Ctrl-C; what happened is the answer.

    ``watch`` gives who looks on, ``answered`` is handed each frame's result, in order per stream. ``log`` is
    a JSON-lines file of events and snapshots. ``offload`` makes what answers on a server where that is
    better; then ``sendable`` makes what leaves this machine. ``look`` may serve snapshots while it runs.
    ``root`` is where the machine's files lie.

    Raises BadInput for a bundle or source that can't be used, NotRunnableHere where none of the bundle's
    artifacts runs here, NoAnswer where none answers, MissingExtra without OpenCV for a video.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(opened(Path(order.bundle)))
        found, unusable = survey(held, order.threads)
        if not found:
            raise nothing_runs(order.bundle, unusable)
        shown = _shown(order, held, found, unusable)
        notices = _Notices(stack.enter_context(watch(shown)))
        if log is not None:
            notices.log = stack.enter_context(Log(log, on_trouble=notices.trouble))
        offloader = (
            None if offload is None else stack.enter_context(offload(held.manifest, shown.ladder, notices))
        )
        session = _Playing(order, held, found, shown, notices, stack, answered, offloader, sendable, root)
        if look is not None:
            stack.enter_context(look(session.snapshot))
        ended, why = session.run()
        session.finish()
    return played(
        bundle=shown.bundle,
        model=shown.model,
        device=shown.device,
        engine=shown.engine,
        goal=order.goal,
        ladder=shown.ladder,
        timeline=session.timeline,
        events=tuple(notices.kept),
        ended=ended,
        why=why,
        notes=shown.notes,
        when=when,
    )


def _shown(order: Order, held: Opened, found: Sequence[Candidate], out: tuple[Unusable, ...]) -> Shown:
    manifest = held.manifest
    return Shown(
        bundle=Path(order.bundle).name,
        model=manifest.model,
        device=manifest.device,
        engine=found[0].engine,
        ladder=ladder(found),
        notes=tuple(dict.fromkeys(c.note for c in found if c.note)),
        labels=held.labels,
        task=manifest.task,
        goal=order.goal,
        unusable=out,
    )


class _Notices:
    """Where events go: to who looks on, to the log, to the metrics. Called from any thread."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.log: Log | None = None
        self.metrics: Metrics | None = None
        self.kept: deque[Event] = deque(maxlen=MOST_EVENTS)
        self.failed: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        self.trouble(event)
        if event.kind == "source-failed":
            self.failed[event.what] = event.why
        if self.log is not None:
            self.log.event(event)

    def trouble(self, event: Event) -> None:
        """An event of the log itself, which it can't take."""
        self.kept.append(event)
        if self.metrics is not None:
            self.metrics.event(event)
        self.seen.event(event)


class _Playing:
    """A session at work: everything open, and the frames coming, once it is made."""

    def __init__(
        self,
        order: Order,
        held: Opened,
        found: Sequence[Candidate],
        shown: Shown,
        notices: _Notices,
        stack: contextlib.ExitStack,
        answered: Callable[[Result], None],
        offloader: Offloader | None,
        sendable: Callable[[Frame, Slot], Sendable],
        root: Path,
    ) -> None:
        self._order, self._notices, self._answered, self._offloader = order, notices, answered, offloader
        slots = slots_of(held.manifest, found)
        _check_pictures(slots, shown.bundle)
        goal = _batched(order.goal, slots)
        self._metrics = notices.metrics = Metrics(goal, shown.ladder, time.monotonic(), order.idle_watts)
        for row in shown.unusable:
            at = time.monotonic()
            notices(Event(at_s=at, kind="refused", what=row.artifact_id, why=row.why, done=row.cure))
        self._quality = {r.id: r.quality for r in shown.ladder}
        self._steering = Steering(goal, shown.ladder, self._metrics, notices, time.monotonic)
        calls = _calls(order, found, slots, self._steering.setting.rung, notices)
        self._steering.at_once = calls
        chain = Chain(
            found,
            open=functools.partial(open_candidate, calls=calls),
            calls=calls,
            isolate=order.isolate,
            outputs=held.manifest.signature.outputs,
            warm=lambda candidate: slots[candidate.rung.id].buffers,
            tell=notices,
            seed=shown.bundle,
        )
        stack.callback(chain.close)
        # Engines open in the background, and a deadline is no time for it: the first frame waits for one.
        rung = self._steering.setting.rung
        chain.answer(lambda candidate: slots[candidate.rung.id].buffers, FIRST_S * 1e3, rung)
        chain.settled(OTHERS_S)
        self._watch = machine.Watch(stack.enter_context(machine.sources(root)))
        stack.enter_context(self._watch)
        self._sources = _sources(order, notices, stack)
        live = {s.name: s.live for s in self._sources}
        best = slots[shown.ladder[0].id]  # a server takes the model's own size, whatever the rung here
        steering, limit = self._steering, goal.deadline_ms
        self._answering = Answering(chain, slots, steering, limit, live, offloader, sendable, best, calls)
        self.timeline = Timeline()
        self._counted: dict[str, tuple[int, int, int]] = {}
        self._arrivals: deque[tuple[float, int]] = deque()
        self._interval_ms: float | None = None if goal.fps is None else 1e3 / goal.fps
        self._health_s = self._logged_s = float("-inf")
        self._ready = threading.Event()  # the pump's threads are at work before its name is known here
        # With one worker more than calls the next frames are prepared while the engine computes.
        self._pump = Pump(
            self._sources, self._answer, lambda: self._steering.setting, workers=calls + 1, tell=notices
        )
        stack.enter_context(self._pump)
        self._ready.set()

    def snapshot(self) -> Snapshot:
        """All counts of this moment."""
        return self._metrics.snapshot(time.monotonic())

    def run(self) -> tuple[Ended, str]:
        """Hand out results and look at the machine until there is an end; how it ended, and why."""
        started = due = time.monotonic()
        try:
            while True:
                interrupt.check()
                result = self._pump.result(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                if result is not None:
                    self._take(result)
                elif not self._pump.running:
                    break
                if now >= due:
                    self._tick(now)
                    due = now + SHOW_S
                if self._order.seconds is not None and now - started >= self._order.seconds:
                    return "whole", ""
        except KeyboardInterrupt:
            return "interrupted", f"cut short after {time.monotonic() - started:.0f} s"
        failed = self._notices.failed
        if len(failed) == len(self._sources):
            return "failed", "; ".join(f"{name}: {why}" for name, why in failed.items())
        return "whole", ""

    def finish(self) -> None:
        """Stop the sources, and count and hand out what was still on its way."""
        self._pump.close()
        while (result := self._pump.result(0.0)) is not None:
            self._take(result)
        self._tick(time.monotonic())

    # ------------------------------------------------------------ a call, on the pump's thread

    def _answer(self, frames: Sequence[Frame], setting: Setting) -> Sequence[Answer | Missed]:
        self._ready.wait()
        found = self._answering(frames, setting)
        waiting = self._waiting()
        link = None if self._offloader is None else self._offloader.link()
        decision = self._steering.decide(waiting, self._interval_ms, link)
        idle = not waiting and self._answering.idle
        if decision.probe is not None and idle and self._interval_ms is not None:
            # It was chosen to fit before the next frame. One that a stall cuts short would count as a failure
            # of its engine, so it has a whole deadline; what it takes too long, the next frame pays.
            self._answering.probe(frames[-1], decision.probe, self._order.goal.deadline_ms)
        return found

    def _waiting(self) -> int:
        return sum(c.waiting for c in self._pump.counts())

    # ------------------------------------------------------------ results and looks, on the caller's thread

    def _take(self, result: Result) -> None:
        answer = result.answer
        if isinstance(answer, Answer):
            quality = self._quality.get(answer.rung)
            self._metrics.done(result.source, answer, quality=quality)
        elif isinstance(answer, Missed) and answer.stale:
            self._metrics.dropped(result.source, 1, "too old")
        else:
            why = answer.kind if isinstance(answer, Missed) else "error"
            self._metrics.failed(result.source, 1, why)
        self._answered(result)

    def _tick(self, now: float) -> None:
        self._count(now)
        for event in self._watch.events():
            self._notices(event)
        health = self._watch.latest()
        if health.at_s > self._health_s:
            self._health_s = health.at_s
            self._steering.looked(health)
        found = self._metrics.snapshot(now)
        self.timeline.add(found)
        log = self._notices.log
        if log is not None:
            self._metrics.log_lost(log.lost)
            if now - self._logged_s >= LOG_S:
                self._logged_s = now
                log.snapshot(found)
        self._notices.seen.show(found)

    def _count(self, now: float) -> None:
        """What came, was passed over and was dropped since the last look; and at what rate frames come."""
        came = 0
        for c in self._pump.counts():
            before = self._counted.get(c.source, (0, 0, 0))
            self._counted[c.source] = (c.came, c.skipped, c.dropped)
            came += c.came
            if c.came > before[0]:
                self._metrics.frame_in(c.source, c.came - before[0])
            for why, n in ((PASSED_OVER, c.skipped - before[1]), ("overtaken", c.dropped - before[2])):
                if n > 0:
                    self._metrics.dropped(c.source, n, why)
        self._arrivals.append((now, came))
        while self._arrivals[0][0] < now - RATE_S:
            self._arrivals.popleft()
        if not any(s.live for s in self._sources):
            self._interval_ms = None  # frames come as fast as they are asked for
        elif self._order.goal.fps is None:
            (first_s, first), (last_s, last) = self._arrivals[0], self._arrivals[-1]
            if last > first and last_s - first_s >= RATE_S / 3:
                self._interval_ms = (last_s - first_s) * 1e3 / (last - first)


def _calls(
    order: Order, found: Sequence[Candidate], slots: Mapping[str, Slot], rung: str, tell: _Notices
) -> int:
    """How many calls at once: as ordered, else what answers most on ``rung`` where several sources come.

    They share the engine's threads, so that each takes longer: one stream gains nothing from it.
    """
    if order.isolate == "always" or (order.calls is None and len(order.inputs) == 1):
        return 1  # an engine in a process of its own answers one at a time
    if order.calls is not None:
        return order.calls
    one = next(c for c in found if c.rung.id == rung)

    def opener(calls: int) -> Sequence[Runner]:
        where = Path(one.folder)
        return open_concurrent(one.engine, one.artifact, where, one.threads, calls, one.rung.size)

    try:
        rates = measure_calls(opener, slots[rung].buffers, CALLS, CALLS_S, CALLS_ROUNDS)
    except Exception as error:  # an engine may raise anything; the chain opens it again
        why = error.why if isinstance(error, EdgekilnError) else f"{type(error).__name__}: {error}"
        done = "one call at a time"
        tell(Event(at_s=time.monotonic(), kind="refused", what="measuring calls at once", why=why, done=done))
        return 1
    chosen = choose_calls(rates)
    told = ", ".join(f"{n} at once {rate:.0f} calls a second" for n, rate in rates.items())
    why = f"measured on {rung}: {told}"
    tell(Event(at_s=time.monotonic(), kind="change", what=f"{chosen} calls at once", why=why))
    return chosen


def _sources(order: Order, tell: Callable[[Event], None], stack: contextlib.ExitStack) -> list[Source]:
    names = names_of(list(order.inputs))
    made: list[Source] = []
    for text, name in zip(order.inputs, names, strict=True):
        source = open_source(text, pace=order.pace, loop=order.repeat, name=name, tell=tell)
        stack.callback(source.close)
        made.append(source)
    return made


def _check_pictures(slots: Mapping[str, Slot], bundle: str) -> None:
    """Raise BadInput for a model that frames of video are nothing to."""
    if any(s.preprocess is None or len(s.ports) != 1 for s in slots.values()):
        cure = "Run it from Python: edgekiln.runtime.session.open_session"
        raise BadInput("streaming into", bundle, "its model takes no single picture", cure)


def _batched(goal: Goal, slots: Mapping[str, Slot]) -> Goal:
    """``goal`` with no batches where some rung takes one picture at a time."""
    if goal.most_batch > 1 and any(isinstance(s.ports[0].shape[0], int) for s in slots.values()):
        return msgspec.structs.replace(goal, most_batch=1)
    return goal
