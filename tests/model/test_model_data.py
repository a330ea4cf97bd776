"""Data sets as people keep them: folders, class folders, tables, tensors; the broken file among good ones."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.files import inside
from edgekiln.model.data import choose_size, inputs, labels_of, scan, split, subset
from edgekiln.records import Dataset, Model, Preprocess, Sample, Signature, Source, TensorSpec

LABELS = ("tabby cat", "dog", "crane", "crane", "7")


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def reasons(dataset: Dataset) -> dict[str, str]:
    return {r.path: r.reason for r in dataset.rejected}


# ---------------------------------------------------------------- scan


def test_broken_files_are_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    picture(tmp_path / "b/one.png", 1)
    picture(tmp_path / "a/two.jpg", 2)
    (tmp_path / "a/broken.jpg").write_bytes((tmp_path / "a/two.jpg").read_bytes()[:300])
    (tmp_path / "readme.txt").write_text("hello")
    picture(tmp_path / ".hidden/three.png")
    picture(tmp_path / ".four.png")
    found = scan(tmp_path, labelled=False)
    assert [s.path for s in found.samples] == ["a/two.jpg", "b/one.png"]
    assert set(reasons(found)) == {"a/broken.jpg", "readme.txt"}
    assert found.sha256 == scan(tmp_path, labelled=False).sha256


def test_class_folders_are_names_or_indices(tmp_path: Path) -> None:
    for i, name in enumerate(["Tabby_Cat", "dog", "2", "7"]):
        picture(tmp_path / name / "x.png", i)
    picture(tmp_path / "stray.png", 9)
    found = scan(tmp_path, labels=LABELS, labelled=True)
    assert {s.path.split("/")[0]: s.label for s in found.samples} == {
        "Tabby_Cat": 0,
        "dog": 1,
        "2": 2,
        "7": 4,
    }
    assert "no class folder" in reasons(found)["stray.png"]
    assert sorted(labels_of(found)) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("name", "word"), [("dgo", "Did you mean 'dog'"), ("5", "0 to 4"), ("crane", "index of the class")]
)
def test_a_label_without_a_class_is_refused_with_the_cure(tmp_path: Path, name: str, word: str) -> None:
    picture(tmp_path / name / "x.png")
    with pytest.raises(BadInput) as caught:
        scan(tmp_path, labels=LABELS, labelled=True)
    assert word in caught.value.cure


def test_a_table_gives_labels_and_its_paths_stay_in_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "in/a.png", 1)
    picture(data / "b.png", 2)
    picture(tmp_path / "outside.png", 3)
    (data / "labels.csv").write_text(
        "path,label\nin/a.png,dog\nb.png,0\n../outside.png,dog\n"
        f"{tmp_path / 'outside.png'},dog\ngone.png,1\nb.png,0\n"
    )
    found = scan(data, labels=LABELS, labelled=True)
    assert [(s.path, s.label) for s in found.samples] == [("b.png", 0), ("in/a.png", 1)]
    why = reasons(found)
    assert "leaves its folder" in why["../outside.png"]
    assert "no such file" in why["gone.png"]
    assert "line 7" in why["b.png"]
    assert scan(data / "labels.csv", labels=LABELS, labelled=True) == found


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", "\xff\xfe\x00"])
def test_a_table_of_another_form_is_refused_with_its_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match="path,label"):
        scan(tmp_path, labels=LABELS, labelled=True)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput):
            scan(root, labelled=False)
    (tmp_path / "bad.png").write_text("no")
    with pytest.raises(BadInput, match=r"bad\.png"):
        scan(tmp_path, labelled=False)


def test_links_that_leave_the_root_are_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "good.png")
    picture(tmp_path / "secret/s.png", 5)
    (data / "link.png").symlink_to(tmp_path / "secret/s.png")
    (data / "folder").symlink_to(tmp_path / "secret")
    (data / "inner.png").symlink_to("good.png")
    found = scan(data, labelled=False)
    assert [s.path for s in found.samples] == ["good.png", "inner.png"]
    assert set(reasons(found)) == {"link.png", "folder"}


def test_a_limit_keeps_each_class(tmp_path: Path) -> None:
    for label in ("0", "1", "2"):
        for i in range(4):
            picture(tmp_path / label / f"{i}.png", i)
    found = scan(tmp_path, labels=LABELS, labelled=True, limit=6)
    assert sorted(labels_of(found)) == [0, 0, 1, 1, 2, 2]
    assert sorted(labels_of(subset(found, 3))) == [0, 1, 2]


paths = st.lists(st.sampled_from(["a", "b", "..", ".", "c.png"]), min_size=1, max_size=6).map("/".join)


@given(paths, st.booleans())
def test_no_path_leaves_its_folder(
    tmp_path_factory: pytest.TempPathFactory, relative: str, rooted: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "room"
    given_path = f"/{relative}" if rooted else relative
    try:
        path = inside(root, given_path, "testing")
    except EdgekilnError:
        assert rooted or ".." in relative.split("/")
    else:
        assert path.resolve().is_relative_to(root.resolve())


# ---------------------------------------------------------------- inputs


def model(*specs: TensorSpec, preprocess: Preprocess | None = None) -> Model:
    return Model(
        name="m",
        path="model.onnx",
        sha256="0",
        signature=Signature(inputs=specs, outputs=()),
        task="tensors",
        source=Source(kind="onnx", files=()),
        preprocess=preprocess,
    )


IMAGE = TensorSpec(name="x", dtype="float32", shape=("n", 3, 32, 32))
IDS = TensorSpec(name="ids", dtype="int64", shape=("n", "t"))
MASK = TensorSpec(name="mask", dtype="int64", shape=("n", "t"))


def test_pictures_stream_one_at_a_time_and_memory_does_not_grow(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / f"{i:02}.jpg", i, (320, 240))
    data = scan(tmp_path, labelled=False)
    big = model(
        TensorSpec(name="x", dtype="float32", shape=(1, 3, 512, 512)),
        preprocess=Preprocess(width=512, height=512),
    )
    one = 3 * 512 * 512 * 4

    def peak(count: int) -> int:
        tracemalloc.start()
        for arrays in inputs(data, big, range(count)):
            assert arrays["x"].shape == (1, 3, 512, 512)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(1)
    assert peak(30) < peak(3) + one / 2


def test_pictures_without_preprocessing_or_for_another_model_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = scan(tmp_path, labelled=False)
    with pytest.raises(BadInput, match="preprocess"):
        next(inputs(data, model(IMAGE)))
    with pytest.raises(BadInput, match="npz"):
        next(inputs(data, model(IDS, MASK)))


def test_tensor_files_are_checked_against_the_signature(tmp_path: Path) -> None:
    ids = np.zeros((1, 5), np.int64)
    np.savez(tmp_path / "a.npz", ids=ids, mask=ids)
    np.savez(tmp_path / "b.npz", ids=ids, mask=np.zeros((1, 6), np.int64))
    np.savez(tmp_path / "c.npz", ids=ids.astype(np.int32), mask=ids)
    np.savez(tmp_path / "d.npz", ids=ids)
    np.savez(tmp_path / "e.npz", ids=ids[0], mask=ids)
    data = scan(tmp_path, labelled=False)
    text = model(IDS, MASK)
    (first,) = inputs(data, text, [0])
    assert {k: v.shape for k, v in first.items()} == {"ids": (1, 5), "mask": (1, 5)}
    for index, word in ((1, "1x6"), (2, "int32"), (3, "mask"), (4, r"array\[None\]")):
        with pytest.raises(BadInput, match=word):
            next(inputs(data, text, [index]))


def test_npy_serves_a_model_of_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 3, 32, 32), ">f4"))
    data = scan(tmp_path, labelled=False)
    (arrays,) = inputs(data, model(IMAGE))
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].dtype.isnative
    assert arrays["x"].sum() == 3 * 32 * 32
    with pytest.raises(BadInput, match="2 inputs"):
        next(inputs(data, model(IDS, MASK)))


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_bombs_and_damage_in_tensor_files_are_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "good.npz", x=np.zeros(3, np.float32))
    np.savez(data / "pickle.npz", x=np.array([Bomb(tmp_path / "boom")], dtype=object))
    np.save(data / "pickle.npy", np.array([Bomb(tmp_path / "boom")], dtype=object), allow_pickle=True)
    with (
        zipfile.ZipFile(data / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(2**20))
    (data / "cut.npz").write_bytes((data / "good.npz").read_bytes()[:100])
    whole = np.zeros(100, np.float32)
    np.save(data / "short.npy", whole)
    (data / "short.npy").write_bytes((data / "short.npy").read_bytes()[:-8])
    found = scan(data, labelled=False)
    assert [s.path for s in found.samples] == ["good.npz"]
    assert set(reasons(found)) == {"pickle.npz", "pickle.npy", "bomb.npz", "cut.npz", "short.npy"}
    assert not (tmp_path / "boom").exists()


# ---------------------------------------------------------------- split, size

hashes = st.lists(st.integers(0, 40), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1)


def dataset(values: list[int]) -> Dataset:
    samples = tuple(Sample(path=f"{i}.png", sha256=f"{v:064x}") for i, v in enumerate(values))
    return Dataset(root="r", samples=samples, rejected=(), sha256="0")


@settings(deadline=None)
@given(hashes, st.floats(0.01, 0.99), st.randoms())
def test_a_split_is_whole_disjoint_by_content_and_blind_to_order(values, share, random) -> None:
    first, second = split(dataset(values), share)
    a, b = ({s.sha256 for s in half.samples} for half in (first, second))
    assert a
    assert b
    assert not a & b
    assert len(first.samples) + len(second.samples) == len(values)
    assert abs(len(a) - share * len(a | b)) <= 1
    shuffled = list(values)
    random.shuffle(shuffled)
    assert {s.sha256 for s in split(dataset(shuffled), share)[0].samples} == a


def test_a_split_that_can_not_be_made_is_refused() -> None:
    for values, share in (([1, 1], 0.5), ([1, 2], 0.0), ([1, 2], 1.0)):
        with pytest.raises(BadInput):
            split(dataset(values), share)


def test_the_size_for_a_dynamic_model_is_near_the_median_and_named_in_a_warning(tmp_path: Path) -> None:
    for i, size in enumerate([(300, 200), (310, 205), (4000, 10)]):
        picture(tmp_path / f"{i}.png", i, size)
    (high, wide), warning = choose_size(scan(tmp_path, labelled=False))
    assert (high, wide) == (192, 320)
    assert "--input-shape 1x3x192x320" in warning
    for i in range(3):
        picture(tmp_path / f"{i}.png", i, (3000, 8))
    assert choose_size(scan(tmp_path, labelled=False))[0] == (64, 1280)
