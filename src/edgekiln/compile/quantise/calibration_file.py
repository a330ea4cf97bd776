"""The calibration file: what was observed of one graph, carried to another run or to the device.

One ``.npz``: the arrays of ``observation_file`` and a header that says of which graph, by which data and
tools. It holds no sample. It may come from anyone: no pickle, sizes are known before memory is taken, and
every array is checked against the others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgekiln import __version__
from edgekiln.compile.quantise.histogram import Observation
from edgekiln.compile.quantise.observation_file import check_arrays, from_arrays, to_arrays
from edgekiln.errors import BadInput
from edgekiln.files import sha256_bytes, write_bytes
from edgekiln.model.tensors import check_tensors
from edgekiln.records import Record

NAME = "calibration.npz"
SCHEMA = 1
MAX_FILE_BYTES = 256 << 20

_DOING = "reading the calibration file"
_CURE = "Calibrate again with --data, or fetch the file again"


class Header(Record, frozen=True, kw_only=True):
    """``graph_sha256`` is of the optimised float graph that was watched; ``data_sha256`` names the samples as
    the model saw them; ``tools`` are the versions of what observed.
    """

    schema: int
    edgekiln: str
    model: str
    graph_sha256: str
    data_sha256: str
    samples: int
    tools: dict[str, str]


@dataclass(frozen=True)
class CalibrationFile:
    header: Header
    sha256: str
    seen: Mapping[str, Observation]


def header(model: str, graph_sha256: str, data_sha256: str, samples: int, tools: Mapping[str, str]) -> Header:
    """A header of this version."""
    return Header(
        schema=SCHEMA,
        edgekiln=__version__,
        model=model,
        graph_sha256=graph_sha256,
        data_sha256=data_sha256,
        samples=samples,
        tools=dict(sorted(tools.items())),
    )


def write_calibration(path: Path, about: Header, seen: Mapping[str, Observation]) -> None:
    """Write the file, whole or not at all; the same observations are the same bytes."""
    said = np.frombuffer(msgspec.json.encode(about, order="deterministic"), np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, header=said, **to_arrays(seen))
    write_bytes(path, out.getvalue())


def read_calibration(path: Path) -> CalibrationFile:
    """Read what ``write_calibration`` wrote. Raises BadInput for a file that is missing, of another version,
    damaged, or that holds anything else.
    """
    if not path.is_file():
        cure = f"Check the path; a build that calibrates writes {NAME} into its out folder"
        raise BadInput(_DOING, path, "there is no such file", cure)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInput(_DOING, path, f"it is larger than {MAX_FILE_BYTES >> 20} MiB", _CURE)
    if path.suffix.lower() != ".npz":
        raise BadInput(_DOING, path, "it is no .npz file", f"Give the {NAME} of an earlier build")
    check_tensors(path)
    with np.load(path, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    about = _header(held.pop("header", None), path)
    try:
        check_arrays(held)
        seen = from_arrays(held)
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        why = f"it holds no sound observations ({error})"
        raise BadInput(_DOING, path, why, _CURE) from error
    return CalibrationFile(about, sha256_bytes(path.read_bytes()), seen)


def _header(said: object, path: Path) -> Header:
    if not (isinstance(said, np.ndarray) and said.dtype == np.uint8 and said.ndim == 1):
        raise BadInput(_DOING, path, "it has no header of a calibration", _CURE)
    try:
        version = msgspec.json.decode(said.tobytes(), type=dict[str, object]).get("schema")
        if version != SCHEMA:
            why = f"it is of version {version}, this program reads version {SCHEMA}"
            raise BadInput(_DOING, path, why, "Calibrate again with --data, or use the program that wrote it")
        found = msgspec.json.decode(said.tobytes(), type=Header)
    except msgspec.MsgspecError as error:
        raise BadInput(_DOING, path, f"its header can't be read ({error})", _CURE) from error
    if found.samples < 1:
        raise BadInput(_DOING, path, f"it was made from {found.samples} samples", _CURE)
    return found
