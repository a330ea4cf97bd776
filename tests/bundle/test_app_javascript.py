"""The JavaScript of a bundle, in a real Chromium: the reference's tensors, its own self-test, its server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekiln.engines import chromium, npm
from edgekiln.engines.web import PACKAGE, RUNTIME
from edgekiln.engines.web_server import PageServer
from edgekiln.model.preprocess import apply, open_image
from fakes import app_bundles
from fakes.photographs import photographs
from fakes.preprocesses import PREPROCESSES, step

# Asks for tensors: a question is JSON {app, file}, an answer the tensor's bytes, or "!" and what went wrong.
_ASKED = """<!doctype html><meta charset="utf-8"><script type="module">
const answer = (body) => fetch('answer', { method: 'POST', body });
for (;;) {
  const next = await fetch('next');
  if (next.status === 204) continue;
  const { app, file } = await next.json();
  try {
    const { decode } = await import(`./${app}/app/javascript/picture.mjs`);
    const { tensor } = await import(`./${app}/app/javascript/preprocess.mjs`);
    const picture = await decode(await (await fetch(file)).blob());
    await answer(new Blob([new Uint32Array([picture.width, picture.height]), tensor(picture)]));
  } catch (error) {
    await answer('!' + (error?.stack ?? error));
  }
}
</script>"""

# Opens a page in a frame and answers with its summary and rows when its title says that it is done.
_FRAMED = """<!doctype html><meta charset="utf-8">
<iframe src="b/app/javascript/selftest.html"></iframe><script>
const timer = setInterval(() => {
  const page = document.querySelector('iframe').contentDocument;
  if (page === null || !['passed', 'failed'].includes(page.title)) return;
  clearInterval(timer);
  const rows = [...page.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((c) => c.textContent));
  const summary = page.querySelector('#summary').textContent;
  const body = JSON.stringify({ title: page.title, summary, rows });
  fetch('answer', { method: 'POST', body });
}, 100);
</script>"""


class Page:
    """Chromium on ``html``, with the given files around it."""

    def __init__(self, html: str, files: dict[str, Path | bytes]) -> None:
        self.server = PageServer({"": html.encode(), **files})
        self.browser = chromium.Browser(chromium.find("testing", "the page"), self.server.url)

    def ask(self, question: object | None) -> bytes:
        data = None if question is None else json.dumps(question).encode()
        answer = self.server.ask(data, 60, lambda: self.browser.alive)
        assert answer is not None, self.browser.last_words()
        assert not answer.startswith(b"!"), answer.decode()
        return answer

    def close(self) -> None:
        self.browser.close()
        self.server.close()


def below(folder: Path, name: str) -> dict[str, Path | bytes]:
    return {f"{name}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def oddities(photos: list[Path]) -> list[Path]:
    return odd_files(photos[0].parent)


def odd_files(folder: Path) -> list[Path]:
    """Ways to write a PNG or a WebP that the ten photographs leave out."""
    rng = np.random.default_rng(3)
    with Image.open(folder / "odd-size.jpg") as file:
        colour = file.convert("RGB").resize((61, 47))
    grey = colour.convert("L")
    grey_alpha = Image.merge("LA", (grey, Image.fromarray(rng.integers(0, 256, (47, 61), np.uint8))))
    half_clear = colour.copy()
    half_clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    few = colour.quantize(4)
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "one-bit.png": (colour.convert("1"), {}),
        "two-bit-palette.png": (few, {"bits": 2}),
        "grey-alpha.png": (grey_alpha, {}),
        "clear-colour.png": (colour, {"transparency": colour.getpixel((9, 9))}),
        "clear-grey.png": (grey, {"transparency": grey.getpixel((9, 9))}),
        "half-clear.webp": (half_clear, {"lossless": True}),
        "turned-left.webp": (colour, {"lossless": True, "exif": _exif(8)}),
    }
    for orientation in range(1, 9):
        made[f"turned-{orientation}.png"] = (colour, {"exif": _exif(orientation)})
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
    return [folder / name for name in made]


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory, photos: list[Path], oddities: list[Path]
) -> Iterator[Page]:
    """A page that turns photographs into tensors with the code of eight bundles, one per record."""
    files: dict[str, Path | bytes] = {f"photos/{path.name}": path for path in (*photos, *oddities)}
    for name, spec in PREPROCESSES.items():
        root = tmp_path_factory.mktemp("bundle")
        made = app_bundles.bundle(root, "browser", "web", spec, recorded=False)
        files |= below(app_bundles.unpacked(made), name)
    page = Page(_ASKED, files)
    yield page
    page.close()


@pytest.mark.parametrize("name", PREPROCESSES)
def test_photographs_give_the_tensors_of_the_reference(name: str, asked: Page, photos: list[Path]) -> None:
    assert len(photos) == 10
    compared(name, asked, photos)


def test_odd_files_give_the_tensors_of_the_reference(asked: Page, oddities: list[Path]) -> None:
    compared("bytes-nhwc", asked, oddities)


def compared(name: str, asked: Page, paths: list[Path]) -> None:
    spec = PREPROCESSES[name]
    for path in paths:
        picture = open_image(path)
        expected = apply(spec, picture)
        answer = asked.ask({"app": name, "file": f"photos/{path.name}"})
        assert tuple(np.frombuffer(answer, np.uint32, 2)) == picture.size, path.name
        found = np.frombuffer(answer, expected.dtype, offset=8).reshape(expected.shape)
        worst = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
        # Decoder, geometry and rounding are the reference's: in this Chromium not a bit differs. Another
        # JPEG decoder may; a step of a pixel is what the bundle's own self-test allows.
        assert worst <= (0 if path.suffix == ".png" else step(spec) * 1.001), (path.name, worst / step(spec))


def runtime() -> dict[str, Path | bytes]:
    dist = npm.package(PACKAGE, "testing", "the page") / "dist"
    return {f"b/app/javascript/node_modules/{PACKAGE}/dist/{name}": dist / name for name in RUNTIME}


def shown(folder: Path) -> dict[str, Any]:
    """What the self-test's page of an unpacked bundle says: title, summary, rows."""
    page = Page(_FRAMED, {**below(folder, "b"), **runtime()})
    try:
        said: dict[str, Any] = json.loads(page.ask(None))
    finally:
        page.close()
    return said


