"""Layers as matrices, rounding, bias correction, equalisation: on real and on random networks."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.equalise import HEADROOM, equalised, streams
from edgekiln.compile.quantise.layers import layers
from edgekiln.compile.quantise.observers import observe, ranges
from edgekiln.compile.quantise.recover import Recovery, recover
from edgekiln.compile.quantise.relay import Relay
from edgekiln.compile.quantise.rounding import Moments, nearest, output_error, rounded
from edgekiln.errors import ConversionFailed


def run(model, sample):
    session = simulate.session(model, 1)
    return session.run(None, {i.name: sample[i.name] for i in session.get_inputs()})


def network(nodes, shape, weights, output, opset=18):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def weights_of(model):
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def samples_of(digits, count, start=0):
    return [{"x": image[None]} for image in digits.images[start : start + count]]


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 1, 0, 2]},
        {"kernel_shape": [3, 3], "group": 4, "pads": [1, 1, 1, 1]},
        {"kernel_shape": [1, 1], "strides": [2, 2]},
    ],
)
def test_patches_times_weights_is_the_convolution(given):
    random = np.random.default_rng(0)
    groups = given.get("group", 1)
    w = random.standard_normal((8, 4 // groups, *given["kernel_shape"]))
    model = network(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", **given)], [1, 4, 9, 7], {"w": w}, "y"
    )
    (layer,) = layers(model)
    x = random.standard_normal((1, 4, 9, 7)).astype(np.float32)
    (y,) = run(model, {"x": x})
    vectors = layer.patches(x, most=10_000)
    made = np.einsum("gpd,grd->grp", vectors, layer.matrix(np.asarray(w, np.float32)))
    assert np.allclose(made.reshape(y[0].shape), y[0], atol=1e-4)


def test_the_same_positions_are_drawn_for_the_same_seed(digits):
    layer = layers(onnx.load(digits.graph))[0]
    x = digits.images[:1]
    first, again, other = (layer.patches(x, 10, seed) for seed in (1, 1, 2))
    assert first.shape[1] == 10
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_matrix_goes_back_into_its_own_shape(digits):
    model = onnx.load(digits.graph)
    held = weights_of(model)
    for layer in layers(model):
        w = held[layer.weight]
        assert np.array_equal(layer.unmatrix(layer.matrix(w), w), w)


def test_weights_that_two_nodes_share_are_no_layer():
    nodes = [helper.make_node("MatMul", [i, "w"], [o], o) for i, o in (("x", "h"), ("h", "y"))]
    assert layers(network(nodes, [2, 3], {"w": np.eye(3)}, "y")) == ()


def test_the_vector_added_behind_a_matmul_is_its_bias():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Add", ["h", "b"], ["y"], "add"),
    ]
    (layer,) = layers(network(nodes, [2, 3], {"w": np.eye(3), "b": np.ones(3)}, "y"))
    assert layer.bias == "b"


# ---------------------------------------------------------------- rounding


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 5), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_rounded_weights_lie_on_grids_that_their_largest_value_tells(seed, groups, rows, depth):
    random = np.random.default_rng(seed)
    w = random.standard_normal((groups, rows, depth)) * 10.0 ** random.integers(-4, 4, (groups, rows, 1))
    seen = Moments(groups, depth)
    seen.add(random.standard_normal((groups, 50, depth)).astype(np.float32))
    made = rounded(w, seen)
    step = np.abs(made).max(2, keepdims=True) / 127
    assert np.allclose(made / step, np.rint(made / step), atol=1e-3)
    assert np.array_equal(nearest(made), made) or np.allclose(nearest(made), made, rtol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_rounding_by_statistics_is_no_worse_at_the_outputs_than_the_nearest_step(seed):
    """On correlated inputs, such as neighbouring pixels are: there the nearest step is far from the best."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((32, 32)) + 3 * random.standard_normal((32, 1))
    seen = Moments(1, 32)
    seen.add((random.standard_normal((1, 400, 32)) @ mixed.T).astype(np.float32))
    w = random.standard_normal((1, 16, 32))
    assert output_error(w, rounded(w, seen), seen) < output_error(w, nearest(w), seen)


