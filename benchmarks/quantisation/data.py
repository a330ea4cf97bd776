"""Make the photographs of the benchmark from Debian's ``tuxpaint-stamps-default``.

    build/quantisation-data/
    ├── calibration/     to find ranges; no quantiser sees anything else but for its bound
    ├── validation/      what a quantiser with a bound on the drop may hold it on
    ├── evaluation/      what all are judged on; no quantiser sees it
    ├── labelled/        those of evaluation whose name is an ImageNet class, and labels.csv (path,label)
    ├── labels.txt       the 1000 class names, one a line
    └── splits.csv       picture, set, label: which stamp went where

Each stamp lies on a white square that a centre crop of 0.875 leaves whole, as RGB without alpha. The split
is by group of pictures (``cep``, ``cep-1``), so that no set holds another picture of what a second set has.
All labelled ones are in ``evaluation``: the other two sets take from the rest, in the order of a hash of the
name.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from edgekiln.errors import BadInput
from edgekiln.files import folder_aside, sha256_bytes, sha256_file, write_bytes
from measuring.process import ROOT
from measuring.scene import demo_data
from quantisation.stamps import Stamp, photographs

DEFAULT_OUT = ROOT / "build" / "quantisation-data"
STAMP = "made-from.sha256"
CALIBRATION = 64
VALIDATION = 64
MOST_PIXELS = 512
"""Side of the white square at most: the largest network takes 320 pixels."""
CROP = 0.875


def split(found: Sequence[Stamp]) -> dict[str, list[Stamp]]:
    """``calibration``, ``validation`` and ``evaluation``, disjoint by group, the same on every machine."""
    groups: dict[str, list[Stamp]] = {}
    for stamp in found:
        groups.setdefault(stamp.group, []).append(stamp)
    free = [name for name, members in groups.items() if all(s.label is None for s in members)]
    sets: dict[str, list[Stamp]] = {"calibration": [], "validation": [], "evaluation": []}
    wanted = {"calibration": CALIBRATION, "validation": VALIDATION}
    for name in sorted(free, key=lambda name: hashlib.sha256(name.encode()).digest()):
        members = groups[name]
        place = next((k for k, n in wanted.items() if len(sets[k]) + len(members) <= n), "evaluation")
        sets[place] += members
    taken = {stamp.name for members in sets.values() for stamp in members}
    sets["evaluation"] += [stamp for stamp in found if stamp.name not in taken]
    return {name: sorted(members, key=lambda s: s.name) for name, members in sets.items()}


def on_white(stamp: Path) -> Image.Image:
    """The cut-out in the middle of a white square whose side is its long side over CROP, RGB."""
    with Image.open(stamp) as opened:
        cutout = opened.convert("RGBA")
    inside = int(MOST_PIXELS * CROP)
    if max(cutout.size) > inside:
        cutout.thumbnail((inside, inside), Image.Resampling.LANCZOS)
    side = round(max(cutout.size) / CROP)
    square = Image.new("RGB", (side, side), "white")
    square.paste(cutout, ((side - cutout.width) // 2, (side - cutout.height) // 2), cutout)
    return square


def many(folder: Path, count: int) -> Iterator[Image.Image]:
    """``count`` pictures from the calibration photographs, in turns: whole, mirrored, then square crops of
    shrinking side from the corners, each also mirrored. A load for the memory, not independent pictures."""
    paths = sorted(folder.glob("*.png"))
    for number in range(count):
        turn, place = divmod(number, len(paths))
        with Image.open(paths[place]) as opened:
            picture = opened.convert("RGB")
        crop, mirrored = divmod(turn, 2)
        if crop:
            side = round(picture.width * (1 - 0.02 * crop))
            left = (picture.width - side) * (crop & 1)
            top = (picture.height - side) * (crop >> 1 & 1)
            picture = picture.crop((left, top, left + side, top + side))
        yield ImageOps.mirror(picture) if mirrored else picture


def write_many(data: Path, count: int) -> Path:
    """``many`` as files below ``data``, made once. Returns their folder."""
    out = data.with_name(f"{data.name}-{count}")
    key = sha256_bytes(f"{count} {(data / STAMP).read_text()}".encode())
    if not (out / STAMP).is_file() or (out / STAMP).read_text().strip() != key:
        shutil.rmtree(out, ignore_errors=True)
        with folder_aside(out) as aside:
            for number, picture in enumerate(many(data / "calibration", count)):
                write_bytes(aside / f"{number:05d}.png", _png(picture))
            write_bytes(aside / STAMP, f"{key}\n".encode())
    return out


def labels_of(data: Path) -> dict[str, int]:
    """The class of each labelled picture by its file's name."""
    with (data / "labelled" / "labels.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: int(row["label"]) for row in csv.DictReader(file)}


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _fingerprint(found: Sequence[Stamp]) -> str:
    sources = [*(stamp.path for stamp in found), Path(__file__), Path(__file__).with_name("stamps.py")]
    return sha256_bytes("\n".join(sha256_file(path) for path in sources).encode())


def prepare(out: Path = DEFAULT_OUT) -> Path:
    """Fill ``out``, or leave it alone if it was made from the same pictures. Returns ``out``.

    Raises BadInput where the package is not installed, or ``out`` holds something this did not make.
    """
    names = demo_data().class_names()
    found = photographs(names)
    fingerprint = _fingerprint(found)
    if (out / STAMP).is_file():
        if (out / STAMP).read_text().strip() == fingerprint:
            return out
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        why = "the folder holds files that this program did not write"
        raise BadInput("preparing photographs in", out, why, "Remove the folder, or give another --out")
    sets = split(found)
    with folder_aside(out) as aside:
        for place, members in sets.items():
            for stamp in members:
                write_bytes(aside / place / _file_name(stamp), _png(on_white(stamp.path)))
        labelled = [s for s in sets["evaluation"] if s.label is not None]
        for stamp in labelled:
            write_bytes(aside / "labelled" / _file_name(stamp), _png(on_white(stamp.path)))
        rows = [("path", "label"), *((_file_name(s), s.label) for s in labelled)]
        write_bytes(aside / "labelled" / "labels.csv", _csv(rows))
        splits = [(s.name, place, s.label) for place, members in sets.items() for s in members]
        write_bytes(aside / "splits.csv", _csv([("picture", "set", "label"), *splits]))
        write_bytes(aside / "labels.txt", "".join(f"{name}\n" for name in names).encode())
        write_bytes(aside / STAMP, f"{fingerprint}\n".encode())
    return out


def _file_name(stamp: Stamp) -> str:
    """Flat and unique: the path's parts joined, because two folders hold a ``fly``."""
    return stamp.name.replace("/", "-") + ".png"


def main() -> None:
    """Prepare the data and say what there is."""
    parser = argparse.ArgumentParser(description="Make the photographs of the quantisation benchmark.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out = prepare(parser.parse_args().out)
    sets = ("calibration", "validation", "evaluation", "labelled")
    print(f"{out}: " + ", ".join(f"{len([*(out / name).glob('*.png')])} for {name}" for name in sets))


if __name__ == "__main__":
    main()
