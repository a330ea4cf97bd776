"""The Core ML reference interpreter: files, options, states, functions, pictures, classifiers, refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from edgekiln.engines import coreml
from edgekiln.errors import BadInput, NotRunnableHere
from fakes.mil import ENTRY, save, spec, state
from fakes.variants import artifact

RANDOM = np.random.default_rng(3)
WEIGHT = RANDOM.normal(size=(4, 3)).astype(np.float32)


def opened(folder: Path, **options: Any) -> Any:
    return coreml.open(artifact(ENTRY, "coreml", **options), folder, 1)


def run(folder: Path, *arrays: Any, **options: Any) -> Any:
    """The only output of a package, given its inputs in order."""
    runner = opened(folder, **options)
    names = sorted(runner._inputs)
    (value,) = runner(dict(zip(names, arrays, strict=True))).values()
    return value


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x (2, 3) to x @ WEIGHT.T, with the weight in the weight file."""
    folder = tmp_path_factory.mktemp("linear")
    return save(folder, lambda mb, x: mb.linear(x=x, weight=WEIGHT, name="y"), [spec(2, 3)])


# ---------------------------------------------------------------- what a package computes


def test_a_saved_program_gives_what_it_says(linear: Path) -> None:
    x = RANDOM.normal(size=(2, 3)).astype(np.float32)
    runner = opened(linear)
    found = runner({"x0": x})
    assert list(found) == ["y"]
    assert found["y"].dtype == np.float32
    np.testing.assert_allclose(found["y"], x @ WEIGHT.T, rtol=1e-5)
    runner.close()


def test_names_types_and_ranks_are_the_models_own(tmp_path: Path) -> None:
    def body(mb: Any, x: Any) -> Any:
        return mb.reduce_argmax(x=x, axis=0, keep_dims=True, name="best")

    save(tmp_path, body, [spec(5)])
    runner = opened(
        tmp_path,
        input_names=json.dumps({"x0": "in/put:0"}),
        output_names=json.dumps({"best": "out put"}),
        output_dtypes=json.dumps({"out put": "int64"}),
        scalars=json.dumps(["out put"]),
    )
    (value,) = runner({"in/put:0": np.array([1, 9, 2, 9, 0], np.float64)}).values()
    assert (value.dtype, value.shape, int(value)) == (np.int64, (), 1)


def test_fp16_programs_round_after_every_op_and_overflow_shows(tmp_path: Path) -> None:
    def body(mb: Any, x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=np.float32(300.0)), y=np.float32(0.01))

    save(tmp_path / "half", body, [spec(2)], half=True)
    save(tmp_path / "full", body, [spec(2)])
    x = np.array([100.1, 300.0], np.float32)
    np.testing.assert_allclose(run(tmp_path / "full", x), x * 3, rtol=1e-6)
    half = run(tmp_path / "half", x)
    first = np.float16(np.float16(np.float16(100.1) * np.float32(300)) * np.float32(np.float16(0.01)))
    assert half[0] == np.float32(first)
    assert np.isinf(half[1]), "300 * 300 is beyond float16, even though the result is not"


def test_states_are_kept_between_calls_and_reset(tmp_path: Path) -> None:
    def body(mb: Any, x: Any, held: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        total = mb.add(x=mb.read_state(input=held), y=half)
        return mb.cast(x=mb.coreml_update_state(state=held, value=total), dtype="fp32")

    save(tmp_path, body, [spec(2), state(2)])
    runner, other = opened(tmp_path), opened(tmp_path)
    x = {"x0": np.array([1.0, 0.5], np.float32)}
    calls = [next(iter(runner(x).values())).tolist() for _ in range(3)]
    assert calls == [[1.0, 0.5], [2.0, 1.0], [3.0, 1.5]]
    assert next(iter(other(x).values())).tolist() == [1.0, 0.5], "each runner has states of its own"
    runner.reset()
    assert next(iter(runner(x).values())).tolist() == [1.0, 0.5]


def test_each_function_of_a_package_runs_by_name(tmp_path: Path) -> None:
    shared = RANDOM.normal(size=(8, 8)).astype(np.float32)
    for name, factor in (("encode", 1.0), ("detect", -2.0)):
        body = lambda mb, x, f=factor: mb.mul(x=mb.linear(x=x, weight=shared), y=np.float32(f), name="y")  # noqa: E731
        save(tmp_path / name, body, [spec(1, 8)])
    parts = ct.utils.MultiFunctionDescriptor()
    for name in ("encode", "detect"):
        parts.add_function(str(tmp_path / name / ENTRY), "main", name)
    parts.default_function_name = "encode"
    ct.utils.save_multifunction(parts, str(tmp_path / ENTRY))
    x = RANDOM.normal(size=(1, 8)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path, x), x @ shared.T, rtol=1e-5)
    np.testing.assert_allclose(run(tmp_path, x, function="detect"), -2 * (x @ shared.T), rtol=1e-5)
    weights = (tmp_path / ENTRY).rglob("weight.bin")
    assert sum(w.stat().st_size for w in weights) < 2 * shared.nbytes, "the weights are there once"
    with pytest.raises(BadInput, match="Use one of: detect, encode"):
        opened(tmp_path, function="classify")