def test_inputs_that_never_vary_and_rows_of_zeros_are_taken_as_they_are():
    w = np.zeros((1, 2, 5))
    w[0, 1] = np.arange(5)
    seen = Moments(1, 5)
    seen.add(np.ones((1, 20, 5), np.float32))
    made = rounded(w, seen)
    assert np.isfinite(made).all()
    assert np.array_equal(made[0, 0], np.zeros(5))
    assert np.abs(made - w).max() < 4 / 127


# ---------------------------------------------------------------- the relay


def test_a_relay_gives_what_the_whole_graph_gives_and_holds_only_what_is_still_read(digits, tmp_path):
    model = onnx.load(digits.graph)
    samples = samples_of(digits, 3)
    relay = Relay(lambda: model, samples, tmp_path, 1)
    for layer in layers(model):
        whole = [run(simulate.part(model, [layer.output]), s)[0] for s in samples]
        reached = list(relay.reach(layer.input))
        assert len(reached) == 3
        for mine, theirs in zip(relay.outputs(layer.output), whole, strict=True):
            assert np.allclose(mine, theirs, atol=1e-5)
        assert len(list(tmp_path.iterdir())) <= 3 * 2


# ---------------------------------------------------------------- recovery


def error(model, decided, held, seen, samples):
    fake = simulate.fake_quantised(decided, held, seen, symmetric=False)
    truth = np.concatenate([run(model, s)[0] for s in samples])
    found = np.concatenate([run(fake, s)[0] for s in samples])
    return float(((truth - found) ** 2).sum() / (truth**2).sum())


@pytest.fixture(scope="module")
def offset(digits):
    """The digits network on pictures that stand on a bright background: errors alike everywhere."""
    return [{"x": s["x"] + 3.0} for s in samples_of(digits, 48)]


def test_each_step_alone_and_both_together_bring_the_outputs_closer_on_unseen_samples(digits, offset):
    model = onnx.load(digits.graph)
    seen = ranges(observe(digits.graph, offset[:32], 1), "minmax", symmetric=False)
    held = simulate.quantised_activations(model, seen)
    unseen = offset[32:]
    plain = error(model, simulate.on_grids(model, 127), held, seen, unseen)
    found = {}
    for which in ((True, False), (False, True), (True, True)):
        what = Recovery(round=which[0], bias=which[1], symmetric=False)
        made, note = recover(model, seen, lambda: offset[:32], what, 1)
        assert "on 32 samples" in note
        found[which] = error(model, simulate.on_grids(made, 127), held, seen, unseen)
    assert found[True, True] < plain
    assert found[True, True] <= min(found.values()) * 1.3


def test_the_means_of_every_layers_channels_are_the_float_models(digits, offset):
    model = onnx.load(digits.graph)
    seen = ranges(observe(digits.graph, offset[:16], 1), "minmax", symmetric=False)
    what = Recovery(round=True, bias=True, symmetric=False)
    made, _ = recover(model, seen, lambda: offset[:16], what, 1)
    held = simulate.quantised_activations(model, seen)
    last = layers(model)[-1]
    means = []
    for graph in (model, simulate.fake_quantised(made, held, seen, symmetric=False)):
        part = simulate.part(graph, [last.output])
        means.append(np.mean([run(part, s)[0] for s in offset[:16]], axis=(0, 1)))
    assert np.allclose(means[0], means[1], atol=1e-4 * np.abs(means[0]).max())


def test_the_same_input_gives_the_same_weights(digits, offset):
    model = onnx.load(digits.graph)
    seen = ranges(observe(digits.graph, offset[:8], 1), "minmax", symmetric=False)
    what = Recovery(round=True, bias=True, symmetric=False)
    first, again = (recover(model, seen, lambda: offset[:8], what, 1)[0] for _ in range(2))
    assert first.SerializeToString() == again.SerializeToString()


