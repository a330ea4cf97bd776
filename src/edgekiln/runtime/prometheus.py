"""A session's snapshot for Prometheus: as text, over HTTP, or as a file for node_exporter's collector.

Names and units follow prometheus.io/docs/practices/naming: base units, ``_total`` for what only grows. What
is not known has no sample: a gauge that says 0 would be a measurement.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.errors import BadInput
from edgekiln.files import write_bytes
from edgekiln.runtime.histogram import PER_DECADE, below, edge_ms
from edgekiln.runtime.metrics import Snapshot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

EDGES = tuple(2 * PER_DECADE + 10 * k for k in range(31))
"""Buckets of our histogram whose upper edges are Prometheus's: six a decade from 0.1 ms to 10 s. No count is
guessed between two edges."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Collector:
    """Asks for a snapshot at each scrape."""

    def __init__(self, look: Callable[[], Snapshot], about: Mapping[str, str]) -> None:
        self._look, self._about = look, about

    def collect(self) -> Iterator[Any]:
        return families(self._look(), self._about)


def registry(look: Callable[[], Snapshot], about: Mapping[str, str] | None = None) -> CollectorRegistry:
    """A registry that asks ``look`` at each scrape; ``about`` (bundle, device, mode...) are labels of
    ``edgekiln_session_info``."""
    from prometheus_client import CollectorRegistry

    made = CollectorRegistry()
    made.register(_Collector(look, about or {}))
    return made


def exposition(found: Snapshot, about: Mapping[str, str] | None = None) -> bytes:
    """``found`` in Prometheus's text format 0.0.4."""
    from prometheus_client import generate_latest

    return generate_latest(registry(lambda: found, about))


def write_textfile(path: Path, found: Snapshot, about: Mapping[str, str] | None = None) -> None:
    """``found`` as a whole file, for node_exporter's textfile collector (its name must end in ``.prom``).

    Raises BadInput or MachineFault where it can't be written.
    """
    write_bytes(path, exposition(found, about))


@contextlib.contextmanager
def serve(
    look: Callable[[], Snapshot],
    port: int,
    host: str = "127.0.0.1",
    about: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Answers scrapes in a thread of its own while the block lasts; gives the port (0 asks for a free one).

    Only this machine can ask unless ``host`` says otherwise: the page has no password. Raises BadInput where
    the port can't be had.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry(look, about))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        cure = "Give another port, 0 for any free one, or an address of this machine"
        raise BadInput("serving metrics at", f"{host}:{port}", why, cure) from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)


def families(found: Snapshot, about: Mapping[str, str]) -> Iterator[Any]:
    """The metric families of ``found``, in a fixed order."""
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    if about:
        info = InfoMetricFamily("edgekiln_session", "What runs here.")
        info.add_metric([], {_label(k): _label(v) for k, v in about.items()})
        yield info
    yield GaugeMetricFamily("edgekiln_session_seconds", "Time since the session began.", value=found.seconds)
    yield from _frames(found)
    yield from _latency(found)
    yield from _rungs(found)
    yield from _machine(found)
    yield from _counters(found)


def _frames(found: Snapshot) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    entered = CounterMetricFamily("edgekiln_frames_entered", "Frames that came in.", labels=["stream"])
    outcome = CounterMetricFamily(
        "edgekiln_frames",
        "Frames by how they ended; on_time and late ones were answered.",
        labels=["stream", "outcome", "reason"],
    )
    for name, counts in found.streams.items():
        stream = _label(name)
        entered.add_metric([stream], counts.entered)
        outcome.add_metric([stream, "on_time", ""], counts.done - counts.late)
        outcome.add_metric([stream, "late", ""], counts.late)
        for word, reasons in (("dropped", counts.dropped), ("failed", counts.failed)):
            for why, n in reasons.items():
                outcome.add_metric([stream, word, _label(why)], n)
    yield entered
    yield outcome


