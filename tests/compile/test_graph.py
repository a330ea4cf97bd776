"""Passes over the float graph: each is reported, each is checked, and what changes outputs is undone."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekiln.compile import simplify
from edgekiln.compile.graph import MIN_OPSET, Known, _checked, _run, _write, ops, optimise
from edgekiln.compile.simplify import simplified, simplifying
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.records import PassReport
from fakes.guarded import children

CLASSIFIER = Path(find_spec("rapidocr").origin).parent / "models" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
PASSES = ["static-shapes", "opset-upgrade", "simplify-onnxslim", "simplify-onnxsim", "runtime-fusion"]


class Net(nn.Module):
    """Conv, BatchNorm and ReLU twice, and a head: what a vision network is made of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A real export with its BatchNorms not folded, at an old opset, with a dynamic batch."""
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 1, 8, 8),),
        path,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        opset_version=13,
    )
    return path


PROBE = {"x": np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)}
SHAPES = {"x": (1, 1, 8, 8)}


@pytest.fixture(scope="module")
def optimised(exported, tmp_path_factory):
    """The optimised graph of ``exported``, and the passes' reports."""
    path = tmp_path_factory.mktemp("optimised") / "o.onnx"
    return path, optimise(exported, SHAPES, PROBE, path)


def outputs(path, feed):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def by_name(reports):
    return {r.name: r for r in reports}


def written(path, nodes, inputs, results, constants=(), opset=17, **model):
    graph = helper.make_graph(
        nodes, "g", inputs, results, [numpy_helper.from_array(a, n) for n, a in constants]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **model)
    onnx.save(made, path)
    return path


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


# ---------------------------------------------------------------- a real network


def test_batch_normalisations_are_folded_and_the_outputs_stay(exported, optimised):
    assert ops(onnx.load(exported))["BatchNormalization"] == 2
    path, reports = optimised
    after = ops(onnx.load(path))
    assert "BatchNormalization" not in after
    assert after["Conv"] == 2
    kept = next(r for r in reports if r.kept and r.name.startswith("simplify"))
    assert "2 batch normalisations folded" in kept.note
    for seed in range(3):
        feed = {"x": np.random.default_rng(seed).standard_normal((1, 1, 8, 8)).astype(np.float32)}
        (a,), (b,) = outputs(exported, feed), outputs(path, feed)
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_pass_reports_what_it_did(optimised):
    _, reports = optimised
    assert [r.name for r in reports] == PASSES
    assert all(r.note and r.seconds >= 0 and r.nodes_before > 0 and r.nodes_after > 0 for r in reports)
    found = by_name(reports)
    assert found["opset-upgrade"].note.startswith("opset 13 → 17")
    assert found["static-shapes"].note == "x: batchx1x8x8 → 1x1x8x8"
    assert found["runtime-fusion"].outcome == "runtime"
    assert "FusedConv" in found["runtime-fusion"].ops_after
    for name in PASSES[1:4]:
        assert found[name].parity_max_error is not None
        assert sum(found[name].ops_before.values()) == found[name].nodes_before
        assert sum(found[name].ops_after.values()) == found[name].nodes_after


def test_of_two_simplifiers_the_one_with_the_smaller_graph_is_kept(optimised):
    path, reports = optimised
    found = by_name(reports)
    both = [found["simplify-onnxslim"], found["simplify-onnxsim"]]
    assert [r.outcome for r in both].count("kept") == 1
    lost = next(r for r in both if not r.kept)
    kept = next(r for r in both if r.kept)
    assert kept.nodes_after <= lost.nodes_after
    assert kept.nodes_after == len(onnx.load(path).graph.node)
    assert "undone: the other's graph is" in lost.note


def test_a_graph_with_nothing_to_simplify_is_left_alone(optimised, tmp_path):
    once, _ = optimised
    found = by_name(optimise(once, SHAPES, PROBE, tmp_path / "twice.onnx"))
    assert found["static-shapes"].outcome == "unneeded"
    assert found["opset-upgrade"].outcome == "unneeded"
    assert {r.nodes_after for n, r in found.items() if n != "runtime-fusion"} == {6}
    assert once.read_bytes() == (tmp_path / "twice.onnx").read_bytes()


