"""The Python of a bundle: run from the unpacked bundle by a fresh interpreter, as on the device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekiln.bundle.app.content import App
from edgekiln.bundle.app.python import render
from edgekiln.devices import load
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Preprocess, TensorSpec
from fakes import app_bundles, digits
from fakes.photographs import photographs
from fakes.preprocesses import PREPROCESSES
from fakes.variants import artifact

FAKES = Path(__file__).parents[1] / "fakes"
_TENSORS = """
import sys
import numpy as np
from preprocess import open_picture, tensor
np.savez(sys.argv[1], *[tensor(open_picture(path)) for path in sys.argv[2:]])
"""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photographs"))


def python(folder: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", *map(str, arguments)]
    if env:
        command.remove("-I")
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


@pytest.mark.parametrize("name", PREPROCESSES)
def test_ten_photographs_give_the_tensors_of_the_reference(
    name: str, photos: list[Path], tmp_path: Path
) -> None:
    spec = PREPROCESSES[name]
    folder = app_bundles.unpacked(
        app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", spec, recorded=False)
    )
    (folder / "app/python/tensors.py").write_text(_TENSORS)
    done = python(folder, "app/python/tensors.py", tmp_path / "found.npz", *photos, PYTHONPATH="app/python")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert len(found.files) == len(photos) == 10
        for key, path in zip(found.files, photos, strict=True):
            expected = apply(spec, open_image(path))
            assert (found[key].dtype, found[key].shape) == (expected.dtype, expected.shape), path.name
            assert np.array_equal(found[key], expected), path.name  # both are Pillow: not a bit differs


@pytest.mark.parametrize(
    ("engine", "device", "name"),
    [
        ("onnxruntime", "raspberry-pi-5", "crop-bicubic"),
        ("openvino", "intel-n100", "letterbox-bgr"),
        ("openvino", "intel-n100", "bytes-nhwc"),
    ],
)
def test_the_self_test_passes_and_pictures_are_named(
    engine: str, device: str, name: str, photos: list[Path], tmp_path: Path
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    folder = app_bundles.unpacked(app_bundles.bundle(tmp_path, device, engine, PREPROCESSES[name]))
    done = python(folder, "app/python/selftest.py", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("differs by") == 3  # the preprocessing and two recorded samples
    done = python(folder, "app/python/predict.py", *photos[:2], PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "%" in line]) == 10
    shares = [float(line.split("%")[0]) for line in lines if "%" in line][:5]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert any('a "quoted" \\ name' in line for line in lines)


def test_a_real_build_carries_code_that_runs(float_bundle: Path, tmp_path: Path) -> None:
    """A build by the command line, of a trained model of digits, its bundle unzipped elsewhere."""
    path = tmp_path / "host.edgekiln"
    path.write_bytes(float_bundle.read_bytes())
    folder = app_bundles.unpacked(path)
    done = python(folder, "app/python/selftest.py", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preprocessing differs by 0,")
    seven = next(path for path in held_back(tmp_path) if "seven" in str(path))
    done = python(folder, "app/python/predict.py", seven, PYTHONPATH="")
    assert done.stdout.splitlines()[1].split()[-1] == "seven"


def held_back(folder: Path) -> list[Path]:
    """Digits that the model was not trained on, in folders named for their classes."""
    digits.save_pictures(folder / "held-back", labelled=True, first=0, count=40)
    return sorted((folder / "held-back").rglob("*.png"))


def test_the_self_test_notices_another_preprocessing_and_other_weights(tmp_path: Path) -> None:
    spec = PREPROCESSES["crop-bicubic"]
    folder = app_bundles.unpacked(app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", spec))
    code = folder / "app/python/preprocess.py"
    sound = code.read_text()
    code.write_text(sound.replace("Resampling.BICUBIC", "Resampling.NEAREST"))
    done = python(folder, "app/python/selftest.py", PYTHONPATH="")
    assert done.returncode == 1
    assert "preprocessing" in done.stderr
    assert "not as recorded" not in done.stderr
    code.write_text(sound)
    recorded = folder / "golden/golden-outputs.npz"
    with np.load(recorded) as arrays:
        changed = {key: arrays[key] + np.float32(0.01) for key in arrays.files}
    np.savez(recorded, **changed)
    done = python(folder, "app/python/selftest.py", PYTHONPATH="")
    assert done.returncode == 1
    assert "sample 1: scores is not as recorded" in done.stderr


def test_a_model_that_takes_no_picture_is_given_arrays(tmp_path: Path) -> None:
    spec = PREPROCESSES["box-nhwc"]
    folder = app_bundles.unpacked(
        app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", spec, labels=(), pictures=False)
    )
    assert not (folder / "app/python/preprocess.py").exists()
    done = python(folder, "app/python/selftest.py", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("differs by") == 2
    np.savez(tmp_path / "x.npz", image=np.ones((1, 57, 31, 3), np.float32))
    done = python(folder, "app/python/predict.py", tmp_path / "x.npz", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "scores: float32 (1, 5)" in done.stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler makes CUDA's stand-in here")
def test_with_tensorrt_the_engine_is_built_once_and_then_loaded(tmp_path: Path) -> None:
    """TensorRT and CUDA are stand-ins whose device memory is host memory: real calls, no GPU."""
    spec = PREPROCESSES["stretch-bilinear"]
    folder = app_bundles.unpacked(app_bundles.bundle(tmp_path, "jetson-orin-nano-8gb", "tensorrt", spec))
    libraries = tmp_path / "lib"
    libraries.mkdir()
    source = FAKES / "cpp" / "cuda_library.c"
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", libraries / "libcudart.so", source]
    subprocess.run(command, check=True)
    shutil.copy(libraries / "libcudart.so", libraries / "libcuda.so.1")
    times = []
    for _ in range(2):
        done = python(
            folder, FAKES / "with_tensorrt.py", "app/python/selftest.py", LD_LIBRARY_PATH=str(libraries)
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("differs by") == 3
        (engine,) = (folder / "model").glob("orin-sm87-trt10.3.0-*.engine")
        times.append(engine.stat().st_mtime_ns)
    assert times[0] == times[1]


@pytest.mark.parametrize("name", PREPROCESSES)
def test_the_code_is_as_ruff_would_have_it(name: str, tmp_path: Path) -> None:
    folder = app_bundles.unpacked(
        app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", PREPROCESSES[name], recorded=False)
    )
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--line-length", "110", "app/python"]
    for command in (
        [*ruff, "check", "--select", "E,F,W,B,UP,N,SIM,RUF,C4,RET", *options],
        [*ruff, "format", "--check", *options],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


_LITERT = """
import sys
import torch
import litert_torch

