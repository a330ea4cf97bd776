"""Reading a picture: whatever comes in is uint8 (H, W, 3) RGB, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from skimage import data

from edgekiln.arrcoc import picture
from edgekiln.arrcoc.picture import load, turned
from edgekiln.errors import BadInput
from edgekiln.model.preprocess import open_image
from fakes.photographs import photographs

ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(data.astronaut())


def test_every_odd_photograph_is_read_as_the_rest_of_the_program_reads_it(tmp_path: Path) -> None:
    for path in photographs(tmp_path / "odd", shrink=4):
        pixels = load(path)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        np.testing.assert_array_equal(pixels, np.asarray(open_image(path)), err_msg=path.name)


def test_an_rgb_array_comes_back_as_it_is() -> None:
    assert load(ASTRONAUT) is ASTRONAUT


def test_grey_arrays_are_repeated_and_16_bits_keep_their_high_byte() -> None:
    grey = ASTRONAUT[..., 0]
    for given in (grey, grey[..., None], grey.astype(np.uint16) * 256 + 255):
        np.testing.assert_array_equal(load(given), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("value", [0, 1, 127, 200, 255])
def test_alpha_lies_over_white(value: int) -> None:
    for channels in (1, 3):
        pixels = np.full((1, 256, channels + 1), value, np.uint8)
        pixels[0, :, -1] = np.arange(256)
        share = np.arange(256) / 255
        wanted = np.floor(value * share + 255 * (1 - share) + 0.5 - 1e-9)
        np.testing.assert_array_equal(load(pixels)[0], np.repeat(wanted[:, None], 3, axis=1))


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "one.png")
    assert load(tmp_path / "one.png").tolist() == [[[10, 20, 30]]]
    assert load(np.full((1, 1), 7, np.uint8)).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 5), np.uint8), "channels"),
        (np.zeros((4,), np.uint8), "(4,)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "(2, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (20_000, 20_000), (0, 0)), "more than"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: NDArray[np.uint8], word: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(array)
    assert word in str(caught.value)


def test_files_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(BadInput, match="reading the picture"):
            load(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_as_pillow_turns(orientation: int) -> None:
    picture = Image.fromarray(ASTRONAUT[:20, :30])
    picture.getexif()[0x0112] = orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.info["exif"] = exif.tobytes()
    wanted = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(turned(np.asarray(picture), orientation), wanted)


# ---------------------------------------------------------------- large files


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways for large pictures, taken at a hundredth of their size."""
    monkeypatch.setattr(picture, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(picture, "STRIP_PIXELS", 4_000)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_a_large_png_is_the_mean_of_whole_squares(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(ASTRONAUT[:300, :200])
    if mode == "I;16":
        source = Image.fromarray(ASTRONAUT[:300, :200, 0].astype(np.uint16) * 256)
    elif mode == "RGBA":
        source.putalpha(Image.fromarray(ASTRONAUT[:300, :200, 1]))
    else:
        source = source.convert(mode)
    path = tmp_path / "large.png"
    source.save(path)
    whole = np.asarray(open_image(path)).astype(float)
    wanted = whole[:300, :198].reshape(100, 3, 66, 3, 3).mean((1, 3))
    found = load(path)
    assert found.shape == (100, 67, 3)
    assert np.abs(found[:, :66] - wanted).max() <= 1


@pytest.mark.usefixtures("small_limit")
def test_a_large_jpeg_is_reduced_by_its_decoder_and_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "large.jpg"
    Image.fromarray(ASTRONAUT[:, :384]).save(path, quality=95, exif=exif)
    found = load(path)
    assert found.shape == (96, 128, 3), "a quarter of 512 x 384, turned"
    wanted = np.asarray(open_image(path).reduce(4)).astype(float)
    assert np.abs(found - wanted).mean() < 3


def test_a_png_of_10_000_by_10_000_is_read(tmp_path: Path) -> None:
    path = tmp_path / "enormous.png"
    Image.new("L", (10_000, 10_000), 77).save(path, compress_level=1)
    found = load(path)
    assert found.shape == (5000, 5000, 3)
    assert (found == 77).all()


def test_beyond_the_limit_a_file_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "too-large.png"
    Image.new("1", (12_000, 12_000)).save(path)
    with pytest.raises(BadInput, match="more than 134217728") as caught:
        load(path)
    assert "Scale it down" in caught.value.cure
