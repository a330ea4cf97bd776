"""The reference preprocessing: formats people really have, geometry, and rules that hold for all pictures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekiln.errors import BadInput
from edgekiln.model.preprocess import (
    COMMON,
    apply,
    check,
    check_image,
    crop_box,
    default_for,
    image_size,
    letterbox_box,
    normalised,
    open_image,
)
from edgekiln.records import Preprocess, TensorSpec

RED, BLUE = (200, 10, 30), (5, 60, 250)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red at the left, blue at the right."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---------------------------------------------------------------- reading


def test_exif_orientation_turns_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see it
    path = tmp_path / "a.png"
    halves().save(path, exif=exif)
    assert open_image(path).size == (20, 40)
    assert image_size(path) == (40, 20)
    assert open_image(path).getpixel((10, 2)) == RED


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "PA", "YCbCr"])
def test_every_common_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "PA", "YCbCr") else "a.png")
    if mode == "PA":
        path = tmp_path / "a.png"
        mode = "P"
    picture = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    picture.save(path)
    seen = open_image(path)
    assert (seen.mode, seen.size) == ("RGB", (9, 7))
    assert np.asarray(seen).min() >= 250


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "a.png")
    seen = open_image(tmp_path / "a.png")
    assert seen.getpixel((0, 0)) == (255, 255, 255)
    assert abs(seen.getpixel((1, 0))[0] - 127) <= 1


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    values = np.array([[0x0000, 0x12FF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0x00, 0x12, 0xFF]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_truncated_picture_is_bad_input_for_the_cheap_check_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise(300, 200).save(path)
    check_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (open_image, check_image):
        with pytest.raises(BadInput):
            read(path)


def test_what_is_no_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(BadInput, match="not a picture"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match="no such file"):
        open_image(tmp_path / "b.jpg")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(BadInput, match="floating-point"):
        open_image(tmp_path / "f.tif")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (12000, 12000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(BadInput, match="pixels"):
        open_image(path)


def test_postscript_is_never_handed_to_an_interpreter(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(BadInput, match="not a picture"):
        open_image(tmp_path / "a.png")


# ---------------------------------------------------------------- geometry

sides = st.integers(1, 400)
frames = st.integers(1, 64)
crops = st.floats(0.05, 1.0)


@given(sides, sides, frames, frames, crops)
def test_the_crop_is_centred_inside_the_picture_and_of_the_frames_aspect(w, h, fw, fh, crop) -> None:
    left, top, right, bottom = crop_box(w, h, Preprocess(width=fw, height=fh, fit="crop", crop=crop))
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    assert 0 <= (w - right) - left <= 1
    assert 0 <= (h - bottom) - top <= 1
    scale = crop * min(w / fw, h / fh)
    assert abs((right - left) - max(1, fw * scale)) <= 0.5 + 1e-6
    assert abs((bottom - top) - max(1, fh * scale)) <= 0.5 + 1e-6


def test_a_square_crop_is_the_share_of_the_short_side() -> None:
    spec = Preprocess(width=224, height=224, fit="crop", crop=0.875)
    assert crop_box(640, 512, spec) == (96, 32, 544, 480)


@given(sides, sides, frames, frames)
def test_the_letterbox_holds_the_whole_picture_centred_and_touches_the_frame(w, h, fw, fh) -> None:
    left, top, right, bottom = letterbox_box(w, h, Preprocess(width=fw, height=fh, fit="letterbox"))
    assert 0 <= left < right <= fw
    assert 0 <= top < bottom <= fh
    assert right - left == fw or bottom - top == fh
    assert 0 <= (fw - right) - left <= 1
    assert 0 <= (fh - bottom) - top <= 1


def test_the_letterbox_is_filled_with_the_pad() -> None:
    spec = Preprocess(width=40, height=40, fit="letterbox", pad=114, scale=1.0)
    out = apply(spec, halves())
    assert (out[0, :, :10] == 114).all()
    assert (out[0, :, 30:] == 114).all()
    assert out[0, :, 20, 1].tolist() == list(RED)


def test_nothing_outside_the_crop_leaks_in() -> None:
    picture = Image.new("RGB", (100, 100), (255, 255, 255))
    picture.paste((0, 0, 0), (25, 25, 75, 75))
    for how in ("bilinear", "bicubic", "lanczos", "box", "nearest"):
        spec = Preprocess(width=20, height=20, fit="crop", crop=0.5, interpolation=how)
        assert not apply(spec, picture).any(), how


# ---------------------------------------------------------------- numbers


specs = st.builds(
    Preprocess,
    width=st.integers(1, 48),
    height=st.integers(1, 48),
    fit=st.sampled_from(["crop", "stretch", "letterbox"]),
    crop=st.floats(0.2, 1.0),
    interpolation=st.sampled_from(["nearest", "box", "bilinear", "bicubic", "lanczos"]),
    colour=st.sampled_from(["RGB", "BGR", "GRAY"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    pad=st.integers(0, 255),
    dtype=st.sampled_from(["float32", "float16"]),
)


@settings(max_examples=60, deadline=None)
@given(specs, st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_shape_type_and_range_are_what_the_specification_says(spec, w, h, seed) -> None:
    out = apply(spec, noise(w, h, seed))
    channels = 1 if spec.colour == "GRAY" else 3
    size = (spec.height, spec.width)
    assert out.shape == ((1, channels, *size) if spec.layout == "NCHW" else (1, *size, channels))
    assert out.dtype == spec.dtype
    assert out.flags.c_contiguous
    assert out.min() >= 0
    assert out.max() <= 1
    other = "NHWC" if spec.layout == "NCHW" else "NCHW"
    turned = apply(msgspec.structs.replace(spec, layout=other), noise(w, h, seed))
    axes = (0, 2, 3, 1) if spec.layout == "NCHW" else (0, 3, 1, 2)
    assert np.array_equal(turned, out.transpose(axes))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["crop", "stretch", "letterbox"]))
def test_equal_size_and_nearest_leave_every_pixel_as_it_is(w, h, fit) -> None:
    spec = Preprocess(
        width=w, height=h, fit=fit, interpolation="nearest", scale=1.0, layout="NHWC", dtype="uint8"
    )
    assert np.array_equal(apply(spec, noise(w, h))[0], np.asarray(noise(w, h)))


def test_the_arithmetic_is_scale_then_mean_then_deviation_per_channel() -> None:
    spec = Preprocess(
        width=1, height=1, scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), interpolation="nearest"
    )
    one = Image.new("RGB", (1, 1), (10, 20, 30))
    assert apply(spec, one).ravel().tolist() == [(5 - 1) / 2, (10 - 2) / 4, (15 - 3) / 8]
    bgr = msgspec.structs.replace(spec, colour="BGR")
    assert apply(bgr, one).ravel().tolist() == [(15 - 1) / 2, (10 - 2) / 4, (5 - 3) / 8]


def test_grey_is_itu_r_601_luma() -> None:
    spec = Preprocess(width=1, height=1, colour="GRAY", scale=1.0)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (12, 200, 99)):
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        assert abs(apply(spec, Image.new("RGB", (1, 1), colour)).item() - luma) <= 0.51


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [("unit", 0, 1), ("tf", -1, 1), ("efficientnet-lite", -127 / 128, 1), ("raw", 0, 255)],
)
def test_common_normalisations_map_black_and_white(name: str, black: float, white: float) -> None:
    spec = normalised(Preprocess(width=1, height=1), name)
    assert apply(spec, Image.new("RGB", (1, 1), "black")).max() == pytest.approx(black)
    assert apply(spec, Image.new("RGB", (1, 1), "white")).min() == pytest.approx(white)
    assert name in COMMON


def test_imagenet_and_caffe_keep_their_channel_order() -> None:
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    imagenet = apply(normalised(Preprocess(width=1, height=1), "imagenet"), red).ravel()
    assert imagenet == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-5)
    caffe = apply(normalised(Preprocess(width=1, height=1), "caffe"), red).ravel()
    assert caffe == pytest.approx([-103.939, -116.779, 255 - 123.68], rel=1e-5)
    with pytest.raises(BadInput, match="imagenet"):
        normalised(Preprocess(width=1, height=1), "imagnet")


# ---------------------------------------------------------------- is it sound

INPUT = TensorSpec(name="x", dtype="float32", shape=("n", 3, 224, 224))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"width": 225}, "1x3x224x225"),
        ({"layout": "NHWC"}, "NHWC"),
        ({"colour": "GRAY"}, "1x1x224x224"),
        ({"dtype": "float16"}, "float16"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (1.0,)}, "mean"),
        ({"crop": 1.5}, "crop"),
        ({"crop": float("nan")}, "finite"),
        ({"width": 0}, "size"),
        ({"pad": 256}, "pad"),
        ({"dtype": "uint8"}, "bytes"),
    ],
)
def test_a_specification_that_can_not_be_meant_is_refused(change: dict[str, object], word: str) -> None:
    good = Preprocess(width=224, height=224)
    check(good, INPUT)
    with pytest.raises(BadInput, match=word):
        check(msgspec.structs.replace(good, **change), INPUT)


def test_the_default_fits_its_input_and_warns() -> None:
    spec, warning = default_for(INPUT)
    check(spec, INPUT)
    assert (spec.scale, spec.fit, spec.interpolation) == (1 / 255, "stretch", "bilinear")
    assert "[preprocess]" in warning
    grey = TensorSpec(name="x", dtype="uint8", shape=(1, "h", "w", 1))
    spec, _ = default_for(grey, (32, 48))
    check(spec, grey)
    assert (spec.colour, spec.layout, spec.width, spec.height, spec.scale) == ("GRAY", "NHWC", 48, 32, 1.0)
    with pytest.raises(BadInput, match="--input-shape"):
        default_for(grey)
    with pytest.raises(BadInput, match="npz"):
        default_for(TensorSpec(name="ids", dtype="int64", shape=(1, 128)))
