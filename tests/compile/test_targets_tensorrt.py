"""TensorRT artifacts, judged by rules and by the real parser and builder of TensorRT-RTX."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from edgekiln.compile.targets import trt_check
from edgekiln.compile.targets.tensorrt import convert
from edgekiln.compile.targets.trt_plan import AXIS_KEY, Plan, make_plan, tensorrt_for
from edgekiln.compile.targets.trt_rules import violations
from edgekiln.engines import onnxruntime as proof
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact
from fakes.networks import CLS, DET, REC, ocr_model, picture, quantise, sqnr_db
from fakes.variants import ORIN, PC, order

try:
    import tensorrt_rtx

    RTX = True
except ImportError:
    RTX = False
needs_rtx = pytest.mark.skipif(not RTX, reason="needs the extra 'tensorrt' (the tensorrt-rtx wheel)")


def made(model: Path, recipe: str, folder: Path) -> Artifact:
    return convert(order(folder / "variant", model, recipe, ORIN), folder / "out")


@pytest.fixture(scope="session")
def symmetric(net: Path) -> Path:
    return quantise(net, net.with_name("symmetric.onnx"), symmetric=True)


@pytest.fixture(scope="session")
def default_dialect(net: Path) -> Path:
    return quantise(net, net.with_name("default.onnx"), symmetric=False)


# ---------------------------------------------------------------- the artifact and TensorRT-RTX


@needs_rtx
@pytest.mark.parametrize("recipe", ["fp32", "fp16", "bf16", "int8-static-minmax"])
def test_each_recipe_is_parsed_and_built_ahead_of_time_and_proved(
    recipe: str, net: Path, symmetric: Path, tmp_path: Path
) -> None:
    artifact = made(symmetric if recipe.startswith("int8") else net, recipe, tmp_path)
    built = artifact.checks[-1]
    assert built.passed is True
    assert "SM86 with TensorRT-RTX" in built.detail
    assert "Orin is SM87" in built.detail
    assert {f.path for f in artifact.files} == {"model.onnx", "plan.json", "build_engine.py"}
    x = {"image": picture(5)}
    float32 = msgspec.structs.replace(artifact, entry=net.name, options={})
    full = proof.open(float32, net.parent, 1)(x)["logits"]
    found = proof.open(artifact, tmp_path / "out", 1)(x)["logits"]
    least, most = {"fp32": (200, 1e9), "fp16": (35, 80), "bf16": (15, 50)}.get(recipe, (8, 50))
    assert least < min(sqnr_db(full, found), 1e8) < most


@needs_rtx
def test_a_dynamic_batch_is_built_with_its_profile(dynamic_net: Path, tmp_path: Path) -> None:
    artifact = made(dynamic_net, "fp32", tmp_path)
    assert artifact.checks[-1].passed is True
    plan = msgspec.json.decode((tmp_path / "out/plan.json").read_bytes(), type=Plan)
    assert plan.profiles[0]["image"].max == (8, 3, 32, 32)


@needs_rtx
@pytest.mark.parametrize(
    ("name", "recipe", "most"), [(REC, "fp16", "x:8x3x48x320"), (DET, "bf16", "x:8x3x320x320")]
)
def test_ocr_models_with_known_ranges_are_built(name: str, recipe: str, most: str, tmp_path: Path) -> None:
    """The detector has transposed convolutions, which TensorRT's builder refuses in bfloat16."""
    model = onnx.load(ocr_model(name))
    axes = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    helper.set_model_props(model, {f"{AXIS_KEY}{axis}": "64 96 320" for axis in axes[2:] if axis})
    onnx.save(model, tmp_path / "ocr.onnx")
    artifact = made(tmp_path / "ocr.onnx", recipe, tmp_path)
    assert artifact.checks[-1].passed is True
    assert f"--maxShapes={most}" in (tmp_path / "out/plan.json").read_text()


