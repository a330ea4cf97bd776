"""The Swift of a bundle: every file parses, and its preprocessing, executed, is the reference's.

No Swift compiler is on this machine, and this says nothing about Apple's. The syntax tree of the rendered
``Preprocess.swift`` is executed word by word (``fakes.swift_execution``).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import PIL
import pytest
from numpy.typing import NDArray

from edgekiln.bundle.app import languages
from edgekiln.bundle.app.content import App
from edgekiln.bundle.app.swift import render
from edgekiln.devices import load
from edgekiln.model.preprocess import apply, frame, open_image
from edgekiln.records import Golden, Preprocess
from fakes import app_bundles
from fakes.photographs import photographs
from fakes.preprocesses import PREPROCESSES, step
from fakes.raw_pixels import raw
from fakes.swift_execution import executed, faults, parse
from fakes.variants import artifact

pytest.importorskip("tree_sitter_swift")
GOLDEN = Golden(inputs="in.npz", outputs="out.npz", engine="coreml", atol={"scores": 0.001})
# Frames that a slow interpreter fills in time; fits, filters, colours and layouts are the records' own.
SMALL = {
    name: msgspec.structs.replace(spec, width=max(spec.width // 16, 5), height=max(spec.height // 16, 4))
    for name, spec in PREPROCESSES.items()
}


def code(
    tmp_path: Path, spec: Preprocess, engine: str = "coreml", pictures: bool = True, **options
) -> dict[str, str]:
    graph = app_bundles.network(tmp_path / "graph.onnx", spec)
    model = app_bundles.model(graph, spec if pictures else None)
    return render(App(load("iphone-16-pro"), model, artifact("model.mlpackage", engine, **options), GOLDEN))


@pytest.mark.parametrize("name", PREPROCESSES)
@pytest.mark.parametrize("options", [{}, {"image_input": True, "compute_units": "CPU_AND_NE"}])
def test_every_file_parses(name: str, options: dict[str, object], tmp_path: Path) -> None:
    for pictures in (True, False):
        files = code(tmp_path, PREPROCESSES[name], pictures=pictures, **options)
        swift = {path: text for path, text in files.items() if path.endswith(".swift")}
        assert len(swift) == (5 if pictures else 3)
        assert {path: faults(parse(text)) for path, text in swift.items() if faults(parse(text))} == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-> [UInt8] {", "-> [UInt8] {{"),
        ("public final class Preprocess {", "public final class {"),
        ("let w = min(", "let w = min(("),
        ("for i in 0..<out {", "for i 0..<out {"),
        ("var total = 0", "var total = "),
    ],
)
def test_a_broken_file_is_noticed(before: str, after: str, tmp_path: Path) -> None:
    sound = code(tmp_path, PREPROCESSES["crop-bicubic"])["Preprocess.swift"]
    assert before in sound
    assert faults(parse(sound)) == []
    assert faults(parse(sound.replace(before, after, 1))) != []


def made(files: dict[str, str], path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The frame's bytes and the tensor that the Swift code makes of a photograph."""
    names = executed(files["Preprocess.swift"])
    given = raw(path)
    data = np.frombuffer(given.data, np.uint8 if given.bits == 8 else np.uint16)
    pixels = (data if given.bits == 8 else data >> 8).astype(np.uint8)  # Core Graphics hands over 8 bits
    picture = names["Picture"](
        pixels=pixels.tolist(),
        width=given.width,
        height=given.height,
        channels=given.channels,
        stride=given.width * given.channels,
        orientation=given.orientation,
    )
    preprocess = names["Preprocess"]()
    first = list(preprocess.bytes(picture))
    assert preprocess.bytes(picture) == first, "buffers that are used again give the same"
    return np.array(first, np.uint8), np.array(preprocess.tensor(first), np.float32)


