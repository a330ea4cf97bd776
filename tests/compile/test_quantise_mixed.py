"""What each layer loses, how many decisions change, and the search for what stays float."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekiln.compile.make import make
from edgekiln.compile.passes import KEEP_BACK, split
from edgekiln.compile.quantise import mixed, simulate
from edgekiln.compile.quantise.bounds import bound
from edgekiln.compile.quantise.layers import layers
from edgekiln.compile.quantise.observers import observe, ranges
from edgekiln.compile.quantise.sensitivity import layer_losses
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.devices import load as load_device
from edgekiln.engines import open_engine
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.model.signature import signature
from edgekiln.records import Model, Source

HOST = msgspec.structs.replace(load_device("host"), features=("avx2", "avx512_vnni"))


def samples_of(digits, count, start=0):
    return [{"x": image[None]} for image in digits.images[start : start + count]]


def shop(graph: Path, cache: Path, samples) -> Workshop:
    source = Source(kind="onnx", files=())
    model = Model(
        name="m",
        path="graph.onnx",
        sha256="",
        signature=signature(onnx.load(graph)),
        task="classification",
        source=source,
    )
    data = Calibration(lambda: iter(samples), len(samples), f"{len(samples)} digits")
    return Workshop(graph, sha256_file(graph), data, cache, 1, model)


def hostile(digits, folder: Path) -> Path:
    """The digits network with one channel of its first layer ten thousand times larger than the others, and
    the weights that read it as much smaller: the same function, which 8 bits per tensor destroy."""
    model = onnx.load(digits.graph)
    first, second, *_ = layers(model)
    held = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    held[first.weight][0] *= 1e4
    held[first.bias][0] *= 1e4
    held[second.weight][:, 0] /= 1e4
    simulate.with_weights(model, {n: held[n] for n in (first.weight, first.bias, second.weight)})
    onnx.save(model, folder / "hostile.onnx")
    return folder / "hostile.onnx"


# ---------------------------------------------------------------- losses


def test_every_layer_has_its_loss_alone_and_in_all(digits):
    model = onnx.load(digits.graph)
    samples = samples_of(digits, 8)
    seen = ranges(observe(digits.graph, samples, 1), "minmax", symmetric=False)
    found = layer_losses(model, simulate.on_grids(model, 127), seen, False, samples, 1)
    assert [x.node for x in found] == [x.node for x in layers(model)]
    assert all(x.n == 8 and 20 < x.isolated_db < 80 for x in found)
    # the first layer has nothing before it; behind it errors add up
    assert found[0].cumulative_db == pytest.approx(found[0].isolated_db, abs=0.01)
    assert found[-1].cumulative_db < found[-1].isolated_db


def test_the_isolated_loss_is_what_one_layer_run_by_itself_shows(digits):
    model = onnx.load(digits.graph)
    samples = samples_of(digits, 4)
    seen = ranges(observe(digits.graph, samples, 1), "minmax", symmetric=False)
    decided = simulate.on_grids(model, 127)
    loss = layer_losses(model, decided, seen, False, samples, 1)[1]
    layer = layers(model)[1]
    source = next(
        n.input[0] for n in model.graph.node if layer.input in n.output
    )  # what the pooling hands on
    scale, zero, low, high = simulate.grid(*seen[source], symmetric=False)
    signal = error = 0.0
    for s in samples:
        inputs = simulate.session(simulate.part(model, [layer.input, layer.output]), 1)
        x, y = inputs.run(None, s)
        fake = (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale
        alone = simulate.part(decided, [layer.output], {layer.input: np.dtype(np.float32)})
        (z,) = simulate.session(alone, 1).run(None, {layer.input: fake.astype(np.float32)})
        signal, error = signal + (y**2).sum(), error + ((y - z) ** 2).sum()
    assert loss.isolated_db == pytest.approx(10 * math.log10(signal / error), abs=0.01)


def test_the_layer_that_is_broken_is_the_one_that_loses_most(digits, tmp_path):
    graph = hostile(digits, tmp_path)
    model, samples = onnx.load(graph), samples_of(digits, 6)
    seen = ranges(observe(graph, samples, 1), "minmax", symmetric=False)
    found = layer_losses(model, simulate.on_grids(model, 127), seen, False, samples, 1)
    assert min(found, key=lambda x: x.isolated_db).node == layers(model)[1].node


# ---------------------------------------------------------------- the split


@given(st.integers(1, 40))
def test_what_a_search_is_judged_on_is_never_calibrated_on_and_nothing_is_lost(count):
    data = Calibration(lambda: iter([{"x": np.array([k])} for k in range(count)]), count, "d")
    fit, kept = split(data)
    first, second = ([int(s["x"][0]) for s in part.samples()] for part in (fit, kept))
    assert sorted(first + second) == list(range(count))
    assert (len(first), len(second)) == (fit.n, kept.n) == (count - count // KEEP_BACK, count // KEEP_BACK)
    assert fit.sha256 != kept.sha256 != data.sha256


# ---------------------------------------------------------------- the search


def test_where_int8_keeps_the_bound_nothing_is_put_back(digits, tmp_path):
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 64))
    _, artifact = make(workshop, HOST, "onnxruntime", "int8-mixed-0.05")
    assert artifact.precisions == {"int8": 3}
    assert "every layer in INT8 keeps the bound: expected agreement" in artifact.passes[-1].note
    assert not any(x.in_float for x in artifact.passes[-1].layers)


def test_layers_are_put_back_until_the_bound_holds_and_the_report_says_which(digits, tmp_path):
    graph = hostile(digits, tmp_path)
    workshop = shop(graph, tmp_path / "cache", samples_of(digits, 96))
    _, plain = make(workshop, HOST, "onnxruntime", "int8-static-minmax")
    _, artifact = make(workshop, HOST, "onnxruntime", "int8-mixed-0.1")
    assert plain.precisions == {"int8": 3}
    assert artifact.precisions.get("fp32", 0) >= 1
    report = artifact.passes[-1]
    assert "layers stay float" in report.note
    floats = [x for x in report.layers if x.in_float]
    assert layers(onnx.load(graph))[1].node in {x.node for x in floats}
    assert all(x.output_gain_db is not None and x.cost_ms is not None for x in floats)


def test_a_bound_that_no_set_of_layers_holds_is_a_refusal_with_the_best_that_was_reached(digits):
    """The written model always answers wrongly, whatever stays float: that is known before any timing."""
    model = onnx.load(digits.graph)
    samples = samples_of(digits, 16)
    seen = ranges(observe(digits.graph, samples, 1), "minmax", symmetric=False)
    decided = simulate.on_grids(model, 127)
    ground = mixed.Ground(
        original=model,
        recovered=decided,
        run=lambda path: lambda sample: {"y": -simulate.session(model, 1).run(None, sample)[0]},
        write=lambda keep: Path(f"{len(keep)}.onnx"),
        time=lambda files: pytest.fail("a search that can't succeed timed its candidates"),
        bound=bound("classification", 0.01, model, lambda: samples, lambda: samples, 1),
        gains=lambda: mixed.gains(model, decided, seen, False, samples, 1, 1e6),
    )
    losses = layer_losses(model, ground.recovered, seen, False, samples, 1)
    with pytest.raises(
        ConversionFailed, match=r"the best is expected agreement 0\.\d+, below 0.99"
    ) as caught:
        mixed.search(ground, losses)
    assert "wholly in INT8" in caught.value.why
    assert "float artifact" in caught.value.cure


def test_a_large_model_is_simulated_on_fewer_samples_but_on_some(digits):
    """Each activation costs a run per sample: eight of them are minutes for a large one."""
    model, samples = onnx.load(digits.graph), samples_of(digits, 16)
    seen = ranges(observe(digits.graph, samples, 1), "minmax", symmetric=False)
    used = {}
    for macs in (1e6, 1e9, 1e15):
        rest = iter(samples)
        found = mixed.gains(model, simulate.on_grids(model, 127), seen, False, rest, 1, macs)
        used[macs] = len(samples) - len(list(rest))
        assert max(g.gain for g in found) > 0
        assert all(g.gain <= g.whole for g in found)
    assert used == {1e6: mixed.PROBES, 1e9: mixed.PROBES, 1e15: mixed.LEAST_PROBES}


def test_dialects_of_one_grid_share_what_activations_gain(digits, tmp_path):
    workshop = shop(hostile(digits, tmp_path), tmp_path / "cache", samples_of(digits, 96))
    for target in ("onnxruntime", "openvino"):
        make(workshop, HOST, target, "int8-mixed-0.1")
    assert len(list((tmp_path / "cache" / "gains").iterdir())) == 1


def test_fewer_samples_than_can_hold_a_bound_are_refused(digits, tmp_path):
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 16))
    with pytest.raises(ConversionFailed, match="4 samples were kept from calibration"):
        make(workshop, HOST, "onnxruntime", "int8-mixed-0.01")


def test_a_recovered_artifact_carries_what_its_layers_lose(digits, tmp_path):
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 24))
    _, artifact = make(workshop, HOST, "openvino", "int8-static-mse+round+bias")
    names = [p.name for p in artifact.passes]
    assert names == ["recover", "quantise-static"]
    assert len(artifact.passes[-1].layers) == 3
    assert artifact.precisions == {"int8": 3}


def test_the_decided_weights_are_the_integers_of_every_dialect(digits, tmp_path):
    """Read back from the Q/DQ model: no weight was rounded anew."""
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 24))
    folder, artifact = make(workshop, HOST, "onnxruntime", "int8-static-minmax+round+bias")
    written = {i.name: numpy_helper.to_array(i) for i in onnx.load(folder / artifact.entry).graph.initializer}
    (kept,) = tmp_path.glob("recover/*/graph.onnx")
    decided = onnx.load(kept)
    held = {i.name: numpy_helper.to_array(i) for i in decided.graph.initializer}
    for layer in layers(decided):
        integers, scale = written[f"{layer.weight}_quantized"], written[f"{layer.weight}_scale"]
        shape = [-1] + [1] * (integers.ndim - 1) if layer.op == "Conv" or layer.transposed else [1, -1]
        back = integers.astype(np.float64) * scale.reshape(shape)
        assert np.allclose(back, held[layer.weight], rtol=1e-4, atol=1e-7)


def test_a_matrix_product_at_the_end_gives_its_output_in_float(digits, tmp_path):
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 8))
    folder, artifact = make(workshop, HOST, "onnxruntime", "int8-static-minmax")
    model = onnx.load(folder / artifact.entry)
    maker = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    assert maker.op_type == "Gemm"


def test_litert_quantises_a_recovered_graph_by_itself(digits, tmp_path):
    workshop = shop(digits.graph, tmp_path, samples_of(digits, 32))
    folder, artifact = make(workshop, HOST, "litert", "int8-litert-static+round+bias")
    assert len(list(tmp_path.glob("recover/*/graph.onnx"))) == 1
    runner = open_engine("litert", artifact, folder, 1)
    samples = samples_of(digits, 60, start=1400)
    found = np.concatenate([runner(s)["y"] for s in samples]).argmax(1)
    assert (found == digits.labels[1400:1460]).mean() > 0.85
