"""A Jetson's engine: built there once, kept by board, version and hash. TensorRT and CUDA are stand-ins."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import NotRunnableHere
from edgekiln.files import entries
from edgekiln.prove.remote.address import parse
from edgekiln.prove.remote.bench import bench_on
from edgekiln.prove.remote.result import RemoteBench
from edgekiln.records import Artifact
from fakes.measured import QUICK, conv
from fakes.ssh_server import Device

FAKES = Path(__file__).resolve().parents[2] / "fakes"
PLAN: dict[str, Any] = {
    "schema": 1,
    "tensorrt_min": [10, 0],
    "tensorrt_below": 12,
    "profiles": [],
    "workspace_bytes": 1 << 28,
    "tf32": False,
    "builder_optimization_level": 3,
    "trtexec": ["--plugins=/tmp/evil.so"],
}
Arrays = dict[str, NDArray[np.float32]]


def planned(folder: Path, **changes: Any) -> tuple[Artifact, Path]:
    one, made = conv(folder)
    (made / "plan.json").write_text(json.dumps(PLAN | changes))
    one = float_artifact("model.onnx", "conv-trt")
    return msgspec.structs.replace(one, engine="tensorrt", target="tensorrt", files=entries(made)), made


def measure(device: Device, given: tuple[Artifact, Path], inputs: Arrays) -> RemoteBench:
    return bench_on(*given, inputs, parse(device.address), QUICK)


def engines(device: Device) -> list[Path]:
    return sorted((device.home / ".cache/edgekiln/engines").glob("*.engine"))


@pytest.fixture
def jetson(device: Device) -> Device:
    """Its Python finds a TensorRT 10.3 and its linker a CUDA whose memory is the host's."""
    if shutil.which("gcc") is None:
        pytest.fail("gcc makes CUDA's stand-in; make setup installs it")
    libraries, modules = device.folder / "lib", device.folder / "modules"
    libraries.mkdir()
    modules.mkdir()
    source = FAKES / "cpp" / "cuda_library.c"
    for name in ("libcudart.so", "libcuda.so.1"):
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", libraries / name, source], check=True)
    (modules / "tensorrt.py").write_text(
        f"import sys\nsys.path.insert(0, {str(FAKES.parent)!r})\n"
        "from fakes.tensorrt_module import TensorRT\n"
        "sys.modules['tensorrt'] = TensorRT('10.3.0')\n"
    )
    device.environment |= {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(modules)}
    return device


def test_the_engine_is_built_there_once_and_found_the_next_time(
    jetson: Device, inputs: Arrays, tmp_path: Path
) -> None:
    first = measure(jetson, planned(tmp_path / "a"), inputs)
    assert first.environment["engine_cached"] is False
    assert first.engine_version == "10.3.0"
    assert len(first.samples_ms) == 40
    (engine,) = engines(jetson)
    assert "orin-sm87-trt10.3.0-" in engine.name
    made = engine.stat().st_mtime_ns
    second = measure(jetson, planned(tmp_path / "a"), inputs)
    assert second.environment["engine_cached"] is True
    assert [e.stat().st_mtime_ns for e in engines(jetson)] == [made]
    measure(jetson, planned(tmp_path / "a", workspace_bytes=1 << 27), inputs)
    assert len(engines(jetson)) == 2, "another plan is another engine"
    assert jetson.left_behind() == [".cache/edgekiln"]


def test_a_plan_for_a_newer_tensorrt_is_refused(jetson: Device, inputs: Arrays, tmp_path: Path) -> None:
    with pytest.raises(NotRunnableHere, match=r"TensorRT 10\.3\.0 is installed, the plan needs"):
        measure(jetson, planned(tmp_path / "a", tensorrt_min=[10, 15]), inputs)
    assert engines(jetson) == []


def test_no_tensorrt_at_all(device: Device, inputs: Arrays, tmp_path: Path) -> None:
    with pytest.raises(NotRunnableHere, match="TensorRT is not there") as refused:
        measure(device, planned(tmp_path / "a"), inputs)
    assert "JetPack" in refused.value.cure


TIMES = '[{"startEnqMs":0,"latencyMs":2.5,"computeMs":2},{"startEnqMs":3,"latencyMs":3.5,"computeMs":3}]'
TRTEXEC = """
echo "$@" >>"$HOME/asked"
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec $*"
for word in "$@"; do case "$word" in
  --saveEngine=*) echo engine >"${word#*=}" ;;
  --exportTimes=*) echo 'TIMES' >"${word#*=}" ;;
esac; done
"""


def test_where_only_trtexec_is_there_it_builds_and_times(
    device: Device, inputs: Arrays, tmp_path: Path
) -> None:
    device.program("trtexec", TRTEXEC.replace("TIMES", TIMES))
    shape = {"min": [1, 8, 32, 32], "opt": [1, 8, 32, 32], "max": [4, 8, 32, 32]}
    given = planned(tmp_path / "a", profiles=[{"x": shape}])
    found = measure(device, given, inputs)
    assert found.samples_ms == (2.5, 3.5)
    assert found.engine_version == "10.3.0"
    assert found.environment["engine_program"] == "trtexec"
    asked = (device.home / "asked").read_text()
    assert "--stronglyTyped --skipInference --builderOptimizationLevel=3 --noTF32" in asked
    assert "--memPoolSize=workspace:256 --minShapes=x:1x8x32x32" in asked
    assert "--maxShapes=x:4x8x32x32" in asked
    assert "--shapes=x:1x8x32x32" in asked
    assert "evil" not in asked, "a bundle can't choose options"
    assert measure(device, given, inputs).environment["engine_cached"] is True
    assert (device.home / "asked").read_text().count("--saveEngine") == 1


def test_what_trtexec_writes_otherwise_is_refused_in_its_own_words(
    device: Device, inputs: Arrays, tmp_path: Path
) -> None:
    device.program("trtexec", TRTEXEC.replace("TIMES", '[{"time": 2}]'))
    with pytest.raises(NotRunnableHere, match=r"not as expected.*RUNNING TensorRT"):
        measure(device, planned(tmp_path / "a"), inputs)
    failing = "echo '[11/26/2026-10:00:00] [E] Error[4]: no Foo plugin'; exit 1"
    device.program("trtexec", failing)
    with pytest.raises(NotRunnableHere, match="no Foo plugin"):
        measure(device, planned(tmp_path / "b", workspace_bytes=None), inputs)
    assert len(engines(device)) == 1
