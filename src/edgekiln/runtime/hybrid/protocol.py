"""Open Inference Protocol v2 over HTTP: requests out, responses in, as bytes. Nothing here does I/O.

Tensors travel as raw little-endian bytes after the JSON (Triton's "binary tensor data" extension, which
KServe, MLServer and OpenVINO Model Server speak too), or inside the JSON for a server that does not say it
can. Responses come from strangers: every size is checked before memory is taken, and what is not exactly
what was promised raises ServerFault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput, ServerFault
from edgekiln.records import Record, TensorSpec

LENGTH_HEADER = "Inference-Header-Content-Length"
BINARY_EXTENSION = "binary_tensor_data"
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 256
MAX_RANK = 16

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{n}": np.dtype(f"<u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"INT{n}": np.dtype(f"<i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"FP{n}": np.dtype(f"<f{n // 8}") for n in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# BF16 has no dtype in NumPy: it is given and received as float32, which holds each of its values.
_AS_NUMPY = {**{name: dtype.name for name, dtype in _DTYPES.items()}, "BF16": "float32", "BYTES": "object"}
_BINARY_ONLY = {"FP16", "BF16"}


@dataclass(frozen=True, slots=True)
class Message:
    """The body of a request; ``header_bytes`` of it are JSON, None where all of it is."""

    body: bytes
    header_bytes: int | None

    @property
    def headers(self) -> dict[str, str]:
        if self.header_bytes is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(self.header_bytes)}


class ServerMetadata(Record, frozen=True, kw_only=True):
    """``GET /v2``. ``binary``: the server says that it takes and gives tensors as bytes."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()

    @property
    def binary(self) -> bool:
        return BINARY_EXTENSION in self.extensions


class ModelMetadata(Record, frozen=True, kw_only=True):
    """``GET /v2/models/NAME``. Dynamic axes have names of ours (``axis0``); dtypes are NumPy's.

    ``datatypes`` keeps the protocol's own name per tensor, for those whose NumPy dtype says less (BF16).
    """

    name: str
    platform: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    datatypes: dict[str, str]


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters | None = None
    data: Any = None


class _Response(msgspec.Struct):
    outputs: tuple[_Tensor, ...]


