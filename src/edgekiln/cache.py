"""Content-addressed store of finished steps: a second run redoes nothing, a killed one goes on.

A step's key is the hash of its name, its inputs and this package's own sources, so a change of code
never serves a result of the old code. A step's folder appears by rename, whole or not at all; what
lies there is checked against recorded hashes before it is used, and redone where it is damaged.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekiln import interrupt
from edgekiln.files import (
    disk_errors,
    entries,
    folder_aside,
    sha256_bytes,
    sha256_file,
    sha256_record,
    write_json,
)
from edgekiln.records import FileEntry, Record

R = TypeVar("R")

_DONE = "step.json"


class _Done(Record, frozen=True, kw_only=True):
    """``sha256`` is of the result's compact JSON."""

    result: msgspec.Raw
    sha256: str
    files: tuple[FileEntry, ...]


def default_root() -> Path:
    """``EDGEKILN_CACHE``, or the user's cache folder by the platform's convention."""
    import platformdirs

    given = os.environ.get("EDGEKILN_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgekiln"))


def step(
    root: Path, name: str, key: Any, kind: type[R], produce: Callable[[Path], R]
) -> tuple[Path, R, bool]:
    """The folder and result of a step, and whether it was there already.

    ``produce(folder)`` writes files into the scratch folder and returns the result record (of type
    ``kind``), which must not name the folder itself. ``key`` is any JSON-like data or record that
    tells this step's inputs apart. What ``produce`` raises passes through and leaves nothing behind.
    """
    folder = root / name / sha256_record([name, code_hash(), key])[:32]
    # Looked for first: what appears later is another process's finished step, which must stay.
    there = folder.exists()
    found = _load(folder, kind)
    if found is not None:
        return folder, found, True
    if there:
        _remove(folder)
    with folder_aside(folder) as scratch:
        result = produce(scratch)
        interrupt.check()  # a result that a swallowed Ctrl-C spoilt must not be kept
        raw = msgspec.json.encode(result)
        done = _Done(result=msgspec.Raw(raw), sha256=sha256_bytes(raw), files=entries(scratch))
        write_json(scratch / _DONE, done)
    return folder, result, False


def _load(folder: Path, kind: type[R]) -> R | None:
    try:
        done = msgspec.json.decode((folder / _DONE).read_bytes(), type=_Done)
        for file in done.files:
            path = folder / file.path
            if path.stat().st_size != file.size_bytes or sha256_file(path) != file.sha256:
                return None
        if sha256_bytes(msgspec.json.format(done.result, indent=-1)) != done.sha256:
            return None
        return msgspec.json.decode(done.result, type=kind)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Take a damaged step out of the way: by rename, because half a folder would be damaged too."""
    with (
        disk_errors("replacing the damaged step", folder),
        tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
        ) as away,
        contextlib.suppress(FileNotFoundError),
    ):
        folder.rename(Path(away) / "damaged")


@functools.cache
def code_hash() -> str:
    """Hash of this package's sources: a finished step belongs to the code that made it."""
    package = Path(__file__).parent
    sources = sorted(p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc")
    parts = [p.relative_to(package).as_posix() + sha256_file(p) for p in sources]
    return sha256_bytes("\n".join(parts).encode())
