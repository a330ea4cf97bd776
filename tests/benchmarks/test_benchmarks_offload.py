"""The benchmark of offload runs (``--quick``) and prints whole tables; its figures' sizes are not tested."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
NETWORKS = ("good", "slow", "broken", "flapping", "mute")
CONTENDERS = ["edge only", "server only", "edgekiln, cloud", "edgekiln, adaptive"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("runtime.offloading.command")


def test_a_quick_run_tells_of_each_contender_on_each_network(tmp_path: Path) -> None:
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "runtime" / "offload.py"), "--quick", "--out", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "its figures mean nothing" in done.stdout
    held: dict[str, Any] = json.loads((tmp_path / "offload.json").read_text())
    assert [t["title"] for t in held["tables"][:-1]] == [f"Network: {n}" for n in NETWORKS]
    for table in held["tables"][:-1]:
        assert [row[0] for row in table["rows"]] == CONTENDERS
    assert {(r["trace"], r["contender"]) for r in held["raw"]} == {
        (n, c) for n in NETWORKS for c in CONTENDERS
    }
    for round_ in held["raw"]:
        if round_["contender"] != "server only":
            assert all(f["place"] in ("edge", "cloud") for f in round_["frames"])
        if (round_["trace"], round_["contender"]) == ("mute", "server only"):
            assert all(f["place"] == "" for f in round_["frames"])


def test_late_counts_answered_frames_past_105_per_cent(command: ModuleType) -> None:
    frames = [
        command.Frame(place=place, right=True, latency_ms=ms)
        for place, ms in (("edge", 105.0), ("edge", 105.1), ("cloud", 300.0), ("", 300.0))
    ]
    assert command.late(frames, 100.0) == 2


def test_the_two_models_are_real_and_the_server_s_is_the_better(command: ModuleType, tmp_path: Path) -> None:
    import onnxruntime as ort

    data = command.digits(tmp_path)
    right = {}
    for path in (data.edge, data.cloud):
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [int(session.run(None, {"image": f[None]})[0].argmax()) for f in data.frames]
        right[path.stem] = float(np.mean(np.array(found) == data.labels))
    assert 0.6 < right["edge"] < right["cloud"] < 1.0, right
