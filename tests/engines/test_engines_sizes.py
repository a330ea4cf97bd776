"""Which files an engine is given where an artifact takes several input sizes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekiln.engines import at_size
from edgekiln.errors import BadInput
from edgekiln.records import Artifact, FileEntry, Resolution
from fakes.variants import artifact

SIZES = ((96, 96), (64, 128))


def of_sizes(entries: tuple[str, str], options: dict[str, str | int]) -> Artifact:
    return msgspec.structs.replace(
        artifact(entries[0], "onnxruntime"),
        options=options,
        files=tuple(FileEntry(path=e, sha256="0" * 64, size_bytes=1) for e in dict.fromkeys(entries)),
        resolutions=tuple(
            Resolution(height=h, width=w, entry=e) for (h, w), e in zip(SIZES, entries, strict=True)
        ),
    )


def test_an_artifact_of_one_size_and_a_flexible_one_are_opened_as_they_are() -> None:
    one = artifact("m.onnx", "onnxruntime")
    flexible = of_sizes(("m.onnx", "m.onnx"), {"a": 1})
    assert flexible.flexible
    for given, size in ((one, None), (flexible, None), (flexible, (64, 128))):
        assert at_size(given, Path("there"), size) == (given, Path("there"))


def test_one_file_per_size_is_opened_in_that_sizes_own_folder_with_its_options() -> None:
    given = of_sizes(("96x96/m.onnx", "64x128/other.onnx"), {"a": 1, "b": "x", "64x128/a": 2})
    base, where = at_size(given, Path("there"), None)
    assert (base.entry, where) == ("m.onnx", Path("there/96x96"))
    assert base.options == {"a": 1, "b": "x"}
    wide, where = at_size(given, Path("there"), (64, 128))
    assert (wide.entry, where) == ("other.onnx", Path("there/64x128"))
    assert wide.options == {"a": 2, "b": "x"}
    assert [f.path for f in wide.files] == ["other.onnx"]
    assert wide.resolutions == ()


def test_a_size_that_it_does_not_take_is_bad_input_that_names_its_sizes() -> None:
    for entries in (("m.onnx", "m.onnx"), ("96x96/m.onnx", "64x128/m.onnx")):
        with pytest.raises(BadInput, match="the artifact takes 96x96, 64x128"):
            at_size(of_sizes(entries, {}), Path("there"), (128, 64))


@pytest.mark.parametrize(
    "entry", ["../m.onnx", "/m.onnx", "m.onnx", "96x96//etc/hosts", "96x96/../../m.onnx"]
)
def test_an_entry_that_lies_in_no_folder_of_its_own_is_refused(entry: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        at_size(of_sizes((entry, "96x96/m.onnx"), {}), tmp_path, None)
