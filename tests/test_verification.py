"""``verify``: OK on a fresh bundle, 1 where the outputs moved, 2 on anything that is not whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgekiln.errors import BadInput
from edgekiln.verification import verify
from fakes import bundles
from fakes.bundles import Members
from fakes.command import Kiln

GOLDEN = "golden/golden-outputs.npz"
INPUTS = "golden/golden-inputs.npz"


@pytest.fixture
def bundle(float_bundle: Path) -> Path:
    return float_bundle


@pytest.fixture(scope="module")
def tensorrt_bundle(digit_files: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Jetson's TensorRT artifact in half precision: nothing here runs it as it is."""
    where = tmp_path_factory.mktemp("tensorrt")
    options = ["--device", "jetson-orin-nano-8gb", "--target", "tensorrt", "--recipe", "fp16"]
    data = ["--data", digit_files / "data", "--threads", "1", "--out", "out"]
    done = Kiln(where, shared_cache)("build", digit_files / "digits.onnx", *options, *data)
    assert done.code == 0, done.stderr
    return where / "out" / "bundles" / "jetson-orin-nano-8gb.edgekiln"


def test_a_fresh_bundle_holds(kiln: Kiln, bundle: Path) -> None:
    found = verify(bundle)
    with zipfile.ZipFile(bundle) as archive:
        assert found.files == len(archive.namelist()) - 1
    assert (found.golden, found.problems, found.reason, found.signed) == (True, (), "", False)
    done = kiln("verify", bundle)
    assert done.code == 0
    assert "not signed" in done.stdout


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_outputs_that_moved_are_named_and_exit_code_1(
    kiln: Kiln, bundle: Path, tmp_path: Path, shift: float
) -> None:
    def change(held: Members) -> None:
        held[GOLDEN] = bundles.altered(held[GOLDEN], lambda n, a: (n, a + np.float32(shift * np.ptp(a))))

    forged = bundles.repack(bundle, tmp_path / "moved.edgekiln", change)
    done = kiln("verify", forged)
    assert done.code == 1
    assert "moved:" in done.stdout
    assert "scores" in done.stdout
    assert kiln("verify", forged, "--json").json["golden"] is False


def test_another_models_weights_are_noticed(bundle: Path, tmp_path: Path) -> None:
    """Hashes alone can't tell: the forger names his own. The recorded outputs do."""

    def change(held: Members) -> None:
        name = "model/model.onnx"
        model = onnx.load_model_from_string(held[name])
        weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        weight.raw_data = np.flip(np.frombuffer(weight.raw_data, kind)).tobytes()
        held[name] = model.SerializeToString()

    found = verify(bundles.repack(bundle, tmp_path / "other.edgekiln", change))
    assert found.golden is False
    assert found.problems


def spoil_byte(held: Members) -> None:
    name = max((n for n in held if n.startswith("model/")), key=lambda n: len(held[n]))
    data = bytearray(held[name])
    data[len(data) // 2] ^= 1
    held[name] = bytes(data)


def drop_labels(held: Members) -> None:
    del held["labels.txt"]


def add_file(held: Members) -> None:
    held["model/extra.so"] = b"\x7fELF"


def spoil_manifest(held: Members) -> None:
    held["manifest.json"] = held["manifest.json"][:-20]


def future_schema(held: Members) -> None:
    told = json.loads(held["manifest.json"])
    held["manifest.json"] = json.dumps(told | {"schema": 3}).encode()


def unknown_key(held: Members) -> None:
    told = json.loads(held["manifest.json"])
    held["manifest.json"] = json.dumps(told | {"run": "rm"}).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil_byte, "hash"),
        (drop_labels, "labels.txt"),
        (add_file, "extra.so"),
        (spoil_manifest, "manifest"),
        (future_schema, "schema is 3"),
        (unknown_key, "run"),
    ],
)
def test_tampering_is_exit_code_2(kiln: Kiln, bundle: Path, change: Any, words: str) -> None:
    held = bundles.members(bundle)
    change(held)
    forged = bundles.write(kiln.folder / "forged.edgekiln", held)
    kiln("verify", forged).refused("forged.edgekiln", words)
    kiln("run", forged, "a.png").refused(words)
    kiln("bench", forged).refused(words)


