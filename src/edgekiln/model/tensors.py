"""Samples that are tensors: ``.npz`` with one array per input, or ``.npy`` for a model of one input.

Nothing in such a file is unpickled, and its sizes are known from its headers before memory is taken.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.records import Signature, TensorSpec

MAX_BYTES = 2**30
"""Largest sample, in bytes once it is decompressed."""
_DOING = "reading the tensors in"
_CURE = "Save it again with numpy.savez(path, **{input_name: array})."


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and length in bytes of the ``.npy`` header that ``file`` starts with."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype, file.tell()


def _sound(file: IO[bytes], length: int, path: Path) -> None:
    shape, dtype, start = _header(file)
    if dtype.hasobject:
        raise BadInput(_DOING, path, "it holds pickled objects", "Save numbers, not objects.")
    want = start + math.prod(shape) * dtype.itemsize
    if want != length:
        raise BadInput(_DOING, path, f"it has {length} bytes instead of {want}", _CURE)


def check_tensors(path: Path) -> None:
    """Raise BadInput unless ``path`` holds arrays of numbers, whole and within MAX_BYTES."""
    try:
        if path.suffix.lower() == ".npy":
            length = path.stat().st_size
            if length > MAX_BYTES:
                raise BadInput(_DOING, path, f"it is larger than {MAX_BYTES} bytes", "Split it up.")
            with path.open("rb") as file:
                _sound(file, length, path)
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_BYTES:
                raise BadInput(_DOING, path, f"it unpacks to more than {MAX_BYTES} bytes", "Split it up.")
            if not members:
                raise BadInput(_DOING, path, "it holds no array", _CURE)
            for member in members:
                with archive.open(member) as inner:
                    _sound(inner, member.file_size, path)
            if bad := archive.testzip():
                raise BadInput(_DOING, path, f"'{bad}' is damaged", _CURE)
    except BadInput:
        raise
    except Exception as error:  # a broken archive makes zipfile, zlib and numpy raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(_DOING, path, why, _CURE) from error


def read_tensors(path: Path, signature: Signature) -> dict[str, NDArray[Any]]:
    """The arrays of ``path`` by input name, checked against ``signature``: names, dtypes, shapes.

    A named axis takes any size, but the same size wherever the name occurs. Raises BadInput.
    """
    check_tensors(path)
    if path.suffix.lower() == ".npy":
        if len(signature.inputs) != 1:
            cure = "Give .npz files with one array per input."
            raise BadInput(_DOING, path, f"the model has {len(signature.inputs)} inputs", cure)
        arrays = {signature.inputs[0].name: np.load(path, allow_pickle=False)}
    else:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    wanted = {s.name for s in signature.inputs}
    if set(arrays) != wanted:
        why = f"it holds {', '.join(sorted(arrays))}; the model takes {', '.join(sorted(wanted))}"
        raise BadInput(_DOING, path, why, _CURE)
    bound: dict[str, int] = {}
    for spec in signature.inputs:
        _fit(arrays[spec.name], spec, bound, path)
    return {name: a.astype(a.dtype.newbyteorder("="), order="C", copy=False) for name, a in arrays.items()}


def _fit(array: NDArray[Any], spec: TensorSpec, bound: dict[str, int], path: Path) -> None:
    takes = f"{spec.dtype} {'x'.join(map(str, spec.shape))}"
    if array.dtype.name != spec.dtype:
        cure = f"Save it as {spec.dtype}."
        raise BadInput(_DOING, path, f"'{spec.name}' is {array.dtype.name}, the model takes {takes}", cure)
    fits = array.ndim == len(spec.shape) and all(
        have == want if isinstance(want, int) else bound.setdefault(want, have) == have
        for have, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        why = f"'{spec.name}' is {'x'.join(map(str, array.shape))}, the model takes {takes}"
        near = array.ndim + 1 == len(spec.shape)
        cure = "Add the batch axis: array[None]." if near else "Save it in the model's shape."
        raise BadInput(_DOING, path, why, cure)
