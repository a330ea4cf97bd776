"""Tables: markdown for people, JSON with the raw figures for everything else."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln import __version__
from edgekiln.files import write_json
from edgekiln.prove.environment import fingerprint
from edgekiln.prove.statistics import percentiles
from edgekiln.records import Record, Scalar
from measuring.process import ROOT

DEFAULT_OUT = ROOT / "build" / "bench"
_MACHINE = ("cpu_model", "cpus_usable", "memory_bytes", "os", "kernel", "virtual_machine")


class Table(Record, frozen=True, kw_only=True):
    """``rows`` are as wide as ``columns``. ``note`` says what a reader must know to read it right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class Benchmark(Record, frozen=True, kw_only=True):
    """What one run of one benchmark found. ``raw`` holds every single measurement."""

    name: str
    quick: bool
    when: str
    edgekiln: str
    machine: dict[str, Scalar]
    unfit: tuple[str, ...]
    tables: tuple[Table, ...]
    raw: Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the JSON (build/bench)")
    return parser


def publish(
    name: str, tables: Sequence[Table], raw: Any, *, quick: bool, out: Path, unfit: Sequence[str]
) -> None:
    """Print the tables with the machine's line, and write ``out/name.json``.

    ``unfit`` is what ``fitness()`` said before the benchmark itself loaded the machine.
    """
    found = Benchmark(
        name=name,
        quick=quick,
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        edgekiln=__version__,
        machine=fingerprint(),
        unfit=tuple(unfit),
        tables=tuple(tables),
        raw=raw,
    )
    write_json(out / f"{name}.json", found)
    print(markdown(found))


def markdown(found: Benchmark) -> str:
    """The whole result as a page of markdown."""
    lines = [f"## {found.name}", ""]
    if found.quick:
        lines += [
            "**Smoke run (`--quick`): it shows that the benchmark works, its figures mean nothing.**",
            "",
        ]
    for table in found.tables:
        lines += [f"### {table.title}", ""]
        lines += [_row(table.columns), _row(["---"] * len(table.columns)), *map(_row, table.rows), ""]
        if table.note:
            lines += [table.note, ""]
    machine = found.machine
    known = {key: machine[key] for key in _MACHINE if key in machine}
    if "memory_bytes" in known:
        known["memory_bytes"] = f"{float(known['memory_bytes']) / 2**30:.1f} GiB"
    versions = {k: v for k, v in machine.items() if k not in _MACHINE}
    lines += [
        f"Machine: {_pairs(known)}.",
        "",
        f"Versions: edgekiln {found.edgekiln}, {_pairs(versions)}.",
        "",
    ]
    lines += [f"Measured {found.when}. Fit to measure on: {'; '.join(found.unfit) or 'no objection'}."]
    return "\n".join(lines)


def _pairs(values: dict[str, Scalar]) -> str:
    return ", ".join(
        f"{key.removesuffix('_bytes').replace('_', ' ')} {value}" for key, value in values.items()
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def spread(values: Sequence[float], unit: str, digits: int) -> str:
    """Median with its spread: ``4.21 s (IQR 0.10)``; the single values where there are fewer than four."""
    if not values:
        return "—"
    if len(values) == 1:
        return f"{values[0]:.{digits}f} {unit} (once)"
    found = percentiles(values)
    if len(values) < 4:
        return f"{found.p50:.{digits}f} {unit} ({', '.join(f'{v:.{digits}f}' for v in values)})"
    return f"{found.p50:.{digits}f} {unit} (IQR {found.iqr:.{digits}f})"


def megabytes(values: Sequence[float]) -> str:
    """The median of bytes in MB (10^6), and from two on the whole range."""
    if not values:
        return "—"
    low, high = min(values) / 1e6, max(values) / 1e6
    middle = f"{percentiles(values).p50 / 1e6:.0f} MB"
    return middle if len(values) == 1 else f"{middle} ({low:.0f} to {high:.0f})"


def against_goal(value: float, goal: float) -> str:
    return "met" if value <= goal else f"missed by {value - goal:.2g}"
