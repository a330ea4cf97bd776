"""Each benchmark runs (``--quick``) and prints whole tables with its machine; no figure's size is tested.

What computes a figure from measurements is tested on measurements whose answer is known.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
NAMES = ("build", "calibration", "host_options", "mobile", "overhead")
FIGURE = re.compile(r"\d")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    """The markdown and the JSON of each benchmark's smoke run."""
    out = tmp_path_factory.mktemp("bench")
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    found = {}
    for name in NAMES:
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--out", str(out)]
        done = subprocess.run(
            command,
            cwd=out,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
        found[name] = (done.stdout, json.loads((out / f"{name}.json").read_text(encoding="utf-8")))
    left = {path.name for path in out.iterdir()}
    assert left == {"cache", *(f"{name}.json" for name in NAMES)}, "scratch folders are removed"
    return found


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A benchmark as a module, imported as its own start would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


def tables(markdown: str) -> list[list[list[str]]]:
    """Cells of every table: rows of equal width below a header and its rule."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert set(rows[1]) == {"---"}
        found.append([rows[0], *rows[2:]])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_whole_and_stands_in_the_json(name: str, runs: dict[str, Any]) -> None:
    markdown, held = runs[name]
    found = tables(markdown)
    assert len(found) == len(held["tables"]) > 0
    for table, kept in zip(found, held["tables"], strict=True):
        assert table[0] == kept["columns"]
        assert len(table) - 1 == len(kept["rows"]) > 0
        assert {len(row) for row in table} == {len(kept["columns"])}
        assert all(any(FIGURE.search(cell) for cell in row[1:]) for row in table[1:]), (
            "a row without a figure"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_says_where_when_with_which_versions_and_that_it_was_a_smoke_run(
    name: str, runs: dict[str, Any]
) -> None:
    markdown, held = runs[name]
    assert (held["name"], held["quick"]) == (name, True)
    assert "its figures mean nothing" in markdown
    assert re.search(r"^Machine: .*cpus usable \d+", markdown, re.MULTILINE)
    for package in ("edgekiln", "onnxruntime", "openvino", "numpy", "python"):
        assert re.search(rf"^Versions: .*{package} \d+\.\d+", markdown, re.MULTILINE)
    assert re.search(
        r"^Measured \d{4}-\d\d-\d\d \d\d:\d\d UTC\. Fit to measure on: \S", markdown, re.MULTILINE
    )


def test_the_build_is_told_step_by_step_and_its_steps_fit_into_it(runs: dict[str, Any]) -> None:
    _, held = runs["build"]
    cold, (again,) = held["raw"]["cold"], held["raw"]["again"]
    texts = [step["text"] for step in cold["steps"]]
    assert texts[0] == "read the model and the data"
    assert sum(text.startswith("make ") for text in texts) == 2
    assert sum(text.startswith("prove ") for text in texts) == 2
    assert texts == [step["text"] for step in again["steps"]]
    rounding = 0.05 * len(texts)
    assert sum(step["seconds"] for step in cold["steps"]) <= cold["seconds"] + rounding
    assert cold["peak_tree_bytes"] > 50e6, "Python with onnxruntime is larger than that"


def test_help_imports_nothing_heavy(runs: dict[str, Any]) -> None:
    _, held = runs["build"]
    assert held["raw"]["starts"]["heavy"] == []
    assert held["raw"]["starts"]["modules"] > 20, "the modules were read at all"


def test_every_calibrator_gives_a_working_network_in_a_process_of_its_own(runs: dict[str, Any]) -> None:
    _, held = runs["calibration"]
    assert len({row["contender"] for row in held["raw"]}) == 8
    for row in held["raw"]:
        (answer,) = row["answers"]
        assert row["failure"] == ""
        assert answer["sqnr_db"] > 10
        assert 0.5 <= answer["agreement"] <= 1
        assert 0 < answer["before_bytes"] <= answer["peak_bytes"]


def test_the_engines_and_the_bare_runtimes_took_turns(runs: dict[str, Any]) -> None:
    _, held = runs["overhead"]
    assert [(p["engine"], p["network"]) for p in held["raw"]] == [
        ("onnxruntime", "tiny"),
        ("openvino", "tiny"),
    ]
    for pair in held["raw"]:
        assert len(pair["ours_us"]) == len(pair["bare_us"]) == 10
        assert {len(block) for block in pair["ours_us"]} == {len(block) for block in pair["bare_us"]}


# ---------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("module", ["overhead"], indirect=True)
def test_the_added_time_is_the_difference_whatever_slows_both(module: ModuleType) -> None:
    base = [[100.0 + turn % 7 + call / 10 for call in range(9)] for turn in range(40)]
    pair = module.Pair(
        network="tiny",
        recipe="fp32",
        engine="onnxruntime",
        bare_us=tuple(map(tuple, base)),
        ours_us=tuple(tuple(us + 4.0 for us in block) for block in base),
    )
    value, low, high = module.difference(pair)
    assert value == pytest.approx(4.0)
    assert 3.5 <= low <= 4.0 <= high <= 4.5


@pytest.mark.parametrize("module", ["calibration"], indirect=True)
def test_goals_of_calibration_are_judged_by_both_sides_figures(module: ModuleType) -> None:
    def series(name: str, samples: int, seconds: float, added: int, agreement: float) -> Any:
        answer = module.Answer(
            seconds=seconds, before_bytes=100, peak_bytes=100 + added, agreement=agreement, sqnr_db=20.0
        )
        return module.Series(name, samples, [answer])

    plan = [
        series("edgekiln minmax", 32, 3.0, 50, 0.8),
        series("ONNX Runtime MinMax", 32, 1.0, 10, 0.9),
        series("edgekiln minmax", 512, 10.0, 60, 0.9),
        module.Series("ONNX Runtime MinMax", 512, [], "stopped"),
    ]
    rows = {row[0]: row[1:] for row in module.goals(plan, holdout=10).rows}
    assert list(rows.values()) == [
        ("3.00", "≤ 1.5", "missed by 1.5"),
        ("1", "≤ 1", "met"),
        ("1.20", "≤ 1.1", "missed by 0.1"),
    ]
    assert not [what for what in rows if "512 samples" in what and "time" in what], "nothing to compare with"


@pytest.mark.parametrize("module", ["build"], indirect=True)
def test_steps_are_read_from_progress_lines_alone(module: ModuleType) -> None:
    text = "note\n    1.5 s  make  a · b · c\n   12.0 s  read it\n    0.5 s  make  b: Boom\nx 1 s"
    steps = module.read_steps(text)
    assert [(s.seconds, s.text.split()[0]) for s in steps] == [(1.5, "make"), (12.0, "read"), (0.5, "make")]
    assert module.by_station(steps) == {"make (all artifacts)": 2.0, "read it": 12.0}


@pytest.mark.parametrize("module", ["build"], indirect=True)
def test_a_heavy_import_would_be_seen(module: ModuleType) -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import numpy.linalg"]
    assert {"numpy", "numpy.linalg"} <= set(module.imported_by(command))
    assert "numpy" in module.HEAVY


@pytest.mark.parametrize("module", ["measuring.process"], indirect=True)
def test_memory_counts_the_children_and_the_limits_stop_them(module: ModuleType) -> None:
    child = "b = bytearray(150 << 20); import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = module.run([sys.executable, "-c", parent], limit_seconds=60, limit_bytes=100 << 20)
    assert "limit of 0.1 GB of memory" in done.stopped
    assert done.peak_tree_bytes > 100 << 20
    slow = module.run([sys.executable, "-c", "import time; time.sleep(60)"], limit_seconds=0.2)
    assert "limit of time" in slow.stopped
    assert slow.seconds < 30
    quick = module.run([sys.executable, "-c", "print(7)"], limit_seconds=60)
    assert (quick.stopped, quick.exit_code, quick.stdout) == ("", 0, "7\n")


@pytest.mark.parametrize("module", ["measuring.table"], indirect=True)
def test_cells_cannot_break_a_table_and_spread_says_how_many(module: ModuleType) -> None:
    table = module.Table(title="t", columns=("a", "b"), rows=(("x|y\nz", "1"),))
    held = module.Benchmark(
        name="n",
        quick=False,
        when="now",
        edgekiln="0",
        machine={},
        unfit=("too hot",),
        tables=(table,),
        raw=None,
    )
    text = module.markdown(held)
    assert tables(text) == [[["a", "b"], ["x\\|y z", "1"]]]
    assert "too hot" in text
    assert "mean nothing" not in text
    assert module.spread([], "s", 1) == "—"
    assert module.spread([2.0], "s", 1) == "2.0 s (once)"
    assert module.spread([2.0, 1.0], "s", 1) == "1.5 s (2.0, 1.0)"
    assert module.spread([1.0, 2.0, 3.0, 4.0, 5.0], "s", 1) == "3.0 s (IQR 2.0)"
    assert module.against_goal(3.0, 3.0) == "met"
    assert module.against_goal(4.5, 3.0) == "missed by 1.5"


def test_make_bench_runs_exactly_these() -> None:
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(NAMES)
    done = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in NAMES:
        assert f"benchmarks/{name}.py" in done.stdout