def test_the_same_graph_gives_the_same_bytes(exported, optimised, tmp_path):
    optimise(exported, SHAPES, PROBE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == optimised[0].read_bytes()


def test_a_real_model_of_opset_11_with_open_axes_becomes_static_at_the_new_opset(tmp_path):
    probe = {"x": np.random.default_rng(0).standard_normal((1, 3, 48, 192)).astype(np.float32)}
    reports = by_name(optimise(CLASSIFIER, {"x": (1, 3, 48, 192)}, probe, tmp_path / "o.onnx"))
    made = onnx.load(tmp_path / "o.onnx")
    assert [o.version for o in made.opset_import if o.domain == ""] == [MIN_OPSET]
    for value in [*made.graph.input, *made.graph.output, *made.graph.value_info]:
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim), value.name
    assert reports["opset-upgrade"].note.startswith("opset 11 → 17")
    assert reports["static-shapes"].note == "x: ?x3x?x? → 1x3x48x192"
    kept = next(r for r in reports.values() if r.kept and r.name.startswith("simplify"))
    assert kept.nodes_after < kept.nodes_before / 3
    for seed in range(3):
        feed = {"x": np.random.default_rng(seed).standard_normal((1, 3, 48, 192)).astype(np.float32)}
        np.testing.assert_allclose(
            outputs(CLASSIFIER, feed)[0], outputs(tmp_path / "o.onnx", feed)[0], atol=1e-4
        )


# ---------------------------------------------------------------- a pass that goes wrong


def judged(exported, function):
    model = onnx.load(exported)
    expected = _run(model, PROBE, "net")
    changed, report = _checked("fake", function, model, [Known(PROBE, expected)])
    return model, changed, report


def edited(change):
    def function(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        change(copy)
        return copy, "edited"

    return function


def scale_weights(factor):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name.endswith("head.weight"):
                array = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edited(change)


@pytest.mark.parametrize("factor", [1.05, -1, 0, float("nan"), float("inf")])
def test_a_pass_that_moves_the_outputs_is_undone_and_says_so(exported, factor):
    model, changed, report = judged(exported, scale_weights(factor))
    assert changed is model
    assert report.outcome == "undone"
    assert "output 'y' moved by" in report.note


def test_a_pass_within_the_tolerance_is_kept(exported):
    model, changed, report = judged(exported, scale_weights(1.0001))
    assert changed is not model
    assert report.outcome == "kept"
    assert 0 < report.parity_max_error < 1e-2


def rename_output(model):
    model.graph.node[-1].output[0] = "z"
    model.graph.output[0].name = "z"


def break_graph(model):
    model.graph.node[0].input[0] = "nothing"


def change_type(model):
    model.graph.node.append(helper.make_node("Cast", ["y"], ["y64"], to=TensorProto.DOUBLE))
    model.graph.node[-2].output[0], model.graph.node[-1].input[0] = "inner", "inner"
    model.graph.node[-1].output[0] = "y"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def raise_error(model):
    raise RuntimeError("the pass itself fails")


@pytest.mark.parametrize("change", [rename_output, break_graph, change_type, raise_error])
def test_a_pass_that_breaks_the_graph_its_names_or_its_types_is_undone(exported, change):
    model, changed, report = judged(exported, edited(change))
    assert changed is model
    assert report.outcome == "undone"
    assert "undone" in report.note


def test_a_pass_that_changes_nothing_is_called_unneeded(exported):
    _, _, report = judged(exported, edited(lambda model: None))
    assert report.outcome == "unneeded"


def test_a_small_output_is_not_hidden_behind_a_large_one(tmp_path):
    """Boxes in pixels beside scores: each output is held to its own magnitude."""
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["boxes"]),
        helper.make_node("Mul", ["x", "small"], ["scores"]),
    ]
    constants = [("large", np.float32([1000])), ("small", np.float32([1]))]
    path = written(
        tmp_path / "m.onnx",
        nodes,
        [floats("x", 1, 4)],
        [floats("boxes", 1, 4), floats("scores", 1, 4)],
        constants,
    )
    model, probe = onnx.load(path), {"x": np.float32([[0.1, 0.2, 0.3, 0.9]])}

    def shift(copy):
        copy.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32([0.8]), "small"))

    changed, report = _checked("fake", edited(shift), model, [Known(probe, _run(model, probe, "m"))])
    assert changed is model
    assert "output 'scores' moved by 0.18" in report.note


