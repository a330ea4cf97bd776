"""OpenVINO artifacts: same bytes for the same model, honest options, NNCF's graphs kept in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekiln.compile.quantise.nncf import quantise_openvino
from edgekiln.compile.targets.openvino import convert
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import openvino as engine
from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.records import Artifact
from fakes.networks import REC, ocr_model, picture, sqnr_db
from fakes.variants import PC, order
from fakes.variants import artifact as variants_artifact


def made(model: Path, recipe: str, folder: Path) -> Artifact:
    return convert(order(folder / "variant", model, recipe, PC), folder / "out")


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
    full, low = made(net, "fp32", tmp_path / "a"), made(net, "bf16", tmp_path / "b")
    assert full.files == low.files
    assert [a.options["INFERENCE_PRECISION_HINT"] for a in (full, low)] == ["f32", "bf16"]
    assert set(low.tools) == {"openvino"}


def test_an_operator_that_openvino_does_not_know_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "made.up"
    model.opset_import.append(onnx.helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match="Unheard"):
        made(tmp_path / "odd.onnx", "fp32", tmp_path)


def test_a_variant_outside_its_folder_is_refused(net: Path, tmp_path: Path) -> None:
    import msgspec

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
