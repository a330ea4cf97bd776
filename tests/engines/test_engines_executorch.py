"""The ExecuTorch engine: names for numbers, threads as asked, and reasons where a file can't run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekiln.compile.targets.executorch import convert
from edgekiln.engines import executorch as engine
from edgekiln.errors import BadInput, NotRunnableHere
from edgekiln.records import Artifact
from fakes.networks import picture
from fakes.variants import PC, order


@pytest.fixture(scope="module")
def made(net: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("pte")
    return convert(order(folder / "variant", net, "fp32", PC), folder / "out"), folder / "out"


def test_arrays_go_by_the_models_names_and_earlier_results_stay(made: tuple[Artifact, Path]) -> None:
    runner = engine.open(*made, 1)
    first = runner({"image": picture(1)})
    kept = first["logits"].copy()
    second = runner({"image": picture(2)})["logits"]
    assert list(first) == ["logits"]
    assert np.array_equal(first["logits"], kept)
    assert not np.array_equal(second, kept)
    runner.close()


def test_an_array_that_is_not_contiguous_or_not_writable_is_read_right(made: tuple[Artifact, Path]) -> None:
    runner = engine.open(*made, 1)
    straight = picture(4)
    turned = np.ascontiguousarray(straight.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    turned.setflags(write=False)
    assert np.array_equal(runner({"image": turned})["logits"], runner({"image": straight})["logits"])
    runner.close()


def test_threads_are_the_pools_and_one_number_holds_for_all_open_files(made: tuple[Artifact, Path]) -> None:
    from executorch.extension.pybindings import portable_lib

    for threads in (1, 2):
        runner = engine.open(*made, threads)
        assert portable_lib._threadpool_get_thread_count() == threads
        expected = runner({"image": picture(0)})["logits"]
        with pytest.raises(NotRunnableHere, match="one pool per process"):
            engine.open(*made, 3 - threads)
        other = engine.open(*made, threads)
        runner.close()
        assert np.array_equal(other({"image": picture(0)})["logits"], expected)
        other.close()


def test_a_damaged_file_is_refused_with_the_runtimes_words(
    made: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, folder = made
    data = (folder / artifact.entry).read_bytes()
    for damage in (data[: len(data) // 2], b"\0" * 64 + data[64:], data[:200] + bytes(400) + data[600:], b""):
        (tmp_path / artifact.entry).write_bytes(damage)
        with pytest.raises(NotRunnableHere, match=r"error:? 0x"):
            engine.open(artifact, tmp_path, 1)


def test_a_missing_file_and_missing_names_are_refused(made: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, folder = made
    with pytest.raises(NotRunnableHere, match=r"model\.pte"):
        engine.open(artifact, tmp_path, 1)
    with pytest.raises(BadInput, match="'inputs' is not a JSON list"):
        engine.open(msgspec.structs.replace(artifact, options={}), folder, 1)
    renamed = msgspec.structs.replace(artifact, options={**artifact.options, "outputs": '["a", "b"]'})
    with pytest.raises(BadInput, match="1 inputs and 1 outputs"):
        engine.open(renamed, folder, 1)


def test_wrong_inputs_are_refused_and_the_next_call_is_sound(made: tuple[Artifact, Path]) -> None:
    runner = engine.open(*made, 1)
    expected = runner({"image": picture(0)})["logits"]
    with pytest.raises(BadInput, match="'image' is missing"):
        runner({"picture": picture(0)})
    with pytest.raises(BadInput, match="error 0x"):
        runner({"image": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(BadInput, match="error 0x"):
        runner({"image": picture(0).astype(np.float64)})
    assert np.array_equal(runner({"image": picture(0)})["logits"], expected)
    runner.close()


def test_opening_is_silent_in_a_fresh_process(made: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, folder = made
    (tmp_path / "artifact.json").write_bytes(msgspec.json.encode(artifact))
    program = """
import sys, msgspec, numpy as np
from pathlib import Path
from edgekiln.engines.executorch import open
from edgekiln.records import Artifact
artifact = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Artifact)
print(open(artifact, Path(sys.argv[2]), 1)({"image": np.zeros((1, 3, 32, 32), np.float32)})["logits"].shape)
"""
    command = [sys.executable, "-c", program, tmp_path / "artifact.json", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 10)"
    assert "cpuinfo" not in done.stderr
    assert ".cpp" not in done.stderr


def test_without_the_package_the_extra_is_named(made: tuple[Artifact, Path], tmp_path: Path) -> None:
    """In a process of its own, in which the package can't be found."""
    program = """
import sys
sys.modules["executorch"] = None
from pathlib import Path
from edgekiln.engines.executorch import open
from edgekiln.errors import MissingExtra
from edgekiln.records import Artifact
import msgspec
artifact = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Artifact)
try:
    open(artifact, Path(sys.argv[2]), 1)
except MissingExtra as error:
    print(error.extra, error.cure)
"""
    artifact, folder = made
    (tmp_path / "artifact.json").write_bytes(msgspec.json.encode(artifact))
    command = [sys.executable, "-c", program, tmp_path / "artifact.json", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "executorch Run: pip install 'edgekiln[executorch]'"
