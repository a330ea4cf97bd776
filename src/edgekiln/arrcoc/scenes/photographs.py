"""The photographs behind the scenes: colour pictures that lie inside packages of the extra ``demo``.

Nothing is downloaded and nothing is kept here. Each is named with its split, the head of its file's SHA-256
(another edition of the package may hold another picture, and a scene would no longer be what its seed says)
and the licence that its package states. Grey pictures of the same packages are left out: a coloured digit
would be the only colour in them. Of a stereo pair only one is used.
"""

from __future__ import annotations

import functools
import hashlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekiln.errors import BadInput, Corrupt, MissingExtra, did_you_mean
from edgekiln.records import Record

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
CANVAS = 448
SHORT_SIDES = (480, 576, 704)
"""Each photograph is kept at these lengths of its short side, in pixels, and cut to the canvas anywhere."""
MOST_ENLARGED = 1.61
"""No scale enlarges a photograph further than this: blur of its own would give glyphs away."""

_FOOLBOX = "foolbox is MIT; it states no licence of the single pictures"
_FLICKR = "CC BY 2.0"


class Photograph(Record, frozen=True, kw_only=True):
    """A picture inside an installed package: ``path`` is relative to the package's folder."""

    package: str
    path: str
    split: Split
    sha256_head: str
    licence: str

    @property
    def name(self) -> str:
        return Path(self.path).stem


def _photograph(package: str, path: str, split: Split, head: str, licence: str) -> Photograph:
    return Photograph(package=package, path=path, split=split, sha256_head=head, licence=licence)


def _imagenet(number_and_class: str, split: Split, head: str) -> Photograph:
    return _photograph("foolbox", f"data/imagenet_{number_and_class}.jpg", split, head, _FOOLBOX)


PHOTOGRAPHS: tuple[Photograph, ...] = (
    _imagenet("00_243", "test", "28b7b933c8028c6e"),
    _imagenet("01_559", "train", "5f03b0c74dff01b5"),
    _imagenet("02_438", "train", "ccef0734c1a65549"),
    _imagenet("03_990", "train", "c7f0b2f1e9ee39d8"),
    _imagenet("04_949", "test", "a7f62f3c1d214de4"),
    _imagenet("05_853", "validation", "8a449436c61da867"),
    _imagenet("06_609", "train", "fb061102a4e58b3e"),
    _imagenet("07_609", "test", "2c297ad1e5c4804a"),
    _imagenet("08_915", "train", "c6a3411a3987799f"),
    _imagenet("09_455", "train", "ace3716b60ac5843"),
    _imagenet("10_541", "validation", "f325c71d9f4290ee"),
    _imagenet("11_630", "train", "892dff58fc528fe6"),
    _imagenet("12_741", "test", "6c256e17545b25bb"),
    _imagenet("13_471", "train", "52ed0e738b90d27a"),
    _imagenet("14_129", "train", "ad9371d813bf24b0"),
    _imagenet("15_99", "train", "4b588649cd835d4c"),
    _imagenet("16_251", "test", "ce3440a3b7beb6ca"),
    _imagenet("17_22", "train", "b432341845620e9c"),
    _imagenet("18_317", "validation", "b9412f92f0b1c3fa"),
    _imagenet("19_305", "train", "e1f58f00e2e47ce9"),
    _photograph("skimage", "data/astronaut.png", "train", "88431cd9653ccd53", "public domain (NASA)"),
    _photograph("skimage", "data/chelsea.png", "test", "596aa1e7cb875eb7", "CC0 (Stefan van der Walt)"),
    _photograph("skimage", "data/coffee.png", "validation", "cc02f8ca188b167c", "CC0 (Rachel Michetti)"),
    _photograph("skimage", "data/hubble_deep_field.jpg", "train", "3a19c5dd8a927a93", "public domain (NASA)"),
    _photograph("skimage", "data/ihc.png", "train", "f8dd1aa387ddd1f4", "no known restrictions (CMMI)"),
    _photograph(
        "skimage",
        "data/motorcycle_left.png",
        "train",
        "db18e9c415761740",
        "Middlebury Stereo 2014; states none",
    ),
    _photograph("skimage", "data/retina.jpg", "train", "38a07f36f27f095e", "CC0 (Mikael Häggström)"),
    _photograph("skimage", "data/rocket.jpg", "test", "c2dd0de7c538df8d", "public domain (SpaceX)"),
    _photograph(
        "sklearn", "datasets/images/china.jpg", "test", "8378025ad2519d64", f"{_FLICKR} (danielbuechele)"
    ),
    _photograph(
        "sklearn", "datasets/images/flower.jpg", "validation", "a77f6ec41e353afd", f"{_FLICKR} (vultilion)"
    ),
    _photograph(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "train",
        "a8ca6d734765703b",
        "public domain (US Navy)",
    ),
)


def package_file(package: str, path: str, sha256_head: str, doing: str) -> bytes:
    """The bytes of a file inside an installed package, which is not imported for it.

    Raises MissingExtra where the package is absent and Corrupt where the file is gone or another one.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(doing, package, "demo")
    file = Path(spec.submodule_search_locations[0]) / path
    cure = "Install the packages of the extra 'demo' in the versions of constraints.txt."
    if not file.is_file():
        raise Corrupt(doing, f"{package}/{path}", "the installed package has no such file", cure)
    content = file.read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(sha256_head):
        raise Corrupt(doing, f"{package}/{path}", "the installed package holds another file", cure)
    return content


def check_split(split: str) -> Split:
    """``split`` itself if there is one of that name; else BadInput."""
    for known in SPLITS:
        if split == known:
            return known
    raise BadInput("making scenes of the split", repr(split), "there is none", did_you_mean(split, SPLITS))


@functools.cache
def photographs(split: Split) -> tuple[Photograph, ...]:
    """The photographs of one split, in the order of the table."""
    return tuple(p for p in PHOTOGRAPHS if p.split == split)


@functools.cache
def scales(photograph: Photograph) -> tuple[NDArray[np.uint8], ...]:
    """The photograph decoded once and resized (Lanczos) to each of ``SHORT_SIDES`` it is large enough for.

    Read-only uint8 arrays (height, width, 3), RGB, smallest first; at least one.
    """
    content = package_file(
        photograph.package, photograph.path, photograph.sha256_head, "reading the photograph"
    )
    with Image.open(io.BytesIO(content)) as opened:
        whole = opened.convert("RGB")
    made = []
    for side in SHORT_SIDES:
        factor = side / min(whole.size)
        if factor > MOST_ENLARGED:
            break
        size = (round(whole.width * factor), round(whole.height * factor))
        pixels: NDArray[np.uint8] = np.array(whole.resize(size, Image.Resampling.LANCZOS))
        pixels.setflags(write=False)
        made.append(pixels)
    return tuple(made)
