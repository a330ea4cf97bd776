"""OpenVINO artifacts: same bytes for the same model, honest options, NNCF's graphs kept in int8."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import openvino
import pytest

from edgekiln.compile.quantise.nncf import quantise_openvino
from edgekiln.compile.targets.openvino import _as_asked, convert
from edgekiln.devices import Device
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import openvino as engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.records import Artifact, Model
from fakes.networks import REC, ocr_model, picture, sqnr_db
from fakes.variants import PC, model_of, order
from fakes.variants import artifact as variants_artifact

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
BF16_PC = msgspec.structs.replace(PC, name="sapphire", features=("avx512_bf16", "amx_bf16"))
SIZES = ((32, 32), (48, 64))


def made(
    graph: Path, recipe: str, folder: Path, device: Device = PC, known: Model | None = None, **more: Any
) -> Artifact:
    return convert(order(folder / "variant", graph, recipe, device, known, **more), folder / "out")


def pictures(count: int, asked: list[int] | None = None):
    def samples():
        for seed in range(count):
            if asked is not None:
                asked.append(seed)
            yield {"image": picture(seed)}

    return samples


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
@pytest.mark.parametrize("source", ["net", "rec"])
def test_two_conversions_give_the_same_bytes(recipe: str, source: str, net: Path, tmp_path: Path) -> None:
    model = net if source == "net" else ocr_model(REC)
    first, second = made(model, recipe, tmp_path / "a"), made(model, recipe, tmp_path / "elsewhere/b")
    assert first == second
    assert [f.path for f in first.files] == ["model.bin", "model.xml"]
    assert str(tmp_path) not in (tmp_path / "a/out/model.xml").read_text()


def test_the_converted_model_computes_what_the_source_does_under_the_same_names(
    dynamic_net: Path, tmp_path: Path
) -> None:
    artifact = made(dynamic_net, "fp32", tmp_path)
    x = {"image": np.concatenate([picture(1), picture(2)])}
    found = engine.open(artifact, tmp_path / "out", 1)(x)
    folder = tmp_path / "variant"
    native = variants_artifact("dynamic.onnx", "onnxruntime")
    expected = reference.open(native, folder, 1)(x)
    assert list(found) == list(expected) == ["logits"]
    assert sqnr_db(expected["logits"], found["logits"]) > 80


def test_fp16_halves_the_weights_and_still_computes_in_float32(net: Path, tmp_path: Path) -> None:
    full, half = made(net, "fp32", tmp_path / "a"), made(net, "fp16", tmp_path / "b")
    sizes = [next(f.size_bytes for f in a.files if f.path.endswith(".bin")) for a in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.options["INFERENCE_PRECISION_HINT"] == "f32"


def test_bf16_is_the_float32_model_with_its_option(net: Path, tmp_path: Path) -> None:
    full, low = made(net, "fp32", tmp_path / "a"), made(net, "bf16", tmp_path / "b", BF16_PC)
    assert full.files == low.files
    assert [a.options["INFERENCE_PRECISION_HINT"] for a in (full, low)] == ["f32", "bf16"]
    assert set(low.tools) == {"openvino"}


def test_bf16_for_a_device_that_has_none_is_refused_by_its_name(net: Path, tmp_path: Path) -> None:
    for device in (PC, msgspec.structs.replace(BF16_PC, name="m4", arch="arm64", features=("bf16",))):
        with pytest.raises(ConversionFailed, match=f"{device.name} has no bfloat16 arithmetic"):
            made(net, "bf16", tmp_path / device.name, device)


def test_the_plugin_says_which_operators_it_takes_and_in_which_types(net: Path, tmp_path: Path) -> None:
    artifact = made(net, "fp32", tmp_path)
    (placed,) = artifact.placement
    layers = (tmp_path / "out/model.xml").read_text().count("<layer ")
    idle = sum(
        (tmp_path / "out/model.xml").read_text().count(f'type="{kind}"')
        for kind in ("Const", "Parameter", "Result")
    )
    assert (placed.how, placed.operators, placed.taken) == ("measured", layers - idle, layers - idle)
    assert (placed.partitions, placed.fallback) == (1, {})
    (precision,) = artifact.checks
    assert precision.passed is True
    assert " in f32" in precision.detail


def test_the_types_of_a_quantised_model_and_of_bf16_are_read_back_from_the_compiled_one(
    net: Path, tmp_path: Path
) -> None:
    path = quantise_openvino(net, pictures(3), 3, "performance", tmp_path / "q")
    (low,) = made(path, "int8-nncf-performance", tmp_path / "int8").checks
    assert low.passed is True
    assert re.search(r"\d+ in [ui]8", low.detail)
    (bf16,) = made(net, "bf16", tmp_path / "bf16", BF16_PC).checks
    assert bf16.passed is (True if HAS_BF16 else None)
    assert ("in bf16" in bf16.detail) == HAS_BF16


def test_a_layer_in_another_type_than_asked_for_fails_the_check() -> None:
    from collections import Counter

    assert not _as_asked(Counter({"f32": 3, "bf16": 1}), "f32")
    assert not _as_asked(Counter({"f32": 3}), "bf16")
    assert _as_asked(Counter({"u8": 3}), "f32")


# ---------------------------------------------------------------- several sizes


@pytest.mark.parametrize("recipe", ["fp32", "int8-nncf-mixed"])
def test_one_file_takes_every_size_within_its_bounds_and_no_other(
    recipe: str, any_size_net: Path, tmp_path: Path
) -> None:
    source = any_size_net
    if recipe != "fp32":
        source = quantise_openvino(any_size_net, pictures(3), 3, "mixed", tmp_path / "q")
    known = model_of(any_size_net)
    artifact = made(source, recipe, tmp_path, known=known, sizes=SIZES)
    assert 'shape="1,3,32..48,32..64"' in (tmp_path / "out/model.xml").read_text()
    runner = engine.open(artifact, tmp_path / "out", 1)
    native = reference.open(variants_artifact(any_size_net.name, "onnxruntime"), any_size_net.parent, 1)
    for height, width in (*SIZES, SIZES[0]):
        x = {"image": picture(3, (1, 3, height, width))}
        least = 80 if recipe == "fp32" else 8
        assert sqnr_db(native(x)["logits"], runner(x)["logits"]) > least
    with pytest.raises(BadInput, match=r"\(1, 3, 64, 64\) is outside 1x3x32\.\.48x32\.\.64"):
        runner({"image": picture(3, (1, 3, 64, 64))})


def test_int8_weights_stay_int8_where_sizes_are_bounded(any_size_net: Path, tmp_path: Path) -> None:
    path = quantise_openvino(any_size_net, pictures(3), 3, "mixed", tmp_path / "q")
    made(path, "int8-nncf-mixed", tmp_path, known=model_of(any_size_net), sizes=SIZES)
    counts = [f.read_text().count('element_type="i8"') for f in (path, tmp_path / "out/model.xml")]
    assert counts[0] == counts[1] > 0


def test_several_sizes_give_the_same_bytes_again(any_size_net: Path, tmp_path: Path) -> None:
    first, second = (made(any_size_net, "fp32", tmp_path / n, sizes=SIZES) for n in "ab")
    assert first == second


def test_an_operator_that_openvino_does_not_know_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "made.up"
    model.opset_import.append(onnx.helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Unheard"):
        made(tmp_path / "odd.onnx", "fp32", tmp_path)


def test_a_variant_outside_its_folder_is_refused(net: Path, tmp_path: Path) -> None:
    sound = order(tmp_path, net, "fp32", PC)
    bad = msgspec.structs.replace(sound.variant, path="../net.onnx")
    with pytest.raises(BadInput, match="leaves its folder"):
        convert(msgspec.structs.replace(sound, variant=bad), tmp_path / "out")


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_nncf_gives_an_int8_model_that_still_means_the_same(preset, net: Path, tmp_path: Path, capfd) -> None:
    path = quantise_openvino(net, pictures(8), 8, preset, tmp_path / "q")
    assert capfd.readouterr().out == ""
    artifact = made(path, f"int8-nncf-{preset}", tmp_path)
    full = made(net, "fp32", tmp_path / "full")
    convs = sum(n.op_type in {"Conv", "Gemm"} for n in onnx.load(net).graph.node)
    assert (tmp_path / "out/model.xml").read_text().count('element_type="i8"') == convs
    x = {"image": picture(99)}
    low = engine.open(artifact, tmp_path / "out", 1)(x)["logits"]
    expected = engine.open(full, tmp_path / "full/out", 1)(x)["logits"]
    assert 8 < sqnr_db(expected, low) < 60


def test_nncf_twice_gives_the_same_bytes_and_another_calibration_does_not(net: Path, tmp_path: Path) -> None:
    bins = []
    for name, count in (("a", 3), ("b", 3), ("c", 2)):
        path = quantise_openvino(net, pictures(count), count, "performance", tmp_path / name)
        bins.append((path.read_bytes(), path.with_suffix(".bin").read_bytes()))
    assert bins[0] == bins[1]
    assert bins[0] != bins[2]


def test_nncf_reads_the_samples_one_by_one_and_no_more_than_asked(net: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    quantise_openvino(net, pictures(50, asked), 3, "performance", tmp_path)
    assert set(asked) == {0, 1, 2}


def test_nncf_holds_one_sample_at_a_time(net: Path, tmp_path: Path) -> None:
    """Every picture is let go before many more are made: none of the first is alive at the end."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def samples():
        nonlocal most
        for seed in range(12):
            array = picture(seed)
            alive.append(weakref.ref(array))
            yield {"image": array}
            del array
            most = max(most, sum(ref() is not None for ref in alive))

    quantise_openvino(net, samples, 12, "performance", tmp_path)
    assert most <= 2


def test_nodes_left_out_stay_float(net: Path, tmp_path: Path) -> None:
    convs = tuple(n.name for n in onnx.load(net).graph.node if n.op_type == "Conv")
    everything = quantise_openvino(net, pictures(2), 2, "performance", tmp_path / "a").read_text()
    less = quantise_openvino(net, pictures(2), 2, "performance", tmp_path / "b", ignored=convs).read_text()
    assert 0 < less.count('type="FakeQuantize"') < everything.count('type="FakeQuantize"')


def test_no_samples_is_an_error_with_a_cure(net: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no calibration samples"):
        quantise_openvino(net, pictures(0), 4, "mixed", tmp_path)


def test_samples_of_a_wrong_shape_fail_with_openvinos_reason(net: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed):
        quantise_openvino(net, lambda: [{"image": np.zeros((1, 4, 8, 8), np.float32)}], 1, "mixed", tmp_path)
