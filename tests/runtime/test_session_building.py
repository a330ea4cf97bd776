"""TensorRT's first start: the engine is built beside the session, which answers all the while.

Each test is a process of its own on a machine with stand-ins of TensorRT and CUDA (``tensorrt_machine``): the
session, the builder it starts and the cache folder are the real ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.runtime_bundle import Part, runtime_bundle
from fakes.tensorrt_machine import builds, environment

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="no C compiler makes CUDA's stand-in here"
)

PRELUDE = """
import sys, time
from pathlib import Path
import numpy as np
from edgekiln.errors import EdgekilnError, NotRunnableHere
from edgekiln.runtime.session import open_session

bundle, machine = map(Path, sys.argv[1:])
events = []
x = {"x": np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)}
hold = machine / "hold"

def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, events
        time.sleep(0.01)

def told():
    return [(e.kind, e.what) for e in events]
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return tmp_path / "machine"


def run(machine: Path, bundle: Path, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(bundle), str(machine)],
        env=environment(machine),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr


def packed(tmp_path: Path, *parts: Part) -> Path:
    return runtime_bundle(tmp_path / "b.edgekiln", parts)


def test_another_artifact_answers_until_the_engine_is_built_and_then_it_takes_over(
    machine: Path, tmp_path: Path
) -> None:
    """The second session finds the engine in the cache and opens it at once."""
    bundle = packed(tmp_path, Part("fp16", engine="tensorrt", seed=1), Part("fp32", seed=2))
    run(
        machine,
        bundle,
        """
hold.touch()
with open_session(bundle, on_event=events.append) as session:
    assert told() == [("fallback", "tensorrt.fp16"), ("opened", "onnxruntime.fp32")], events
    assert session.rung == "onnxruntime.fp32"
    assert session.building == ("tensorrt.fp16",)
    assert [r.id for r in session.ladder] == ["onnxruntime.fp32"]
    meanwhile = session(x)["y"]
    try:
        session(x, "tensorrt.fp16")
        raise AssertionError
    except NotRunnableHere as error:
        assert "being built" in error.why
    hold.unlink()
    seen = []
    until(lambda: seen.append(session(x)["y"]) or ("change", "tensorrt.fp16") in told())
    assert session.rung == "tensorrt.fp16" and not session.building
    after = session(x)["y"]
    assert not np.array_equal(after, meanwhile)
    assert np.array_equal(session(x, "onnxruntime.fp32")["y"], meanwhile)
    # No call fell between the two: each answer is one or the other, and once it changed it stayed.
    which = [np.array_equal(y, after) for y in seen]
    assert all(w or np.array_equal(y, meanwhile) for w, y in zip(which, seen))
    assert which == sorted(which)
    assert [e.done for e in events if e.kind == "change"] == ["it takes over"]
first = after
(engine,) = (machine / "cache/edgekiln/engines").glob("*.engine")
events.clear()
with open_session(bundle, on_event=events.append) as session:
    assert told() == [("opened", "tensorrt.fp16")]
    assert np.array_equal(session(x)["y"], first)
""",
    )
    assert builds(machine) == 1


def test_nothing_else_in_the_bundle_and_the_proof_engine_answers_meanwhile(
    machine: Path, tmp_path: Path
) -> None:
    bundle = packed(tmp_path, Part("fp16", engine="tensorrt", ms=1.5))
    run(
        machine,
        bundle,
        """
hold.touch()
with open_session(bundle, on_event=events.append) as session:
    (one,) = session.candidates
    assert one.engine == "onnxruntime" and one.note.startswith("emulated by onnxruntime")
    assert one.rung.expected_ms is None
    meanwhile = session(x)["y"]
    hold.unlink()
    until(lambda: ("change", "tensorrt.fp16") in told())
    (one,) = session.candidates
    assert (one.engine, one.note, one.rung.expected_ms) == ("tensorrt", "", 1.5)
    assert np.array_equal(session(x)["y"], meanwhile)
    assert len(session._all.loaded()) == 1
""",
    )


def test_without_stand_ins_opening_waits_for_the_build(machine: Path, tmp_path: Path) -> None:
    bundle = packed(tmp_path, Part("fp16", engine="tensorrt"))
    run(
        machine,
        bundle,
        """
with open_session(bundle, emulated=False, on_event=events.append) as session:
    assert told() == [("fallback", "tensorrt.fp16"), ("opened", "tensorrt.fp16"), ("change", "tensorrt.fp16")]
    assert session(x)["y"].shape == (1, 10)
""",
    )


def test_a_build_that_fails_is_a_row_and_the_other_artifact_goes_on(machine: Path, tmp_path: Path) -> None:
    bundle = packed(tmp_path, Part("fp16", engine="tensorrt"), Part("fp32"))
    run(
        machine,
        bundle,
        """
(machine / "refuse").touch()
with open_session(bundle, on_event=events.append) as session:
    until(lambda: ("refused", "tensorrt.fp16") in told())
    assert session.rung == "onnxruntime.fp32"
    (row,) = session.unusable
    assert row.artifact_id == "tensorrt.fp16" and "Could not find any implementation" in row.why
    assert session(x)["y"].shape == (1, 10)
    try:
        session(x, "tensorrt.fp16")
        raise AssertionError
    except NotRunnableHere as error:
        assert "Could not find" in error.why
""",
    )


def test_closing_ends_the_build_and_nothing_half_made_is_left(machine: Path, tmp_path: Path) -> None:
    bundle = packed(tmp_path, Part("fp16", engine="tensorrt"), Part("fp32"))
    run(
        machine,
        bundle,
        """
import psutil
hold.touch()
with open_session(bundle, on_event=events.append) as session:
    until(lambda: (machine / "builds").exists())
    (child,) = psutil.Process().children()
    assert "build_engine.py" in " ".join(child.cmdline())
    started = time.monotonic()
assert time.monotonic() - started < 10
assert not child.is_running()
assert told()[-1] == ("closed", "b.edgekiln")
assert not [p for p in (machine / "cache").rglob("*") if p.is_file()]
""",
    )


def test_a_choice_of_the_caller_stands_when_the_engine_is_ready(machine: Path, tmp_path: Path) -> None:
    bundle = packed(
        tmp_path, Part("fp16", engine="tensorrt", sizes=((32, 32), (16, 16)), per_size=True), Part("fp32")
    )
    run(
        machine,
        bundle,
        """
hold.touch()
with open_session(bundle, on_event=events.append) as session:
    assert session.building == ("tensorrt.fp16@32x32", "tensorrt.fp16@16x16")
    session.use("onnxruntime.fp32")
    hold.unlink()
    until(lambda: len([e for e in events if e.kind == "change"]) == 2)
    assert session.rung == "onnxruntime.fp32"
    assert len(session.ladder) == 3
    assert session(session.input_buffer("tensorrt.fp16@16x16"), "tensorrt.fp16@16x16")["y"].shape == (1, 10)
    assert (machine / "builds").read_text().count("one") == 2
""",
    )
