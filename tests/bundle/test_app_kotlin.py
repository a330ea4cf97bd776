"""The Kotlin of a bundle: compiled, and run on the JVM against recorded answers and real photographs.

One compiler process serves all tests here. Phones' own classes are small stand-ins of their public API
(tests/fakes/kotlin); coroutines are the real ones.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgekiln.bundle.app.content import App, selftest_files
from edgekiln.bundle.app.kotlin import ENGINES, render
from edgekiln.devices import load
from edgekiln.engines import npm, open_engine
from edgekiln.model.preprocess import apply, open_image
from edgekiln.prove import golden
from edgekiln.prove.arrays import npz_bytes
from fakes import app_bundles
from fakes.photographs import photographs
from fakes.preprocesses import PREPROCESSES, step
from fakes.variants import artifact as plain_artifact

FAKES = Path(__file__).parents[1] / "fakes" / "kotlin"
QNN = {"backend_type": "htp", "soc_model": 57, "htp_arch": 75, "offload_graph_io_quantization": 0}
APPS = {
    "onnxruntime": ("crop-bicubic", {}),
    "qnn": ("bytes-nhwc", {**QNN, "cpu_fallback": False}),
    "litert": ("letterbox-bgr", {"layout.image": "NHWC"}),
    "executorch": ("stretch-bilinear", {}),
}
"""By engine: the preprocess record and the artifact's options of a whole app that is compiled and run."""
WRONG = {
    "session.run(given)": "session.runs(given)",
    "OrtSession.SessionOptions()": "OrtSession.Options()",
    "options.addConfigEntry(": "options.addEntry(",
    "limitedParallelism(1)": "limitedParallel(1)",
}
"""Names of the runtime's API and the coroutines' that are spelt wrong in an app that must not compile."""


