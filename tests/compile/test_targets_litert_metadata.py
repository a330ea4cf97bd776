"""TFLite metadata: the model's normalisation in terms of bytes, labels that any zip reader finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekiln.compile.targets.litert_metadata import labelled_output, normalisation, with_labels
from edgekiln.records import Model, Preprocess, Signature, Source, TensorSpec
from fakes.litert_files import labels, read_metadata

figures = st.floats(-300, 300, allow_nan=False).filter(lambda x: abs(x) > 1e-3)


def signature(**outputs: tuple[int, ...]) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, 20, 30, 3)),),
        outputs=tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in outputs.items()),
    )


def model(labels: tuple[str, ...] = (), preprocess: Preprocess | None = None) -> Model:
    return Model(
        name="net",
        path="net.onnx",
        sha256="0" * 64,
        signature=signature(y=(1, 2)),
        task="tensors",
        source=Source(kind="onnx", files=()),
        labels=labels,
        preprocess=preprocess,
    )


@given(mean=figures, std=figures, scale=st.sampled_from([1.0, 1 / 255, 1 / 127.5]), pixel=st.integers(0, 255))
def test_normalisation_of_bytes_is_the_model_s_own(mean: float, std: float, scale: float, pixel: int) -> None:
    spec = Preprocess(width=1, height=1, colour="GRAY", scale=scale, mean=(mean,), std=(std,))
    (bytes_mean,), (bytes_std,) = normalisation(spec)
    ours = (pixel * scale - mean) / std
    assert (pixel - bytes_mean) / bytes_std == pytest.approx(ours, rel=1e-6, abs=1e-6 * abs(mean / std))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(names=st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), min_size=1))
def test_labels_come_back_line_by_line(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "some.tflite").write_bytes(with_labels(b"\x1c\0\0\0TFL3" + bytes(100), names))
    assert labels(tmp_path / "some.tflite") == names


def test_a_label_of_two_lines_stays_one_label(tmp_path: Path) -> None:
    (tmp_path / "some.tflite").write_bytes(with_labels(b"model", ["a\nb", "c"]))
    assert labels(tmp_path / "some.tflite") == ["a b", "c"]


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({"y": (1, 2)}, "y"),
        ({"boxes": (1, 9, 4), "scores": (1, 9, 2)}, "scores"),
        ({"a": (1, 2), "b": (1, 2)}, None),
        ({"y": (1, 3)}, None),
    ],
)
def test_labels_belong_to_the_one_output_that_counts_as_many(outputs, found) -> None:
    assert labelled_output(model(labels=("cat", "dog")), signature(**outputs)) == found
    assert labelled_output(model(), signature(**outputs)) is None


@pytest.mark.parametrize(("colour", "code"), [("RGB", 1), ("BGR", None)])
def test_colours_and_channels_are_those_of_the_preprocessing(colour, code, tmp_path) -> None:
    preprocess = Preprocess(
        width=30,
        height=20,
        colour=colour,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    found = read_metadata(model(preprocess=preprocess), signature(y=(1, 2)), ["image"], tmp_path)
    (image,) = found["subgraph_metadata"][0]["input_tensor_metadata"]
    properties = image["content"]["content_properties"]
    assert properties["default_size"] == {"width": 30, "height": 20}
    assert properties.get("color_space") == code, "the format has no BGR: the field is left at UNKNOWN"
    assert f"in {colour} order" in image["description"]
    options = image["process_units"][0]["options"]
    assert options["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert options["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert image["stats"]["max"] == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