def test_padding_that_the_mask_hides_does_not_count():
    """Half of the positions are padding with huge values: the bias must be right for the others."""
    random = np.random.default_rng(0)
    w, b = random.standard_normal((8, 8)), random.standard_normal(8)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "product"),
        helper.make_node("Mul", ["h", "attention_mask"], ["y"], "shown"),
    ]
    model = network(nodes, [10, 8], {"w": w, "b": b}, "y")
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, [10, 1]))
    shown = np.array([1.0] * 5 + [0.0] * 5, np.float32)
    samples = []
    for _ in range(12):
        x = random.standard_normal((10, 8)).astype(np.float32)
        x[5:] *= 100
        samples.append({"x": x, "attention_mask": shown[:, None]})
    for s in samples:
        s["padding_mask"] = shown[None]
    what = Recovery(round=False, bias=True, symmetric=False)
    clipped = {"x": (-3.0, 3.0)}
    made, _ = recover(model, clipped, lambda: samples, what, 1, only=frozenset({"product"}))
    shift = np.abs(weights_of(made)["b"] - b).max()
    assert shift < 0.1


def test_what_would_make_the_outputs_worse_is_undone():
    """One row in sixteen is huge and cut by the range: the others must not pay for its mean error."""
    random = np.random.default_rng(0)
    w = random.standard_normal((8, 8))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "product"),
        helper.make_node("Tanh", ["h"], ["y"], "tanh"),
    ]
    model = network(nodes, [16, 8], {"w": w, "b": np.zeros(8)}, "y")
    samples = []
    for _ in range(12):
        x = random.standard_normal((16, 8)).astype(np.float32)
        x[0] = 1000
        samples.append({"x": x})
    what = Recovery(round=False, bias=True, symmetric=False)
    made, note = recover(model, {"x": (-4.0, 4.0)}, lambda: samples, what, 1)
    assert note.startswith("undone: ")
    assert "the outputs' error would grow from" in note
    assert made is model


def test_a_graph_without_weights_is_refused():
    model = network([helper.make_node("Relu", ["x"], ["y"], "relu")], [1, 3], {}, "y")
    what = Recovery(round=True, bias=True, symmetric=False)
    with pytest.raises(ConversionFailed, match="no convolution or matrix product with constant weights"):
        recover(model, {}, lambda: [{"x": np.ones((1, 3), np.float32)}], what, 1)


# ---------------------------------------------------------------- equalisation