@pytest.fixture(scope="session")
def small_photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The ten photographs, at a size that a slow interpreter reads in time, written in the same ten ways."""
    folder = tmp_path_factory.mktemp("photographs")
    return photographs(folder, shrink=8)


@pytest.mark.parametrize("name", SMALL)
def test_the_arithmetic_executed_gives_the_pixels_of_the_reference(
    name: str, small_photographs: list[Path], tmp_path: Path
) -> None:
    spec = SMALL[name]
    files = code(tmp_path, spec)
    exact = int(PIL.__version__.split(".")[0]) >= 13
    for path in small_photographs:
        seen = open_image(path)
        pixels, tensor = made(files, path)
        wanted = np.asarray(frame(spec, seen)).reshape(spec.height, spec.width, -1)
        wanted = wanted[:, :, ::-1] if spec.colour == "BGR" else wanted
        off = np.abs(pixels.reshape(wanted.shape).astype(int) - wanted.astype(int)).max()
        assert off <= (0 if exact else 1), path.name
        expected = apply(spec, seen).ravel()
        rounded = tensor.astype(expected.dtype).astype(np.float64)  # as the buffer's type takes it
        allowed = step(spec) * (1e-4 if exact else 1.001)
        assert np.abs(rounded - expected.astype(np.float64)).max() <= allowed, path.name


def test_another_arithmetic_would_be_noticed(small_photographs: list[Path], tmp_path: Path) -> None:
    """Each change is a mistake that such code really has; all of them still parse."""
    spec = SMALL["crop-bicubic"]
    files = code(tmp_path, spec)
    sound = files["Preprocess.swift"]
    for before, after in (
        ("let blur = max(scale, 1.0)", "let blur = 1.0"),  # no antialiasing
        ("(Double(i) + 0.5) * scale", "Double(i) * scale"),  # half a pixel off
        ("o == 3 || o == 4 || o == 6", "o == 3 || o == 4 || o == 5"),  # turned the wrong way
        ("(width - w) >> 1", "(width - w)"),  # not centred
        ("+ 2097152) >> 22", "+ 0) >> 22"),  # cut instead of rounded
        ("255 * (255 - alpha)", "0 * (255 - alpha)"),  # on black
    ):
        assert before in sound, before
        changed = {"Preprocess.swift": sound.replace(before, after, 1)}
        off = [
            int((made(changed, p)[0] != np.asarray(frame(spec, open_image(p))).ravel()).sum())
            for p in small_photographs
            if p.stem in {"turned-right", "alpha", "odd-size"}
        ]
        assert any(off), before


def test_the_package_is_called_by_its_own_names_and_units(tmp_path: Path) -> None:
    options = {
        "image_input": True,
        "compute_units": "CPU_AND_NE",
        "input_names": '{"image_": "image"}',
        "output_names": '{"var_7": "scores"}',
    }
    model = code(tmp_path, PREPROCESSES["crop-bicubic"], **options)["Model.swift"]
    assert 'dictionary: ["image_": value]' in model
    assert '[("scores", "var_7")]' in model
    assert "computeUnits = .cpuAndNeuralEngine" in model
    assert "kCVPixelFormatType_32BGRA" in model
    assert "MLMultiArray(shape" not in model
    tensor = code(tmp_path, PREPROCESSES["crop-bicubic"])["Model.swift"]
    assert "MLMultiArray(shape: [1, 3, 224, 224], dataType: .float32)" in tensor
    assert "CVPixelBuffer" not in tensor


@pytest.mark.parametrize("name", ["crop-bicubic", "bytes-nhwc", "letterbox-bgr"])
def test_onnx_runtime_is_called_where_it_has_the_types(name: str, tmp_path: Path) -> None:
    files = code(tmp_path, PREPROCESSES[name], engine="onnxruntime")
    assert {path: faults(parse(text)) for path, text in files.items() if path.endswith(".swift")} == {
        path: []
        for path in ("Preprocess.swift", "Decode.swift", "Model.swift", "SelfTest.swift", "Npz.swift")
    }
    assert "elementType: .uInt8" in files["Model.swift"] or name != "bytes-nhwc"
    assert "CoreML" not in files["Model.swift"] + files["SelfTest.swift"]
    assert "onnxruntime-swift-package-manager" in files["README.md"]


@pytest.mark.parametrize(
    ("engine", "name"), [("executorch", "crop-bicubic"), ("onnxruntime", "nearest-half")]
)
def test_an_engine_without_swift_calls_says_so(engine: str, name: str, tmp_path: Path) -> None:
    device = load("iphone-16-pro")
    assert languages(device, engine) == languages(device, "coreml") == ("swift",)
    files = code(tmp_path, PREPROCESSES[name], engine=engine)
    assert set(files) == {"README.md", "Preprocess.swift", "Decode.swift"}
    assert "whose Swift calls are not written here" in files["README.md"]
