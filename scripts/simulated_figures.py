"""Print the figures of the simulator's Orin Nano that a tegrastats log gives: ``simulated_figures.py LOG``.

The log's stamps are whole seconds; its lines are taken as evenly spaced between the first and the last.
"""

from __future__ import annotations

import statistics
import sys
from itertools import pairwise
from pathlib import Path

from edgekiln.runtime import thermal
from edgekiln.sensors.tegrastats import parse_log


def main() -> None:
    samples = list(parse_log(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
    first, last = samples[0].time_s, samples[-1].time_s
    if first is None or last is None:
        sys.exit("the log bears no times")
    apart = (last - first) / (len(samples) - 1)
    model, rows = thermal.begin("power"), []
    for at, sample in enumerate(samples):
        celsius, watts = sample.value("tj", "temperature_c"), sample.value("VDD_IN", "power_watts")
        load = sample.value("GR3D_FREQ", "load")
        if celsius is None or watts is None or load is None:
            continue
        rows.append((load, watts, celsius))
        model = thermal.observe(model, at * apart, celsius, watts)
    idle = [w for load, w, _ in rows if load == 0.0]
    full = [w for load, w, _ in rows if load >= 0.99]
    steps = [abs(b - a) for (_, _, a), (_, _, b) in pairwise(rows) if a != b]
    quiet = [b - a for (la, _, a), (lb, _, b) in pairwise(rows) if la == lb == 0.0]
    print(f"idle {statistics.mean(idle):.2f} W in {len(idle)} lines")
    print(f"full {statistics.mean(full):.2f} W in {len(full)} lines")
    print(f"tj: least step {min(steps):.5f} K, noise {statistics.stdev(quiet) / 2**0.5:.3f} K while idle")
    print(thermal.describe(model))


if __name__ == "__main__":
    main()
