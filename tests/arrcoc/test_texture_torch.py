"""The texture array in torch: NumPy's numbers, picture by picture, whatever else is in the batch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage import data

from edgekiln.arrcoc import channels as c
from edgekiln.arrcoc import texture_torch
from edgekiln.arrcoc.texture import reduction, texture
from edgekiln.errors import BadInput

ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(data.astronaut())
NOISE = np.random.default_rng(6).integers(0, 256, (512, 512, 3), dtype=np.uint8)
EXTREME = np.where(NOISE > 127, 255, 0).astype(np.uint8)


def by_torch(pictures: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(texture_torch.texture(torch.from_numpy(pictures), size).numpy())


def assert_agrees(found: NDArray[np.float32], wanted: NDArray[np.float32], picture: str = "") -> None:
    apart = np.abs(found - wanted).max((1, 2))
    assert (apart <= c.TOLERANCES["torch"]).all(), (picture, dict(zip(c.NAMES, apart, strict=True)))


@pytest.mark.parametrize("picture", [ASTRONAUT, NOISE, EXTREME], ids=["photograph", "noise", "extreme"])
def test_it_agrees_with_numpy_at_the_size_of_the_picture(picture: NDArray[np.uint8]) -> None:
    wanted = texture(picture, (512, 512), backend="numpy")
    assert_agrees(by_torch(picture[None], (512, 512))[0], wanted)


@settings(deadline=None, max_examples=80)
@given(
    picture=st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda s: arrays(np.uint8, (*s, 3))),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_ranges_hold_and_reduced_pictures_differ_by_one_level_at_most(
    picture: NDArray[np.uint8], size: tuple[int, int]
) -> None:
    planes = by_torch(picture[None], size)[0]
    for channel, plane in zip(c.CHANNELS, planes, strict=True):
        assert np.float32(channel.low) <= plane.min(), channel.name
        assert plane.max() <= np.float32(channel.high), channel.name
    reduced = np.round(planes[:3].transpose(1, 2, 0) * 255).astype(np.uint8)
    exact = reduction(picture, size, backend="numpy")
    assert np.abs(reduced.astype(int) - exact.astype(int)).max() <= 1
    # From the same reduced picture follows the same texture array.
    assert_agrees(planes, texture(reduced, size, backend="numpy"))


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (100, 77)])
def test_photographs_are_reduced_alike(size: tuple[int, int]) -> None:
    planes = by_torch(ASTRONAUT[None], size)[0]
    reduced = np.round(planes[:3].transpose(1, 2, 0) * 255).astype(int)
    assert np.mean(reduced != reduction(ASTRONAUT, size, backend="numpy")) < 0.001


def test_nothing_is_shared_across_a_batch() -> None:
    alone = by_torch(ASTRONAUT[None], (512, 512))[0]
    for neighbour in (NOISE, EXTREME, np.zeros_like(ASTRONAUT), np.full_like(ASTRONAUT, 255)):
        batch = by_torch(np.stack([neighbour, ASTRONAUT]), (512, 512))
        np.testing.assert_allclose(batch[1], alone, rtol=0, atol=1e-7)


def test_other_batches_and_sizes_are_refused() -> None:
    good = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for batch in (good.float(), good[0], good.permute(0, 3, 1, 2), good[:, :0]):
        with pytest.raises(BadInput, match="texture arrays"):
            texture_torch.texture(batch, (4, 4))
    with pytest.raises(BadInput, match="no size"):
        texture_torch.texture(good, (0, 4))


def test_without_torch_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgekiln.arrcoc import texture_torch\n"
        "from edgekiln.errors import MissingExtra\n"
        "try:\n    texture_torch.texture(None, (4, 4))\n"
        "except MissingExtra as error:\n    print(error.extra)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch", done.stderr
