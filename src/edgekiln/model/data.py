"""Pictures and tensor files: found, checked, labelled, streamed one at a time, split."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.files import inside, sha256_bytes, sha256_file, sha256_record
from edgekiln.model.labels import Classes
from edgekiln.model.preprocess import apply, check_image, image_size, open_image
from edgekiln.model.signature import image_layout
from edgekiln.model.tensors import check_tensors, read_tensors
from edgekiln.records import Dataset, Model, Rejected, Sample

PICTURES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".jp2"}
)
TENSORS = frozenset({".npy", ".npz"})
MAX_CSV_BYTES = 64 * 2**20
_DOING = "reading the data in"

_Row = tuple[str, int | None]
"""A path relative to the root (POSIX separators) and its label."""


# ---------------------------------------------------------------- what lies there


def _walk(root: Path, skip: frozenset[Path]) -> tuple[list[str], list[Rejected]]:
    """Every visible file below ``root``, sorted; folders in ``skip`` and links to folders are left out."""
    found: list[str] = []
    rejected: list[Rejected] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        visible = sorted(f for f in folders if not f.startswith("."))
        visible = [f for f in visible if (root / here / f).resolve() not in skip]
        links = [f for f in visible if (root / here / f).is_symlink()]
        folders[:] = [f for f in visible if f not in links]
        rejected += [Rejected(path=(here / f).as_posix(), reason="a link to a folder") for f in links]
        found += [(here / n).as_posix() for n in names if not n.startswith(".")]
    return sorted(found), rejected


def _usable(path: str) -> bool:
    return Path(path).suffix.lower() in PICTURES | TENSORS


def _from_folders(
    root: Path, classes: Classes | None, skip: frozenset[Path]
) -> tuple[list[_Row], list[Rejected]]:
    """All usable files; with ``classes``, the first folder of a path is its class."""
    found, rejected = _walk(root, skip)
    rows: list[_Row] = []
    for path in found:
        parts = Path(path).parts
        if not _usable(path):
            rejected.append(Rejected(path=path, reason="neither a picture nor a tensor file, by its name"))
        elif classes is None:
            rows.append((path, None))
        elif len(parts) < 2:
            rejected.append(Rejected(path=path, reason="it lies in no class folder, so it has no label"))
        else:
            rows.append((path, classes.index(parts[0], root / parts[0])))
    return rows, rejected


def _csv_rows(table: Path) -> list[dict[str, str]]:
    cure = "Give a UTF-8 CSV file whose first line is: path,label"
    try:
        if table.stat().st_size > MAX_CSV_BYTES:
            raise BadInput("reading the table", table, "it is larger than 64 MiB", cure)
        reader = csv.DictReader(io.StringIO(table.read_text("utf-8-sig")), strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput("reading the table", table, str(error), cure) from error
    if not {"path", "label"} <= set(reader.fieldnames or ()):
        why = f"its columns are {', '.join(reader.fieldnames or ()) or 'missing'}"
        raise BadInput("reading the table", table, why, cure)
    return rows


def _from_csv(table: Path, classes: Classes | None) -> tuple[list[_Row], list[Rejected]]:
    """Rows of ``table``; each path is relative to the table's folder and may not leave it."""
    rows: list[_Row] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, row in enumerate(_csv_rows(table), start=2):
        path, label = (row["path"] or "").strip(), (row["label"] or "").strip()
        if not path or not _usable(path):
            reason = "neither a picture nor a tensor file, by its name"
            rejected.append(Rejected(path=path or f"line {number}", reason=reason))
            continue
        if path in seen:
            rejected.append(Rejected(path=path, reason=f"listed again in line {number}"))
            continue
        seen.add(path)
        rows.append((path, None if classes is None else classes.index(label, f"{table}, line {number}")))
    return sorted(rows), rejected


# ---------------------------------------------------------------- scan


def _check_file(root: Path, path: str) -> str:
    """The SHA-256 of a file that can be read. Raises BadInput for any other."""
    file = inside(root, path, _DOING)
    if not file.is_file():
        raise BadInput(_DOING, file, "there is no such file", "Put it there, or take its row out.")
    if file.suffix.lower() in PICTURES:
        check_image(file)
    else:
        check_tensors(file)
    return sha256_file(file)


