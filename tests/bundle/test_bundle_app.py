"""App code in the bundle: the right languages for device and engine, hashed like all else, the same bytes
each time, and nothing from a stranger's names that could change what the code says."""

from __future__ import annotations

import ast
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, __version__

from edgekiln.bundle.app import LANGUAGES, App, content, files, languages
from edgekiln.bundle.app.formulas import DIALECTS, SUPPORT, formulas, rendered
from edgekiln.bundle.app.writing import plain, quoted
from edgekiln.bundle.unpack import opened
from edgekiln.devices import load, names
from edgekiln.errors import BadInput
from edgekiln.model.preprocess import apply
from edgekiln.records import Preprocess, Signature, TensorSpec
from edgekiln.runtime.once import run
from fakes import app_bundles
from fakes.preprocesses import PREPROCESSES
from fakes.variants import artifact

SPEC = PREPROCESSES["crop-bicubic"]


def test_app_code_is_in_the_bundle_hashed_and_in_the_way_of_nothing(tmp_path: Path) -> None:
    path = app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", SPEC)
    with opened(path) as held:
        listed = {f.path for f in held.manifest.files if f.path.startswith("app/")}
        assert {"app/python/model.py", "app/cpp/preprocess.hpp", "app/selftest/tensor.npy"} <= listed
        assert all((held.folder / name).stat().st_size for name in listed)
        expected = apply(SPEC, Image.fromarray(np.load(held.folder / "app/selftest/picture.npy")))
        assert np.array_equal(np.load(held.folder / "app/selftest/tensor.npy"), expected)
    Image.new("RGB", (50, 40), (9, 99, 199)).save(tmp_path / "a.png")
    (prediction,), _ = run(path, [tmp_path / "a.png"])
    assert len(prediction.guesses) == 5


def test_app_code_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = app_bundles.bundle(tmp_path, "raspberry-pi-5", "onnxruntime", SPEC, recorded=False)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        code = archive.read("app/python/model.py")
    path.write_bytes(data.replace(code, code.replace(b"allow_spinning", b"allow_Spinning")))
    with pytest.raises(BadInput, match=r"hash|unpacked"), opened(path):
        pass


def test_the_same_input_is_the_same_bytes(tmp_path: Path) -> None:
    first = app_bundles.bundle(tmp_path / "a", "jetson-orin-nano-8gb", "tensorrt", SPEC).read_bytes()
    assert app_bundles.bundle(tmp_path / "b", "jetson-orin-nano-8gb", "tensorrt", SPEC).read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_every_device_and_target_has_its_language() -> None:
    found = {(name, t): languages(load(name), t) for name in names() for t in load(name).targets}
    assert found["iphone-16-pro", "coreml"] == found["macbook-m4", "coreml"] == ("swift",)
    assert found["galaxy-s24", "litert"] == found["pixel-9", "onnxruntime"] == ("kotlin",)
    assert found["jetson-orin-nano-8gb", "tensorrt"] == ("python", "cpp")
    assert found["intel-n100", "openvino"] == found["raspberry-pi-5", "onnxruntime"] == ("python", "cpp")
    assert found["raspberry-pi-5", "litert"] == ("python",)
    assert found["browser", "web"] == ("javascript",)
    assert {key for key, what in found.items() if not what} <= {(name, "executorch") for name in names()}, (
        "only ExecuTorch on a board has no app code"
    )
    assert set().union(*found.values()) == set(LANGUAGES)


def test_an_engine_without_app_code_says_so_in_the_bundle(tmp_path: Path) -> None:
    graph = app_bundles.network(tmp_path / "g.onnx", SPEC)
    app = App(load("raspberry-pi-5"), app_bundles.model(graph, SPEC), artifact("m.pte", "executorch"), None)
    made = files(app)
    assert list(made) == ["README.md"]
    assert b"executorch" in made["README.md"]


# ---------------------------------------------------------------- the shared arithmetic


def evaluated(name: str, spec: Preprocess, **values: Any) -> Any:
    """A formula of the table, by Python itself."""
    known = {"real": float, "whole": int, "floor": math.floor, "sin": math.sin}
    figures = {"frame_width": float(spec.width), "frame_height": float(spec.height), "crop": spec.crop}
    return eval(formulas(spec)[name], {**known, **figures, "abs": abs, "min": min, "max": max}, values)


def weights(spec: Preprocess, size: int, out: int) -> np.ndarray[Any, Any]:
    """(out, size): the filter's weights in fixed point, by the table's formulas."""
    made = np.zeros((out, size), np.int64)
    scale = evaluated("scale", spec, size=size, out=out)
    blur = evaluated("blur", spec, scale=scale)
    reach = evaluated("reach", spec, blur=blur)
    for i in range(out):
        centre = evaluated("centre", spec, i=i, scale=scale)
        first = evaluated("first", spec, centre=centre, reach=reach)
        last = evaluated("last", spec, centre=centre, reach=reach, size=size)
        distances = [evaluated("distance", spec, j=j, centre=centre, blur=blur) for j in range(first, last)]
        parts = [evaluated("filter", spec, distance=d, x=abs(d)) for d in distances]
        for j, value in zip(range(first, last), parts, strict=True):
            made[i, j] = evaluated("fixed", spec, share=value / sum(parts))
    return made


