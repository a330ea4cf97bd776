"""The device's sensors over time, from the text of its files, by the same readers that read this machine's.

Each look is laid into a small tree here and read as ``/sys`` is; the times are the device's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekiln.prove.remote.gather import SENSORS_FIXED, SENSORS_MOVING, asked_for
from edgekiln.prove.remote.lines import Known, Sensors, Tegrastats
from edgekiln.sensors import sysfs, tegrastats
from edgekiln.sensors.reading import Sample
from edgekiln.sensors.recorder import Recorder, Recording

MOST_UNREAD = 64


def recording(
    lines: Sequence[Known], fixed: Path, interval_s: float
) -> tuple[Recording | None, tuple[str, ...]]:
    """All looks at sensors in ``lines`` as one recording, and what no parser knew, word for word.

    ``fixed`` is a root with ``SENSORS_FIXED``; it is written to. None where there is no look.
    """
    looks = [line for line in lines if isinstance(line, Sensors | Tegrastats)]
    moments = [line for line in looks if isinstance(line, Sensors)]
    if not moments:
        return None, ()
    tree = _Tree(fixed)
    recorder = Recorder(
        {"sysfs": tree.sysfs, "powercap": tree.powercap, "tegrastats": tree.tegrastats},
        interval_s,
        monotonic=lambda: tree.now,
        wall=lambda: tree.now,
    )
    for line in looks:
        if isinstance(line, Tegrastats):
            tree.hear(line.text)
            continue
        tree.lay(line)
        if line is not moments[-1]:
            recorder.tick()
    return recorder.stop(), tuple(tree.unread)  # which takes the last look


class _Tree:
    """A root as it was at one moment; ``now`` is that moment on the device's clock."""

    def __init__(self, root: Path) -> None:
        self._root, self.now = root, 0.0
        self._held: dict[str, str | None] = {}
        self._counters: dict[str, sysfs.Counter] = {}
        self._line = ""
        self.unread: list[str] = []

    def lay(self, look: Sensors) -> None:
        self.now = look.t - look.took_seconds
        for name, text in look.texts.items():
            if self._held.get(name, "") == text or not asked_for(name, SENSORS_MOVING + SENSORS_FIXED):
                continue
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:  # it is there and can't be read: a file that holds nothing
                path.write_text("")
            else:
                path.write_text(text)
            self._held[name] = text

    def hear(self, line: str) -> None:
        self._line = line
        unread = tegrastats.parse(line).unread
        self.unread += [text for text in unread if text not in self.unread][: MOST_UNREAD - len(self.unread)]

    def sysfs(self) -> Sample:
        return sysfs.read(self._root / "sys")

    def tegrastats(self) -> Sample:
        return tegrastats.parse(self._line) if self._line else Sample(readings=())

    def powercap(self) -> Sample:
        found, missing = sysfs.counters(self._root / "sys")
        timed = [msgspec.structs.replace(counter, time_s=self.now) for counter in found]
        before, self._counters = self._counters, {counter.zone: counter for counter in timed}
        made = [sysfs.power_between(before[c.zone], c) for c in timed if c.zone in before]
        return Sample(readings=(*made, *missing))
