"""Each frame is answered within its deadline, by the server where that is worth it and by the edge else.

The calling thread only waits; the server is called from a client's thread, the edge from one of its own.
The first good answer wins and the other is cancelled: a call by its socket, the edge by ``cancel_edge`` where
the caller gives one (ONNX Runtime: ``RunOptions.terminate``), else it runs out unheard, which the next frame
reckons with. What the server answers is checked against what the model promises before it counts as good.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from msgspec.structs import replace
from numpy.typing import NDArray

from edgekiln.errors import ServerFault
from edgekiln.records import Record
from edgekiln.runtime.hybrid.breaker import Breaker, BreakerRules, admit, record
from edgekiln.runtime.hybrid.link import Trip, Trips, link, observe, round_trip_ms, share_within
from edgekiln.runtime.hybrid.plan import Plan, Situation, decide, may_try, wait_ms
from edgekiln.runtime.hybrid.privacy import Privacy, Sendable, check_privacy, payload
from edgekiln.runtime.hybrid.remote import Outputs, Pending, RemoteModel
from edgekiln.runtime.vocabulary import Answer, Event, EventKind, Health, Link, Mode

Edge: TypeAlias = Callable[[], Mapping[str, NDArray[Any]]]
Frame: TypeAlias = Sendable | Callable[[], Sendable]
"""What may be sent, or a function that makes it, called only where the frame is sent."""
_REMEMBERED = 64
_LATELY = 8
_PATIENCE = 3.0


class OffloadRules(Record, frozen=True, kw_only=True):
    """``gain`` is the quality of the server's answer less the edge's (shares of 1). ``edge_ms`` is what is
    expected of an edge call before any was timed; ``edge_mj`` and ``cloud_mj`` are this device's energy per
    frame. Every ``probe_s`` a link that is not used is tried, for up to ``probe_limit_ms``. ``percentile`` is
    that of ``Link.round_trip_ms``."""

    mode: Mode = "adaptive"
    gain: float = 0.0
    edge_rung: str = "edge"
    cloud_rung: str = "cloud"
    edge_ms: float | None = None
    edge_mj: float | None = None
    cloud_mj: float | None = None
    percentile: float = 0.95
    probe_s: float = 1.0
    probe_limit_ms: float = 2000.0
    breaker: BreakerRules = BreakerRules()


@dataclass(eq=False)
class _Sent:
    """A call on its way, and what it was admitted as. ``settled``: its end has been counted."""

    pending: Pending
    generation: int
    probe: bool
    at_s: float
    settled: bool = False


@dataclass(eq=False)
class _Frame:
    """One frame under way."""

    started_s: float
    deadline_ms: float
    plan: Plan
    sent: _Sent | None = None
    edge: Future[Mapping[str, NDArray[Any]]] | None = None
    fault: ServerFault | None = None
    edge_error: BaseException | None = None
    edge_due_ms: float = 0.0
    hops: list[str] = field(default_factory=list)


class Offloader:
    """Answers frames by ``model`` on its server, by the edge, or both. Thread-safe; close it when done."""

    def __init__(
        self,
        model: RemoteModel,
        privacy: Privacy,
        rules: OffloadRules | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """``on_event`` is called from any thread. Raises BadInput for a privacy rule without its head."""
        check_privacy(privacy)
        self.model, self.privacy, self.rules = model, privacy, rules or OffloadRules()
        self._on_event = on_event
        self._lock = threading.Lock()
        self._breaker, self._trips = Breaker(), Trips()
        self._edge_ms: deque[float] = deque(maxlen=_REMEMBERED)
        self._edge_since: float | None = None
        self._made_ms: deque[float] = deque(maxlen=_LATELY)
        self._probes: set[_Sent] = set()
        self._probed_s = float("-inf")
        self._edges = ThreadPoolExecutor(1, thread_name_prefix="edgekiln-edge")

    def link(self) -> Link:
        """The link as policies see it."""
        with self._lock:
            return link(self._trips, self._breaker, self.rules.percentile, time.monotonic())

    def answer(
        self,
        frame: Frame,
        edge: Edge,
        deadline_ms: float,
        *,
        queued: int = 0,
        health: Health | None = None,
        cancel_edge: Callable[[], None] | None = None,
    ) -> Answer:
        """The first good answer. ``edge`` computes it here; ``queued`` frames wait behind this one.

        Raises BadInput for what may not be sent under the privacy rule, whether this frame would have been
        sent or not; what ``edge`` raised where the server gave no answer either; ServerFault ``late`` where
        nobody has answered after three deadlines.
        """
        started_s = time.monotonic()
        inputs = None if callable(frame) else payload(self.privacy, frame)
        plan, generation = self._plan(deadline_ms, queued, health)
        now = _Frame(started_s, deadline_ms, plan)
        if plan.send != "no":
            try:
                made = self._made(frame) if callable(frame) else inputs
                now.sent = self._send(made or {}, now, generation)
            except ServerFault as fault:
                now.fault = fault
                self._count(fault, generation, started_s, answered=False)
            except BaseException as error:
                self._settle_unsent(generation, error)
                raise
        try:
            return self._first(now, edge)
        finally:
            self._clear(now, cancel_edge)

    def close(self) -> None:
        """End the calls that are on their way. The client stays open: it is the caller's."""
        with self._lock:
            probes, self._probes = set(self._probes), set()
        for sent in probes:
            sent.pending.cancel()
        self._edges.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ deciding and sending

    def _plan(self, deadline_ms: float, queued: int, health: Health | None) -> tuple[Plan, int]:
        with self._lock:
            situation = self._situation(deadline_ms, queued, health, time.monotonic())
            if not situation.usable and may_try(situation):
                self._breaker, trial = admit(self._breaker, self.rules.breaker, time.monotonic())
                situation = replace(situation, trial=trial)
            plan = decide(situation)
            if plan.send == "probe":
                self._probed_s = time.monotonic()
            return plan, self._breaker.generation

    def _situation(self, deadline_ms: float, queued: int, health: Health | None, now_s: float) -> Situation:
        rules = self.rules
        edge_ms = max(self._edge_ms) if self._edge_ms else rules.edge_ms
        ran_ms = 0.0 if self._edge_since is None else (now_s - self._edge_since) * 1e3
        busy_ms = 0.0 if self._edge_since is None else max(0.0, (edge_ms or 0.0) - ran_ms)
        known = Situation(
            mode=rules.mode,
            budget_ms=deadline_ms,
            usable=self._breaker.usable,
            edge_ms=edge_ms,
            edge_busy_ms=busy_ms,
            make_ms=statistics.median(self._made_ms) if self._made_ms else 0.0,
            round_trip_ms=round_trip_ms(self._trips, 0.5, now_s),
            probe_due=not self._probes and now_s - self._probed_s >= rules.probe_s,
            gain=rules.gain,
            queued=queued,
            on_battery=bool(health and health.on_battery),
            battery_share=health.battery_share if health else None,
            edge_mj=rules.edge_mj,
            cloud_mj=rules.cloud_mj,
        )
        # Where the edge can't make it in time by itself, the server may take all of the deadline.
        limit_ms = max(0.0, (wait_ms(known) or deadline_ms) - known.make_ms)
        return replace(known, share_in_time=share_within(self._trips, limit_ms, now_s))

    def _made(self, frame: Callable[[], Sendable]) -> dict[str, NDArray[Any]]:
        started_s = time.monotonic()
        made = payload(self.privacy, frame())
        with self._lock:
            self._made_ms.append((time.monotonic() - started_s) * 1e3)
        return made

    def _send(self, inputs: Mapping[str, NDArray[Any]], now: _Frame, generation: int) -> _Sent:
        probe = now.plan.send == "probe"
        left_ms = now.deadline_ms - (time.monotonic() - now.started_s) * 1e3
        patient = probe and self.rules.mode == "adaptive"
        limit_ms = max(left_ms, self.rules.probe_limit_ms) if patient else max(left_ms, 1.0)
        sent = _Sent(self.model.start(inputs, limit_ms / 1e3), generation, probe, time.monotonic())
        if probe:
            with self._lock:
                self._probes.add(sent)
        return sent

    # ------------------------------------------------------------ waiting

    def _first(self, now: _Frame, edge: Edge) -> Answer:
        """Wait for whichever answers well first."""
        while True:
            elapsed_ms = (time.monotonic() - now.started_s) * 1e3
            if now.sent is not None and now.sent.pending.future.done():
                outputs = self._received(now)
                if outputs is not None:
                    return self._answered(now, outputs, cloud=True)
            if now.edge is None and (now.sent is None or elapsed_ms >= now.plan.edge_after_ms):
                now.edge_due_ms = min(elapsed_ms, now.plan.edge_after_ms) if now.sent else elapsed_ms
                now.edge = self._begin(edge)
            if now.edge is not None and now.edge.done() and now.edge_error is None:
                now.edge_error = self._closed() if now.edge.cancelled() else now.edge.exception()
                if now.edge_error is None:
                    answer = self._answered(now, now.edge.result(), cloud=False)
                    # As the caller sees it: threads that wait for a busy processor are part of it.
                    with self._lock:
                        self._edge_ms.append(answer.latency_ms - now.edge_due_ms)
                    return answer
            if now.edge_error is not None and now.sent is None:
                raise now.edge_error
            until_ms = now.plan.edge_after_ms if now.edge is None else now.deadline_ms * _PATIENCE
            if now.edge is not None and elapsed_ms >= until_ms:
                raise now.edge_error or _nobody(self.model.client.server.url, now)
            open_edge = now.edge if now.edge_error is None else None
            futures: list[Future[Any]] = [f for f in (open_edge,) if f is not None]
            futures += [now.sent.pending.future] if now.sent is not None else []
            wait(futures, max(0.0, until_ms - elapsed_ms) / 1e3, FIRST_COMPLETED)

    def _received(self, now: _Frame) -> Outputs | None:
        """The server's outputs; None where it failed, which is counted and noted in ``now``."""
        sent, now.sent = now.sent, None
        assert sent is not None
        outputs, now.fault = self._settle(sent)
        return outputs

    def _begin(self, edge: Edge) -> Future[Mapping[str, NDArray[Any]]]:
        try:
            return self._edges.submit(self._run_edge, edge)
        except RuntimeError as error:
            raise self._closed() from error

    def _closed(self) -> ServerFault:
        why = "the offloader was closed"
        return ServerFault(
            "answering a frame with", self.rules.edge_rung, why, "Open another", kind="cancelled"
        )

    def _run_edge(self, edge: Edge) -> Mapping[str, NDArray[Any]]:
        started_s = time.monotonic()
        with self._lock:
            self._edge_since = started_s
        try:
            outputs = edge()
        finally:
            with self._lock:
                self._edge_since = None
        with self._lock:
            self._edge_ms.append((time.monotonic() - started_s) * 1e3)
        return outputs

    def _answered(self, now: _Frame, outputs: Mapping[str, NDArray[Any]], *, cloud: bool) -> Answer:
        latency_ms = (time.monotonic() - now.started_s) * 1e3
        tried = not cloud and now.plan.send != "no"
        rungs = self.rules.cloud_rung, self.rules.edge_rung
        if tried and now.plan.send == "call":
            why = now.fault.why if now.fault else "the server had not answered when the edge had"
            self._tell("fallback", rungs[0], why, f"'{rungs[1]}' answered", latency_ms=latency_ms)
        return Answer(
            outputs=outputs,
            rung=rungs[0] if cloud else rungs[1],
            place="cloud" if cloud else "edge",
            latency_ms=latency_ms,
            late=latency_ms > now.deadline_ms,
            hops=(rungs[0],) if tried else (),
        )

    def _clear(self, now: _Frame, cancel_edge: Callable[[], None] | None) -> None:
        """Cancel what lost; a probe goes on and is counted when it ends."""
        sent = now.sent
        if sent is not None and sent.probe:
            sent.pending.future.add_done_callback(lambda _: self._settle(sent))
        elif sent is not None:
            self._lost(sent)
        # Not begun: it never will. Begun: only the caller knows how to end it.
        if now.edge is not None and not now.edge.done() and not now.edge.cancel() and cancel_edge is not None:
            cancel_edge()

    # ------------------------------------------------------------ counting

    def _settle(self, sent: _Sent) -> tuple[Outputs | None, ServerFault | None]:
        """Decode and count the end of a call that is done."""
        try:
            outputs, response = sent.pending.result()
        except ServerFault as fault:
            self._ended(sent, fault, None, 0)
            return None, fault
        self._ended(sent, None, response.seconds * 1e3, len(response.body), response.sent_bytes)
        return outputs, None

    def _lost(self, sent: _Sent) -> None:
        """The edge was faster: the call was of no use in time, which counts as a failure."""
        sent.pending.cancel()
        self._ended(sent, None, None, 0)

    def _ended(
        self, sent: _Sent, fault: ServerFault | None, trip_ms: float | None, got: int, put: int = 0
    ) -> None:
        with self._lock:
            self._probes.discard(sent)
            if sent.settled:
                return
            sent.settled = True
        self._count(
            fault, sent.generation, sent.at_s, answered=trip_ms is not None, trip_ms=trip_ms, put=put, got=got
        )

    def _count(
        self,
        fault: ServerFault | None,
        generation: int,
        at_s: float,
        *,
        answered: bool,
        trip_ms: float | None = None,
        put: int = 0,
        got: int = 0,
    ) -> None:
        if fault is not None and fault.kind == "cancelled":
            return
        now_s = time.monotonic()
        took_ms = (now_s - at_s) * 1e3 if trip_ms is None else trip_ms
        trip = Trip(at_s=now_s, round_trip_ms=took_ms, sent_bytes=put, received_bytes=got, answered=answered)
        wait_s = fault.retry_after_s if fault else None
        with self._lock:
            before = self._breaker
            self._breaker = after = record(
                before, self.rules.breaker, now_s, ok=answered, generation=generation, retry_after_s=wait_s
            )
            back = before.state != "closed" and after.state == "closed"
            # What was before an outage says nothing about the link that came back.
            self._trips = observe(Trips() if back else self._trips, trip)
        self._tell_change(before, after, fault)

    def _settle_unsent(self, generation: int, error: BaseException) -> None:
        """A trial that could not even be sent: the breaker opens again, rather than wait for it."""
        with self._lock:
            if self._breaker.state == "half-open":
                self._breaker = record(
                    self._breaker, self.rules.breaker, time.monotonic(), ok=False, generation=generation
                )

    def _tell_change(self, before: Breaker, after: Breaker, fault: ServerFault | None) -> None:
        url = self.model.client.server.url
        if before.state == "closed" and after.state == "open":
            why = fault.why if fault else "answers came too late to be of use"
            done = f"nothing is sent for {after.until_s - time.monotonic():.1f} s"
            self._tell("link-down", url, why, done, failures=after.failed)
        elif before.state != "closed" and after.state == "closed":
            self._tell("link-up", url, "a trial was answered", "frames may be sent again")

    def _tell(self, kind: EventKind, what: str, why: str, done: str, **facts: float) -> None:
        at_s = time.monotonic()
        self._on_event(Event(at_s=at_s, kind=kind, what=what, why=why, done=done, facts=dict(facts)))


def _nobody(url: str, now: _Frame) -> ServerFault:
    why = f"neither it nor the edge has answered after {now.deadline_ms * _PATIENCE:.0f} ms"
    return ServerFault("answering a frame with", url, why, "See whether the edge's engine hangs", kind="late")
