"""Options of an artifact reach the runtime, leave the outputs alone, and a stranger's are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
from onnx import TensorProto, helper

from edgekiln.engines import onnxruntime as session_engine
from edgekiln.engines import open_engine
from edgekiln.engines import openvino as openvino_engine
from edgekiln.errors import BadInput
from edgekiln.prove.tuning import alike, space
from fakes.networks import picture
from fakes.variants import artifact

ENGINES = ("onnxruntime", "openvino")


def test_each_option_reaches_the_session() -> None:
    plain = session_engine.session_options(artifact("m.onnx", "onnxruntime"), 4)
    given = {
        "threads": 2, "spinning": True, "graph_level": "extended", "arena": False, "mem_pattern": False,
        "prepacking": False, "denormal_as_zero": True,
    }  # fmt: skip
    told = session_engine.session_options(artifact("m.onnx", "onnxruntime", **given), 4)
    assert (plain.intra_op_num_threads, told.intra_op_num_threads) == (4, 2)
    assert plain.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert told.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert (plain.enable_cpu_mem_arena, told.enable_cpu_mem_arena) == (True, False)
    assert (plain.enable_mem_pattern, told.enable_mem_pattern) == (True, False)
    for key in ("intra_op.allow_spinning", "disable_prepacking", "set_denormal_as_zero"):
        found = [o.get_session_config_entry(f"session.{key}") for o in (plain, told)]
        assert found == ["0", "1"], key


def test_each_option_reaches_the_compiled_model(net: Path) -> None:
    given = {
        "threads": 1, "ENABLE_CPU_PINNING": False, "ENABLE_HYPER_THREADING": False,
        "SCHEDULING_CORE_TYPE": "PCORE_ONLY", "TBB_PARTITIONER": "STATIC",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
    }  # fmt: skip
    core = openvino.Core()
    told = openvino_engine.compile_config(artifact("m.xml", "openvino", **given), 2)
    compiled = core.compile_model(core.read_model(net), "CPU", told)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("ENABLE_HYPER_THREADING") is False
    assert "PCORE_ONLY" in str(compiled.get_property("SCHEDULING_CORE_TYPE"))
    assert "STATIC" in str(compiled.get_property("TBB_PARTITIONER"))
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    plain = core.compile_model(
        core.read_model(net), "CPU", openvino_engine.compile_config(artifact("m.xml", "openvino"), 2)
    )
    assert plain.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0, "OpenVINO's own default is not 0"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_option_that_tuning_tries_leaves_the_outputs_alone(net: Path, engine: str) -> None:
    def run(**options: Any) -> dict[str, Any]:
        runner = open_engine(engine, artifact(net.name, engine, **options), net.parent, 2)
        kept = runner({"image": picture(1)})
        copies = {name: array.copy() for name, array in kept.items()}
        runner({"image": picture(2)})
        assert all(np.array_equal(kept[name], copies[name]) for name in kept), options
        runner.close()
        return copies

    plain = run()
    for change in space(artifact(net.name, engine), 2):
        assert alike(plain, run(**change)), change


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 64])
def test_an_artifact_never_takes_more_threads_than_it_is_given(engine: str, count: int) -> None:
    asked = artifact("m", engine, threads=count)
    if engine == "onnxruntime":
        assert session_engine.session_options(asked, 2).intra_op_num_threads == min(count, 2)
    else:
        assert openvino_engine.compile_config(asked, 2)["INFERENCE_NUM_THREADS"] == str(min(count, 2))


@pytest.mark.parametrize(
    ("engine", "name", "value"),
    [
        ("onnxruntime", "threads", 0),
        ("onnxruntime", "threads", 1.5),
        ("onnxruntime", "threads", True),
        ("onnxruntime", "threads", 1 << 40),
        ("onnxruntime", "spinning", "yes"),
        ("onnxruntime", "graph_level", "ORT_ENABLE_ALL"),
        ("onnxruntime", "graph_level", 99),
        ("onnxruntime", "arena", 1),
        ("onnxruntime", "io_binding", "x" * 10_000),
        ("openvino", "threads", -1),
        ("openvino", "INFERENCE_PRECISION_HINT", "f8"),
        ("openvino", "ENABLE_CPU_PINNING", "NO"),
        ("openvino", "SCHEDULING_CORE_TYPE", "../lib.so"),
        ("openvino", "TBB_PARTITIONER", "auto"),
        ("openvino", "share_inputs", 0),
        ("openvino", "DYNAMIC_QUANTIZATION_GROUP_SIZE", -1),
    ],
)
def test_a_bad_option_is_refused_by_name(net: Path, engine: str, name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=name) as caught:
        open_engine(engine, artifact(net.name, engine, **{name: value}), net.parent, 1)
    assert caught.value.cure.startswith("Use ")
    assert len(str(caught.value)) < 400


def test_bound_outputs_of_any_size_follow_the_input(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    runner = session_engine.open(artifact("m.onnx", "onnxruntime", io_binding=True), tmp_path, 1)
    first = runner({"x": np.ones((3, 2), np.float32)})["y"]
    strided = np.arange(20, dtype=np.float32).reshape(5, 4)[:, ::2]
    second = runner({"x": strided})["y"]
    assert np.array_equal(first, -np.ones((3, 2)))
    assert np.array_equal(second, -strided)
