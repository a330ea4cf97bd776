"""Watching a graph in segments: the same activations as in one piece, and memory bounded by the float run."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.observers import Observation, observe
from edgekiln.compile.quantise.watch import live_bytes
from edgekiln.errors import ConversionFailed

CPU = ["CPUExecutionProvider"]


def save(folder, nodes, inputs, outputs, constants=(), opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"


@pytest.fixture
def winding(tmp_path):
    """Token ids, a branch that reads a tensor from outside, a shape that is computed, a skip over all."""
    rng = np.random.default_rng(0)

    def branch(name, op):
        node = helper.make_node(op, ["embedded"], [f"{name}_y"])
        info = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [info])

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], name="embed"),
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32(0.5))),
        helper.make_node("Shape", ["embedded"], ["shape"]),
        helper.make_node("MatMul", ["embedded", "w"], ["projected"], name="project"),
        helper.make_node("ReduceMax", ["projected"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "half"], ["large"]),
        helper.make_node(
            "If",
            ["large"],
            ["chosen"],
            then_branch=branch("then", "Neg"),
            else_branch=branch("else", "Abs"),
        ),
        helper.make_node("Mul", ["chosen", "half"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["shaped"]),
        helper.make_node("Add", ["shaped", "embedded"], ["y"], name="skip"),
    ]
    constants = [
        ("table", rng.standard_normal((50, 8)).astype(np.float32)),
        ("w", rng.standard_normal((8, 8)).astype(np.float32)),
    ]
    return save(
        tmp_path,
        nodes,
        [("ids", TensorProto.INT64, (1, "length"))],
        [("y", TensorProto.FLOAT, (1, "length", 8))],
        constants,
    )


def ids(*lengths):
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, 50, (1, n))} for n in lengths]


def plainly(path, samples):
    """Every float tensor of each sample, from one session that gives them all."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    infos = {i.name: i for i in [*model.graph.value_info, *model.graph.output]}
    names = [n for n in infos if infos[n].type.tensor_type.elem_type == TensorProto.FLOAT]
    names = [n for n in names if n != "half"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
    return [dict(zip(names, session.run(names, s), strict=True)) for s in samples]


@pytest.mark.parametrize("bound", [None, 1, 400])
def test_a_graph_with_branches_shapes_and_token_ids_is_observed_in_any_segments(winding, bound):
    samples = ids(5, 7, 3)
    seen = observe(winding, samples, 2, group_bytes=bound)
    wanted = plainly(winding, samples)
    assert set(seen) == set(wanted[0]) >= {"embedded", "projected", "chosen", "scaled", "shaped", "y"}
    for name, found in seen.items():
        alone = Observation(axis=found.axis)
        for number, sample in enumerate(wanted):
            alone.add(sample[name], number)
        assert (found.lowest, found.highest) == (alone.lowest, alone.highest)
        assert np.array_equal(found.counts, alone.counts)
        assert np.array_equal(found.halves, alone.halves)


def test_channels_lie_where_the_operators_have_them(winding, tmp_path):
    seen = observe(winding, ids(5, 7), 1)
    assert seen["embedded"].axis == -1
    assert seen["projected"].channels.lowest.shape == (8,)
    assert seen["top"].channels is None
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = [
        ("k", rng.standard_normal((4, 3, 3)).astype(np.float32)),
        ("w", rng.standard_normal((4, 2)).astype(np.float32)),
    ]
    path = save(
        tmp_path,
        nodes,
        [("x", TensorProto.FLOAT, (1, 3, 9))],
        [("y", TensorProto.FLOAT, (1, 2))],
        constants,
    )
    samples = [{"x": rng.standard_normal((1, 3, 9)).astype(np.float32)} for _ in range(3)]
    seen = observe(path, samples, 1)
    shapes = {n: o.channels.lowest.shape for n, o in seen.items()}
    # A sequence that a convolution takes or makes has its channels at axis 1, rank 3 or not.
    assert shapes["x"] == (3,)
    assert shapes["c"] == (4,)
    assert shapes["y"] == (2,)
    everything = np.concatenate([s["x"] for s in samples])
    assert np.array_equal(seen["x"].channels.highest, everything.max((0, 2)))
    assert observe(path, samples, 1, channels=False)["x"].channels is None


def test_parts_of_the_samples_merge_to_the_whole(winding):
    samples = ids(5, 7, 3, 9, 4)
    whole = observe(winding, samples, 1)
    parts = [observe(winding, samples[k::2], 1, start=k, stride=2) for k in range(2)]
    for name, found in whole.items():
        merged = parts[0][name].merge(parts[1][name])
        assert (merged.lowest, merged.highest, merged.reach) == (found.lowest, found.highest, found.reach)
        assert np.array_equal(merged.counts, found.counts)
        assert np.array_equal(merged.log_counts, found.log_counts)
        assert np.array_equal(merged.halves, found.halves)


def test_what_a_float_run_holds_at_once_is_counted_without_the_weights(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Concat", ["a", "a"], ["b"], axis=1),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["y"]),
    ]
    path = save(
        tmp_path,
        nodes,
        [("x", TensorProto.FLOAT, (1, 100))],
        [("y", TensorProto.FLOAT, (1, 100))],
        [("w", np.ones((200, 100), np.float32))],
    )
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    assert live_bytes(model, ["x"]) == 4 * (100 + 200 + 100)  # a, b and c, while c is made


# ---------------------------------------------------------------- memory

MEASURE = """
import sys
from pathlib import Path
import numpy as np, onnx, onnxruntime
from edgekiln.compile.quantise.observers import observe
mode, path, name, shape, n = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
rng = np.random.default_rng(0)
samples = ({name: rng.random(tuple(map(int, shape.split("x")))).astype(np.float32)} for _ in range(n))
if mode == "float":
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for sample in samples:
        session.run(None, sample)
else:
    observe(path, samples, 2)
print(next(row.split()[1] for row in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in row))
"""


def peak_kilobytes(mode, path, name, shape, n):
    command = [sys.executable, "-c", MEASURE, mode, str(path), name, shape, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


def test_the_process_is_no_larger_after_many_samples_than_after_few(digits):
    few, many = (peak_kilobytes("observe", digits.graph, "x", "1x1x8x8", n) for n in (32, 400))
    assert many < 1.03 * few


def test_observing_takes_less_than_half_as_much_again_as_the_float_model(lite0):
    plain, watched = (peak_kilobytes(mode, lite0, "image", "1x3x224x224", 4) for mode in ("float", "observe"))
    assert watched < 1.5 * plain


# ---------------------------------------------------------------- what ONNX Runtime can't run


def test_an_operator_of_an_unknown_domain_is_named_with_a_cure(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Sparkle", ["a"], ["y"], domain="com.example"),
    ]
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4))  # noqa: E731
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")])
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "g.onnx")
    with pytest.raises(ConversionFailed, match=r"of other domains: com\.example\.Sparkle") as caught:
        observe(tmp_path / "g.onnx", [{"x": np.ones((1, 4), np.float32)}], 1)
    assert "operator set" in caught.value.cure


def test_an_operator_set_newer_than_the_tool_is_named_with_a_cure(tmp_path):
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4))  # noqa: E731
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
    sets = [helper.make_opsetid("", 99)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "g.onnx")
    with pytest.raises(ConversionFailed, match=r"ai\.onnx 99") as caught:
        observe(tmp_path / "g.onnx", [{"x": np.ones((1, 4), np.float32)}], 1)
    assert caught.value.cure
