"""Where one frame is answered: here, on the server, or both with the first good answer winning.

One pure function. A frame that is sent is hedged (Dean and Barroso, "The Tail at Scale", 2013): the edge
starts beside the call at the last moment at which it still keeps the deadline, so that a link of whatever
kind costs work and no deadline.
"""

from __future__ import annotations

from typing import Literal

from edgekiln.records import Record
from edgekiln.runtime.vocabulary import Mode

WORTH_MAINS = 0.5
WORTH_BATTERY = 0.8
LOW_BATTERY = 0.2


class Situation(Record, frozen=True, kw_only=True):
    """What is known when a frame comes.

    ``make_ms`` is what it takes to make what may be sent (a head's features, a coded picture), 0 before the
    first: neither the call nor the edge begins before. ``budget_ms`` is what is left until its deadline.
    ``edge_ms``: an edge call at a high percentile, None before the first. ``edge_busy_ms``: what is left of
    an edge call that lost and still runs. ``round_trip_ms`` is the link's median, ``share_in_time`` the share
    of calls answered within the time that the frame could wait, both None where nothing is known lately.
    ``gain`` is the quality of the server's answer less that of the edge's. ``edge_mj`` and ``cloud_mj`` are
    this device's energy per frame.
    """

    mode: Mode
    budget_ms: float
    usable: bool = True
    trial: bool = False
    edge_ms: float | None = None
    edge_busy_ms: float = 0.0
    make_ms: float = 0.0
    round_trip_ms: float | None = None
    share_in_time: float | None = None
    probe_due: bool = False
    gain: float = 0.0
    queued: int = 0
    on_battery: bool = False
    battery_share: float | None = None
    edge_mj: float | None = None
    cloud_mj: float | None = None


class Plan(Record, frozen=True, kw_only=True):
    """``edge_after_ms`` from now the edge starts unless the server has answered; 0 is at once.

    ``send``: ``call`` is cancelled once another has answered, ``probe`` goes on to its own end, to learn what
    the link is worth.
    """

    send: Literal["no", "call", "probe"]
    edge_after_ms: float
    why: str


def reserve_ms(budget_ms: float) -> float:
    """What is kept back for all that is not the edge call: threads that wait their turn, copies."""
    return 3.0 + 0.1 * budget_ms


def wait_ms(s: Situation) -> float:
    """How long the edge may wait for the server and still keep the deadline."""
    if s.edge_ms is None:
        return 0.0
    return max(0.0, s.budget_ms - s.edge_ms - s.edge_busy_ms - reserve_ms(s.budget_ms))


def decide(s: Situation) -> Plan:
    """The plan for a frame.

    ``edge``: never sent. ``cloud``: sent while the link is usable. ``adaptive`` sends where enough calls
    were answered in time and the answer is better, or cheaper on a battery; else now and then a probe.
    ``fixed`` adapts nothing and stays here.
    """
    if s.mode in ("edge", "fixed"):
        return Plan(send="no", edge_after_ms=0.0, why="nothing leaves the device in this mode")
    if s.trial:
        return Plan(send="probe", edge_after_ms=0.0, why="a trial whether the server answers again")
    if not s.usable:
        return Plan(send="no", edge_after_ms=0.0, why="the circuit breaker is open")
    after_ms = wait_ms(s)
    if s.mode == "cloud":
        return Plan(send="call", edge_after_ms=after_ms, why="the server comes first in this mode")
    if why := _stays(s):
        send: Literal["no", "probe"] = "probe" if s.probe_due and may_try(s) else "no"
        return Plan(send=send, edge_after_ms=0.0, why=why)
    if s.share_in_time is None or s.edge_ms is None:
        return Plan(send="probe", edge_after_ms=0.0, why="the link is not known yet")
    why = f"{s.share_in_time:.0%} of calls are answered in time"
    return Plan(send="call", edge_after_ms=after_ms, why=why)


def may_try(s: Situation) -> bool:
    """Whether a frame may be sent only to learn what the link is worth: a trial or a probe."""
    if s.mode == "cloud":
        return True
    low = s.on_battery and s.battery_share is not None and s.battery_share < LOW_BATTERY
    return s.mode == "adaptive" and not low and s.queued == 0 and (s.gain > 0 or s.on_battery)


def _stays(s: Situation) -> str:
    """Why the frame stays here; empty where it does not."""
    if s.on_battery and s.battery_share is not None and s.battery_share < LOW_BATTERY:
        if s.cloud_mj is None or s.edge_mj is None:
            return "the battery is low, and what sending costs is not known"
        if _sending_mj(s) >= s.edge_mj:
            return "the battery is low, and sending costs no less"
    elif s.gain <= 0 and not _saves(s):
        return "the server's answer is no better"
    if s.make_ms > wait_ms(s) > 0:
        return "what may be sent takes longer to make than the edge can wait"
    if s.share_in_time is None:
        return ""
    worth = WORTH_BATTERY if s.on_battery else WORTH_MAINS
    if s.share_in_time < worth:
        return f"only {s.share_in_time:.0%} of calls are answered in time"
    slower = s.round_trip_ms is not None and s.edge_ms is not None and s.round_trip_ms > s.edge_ms
    if s.queued > 0 and slower:
        return f"{s.queued} frames wait, and the edge is faster"
    return ""


def _sending_mj(s: Situation) -> float:
    """A send, and the edge's work where the hedge starts it after all."""
    return (s.cloud_mj or 0.0) + (1 - (s.share_in_time or 0.0)) * (s.edge_mj or 0.0)


def _saves(s: Situation) -> bool:
    known = s.edge_mj is not None and s.cloud_mj is not None
    return s.on_battery and known and s.share_in_time is not None and _sending_mj(s) < (s.edge_mj or 0.0)
