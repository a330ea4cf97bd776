"""Files that are whole or absent: written aside, synced, renamed. And their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edgekiln.errors import BadInput, MachineFault
from edgekiln.records import FileEntry

_LEAST_FREE_BYTES = 1 << 16
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


@contextlib.contextmanager
def disk_errors(doing: str, to: object) -> Iterator[None]:
    """Turn an OSError of a write into an error that names the cure."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise MachineFault(
                doing, to, "no space is left on the disk", "Free some space, or give another --out or --cache"
            ) from error
        if error.errno in _REFUSED:
            why = f"not permitted ({error.strerror})"
            raise BadInput(doing, to, why, "Choose a folder you own") from error
        if error.errno in _IN_THE_WAY:
            why = f"a file can't lie there ({error.strerror})"
            raise BadInput(doing, to, why, "Choose another folder or name") from error
        raise


def check_space(*folders: Path) -> None:
    """Raises MachineFault where a disk is full: native code says so in words of its own, or not at all."""
    for folder in folders:
        if folder.exists() and shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
            why = "no space is left on the disk"
            raise MachineFault("writing below", folder, why, "Free some space, or set TMPDIR or --cache")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing. Raises MachineFault when the disk is full."""
    with disk_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            Path(aside).chmod(0o644)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Path, record: object) -> None:
    """A record as indented JSON, keys sorted, so that equal records are equal bytes."""
    data = msgspec.json.encode(record, order="deterministic")
    write_bytes(path, msgspec.json.format(data, indent=1) + b"\n")


@contextlib.contextmanager
def folder_aside(final: Path) -> Iterator[Path]:
    """A scratch folder beside ``final`` that becomes ``final`` if the block succeeds, else vanishes.

    Where another process finished the same folder first, that one is kept. Permissions follow the umask.
    Raises MachineFault when the disk is full, also where the block's own writes find it so; whatever else
    the block raises passes through.
    """
    with disk_errors("writing", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # The outer folder is private; the inner one is made as any other, and is what stays.
        outer = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        with disk_errors("writing", final):
            aside = outer / "content"
            aside.mkdir()
        try:
            yield aside
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            with disk_errors("writing", final):
                raise
        with disk_errors("writing", final):
            _publish(aside, final)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _publish(aside: Path, final: Path) -> None:
    for path in sorted(p for p in aside.rglob("*") if p.is_file()):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not final.is_dir():
            raise
    _sync_folder(final.parent)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_record(record: Any) -> str:
    """Hash of a record or of plain JSON data, independent of dict order."""
    return sha256_bytes(msgspec.json.encode(record, order="deterministic"))


def entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(
        path=path.relative_to(root).as_posix(), sha256=sha256_file(path), size_bytes=path.stat().st_size
    )


def entries(root: Path) -> tuple[FileEntry, ...]:
    """Every file below ``root``, by path."""
    return tuple(entry(root, p) for p in sorted(root.rglob("*")) if p.is_file())


def inside(root: Path, relative: str, doing: str) -> Path:
    """``root / relative``, refusing what leaves ``root`` by ``..``, an absolute path or a link."""
    pure = PurePosixPath(relative)
    path = root / pure
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(root.resolve()):
        why = "the path leaves its folder"
        raise BadInput(doing, relative, why, "Do not use this file; ask its author for a sound one")
    return path