@needs_rtx
def test_what_the_parser_rejects_fails_with_its_own_message_op_and_node(
    default_dialect: Path, tmp_path: Path
) -> None:
    """The rules stop this graph earlier; here the parser is asked all the same."""
    plan = make_plan(onnx.load(default_dialect), ORIN, "int8-static-minmax")
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    (tmp_path / "model.onnx").write_bytes(default_dialect.read_bytes())
    with pytest.raises(ConversionFailed, match=r"TensorRT-RTX 1\S+ rejects it: DequantizeLinear '.*Int32"):
        trt_check.check(tmp_path, "SM86", "")


@needs_rtx
def test_an_operator_that_tensorrt_does_not_know_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    first = model.graph.node[0]
    first.op_type, first.domain, first.name = "Unheard", "made.up", "odd one"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Unheard"):
        made(tmp_path / "odd.onnx", "fp32", tmp_path)


def test_the_default_dialect_of_onnx_runtime_is_rejected_by_rule(
    default_dialect: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConversionFailed) as caught:
        made(default_dialect, "int8-static-minmax", tmp_path)
    assert "quantises to uint8" in caught.value.why
    assert not (tmp_path / "out").exists()


def test_the_artifact_is_the_same_in_every_folder(net: Path, tmp_path: Path) -> None:
    artifacts = [made(net, "bf16", tmp_path / name) for name in ("a", "b/c")]
    assert artifacts[0] == artifacts[1]


def test_the_tf32_default_of_tensorrt_is_off_and_half_precision_is_told_to_the_proof(
    net: Path, tmp_path: Path
) -> None:
    artifact = made(net, "bf16", tmp_path)
    assert artifact.options == {"plan": "plan.json", "tf32": False, "arithmetic": "bf16"}
    assert (artifact.engine, artifact.proof_engine) == ("tensorrt", "onnxruntime")


# ---------------------------------------------------------------- the check's process


