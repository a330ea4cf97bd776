"""Published power, joined with the latency of the same run: joules are what carries over, watts follow the
mode."""

from __future__ import annotations

import csv
from pathlib import Path

from edgekiln.forecast.profiles import Power

DEVICE = {"Orin Nano 8GB devkit": "jetson-orin-nano-8gb"}
"""Boards of the catalogue whose power was published beside a latency of the same run."""


def powers(path: Path) -> tuple[Power, ...]:
    """Every run of TensorRT that has both figures; energy is of the whole board, idle included."""
    watts: dict[tuple[str, ...], tuple[float, str]] = {}
    ms: dict[tuple[str, ...], float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[c] for c in ("device", "runtime", "precision", "model", "power_mode", "source"))
            if row["metric"] == "power_W":
                watts[key] = (float(row["value"]), row["source"])
            if row["metric"] == "latency_ms":
                ms[key] = float(row["value"])
    return tuple(
        Power(
            device=DEVICE[key[0]],
            precision=key[2],
            model=key[3],
            mode=key[4],
            watts=value,
            mj=round(value * ms[key], 2),
            source=source,
        )
        for key, (value, source) in sorted(watts.items())
        if key[0] in DEVICE and key[1] == "TensorRT" and key in ms
    )
