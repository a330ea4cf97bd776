"""The exposition, as Prometheus's own parser and linter read it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgekiln.errors import BadInput
from edgekiln.runtime import histogram as h
from edgekiln.runtime import prometheus
from edgekiln.runtime.metrics import Metrics, Snapshot
from edgekiln.runtime.vocabulary import Answer, Event, Goal, Health, Rung, Setting

RUNG = Rung(id="int8@224x224", artifact_id="int8", quality=1.0, quality_of="agreement")
EVIL = 'x"\n# HELP evil \\ \x1b[31m\ud800'
LATENCIES = [0.05, 0.1, 0.7, 1.0, 3.3, 10.0, 20.0, 45.0, 55.0, 300.0, 25_000.0]


def session(stream: str = "gate") -> Metrics:
    metrics = Metrics(Goal(deadline_ms=50.0), (RUNG,), idle_watts=2.0)
    metrics.setting(Setting(rung=RUNG.id), RUNG, "the best", 0.0)
    for latency in LATENCIES:
        metrics.frame_in(stream)
        metrics.done(stream, Answer(outputs={}, rung=RUNG.id, place="edge", latency_ms=latency), quality=1.0)
    metrics.frame_in(stream, 3)
    metrics.dropped(stream, 2, "queue full")
    metrics.failed(stream, 1, EVIL)
    for second in range(9):
        metrics.health(
            Health(at_s=float(second), temperature_c=61.5, trip_c=88.0, zone="cpu", power_watts=7.0)
        )
    metrics.event(Event(at_s=1.0, kind="hung", what="engine"))
    return metrics


def samples(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (s.name, tuple(s.labels[k] for k in sorted(s.labels))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def test_counts_have_their_names_labels_and_base_units() -> None:
    found = samples(prometheus.exposition(session().snapshot(9.0), {"bundle": "demo", "mode": "adaptive"}))
    assert found["edgekiln_frames_total", ("on_time", "", "gate")] == 8
    assert found["edgekiln_frames_total", ("late", "", "gate")] == 3
    assert found["edgekiln_frames_total", ("dropped", "queue full", "gate")] == 2
    assert found["edgekiln_frames_entered_total", ("gate",)] == 14
    assert found["edgekiln_temperature_celsius", ("cpu",)] == 61.5
    assert found["edgekiln_deadline_seconds", ()] == 0.05
    assert found["edgekiln_energy_joules_total", ()] == pytest.approx(56.0)
    assert found["edgekiln_rung_seconds_total", (RUNG.id,)] == 9.0
    assert found["edgekiln_rung_active", (RUNG.id,)] == 1
    assert found["edgekiln_events_total", ("hung",)] == 1
    assert found["edgekiln_session_info", ("demo", "adaptive")] == 1


def test_the_histogram_counts_exactly_at_each_of_its_edges() -> None:
    found = samples(prometheus.exposition(session().snapshot(9.0)))
    edges = [
        (float(labels[0]), n)
        for (name, labels), n in found.items()
        if name == "edgekiln_latency_seconds_bucket"
    ]
    assert len(edges) == 32
    for edge_s, n in edges:
        assert n == sum(v <= edge_s * 1e3 * 1.0005 for v in LATENCIES)
    assert found["edgekiln_latency_seconds_count", ()] == len(LATENCIES)
    assert found["edgekiln_latency_seconds_sum", ()] == pytest.approx(sum(LATENCIES) / 1e3)


def test_what_is_unknown_has_no_sample() -> None:
    text = prometheus.exposition(Metrics(Goal(deadline_ms=50.0)).snapshot(0.0)).decode()
    for name in ("temperature", "power_watts", "inference_energy", "quality", "battery"):
        assert f"edgekiln_{name}" not in text


def test_strangers_strings_stay_labels_and_apart() -> None:
    found = samples(prometheus.exposition(session(EVIL).snapshot(9.0), {"bundle": EVIL}))
    assert not any("evil" in name for name, _ in found)
    metrics = Metrics(Goal(deadline_ms=50.0))
    metrics.frame_in("a\x01")
    metrics.frame_in("a\x02")
    text = prometheus.exposition(metrics.snapshot(0.0)).decode()
    entered = [line for line in text.splitlines() if line.startswith("edgekiln_frames_entered_total")]
    assert len(set(entered)) == 2


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Prometheus is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    text = prometheus.exposition(session(EVIL).snapshot(9.0), {"bundle": EVIL})
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scrape_over_http_is_of_the_moment(tmp_path: Path) -> None:
    metrics = session()
    with prometheus.serve(lambda: metrics.snapshot(9.0), 0) as port:
        for more in (0, 1):
            if more:
                metrics.frame_in("gate", 100)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                found = samples(answer.read())
            assert found["edgekiln_frames_entered_total", ("gate",)] == 14 + 100 * more
        with pytest.raises(BadInput, match="in use"), prometheus.serve(lambda: metrics.snapshot(9.0), port):
            pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_port_that_is_none_is_refused_with_a_cure() -> None:
    with pytest.raises(BadInput, match="Give another port"), prometheus.serve(lambda: blank(), 99_999):
        pass


def blank() -> Snapshot:
    return Metrics(Goal(deadline_ms=50.0)).snapshot(0.0)


def test_the_textfile_is_whole_and_readable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "edgekiln.prom"
    prometheus.write_textfile(path, session().snapshot(9.0))
    assert samples(path.read_bytes())["edgekiln_deadline_seconds", ()] == 0.05
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_the_edges_are_those_of_the_histogram() -> None:
    told = [h.edge_ms(e) for e in prometheus.EDGES]
    assert told[0] == pytest.approx(0.1)
    assert told[-1] == pytest.approx(10_000.0)


def test_importing_it_brings_no_client_library() -> None:
    code = "import sys, edgekiln.runtime.prometheus; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