def _spread(rows: list[_Row], limit: int | None) -> list[_Row]:
    """``limit`` rows at even distances, so that every class folder keeps its share."""
    if limit is None or len(rows) <= limit:
        return rows
    if limit < 1:
        raise BadInput(_DOING, "the folder", f"the limit is {limit}", "Give a limit of 1 or more.")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _table(root: Path) -> Path | None:
    """The only CSV file that lies directly in ``root``, if there is exactly one."""
    tables = sorted(p for p in root.glob("*.csv") if not p.name.startswith("."))
    if len(tables) > 1:
        why = f"it holds {len(tables)} CSV files"
        raise BadInput(_DOING, root, why, "Give the path of the one that lists path,label.")
    return tables[0] if tables else None


def scan(
    root: Path,
    *,
    labels: tuple[str, ...] = (),
    labelled: bool,
    limit: int | None = None,
    skip: tuple[Path, ...] = (),
) -> Dataset:
    """The readable files of ``root`` in a fixed order, and those that could not be read.

    ``root`` is a folder, searched to any depth without hidden files and links to folders, or a CSV file
    with the columns ``path,label``. With ``labelled`` each sample has an index into ``labels``: from the
    only CSV file in the folder, else from the first folder of its path; both name a label or its index.
    Every file is opened and decoded (JPEGs at an eighth of their size). ``limit`` takes that many files
    at even distances; folders in ``skip`` are not entered. Raises BadInput for a root that is missing or
    holds no readable file, and for a label without a class.
    """
    if not root.exists():
        raise BadInput(_DOING, root, "there is no such folder", "Give a folder of pictures or .npz files.")
    classes = Classes(labels) if labelled else None
    table = root if root.is_file() else _table(root) if labelled else None
    folder = root.parent if root.is_file() else root
    passed_by = frozenset(p.resolve() for p in skip)
    rows, rejected = _from_csv(table, classes) if table else _from_folders(root, classes, passed_by)
    rejected = [r for r in rejected if table is None or r.path != table.name]
    samples: list[Sample] = []
    for path, label in _spread(rows, limit):
        try:
            samples.append(Sample(path=path, sha256=_check_file(folder, path), label=label))
        except (BadInput, OSError) as error:
            rejected.append(Rejected(path=path, reason=getattr(error, "why", str(error))))
    if not samples:
        raise _nothing(root, rejected)
    return _dataset(str(folder), samples, rejected)


def _nothing(root: Path, rejected: list[Rejected]) -> BadInput:
    kinds = "pictures (.jpg, .png, .webp and others) or tensor files (.npz, .npy)"
    if not rejected:
        return BadInput(_DOING, root, "it is empty", f"Put {kinds} there.")
    first = rejected[0]
    why = f"none of its {len(rejected)} files can be used; {first.path}: {first.reason}"
    return BadInput(_DOING, root, why, f"Put readable {kinds} there.")


def class_names(root: Path) -> tuple[str, ...]:
    """The classes that a labelled data set names itself, sorted: its folders, or its table's labels."""
    table = root if root.is_file() else _table(root) if root.is_dir() else None
    if table is not None:
        return tuple(sorted({(row["label"] or "").strip() for row in _csv_rows(table)}))
    found, _ = _walk(root, frozenset())
    return tuple(sorted({Path(p).parts[0] for p in found if len(Path(p).parts) > 1}))


def _dataset(root: str, samples: Iterable[Sample], rejected: Iterable[Rejected]) -> Dataset:
    kept = tuple(samples)
    lost = tuple(sorted(rejected, key=lambda r: (r.path, r.reason)))
    return Dataset(root=root, samples=kept, rejected=lost, sha256=sha256_record(kept))


# ---------------------------------------------------------------- use


