"""Bundles that somebody meddled with: consistently, so that every hash holds, or not."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.files import sha256_bytes

Members = dict[str, bytes]


def members(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, held: Members) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def repack(
    bundle: Path, into: Path, change: Callable[[Members], None], manifest: Callable[[Any], None] | None = None
) -> Path:
    """``bundle`` with changed members and a manifest that names their hashes, as a forger would make it."""
    held = members(bundle)
    change(held)
    told = json.loads(held.pop("manifest.json"))
    told["files"] = [
        {"path": name, "sha256": sha256_bytes(data), "size_bytes": len(data)}
        for name, data in sorted(held.items())
    ]
    for file in told["artifact"]["files"]:
        data = held[f"model/{file['path']}"]
        file["sha256"], file["size_bytes"] = sha256_bytes(data), len(data)
    if manifest is not None:
        manifest(told)
    return write(into, {"manifest.json": json.dumps(told).encode(), **held})


def keep(held: Members) -> None:
    """No change of members."""


def altered(data: bytes, change: Callable[[str, NDArray[Any]], tuple[str, NDArray[Any]]]) -> bytes:
    """An .npz with every array changed."""
    with np.load(io.BytesIO(data)) as arrays:
        changed = dict(change(name, arrays[name]) for name in arrays.files)
    out = io.BytesIO()
    np.savez(out, **changed)
    return out.getvalue()
