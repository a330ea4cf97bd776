"""The TensorRT engine, against a whole stand-in of TensorRT and CUDA; and what it says without them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_engines_build_engine import folder

from edgekiln.engines import build_engine
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import tensorrt as engine
from edgekiln.errors import BadInput, MachineFault, NotRunnableHere
from fakes.networks import picture
from fakes.tensorrt_module import Cuda, TensorRT
from fakes.variants import artifact

ARTIFACT = artifact("model.onnx", "tensorrt")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine with tensorrt 10.3, cuda-python and an Orin; its cache folder is empty."""
    trt, cuda = TensorRT("10.3.0"), Cuda()
    bindings: Any = ModuleType("cuda.bindings")
    bindings.runtime = cuda
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build_engine.ctypes, "CDLL", lambda name: Driver())
    return SimpleNamespace(trt=trt, cuda=cuda, cache=tmp_path / "cache/edgekiln/engines")


class Driver:
    """libcuda.so.1 of an Orin."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def expected(net: Path, x: Any) -> Any:
    return reference.open(artifact(net.name, "onnxruntime"), net.parent, 1)({"image": x})["logits"]


def test_it_builds_on_first_use_keeps_the_engine_in_the_cache_and_computes(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    x = picture(1)
    assert np.array_equal(runner({"image": x})["logits"], expected(dynamic_net, x))
    (kept,) = machine.cache.glob("*.engine")
    assert kept.name.startswith("orin-sm87-trt10.3.0-")
    engine.open(ARTIFACT, tmp_path / "artifact", 1)
    assert sum(call[0] == "build" for call in machine.trt.calls) == 1
    assert {p.name for p in (tmp_path / "artifact").iterdir()} == {"model.onnx", "plan.json"}


def test_shapes_may_change_from_call_to_call_and_earlier_outputs_stay(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    one, three = picture(1), np.concatenate([picture(k) for k in (2, 3, 4)])
    first = runner({"image": one})["logits"]
    assert np.array_equal(runner({"image": three})["logits"], expected(dynamic_net, three))
    mallocs = machine.cuda.mallocs
    assert np.array_equal(runner({"image": one})["logits"], first)
    assert machine.cuda.mallocs == mallocs, "a smaller shape fits the buffers that are there"
    assert np.array_equal(first, expected(dynamic_net, one))


def test_an_array_that_is_not_contiguous_is_copied_right(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    x = picture(1).transpose(0, 1, 3, 2)
    assert not x.flags.c_contiguous
    assert np.array_equal(runner({"image": x})["logits"], expected(dynamic_net, np.ascontiguousarray(x)))


def test_closing_gives_all_memory_back(machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    runner({"image": picture(1)})
    assert machine.cuda.blocks
    runner.close()
    runner.close()
    assert not machine.cuda.blocks
    assert not machine.cuda.streams


def test_a_shape_outside_the_profile_is_bad_input(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    with pytest.raises(BadInput, match=r"\(5, 3, 32, 32\) is outside"):
        runner({"image": np.zeros((5, 3, 32, 32), np.float32)})


def profile(*shapes: tuple[int, ...]) -> dict[str, Any]:
    """A profile of the classifier's input: least, tuned and greatest shape, or one for all three."""
    three = shapes if len(shapes) == 3 else shapes * 3
    return {"image": dict(zip(("min", "opt", "max"), map(list, three), strict=True))}


def test_the_profile_that_was_tuned_for_the_shape_is_made_active(
    machine: SimpleNamespace, any_size_net: Path, tmp_path: Path
) -> None:
    sizes = [(1, 3, 32, 32), (1, 3, 48, 64), (1, 3, 64, 64)]
    made = folder(tmp_path, any_size_net, profiles=[profile(s) for s in sizes])
    runner = engine.open(ARTIFACT, made, 1)
    for size in (sizes[2], sizes[0], sizes[0], sizes[1]):
        x = picture(1, size)
        assert np.array_equal(runner({"image": x})["logits"], expected(any_size_net, x))
    assert runner._engine.switches == [2, 0, 1], "an active profile is not switched to again"