def inverted_block(seed):
    """Expand, depthwise, project with a residual, as in a MobileNet; channels of very different size."""
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.uniform(-2, 0, 12)
    weights = {
        "w0": random.standard_normal((4, 3, 1, 1)),
        "b0": random.standard_normal(4),
        "w1": random.standard_normal((12, 4, 1, 1)) * sizes[:, None, None, None],
        "b1": random.standard_normal(12) * sizes,
        "w2": random.standard_normal((12, 1, 3, 3)),
        "b2": random.standard_normal(12),
        "w3": random.standard_normal((4, 12, 1, 1)),
        "b3": random.standard_normal(4),
        "w4": random.standard_normal((5, 4, 1, 1)),
        "b4": random.standard_normal(5),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["s"], "stem"),
        helper.make_node("Conv", ["s", "w1", "b1"], ["e"], "expand"),
        helper.make_node("Clip", ["e", "zero", "six"], ["ec"], "clip1"),
        helper.make_node("Conv", ["ec", "w2", "b2"], ["d"], "depthwise", group=12, pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["d", "zero", "six"], ["dc"], "clip2"),
        helper.make_node("Conv", ["dc", "w3", "b3"], ["p"], "project"),
        helper.make_node("Add", ["p", "s"], ["r"], "residual"),
        helper.make_node("Conv", ["r", "w4", "b4"], ["y"], "head"),
    ]
    return network(nodes, [1, 3, 6, 6], weights, "y")


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=15, deadline=None)
def test_levelled_channels_leave_the_function_as_it_is_on_the_data(seed, alpha):
    model = inverted_block(seed)
    random = np.random.default_rng(seed + 1)
    samples = [{"x": random.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    made, note = equalised(model, samples, 1, alpha)
    assert "streams of tied channels levelled" in note
    for s in samples:
        (before,), (after,) = run(model, s), run(made, s)
        assert np.allclose(before, after, rtol=1e-3, atol=1e-3 * np.abs(before).max())


def test_channels_that_reach_the_clip_are_not_enlarged_and_others_keep_their_distance():
    model = inverted_block(3)
    random = np.random.default_rng(0)
    samples = [{"x": random.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(8)]
    made, _ = equalised(model, samples, 1)
    before = np.max([run(simulate.part(model, ["ec"]), s)[0].max((0, 2, 3)) for s in samples], axis=0)
    after = np.max([run(simulate.part(made, ["ec"]), s)[0].max((0, 2, 3)) for s in samples], axis=0)
    enlarged = after > before * 1.001
    assert enlarged.any()
    assert (after[enlarged] <= 6 / HEADROOM + 1e-3).all()
    assert np.allclose(after[~enlarged], before[~enlarged], rtol=1e-3)


def test_a_residual_stream_is_tied_as_a_whole():
    found = {frozenset(s.tensors): s for s in streams(inverted_block(0))}
    residual = next(s for names, s in found.items() if "r" in names)
    assert set(residual.tensors) == {"s", "p", "r"}
    assert {x.node for x in residual.writers} == {"stem", "project"}
    assert {x.node for x in residual.readers} == {"expand", "head"}


def test_a_layer_normalisation_hands_its_scale_to_the_products_that_read_it():
    """What SmoothQuant does: activations with one huge channel become levelled."""
    random = np.random.default_rng(0)
    scale = np.ones(16)
    scale[3] = 60
    weights = {
        "g": scale,
        "c": np.zeros(16),
        "w1": random.standard_normal((16, 8)),
        "w2": random.standard_normal((16, 8)),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "c"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w1"], ["q"], "query"),
        helper.make_node("MatMul", ["n", "w2"], ["k"], "key"),
        helper.make_node("Add", ["q", "k"], ["y"], "sum"),
    ]
    model = network(nodes, [4, 16], weights, "y")
    samples = [{"x": random.standard_normal((4, 16)).astype(np.float32)} for _ in range(6)]
    made, _ = equalised(model, samples, 1)
    assert np.allclose(run(model, samples[0])[0], run(made, samples[0])[0], rtol=1e-3, atol=1e-3)
    reach = [np.abs(run(simulate.part(m, ["n"]), samples[0])[0]).max(0) for m in (model, made)]
    assert reach[1].max() / np.median(reach[1]) < 0.5 * reach[0].max() / np.median(reach[0])


# ---------------------------------------------------------------- the simulation


def test_switches_choose_which_activations_are_rounded(digits):
    model = onnx.load(digits.graph)
    samples = samples_of(digits, 4)
    seen = ranges(observe(digits.graph, samples, 1), "minmax", symmetric=False)
    held = simulate.quantised_activations(model, seen)
    fake = simulate.fake_quantised(model, held, seen, symmetric=False, switches=True)
    session = simulate.session(fake, 1)
    (float_output,) = run(model, samples[0])

    def outputs(on):
        flags = {f"{simulate.SWITCH}{k}": np.array([k in on]) for k in range(len(held))}
        return session.run(None, {**samples[0], **flags})[0]

    assert np.allclose(outputs(()), float_output, atol=1e-5)
    every = run(simulate.fake_quantised(model, held, seen, symmetric=False), samples[0])[0]
    assert np.allclose(outputs(range(len(held))), every, atol=1e-5)
    for one in range(len(held)):
        assert not np.array_equal(outputs((one,)), float_output)


def test_what_a_convolution_hands_to_its_relu_alone_is_never_stored(digits):
    model = onnx.load(digits.graph)
    seen = ranges(observe(digits.graph, samples_of(digits, 2), 1), "minmax", symmetric=False)
    held = simulate.quantised_activations(model, seen)
    for node in model.graph.node:
        if node.op_type == "Relu":
            assert node.input[0] not in held
            assert node.output[0] in held
    assert not set(held) & {o.name for o in model.graph.output}


def test_an_activation_between_layers_that_stay_float_stays_float(digits):
    model = onnx.load(digits.graph)
    seen = ranges(observe(digits.graph, samples_of(digits, 2), 1), "minmax", symmetric=False)
    held = simulate.quantised_activations(model, seen)
    for name in itertools.islice(held, 1, 3):
        around = {n.name for n in model.graph.node if name in (*n.input, *n.output)}
        assert name not in simulate.quantised_activations(model, seen, around)