def test_shapes_are_held_to_what_the_package_allows(tmp_path: Path) -> None:
    shapes = ct.EnumeratedShapes([(1, 1, 4, 4), (1, 1, 8, 6)], default=(1, 1, 4, 4))
    layer = torch.export.export(
        torch.nn.MaxPool2d(2),
        (torch.zeros(1, 1, 4, 4),),
        dynamic_shapes=({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},),
    )
    made = ct.convert(layer.run_decompositions({}), inputs=[ct.TensorType("x", shape=shapes)])
    made.save(str(tmp_path / ENTRY))
    assert run(tmp_path, np.ones((1, 1, 8, 6), np.float32)).shape == (1, 1, 4, 3)
    with pytest.raises(BadInput, match=re.escape("takes [1, 1, 4, 4] or [1, 1, 8, 6]")):
        run(tmp_path, np.ones((1, 1, 6, 8), np.float32))


# ---------------------------------------------------------------- pictures and classifiers


MEAN, STD, SCALE = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1 / 255


def photographic(folder: Path, colour: str, scale: float = SCALE, mean: tuple[float, ...] = MEAN) -> Path:
    """A classifier of 3 classes over a 4x4 picture; the normalisation is folded in as coremltools does it
    (one scale, three biases), the rest of it in the program."""
    std = np.array(STD, np.float32).reshape(1, 3, 1, 1)
    weight = np.arange(9, dtype=np.float32).reshape(3, 3) / 7

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = (x / torch.from_numpy(std)).mean((2, 3)) @ torch.from_numpy(weight).T
            return torch.softmax(pooled, 1)

    program = torch.export.export(Net(), (torch.zeros(1, 3, 4, 4),)).run_decompositions({})
    image = ct.ImageType(
        "picture",
        shape=(1, 3, 4, 4),
        scale=scale,
        bias=[-m for m in mean],
        color_layout=getattr(ct.colorlayout, colour),
    )
    made = ct.convert(
        program,
        inputs=[image],
        classifier_config=ct.ClassifierConfig(["cat", "dog", "owl"]),
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS17,
    )
    made.save(str(folder / ENTRY))
    return folder


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographic(tmp_path_factory.mktemp("pictured"), "RGB")


def image_options(**changed: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"image_input": True, "image_scale": SCALE, "image_colour": "RGB"}
    for c in range(3):
        options |= {f"image_mean_{c}": MEAN[c], f"image_std_{c}": STD[c]}
    return options | changed


def normalised(pixels: Any) -> Any:
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return ((pixels * np.float32(SCALE) - mean) / std).astype(np.float32)


def scores(x: Any) -> Any:
    logits = x.mean((2, 3)) @ (np.arange(9).reshape(3, 3) / 7).T
    return np.exp(logits) / np.exp(logits).sum()


PIXELS = RANDOM.integers(0, 256, (1, 3, 4, 4)).astype(np.float32)


def test_a_picture_is_recovered_from_the_models_tensor(pictured: Path) -> None:
    x = normalised(PIXELS)
    (value,) = opened(pictured, **image_options())({"picture": x}).values()
    np.testing.assert_allclose(value, scores(x), rtol=1e-5)


