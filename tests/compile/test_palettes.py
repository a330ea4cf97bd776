"""Palettes of different widths: how they are found and allotted, and what a package holds of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.palettes import FLOAT, WIDTHS, allot, nearest, palette, palettised
from edgekiln.compile.recipes import needs_calibration, recipe
from edgekiln.errors import BadInput, ConversionFailed

# ---------------------------------------------------------------- one palette


@given(
    hnp.arrays(np.float64, st.integers(1, 400), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([4, 16, 64]),
)
@settings(max_examples=60, deadline=None)
def test_a_palette_is_small_sorted_and_within_the_values(values, count):
    found = palette(values, np.ones_like(values), count)
    assert 1 <= len(found) <= count
    assert (np.diff(found) > 0).all()
    assert found[0] >= values.min() - 0.1
    assert found[-1] <= values.max() + 0.1
    near = nearest(values, found)
    assert np.allclose(np.abs(values - near), np.abs(values[:, None] - found).min(1), atol=1e-9)


def test_a_palette_of_normal_weights_loses_about_as_little_as_can_be():
    """Max 1960: the least error of 16 values for a normal distribution is 20.22 dB below its energy."""
    values = np.random.default_rng(0).standard_normal(200_000)
    found = palette(values, np.ones_like(values), 16)
    error = ((values - nearest(values, found)) ** 2).mean() / (values**2).mean()
    assert -10 * np.log10(error) == pytest.approx(20.22, abs=0.15)


def test_weights_that_matter_more_are_met_more_closely():
    values = np.random.default_rng(1).standard_normal(4000)
    importance = np.where(values > 0, 100.0, 1.0)
    d = values - nearest(values, palette(values, importance, 16))
    assert (d[values > 0] ** 2).mean() < 0.3 * (d[values <= 0] ** 2).mean()


# ---------------------------------------------------------------- widths

tensors = st.lists(
    st.tuples(st.integers(1, 10**6), st.lists(st.floats(1e-9, 1), min_size=4, max_size=4)),
    min_size=1,
    max_size=8,
)


@given(tensors, st.floats(2.0, 16.0))
@settings(max_examples=150, deadline=None)
def test_the_mean_is_held_and_nothing_that_would_gain_fits_any_more(found, mean):
    sizes = [n for n, _ in found]
    costs = [dict(zip((*WIDTHS, FLOAT), [*sorted(c, reverse=True), 0.0], strict=True)) for _, c in found]
    chosen = allot(sizes, costs, mean)
    left = mean * sum(sizes) - sum(n * b for n, b in zip(sizes, chosen, strict=True))
    assert left >= -1e-3
    for size, cost, bits in zip(sizes, costs, chosen, strict=True):
        assert not any(cost[b] < cost[bits] and size * (b - bits) < left - 1e-3 for b in cost if b > bits)


def test_what_costs_most_keeps_most_bits():
    small = {2: 1.0, 4: 0.1, 6: 0.01, 8: 0.001, FLOAT: 0.0}
    chosen = allot([1000] * 3, [small, {b: c * 100 for b, c in small.items()}, small], 5)
    assert chosen[1] > max(chosen[0], chosen[2])


def test_fewer_bits_than_the_least_can_not_be_held():
    with pytest.raises(ValueError, match="take"):
        allot([100], [dict.fromkeys(WIDTHS, 0.0)], 1.5)


# ---------------------------------------------------------------- a network


@pytest.fixture(scope="module")
def wide(tmp_path_factory, digits) -> Path:
    """The digits network with more weights than a table has values: features in front of its head."""
    random = np.random.default_rng(0)
    arrays = {
        "w1": random.standard_normal((64, 96)).astype(np.float32) / 8,
        "w2": random.standard_normal((96, 64)).astype(np.float32) / 10,
        "w3": random.standard_normal((64, 10)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "w1"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], "two"),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], "three"),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("wide") / "graph.onnx"
    onnx.save(model, path)
    return path


def samples_of(digits, count, start=0):
    return [{"x": image[None]} for image in digits.images[start : start + count]]


def outputs(model, samples):
    runner = simulate.session(model, 1)
    return np.concatenate([runner.run(None, s)[0] for s in samples])


def test_every_larger_weight_holds_as_few_values_as_the_note_says(wide, digits):
    model = onnx.load(wide)
    made, note = palettised(model, 4.5, lambda: samples_of(digits, 24), 1)
    counts = {i.name: len(np.unique(numpy_helper.to_array(i))) for i in made.graph.initializer}
    assert max(counts["w1"], counts["w2"]) <= 256
    bits = sum(6144 * max(2, int(np.ceil(np.log2(counts[n])))) for n in ("w1", "w2")) / 12288
    assert bits <= 4.5
    assert counts["w3"] == 640  # too small to gain from a table
    assert "bits a weight in the mean" in note


def test_more_bits_lose_less_and_handing_on_beats_the_nearest_value(wide, digits):
    model = onnx.load(wide)
    unseen = samples_of(digits, 60, start=900)
    truth = outputs(model, unseen)
    errors = [
        ((outputs(palettised(model, bits, lambda: samples_of(digits, 64), 1)[0], unseen) - truth) ** 2).sum()
        for bits in (4, 6, 8)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    held = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    even = {n: nearest(held[n], palette(held[n].ravel(), np.ones(held[n].size), 16)) for n in ("w1", "w2")}
    simulate.with_weights(plain, {n: a.astype(np.float32) for n, a in even.items()})
    assert errors[0] < ((outputs(plain, unseen) - truth) ** 2).sum()


def test_too_few_bits_and_a_graph_without_weights_are_refused(wide, digits):
    with pytest.raises(ConversionFailed, match="fewer than the 2"):
        palettised(onnx.load(wide), 1.5, lambda: samples_of(digits, 8), 1)
    with pytest.raises(ConversionFailed, match="no weights of more than 2048"):
        palettised(_without_weights(), 6, lambda: [{"x": np.ones((1, 4), np.float32)}], 1)


def _without_weights():
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# ---------------------------------------------------------------- the recipe and the package


@pytest.mark.parametrize(("name", "bits"), [("palette-mixed-6", 6), ("palette-mixed-4.5", 4.5)])
def test_the_recipe_says_the_mean_and_needs_data(name, bits):
    found = recipe(name)
    assert [p.name for p in found.passes] == ["palettise", "compress-weights"]
    assert found.passes[0].params["bits"] == bits
    assert needs_calibration(found)


@pytest.mark.parametrize(
    "name", ["palette-mixed-1", "palette-mixed-9", "palette-mixed-", "palette-mixed-4.567"]
)
def test_no_other_mean_is_taken(name):
    with pytest.raises(BadInput, match="no recipe has this name"):
        recipe(name)


def test_the_table_of_a_weight_is_what_it_holds_filled_up_and_float16_is_counted_rightly():
    """numpy's sort of float16 misplaces values on some processors: counts must not rest on it."""
    coreml = pytest.importorskip("edgekiln.compile.targets.coreml_compress")
    values = np.float16(np.linspace(-1, 1, 16))
    weights = np.random.default_rng(0).choice(values, (400, 700))
    table, places = coreml.held_palette(weights)
    assert len(table) == 16
    assert places.dtype == np.uint8
    assert (table[places].reshape(weights.shape) == weights).all()
    table, _ = coreml.held_palette(np.arange(17, dtype=np.float16))
    assert len(table) == 64
    with pytest.raises(ConversionFailed, match="300 values"):
        coreml.held_palette(np.arange(300, dtype=np.float32))


