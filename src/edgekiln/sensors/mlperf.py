"""Power logs of MLPerf: what SPEC's PTDaemon writes beside a run (``spl.txt``, ``ptd_logs.txt``).

A line is ``Time,11-17-2020 17:55:38.123,Watts,22.950000,Volts,228.570000,Amps,0.206430,PF,0.4864,Mark,NAME``:
a stamp and pairs of a word and a number, once a second. Analysers of several channels add ``Ch1,Watts,...``
for each, and write -1 for what the sum of channels has no figure for. Other lines are notices and errors of
the daemon. (mlcommons/power-dev: its server reads these lines, its compliance checker their stamps.)

The stamp is the local time of the machine at the analyser, and the log does not say its zone: MLPerf keeps it
in another file (``server.json``). It is taken as UTC, so that differences are right and the hour may not be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from edgekiln.sensors.reading import Quantity, Reading, Sample, figure

LONGEST_LINE = 8192
NOT_MEASURED = -1.0
WHOLE = "meter"
"""The sensor's name for all channels together."""

_STAMP = re.compile(r"(?:Time,)?(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d\.\d{3}),(.*)", re.DOTALL)
_WORDS: dict[str, tuple[str, Quantity, float]] = {
    "Watts": ("", "power_watts", 1.0),
    "Volts": ("", "voltage_volts", 1.0),
    "Amps": ("", "current_amperes", 1.0),
    "PF": (" power factor", "share", 1.0),
    "Temp": ("", "temperature_c", 1.0),
    "Humidity": (" humidity", "share", 0.01),
}


def parse(line: str) -> Sample:
    """One line. What is no measurement, a notice or a broken line, stands in ``unread`` as it is."""
    return _parsed(line)[0]


def parse_log(lines: Iterable[str], mark: str | None = None) -> Iterator[Sample]:
    """The samples of a log, in order; with ``mark`` those alone that bear it.

    A run makes two passes, ranging and testing, and marks each: only the testing pass is its measurement.
    """
    for line in lines:
        if line.strip():
            sample, found = _parsed(line)
            if mark is None or (found == mark and sample.readings):
                yield sample


def _parsed(line: str) -> tuple[Sample, str | None]:
    text = line.strip()[:LONGEST_LINE]
    stamp = _STAMP.fullmatch(text)
    time_s = _seconds(stamp[1]) if stamp else None
    if stamp is None or time_s is None:
        return Sample(readings=(), unread=(text,) if text else ()), None
    words = stamp[2].split(",")
    if words[0] not in _WORDS:
        return Sample(readings=(), time_s=time_s, unread=(stamp[2],)), None
    readings: list[Reading] = []
    unread: list[str] = []
    sensor, mark, at = WHOLE, None, 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if re.fullmatch(r"Ch\d{1,2}", word):
            sensor, at = word, at + 1
            continue
        if word in _WORDS:
            readings.append(_reading(sensor, word, value))
        elif word == "Mark":
            mark = value
        else:
            unread.append(f"{word},{value}")
        at += 2
    return Sample(readings=tuple(readings), time_s=time_s, unread=tuple(unread)), mark


def _reading(sensor: str, word: str, text: str) -> Reading:
    more, quantity, factor = _WORDS[word]
    made = figure(sensor + more, quantity, text, factor)
    if quantity != "temperature_c" and made.value == NOT_MEASURED * factor:
        reason = "the analyser has no figure for it"
        return Reading(sensor=made.sensor, quantity=quantity, value=None, reason=reason)
    return made


def _seconds(stamp: str) -> float | None:
    try:
        return datetime.strptime(stamp, "%m-%d-%Y %H:%M:%S.%f").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