def test_a_picture_in_another_layout_is_recovered_too(pictured: Path) -> None:
    x = normalised(PIXELS)
    options = image_options(image_layout="NHWC")
    (value,) = opened(pictured, **options)({"picture": np.moveaxis(x, 1, -1)}).values()
    np.testing.assert_allclose(value, scores(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "mean", "colour"), [(1 / 127.5, MEAN, "RGB"), (SCALE, MEAN[::-1], "RGB"), (SCALE, MEAN, "BGR")]
)
def test_a_wrongly_folded_normalisation_is_a_wrong_result(
    scale: float, mean: tuple[float, ...], colour: str, tmp_path: Path
) -> None:
    photographic(tmp_path, colour, scale, mean)
    x = normalised(PIXELS)
    (value,) = opened(tmp_path, **image_options())({"picture": x}).values()
    assert np.abs(value - scores(x)).max() > 0.01


def test_recovered_pixels_are_whole_where_they_were(pictured: Path) -> None:
    image = opened(pictured, **image_options())._inputs["picture"].type.imageType
    np.testing.assert_array_equal(coreml.picture(normalised(PIXELS), image_options(), image), PIXELS)
    between = coreml.picture(normalised(PIXELS + 0.25), image_options(), image)
    np.testing.assert_allclose(between, PIXELS + 0.25, atol=1e-3)


def test_a_classifier_gives_scores_to_the_runner_and_label_and_dictionary_as_core_ml_does(
    pictured: Path,
) -> None:
    runner = opened(
        pictured, **image_options(), output_names=json.dumps({"classLabel_probs": "probabilities"})
    )
    x = {"picture": normalised(PIXELS)}
    (name, value), *rest = runner(x).items()
    assert (name, value.shape, rest) == ("probabilities", (1, 3), [])
    handed = runner.features(x)
    assert handed["classLabel"] == ("cat", "dog", "owl")[int(value.argmax())]
    assert list(handed["classLabel_probs"]) == ["cat", "dog", "owl"]
    np.testing.assert_allclose(list(handed["classLabel_probs"].values()), value[0])


@pytest.mark.parametrize("missing", ["image_scale", "image_mean_1", "image_std_2"])
def test_a_picture_without_its_normalisation_is_refused(pictured: Path, missing: str) -> None:
    options = image_options()
    del options[missing]
    with pytest.raises(BadInput, match=missing):
        opened(pictured, **options)({"picture": normalised(PIXELS)})


def test_package_and_artifact_must_agree_on_pictures(pictured: Path, linear: Path) -> None:
    with pytest.raises(BadInput, match="image_input=False"):
        opened(pictured)
    with pytest.raises(BadInput, match="none of its inputs is a picture"):
        opened(linear, image_input=True)


# ---------------------------------------------------------------- refusals


def test_inputs_that_the_package_does_not_take_are_refused(linear: Path, tmp_path: Path) -> None:
    x = np.zeros((2, 3), np.float32)
    for wrong, message in (
        ({}, "was given"),
        ({"x0": x, "y": x}, "was given"),
        ({"x0": x[:1]}, "takes \\[2, 3\\]"),
        ({"x0": x.astype(np.complex64)}, "complex64"),
    ):
        with pytest.raises(BadInput, match=message):
            opened(linear)(wrong)
    save(tmp_path, lambda mb, x: mb.add(x=x, y=np.int32(1)), [spec(1, dtype="int32")])
    assert run(tmp_path, np.array([41], np.int64)).tolist() == [42]
    with pytest.raises(BadInput, match="does not fit int32"):
        run(tmp_path, np.array([1 << 31]))
    with pytest.raises(BadInput, match="float32"):
        run(tmp_path, np.array([1.5], np.float32))


def changed_spec(source: Path, into: Path, change: Any) -> Path:
    """A copy of a package whose specification went through ``change``."""
    from coremltools.proto import Model_pb2

    shutil.copytree(source, into)
    path = into / ENTRY / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return into


