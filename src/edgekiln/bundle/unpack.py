"""Opening a bundle that comes from a stranger: nothing outside its folder, nothing unnamed, all hashed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from edgekiln.bundle import (
    ALTERNATES_FOLDER,
    GOLDEN_FOLDER,
    LABELS,
    MANIFEST,
    MODEL_FOLDER,
    READS,
    SIGNATURES,
)
from edgekiln.errors import BadInput
from edgekiln.files import disk_errors, inside
from edgekiln.records import Artifact, FileEntry, Manifest

MAX_MANIFEST_BYTES = 16 << 20
MAX_BUNDLE_BYTES = 16 << 30
_CHUNK = 1 << 20
_ZIP_FAULTS = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, struct.error)
_NAME_FAULTS = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT}


@dataclass(frozen=True)
class Opened:
    """A verified bundle, unpacked in ``folder`` for as long as the context lasts."""

    manifest: Manifest
    folder: Path

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL_FOLDER

    @property
    def artifacts(self) -> tuple[tuple[Artifact, Path], ...]:
        """The chosen artifact and its alternates, in order, each with the folder of its files."""
        others = [(a.artifact, self.folder / ALTERNATES_FOLDER / a.folder) for a in self.manifest.alternates]
        return ((self.manifest.artifact, self.model_folder), *others)

    @property
    def labels(self) -> tuple[str, ...]:
        if self.manifest.labels is None:
            return ()
        try:
            text = (self.folder / self.manifest.labels).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise _broken(Path(self.manifest.labels), "its labels are no UTF-8 text") from error
        return tuple(text.removesuffix("\n").split("\n"))  # splitlines() would split at U+2028 too


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, decoded strictly. Raises BadInput for what is not a bundle."""
    with _archive(path) as archive:
        return _manifest(archive, path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Verify and unpack ``path`` into a private folder that vanishes afterwards.

    Every member must be named in the manifest (signatures/ apart), with its size and SHA-256; every
    named file must be there. A member is a plain file and stored, as ``pack`` writes it: what is
    compressed, a link or a folder is refused. Raises BadInput naming the first that is not so.
    """
    with _archive(path) as archive, tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        manifest = _manifest(archive, path)
        _check_names(archive, manifest, path)
        folder = Path(scratch)
        for file in manifest.files:
            with disk_errors("unpacking", path):
                _extract(archive, file, folder, path)
        yield Opened(manifest=manifest, folder=folder)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise BadInput("opening the bundle", path, "there is no such file", "Check the path") from error
    except (OSError, *_ZIP_FAULTS) as error:
        raise _broken(path, f"it is no whole zip file ({error})") from error
    with archive:
        yield archive


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        info = archive.getinfo(MANIFEST)
        if info.file_size > MAX_MANIFEST_BYTES:
            raise _broken(path, "its manifest is larger than any real one")
        _check_plain(info, path)
        raw = archive.read(info)
    except (KeyError, OSError, *_ZIP_FAULTS) as error:
        raise _broken(path, "it has no readable manifest.json") from error
    try:
        schema = msgspec.json.decode(raw).get("schema")
        if schema not in READS:
            raise BadInput(
                "opening the bundle",
                path,
                f"its schema is {schema!r}, this program reads {' and '.join(map(str, READS))}",
                "Use the edgekiln version that made it, or build it again",
            )
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, f"its manifest is not sound ({error})") from error


def _check_names(archive: zipfile.ZipFile, manifest: Manifest, path: Path) -> None:
    held = [i.filename for i in archive.infolist()]
    named = {f.path for f in manifest.files}
    if len(set(held)) != len(held):
        raise _broken(path, "a file name occurs twice")
    for info in archive.infolist():
        name = info.filename
        if name not in named and name != MANIFEST and not name.startswith(SIGNATURES):
            raise _broken(path, f"'{name}' is not named in the manifest")
        _check_plain(info, path)
    missing = sorted(named - set(held))
    if missing:
        raise _broken(path, f"'{missing[0]}' is named in the manifest and not there")
    total = sum(f.size_bytes for f in manifest.files)
    if total > MAX_BUNDLE_BYTES:
        raise _broken(path, "it says it holds more than 16 GiB")
    if total > path.stat().st_size:  # stored files that overlap in the zip
        raise _broken(path, "it says it holds more than its own size")
    _check_covered(manifest, path)


def _check_covered(manifest: Manifest, path: Path) -> None:
    """Every artifact's files with the hashes that were proved, labels and golden tensors are all there."""
    files = {f.path: f for f in manifest.files}
    golden = manifest.golden
    recorded = [golden.inputs, golden.outputs] if golden else []
    for name in [*files, *recorded]:
        _check_path(name, path)
    _check_artifact(manifest.artifact, MODEL_FOLDER, files, path)
    for other in manifest.alternates:
        if "/" in other.folder:
            raise _broken(path, f"'{other.folder}' is no plain folder name")
        _check_path(other.folder, path)
        _check_artifact(other.artifact, f"{ALTERNATES_FOLDER}/{other.folder}", files, path)
    held = [manifest.artifact.id, *(a.artifact.id for a in manifest.alternates)]
    if len(set(held)) != len(held):
        raise _broken(path, "two of its artifacts bear one name")
    needed = [f"{GOLDEN_FOLDER}/{name}" for name in recorded]
    needed += [] if manifest.labels is None else [manifest.labels]
    missing = next((name for name in needed if name not in files), None)
    if missing is not None or manifest.labels not in {None, LABELS}:
        raise _broken(path, f"the manifest does not cover '{missing or manifest.labels}'")


def _check_path(name: str, path: Path) -> None:
    # "model/" + "/etc/passwd" is inside the folder; the artifact's own "/etc/passwd" is not.
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != name or name == ".":
        raise _broken(path, f"'{name}' is no plain path inside the bundle")


def _check_artifact(artifact: Artifact, folder: str, files: Mapping[str, FileEntry], path: Path) -> None:
    for file in artifact.files:
        _check_path(file.path, path)
        held = files.get(f"{folder}/{file.path}")
        if held is None or (held.sha256, held.size_bytes) != (file.sha256, file.size_bytes):
            raise _broken(path, f"the manifest does not cover its own artifact's '{file.path}'")
    # An entry is a file, or a folder of files: a Core ML package is one.
    entries = {str(p) for f in artifact.files for p in (f.path, *PurePosixPath(f.path).parents)} - {"."}
    if artifact.entry not in entries:
        raise _broken(path, f"its artifact's entry '{artifact.entry}' is none of its files")


def _check_plain(info: zipfile.ZipInfo, path: Path) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG} or info.filename.endswith("/"):
        raise _broken(path, f"'{info.filename}' is no plain file")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise _broken(path, f"'{info.filename}' is compressed, which no bundle's files are")


def _extract(archive: zipfile.ZipFile, file: FileEntry, folder: Path, path: Path) -> None:
    target = inside(folder, file.path, f"unpacking {path}:")
    info = archive.getinfo(file.path)
    if info.file_size != file.size_bytes:
        raise _broken(path, f"'{file.path}' has {info.file_size} bytes, the manifest says {file.size_bytes}")
    digest, written = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open("xb") as out:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > file.size_bytes:
                    raise _broken(path, f"'{file.path}' unpacks to more than it says")
                digest.update(chunk)
                out.write(chunk)
    except _ZIP_FAULTS as error:
        raise _broken(path, f"'{file.path}' can't be unpacked ({error})") from error
    except OSError as error:
        if error.errno in _NAME_FAULTS:
            raise _broken(path, f"'{file.path}' is no name a file can have ({error.strerror})") from error
        raise
    if digest.hexdigest() != file.sha256:
        raise _broken(path, f"'{file.path}' does not have the hash that the manifest names")


def _broken(path: Path, why: str) -> BadInput:
    return BadInput(
        "opening the bundle", path, why, "Do not use it: fetch it again from its source, or build it again"
    )
