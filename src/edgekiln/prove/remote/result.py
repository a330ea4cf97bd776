"""What a measurement on a device showed, and each figure of it as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgekiln.prove.environment import cpu_model, memory_bytes
from edgekiln.prove.machine import cpu_quota, cpus_usable
from edgekiln.prove.remote.lines import Begun, Block, Finished, Known, Opened, Phase, Warmed
from edgekiln.prove.statistics import Percentiles, drift, percentiles
from edgekiln.records import Artifact, Evidence, Record, Scalar
from edgekiln.sensors.energy import Energy, per_inference
from edgekiln.sensors.power import Power, total
from edgekiln.sensors.recorder import Recording

Interval = tuple[float, float]


class RemoteBench(Record, frozen=True, kw_only=True):
    """One artifact measured on one device.

    ``device`` is the model's own name: no host name, address or serial number stands in here. ``recording``
    holds temperatures, power and clocks over time, in seconds since its first look; ``phases`` are the times
    at which idle, load, warm-up and timing began. ``unfit`` is what made the device unfit to measure on,
    ``events`` what happened to the connection, ``unread`` whatever no parser knew, word for word, and
    ``said`` the last of what the engine printed. ``samples_ms`` are in order, ``blocks`` their turns; ()
    where the device's program gives statistics only. Missing figures have their reasons in ``evidence``.
    """

    device: str
    platform: Literal["linux", "android"]
    artifact_id: str
    engine: str
    engine_version: str
    threads: int
    environment: dict[str, Scalar]
    percentiles: Percentiles | None
    samples_ms: tuple[float, ...]
    blocks: tuple[int, ...]
    energy: Energy
    power: Power
    recording: Recording | None
    phases: dict[str, float]
    evidence: tuple[Evidence, ...]
    unfit: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    said: str = ""

    def get(self, what: str) -> Evidence | None:
        return next((e for e in self.evidence if e.what == what), None)


# ---------------------------------------------------------------- which device


def identity(root: Path, power_mode: str = "") -> dict[str, Scalar]:
    """What the device says of itself in files below ``root``; keys that it gives no value for are absent."""
    found: dict[str, Scalar | None] = {
        "device_model": _text(root / "proc/device-tree/model"),
        "cpu_model": cpu_model(root),
        "cpus_usable": cpus_usable(root) if (root / "proc/self/status").exists() else None,
        "cpu_quota": cpu_quota(root),
        "memory_bytes": memory_bytes(root),
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "os": _os(root),
        "l4t": _text(root / "etc/nv_tegra_release").partition(", GCID")[0],
        "power_mode": power_mode,
        "governor": ", ".join(sorted({_text(f) for f in root.glob(_GOVERNORS)})),
    }
    return {key: value for key, value in found.items() if value is not None and value != ""}


def name_of(environment: dict[str, Scalar]) -> str:
    """The device's own model name: the board's, else the processor's."""
    known = environment.get("device_model") or environment.get("cpu_model")
    return str(known) if known else "a device that does not tell its model"


_GOVERNORS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"


