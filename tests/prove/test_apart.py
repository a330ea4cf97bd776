"""An engine held apart answers like any other, and its crash or hang is an error of that artifact alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekiln.engines import open_engine
from edgekiln.errors import ConversionFailed, NotRunnableHere
from edgekiln.prove.apart import Apart
from fakes.networks import REC, ocr_model
from fakes.variants import artifact

WORKER = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "prove_worker.py"))
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def apart(folder: Path, behaviour: str, seconds: float = 30, **options: float) -> Apart:
    made = artifact("made.bin", "fake", behaviour=behaviour, **options)
    return Apart("fake", made, folder, 1, seconds, WORKER)


def test_outputs_come_back_bit_for_bit(tmp_path: Path) -> None:
    found = apart(tmp_path, "chatty")
    try:
        for factor in (1, 2, 3):
            given = {"x": X["x"] * factor}
            np.testing.assert_array_equal(found(given)["y"], given["x"])
    finally:
        found.close()


def test_a_real_engine_gives_what_it_gives_in_this_process(tmp_path: Path) -> None:
    graph = ocr_model(REC)
    made = artifact(graph.name, "onnxruntime")
    x = {"x": np.random.default_rng(0).normal(0, 1, (1, 3, 48, 96)).astype(np.float32)}
    here = open_engine("onnxruntime", made, graph.parent, 1)
    there = Apart("onnxruntime", made, graph.parent, 1)
    try:
        expected, found = here(x), there(x)
    finally:
        here.close()
        there.close()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            "crash",
            "process ended with signal SIGSEGV; its last lines: assertion failed in kernel",
        ),
        ("exit", "ended with exit code 7"),
        ("raise", "Got invalid dimensions"),
    ],
)
def test_a_bad_end_in_a_later_call_names_how_it_ended(behaviour: str, said: str, tmp_path: Path) -> None:
    # Opening makes a first call of its own, so the fourth one here is the fifth.
    found = apart(tmp_path, behaviour, good_calls=4)
    try:
        for _ in range(3):
            found(X)
        with pytest.raises(ConversionFailed, match=said):
            found(X)
    finally:
        found.close()


def test_an_artifact_that_the_engine_refuses_is_not_runnable_here(tmp_path: Path) -> None:
    found = apart(tmp_path, "refuse")
    with pytest.raises(NotRunnableHere, match="no such instruction here") as caught:
        found(X)
    found.close()
    assert caught.value.cure == "Use another machine"


def test_a_call_that_hangs_ends_at_the_limit_and_leaves_no_process(tmp_path: Path) -> None:
    found = apart(tmp_path, "hang", seconds=3, good_calls=2)
    found(X)
    started = time.monotonic()
    with pytest.raises(ConversionFailed, match="no answer within 3 s"):
        found(X)
    found.close()
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "made.for.a-test.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
