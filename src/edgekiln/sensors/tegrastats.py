"""Lines of NVIDIA's ``tegrastats``, in the dialects of JetPack 4 to 7.

What a line holds (Jetson Linux Developer Guide, "tegrastats Utility"; a log of JetPack 6 on an Orin Nano):

- from JetPack 5 a date and a time of the machine's own clock;
- ``RAM 519/7607MB (lfb 61x4MB)``, ``SWAP 0/3803MB (cached 0MB)``, ``IRAM 0/252kB(lfb 252kB)``;
- ``CPU [0%@1728,off]``, a core each, or one clock for all: ``CPU [0%,5%]@1728``;
- engines as ``NAME load@clock``: ``EMC_FREQ 0%@3199``, a clock per cluster ``GR3D_FREQ 12%@[1300,1300]``,
  ``GR3D_FREQ @[0,0]`` without a load (Thor), ``APE 200`` with a clock alone, ``NVDEC off``;
- ``tj@49.593C``, and -256 degrees where nothing is behind the sensor;
- rails as now/mean since the start: ``VDD_IN 5971mW/5971mW``, before JetPack 5 without the unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from edgekiln.sensors.reading import Reading, Sample

ABSENT_C = -256.0
"""What the firmware answers for a zone that it can't read."""
MEBIBYTE = 1 << 20
LONGEST_LINE = 4096

_STAMP = re.compile(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d")
_NUMBER = r"(-?\d+(?:\.\d+)?)"


def parse(line: str) -> Sample:
    """One line. Whatever is in it, this gives a sample: what no rule knows stands in ``unread``.

    The stamp has no zone: it is taken as UTC, so that differences are right and the hour may not be.
    """
    text, time_s = line.strip()[:LONGEST_LINE], None
    if stamp := _STAMP.match(text):
        text = text[stamp.end() :]
        time_s = _seconds(stamp[0])
    readings: list[Reading] = []
    unread: list[str] = []
    while text := text.lstrip():
        for pattern, read in _RULES:
            if (found := pattern.match(text)) and (end := found.end()):
                readings += read(found)
                text = text[end:]
                break
        else:
            word, *rest = text.split(None, 1)
            text = rest[0] if rest else ""
            unread.append(word)
    return Sample(readings=tuple(readings), time_s=time_s, unread=tuple(unread))


def parse_log(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples of a log, in order; empty lines are no samples."""
    return (parse(line) for line in lines if line.strip())


def _seconds(stamp: str) -> float | None:
    try:
        return datetime.strptime(stamp, "%m-%d-%Y %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _memory(found: re.Match[str]) -> list[Reading]:
    factor = MEBIBYTE if found[4] == "MB" else 1024
    used, total = (float(found[k]) * factor for k in (2, 3))
    return [
        Reading(sensor=found[1], quantity="memory_bytes", value=used),
        Reading(sensor=f"{found[1]} total", quantity="memory_bytes", value=total),
    ]


def _cores(found: re.Match[str]) -> list[Reading]:
    made = []
    for place, core in enumerate(found[1].split(",")):
        name = f"CPU{place}"
        if core.strip() == "off":
            off = "the core is switched off"
            made += [
                Reading(sensor=name, quantity="load", value=None, reason=off),
                Reading(sensor=name, quantity="clock_mhz", value=None, reason=off),
            ]
            continue
        load, _, clock = core.partition("%@") if "%@" in core else (core.rstrip("%"), "", found[2] or "")
        made.append(_figure(name, "load", load, 0.01))
        made.append(_figure(name, "clock_mhz", clock, 1.0))
    return made


def _engine(found: re.Match[str]) -> list[Reading]:
    """A load, a clock, or a clock per cluster, whose mean is the engine's."""
    name, load, clocks = found[1], found[2], found[3]
    made = []
    if load is not None:
        made.append(_figure(name, "load", load, 0.01))
    known = [c for c in (clocks or "").strip("[]").split(",") if c.strip()]
    made += [
        _figure(name if len(known) == 1 else f"{name} cluster {place}", "clock_mhz", clock, 1.0)
        for place, clock in enumerate(known)
    ]
    return made


def _off(found: re.Match[str]) -> list[Reading]:
    return [Reading(sensor=found[1], quantity="clock_mhz", value=None, reason="the engine is switched off")]


def _clock(found: re.Match[str]) -> list[Reading]:
    return [_figure(found[1], "clock_mhz", found[2], 1.0)]


def _temperature(found: re.Match[str]) -> list[Reading]:
    value = float(found[2])
    if value <= ABSENT_C:
        reason = f"the sensor answers {found[2]} degrees: nothing is behind it"
        return [Reading(sensor=found[1], quantity="temperature_c", value=None, reason=reason)]
    return [Reading(sensor=found[1], quantity="temperature_c", value=value)]


def _rail(found: re.Match[str]) -> list[Reading]:
    return [_figure(found[1], "power_watts", found[2], 1e-3)]


def _figure(sensor: str, quantity: str, text: str, factor: float) -> Reading:
    import msgspec

    told: dict[str, object] = {"sensor": sensor, "quantity": quantity, "value": None}
    try:
        told["value"] = float(text) * factor
    except ValueError:
        told["reason"] = f"'{text[:40]}' is no number"
    return msgspec.convert(told, Reading)


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], list[Reading]]]
_NAME = r"([A-Za-z][\w.+-]*)"
_RULES: tuple[Rule, ...] = (
    (
        re.compile(r"(RAM|SWAP|IRAM) (\d+)/(\d+)(MB|kB) ?(?:\((?:lfb|cached)[^)]*\))?"),
        _memory,
    ),
    (re.compile(r"CPU \[([^\]]*)\](?:@(\d+))?"), _cores),
    (re.compile(_NAME + r"@" + _NUMBER + r"C(?=\s|$)"), _temperature),
    (re.compile(_NAME + r" (\d+)(?:mW)?/(\d+)(?:mW)?(?=\s|$)"), _rail),
    (re.compile(_NAME + r" off(?=\s|$)"), _off),
    (re.compile(_NAME + r" (?:(\d+)%)?@(\[[\d,. ]*\]|\d+)(?=\s|$)"), _engine),
    (re.compile(_NAME + r" (\d+)%()(?=\s|$)"), _engine),
    (re.compile(_NAME + r" (\d+)(?=\s|$)"), _clock),
)
