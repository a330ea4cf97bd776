"""What the benchmark of deadlines computes from frames whose figures are known; and a smoke run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekiln.records import Artifact
from edgekiln.runtime.vocabulary import Call

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _as_the_benchmark_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"runtime.keeping.{name}")


def place(name: str, side: int, quality: float, ms: float, recipe: str = "fp32") -> Any:
    artifact = Artifact(
        id=name,
        target="onnxruntime",
        recipe=recipe,
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry="model.onnx",
        files=(),
        options={},
        tools={},
        precisions={},
    )
    records = module("records")
    return records.Place(id=name, folder="", artifact=artifact, side=side, quality=quality, calm_ms=ms)


def order(**changes: Any) -> Any:
    records = module("records")
    held = {
        "contender": "each rung",
        "places": (place("big", 224, 1.0, 10.0), place("small", 128, 0.5, 2.0)),
        "course": (
            records.Phase(kind="calm", seconds=2.0),
            records.Phase(kind="busy", seconds=2.0, rivals=1),
        ),
        "deadline_ms": 20.0,
        "percentile": 0.9,
        "fps": 10.0,
        "core": 0,
        "group": "",
    }
    return records.Order(**(held | changes))


def run(contender: str, rows: list[tuple[float, str, str, float | None]]) -> Any:
    records = module("records")
    frames = tuple(records.Frame(at_s=at, kind=kind, rung=rung, ended_ms=ms) for at, kind, rung, ms in rows)
    return records.Run(contender=contender, turn=0, frames=frames)


def test_figures_of_known_frames() -> None:
    held = order()
    rows: list[tuple[float, str, str, float | None]] = [
        (n / 10, "calm" if n < 20 else "busy", "big", 12.0) for n in range(30)
    ]
    rows += [(3.0, "busy", "big", 25.0), (3.1, "busy", "", None)]
    rows += [(3.2 + n / 10, "busy", "small", 4.0) for n in range(8)]
    places = {p.id: p for p in held.places}
    found = module("figures").score("it", [run("it", rows)], held.course, places, 20.0)
    assert found.n == 40
    assert found.in_time[0] == pytest.approx(38 / 40)
    assert found.quality[0] == pytest.approx((31 * 1.0 + 8 * 0.5) / 39)
    assert found.useful[0] == pytest.approx((30 * 1.0 + 8 * 0.5) / 40)
    assert found.side[0] == pytest.approx((31 * 224 + 8 * 128) / 39)
    assert found.changes == pytest.approx(1 / 4 * 60)
    assert found.in_time[1] <= found.in_time[0] <= found.in_time[2]


def test_intervals_come_from_whole_phases() -> None:
    """Two runs, all in time and none in time: the interval reaches from one to the other."""
    held = order(course=(module("records").Phase(kind="calm", seconds=4.0),))
    places = {p.id: p for p in held.places}
    good = run("it", [(n / 10, "calm", "big", 5.0) for n in range(40)])
    bad = run("it", [(n / 10, "calm", "big", 50.0) for n in range(40)])
    found = module("figures").score("it", [good, bad], held.course, places, 20.0)
    assert found.in_time == pytest.approx((0.5, 0.0, 1.0))


def test_the_oracle_takes_the_best_rung_that_fits_each_kind_and_counts_drops() -> None:
    held = order()
    rows: list[tuple[float, str, str, float | None]] = []
    for n in range(20):
        rows += [(n / 10, "calm", "big", 12.0), (n / 10, "calm", "small", 3.0)]
        rows += [
            (2 + n / 10, "busy", "big", None if n % 5 == 0 else 12.0),
            (2 + n / 10, "busy", "small", 6.0),
        ]
    found = module("figures").picks([run("each rung", rows)], held.places, 20.0, 0.9)
    assert found == {"calm": "big", "busy": "small"}
    worse = [(at, kind, rung, 40.0 if kind == "busy" else ms) for at, kind, rung, ms in rows]
    worse += [(4.0, "busy", "small", 10.0)]
    assert module("figures").picks([run("each rung", worse)], held.places, 20.0, 0.9)["busy"] == "small"


def test_lead_ins_do_not_count_and_each_rung_has_its_block_in_each_phase() -> None:
    held = order()
    each = module("contenders").Each(held)
    assert [each.first(at) for at in (0.0, 0.9, 1.1, 2.1, 3.9)] == ["big", "big", "small", "big", "small"]
    assert [each.counts(at) for at in (0.1, 0.3, 1.1, 1.3)] == [False, True, False, True]
    turned = module("contenders").Each(order(turn=1))
    assert turned.first(0.0) == "small"


def test_the_guide_tries_the_smallest_float_first_and_goes_on_only_when_late() -> None:
    places = (
        place("big", 224, 1.0, 10.0),
        place("int8", 96, 0.4, 1.0, "int8"),
        place("small", 128, 0.5, 2.0),
    )
    guide = module("contenders").Guide(order(places=places))
    assert guide.first(0.0) == "small"
    assert guide.then("small", 5.0) is None
    assert guide.then("small", 25.0) == "big"
    assert guide.then("big", 25.0) is None


def test_ours_sees_its_calls_only_and_reports_its_changes() -> None:
    ours = module("contenders").Ours(order())
    assert ours.first(0.0) == "big"
    for n in range(5):
        ours.heard(Call(at_s=n / 10, rung=ours.first(0.0), batch=1, latency_ms=30.0), 0.1)
    assert ours.first(0.0) == "small"
    assert ours.changes[0].rung == "small"


def test_rivals_spin_only_when_they_are_let_and_die_with_their_parent() -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from runtime.keeping.loads import rivals\n"
        "import subprocess\n"
        "with rivals(0, 1) as let:\n"
        "    let(1); print('up', flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(BENCHMARKS)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline().strip() == b"up"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 1
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while Path(f"/proc/{children[0]}/cmdline").exists() and time.monotonic() < until:
        if not Path(f"/proc/{children[0]}/cmdline").read_bytes():
            break  # killed, not yet reaped
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{children[0]}").exists()


def test_a_smoke_run_prints_whole_tables_and_keeps_every_frame(tmp_path: Path) -> None:
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, str(BENCHMARKS / "runtime" / "deadline.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    held = json.loads((tmp_path / "deadline.json").read_text(encoding="utf-8"))
    first, second = held["tables"]
    assert [row[0] for row in first["rows"][:3]] == ["oracle", "edgekiln", "guide"]
    assert {len(row) for row in first["rows"]} == {len(first["columns"])}
    assert len(second["rows"]) == len(first["rows"])
    what, runs = held["raw"]
    assert {r["contender"] for r in runs} == {"each rung", "guide", "edgekiln", "oracle"}
    frames = round(sum(p["seconds"] for p in what["course"]) * what["fps"])
    for one in runs:
        assert len(one["frames"]) == frames
        assert len(one["turns_s"]) == len(what["course"])
    assert "mean nothing" in done.stdout