def fake_rtx(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensorrt_rtx package that is found before the real one, in the check's process."""
    folder.mkdir()
    (folder / "tensorrt_rtx.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(sys.path)}")


@pytest.fixture
def planned(net: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(net.read_bytes())
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(make_plan(onnx.load(net), ORIN, "fp32")))
    return tmp_path


def test_without_the_wheel_the_check_has_not_passed_nor_failed(planned: Path, monkeypatch) -> None:
    fake_rtx(planned / "fake", "raise ImportError('no libtensorrt_rtx.so.1')", monkeypatch)
    found, placement = trt_check.check(planned, "SM86", "")
    assert found.passed is None
    assert "no libtensorrt_rtx.so.1" in found.detail
    assert (placement.operators, placement.taken, placement.partitions) == (None, None, None)
    assert "was not asked: tensorrt-rtx can't be loaded" in placement.detail


def test_a_crash_of_the_native_code_fails_with_its_last_words(planned: Path, monkeypatch) -> None:
    body = "import os, sys; print('first\\nsegment of doom', file=sys.stderr, flush=True); os.abort()"
    fake_rtx(planned / "fake", body, monkeypatch)
    with pytest.raises(ConversionFailed, match=r"status -6: .*segment of doom"):
        trt_check.check(planned, "SM86", "")


def test_a_hang_is_given_up_and_said(planned: Path, monkeypatch) -> None:
    fake_rtx(planned / "fake", "import time; time.sleep(60)", monkeypatch)
    found, placement = trt_check.check(planned, "SM86", "", time_limit_s=1.0)
    assert found.passed is None
    assert "not finished after 1 s" in found.detail
    assert "not finished after 1 s" in placement.detail


@needs_rtx
def test_a_capability_it_can_not_build_for_is_said(planned: Path) -> None:
    found, _ = trt_check.check(planned, "SM87", "")
    assert found.passed is None
    assert "does not build for SM87" in found.detail


@needs_rtx
def test_the_module_prints_one_line_of_json(planned: Path) -> None:
    command = [sys.executable, "-m", "edgekiln.compile.targets.trt_check", str(planned), "SM86"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said = json.loads(run.stdout)
    assert said["ok"] is True
    assert said["engine_bytes"] > 10_000


@needs_rtx
def test_the_parsers_own_answer_says_which_nodes_it_takes(net: Path, symmetric: Path, tmp_path: Path) -> None:
    for recipe, path in (("fp32", net), ("int8-static-minmax", symmetric)):
        (placed,) = made(path, recipe, tmp_path / recipe).placement
        nodes = len(onnx.load(tmp_path / recipe / "out/model.onnx").graph.node)
        assert (placed.operators, placed.taken, placed.partitions) == (nodes, nodes, 1)
        assert (placed.how, placed.fallback) == ("emulated", {})
        assert "TensorRT-RTX" in placed.detail


@needs_rtx
def test_a_node_that_the_parser_does_not_take_is_counted_by_type(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    middle = model.graph.node[5]
    middle.op_type, middle.domain = "Unheard", "made.up"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "model.onnx")
    found = trt_check._placed(tensorrt_rtx, tmp_path)
    assert found["fallback"] == {"Unheard": 1}
    assert (found["taken"], found["partitions"]) == (found["operators"] - 1, 2)


@needs_rtx
def test_a_graph_of_several_sizes_is_built_with_a_profile_for_each(
    any_size_net: Path, tmp_path: Path
) -> None:
    sizes = ((32, 32), (48, 64))
    ordered = order(tmp_path / "v", any_size_net, "bf16", ORIN, sizes=sizes)
    artifact = convert(ordered, tmp_path / "out")
    assert artifact.checks[-1].passed is True
    plan = msgspec.json.decode((tmp_path / "out/plan.json").read_bytes(), type=Plan)
    shapes = [p["image"] for p in plan.profiles]
    assert [s.opt for s in shapes] == [(1, 3, 32, 32), (1, 3, 48, 64)]
    assert all(s.min == s.opt == s.max for s in shapes)
    places = [plan.trtexec.index(f"--profile={n}") for n in (0, 1)]
    assert plan.trtexec[places[1] + 1] == "--minShapes=image:1x3x48x64"
    assert places[0] < plan.trtexec.index("--optShapes=image:1x3x32x32") < places[1]


@pytest.mark.parametrize(
    ("recipe", "stated"), [("fp32", "float32;"), ("fp16", "float16;"), ("bf16", "bfloat16 (")]
)
def test_the_arithmetic_is_stated_for_each_recipe(
    recipe: str, stated: str, net: Path, tmp_path: Path
) -> None:
    artifact = made(net, recipe, tmp_path)
    (rule,) = (c for c in artifact.checks if c.name == "precision")
    assert f"strongly typed: {stated}" in rule.detail
    assert "never rounded to TF32" in rule.detail


# ---------------------------------------------------------------- rules


def test_the_symmetric_dialect_keeps_every_rule(symmetric: Path) -> None:
    assert violations(onnx.load(symmetric)) == ()


def test_the_default_dialect_breaks_named_rules_at_named_nodes(default_dialect: Path) -> None:
    found = "\n".join(f"{at}: {rule}" for at, rule in violations(onnx.load(default_dialect)))
    assert "DequantizeLinear 'image_DequantizeLinear': quantises to uint8" in found
    assert "the bias is quantised to int32" in found
    assert "the zero point is not 0" in found


def broken(symmetric: Path, change) -> tuple[str, ...]:
    """The rules broken after ``change(model, its first QuantizeLinear)``."""
    model = onnx.load(symmetric)
    change(model, next(n for n in model.graph.node if n.op_type == "QuantizeLinear"))
    return tuple(f"{at}: {rule}" for at, rule in violations(model))


def constant(place: int, value):
    def change(model, node) -> None:
        node.input[place] = "changed"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "changed"))

    return change


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (constant(2, np.int8(3)), "zero point is not 0"),
        (constant(1, np.float32(0)), "not a positive finite number"),
        (constant(1, np.float32(np.nan)), "not a positive finite number"),
        (lambda _, node: node.input.__setitem__(1, "image"), "scale is computed at run time"),
        (lambda _, node: node.input.__setitem__(2, "image"), "zero point is computed at run time"),
        (lambda m, _: setattr(m.opset_import[0], "version", 26), "opset 26"),
        (lambda m, _: setattr(m.opset_import[0], "version", 8), "opset 8"),
    ],
)
def test_each_broken_rule_is_named(symmetric: Path, change, rule: str) -> None:
    assert any(rule in found for found in broken(symmetric, change))