def _os(root: Path) -> str:
    lines = _text(root / "etc/os-release", 4096).splitlines()
    named = (line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME="))
    return next(named, "")


def _text(path: Path, longest: int = 200) -> str:
    try:
        text = path.read_text(errors="replace")[:longest]
    except OSError:
        return ""
    return "".join(c for c in text if c.isprintable() or c == "\n").strip()


# ---------------------------------------------------------------- from lines to figures


class Timeline(Record, frozen=True, kw_only=True):
    """The lines of a whole run, sorted out. Times are the device's."""

    opened: Opened
    warmed: Warmed | None
    blocks: tuple[Block, ...]
    peak_bytes: int | None
    phases: dict[str, float]
    python: str
    machine: str


def sort_out(lines: Sequence[Known]) -> Timeline | None:
    """None where the run did not come to an end with at least one sample."""
    opened = next((line for line in lines if isinstance(line, Opened)), None)
    finished = next((line for line in lines if isinstance(line, Finished)), None)
    begun = next((line for line in lines if isinstance(line, Begun)), None)
    blocks = tuple(line for line in lines if isinstance(line, Block))
    if opened is None or finished is None or begun is None or not blocks:
        return None
    return Timeline(
        opened=opened,
        warmed=next((line for line in lines if isinstance(line, Warmed)), None),
        blocks=blocks,
        peak_bytes=finished.peak_bytes,
        phases={line.name: line.t for line in lines if isinstance(line, Phase)},
        python=begun.python,
        machine=begun.machine,
    )


def energy(recording: Recording | None, line: Timeline) -> tuple[Power, Energy]:
    """Power over the run, and energy per call above what the device took while it rested."""
    calls = sum(len(block.ms) for block in line.blocks)
    if recording is None:
        reason = "the device's sensors could not be read"
        empty = Power(sensors=(), scope="", times_s=(), watts=(), reason=reason)
        return empty, Energy(inferences=calls, reason=reason)
    power = total(recording)
    if not power.sensors:
        return power, Energy(inferences=calls, reason=power.reason)
    begun, ended = line.blocks[0].begun, line.blocks[-1].ended
    rest = (line.phases.get("idle", begun), line.phases.get("load", begun))
    idle = [w for t, w in zip(power.times_s, power.watts, strict=True) if rest[0] <= t <= rest[1]]
    idle_watts = sum(idle) / len(idle) if len(idle) >= 3 else None
    return power, per_inference(power.times_s, power.watts, begun, ended, calls, idle_watts)


def since_start(recording: Recording, phases: dict[str, float]) -> tuple[Recording, dict[str, float]]:
    """Both in seconds since the first look, instead of since the device was switched on."""
    zero = recording.times_s[0]
    moved = msgspec.structs.replace(
        recording,
        times_s=tuple(t - zero for t in recording.times_s),
        events=tuple(msgspec.structs.replace(e, time_s=e.time_s - zero) for e in recording.events),
    )
    return moved, {name: t - zero for name, t in phases.items()}


# ---------------------------------------------------------------- evidence


class Figures:
    """Makes evidence of figures, all measured on ``where`` in one environment."""

    def __init__(self, where: str, when: str, environment: dict[str, Scalar]) -> None:
        self._where, self._when, self._environment = where, when, environment

    def __call__(
        self,
        what: str,
        unit: str,
        value: float | None,
        n: int | None = None,
        interval: Interval | None = None,
        reason: str = "",
    ) -> Evidence:
        return Evidence(
            what=what,
            unit=unit,
            value=value,
            how=None if value is None else "measured",
            where=self._where,
            when=self._when,
            n=n,
            interval=interval,
            environment=self._environment,
            reason="" if value is not None else reason or "the device does not tell",
        )


def latency_evidence(figure: Figures, found: Percentiles) -> tuple[Evidence, ...]:
    """P50, P95 and P99 in ms, from all samples."""
    return (
        figure("latency_p50_ms", "ms", found.p50, found.n, found.p50_interval),
        figure("latency_p95_ms", "ms", found.p95, found.n, found.p95_interval, found.reasons.get("p95", "")),
        figure("latency_p99_ms", "ms", found.p99, found.n, None, found.reasons.get("p99", "")),
    )


def heat_evidence(figure: Figures, recording: Recording | None) -> tuple[Evidence, ...]:
    """The hottest that any sensor was during the whole run."""
    tracks = [] if recording is None else [t for t in recording.tracks if t.quantity == "temperature_c"]
    values = [v for track in tracks for v in track.values if v is not None]
    told = next((t.reason for t in tracks if t.reason), "the device has no temperature that can be read")
    return (figure("temperature_max_c", "C", max(values, default=None), len(values) or None, None, told),)


def energy_evidence(figure: Figures, power: Power, used: Energy) -> tuple[Evidence, ...]:
    """Energy per call above idle, the mean power of the run, and the power at rest."""
    reason = used.reason or power.reason
    return (
        figure("energy_mj", "mJ", used.mj, used.inferences, None, reason),
        figure("power_watts", "W", used.watts, used.samples or None, None, reason),
        figure("idle_power_watts", "W", used.idle_watts, None, None, reason),
    )


def linux_bench(
    line: Timeline,
    artifact: Artifact,
    threads: int,
    environment: dict[str, Scalar],
    recording: Recording | None,
    interval_s: float,
    when: str,
) -> RemoteBench:
    """All figures of a run on a Linux device. Fitness, events and texts are added by the caller."""
    samples = tuple(ms for block in line.blocks for ms in block.ms)
    found, moved = percentiles(samples), drift([block.ms for block in line.blocks])
    power, used = energy(recording, line)
    around: dict[str, Scalar] = {
        **environment,
        **{f"engine_{key}": value for key, value in line.opened.notes.items()},
        "arch": line.machine,
        "python": line.python,
        "engine": artifact.engine,
        "engine_version": line.opened.engine_version,
        "threads": threads,
        "n": found.n,
        "iqr_ms": found.iqr,
        "mad_ms": found.mad,
        "drift_ratio": moved.ratio,
        "drifted": moved.drifted,
        "import_ms": line.opened.import_ms,
        "sensors_every_s": interval_s,
        "power_sensors": ", ".join(power.sensors) or power.reason,
        "power_scope": power.scope,
    }
    if line.opened.first_ms is not None:
        around["first_ms"] = line.opened.first_ms
    if line.warmed is not None:
        around |= {"warmup_calls": line.warmed.calls, "warmup_stable": line.warmed.stable}
    figure = Figures(name_of(environment), when, around)
    peak, base = line.peak_bytes, line.opened.baseline_bytes
    engine_bytes = None if peak is None or base is None else float(max(0, peak - base))
    evidence = (
        *latency_evidence(figure, found),
        figure("load_ms", "ms", line.opened.load_ms, 1),
        figure("peak_memory_bytes", "bytes", None if peak is None else float(peak), 1),
        figure("engine_memory_bytes", "bytes", engine_bytes, 1),
        *energy_evidence(figure, power, used),
        *heat_evidence(figure, recording),
    )
    shown, phases = (None, {}) if recording is None else since_start(recording, line.phases)
    if recording is not None and power.times_s:
        zero = recording.times_s[0]
        power = msgspec.structs.replace(power, times_s=tuple(t - zero for t in power.times_s))
    return RemoteBench(
        device=name_of(environment),
        platform="linux",
        artifact_id=artifact.id,
        engine=artifact.engine,
        engine_version=line.opened.engine_version,
        threads=threads,
        environment=around,
        percentiles=found,
        samples_ms=samples,
        blocks=tuple(len(block.ms) for block in line.blocks),
        energy=used,
        power=power,
        recording=shown,
        phases=phases,
        evidence=evidence,
    )
