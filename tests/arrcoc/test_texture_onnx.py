"""The texture array as an ONNX graph: NumPy's numbers, and a model that the program builds like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from skimage import data

from edgekiln.api import inspect
from edgekiln.arrcoc import channels as c
from edgekiln.arrcoc.texture import reduction, texture
from edgekiln.arrcoc.texture_onnx import Layout, texture_model
from edgekiln.errors import BadInput

ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(data.astronaut())
NOISE = np.random.default_rng(7).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def run(model: onnx.ModelProto, picture: NDArray[np.uint8], layout: Layout = "NHWC") -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = picture[None] if layout == "NHWC" else np.ascontiguousarray(picture.transpose(2, 0, 1))[None]
    return np.asarray(session.run(None, {"picture": batch})[0][0])


def assert_agrees(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    apart = np.abs(found - wanted).max((1, 2))
    assert (apart <= c.TOLERANCES["onnx"]).all(), dict(zip(c.NAMES, apart, strict=True))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "picture",
    [ASTRONAUT, NOISE, np.where(NOISE > 127, 255, 0).astype(np.uint8), NOISE[:1, :1], NOISE[:2, :90]],
    ids=["photograph", "noise", "extreme", "one-pixel", "two-rows"],
)
def test_it_agrees_with_numpy_at_the_size_of_the_picture(picture: NDArray[np.uint8], layout: Layout) -> None:
    size = (picture.shape[0], picture.shape[1])
    found = run(texture_model(size, layout=layout), picture, layout)
    assert_agrees(found, texture(picture, size, backend="numpy"))


@pytest.mark.parametrize("size", [(256, 256), (128, 256), (224, 224), (100, 77), (600, 300), (1, 1)])
def test_a_larger_or_smaller_picture_is_reduced_by_area(size: tuple[int, int]) -> None:
    found = run(texture_model(size, picture=(512, 512), layout="NHWC"), ASTRONAUT)
    reduced = np.round(found[:3].transpose(1, 2, 0) * 255).astype(np.uint8)
    exact = reduction(ASTRONAUT, size, backend="numpy")
    assert np.abs(reduced.astype(int) - exact).max() <= 1
    assert np.mean(reduced != exact) < 0.001
    assert_agrees(found, texture(reduced, size, backend="numpy"))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 0, 255), (255, 255, 0)])
def test_ranges_hold_for_even_pictures_at_the_ends_of_the_scale(colour: tuple[int, int, int]) -> None:
    found = run(texture_model((6, 6)), np.full((6, 6, 3), colour, np.uint8), "NCHW")
    for channel, plane in zip(c.CHANNELS, found, strict=True):
        assert np.float32(channel.low) <= plane.min(), channel.name
        assert plane.max() <= np.float32(channel.high), channel.name
    assert (found[[c.GX, c.GY, c.MAGNITUDE, c.DEVIATION]] == 0).all()


def test_the_graph_is_standard_and_its_shapes_are_static() -> None:
    model = texture_model((224, 224), picture=(640, 480), layout="NHWC")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert len(model.graph.node) < 50
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    assert all(0 not in shape for shape in shapes.values())
    given, made = model.graph.input[0], model.graph.output[0]
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [1, 640, 480, 3]
    assert [d.dim_value for d in made.type.tensor_type.shape.dim] == [1, 13, 224, 224]


def test_the_same_call_gives_the_same_bytes() -> None:
    first, second = (texture_model((32, 48)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_it_is_a_model_that_targets_accept(tmp_path: Path) -> None:
    """Two are asked here; the others take minutes."""
    path = tmp_path / "texture.onnx"
    path.write_bytes(texture_model((64, 64)).SerializeToString())
    found = inspect(path, targets=("onnxruntime", "openvino"))
    assert {word.target: word.accepts for word in found.words} == {"onnxruntime": True, "openvino": True}
    assert found.cost is not None
    assert found.cost.unresolved_count == 0


def test_a_graph_for_engines_without_bytes_takes_whole_numbers_in_float32() -> None:
    model = texture_model((96, 128), layout="NHWC", dtype="float32")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"picture": NOISE[None].astype(np.float32)})[0][0]
    assert_agrees(found, texture(NOISE, (96, 128), backend="numpy"))
    beyond = np.random.default_rng(0).normal(0, 300, (1, 96, 128, 3)).astype(np.float32)
    assert np.isfinite(session.run(None, {"picture": beyond})[0]).all()


def test_other_sizes_and_layouts_are_refused() -> None:
    for size in ((0, 4), (4, 10_000)):
        with pytest.raises(BadInput, match="no size"):
            texture_model(size)
        with pytest.raises(BadInput, match="no size"):
            texture_model((4, 4), picture=size)
    with pytest.raises(BadInput, match="layout"):
        texture_model((4, 4), layout="CHWN")  # type: ignore[arg-type]
