"""Frames written straight into an engine's buffer: the reference's numbers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekiln.errors import BadInput
from edgekiln.model.preprocess import apply
from edgekiln.records import Preprocess
from edgekiln.runtime.pictures import fill

SIDES = st.integers(1, 40)


@st.composite
def specs(draw: st.DrawFn) -> Preprocess:
    colour = draw(st.sampled_from(("RGB", "BGR", "GRAY")))
    dtype = draw(st.sampled_from(("float32", "float16", "uint8")))
    channels = 1 if colour == "GRAY" else 3
    numbers = st.floats(-200, 200, width=32)
    plain = dtype == "uint8"
    return Preprocess(
        width=draw(SIDES),
        height=draw(SIDES),
        fit=draw(st.sampled_from(("crop", "stretch", "letterbox"))),
        crop=draw(st.floats(0.1, 1)),
        interpolation=draw(st.sampled_from(("nearest", "box", "bilinear", "bicubic", "lanczos"))),
        colour=colour,
        layout=draw(st.sampled_from(("NCHW", "NHWC"))),
        scale=1.0 if plain else draw(st.sampled_from((1 / 255, 1.0, 2 / 255))),
        mean=(0.0,) * channels if plain else tuple(draw(numbers) for _ in range(channels)),
        std=(1.0,) * channels if plain else tuple(draw(st.floats(0.1, 100)) for _ in range(channels)),
        pad=draw(st.integers(0, 255)),
        dtype=dtype,
    )


@settings(deadline=None, max_examples=150)
@given(specs(), SIDES, SIDES, st.integers(0, 1 << 30))
def test_it_gives_what_the_reference_gives(spec: Preprocess, height: int, width: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = apply(spec, Image.fromarray(frame))
    out = np.full((2, *expected.shape[1:]), 7, expected.dtype)
    fill(spec, frame, out[1])
    assert np.array_equal(out[1], expected[0])
    assert (out[0] == 7).all()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[[0, 0, 0]]],
    ],
)
def test_another_kind_of_frame_is_refused(frame: object) -> None:
    with pytest.raises(BadInput, match="a frame"):
        fill(Preprocess(width=4, height=4), frame, np.zeros((3, 4, 4), np.float32))  # type: ignore[arg-type]
