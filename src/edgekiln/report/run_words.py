"""What a session says in sentences and rows: the same in the live view, on the terminal and on its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from edgekiln.report import numbers
from edgekiln.report.numbers import MISSING, significant
from edgekiln.report.soak_words import clock
from edgekiln.runtime.histogram import Histogram, quantile
from edgekiln.runtime.metrics import FrameCounts, Snapshot
from edgekiln.runtime.summary import Played
from edgekiln.runtime.vocabulary import Event, Setting, ordinal
from edgekiln.sensors.energy import Energy

GOOD_EVENTS = {
    "opened",
    "change",
    "governor",
    "recovered",
    "sensor-returned",
    "link-up",
    "closed",
    "source-ended",
}
"""Kinds that are news; the others are faults."""
ENDINGS = {"whole": "", "interrupted": "Cut short: ", "failed": "Ended early: "}


@dataclass(frozen=True)
class StreamRow:
    """One stream as it is written."""

    name: str
    entered: str
    done: str
    late: str
    dropped: str
    failed: str
    why: str


@dataclass(frozen=True)
class RungRow:
    """One rung as it is written; ``share`` is of the session's time, 0 to 1."""

    name: str
    quality: str
    share: float
    time: str
    frames: str
    late: str


def in_time(counts: FrameCounts) -> float | None:
    """Of the frames that should have been answered the share that were, within the deadline: one that was
    dropped or failed is not in time. None before the first."""
    return (counts.done - counts.late) / counts.due if counts.due else None


def headline(found: Played) -> str:
    """Whether the deadline was kept, and at what quality, in one sentence."""
    start, total, goal = ENDINGS[found.ended], found.snapshot.total, found.goal
    share = in_time(total)
    if share is None or not total.done:
        came = numbers.count(total.entered, "frame") + " came in" if total.entered else "no frame came in"
        return _begin(start, f"{came}, none was answered.")
    kept = "kept" if share >= goal.percentile else "missed"
    quality = found.snapshot.quality
    at = "" if quality is None else f" at {numbers.percent(quality)} % of the best quality"
    asked = f"{significant(goal.deadline_ms)} ms for {numbers.percent(goal.percentile)} %"
    return _begin(start, f"the deadline was {kept}: {numbers.percent(share)} % in time{at} (asked: {asked}).")


def _begin(start: str, sentence: str) -> str:
    return start + sentence if start else numbers.sentence(sentence)


def streams(found: Snapshot) -> tuple[StreamRow, ...]:
    """A row for each stream, and one of all where there are several."""
    rows = [_stream(name, counts) for name, counts in found.streams.items()]
    if len(rows) > 1:
        rows.append(_stream("all", found.total))
    return tuple(rows)


def _stream(name: str, counts: FrameCounts) -> StreamRow:
    return StreamRow(
        name=name,
        entered=f"{counts.entered:,}",
        done=f"{counts.done:,}",
        late=f"{counts.late:,}",
        dropped=f"{sum(counts.dropped.values()):,}",
        failed=f"{sum(counts.failed.values()):,}",
        why=reasons(counts),
    )


def reasons(counts: FrameCounts) -> str:
    """Why frames were dropped or failed, the most frequent first."""
    return "; ".join(_by_count(counts.dropped) + [f"failed: {text}" for text in _by_count(counts.failed)])


def _by_count(held: Mapping[str, int]) -> list[str]:
    return [f"{why} {n:,}" for why, n in sorted(held.items(), key=lambda pair: -pair[1])]


def setting(found: Setting | None, batch: bool = True) -> str:
    """How frames are answered: the rung, and what differs from every frame for itself."""
    if found is None:
        return "not chosen yet"
    more = [f"every {ordinal(found.every)} frame"] if found.every > 1 else []
    more += [f"{found.batch} frames a call"] if found.batch > 1 and batch else []
    more += [f"bursts of {found.burst}"] if found.burst > 1 and batch else []
    return ", ".join([found.rung, *more])


def rungs(found: Played) -> tuple[RungRow, ...]:
    """A row for each rung of the ladder, then those that are not on it (a fallback's)."""
    known = {rung.id: rung for rung in found.ladder}
    used = found.snapshot.rungs
    whole = sum(use.seconds for use in used.values())
    rows = []
    for name in [*known, *(name for name in used if name not in known)]:
        use, rung = used.get(name), known.get(name)
        seconds = use.seconds if use else 0.0
        rows.append(
            RungRow(
                name=name,
                quality=MISSING if rung is None else f"{numbers.percent(rung.quality)} %",
                share=seconds / whole if whole else 0.0,
                time=clock(seconds) if seconds else "never",
                frames=f"{use.frames:,}" if use else "0",
                late=f"{use.late:,}" if use else "0",
            )
        )
    return tuple(rows)


def latency(found: Histogram) -> tuple[str, str, str]:
    """P50, P95 and P99 in milliseconds."""
    p50, p95, p99 = (significant(quantile(found, share)) for share in (0.5, 0.95, 0.99))
    return p50, p95, p99


def energy(found: Energy) -> str:
    """Energy per inference, or that it is not known, and why."""
    if found.mj is not None:
        idle = f"above {significant(found.idle_watts)} W idle, {significant(found.watts)} W in all"
        return f"{significant(found.mj)} mJ per inference ({idle})"
    known = f"{significant(found.watts)} W in all; " if found.watts is not None else ""
    return f"{known}not known per inference: {found.reason}"


def event(found: Event, times: int = 1) -> str:
    """What happened to what, why, and what was done, on one line; ``times`` in a row."""
    told = f"{found.kind}: {found.what}" if found.what else found.kind
    told += f": {found.why}" if found.why else ""
    told += f" ({found.done})" if found.done else ""
    return told if times == 1 else f"{told} [{times:,} times]"


def gathered(found: Iterable[Event]) -> list[tuple[Event, int]]:
    """The events, those of one kind that befell one thing in a row as the last of them and their number."""
    made: list[tuple[Event, int]] = []
    for one in found:
        if made and (made[-1][0].kind, made[-1][0].what) == (one.kind, one.what):
            made[-1] = (one, made[-1][1] + 1)
        else:
            made.append((one, 1))
    return made


def with_gathered(found: Played) -> Played:
    """``found`` with its events gathered, the number of each written beside what they befell."""
    events = (
        e if times == 1 else msgspec.structs.replace(e, what=f"{e.what} [{times:,} times]")
        for e, times in gathered(found.events)
    )
    return msgspec.structs.replace(found, events=tuple(events))


def events(found: Played) -> tuple[tuple[str, str, str, str], ...]:
    """When, kind, what and why, what was done; oldest first."""
    started = found.snapshot.started_s
    return tuple(
        (moment(e.at_s - started), e.kind, ": ".join(t for t in (e.what, e.why) if t), e.done)
        for e in found.events
    )


def moment(seconds: float) -> str:
    """A time since the start: tenths in the first minute."""
    return f"{max(0.0, seconds):.1f} s" if seconds < 59.95 else clock(seconds)


def missing(found: Played) -> tuple[str, ...]:
    """What is not drawn, and why."""
    rows, told = found.rows, []
    if not any(row.done for row in rows):
        told.append("latency: no frame was answered")
    if all(row.temperature_c is None for row in rows):
        told.append("temperature: no thermal sensor was read")
    if all(row.power_watts is None for row in rows):
        told.append("power: no sensor of power was read")
    return tuple(told)
