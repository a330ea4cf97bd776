"""The benchmark of simulated devices runs, and says that its figures are simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_smoke_run_gives_a_table_per_device_and_day_and_the_raw_results(tmp_path: Path) -> None:
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/runtime/simulate.py"), "--quick", "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(simulated)") == 8
    raw = json.loads((tmp_path / "runtime-simulate.json").read_text())["raw"]
    assert {r["how"] for r in raw["results"]} == {"simulated"}
    assert len(raw["results"]) == 4 * 2 * 6
    assert all(r["assumptions"] for r in raw["results"])