def test_among_profiles_that_fit_the_tuned_one_wins_and_the_first_otherwise(
    machine: SimpleNamespace, any_size_net: Path, tmp_path: Path
) -> None:
    wide = profile((1, 3, 16, 16), (1, 3, 64, 64), (1, 3, 96, 96))
    made = folder(tmp_path, any_size_net, profiles=[wide, profile((1, 3, 32, 32))])
    runner = engine.open(ARTIFACT, made, 1)
    runner({"image": picture(1, (1, 3, 32, 32))})
    runner({"image": picture(1, (1, 3, 40, 40))})
    assert runner._engine.switches == [1, 0]


def test_a_shape_that_no_profile_takes_is_bad_input_that_names_theirs(
    machine: SimpleNamespace, any_size_net: Path, tmp_path: Path
) -> None:
    made = folder(tmp_path, any_size_net, profiles=[profile((1, 3, 32, 32)), profile((1, 3, 48, 64))])
    runner = engine.open(ARTIFACT, made, 1)
    with pytest.raises(BadInput, match=r"no profile takes image \(1, 3, 48, 48\)") as caught:
        runner({"image": picture(1, (1, 3, 48, 48))})
    assert "(1, 3, 48, 64)" in caught.value.cure


def test_wrong_input_names_are_bad_input(machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    with pytest.raises(BadInput, match="Give image"):
        runner({"picture": picture(1)})


def test_cuda_out_of_memory_is_the_machines_fault_by_its_name(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runner = engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    machine.cuda.memory_bytes = 100
    with pytest.raises(MachineFault, match="cudaErrorMemoryAllocation"):
        runner({"image": picture(1)})


def test_an_engine_that_can_not_be_read_says_which_file_to_delete(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)
    (file,) = machine.cache.glob("*.engine")
    file.write_bytes(b"half of it")
    with pytest.raises(NotRunnableHere, match=file.name):
        engine.open(ARTIFACT, tmp_path / "artifact", 1)


def test_a_refusal_of_tensorrt_is_told(machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path) -> None:
    machine.trt.refuse_build = "no implementation"
    with pytest.raises(NotRunnableHere, match="no implementation"):
        engine.open(ARTIFACT, folder(tmp_path, dynamic_net), 1)


@pytest.mark.parametrize("content", ["{", "{}", '{"schema": 1}'])
def test_a_broken_plan_is_bad_input(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path, content: str
) -> None:
    made = folder(tmp_path, dynamic_net)
    (made / "plan.json").write_text(content)
    with pytest.raises(BadInput, match="plan"):
        engine.open(ARTIFACT, made, 1)


def test_without_tensorrt_the_reason_and_the_cure_are_given(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NotRunnableHere) as caught:
        engine.open(ARTIFACT, tmp_path, 1)
    assert "tensorrt" in caught.value.why
    assert "JetPack" in caught.value.cure


def test_without_a_gpu_the_reason_and_the_cure_are_given(
    machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(build_engine.ctypes, "CDLL", absent)
    with pytest.raises(NotRunnableHere, match="no NVIDIA GPU answers"):
        engine.open(ARTIFACT, tmp_path, 1)


def test_concurrent_contexts_share_the_engine_and_have_streams_and_buffers_of_their_own(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path
) -> None:
    runners = engine.open_concurrent(ARTIFACT, folder(tmp_path, dynamic_net), 1, 3)
    assert sum(call[0] == "build" for call in machine.trt.calls) == 1
    assert len(machine.cuda.streams) == 3
    pictures = [picture(k) for k in range(3)]
    results: dict[int, Any] = {}

    def work(k: int) -> None:
        for _ in range(20):
            results[k] = runners[k]({"image": pictures[k]})["logits"]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, x in enumerate(pictures):
        assert np.array_equal(results[k], expected(dynamic_net, x))
    runners[0].close()
    assert np.array_equal(runners[1]({"image": pictures[2]})["logits"], results[2]), "the others stay open"
    for runner in runners:
        runner.close()
    assert not machine.cuda.blocks
    assert not machine.cuda.streams


def test_a_stream_that_can_not_be_made_gives_the_others_back(
    machine: SimpleNamespace, dynamic_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = machine.cuda.cudaStreamCreate
    monkeypatch.setattr(
        machine.cuda, "cudaStreamCreate", lambda: (2, 0) if machine.cuda.streams else create()
    )
    with pytest.raises(MachineFault):
        engine.open_concurrent(ARTIFACT, folder(tmp_path, dynamic_net), 1, 2)
    assert not machine.cuda.streams