def test_a_package_holds_the_tables_that_were_decided(wide, digits, tmp_path):
    """Read back from the saved program, and run by the interpreter."""
    pytest.importorskip("coremltools")
    from edgekiln.compile.targets import coreml
    from edgekiln.compile.targets.coreml_package import read_spec
    from edgekiln.engines import open_engine

    made, _ = palettised(onnx.load(wide), 4.5, lambda: samples_of(digits, 24), 1)
    onnx.save(made, tmp_path / "graph.onnx")
    artifact = coreml.convert_file(tmp_path / "graph.onnx", tmp_path / "into", "palette-mixed-4.5")
    spec = read_spec(tmp_path / "into" / artifact.entry)
    tables = sorted(
        op.attributes["lut"].type.tensorType.dimensions[0].constant.size
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for op in block.operations
        if op.type == "constexpr_lut_to_dense"
    )
    held = {i.name: len(np.unique(numpy_helper.to_array(i))) for i in made.graph.initializer}
    wanted = sorted(min(2**w for w in WIDTHS if 2**w >= held[n]) for n in ("w1", "w2") if held[n] <= 256)
    assert tables == wanted
    runner = open_engine("coreml", artifact, tmp_path / "into", 1)
    unseen = samples_of(digits, 10, start=1200)
    found = np.concatenate([next(iter(runner(s).values())) for s in unseen])
    truth = outputs(made, unseen)
    assert ((found - truth) ** 2).sum() < 1e-4 * (truth**2).sum()