def made(root: Path, name: str, **more: Any) -> Path:
    return app_bundles.unpacked(app_bundles.bundle(root, "browser", "web", PREPROCESSES[name], **more))


@pytest.mark.parametrize("name", ["letterbox-bgr", "nearest-half"])
def test_the_self_test_passes_on_an_isolated_page(name: str, tmp_path: Path) -> None:
    said = shown(made(tmp_path, name))
    assert [row[0] for row in said["rows"]] == ["preprocessing", "sample 0, scores", "sample 1, scores"]
    assert all(float(difference) <= float(allowed) for _, difference, allowed, _ in said["rows"])
    assert {row[3] for row in said["rows"]} == {"passed"}
    assert said["title"] == "passed"
    assert "ONNX Runtime Web" in said["summary"]
    assert "several threads" in said["summary"]


def test_the_self_test_notices_another_preprocessing_and_other_weights(tmp_path: Path) -> None:
    folder = made(tmp_path, "stretch-bilinear")
    code = folder / "app/javascript/preprocess.mjs"
    sound = code.read_text()
    assert "scaled - Math.fround(mean)" in sound
    code.write_text(sound.replace("scaled - Math.fround(mean)", "scaled"))
    recorded = folder / "golden/golden-outputs.npz"
    with np.load(recorded) as arrays:
        changed = {key: arrays[key] + np.float32(key.startswith("1/")) for key in arrays.files}
    np.savez(recorded, **changed)
    said = shown(folder)
    assert [row[3] for row in said["rows"]] == ["failed", "passed", "failed"]
    assert said["title"] == "failed"


def test_a_self_test_that_can_not_run_says_why(tmp_path: Path) -> None:
    folder = made(tmp_path, "stretch-bilinear")
    (folder / "model/model.onnx").unlink()
    said = shown(folder)
    assert said["title"] == "failed"
    assert "model/model.onnx: the server answered 404" in said["rows"][0][3]