def inputs(
    dataset: Dataset, model: Model, indices: Iterable[int] | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """The named input arrays of each sample (all, or those at ``indices``), one at a time.

    A picture goes through ``model.preprocess`` into the model's only input, as a batch of one; a tensor
    file gives all inputs by name. Raises BadInput where a sample does not fit the model.
    """
    chosen = range(len(dataset.samples)) if indices is None else indices
    for i in chosen:
        path = Path(dataset.root) / dataset.samples[i].path
        if path.suffix.lower() in TENSORS:
            yield read_tensors(path, model.signature)
        else:
            yield _picture(path, model)


def _picture(path: Path, model: Model) -> dict[str, NDArray[Any]]:
    specs = model.signature.inputs
    doing = "preparing the picture"
    if len(specs) != 1 or image_layout(specs[0]) is None:
        takes = ", ".join(f"{s.name} {s.dtype} {'x'.join(map(str, s.shape))}" for s in specs)
        cure = "Give one .npz file per sample, with one array per input."
        raise BadInput(doing, path, f"the model takes no pictures but {takes}", cure)
    if model.preprocess is None:
        raise BadInput(doing, path, "the model has no preprocessing", "Give [preprocess] in the job.")
    return {specs[0].name: apply(model.preprocess, open_image(path))}


def split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Two disjoint parts of ``dataset``: the first holds ``share`` of its distinct files.

    Files of equal content stay together, and the choice depends on contents alone, so neither names nor
    order move a file. Both parts hold at least one file; the order is kept. Rejected files stay with
    the first. Raises BadInput for a share outside (0, 1) or fewer than two distinct files.
    """
    distinct = {s.sha256 for s in dataset.samples}
    if not 0 < share < 1:
        raise BadInput("splitting", dataset.root, f"the share is {share}", "Give one between 0 and 1.")
    if len(distinct) < 2:
        why = "it holds one distinct file"
        raise BadInput("splitting", dataset.root, why, "Give two or more different files.")
    # Hashed once more: some data sets are named, sorted or sharded by the hash of their contents.
    ranked = sorted(distinct, key=lambda h: sha256_bytes(b"edgekiln split " + h.encode()))
    count = min(len(ranked) - 1, max(1, math.floor(share * len(ranked) + 0.5)))
    first = set(ranked[:count])
    return (
        _dataset(dataset.root, (s for s in dataset.samples if s.sha256 in first), dataset.rejected),
        _dataset(dataset.root, (s for s in dataset.samples if s.sha256 not in first), ()),
    )


def subset(dataset: Dataset, count: int) -> Dataset:
    """At most ``count`` samples of ``dataset``, at even distances, in order."""
    total = len(dataset.samples)
    if count >= total:
        return dataset
    if count < 1:
        raise BadInput("choosing samples of", dataset.root, f"the count is {count}", "Give 1 or more.")
    taken = [dataset.samples[i * total // count] for i in range(count)]
    return _dataset(dataset.root, taken, dataset.rejected)


def choose_size(dataset: Dataset) -> tuple[tuple[int, int], str]:
    """((height, width), warning) for a model of dynamic size: the median of the pictures.

    Each side is the median side, rounded to a multiple of 32 and held within 64 to 1280. Raises BadInput
    if the data set holds no picture.
    """
    paths = [Path(dataset.root) / s.path for s in dataset.samples]
    sizes = [image_size(p) for p in paths if p.suffix.lower() in PICTURES]
    if not sizes:
        cure = "Give --input-shape, for example 1x3x640x640."
        raise BadInput("choosing an input size from", dataset.root, "it holds no picture", cure)

    def side(values: list[int]) -> int:
        return min(1280, max(64, math.floor(statistics.median(values) / 32 + 0.5) * 32))

    high, wide = side([s[0] for s in sizes]), side([s[1] for s in sizes])
    warning = (
        f"the model takes pictures of any size: fixed at {high}x{wide} (height x width), near the median "
        f"of {len(sizes)} pictures. Give --input-shape 1x3x{high}x{wide}, or what your device will see."
    )
    return (high, wide), warning


def labels_of(dataset: Dataset) -> NDArray[np.int64]:
    """The label index of each sample, shape (n,). Raises BadInput where a sample has none."""
    values = [s.label for s in dataset.samples]
    if any(v is None for v in values):
        cure = "Sort the pictures into class folders, or list them in a CSV file."
        raise BadInput("reading the labels of", dataset.root, "some samples have no label", cure)
    return np.array(values, dtype=np.int64)