def test_reports_survive_json(optimised):
    import msgspec

    _, reports = optimised
    data = msgspec.json.encode(reports)
    assert msgspec.json.decode(data, type=tuple[PassReport, ...]) == reports


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 1, 8, 8, 1), (1, 3, 8, 8), (2, 1, 8, 9)])
def test_a_shape_that_does_not_fit_is_refused_with_both_shapes_and_the_cure(exported, tmp_path, shape):
    with pytest.raises(BadInput) as caught:
        optimise(exported, {"x": shape}, PROBE, tmp_path / "o.onnx")
    assert "x".join(map(str, shape)) in caught.value.why
    assert "batchx1x8x8" in caught.value.why
    assert "--input-shape" in caught.value.cure
    assert not (tmp_path / "o.onnx").exists()


def test_a_probe_of_another_shape_is_refused(exported, tmp_path):
    with pytest.raises(BadInput, match="Check that the shapes and the data fit"):
        optimise(exported, {"x": (2, 1, 8, 8)}, PROBE, tmp_path / "o.onnx")


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_model_whose_outputs_are_not_finite_is_refused_with_the_outputs_name(tmp_path, value):
    nodes = [
        helper.make_node("Identity", ["x"], ["fine"]),
        helper.make_node("Log", ["x"], ["logarithm"]),
    ]
    results = [floats("fine", 1, 2), floats("logarithm", 1, 2)]
    path = written(tmp_path / "m.onnx", nodes, [floats("x", 1, 2)], results)
    probe = {"x": np.float32([[1, value]])}
    with pytest.raises(BadInput, match="output 'logarithm' holds NaN or infinity") as caught:
        optimise(path, {"x": (1, 2)}, probe, tmp_path / "o.onnx")
    assert "Mend the model" in caught.value.cure
    assert optimise(path, {"x": (1, 2)}, {"x": np.float32([[1, 2]])}, tmp_path / "o.onnx")


# ---------------------------------------------------------------- what is written


def test_traces_of_the_exporting_machine_do_not_reach_the_graph(exported, tmp_path):
    model = onnx.load(exported)
    model.doc_string = "/home/somebody"
    model.metadata_props.add(key="trace", value="/home/somebody")
    model.graph.doc_string = "/home/somebody"
    for part in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        part.doc_string = 'File "/home/somebody/net.py", line 3'
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/net.py")
    then = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["t"], doc_string="/home/somebody")],
        "t",
        [],
        [floats("t", 1, 10)],
    )
    otherwise = helper.make_graph([helper.make_node("Neg", ["y"], ["e"])], "e", [], [floats("e", 1, 10)])
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=otherwise)
    )
    _write(model, tmp_path / "o.onnx")
    assert b"somebody" not in (tmp_path / "o.onnx").read_bytes()
    assert len(onnx.load(tmp_path / "o.onnx").graph.node) == len(model.graph.node)


def test_every_node_has_a_name_of_its_own(exported, tmp_path):
    model = onnx.load(exported)
    for number, node in enumerate(model.graph.node):
        node.name = "" if number % 2 else f"{node.op_type}_{number + 1}"
    _write(model, tmp_path / "o.onnx")
    names = [n.name for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_an_initialiser_that_is_listed_as_an_input_keeps_its_shape(tmp_path):
    """Graphs of old exporters list every weight among the inputs."""
    weight = np.ones((4, 2), np.float32)
    path = written(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [floats("x", "batch", 4), floats("w", 4, 2)],
        [floats("y", "batch", 2)],
        [("w", weight)],
    )
    optimise(path, {"x": (3, 4)}, {"x": np.ones((3, 4), np.float32)}, tmp_path / "o.onnx")
    (found,) = outputs(tmp_path / "o.onnx", {"x": np.ones((3, 4), np.float32)})
    assert found.tolist() == [[4, 4]] * 3


def test_outputs_that_are_no_floats_are_compared_too(tmp_path):
    nodes = [
        helper.make_node("ArgMax", ["x"], ["class"], axis=1),
        helper.make_node("Greater", ["x", "c"], ["mask"]),
    ]
    results = [
        helper.make_tensor_value_info("class", TensorProto.INT64, [1, 1]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 3]),
    ]
    path = written(tmp_path / "m.onnx", nodes, [floats("x", 1, 3)], results, [("c", np.float32([0.5]))])
    probe = {"x": np.float32([[0.1, 0.9, 0.3]])}
    optimise(path, {"x": (1, 3)}, probe, tmp_path / "o.onnx")
    model = onnx.load(path)

    def shift(copy):
        copy.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([0.2]), "c"))

    _, report = _checked("fake", edited(shift), model, [Known(probe, _run(model, probe, "m"))])
    assert "output 'mask' moved" in report.note


# ---------------------------------------------------------------- several sizes