def operations(model: Any) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def test_an_op_that_is_not_interpreted_is_named_with_its_place(linear: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        next(op for op in operations(model) if op.type == "linear").type = "fold_quantum"

    changed_spec(linear, tmp_path / "p", change)
    with pytest.raises(NotRunnableHere, match=r"lacks fold_quantum \(at 'y'\)"):
        opened(tmp_path / "p")


def test_a_result_that_is_not_what_the_program_declares_is_no_result(linear: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        op = next(op for op in operations(model) if op.type == "linear")
        op.outputs[0].type.tensorType.dimensions[1].constant.size = 5

    changed_spec(linear, tmp_path / "p", change)
    with pytest.raises(NotRunnableHere, match=r"linear at 'y'.*\[2, 4\].*declares fp32\[2, 5\]"):
        run(tmp_path / "p", np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    "name", ["@model_path/../../../../secret", "/etc/passwd", "@model_path/link/weight.bin"]
)
def test_a_weight_file_outside_the_package_is_not_read(linear: Path, tmp_path: Path, name: str) -> None:
    def change(model: Any) -> None:
        for op in operations(model):
            for value in op.attributes.values():
                if value.HasField("blobFileValue"):
                    value.blobFileValue.fileName = name

    changed_spec(linear, tmp_path / "p", change)
    real = tmp_path / "p" / ENTRY / "Data/com.apple.CoreML/weights"
    shutil.copy(real / "weight.bin", tmp_path / "secret")
    (real.parent / "link").symlink_to(linear / ENTRY / "Data/com.apple.CoreML/weights")
    with pytest.raises(BadInput, match="leaves its folder"):
        opened(tmp_path / "p")


def test_a_manifest_that_points_outside_is_not_followed(linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear / ENTRY, tmp_path / ENTRY)
    shutil.copy(next((linear / ENTRY).rglob("model.mlmodel")), tmp_path / "stolen")
    path = tmp_path / ENTRY / "Manifest.json"
    manifest = json.loads(path.read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../stolen"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="leaves its folder"):
        opened(tmp_path)
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"Manifest\.json"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: None, "can't be read"),
        (lambda data: data[:100], "bytes"),
        (lambda data: data[:-20], "cut short"),
        (lambda data: data[:64] + b"\0" * 4 + data[68:], "damaged"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9"),
    ],
)
def test_a_damaged_weight_file_is_refused(damage: Any, message: str, linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear / ENTRY, tmp_path / ENTRY)
    path = next((tmp_path / ENTRY).rglob("weight.bin"))
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        opened(tmp_path)


def test_a_package_that_is_none_is_refused(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a folder"):
        opened(tmp_path)
    shutil.copytree(linear / ENTRY, tmp_path / ENTRY)
    next((tmp_path / ENTRY).rglob("model.mlmodel")).write_bytes(b"\xff" * 50)
    with pytest.raises(BadInput, match=r"can't be decoded|not an ML Program"):
        opened(tmp_path)


def test_a_negative_index_is_undefined_from_ios17_on_and_refused(tmp_path: Path) -> None:
    def body(mb: Any, x: Any, i: Any) -> Any:
        return mb.gather(x=x, indices=i, axis=0)

    for target in ("iOS16", "iOS18"):
        save(tmp_path / target, body, [spec(4), spec(2, dtype="int32")], target=target)
    x, i = np.arange(4, dtype=np.float32), np.array([-1, 2])
    assert run(tmp_path / "iOS16", x, i).tolist() == [3.0, 2.0]
    assert run(tmp_path / "iOS18", x, abs(i)).tolist() == [1.0, 2.0]
    with pytest.raises(NotRunnableHere, match="index -1 into a length of 4"):
        run(tmp_path / "iOS18", x, i)


def test_a_class_label_that_stands_twice_is_refused(pictured: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        for op in operations(model):
            if op.type == "classify":
                names = op.inputs["classes"].arguments[0].value.immediateValue.list.values
                names[2].CopyFrom(names[0])

    changed_spec(pictured, tmp_path / "p", change)
    with pytest.raises(NotRunnableHere, match="'cat' stands for two scores"):
        opened(tmp_path / "p", **image_options())({"picture": normalised(PIXELS)})


def test_the_engine_says_what_it_proves() -> None:
    assert "not the Neural Engine's arithmetic" in coreml.NOTE
