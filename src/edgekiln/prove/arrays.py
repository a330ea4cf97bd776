"""Named arrays as ``.npz``: the same arrays are the same bytes, and reading trusts nothing."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput

MAX_BYTES = 1 << 30
_EPOCH = (1980, 1, 1, 0, 0, 0)


def npz_bytes(arrays: Arrays) -> bytes:
    """An uncompressed ``.npz`` with names sorted and no time stamps. Raises BadInput for object arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name]).reshape(np.shape(arrays[name]))
            if array.dtype.hasobject:
                cure = "Use numeric inputs and outputs only"
                raise BadInput("writing the array", f"'{name}'", "it holds Python objects", cure)
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            member.create_system = 3  # else the zip would differ between operating systems
            member.external_attr = 0o644 << 16
            data = io.BytesIO()
            np.lib.format.write_array(data, array, version=(1, 0), allow_pickle=False)
            archive.writestr(member, data.getvalue())
    return out.getvalue()


def read_npz(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` from anyone: no pickle, no compression, no header that claims more
    than is there. Raises BadInput."""
    doing = "reading the arrays in"
    cure = "Fetch the file again, or ask its author for a sound one"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise BadInput(doing, path, "it is compressed", "Save it with numpy.savez")
            if sum(m.file_size for m in members) > max_bytes:
                raise BadInput(doing, path, f"it holds more than {max_bytes} bytes", "Use fewer samples")
            return {m.filename.removesuffix(".npy"): _read_member(archive.read(m)) for m in members}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BadInput(doing, path, str(error) or type(error).__name__, cure) from error


def _read_member(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown npy version {version}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("an array's header does not match its size")
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()