def test_microsofts_own_quantizers_are_named_by_their_domain(symmetric: Path) -> None:
    def change(model, node) -> None:
        node.domain = "com.microsoft"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    assert any("domain com.microsoft" in found for found in broken(symmetric, change))


def test_dynamic_quantisation_is_refused_by_its_operators(net: Path, tmp_path: Path) -> None:
    quantize_dynamic(net, tmp_path / "dynamic.onnx", op_types_to_quantize=["Gemm", "MatMul", "Conv"])
    with pytest.raises(ConversionFailed, match=r"DynamicQuantizeLinear .*reads only QuantizeLinear"):
        made(tmp_path / "dynamic.onnx", "int8-dynamic", tmp_path)


def test_a_graph_of_unsound_types_is_refused_with_onnx_own_words(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].output.append("one too many")
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Conv"):
        made(tmp_path / "odd.onnx", "bf16", tmp_path)


def test_a_quantizer_without_a_zero_point_means_uint8_and_is_refused(symmetric: Path) -> None:
    found = broken(symmetric, lambda _, node: node.input.pop())
    assert any("uint8" in rule for rule in found)


# ---------------------------------------------------------------- the plan


def test_the_memory_pool_is_a_quarter_of_the_devices_memory_and_says_so(net: Path) -> None:
    plan = make_plan(onnx.load(net), ORIN, "fp32")
    assert plan.workspace_bytes == 2 << 30
    assert "8192 MiB" in plan.workspace_basis
    assert "--memPoolSize=workspace:2048M" in plan.trtexec


def test_unknown_memory_leaves_tensorrts_default_with_the_reason(net: Path) -> None:
    plan = make_plan(onnx.load(net), PC, "fp32")
    assert plan.workspace_bytes is None
    assert "depends on the PC" in plan.workspace_basis
    assert not any("memPoolSize" in part for part in plan.trtexec)


def test_a_static_model_has_no_profile_and_the_line_is_the_list(net: Path) -> None:
    plan = make_plan(onnx.load(net), ORIN, "fp32")
    assert plan.profiles == ()
    assert shlex.split(plan.trtexec_line) == list(plan.trtexec)
    assert {"--stronglyTyped", "--noTF32", "--skipInference"} <= set(plan.trtexec)
    assert not any("Shapes" in part for part in plan.trtexec)


def test_an_axis_that_nothing_bounds_is_refused_with_the_cure() -> None:
    with pytest.raises(ConversionFailed) as caught:
        make_plan(onnx.load(ocr_model(CLS)), ORIN, "fp32")
    assert "input 'x' is dynamic" in caught.value.why
    assert AXIS_KEY in caught.value.cure


@pytest.mark.parametrize("text", ["3 2 1", "1 2", "0 1 2", "a b c", "1 2 3 4", "-1 2 3"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    shape = helper.make_tensor_value_info("a:0", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Relu", ["a:0"], ["y"])], "g", [shape], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, {f"{AXIS_KEY}n": text})
    with pytest.raises(ConversionFailed, match="three rising"):
        make_plan(model, ORIN, "fp32")


def test_a_tensor_name_with_a_colon_is_quoted_for_trtexec() -> None:
    shape = helper.make_tensor_value_info("a:0", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Relu", ["a:0"], ["y"])], "g", [shape], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert "--maxShapes='a:0':8" in make_plan(model, ORIN, "fp32").trtexec


@pytest.mark.parametrize(
    ("opset", "version"), [(8, None), (9, (10, 0)), (20, (10, 0)), (21, (10, 15)), (25, (11, 0)), (26, None)]
)
def test_an_opset_asks_for_the_first_tensorrt_that_reads_it(opset: int, version) -> None:
    assert tensorrt_for(opset) == version