class _Described(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Model(msgspec.Struct):
    name: str
    inputs: tuple[_Described, ...]
    outputs: tuple[_Described, ...]
    platform: str = ""
    versions: tuple[str, ...] | None = None


class _Server(msgspec.Struct):
    name: str
    version: str = ""
    extensions: tuple[str, ...] = ()


class _Error(msgspec.Struct):
    error: str


# ---------------------------------------------------------------- requests


def encode_request(
    inputs: Mapping[str, NDArray[Any]],
    outputs: Sequence[str] = (),
    *,
    binary: bool = True,
    datatypes: Mapping[str, str] | None = None,
) -> Message:
    """The body of an inference request for ``inputs``; ``outputs`` empty asks for all that the model has.

    ``datatypes`` names the protocol's type where the array's own dtype is not it: ``BF16`` takes float32 and
    rounds to nearest even. An array of objects holds BYTES (``bytes`` or ``str``). Raises BadInput for a
    dtype that the protocol has no name for, and for half precision where ``binary`` is False: the protocol
    gives it no form in JSON.
    """
    described, blobs = [], []
    for name, array in inputs.items():
        datatype = (datatypes or {}).get(name) or _datatype(name, array)
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary:
            blob = _to_bytes(name, array, datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = _to_list(name, array, datatype)
        described.append(entry)
    request: dict[str, Any] = {"inputs": described}
    if outputs:
        asked = {"parameters": {"binary_data": binary}}
        request["outputs"] = [{"name": name, **asked} for name in outputs]
    elif binary:
        request["parameters"] = {"binary_data_output": True}
    header = msgspec.json.encode(request)
    return Message(b"".join((header, *blobs)), len(header) if binary else None)


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy dtype's name. Raises BadInput where it has none."""
    if dtype == "object":
        return "BYTES"
    try:
        return _NAMES[np.dtype(dtype).newbyteorder("<")]
    except (KeyError, TypeError) as error:
        why = f"the protocol has no name for '{dtype}'"
        raise BadInput(
            "sending a tensor of", dtype, why, f"Use one of {', '.join(_NAMES.values())}"
        ) from error


def _datatype(name: str, array: NDArray[Any]) -> str:
    try:
        return datatype_of(array.dtype.name)
    except BadInput as error:
        raise BadInput("sending the tensor", name, error.why, error.cure) from error


def _to_bytes(name: str, array: NDArray[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        items = [_as_bytes(name, item) for item in array.reshape(-1)]
        return b"".join(len(item).to_bytes(4, "little") + item for item in items)
    if datatype == "BF16":
        return _round_to_bf16(np.ascontiguousarray(array, "<f4")).tobytes()
    if datatype not in _DTYPES:
        raise BadInput("sending the tensor", name, f"'{datatype}' is no type of the protocol", _cure_types())
    return np.ascontiguousarray(array, _DTYPES[datatype]).tobytes()


def _to_list(name: str, array: NDArray[Any], datatype: str) -> list[Any]:
    if datatype in _BINARY_ONLY:
        why = f"{datatype} has no form in JSON, and the server takes no binary tensors"
        raise BadInput("sending the tensor", name, why, "Send float32, or use a server with binary tensors")
    if datatype == "BYTES":
        try:
            return [_as_bytes(name, item).decode() for item in array.reshape(-1)]
        except UnicodeDecodeError as error:
            why = "bytes that are no UTF-8 have no form in JSON, and the server takes no binary tensors"
            raise BadInput("sending the tensor", name, why, "Use a server with binary tensors") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput("sending the tensor", name, "NaN and infinity have no form in JSON", "Check the input")
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _as_bytes(name: str, item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    why = f"an item is a {type(item).__name__}, neither bytes nor text"
    raise BadInput("sending the tensor", name, why, "Give numbers in an array of a numeric dtype")


def _cure_types() -> str:
    return f"Use one of {', '.join([*_DTYPES, 'BF16', 'BYTES'])}"


def _round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")


# ---------------------------------------------------------------- responses


def decode_response(
    body: bytes, header_bytes: int | None, server: str, wanted: Sequence[TensorSpec] = ()
) -> dict[str, NDArray[Any]]:
    """The outputs of an inference response by name, as arrays that own their memory.

    ``header_bytes`` is the value of ``Inference-Header-Content-Length``, None where the server sent none.
    ``wanted`` are the outputs that the model promises: each has to be there, with its dtype and shape (a
    named axis takes any size, the same wherever the name occurs), and nothing else; empty takes whatever
    comes. Raises ServerFault of kind ``answer``.
    """
    head, rest = _split(body, header_bytes, server)
    response = _decoded(head, _Response, server)
    if len(response.outputs) > MAX_TENSORS:
        raise _bad(server, f"it has {len(response.outputs)} outputs")
    found: dict[str, NDArray[Any]] = {}
    kinds: dict[str, str] = {}
    for tensor in response.outputs:
        if tensor.name in found:
            raise _bad(server, f"output '{tensor.name}' comes twice")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is not None and not 0 <= size <= len(rest):
            raise _bad(server, f"output '{tensor.name}' has {len(rest)} bytes instead of {size}")
        found[tensor.name] = _array(tensor, None if size is None else rest[:size], server)
        kinds[tensor.name] = tensor.datatype
        rest = rest[size or 0 :]
    if len(rest):
        raise _bad(server, f"{len(rest)} bytes follow its last tensor")
    if wanted:
        check_outputs(found, wanted, server)
    return found


def check_outputs(found: Mapping[str, NDArray[Any]], wanted: Sequence[TensorSpec], server: str) -> None:
    """Raise ServerFault unless ``found`` is exactly what ``wanted`` promises, and finite."""
    if set(found) != {spec.name for spec in wanted}:
        names = ", ".join(spec.name for spec in wanted)
        raise _bad(server, f"its outputs are {', '.join(sorted(found)) or 'none'}; the model gives {names}")
    bound: dict[str, int] = {}
    for spec in wanted:
        array = found[spec.name]
        if array.dtype.name != spec.dtype:
            raise _bad(server, f"output '{spec.name}' is {array.dtype.name}, the model gives {spec.dtype}")
        fits = array.ndim == len(spec.shape) and all(
            have == want if isinstance(want, int) else bound.setdefault(want, have) == have
            for have, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            have, want = _times(array.shape), _times(spec.shape)
            raise _bad(server, f"output '{spec.name}' is {have}, the model gives {want}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _bad(server, f"output '{spec.name}' holds NaN or infinity")


def decode_server(body: bytes, server: str) -> ServerMetadata:
    """Raises ServerFault of kind ``answer``."""
    told = _decoded(body, _Server, server)
    return ServerMetadata(name=told.name, version=told.version, extensions=told.extensions)


def decode_model(body: bytes, server: str) -> ModelMetadata:
    """Raises ServerFault of kind ``answer``, also for a type that the protocol does not have."""
    told = _decoded(body, _Model, server)
    inputs = tuple(_spec(t, server) for t in told.inputs)
    outputs = tuple(_spec(t, server) for t in told.outputs)
    return ModelMetadata(
        name=told.name,
        platform=told.platform,
        versions=told.versions or (),
        inputs=inputs,
        outputs=outputs,
        datatypes={t.name: t.datatype for t in (*told.inputs, *told.outputs)},
    )


def error_text(body: bytes) -> str:
    """What the server said went wrong, on one line of at most 200 characters; empty where it said nothing."""
    try:
        text = msgspec.json.decode(body[:MAX_HEADER_BYTES], type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:200]


def _split(body: bytes, header_bytes: int | None, server: str) -> tuple[bytes, memoryview]:
    if header_bytes is None:
        return body, memoryview(b"")
    if not 0 < header_bytes <= min(len(body), MAX_HEADER_BYTES):
        raise _bad(server, f"{LENGTH_HEADER} is {header_bytes} in a body of {len(body)} bytes")
    return body[:header_bytes], memoryview(body)[header_bytes:]


def _decoded(head: bytes, kind: Any, server: str) -> Any:
    try:
        return msgspec.json.decode(head, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(
            server, f"its JSON is not the protocol's ({' '.join(str(error).split())[:200]})"
        ) from error


def _spec(told: _Described, server: str) -> TensorSpec:
    if told.datatype not in _AS_NUMPY:
        raise _bad(server, f"'{told.name}' has the unknown type '{told.datatype[:40]}'")
    shape = tuple(n if n >= 0 else f"axis{i}" for i, n in enumerate(told.shape))
    return TensorSpec(name=told.name, dtype=_AS_NUMPY[told.datatype], shape=shape)


def _array(tensor: _Tensor, blob: memoryview | None, server: str) -> NDArray[Any]:
    name, shape = tensor.name, tensor.shape
    if tensor.datatype not in _AS_NUMPY:
        raise _bad(server, f"output '{name}' has the unknown type '{tensor.datatype[:40]}'")
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise _bad(server, f"output '{name}' has no sound shape")
    count = math.prod(shape)
    if blob is None:
        flat = _from_list(tensor, count, server)
    elif tensor.data is not None:
        raise _bad(server, f"output '{name}' comes both as bytes and as JSON")
    else:
        flat = _from_bytes(tensor, blob, count, server)
    return flat.reshape(shape)


def _from_bytes(tensor: _Tensor, blob: memoryview, count: int, server: str) -> NDArray[Any]:
    if tensor.datatype == "BYTES":
        return _strings(tensor.name, blob, count, server)
    dtype = np.dtype("<u2") if tensor.datatype == "BF16" else _DTYPES[tensor.datatype]
    if len(blob) != count * dtype.itemsize:
        why = f"output '{tensor.name}' has {len(blob)} bytes, its shape needs {count * dtype.itemsize}"
        raise _bad(server, why)
    if tensor.datatype == "BOOL":
        return np.frombuffer(blob, np.uint8).astype(np.bool_)
    flat = np.frombuffer(blob, dtype)
    if tensor.datatype == "BF16":
        widened: NDArray[Any] = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return widened
    return flat.astype(dtype.newbyteorder("="))


def _strings(name: str, blob: memoryview, count: int, server: str) -> NDArray[Any]:
    """Each item is its length in four bytes, then itself."""
    if len(blob) < 4 * count:
        raise _bad(server, f"output '{name}' has {len(blob)} bytes for {count} items")
    items, at = np.empty(count, object), 0
    for i in range(count):
        size = int.from_bytes(blob[at : at + 4], "little")
        at += 4 + size
        if at > len(blob):
            raise _bad(server, f"item {i} of output '{name}' reaches past its end")
        items[i] = bytes(blob[at - size : at])
    if at != len(blob):
        raise _bad(server, f"output '{name}' has bytes after its last item")
    return items


def _from_list(tensor: _Tensor, count: int, server: str) -> NDArray[Any]:
    """``data`` may be flat or nested; row-major either way."""
    name = tensor.name
    if not isinstance(tensor.data, list):
        raise _bad(server, f"output '{name}' has no data")
    if tensor.datatype in _BINARY_ONLY:
        raise _bad(server, f"output '{name}' is {tensor.datatype} in JSON, where it has no form")
    values = tensor.data
    for _ in range(MAX_RANK):
        if not any(isinstance(v, list) for v in values):
            break
        if not all(isinstance(v, list) for v in values):
            raise _bad(server, f"output '{name}' is nested unevenly")
        values = [inner for v in values for inner in v]
    if len(values) != count:
        raise _bad(server, f"output '{name}' has {len(values)} values, its shape needs {count}")
    kind = {"b": (bool,), "u": (int,), "i": (int,), "f": (int, float), "O": (str,)}
    dtype = np.dtype(object) if tensor.datatype == "BYTES" else _DTYPES[tensor.datatype]
    if any(type(v) not in kind[dtype.kind] for v in values):
        raise _bad(server, f"output '{name}' holds values that are no {tensor.datatype}")
    if tensor.datatype == "BYTES":
        values = [v.encode() for v in values]
        items = np.empty(count, object)
        items[:] = values
        return items
    try:
        return np.array(values, dtype.newbyteorder("="))
    except OverflowError as error:
        raise _bad(server, f"output '{name}' holds values too large for {tensor.datatype}") from error


def _times(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _bad(server: str, why: str) -> ServerFault:
    cure = "Check that the server speaks the Open Inference Protocol v2 and serves this model"
    return ServerFault("reading the answer of", server, why, cure, kind="answer")
