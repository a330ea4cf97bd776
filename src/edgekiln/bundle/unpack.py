"""Opening a bundle that comes from a stranger: nothing outside its folder, nothing unnamed, all hashed."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekiln.bundle import LABELS, MANIFEST, MODEL_FOLDER, SCHEMA, SIGNATURES
from edgekiln.errors import BadInput
from edgekiln.files import disk_errors, inside
from edgekiln.records import FileEntry, Manifest

MAX_MANIFEST_BYTES = 16 << 20
MAX_BUNDLE_BYTES = 16 << 30
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Opened:
    """A verified bundle, unpacked in ``folder`` for as long as the context lasts."""

    manifest: Manifest
    folder: Path

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL_FOLDER

    @property
    def labels(self) -> tuple[str, ...]:
        if self.manifest.labels is None:
            return ()
        path = self.folder / self.manifest.labels
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except UnicodeDecodeError as error:
            why, cure = "they are no UTF-8 text", "Do not use this bundle: build it again"
            raise BadInput("reading the bundle's labels in", self.manifest.labels, why, cure) from error


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, decoded strictly. Raises BadInput for what is not a bundle."""
    with _archive(path) as archive:
        return _manifest(archive, path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Verify and unpack ``path`` into a private folder that vanishes afterwards.

    Every member must be named in the manifest (signatures/ apart), with its size and SHA-256; every
    named file must be there. Raises BadInput naming the first that is not so.
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
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _broken(path, f"it is no whole zip file ({error})") from error
    with archive:
        yield archive


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        info = archive.getinfo(MANIFEST)
        if info.file_size > MAX_MANIFEST_BYTES:
            raise _broken(path, "its manifest is larger than any real one")
        raw = archive.read(info)
    except (KeyError, zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise _broken(path, "it has no readable manifest.json") from error
    try:
        schema = msgspec.json.decode(raw).get("schema")
        if schema != SCHEMA:
            raise BadInput(
                "opening the bundle",
                path,
                f"its schema is {schema!r}, this program reads {SCHEMA}",
                "Use the edgekiln version that made it, or build it again",
            )
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError) as error:
        raise _broken(path, f"its manifest is not sound ({error})") from error


def _check_names(archive: zipfile.ZipFile, manifest: Manifest, path: Path) -> None:
    held = [i.filename for i in archive.infolist()]
    named = {f.path for f in manifest.files}
    if len(set(held)) != len(held):
        raise _broken(path, "a file name occurs twice")
    for name in held:
        if name not in named and name != MANIFEST and not name.startswith(SIGNATURES):
            raise _broken(path, f"'{name}' is not named in the manifest")
    missing = sorted(named - set(held))
    if missing:
        raise _broken(path, f"'{missing[0]}' is named in the manifest and not there")
    if sum(f.size_bytes for f in manifest.files) > MAX_BUNDLE_BYTES:
        raise _broken(path, "it says it holds more than 16 GiB")
    needed = {f"{MODEL_FOLDER}/{f.path}" for f in manifest.artifact.files} | (
        {LABELS} if manifest.labels else set()
    )
    if not needed <= named or manifest.labels not in {None, LABELS}:
        raise _broken(path, "the manifest does not cover its own artifact")
    entries = {f.path for f in manifest.artifact.files}
    if manifest.artifact.entry not in entries:
        raise _broken(path, f"its artifact's entry '{manifest.artifact.entry}' is none of its files")


def _extract(archive: zipfile.ZipFile, file: FileEntry, folder: Path, path: Path) -> None:
    target = inside(folder, file.path, f"unpacking {path}:")
    info = archive.getinfo(file.path)
    if info.file_size != file.size_bytes:
        raise _broken(path, f"'{file.path}' has {info.file_size} bytes, the manifest says {file.size_bytes}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, written = hashlib.sha256(), 0
    try:
        with archive.open(info) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > file.size_bytes:
                    raise _broken(path, f"'{file.path}' unpacks to more than it says")
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise _broken(path, f"'{file.path}' can't be unpacked ({error})") from error
    if digest.hexdigest() != file.sha256:
        raise _broken(path, f"'{file.path}' does not have the hash that the manifest names")


def _broken(path: Path, why: str) -> BadInput:
    return BadInput(
        "opening the bundle", path, why, "Do not use it: fetch it again from its source, or build it again"
    )