@pytest.mark.parametrize("how", SUPPORT)
@settings(max_examples=12, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 40)] * 4), seed=st.integers(0, 99))
def test_the_table_is_pillows_resize(how: Any, sides: tuple[int, ...], seed: int) -> None:
    w, h, out_w, out_h = sides
    spec = Preprocess(width=out_w, height=out_h, interpolation=how)
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w), dtype=np.uint8)

    def byte(total: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.vectorize(lambda t: evaluated("byte", spec, total=int(t)), otypes=[np.int64])(total)

    across, down = weights(spec, w, out_w), weights(spec, h, out_h)
    if evaluated("down_first", spec, w=w, h=h, out_w=out_w, out_h=out_h):
        found = byte(byte(down @ pixels) @ across.T)
    else:
        found = byte(down @ byte(pixels @ across.T))
    wanted = np.asarray(Image.fromarray(pixels).resize((out_w, out_h), Image.Resampling[how.upper()]))
    assert np.abs(found - wanted.astype(int)).max() <= (0 if int(__version__.split(".")[0]) >= 13 else 1)


def test_transparency_and_grey_are_pillows() -> None:
    for alpha in range(256):
        values = np.stack([np.arange(256), np.full(256, alpha)], axis=-1).astype(np.uint8)[None]
        white = Image.new("RGBA", (256, 1), (255, 255, 255, 255))
        wanted = Image.alpha_composite(white, Image.fromarray(values, "LA").convert("RGBA")).convert("RGB")
        found = []
        for value in range(256):
            covered = evaluated("over_white", SPEC, value=value, alpha=alpha)
            found.append(evaluated("covered", SPEC, covered=covered))
        assert found == np.asarray(wanted)[0, :, 0].tolist()
    colours = np.random.default_rng(0).integers(0, 256, (1, 500, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(colours).convert("L"))[0]
    assert [evaluated("luma", SPEC, r=r, g=g, b=b) for r, g, b in colours[0].tolist()] == grey.tolist()


@pytest.mark.parametrize("language", DIALECTS)
@pytest.mark.parametrize("name", PREPROCESSES)
def test_every_language_renders_the_same_expression(language: str, name: str) -> None:
    """Back to Python by the language's own spelling, the text is the tree of the table."""
    spec = PREPROCESSES[name]
    for key, text in rendered(spec, language).items():
        figures = {"frame_width": spec.width, "frame_height": spec.height, "crop": spec.crop}
        table = ast.parse(formulas(spec)[key], mode="eval")
        numbers = sorted(float(n.value) for n in ast.walk(table) if isinstance(n, ast.Constant))
        numbers += [
            float(figures[n.id]) for n in ast.walk(table) if isinstance(n, ast.Name) and n.id in figures
        ]
        assert sorted(map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", text))) == sorted(numbers)
        assert text.count("(") == text.count(")")
        assert not {"real", "whole", "frame_width", "frame_height", "crop"} & set(re.findall(r"\w+", text))
    assert set(rendered(spec, language)) == set(formulas(spec))


# ---------------------------------------------------------------- names from strangers

ODD = [
    '"; import os; "',
    "a\\",
    "${x}",
    "\\(y)",
    "new\nline",
    "\x00\x07\x7f",
    "*/ //",
    "\u2028\u202e",
    "名前",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_name_stays_a_name(odd: str, tmp_path: Path) -> None:
    graph = app_bundles.network(tmp_path / "g.onnx", SPEC)
    model = app_bundles.model(graph, SPEC)
    spec = TensorSpec(name=odd, dtype="float32", shape=(1, 3, 224, 224))
    scores = TensorSpec(name=f"out {odd}", dtype="float32", shape=("batch", 5))
    named = msgspec.structs.replace(model, name=odd, signature=Signature(inputs=(spec,), outputs=(scores,)))
    made = files(App(load("raspberry-pi-5"), named, artifact("model.onnx", "onnxruntime"), None))
    for path, data in made.items():
        if path.endswith(".py"):
            tree = ast.parse(data)
            if path == "python/model.py":
                table = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
                kept = "".join("�" if c in "\u2028\u202e" else c for c in odd)
                assert list(ast.literal_eval(table["INPUTS"])) == [kept]
        if path.endswith((".hpp", ".cpp")):
            for line in data.decode().split("\n"):
                assert not (line.lstrip().startswith("//") and line.endswith("\\")), (
                    "the next line would vanish"
                )


@given(st.text(max_size=30))
def test_a_literal_reads_back_as_the_text(text: str) -> None:
    literal = quoted(text, "python")
    assert "\n" not in literal
    back = ast.literal_eval(literal)
    assert len(back) == len(text)
    assert all(a == b or a == "�" for a, b in zip(back, text, strict=True))
    assert json.loads(quoted(text, "javascript")) == back
    assert "$" not in quoted(text, "kotlin").replace("\\$", "")
    assert not set("\n\r\\`<>") & set(plain(text))
    assert "*/" not in plain(text)


def test_the_self_tests_picture_has_edges_noise_and_slopes() -> None:
    pixels = content.picture().astype(int)
    assert pixels.shape == (299, 401, 3)
    assert all(len(np.unique(pixels[:, :, c])) > 100 for c in range(3))
    assert np.abs(np.diff(pixels, axis=1)).max() > 90