@dataclass(frozen=True)
class Compiled:
    """``classpath`` runs the harness. ``apps`` are unpacked bundles by engine, ``wrong`` is what the compiler
    said of the app with wrong names."""

    classpath: str
    apps: dict[str, Path]
    wrong: str

    def run(self, *arguments: object) -> list[str]:
        command = [java(), "-XX:+UseSerialGC", "-cp", self.classpath, "harness.MainKt", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@functools.cache
def java() -> str:
    found = shutil.which("java")
    if found is None:
        pytest.skip("no JDK is installed: run `make setup`, or apt-get install default-jdk-headless")
    return found


def lib() -> Path:
    found = npm.find("kotlin-compiler")
    if found is None:
        pytest.skip("the npm package kotlin-compiler is not installed: run `make setup`")
    return found / "lib"


def unpacked(root: Path, engine: str) -> tuple[Path, App]:
    """A bundle's folder of files as a phone has them, and what its app code is written from."""
    name, options = APPS[engine]
    spec = PREPROCESSES[name]
    graph = app_bundles.network(root / "graph.onnx", spec)
    made = msgspec.structs.replace(
        app_bundles.artifact(root / "bundle/model", graph, engine), options=options
    )
    runner = open_engine("onnxruntime", plain_artifact(graph.name, "onnxruntime"), root, 1)
    rng = np.random.default_rng(4)
    pictures = [Image.fromarray(rng.integers(0, 256, (61, 83, 3), np.uint8)) for _ in range(2)]
    inputs = [{"image": apply(spec, picture)} for picture in pictures]
    recorded = golden.record(runner, made, inputs, root / "bundle/golden")
    as_fed = [x["image"].transpose(0, 2, 3, 1) if "layout.image" in options else x["image"] for x in inputs]
    arrays = {f"{i}/image": np.ascontiguousarray(x) for i, x in enumerate(as_fed)}
    (root / "fed.npz").write_bytes(npz_bytes(arrays))
    app = App(load("galaxy-s24"), app_bundles.model(graph, spec), made, recorded)
    for path, data in selftest_files(app).items():
        (root / "bundle/app" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "bundle/app" / path).write_bytes(data)
    (root / "bundle/labels.txt").write_text("\n".join(app.model.labels) + "\n")
    (root / "bundle/manifest.json").write_text("{}")
    return root / "bundle", app


def renamed(text: str, package: str) -> str:
    """Every app has the same package; here they stand side by side."""
    assert text.startswith("package edgekiln\n")
    return text.replace("package edgekiln\n", f"package {package}\n", 1)


def write(folder: Path, files: dict[str, str], package: str) -> None:
    folder.mkdir(parents=True)
    for path, text in files.items():
        if path.endswith(".kt"):
            (folder / path).write_text(renamed(text, package))


def package(name: str) -> str:
    return "spec." + name.replace("-", "_")


def harness() -> str:
    """Kotlin's main: tensors of pictures by record, and self-tests of whole apps by engine."""
    tensors = "".join(
        _TENSOR.replace("NAME", name).replace("PACKAGE", package(name)) for name in PREPROCESSES
    )
    tests = "".join(_TEST.replace("ENGINE", engine) for engine in APPS)
    return _MAIN.replace("TENSORS", tensors).replace("TESTS", tests)


_TENSOR = """
        "NAME" -> { p, o -> PACKAGE.Preprocess().tensor(p.values, p.width, p.height, o).data }"""

_TEST = """
        "ENGINE" -> {
            val outputs = File(assets, "edgekiln/golden/golden-outputs.npz")
            val (given, found) = listOf(File(fed), outputs).map { file ->
                app.ENGINE.Tensor.npz(file).mapValues { (_, t) ->
                    Recorded.Array(t.dtype, t.shape, Recorded.bytes(t.data))
                }
            }
            record(given, found)
            val folder = app.ENGINE.Bundle.folder(Context(File(files), File(assets)))
            val rows = runBlocking { app.ENGINE.SelfTest.run(folder) }
            rows.forEach { println("${it.what}|${it.difference}|${it.allowed}|${it.passed}") }
            val white = app.ENGINE.Picture(IntArray(83 * 61) { -1 }, 83, 61)
            val model = runBlocking { app.ENGINE.Model.open(folder) }
            val guesses = model.use { runBlocking { it.classify(white, 2) } }
            println(guesses.joinToString(";") { it.label })
        }"""

_MAIN = """
package harness

import android.content.Context
import java.io.File
import java.nio.ByteBuffer
import kotlinx.coroutines.runBlocking
import recorded.Recorded

fun main(arguments: Array<String>) {
    when (arguments[0]) {
        "tensors" -> tensors(arguments[1], arguments[2], arguments.drop(3))
        "selftest" -> {
            selftest(arguments[1], arguments[2], arguments[3], arguments[4])
            println("held ${Recorded.held}")
        }
    }
}

/** The tensor of each picture by each record, as OUT/RECORD/PICTURE.bin. A picture is PATH=ORIENTATION. */
private fun tensors(records: String, out: String, pictures: List<String>) {
    for (given in pictures) {
        val file = File(given.substringBeforeLast('='))
        val pixels = pixels(file)
        for (name in records.split(",")) {
            val data = tensorOf(name)(pixels, given.substringAfterLast('=').toInt())
            File(out, name).mkdirs()
            File(out, "$name/${file.name}.bin").writeBytes(Recorded.bytes(data))
        }
    }
}

private fun tensorOf(name: String): (Pixels, Int) -> ByteBuffer =
    when (name) {
TENSORS
        else -> error(name)
    }

private fun record(inputs: Map<String, Recorded.Array>, outputs: Map<String, Recorded.Array>) {
    for (number in outputs.keys.map { it.substringBefore('/') }.distinct()) {
        val given = inputs.filterKeys { it.startsWith("$number/") }.values.map { it.bytes }
        val found = outputs.filterKeys { it.startsWith("$number/") }.mapKeys { it.key.substringAfter('/') }
        Recorded.calls.add(Recorded.Call(given, found))
    }
}

private fun selftest(engine: String, assets: String, files: String, fed: String) {
    when (engine) {
TESTS
    }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("kotlin")
    jars, sources, wrong = lib(), root / "sources", root / "wrong"
    shutil.copytree(FAKES, sources / "fakes")
    (sources / "fakes/Main.kt").write_text(harness().lstrip())
    apps = {}
    for engine in APPS:
        apps[engine], app = unpacked(root / engine, engine)
        files = render(app)
        write(sources / engine, files, f"app.{engine}")
        if engine == "onnxruntime":
            text = files["Model.kt"]
            for right, misspelt in WRONG.items():
                assert text.count(right) == 1, right
                text = text.replace(right, misspelt)
            write(wrong, {**files, "Model.kt": text}, "app.wrong")
    for name, spec in PREPROCESSES.items():
        graph = app_bundles.network(root / "records" / f"{name}.onnx", spec)
        made = app_bundles.artifact(root / "records" / name, graph, "onnxruntime")
        files = render(App(load("pixel-9"), app_bundles.model(graph, spec), made, None))
        kept = {path: files[path] for path in ("Preprocess.kt", "Tensor.kt")}
        write(sources / name, kept, package(name))
    needed = [jars / name for name in ("kotlin-stdlib.jar", "kotlinx-coroutines-core-jvm.jar")]
    classpath = ":".join(map(str, needed))
    out, refused = root / "classes", root / "refused"
    # For so short a run the first compiler and the simplest collector cost least.
    # At that level a JVM reserves 48 MB for code, which the compiler has been seen to fill.
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:ReservedCodeCacheSize=240m"]
    command = [java(), *quick, "-cp", jars / "kotlin-compiler.jar", FAKES / "Compile.java", classpath]
    done = subprocess.run(
        [*command, sources, out, wrong, refused], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    codes = done.stdout.split()
    assert codes[0] == "0", (out / "messages.txt").read_text()
    assert codes[1] != "0", "an app with wrong names was compiled"
    return Compiled(f"{out}:{classpath}", apps, (refused / "messages.txt").read_text())


def test_wrong_names_do_not_compile(compiled: Compiled) -> None:
    errors = [line for line in compiled.wrong.splitlines() if "error:" in line]
    for misspelt in ("runs", "Options", "addEntry", "limitedParallel"):
        assert any(misspelt in line for line in errors), compiled.wrong
    assert all("Model.kt" in line for line in errors)


def orientation(path: Path) -> int:
    with Image.open(path) as picture:
        return int(picture.getexif().get(0x0112, 1))


@pytest.fixture(scope="module")
def tensors(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Ten photographs, and the folder with the tensors that Kotlin made of them."""
    root = tmp_path_factory.mktemp("tensors")
    photos = photographs(root / "photographs")
    given = [f"{path}={orientation(path)}" for path in photos]
    compiled.run("tensors", ",".join(PREPROCESSES), root / "out", *given)
    return photos, root / "out"


@pytest.mark.parametrize("name", PREPROCESSES)
def test_ten_photographs_give_the_tensors_of_the_reference(
    name: str, tensors: tuple[list[Path], Path]
) -> None:
    photos, folder = tensors
    assert len(photos) == 10
    spec = PREPROCESSES[name]
    for path in photos:
        expected = apply(spec, open_image(path))
        found = np.fromfile(folder / name / f"{path.name}.bin", expected.dtype).reshape(expected.shape)
        worst = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
        # Java decodes PNG exactly; its JPEG decoder may differ by a step of a pixel.
        assert worst <= (0 if path.suffix == ".png" else step(spec) * 1.001), (path.name, worst / step(spec))


@pytest.mark.parametrize("engine", APPS)
def test_the_self_test_passes_and_everything_is_closed(
    engine: str, compiled: Compiled, tmp_path: Path
) -> None:
    lines = selftest(compiled, engine, compiled.apps[engine], tmp_path)
    rows = [line.split("|") for line in lines[:3]]
    assert [row[0] for row in rows] == ["preprocessing", "sample 0, scores", "sample 1, scores"]
    assert {row[3] for row in rows} == {"true"}
    assert all(float(difference) <= float(allowed) for _, difference, allowed, _ in rows)
    assert lines[3] == ";".join(app_bundles.CLASSES[:2])  # scores of zero: all classes alike, by their order
    assert lines[4] == "held 0"


def selftest(compiled: Compiled, engine: str, bundle: Path, scratch: Path) -> list[str]:
    shutil.copytree(bundle, scratch / "assets/edgekiln")
    return compiled.run("selftest", engine, scratch / "assets", scratch / "files", bundle.parent / "fed.npz")


def test_the_self_test_notices_other_weights_and_another_preprocessing(
    compiled: Compiled, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(compiled.apps["onnxruntime"], bundle)
    shutil.copy(compiled.apps["onnxruntime"].parent / "fed.npz", tmp_path)
    with np.load(bundle / "golden/golden-inputs.npz") as arrays:
        changed = {key: arrays[key] + np.float32(key.startswith("1/")) for key in arrays.files}
    (bundle / "golden/golden-inputs.npz").write_bytes(npz_bytes(changed))
    tensor = np.load(bundle / "app/selftest/tensor.npy")
    tensor.flat[-1] += 3
    np.save(bundle / "app/selftest/tensor.npy", tensor)
    lines = selftest(compiled, "onnxruntime", bundle, tmp_path)
    assert [line.split("|")[3] for line in lines[:3]] == ["false", "true", "false"]


def test_the_same_app_gives_the_same_text_and_a_readme_of_ten_lines(tmp_path: Path) -> None:
    for engine, (title, coordinates, _) in ENGINES.items():
        _, app = unpacked(tmp_path / engine, engine)
        files = render(app)
        assert files == render(app)
        assert title in files["README.md"]
        assert coordinates in files["README.md"]
        assert len(files["README.md"].strip().splitlines()) <= 12
        for name, text in files.items():
            assert "{{" not in text, name
            assert not re.search(r"[ \t]$", text, re.M), name
            assert text.endswith("\n"), name
            assert not text.endswith("\n\n"), name


def test_an_app_for_hexagon_hands_over_the_providers_options_and_no_others(tmp_path: Path) -> None:
    _, app = unpacked(tmp_path, "qnn")
    text = render(app)["Model.kt"]
    assert '"soc_model" to "57"' in text
    assert '"session.disable_cpu_ep_fallback", "1"' in text
    assert "options.addQnn(PROVIDER)" in text
    assert '"cpu_fallback"' not in text
    _, plain = unpacked(tmp_path / "plain", "onnxruntime")
    assert "addQnn" not in render(plain)["Model.kt"]
