"""The texture array with OpenCV and with NumPy: definitions, ranges, agreement, buffers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage import color, data

from edgekiln.arrcoc import channels as c
from edgekiln.arrcoc.texture import Backend, TextureBuffer, reduction, texture
from edgekiln.errors import BadInput

ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(data.astronaut())
COFFEE: NDArray[np.uint8] = np.ascontiguousarray(data.coffee())
NOISE = np.random.default_rng(5).integers(0, 256, (96, 128, 3), dtype=np.uint8)
BACKENDS: tuple[Backend, ...] = ("opencv", "numpy")
both = pytest.mark.parametrize("backend", BACKENDS)


def extremes(height: int, width: int) -> st.SearchStrategy[NDArray[np.uint8]]:
    """Pictures of the values at which something could overflow."""
    return arrays(np.uint8, (height, width, 3), elements=st.sampled_from([0, 1, 3, 127, 128, 252, 254, 255]))


pictures = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: arrays(np.uint8, (*s, 3))),
    st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: extremes(*s)),
)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def assert_in_range(planes: NDArray[np.float32]) -> None:
    for channel, plane in zip(c.CHANNELS, planes, strict=True):
        assert np.isfinite(plane).all(), channel.name
        # A bound that float32 can't hold is rounded to float32.
        assert np.float32(channel.low) <= plane.min(), channel.name
        assert plane.max() <= np.float32(channel.high), channel.name


# ---------------------------------------------------------------- ranges


@both
@settings(deadline=None, max_examples=150)
@given(picture=pictures, size=sizes)
def test_every_channel_keeps_its_range(
    backend: Backend, picture: NDArray[np.uint8], size: tuple[int, int]
) -> None:
    assert_in_range(texture(picture, size, backend=backend))


@both
def test_every_channel_keeps_its_range_on_photographs_and_noise(backend: Backend) -> None:
    for picture in (ASTRONAUT, COFFEE, NOISE, 255 - NOISE):
        assert_in_range(texture(picture, (64, 80), backend=backend))


@both
def test_the_bounds_of_lab_hold_for_the_whole_cube_of_colours(backend: Backend) -> None:
    levels = np.array([*range(0, 256, 5)], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(levels.size, -1, 3)
    planes = texture(cube, cube.shape[:2], backend=backend)[c.L : c.GX]
    assert planes.min() >= 0
    assert planes.max() <= 1
    assert planes[0].max() > 0.999, "white"


@both
def test_the_bounds_of_the_slopes_are_reached_and_never_passed(backend: Backend) -> None:
    found = []
    for values in itertools.product((0, 255), repeat=8):
        square = np.array([*values[:4], 0, *values[4:]], np.uint8).reshape(3, 3)
        planes = texture(np.repeat(square[..., None], 3, axis=2), (3, 3), backend=backend)
        found.append(planes[c.GX : c.MAGNITUDE + 1, 1, 1])
    assert np.max(found, axis=0) == pytest.approx([1, 1, np.sqrt(1.25)], abs=1e-6)
    assert np.min(found, axis=0) == pytest.approx([-1, -1, 0], abs=1e-6)
    assert c.CHANNELS[c.MAGNITUDE].high == pytest.approx(np.sqrt(1.25))


# ---------------------------------------------------------------- definitions


@both
def test_colours_are_the_pixels_and_lab_is_that_of_scikit_image(backend: Backend) -> None:
    planes = texture(COFFEE, COFFEE.shape[:2], backend=backend).astype(float)
    np.testing.assert_allclose(planes[:3].transpose(1, 2, 0), COFFEE / 255, atol=1e-6)
    lab = color.rgb2lab(COFFEE, illuminant="D65")
    wanted = np.stack([lab[..., 0] / 100, (lab[..., 1] + 128) / 255, (lab[..., 2] + 128) / 255])
    # scikit-image's white point has fewer digits.
    allowed = (np.array(c.TOLERANCES[backend][c.L : c.GX]) + 2e-4)[:, None, None]
    assert (np.abs(planes[c.L : c.GX] - wanted) <= allowed).all()


def test_the_definition_of_lab_is_that_of_scikit_image_for_known_colours() -> None:
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [9, 9, 9]], np.uint8
    )
    np.testing.assert_allclose(c.lab(colours), color.rgb2lab(colours, illuminant="D65"), atol=0.02)


@both
def test_slopes_and_deviation_are_what_a_plain_loop_finds(backend: Backend) -> None:
    picture = NOISE[:9, :11]
    planes = texture(picture, (9, 11), backend=backend)
    luma = (picture @ np.array([9798, 19235, 3735]) + 16384) // 32768
    near = np.pad(luma, 2, mode="edge")
    for i, j in np.ndindex(9, 11):
        square = near[i : i + 5, j : j + 5]
        gx = (square[1:4, 3] - square[1:4, 1]) @ [1, 2, 1] / 1020
        gy = [1, 2, 1] @ (square[3, 1:4] - square[1, 1:4]) / 1020
        wanted = [gx, gy, np.hypot(gx, gy)]
        np.testing.assert_allclose(planes[c.GX : c.MAGNITUDE + 1, i, j], wanted, atol=1e-6)
        assert planes[c.DEVIATION, i, j] == pytest.approx(square.std() / 255, abs=c.TOLERANCES[backend][-1])


@both
def test_slopes_point_to_the_brighter_side(backend: Backend) -> None:
    ramp = np.repeat(np.arange(0, 200, 20, dtype=np.uint8)[None, :, None], 10, axis=0).repeat(3, axis=2)
    planes = texture(ramp, (10, 10), backend=backend)
    assert (planes[c.GX] > 0).all()
    assert (planes[c.GY] == 0).all()
    planes = texture(np.ascontiguousarray(ramp.transpose(1, 0, 2)), (10, 10), backend=backend)
    assert (planes[c.GX] == 0).all()
    assert (planes[c.GY] > 0).all()


@both
@pytest.mark.parametrize("value", [0, 1, 77, 128, 254, 255])
def test_an_even_picture_has_no_slope_and_no_deviation(backend: Backend, value: int) -> None:
    planes = texture(np.full((7, 300, 3), value, np.uint8), (7, 300), backend=backend)
    assert (planes[c.GX : c.MAGNITUDE + 1] == 0).all()
    assert (planes[c.DEVIATION] == 0).all()


@both
def test_positions_are_centres_of_pixels(backend: Backend) -> None:
    planes = texture(ASTRONAUT, (4, 2), backend=backend)
    np.testing.assert_allclose(planes[c.Y][:, 0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(planes[c.X][0], [-0.5, 0.5])
    np.testing.assert_allclose(planes[c.ECCENTRICITY][0, 0], np.sqrt((0.75**2 + 0.5**2) / 2), rtol=1e-6)


@both
def test_a_region_has_the_same_values_wherever_it_lies_and_whatever_else_is_there(backend: Backend) -> None:
    """What the batch-wide and picture-wide normalisations of the origin broke."""
    alone = texture(NOISE[:20, :20], (20, 20), backend=backend)
    canvas = np.zeros((40, 50, 3), np.uint8)
    canvas[:, :2] = 255
    canvas[13:33, 21:41] = NOISE[:20, :20]
    within = texture(canvas, (40, 50), backend=backend)[:, 13:33, 21:41]
    inner = np.s_[:, 2:-2, 2:-2]
    for planes in (slice(0, c.Y), slice(c.DEVIATION, None)):
        # The last bit of a root hangs on where in memory a plane begins.
        np.testing.assert_allclose(alone[planes][inner], within[planes][inner], rtol=0, atol=1e-7)


# ---------------------------------------------------------------- reduction


@both
@pytest.mark.parametrize("size", [(256, 256), (224, 224), (171, 300), (100, 77), (3, 500), (1, 1)])
def test_reduction_is_the_mean_of_what_a_pixel_covers(backend: Backend, size: tuple[int, int]) -> None:
    wanted = ASTRONAUT.astype(float)
    for axis in (0, 1):
        length, cells = wanted.shape[axis], size[axis]
        sums = np.concatenate([np.zeros_like(wanted.take([0], axis)), wanted.cumsum(axis)], axis)
        edges = np.linspace(0, length, cells + 1)
        low = np.minimum(np.floor(edges).astype(int), length - 1)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(3)])
        upto = sums.take(low, axis) + part * wanted.take(low, axis)
        wanted = np.diff(upto, axis=axis) * cells / length
    found = reduction(ASTRONAUT, size, backend=backend)
    assert found.shape == (*size, 3)
    assert np.abs(found - wanted).max() <= 0.501


@both
def test_fine_stripes_reduce_to_grey_instead_of_aliasing(backend: Backend) -> None:
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    for size in ((150, 150), (100, 100), (40, 40)):
        found = reduction(stripes, size, backend=backend).astype(int)
        assert np.abs(found - 127.5).max() <= 255 / (300 / size[1]) / 2 + 1


@both
@settings(deadline=None, max_examples=60)
@given(colour=st.tuples(*[st.integers(0, 255)] * 3), size=sizes)
@example(colour=(255, 255, 255), size=(7, 11))
def test_one_pixel_enlarged_is_that_pixel_everywhere(
    backend: Backend, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    picture = np.array(colour, np.uint8).reshape(1, 1, 3)
    assert (reduction(picture, size, backend=backend) == picture).all()


@both
def test_one_axis_may_shrink_while_the_other_grows(backend: Backend) -> None:
    picture = np.array([[0, 10, 20, 30]], np.uint8)[..., None].repeat(3, axis=2)
    assert reduction(picture, (2, 2), backend=backend)[..., 0].tolist() == [[5, 25], [5, 25]]


# ---------------------------------------------------------------- agreement


@settings(deadline=None, max_examples=150)
@given(picture=pictures)
@example(picture=NOISE)
@example(picture=ASTRONAUT)
def test_at_the_same_size_opencv_and_numpy_agree_within_the_stated_tolerances(
    picture: NDArray[np.uint8],
) -> None:
    exact = texture(picture, picture.shape[:2], backend="numpy")
    fast = texture(picture, picture.shape[:2], backend="opencv")
    apart = np.abs(fast - exact).max((1, 2))
    assert (apart <= c.TOLERANCES["opencv"]).all(), dict(zip(c.NAMES, apart, strict=True))


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (128, 128), (448, 448), (100, 77), (600, 300)])
def test_reduced_pictures_differ_by_one_level_at_most(size: tuple[int, int]) -> None:
    for picture in (ASTRONAUT, NOISE):
        one, two = (reduction(picture, size, backend=b).astype(int) for b in BACKENDS)
        assert np.abs(one - two).max() <= 1
        assert np.mean(one != two) < 0.05


def test_the_table_is_as_exact_as_the_8_bit_conversion_of_opencv() -> None:
    for picture in (ASTRONAUT, NOISE):
        exact = texture(picture, picture.shape[:2], backend="numpy")[c.L : c.GX]
        ours = texture(picture, picture.shape[:2], backend="opencv")[c.L : c.GX]
        theirs = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab).transpose(2, 0, 1) / 255
        assert np.abs(ours - exact).max() <= np.abs(theirs - exact).max()


def test_numpy_is_the_definition_to_rounding() -> None:
    lab = c.lab(NOISE)
    planes = texture(NOISE, NOISE.shape[:2], backend="numpy")
    wanted = np.stack([lab[..., 0] / 100, (lab[..., 1] + 128) / 255, (lab[..., 2] + 128) / 255])
    np.testing.assert_allclose(planes[c.L : c.GX], wanted, atol=c.TOLERANCES["numpy"][c.L])


# ---------------------------------------------------------------- buffers


@both
def test_a_buffer_holds_what_a_call_gives_whatever_was_in_it(backend: Backend) -> None:
    buffer = TextureBuffer((48, 64), backend=backend)
    for picture in (NOISE, np.ascontiguousarray(ASTRONAUT[::-1]), COFFEE[:48, :64], COFFEE[::3, ::-2]):
        filled = buffer.fill(picture)
        assert filled is buffer.planes
        np.testing.assert_allclose(filled, texture(picture, (48, 64), backend=backend), rtol=0, atol=1e-7)


@both
def test_a_given_output_is_written_and_returned(backend: Backend) -> None:
    out = np.full((13, 20, 30), np.nan, np.float32)
    assert texture(COFFEE, (20, 30), out=out, backend=backend) is out
    np.testing.assert_allclose(out, texture(COFFEE, (20, 30), backend=backend), rtol=0, atol=1e-7)


def test_the_picture_is_left_as_it_was() -> None:
    before = NOISE.copy()
    for backend in BACKENDS:
        texture(NOISE, NOISE.shape[:2], backend=backend)
    np.testing.assert_array_equal(NOISE, before)


def test_threads_do_not_disturb_each_other() -> None:
    wanted = {side: texture(ASTRONAUT, (side, side)) for side in (30, 31)}
    worst: list[float] = []

    def work(side: int) -> None:
        apart = [np.abs(texture(ASTRONAUT, (side, side)) - wanted[side]).max() for _ in range(40)]
        worst.append(float(max(apart)))

    threads = [threading.Thread(target=work, args=(side,)) for side in (30, 31, 30, 31)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4
    assert max(worst) < 1e-6


def test_without_opencv_numpy_does_it_and_asking_for_opencv_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['cv2'] = None\n"
        "import numpy as np\n"
        "from edgekiln.arrcoc.texture import TextureBuffer, texture\n"
        "from edgekiln.errors import MissingExtra\n"
        "picture = np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3)\n"
        "assert (texture(picture, (5, 5)) == TextureBuffer((5, 5)).fill(picture)).all()\n"
        "try:\n    texture(picture, (5, 5), backend='opencv')\n"
        "except MissingExtra as error:\n    print(error.extra)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("video", 0), done.stderr


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("picture", "size", "out", "word"),
    [
        (NOISE.astype(np.float32), (4, 4), None, "float32"),
        (NOISE[..., 0], (4, 4), None, "(96, 128)"),
        (NOISE[:0], (4, 4), None, "no pixel"),
        ("picture.png", (4, 4), None, "str"),
        (NOISE, (0, 4), None, "(0, 4)"),
        (NOISE, (4, 9000), None, "8192"),
        (NOISE, (4, 4.5), None, "4.5"),
        (NOISE, (4, 4), np.zeros((13, 4, 5), np.float32), "buffer"),
        (NOISE, (4, 4), np.zeros((13, 4, 4)), "float64"),
        (NOISE, (4, 4), np.zeros((13, 4, 8), np.float32)[..., ::2], "contiguous"),
    ],
)
def test_what_cannot_be_meant_is_refused(picture: object, size: object, out: object, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        texture(picture, size, out=out)  # type: ignore[arg-type]
    assert word in str(caught.value)


def test_there_are_thirteen_channels_in_the_documented_order() -> None:
    names = ("R", "G", "B", "L", "a", "b", "gx", "gy", "|g|", "y", "x", "eccentricity", "deviation")
    assert names == c.NAMES
    assert all(channel.low < channel.high for channel in c.CHANNELS)