def test_a_path_that_leaves_the_bundle_is_refused_and_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    def change(held: Members) -> None:
        held["../../escaped.txt"] = b"!"

    (tmp_path / "in").mkdir()
    forged = bundles.repack(bundle, tmp_path / "in" / "escape.edgekiln", change)
    with pytest.raises(BadInput, match="no plain path inside the bundle"):
        verify(forged)
    assert not list(tmp_path.rglob("escaped.txt"))


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_cut_short_is_refused(bundle: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.edgekiln").write_bytes(bundle.read_bytes()[:size])
    with pytest.raises(BadInput, match="no whole zip"):
        verify(tmp_path / "cut.edgekiln")


def test_recorded_inputs_that_the_artifact_does_not_take_are_bad_input(bundle: Path, tmp_path: Path) -> None:
    def change(held: Members) -> None:
        held[INPUTS] = bundles.altered(held[INPUTS], lambda n, a: (n.replace("/x", "/z"), a))

    with pytest.raises(BadInput, match="does not take its recorded inputs"):
        verify(bundles.repack(bundle, tmp_path / "renamed.edgekiln", change))


def test_labels_that_are_no_text_are_bad_input(kiln: Kiln, bundle: Path, digit_files: Path) -> None:
    def change(held: Members) -> None:
        held["labels.txt"] = b"\xff\xfe\xfd"

    forged = bundles.repack(bundle, kiln.folder / "labels.edgekiln", change)
    kiln("run", forged, digit_files / "data" / "1500.png").refused("labels")


def test_external_data_of_a_bundled_model_does_not_reach_outside(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(40))

    def change(held: Members) -> None:
        name = "model/model.onnx"
        model = onnx.load_model_from_string(held[name])
        weight = next(t for t in model.graph.initializer if t.dims == [10])
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=str(tmp_path / "secret.bin"))
        held[name] = model.SerializeToString()

    found = verify(bundles.repack(bundle, tmp_path / "reach.edgekiln", change))
    assert found.golden is None
    assert found.reason


def test_an_artifact_for_tensorrt_is_verified_by_emulation_and_says_so(
    kiln: Kiln, tensorrt_bundle: Path
) -> None:
    found = verify(tensorrt_bundle)
    assert found.golden is True
    assert "emulated by onnxruntime" in found.engine
    done = kiln("verify", tensorrt_bundle)
    assert "emulated" in done.stdout


def test_run_says_that_an_engine_stands_in(kiln: Kiln, tensorrt_bundle: Path, digit_files: Path) -> None:
    done = kiln("run", tensorrt_bundle, digit_files / "data" / "1500.png")
    assert done.code == 0
    assert "emulated by onnxruntime" in done.stdout


def test_bench_refuses_to_time_an_emulation(kiln: Kiln, tensorrt_bundle: Path) -> None:
    done = kiln("bench", tensorrt_bundle, "--json")
    assert done.code == 2
    assert done.json["a_percentiles"] is None
    assert "tensorrt is not installed" in done.json["verdict"]


def test_half_precision_that_this_machine_lacks_is_named_and_never_timed(
    kiln: Kiln, bundle: Path, digit_files: Path
) -> None:
    def manifest(told: Any) -> None:
        told["artifact"]["engine"] = told["artifact"]["proof_engine"] = "onnxruntime"
        told["artifact"]["options"] = {"arithmetic": "fp16"}
        told["golden"]["atol"] = {"scores": 100.0}

    forged = bundles.repack(bundle, kiln.folder / "half.edgekiln", bundles.keep, manifest)
    assert "emulated" in verify(forged).engine
    assert "emulated" in kiln("run", forged, digit_files / "data" / "1500.png").stdout
    kiln("bench", forged).refused(
        "half.edgekiln", "only emulates its fp16 arithmetic", "on the device itself"
    )
