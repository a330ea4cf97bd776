"""The C++ of a bundle: compiled with every warning an error, and run on real photographs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgekiln.bundle.app.content import App
from edgekiln.bundle.app.cpp import render
from edgekiln.devices import load
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Preprocess
from fakes import app_bundles
from fakes.photographs import photographs
from fakes.preprocesses import PREPROCESSES, step
from fakes.raw_pixels import Raw, raw
from fakes.variants import artifact

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
STAND_INS = Path(__file__).parents[1] / "fakes" / "cpp"
STRICT = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Werror",
    "-Wconversion",
    "-Wsign-conversion",
]


def compiled(source: Path, into: Path, *more: object) -> Path:
    command = ["g++", *STRICT, str(source), "-o", str(into), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return into


def ran(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photographs"))


def rendered(folder: Path, spec: Preprocess) -> Path:
    """The preprocessing for ``spec`` in a folder of its own."""
    graph = app_bundles.network(folder / "graph.onnx", spec)
    app = App(load("intel-n100"), app_bundles.model(graph, spec), artifact("model.onnx", "onnxruntime"), None)
    for name, text in render(app).items():
        (folder / name).write_text(text)
    return folder


def tensors(program: Path, folder: Path, spec: Preprocess, pictures: list[Raw]) -> NDArray[np.generic]:
    arguments: list[object] = []
    for number, p in enumerate(pictures):
        (folder / f"{number}.raw").write_bytes(p.data)
        arguments += [folder / f"{number}.raw", p.width, p.height, p.channels, p.bits, p.stride]
        arguments += [p.orientation, int(p.bgr)]
    done = ran(program, folder / "out", *arguments)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer((folder / "out").read_bytes(), spec.dtype)
    return found.reshape(len(pictures), -1)


@pytest.mark.parametrize("name", PREPROCESSES)
def test_ten_photographs_give_the_tensors_of_the_reference(
    name: str, photos: list[Path], tmp_path: Path
) -> None:
    spec = PREPROCESSES[name]
    program = compiled(
        STAND_INS / "tensors_of.cpp", tmp_path / "tensors_of", "-O1", "-I", rendered(tmp_path, spec)
    )
    pictures = [raw(path, padding=(0, 7, 2)[i % 3], bgr=i % 4 == 1) for i, path in enumerate(photos)]
    assert {p.channels for p in pictures} == {1, 3, 4}
    assert {p.bits for p in pictures} == {8, 16}
    assert {p.orientation for p in pictures} >= {1, 3, 6, 7}
    found = tensors(program, tmp_path, spec, pictures)
    worst = {}
    for path, tensor in zip(photos, found, strict=True):
        expected = apply(spec, open_image(path)).ravel().astype(np.float64)
        worst[path.name] = float(np.abs(tensor.astype(np.float64) - expected).max()) / step(spec)
    print(name, {key: round(value, 6) for key, value in worst.items()})
    # In steps of a pixel: one is allowed. The arithmetic is Pillow 13's, so there not even one is needed.
    exact = int(PIL.__version__.split(".")[0]) >= 13
    assert max(worst.values()) < (1e-4 if exact else 1.001), worst


def test_every_orientation_and_grey_with_alpha(photos: list[Path], tmp_path: Path) -> None:
    spec = Preprocess(width=23, height=19, fit="crop", interpolation="bilinear", scale=1.0, dtype="uint8")
    program = compiled(
        STAND_INS / "tensors_of.cpp", tmp_path / "tensors_of", "-O1", "-I", rendered(tmp_path, spec)
    )
    grey = np.random.default_rng(0).integers(0, 256, (31, 45, 2), dtype=np.uint8)
    pictures = [Raw(grey.tobytes(), 45, 31, 2, 8, 0, o, False) for o in range(1, 9)]
    found = tensors(program, tmp_path, spec, pictures)
    for orientation, tensor in zip(range(1, 9), found, strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(grey, "LA").save(tmp_path / "a.png", exif=exif)
        expected = apply(spec, open_image(tmp_path / "a.png"))
        assert np.array_equal(tensor, expected.ravel()), orientation
    assert len({tensor.tobytes() for tensor in found}) == 8


def test_onnx_runtime_runs_the_bundle(tmp_path: Path) -> None:
    """Compiled with a stand-in of the header, linked with the runtime of the Python package, and run."""
    import onnxruntime

    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    link = [library, f"-Wl,-rpath,{tmp_path},-rpath,{library.parent}", "-isystem", STAND_INS]
    folder = app_bundles.unpacked(
        app_bundles.bundle(tmp_path / "b", "intel-n100", "onnxruntime", PREPROCESSES["bytes-nhwc"])
    )
    check_self_test(folder, compiled(folder / "app/cpp/selftest.cpp", tmp_path / "selftest", *link))
    code = compiled(folder / "app/cpp/classify.cpp", tmp_path / "classify", *link)
    Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), 60).convert("RGB").save(tmp_path / "a.ppm")
    done = ran(code, folder / "model/model.onnx", folder / "labels.txt", tmp_path / "a.ppm")
    assert done.returncode == 0, done.stderr
    shares = [float(line.split("%")[0]) for line in done.stdout.split("\n") if "%" in line]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    done = ran(code, folder / "labels.txt", folder / "labels.txt", tmp_path / "a.ppm")
    assert done.returncode == 1
    assert "labels.txt" in done.stderr


def test_openvino_runs_the_bundle(tmp_path: Path) -> None:
    """Its Python package brings headers, libraries and CMake files: nothing stands in for anything."""
    openvino = pytest.importorskip("openvino")
    cmake = shutil.which("cmake")
    home = Path(openvino.__file__).parent
    folder = app_bundles.unpacked(
        app_bundles.bundle(tmp_path / "b", "intel-n100", "openvino", PREPROCESSES["nearest-half"])
    )
    if cmake is None:
        (library,) = (home / "libs").glob("libopenvino.so.*")
        link = ["-isystem", home / "include", library, f"-Wl,-rpath,{home / 'libs'}"]
        check_self_test(folder, compiled(folder / "app/cpp/selftest.cpp", tmp_path / "selftest", *link))
        return
    options = [f"-DOpenVINO_DIR={home / 'cmake'}", f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}"]
    for command in (
        [cmake, "-S", str(folder / "app/cpp"), "-B", str(tmp_path / "made"), *options],
        [cmake, "--build", str(tmp_path / "made"), "--target", "selftest"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    check_self_test(folder, tmp_path / "made/selftest")


def check_self_test(folder: Path, program: Path) -> None:
    """It passes; and it fails where one recorded value or the picture's tensor is another."""
    done = ran(program, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 3
    for name, failing in (
        ("app/selftest/tensor.npy", "preprocessing"),
        ("golden/golden-outputs.npz", "1/scores"),
    ):
        path = folder / name
        sound = path.read_bytes()
        at = len(sound) - (1 if name.endswith("npy") else 0)
        if name.endswith("npz"):
            at = sound.index(b"\x93NUMPY", sound.index(b"1/scores.npy")) + 128 + 3
        broken = bytearray(sound)
        broken[at - 1 if name.endswith("npy") else at] ^= 0x42
        path.write_bytes(bytes(broken))
        done = ran(program, folder)
        path.write_bytes(sound)
        assert done.returncode == 1
        assert f"FAIL {failing} differs" in done.stdout
        assert done.stdout.count("FAIL") == 1


def test_tensorrt_code_moves_every_byte(tmp_path: Path) -> None:
    """Against stand-ins of TensorRT and CUDA whose device is this machine: the calls and sizes are right."""
    folder = app_bundles.unpacked(
        app_bundles.bundle(
            tmp_path / "b", "jetson-orin-nano-8gb", "tensorrt", PREPROCESSES["stretch-bilinear"]
        )
    )
    library = tmp_path / "libcudart.so"
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", library, STAND_INS / "cuda_library.c"]
    subprocess.run(command, check=True)
    main = tmp_path / "main.cpp"
    main.write_text(
        '#include "model.hpp"\n#include <cstdio>\nint main(int, char** words) {\n'
        "  app::Model model(words[1]);\n  auto* in = static_cast<float*>(model.input());\n"
        "  in[0] = 2.0f;\n  in[app::kInputs[0].count() - 1] = 5.5f;\n  model.run();\n"
        '  for (const float value : model.output()) std::printf("%g ", double{value});\n}\n'
    )
    link = ["-I", folder / "app/cpp", "-isystem", STAND_INS, library, f"-Wl,-rpath,{tmp_path}"]
    program = compiled(main, tmp_path / "main", *link)
    (tmp_path / "sound.engine").write_bytes(b"engine")
    assert ran(program, tmp_path / "sound.engine").stdout.split() == ["7.5", "8.5", "9.5", "10.5", "11.5"]
    compiled(folder / "app/cpp/selftest.cpp", tmp_path / "selftest", *link)
    compiled(folder / "app/cpp/classify.cpp", tmp_path / "classify", *link)
    (tmp_path / "broken.engine").write_bytes(b"else")
    done = ran(tmp_path / "selftest", folder, tmp_path / "broken.engine")
    assert done.returncode == 1
    assert "TensorRT can't read" in done.stderr
    done = ran(tmp_path / "selftest", folder, tmp_path / "sound.engine")
    assert done.returncode == 1  # the stand-in computes something else than was recorded, and that shows
    assert done.stdout.count("FAIL") == 2
    assert "ok   preprocessing" in done.stdout


def test_a_model_that_takes_no_picture_compiles_and_runs(tmp_path: Path) -> None:
    folder = app_bundles.unpacked(
        app_bundles.bundle(
            tmp_path / "b", "intel-n100", "onnxruntime", PREPROCESSES["box-nhwc"], labels=(), pictures=False
        )
    )
    assert not (folder / "app/cpp/preprocess.hpp").exists()
    assert not (folder / "app/cpp/classify.cpp").exists()
    import onnxruntime

    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    link = [library, f"-Wl,-rpath,{tmp_path}", "-isystem", STAND_INS]
    program = compiled(folder / "app/cpp/selftest.cpp", tmp_path / "selftest", *link)
    done = ran(program, folder)
    assert (done.returncode, done.stdout.count("ok ")) == (0, 2), done.stdout