class Net(torch.nn.Module):
    def forward(self, image):
        return image.mean((1, 2)) @ torch.arange(15.0).reshape(3, 5)

net = litert_torch.convert(Net().eval(), sample_kwargs={"image": torch.zeros(1, 24, 20, 3)})
net.export(sys.argv[1])
"""


def test_litert_is_given_pictures_as_its_file_holds_them(tmp_path: Path) -> None:
    """A real .tflite that takes NHWC, called with the model's own NCHW tensor."""
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "model").mkdir()
    (tmp_path / "app/python").mkdir(parents=True)
    made = python(tmp_path, "-c", _LITERT, tmp_path / "model/net.tflite", CUDA_VISIBLE_DEVICES="")
    assert made.returncode == 0, made.stderr
    spec = Preprocess(width=20, height=24)
    graph = app_bundles.network(tmp_path / "graph.onnx", spec)
    known = app_bundles.model(graph, spec)
    output = TensorSpec(name="output_0", dtype="float32", shape=(1, 5))
    known = msgspec.structs.replace(
        known, signature=msgspec.structs.replace(known.signature, outputs=(output,))
    )
    how = artifact("net.tflite", "litert", **{"layout.image": "NHWC"})
    for name, text in render(App(load("raspberry-pi-5"), known, how, None)).items():
        (tmp_path / "app/python" / name).write_text(text)
    x = np.random.default_rng(0).normal(size=(1, 3, 24, 20)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    call = "import numpy as np; from model import Model; m = Model(); x = np.load('x.npy'); m({'image': x})\n"
    call += "print(*m({'image': x})['output_0'][0].tolist()); m.close()"
    done = python(tmp_path, "-c", call, PYTHONPATH="app/python")
    assert done.returncode == 0, done.stderr
    wanted = x.mean((2, 3)) @ np.arange(15.0).reshape(3, 5)
    assert np.allclose(list(map(float, done.stdout.split())), wanted[0], atol=1e-5)