def test_a_model_that_takes_no_picture_is_compared_by_its_outputs(tmp_path: Path) -> None:
    folder = made(tmp_path, "box-nhwc", labels=(), pictures=False)
    assert not (folder / "app/javascript/picture.mjs").exists()
    said = shown(folder)
    assert [row[0] for row in said["rows"]] == ["sample 0, scores", "sample 1, scores"]
    assert said["title"] == "passed"


# Answers a question JSON {file} with the classes of that picture, or with the error's message.
_CLASSIFIED = """<!doctype html><meta charset="utf-8"><script type="importmap">
{ "imports": { "onnxruntime-web/wasm": "./b/app/javascript/node_modules/onnxruntime-web/dist/%s" } }
</script><script type="module">
import { open } from './b/app/javascript/model.mjs';
const model = await open({ threads: 1 });
for (;;) {
  const next = await fetch('next');
  if (next.status === 204) continue;
  const { file } = await next.json();
  const body = await fetch(file).then((answer) => answer.blob())
    .then((blob) => Promise.all([model.classify(blob), model.classify(blob, 2)]))
    .catch((error) => String(error.message));
  await fetch('answer', { method: 'POST', body: JSON.stringify(body) });
}
</script>"""


def test_pictures_are_named_and_broken_ones_refused(photos: list[Path], tmp_path: Path) -> None:
    folder = made(tmp_path, "crop-bicubic")
    whole = photos[9].read_bytes()
    assert whole.startswith(b"\x89PNG")
    broken: dict[str, Path | bytes] = {
        "cut.png": whole[: len(whole) // 2],
        "bomb.png": whole[:16] + b"\x00\x00\xff\xff" * 2 + whole[24:],
        "head.png": whole[:20],
        "text.jpg": b"no picture",
    }
    files = {**below(folder, "b"), **runtime(), **broken, "sound.jpg": photos[0]}
    page = Page(_CLASSIFIED % RUNTIME[0], files)
    try:
        five, two = json.loads(page.ask({"file": "sound.jpg"}))
        refused = {name: json.loads(page.ask({"file": name})) for name in broken}
    finally:
        page.close()
    shares = [guess["probability"] for guess in five]
    assert sorted(guess["label"] for guess in five) == sorted(app_bundles.CLASSES)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert two == five[:2]
    expected = reference_shares(folder, photos[0])
    assert [g["probability"] for g in sorted(five, key=lambda g: g["index"])] == pytest.approx(expected, 1e-3)
    assert all(isinstance(why, str) and why for why in refused.values())
    assert "truncated" in refused["cut.png"]
    assert "pixels" in refused["bomb.png"]
    assert "damaged" in refused["head.png"]


def reference_shares(folder: Path, photo: Path) -> list[float]:
    from edgekiln.engines import onnxruntime as reference
    from edgekiln.runtime.once import probabilities
    from fakes.variants import artifact

    x = apply(PREPROCESSES["crop-bicubic"], open_image(photo))
    native = reference.open(artifact("model.onnx", "onnxruntime"), folder / "model", 1)
    return [float(p) for p in probabilities(native({"image": x})["scores"])]


def test_its_server_sends_the_headers_and_nothing_outside_the_bundle(tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None, "node is not installed: run `make setup`"
    folder = made(tmp_path, "box-nhwc")
    (tmp_path / "secret").write_text("no")
    server = subprocess.Popen(
        [node, folder / "app/javascript/serve.mjs", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert "Self-test" in answer.read().decode()
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.headers["Content-Type"] == "text/html"
        root = url.split("/app/")[0]
        for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "/app", "/nothing", "/%"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + path, timeout=10)
    finally:
        server.kill()
        server.communicate()


def test_equal_input_gives_equal_text_and_a_readme_of_ten_lines(tmp_path: Path) -> None:
    one, two = (made(tmp_path / n, "crop-bicubic") / "app/javascript" for n in ("a", "b"))
    texts = [{p.name: p.read_text() for p in sorted(folder.iterdir())} for folder in (one, two)]
    assert texts[0] == texts[1]
    assert len(texts[0]["README.md"].strip().splitlines()) <= 12
    assert f"npm install --prefix . {PACKAGE}@" in texts[0]["README.md"]
    for name, text in texts[0].items():
        assert "{{" not in text, name
        assert "{%" not in text, name
        assert not re.search(r"[ \t]$", text, re.M), name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
