"""The answer of ``bench --on`` on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.cli.show import _table as table
from edgekiln.cli.show import console, escape
from edgekiln.report.numbers import significant

if TYPE_CHECKING:
    from rich.console import Console

    from edgekiln.prove.remote.result import RemoteBench
    from edgekiln.sensors.recorder import Recording, Track

MOST_TRACKS = 8
MOST_UNREAD = 5
_SHOWN = {
    "load_ms": "load",
    "peak_memory_bytes": "peak memory",
    "engine_memory_bytes": "memory of the engine and the model",
    "energy_mj": "energy per inference, above idle",
    "power_watts": "power while it ran",
    "idle_power_watts": "power at rest",
    "temperature_max_c": "hottest sensor",
}
_UNITS = {"temperature_c": "C", "power_watts": "W"}


def bench(found: RemoteBench) -> None:
    """Percentiles, the other figures or why they are missing, heat and power over time, what went wrong."""
    out = console()
    engine = f"{found.engine} {found.engine_version}"
    out.print(f"[bold]{escape(found.artifact_id)}[/bold] on {escape(found.device)}, measured")
    latency = table("engine", ">threads", ">P50 ms", ">P95 ms", ">P99 ms", ">n")
    cells = [_figure(found, f"latency_{name}_ms") for name in ("p50", "p95", "p99")]
    median = found.get("latency_p50_ms")
    n = median.n if median is not None and median.n else 0
    latency.add_row(escape(engine), str(found.threads), *cells, str(n))
    out.print(latency)
    if median is not None and median.interval is not None:
        low, high = median.interval
        out.print(f"P50 is within {significant(low)} and {significant(high)} ms at 95 %", style="dim")
    _others(found, out)
    if found.recording is not None:
        _over_time(found.recording, out)
    for sentence in found.unfit:
        out.print(f"[yellow]the device:[/yellow] {escape(sentence)}")
    for sentence in found.events:
        out.print(f"[yellow]the link:[/yellow] {escape(sentence)}")
    for text in found.unread[:MOST_UNREAD]:
        out.print(f"[yellow]not understood:[/yellow] {escape(text[:200])}")
    if len(found.unread) > MOST_UNREAD:
        out.print(f"and {len(found.unread) - MOST_UNREAD} more that were not understood: see --json")


def _figure(found: RemoteBench, what: str) -> str:
    evidence = found.get(what)
    return "—" if evidence is None or evidence.value is None else significant(evidence.value)


def _others(found: RemoteBench, out: Console) -> None:
    rows = table("figure", ">value", "why it is missing")
    for what, label in _SHOWN.items():
        evidence = found.get(what)
        if evidence is None:
            continue
        if evidence.value is None:
            rows.add_row(label, "—", escape(evidence.reason))
        elif evidence.unit == "bytes":
            rows.add_row(label, f"{evidence.value / 1e6:.0f} MB", "")
        else:
            rows.add_row(label, f"{significant(evidence.value)} {evidence.unit}", "")
    for name in ("p95", "p99"):
        evidence = found.get(f"latency_{name}_ms")
        if evidence is not None and evidence.value is None:
            rows.add_row(name.upper(), "—", escape(evidence.reason))
    out.print(rows)


def _over_time(recording: Recording, out: Console) -> None:
    """First, least, most and last of each temperature and power."""
    tracks = [t for t in recording.tracks if t.quantity in _UNITS and any(v is not None for v in t.values)]
    if not tracks:
        return
    seconds = recording.times_s[-1] - recording.times_s[0]
    rows = table(f"over {seconds:.0f} s", ">first", ">least", ">most", ">last", "")
    for track in sorted(tracks, key=lambda t: (t.quantity, -_most(t)))[:MOST_TRACKS]:
        known = [v for v in track.values if v is not None]
        cells = [f"{v:.1f}" for v in (known[0], min(known), max(known), known[-1])]
        rows.add_row(escape(track.sensor), *cells, _UNITS[track.quantity])
    out.print(rows)
    if len(tracks) > MOST_TRACKS:
        out.print(f"and {len(tracks) - MOST_TRACKS} more sensors: see --json", style="dim")


def _most(track: Track) -> float:
    return max(v for v in track.values if v is not None)
