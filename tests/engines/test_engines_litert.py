"""The LiteRT engine: the model's own tensors in and out, and an error with a cure for everything else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekiln.compile.targets.litert import convert
from edgekiln.engines import litert as engine
from edgekiln.errors import BadInput, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact
from fakes.litert_files import without_kernel
from fakes.networks import picture
from fakes.variants import PC, order
from fakes.variants import artifact as variants_artifact


@pytest.fixture(scope="module")
def converted(net: Path, tmp_path_factory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("litert-engine")
    return convert(order(folder / "variant", net, "fp32", PC), folder / "out"), folder / "out"


@pytest.fixture
def runner(converted):
    artifact, folder = converted
    return engine.open(artifact, folder, 1)


def written(folder: Path, content: bytes) -> tuple[Artifact, Path]:
    (folder / "model.tflite").write_bytes(content)
    return variants_artifact("model.tflite", "litert", **{"layout.image": "NHWC"}), folder


def test_a_later_call_leaves_earlier_outputs_alone(runner) -> None:
    first = runner({"image": picture(1)})["logits"]
    kept = first.copy()
    second = runner({"image": picture(2)})["logits"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert first.shape == (1, 10)


def test_inputs_are_not_changed_and_may_be_changed_afterwards(runner) -> None:
    x = picture(1)
    before = x.copy()
    first = runner({"image": x})["logits"]
    assert np.array_equal(x, before)
    x[:] = 0
    assert np.array_equal(runner({"image": before})["logits"], first)


def test_two_threads_give_what_one_gives(converted, runner) -> None:
    artifact, folder = converted
    x = {"image": picture(5)}
    assert np.allclose(engine.open(artifact, folder, 2)(x)["logits"], runner(x)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, r"inputs \[\] were given; the model takes \['image'\]"),
        ({"args_0": picture(0)}, "args_0"),
        ({"image": picture(0), "more": picture(0)}, "more"),
        ({"image": picture(0).transpose(0, 2, 3, 1)}, r"\(1, 32, 32, 3\); the model takes \(1, 3, 32, 32\)"),
        ({"image": picture(0)[0]}, r"the model takes \(1, 3, 32, 32\)"),
        ({"image": picture(0).astype(np.float64)}, "is float64; the model takes float32"),
    ],
)
def test_other_inputs_than_the_model_s_are_refused(runner, inputs, said) -> None:
    with pytest.raises(BadInput, match=said):
        runner(inputs)
    assert runner({"image": picture(0)})["logits"].shape == (1, 10), "and the runner is still of use"


def test_a_closed_runner_says_so(runner) -> None:
    runner.close()
    with pytest.raises(BadInput, match="closed"):
        runner({"image": picture(0)})


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\0\0\0TFL3" + bytes(64)])
def test_what_is_no_model_is_an_error_with_a_cure(tmp_path, content) -> None:
    with pytest.raises(NotRunnableHere) as caught:
        engine.open(*written(tmp_path, content), 1)
    assert "ai-edge-litert version" in caught.value.cure


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(converted, tmp_path, share) -> None:
    content = (converted[1] / "model.tflite").read_bytes()
    with pytest.raises(NotRunnableHere):
        engine.open(*written(tmp_path, content[: int(len(content) * share)]), 1)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(NotRunnableHere, match=r"model\.tflite"):
        engine.open(variants_artifact("model.tflite", "litert"), tmp_path, 1)


def test_a_path_out_of_the_folder_is_refused(converted, tmp_path) -> None:
    with pytest.raises(BadInput, match="leaves its folder"):
        engine.open(variants_artifact("../model.tflite", "litert"), tmp_path, 1)


def test_an_operator_without_a_kernel_is_named(converted, tmp_path) -> None:
    content = without_kernel((converted[1] / "model.tflite").read_bytes())
    with pytest.raises(NotRunnableHere, match="STABLEHLO_SORT"):
        engine.open(*written(tmp_path, content), 1)


def test_a_file_without_the_signature_is_refused(converted, tmp_path) -> None:
    content = (converted[1] / "model.tflite").read_bytes()
    assert content.count(b"serving_default\0") == 1
    renamed = content.replace(b"serving_default\0", b"another_default\0")
    with pytest.raises(NotRunnableHere, match="serving_default"):
        engine.open(*written(tmp_path, renamed), 1)


def test_opening_is_silent_and_leaves_stderr_open(converted, capfd) -> None:
    artifact, folder = converted
    engine.open(artifact, folder, 1)
    print("still here", file=sys.stderr, flush=True)
    assert capfd.readouterr() == ("", "still here\n")


def test_without_the_package_the_extra_is_named(converted, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtra, match=r"edgekiln\[litert\]"):
        engine.open(*converted, 1)
