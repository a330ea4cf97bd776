"""The benchmark of streams runs (``--quick``), and its figures are computed right from known windows."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("bench")
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, str(BENCHMARKS / "runtime" / "streams.py"), "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": search}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"cache", "streams.json"}
    return done.stdout, json.loads((out / "streams.json").read_text(encoding="utf-8"))


def test_every_scene_of_both_engines_is_there_and_no_frame_failed(run: Any) -> None:
    text, held = run
    assert "its figures mean nothing" in text
    throughput, fairness, calls = held["tables"]
    scenes = {"ready", "equal", "one fast", "one stalls", "equal, all cores"}
    for table in (throughput, fairness):
        assert {(row[0], row[1]) for row in table["rows"]} == {
            (engine, scene) for engine in ("onnxruntime", "openvino") for scene in scenes
        }
    assert [row[0] for row in calls["rows"]] == ["onnxruntime", "openvino"]
    for found in held["raw"]["engines"]:
        for rounds in found["rounds"].values():
            for one in rounds:
                assert sum(one["streams"]["answered"]) > 0
                assert one["streams"]["failed"] == 0
                assert set(one["before"]["rates"]) == {"1", "2", "4", "8"}
    assert held["raw"]["costs"]["decode_ms"] > 0


def window(answered: tuple[int, ...], **more: Any) -> Any:
    scenes = importlib.import_module("runtime.streaming.scenes")
    plain = {"came": (0, 0), "dropped": (0, 0), "failed": 0, "mean_batch": 1.0, "p50_ms": 1.0, "p95_ms": 1.0}
    return scenes.Window(**{"seconds": 10.0, "cpu_ms": 1.0, "answered": answered, **plain, **more})


def test_ratio_and_unfairness_are_what_the_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    command = importlib.import_module("runtime.streaming.command")
    alone = importlib.import_module("runtime.streaming.engine").Alone
    one = command.Round(
        before=alone(rates={1: 90.0, 8: 100.0}, cpu_ms=10.0),
        streams=window((400, 500), cpu_ms=18.0, came=(900, 900)),
        after=alone(rates={1: 140.0, 8: 100.0}, cpu_ms=12.0),
    )
    assert one.ratio == pytest.approx(90 / 120)
    # Two frames are decoded for each that is answered: 18 - 11 - 2 * 0.5 - 4.
    assert one.added_ms(decode_ms=0.5, prepare_ms=4.0) == pytest.approx(2.0)
    still = alone(rates={1: 1.0}, cpu_ms=1.0)
    two = command.Round(before=still, streams=window((600, 500)), after=still)
    assert command.unfairness([one]) == pytest.approx(100 / 450)
    assert command.unfairness([one, two]) == 0.0
    assert command.unfairness([one], leave_out=0) == 0.0


def test_a_runner_of_several_sizes_gives_each_frame_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    engine = importlib.import_module("runtime.streaming.engine")
    called: list[int] = []

    class Doubling:
        def __call__(self, inputs: Any) -> Any:
            called.append(len(inputs["x"]))
            return {"y": 2 * inputs["x"]}

        def close(self) -> None:
            pass

    runner = engine.ByBatch({size: Doubling() for size in (1, 2, 4, 8)})
    x = np.arange(7.0)[:, None]
    assert np.array_equal(runner({"x": x})["y"], 2 * x)
    assert called == [4, 2, 1]