def _latency(found: Snapshot) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    # Four digits name an edge to a hundredth of a bucket's width.
    buckets = [(f"{edge_ms(e) / 1e3:.4g}", below(found.latency, e)) for e in EDGES]
    buckets.append(("+Inf", found.latency.n))
    yield HistogramMetricFamily(
        "edgekiln_latency_seconds",
        "Time from a frame's coming to its answer.",
        buckets=buckets,
        sum_value=found.latency.sum_ms / 1e3,
    )
    yield _gauge("edgekiln_deadline_seconds", "Deadline of a frame.", found.deadline_ms / 1e3)
    share = GaugeMetricFamily("edgekiln_deadline_target_ratio", "Share of frames to be answered in time.")
    share.add_metric([], found.percentile)
    yield share


def _rungs(found: Snapshot) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    seconds = CounterMetricFamily(
        "edgekiln_rung_seconds", "Time for which a rung was chosen.", labels=["rung"]
    )
    frames = CounterMetricFamily("edgekiln_rung_frames", "Frames that a rung answered.", labels=["rung"])
    active = GaugeMetricFamily("edgekiln_rung_active", "1 for the rung that is chosen now.", labels=["rung"])
    for name, use in found.rungs.items():
        seconds.add_metric([_label(name)], use.seconds)
        frames.add_metric([_label(name)], use.frames)
        active.add_metric([_label(name)], float(found.setting is not None and found.setting.rung == name))
    yield from (seconds, frames, active)
    if found.setting is not None:
        yield _gauge("edgekiln_frame_stride", "Every n-th frame is answered.", found.setting.every)
        yield _gauge("edgekiln_batch_frames", "Frames a call.", found.setting.batch)
    yield from _known("edgekiln_quality_ratio", "Mean quality of the answers; 1 is the best.", found.quality)


def _machine(found: Snapshot) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    h = found.health
    if h is not None:
        for name, told, value in (
            (
                "edgekiln_temperature_celsius",
                "Temperature of the zone nearest to its trip point.",
                h.temperature_c,
            ),
            ("edgekiln_trip_celsius", "Trip point of that zone.", h.trip_c),
        ):
            if value is not None:
                family = GaugeMetricFamily(name, told, labels=["zone"])
                family.add_metric([_label(h.zone)], value)
                yield family
        yield from _known("edgekiln_power_watts", "Power of the machine.", h.power_watts)
        yield from _known("edgekiln_battery_ratio", "Charge of the battery.", h.battery_share)
        yield from _known("edgekiln_clock_ratio", "Clock over the highest clock.", h.clock_share)
        yield from _known("edgekiln_memory_free_bytes", "Memory that is free.", h.memory_free_bytes)
    per = found.energy.mj
    yield from _known(
        "edgekiln_inference_energy_joules", "Mean energy of an inference above idle.", per and per / 1e3
    )


def _counters(found: Snapshot) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    for name, told, value in (
        ("edgekiln_energy_joules", "Energy of the machine while its power was known.", found.joules),
        ("edgekiln_powered_seconds", "Time for which the power was known.", found.powered_s),
        ("edgekiln_setting_changes", "Changes of the setting.", found.changes),
        ("edgekiln_offloaded_frames", "Frames that a server answered.", found.offloaded),
        ("edgekiln_rescued_frames", "Frames that another rung than the first answered.", found.rescued),
        ("edgekiln_engine_calls", "Calls of engines.", found.calls),
        ("edgekiln_engine_failed_calls", "Calls of engines that failed.", found.failed_calls),
        ("edgekiln_engine_busy_seconds", "Time of the calls on this machine.", found.busy_s),
        ("edgekiln_log_lost_lines", "Lines of the log that could not be written.", found.log_lost),
    ):
        yield CounterMetricFamily(name, told, value=value)
    events = CounterMetricFamily("edgekiln_events", "Events by kind.", labels=["kind"])
    for kind, n in found.events.items():
        events.add_metric([kind], n)
    yield events


def _gauge(name: str, told: str, value: float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, told, value=value)


def _known(name: str, told: str, value: float | None) -> Iterator[Any]:
    if value is not None:
        yield _gauge(name, told, value)


def _label(text: str) -> str:
    """A stranger's string as valid UTF-8 on one line; what can't be shown is spelt out: names stay apart."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", shown)