def any_size(path: Path) -> Path:
    from fakes import sized

    onnx.save(sized.graph(), path)
    return path


def at(height, width):
    return {"x": np.random.default_rng(height).standard_normal((1, 3, height, width)).astype("f4")}


def test_height_and_width_stay_symbolic_where_they_are_named(tmp_path):
    shapes = {"x": (1, 3, "height", "width")}
    reports = optimise(any_size(tmp_path / "m.onnx"), shapes, at(32, 32), tmp_path / "o.onnx", [at(48, 64)])
    made = onnx.load(tmp_path / "o.onnx")
    dims = made.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, 3, "height", "width"]
    assert reports[0].note == "x: 1x3xhxw → 1x3xheightxwidth"
    for size in ((32, 32), (48, 64), (96, 33)):
        before, after = (_run(onnx.load(tmp_path / n), at(*size), n)["y"] for n in ("m.onnx", "o.onnx"))
        assert np.allclose(before, after, atol=1e-5)


def test_a_pass_that_bakes_one_size_in_is_undone(tmp_path):
    """The average as the sum over one size's pixels: right at that size alone."""
    model = onnx.load(any_size(tmp_path / "m.onnx"))
    known = [Known(probe, _run(model, probe, "m")) for probe in (at(32, 32), at(48, 64))]

    def bake(copy):
        pool = next(n for n in copy.graph.node if n.op_type == "GlobalAveragePool")
        axes = numpy_helper.from_array(np.int64([2, 3]), "axes")
        share = numpy_helper.from_array(np.float32([1 / 64]), "share")
        copy.graph.initializer.extend([axes, share])
        total = helper.make_node("ReduceSum", [pool.input[0], "axes"], ["total"], keepdims=1)
        scaled = helper.make_node("Mul", ["total", "share"], [pool.output[0]])
        place = list(copy.graph.node).index(pool)
        nodes = [*copy.graph.node[:place], total, scaled, *copy.graph.node[place + 1 :]]
        del copy.graph.node[:]
        copy.graph.node.extend(nodes)

    _, alone = _checked("bake", edited(bake), model, known[:1])
    assert alone.outcome == "kept"
    kept, report = _checked("bake", edited(bake), model, known)
    assert report.outcome == "undone"
    assert kept is model
    assert report.parity_max_error > 0.01


def test_a_size_that_the_graph_refuses_is_named_with_the_cure(tmp_path):
    model = onnx.load(any_size(tmp_path / "m.onnx"))
    pool = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    model.graph.node.remove(pool)
    model.graph.node[4].input[0] = pool.input[0]  # what is flattened is now all pixels: one size fits
    weight = next(i for i in model.graph.initializer if i.name == "m")
    weight.CopyFrom(numpy_helper.from_array(np.ones((10, 16 * 8 * 8), np.float32), "m"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="running the model at x 1x3x48x64") as caught:
        optimise(
            tmp_path / "m.onnx",
            {"x": (1, 3, "height", "width")},
            at(32, 32),
            tmp_path / "o.onnx",
            [at(48, 64)],
        )
    assert "flattens" in caught.value.cure


# ---------------------------------------------------------------- simplifiers in a process of their own


def test_a_simplifier_leaves_nothing_of_itself_in_this_process(net):
    """In a fresh interpreter, because other tests import what they need."""
    script = (
        "import sys, onnx\n"
        "from edgekiln.compile.simplify import simplified\n"
        f"made, note = simplified('onnxsim', onnx.load({str(net)!r}))\n"
        "assert 'onnxsim' not in sys.modules and 'torch' not in sys.modules\n"
        "print(note, len(made.graph.node))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxsim 0")


def test_a_graph_that_a_simplifier_refuses_gives_its_last_words():
    broken = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], []))
    broken.graph.node[0].op_type = "NoSuchOperator"
    broken.graph.output.append(helper.make_tensor_value_info("z", 1, [1]))
    with pytest.raises(ConversionFailed) as caught:
        simplified("onnxsim", broken)
    assert caught.value.why
    assert "Traceback" not in caught.value.why


def test_a_simplifier_that_does_not_end_is_ended(net, monkeypatch):
    monkeypatch.setattr(simplify, "SECONDS", 0.01)
    with pytest.raises(ConversionFailed, match="did not end in"):
        simplified("onnxslim", onnx.load(net))


def test_a_simplifier_that_nobody_waits_for_ends_with_the_block(net):
    before = set(children())
    with simplifying("onnxslim", onnx.load(net)):
        assert set(children()) - before
    assert not set(children()) - before
