"""The files of an ``.mlpackage``, read with every path, offset and size checked.

The layout of a weight file is coremltools' (``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``): a header of 64
bytes (count and version, uint32 each), then blobs, each behind a record of 64 bytes that begins with the
mark 0xDEADBEEF, the data type (uint32), the data's size and its offset in bytes (uint64 each).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import files
from edgekiln.errors import BadInput

DOING = "reading the Core ML package"
MAX_SPEC_BYTES = 1 << 31
MAX_WEIGHT_BYTES = 1 << 36
_MANIFEST_BYTES = 1 << 20
_MARK = 0xDEADBEEF
_VERSION = 2
_RECORD = struct.Struct("<IIQQ")
_RECORD_BYTES = 64
_AUTHOR = "com.apple.CoreML"

Blobs = Callable[[str, int], NDArray[np.uint8]]
"""(file name as the program writes it, offset of the record) to the blob's bytes."""


@dataclass(frozen=True)
class Package:
    """``spec`` is the ``Model`` message; ``blobs`` reads from the weight files beside it."""

    name: str
    spec: Any
    blobs: Blobs


def damaged(name: str, why: str) -> BadInput:
    return BadInput(DOING, name, why, "Convert the model again, or fetch the package anew")


def read(folder: Path, entry: str) -> Package:
    """Read the package ``folder / entry``.

    Raises BadInput for a missing or damaged file, a path that leaves the package, a model that is no ML
    Program, and sizes beyond all reason.
    """
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    root = files.inside(folder, entry, DOING)
    if not root.is_dir():
        raise damaged(entry, "it is not a folder")
    path = files.inside(root, f"Data/{_model_path(root, entry)}", DOING)
    data = _bytes(path, f"{entry}/Data", MAX_SPEC_BYTES)
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(data)
    except DecodeError as error:
        raise damaged(entry, f"its specification can't be decoded ({error})") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise BadInput(
            DOING, entry, f"it holds a {kind or 'nothing'}, not an ML Program", "Convert to mlprogram"
        )
    return Package(entry, spec, _reader(path.parent, entry))


def _model_path(root: Path, entry: str) -> str:
    """Path of the specification below ``Data``, as the manifest names it."""
    try:
        manifest = json.loads(_bytes(root / "Manifest.json", entry, _MANIFEST_BYTES))
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        return str(item["path"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(entry, f"its Manifest.json names no root model ({error})") from error


def _bytes(path: Path, name: str, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise damaged(name, f"{path.name} has {size} bytes, more than {limit}")
        return path.read_bytes()
    except OSError as error:
        raise damaged(name, f"{path.name} can't be read ({error.strerror})") from error


def _reader(home: Path, entry: str) -> Blobs:
    """A reader of the weight files below ``home``, each mapped once."""
    mapped: dict[str, NDArray[np.uint8]] = {}

    def blob(name: str, offset: int) -> NDArray[np.uint8]:
        if name not in mapped:
            mapped[name] = _map(home, name, entry)
        return _cut(mapped[name], name, offset, entry)

    return blob


def _map(home: Path, name: str, entry: str) -> NDArray[np.uint8]:
    relative = name.removeprefix("@model_path/")
    path = files.inside(home, str(PurePosixPath(relative)), DOING)
    try:
        size = path.stat().st_size
        if not 2 * _RECORD_BYTES <= size <= MAX_WEIGHT_BYTES:
            raise damaged(entry, f"the weight file {relative} has {size} bytes")
        data = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise damaged(entry, f"the weight file {relative} can't be read ({error.strerror})") from error
    _, version = struct.unpack("<II", data[:8].tobytes())
    if version != _VERSION:
        raise damaged(entry, f"the weight file {relative} has version {version}, not {_VERSION}")
    return data


def _cut(data: NDArray[np.uint8], name: str, offset: int, entry: str) -> NDArray[np.uint8]:
    """The bytes behind the record at ``offset``."""
    if offset % _RECORD_BYTES or offset + _RECORD_BYTES > data.size:
        raise damaged(entry, f"{name} holds nothing at offset {offset}")
    mark, _, size, start = _RECORD.unpack(data[offset : offset + _RECORD.size].tobytes())
    if mark != _MARK or start + size > data.size:
        raise damaged(entry, f"{name} is cut short or damaged at offset {offset}")
    return data[start : start + size]
