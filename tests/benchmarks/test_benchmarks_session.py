"""The benchmark of a session's overhead runs (``--quick``) and judges its goals; no figure is tested."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("runtime.added")


def test_it_compares_every_way_of_calling_on_both_engines(tmp_path: Path) -> None:
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "runtime" / "overhead.py"), "--quick", "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "its figures mean nothing" in done.stdout
    held = json.loads((tmp_path / "runtime-overhead.json").read_text())
    assert held["quick"] is True
    calls = [(p["engine"], p["network"], p["recipe"]) for p in held["raw"]["pairs"]]
    modes = [f"fp32, {mode}" for mode in ("new arrays", "one array", "in place")]
    engines = ("onnxruntime", "openvino")
    assert calls == [(e, n, m) for e in engines for n in ("one-node", "tiny") for m in modes]
    for pair in held["raw"]["pairs"]:
        assert len(pair["ours_us"]) == len(pair["bare_us"]) == 5
        assert {len(block) for block in pair["ours_us"]} == {len(block) for block in pair["bare_us"]}
    for row in held["raw"]["memory"]:
        assert min(*row["session_bytes"], *row["bare_bytes"]) > 30e6, "an interpreter with an engine"
    assert set(held["raw"]["import_s"]) == {"numpy", "edgekiln.runtime.session"}
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "runtime-overhead.json"}


@pytest.mark.parametrize(
    ("network", "bare_us", "added_us", "verdict"),
    [
        ("tiny", 10.0, 25.0, "met"),
        ("tiny", 10.0, 35.0, "missed"),
        ("efficientnet-lite0", 2000.0, 25.0, "missed"),
        ("efficientnet-lite0", 2000.0, 15.0, "met"),
        ("efficientnet-lite0", 9000.0, 35.0, "missed"),
    ],
)
def test_the_goal_is_30_microseconds_and_1_percent_of_a_real_network(
    added: ModuleType, network: str, bare_us: float, added_us: float, verdict: str
) -> None:
    bare = tuple(tuple(bare_us + turn % 3 / 100 for _ in range(5)) for turn in range(20))
    ours = tuple(tuple(us + added_us for us in block) for block in bare)
    pair = added.Pair(network=network, recipe="fp32", engine="openvino", ours_us=ours, bare_us=bare)
    assert added._row(pair)[-1] == verdict
