"""A small model server of the Open Inference Protocol v2 (HTTP, with binary tensors) over ONNX Runtime.

Its codec is written from the protocol's text and shares nothing with the client under test. A model with a
preprocessing takes a coded picture (BYTES [1], ``picture``) and decodes it as a server would. Run as a
program it serves ``NAME=FILE.onnx`` and prints its port.
"""

from __future__ import annotations

import contextlib
import io
import json
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.model.preprocess import apply
from edgekiln.records import Preprocess

_LENGTH = "Inference-Header-Content-Length"
_TYPES = {
    "tensor(float)": ("FP32", "<f4"),
    "tensor(float16)": ("FP16", "<f2"),
    "tensor(double)": ("FP64", "<f8"),
    "tensor(uint8)": ("UINT8", "|u1"),
    "tensor(int8)": ("INT8", "|i1"),
    "tensor(int32)": ("INT32", "<i4"),
    "tensor(int64)": ("INT64", "<i8"),
    "tensor(bool)": ("BOOL", "|b1"),
}
_CODES = dict(_TYPES.values())


@dataclass
class Served:
    """A model in memory. ``calls`` counts its inferences."""

    session: Any
    preprocess: Preprocess | None = None
    calls: int = 0

    def described(self, side: str) -> list[dict[str, Any]]:
        if side == "inputs" and self.preprocess is not None:
            return [{"name": "picture", "datatype": "BYTES", "shape": [1]}]
        found = self.session.get_inputs() if side == "inputs" else self.session.get_outputs()
        return [
            {
                "name": v.name,
                "datatype": _TYPES[v.type][0],
                "shape": [n if isinstance(n, int) else -1 for n in v.shape],
            }
            for v in found
        ]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        self.calls += 1
        if self.preprocess is not None:
            from PIL import Image

            with Image.open(io.BytesIO(inputs["picture"])) as picture:
                inputs = {self.session.get_inputs()[0].name: apply(self.preprocess, picture.convert("RGB"))}
        names = [o.name for o in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))


def served(path: Path, preprocess: Preprocess | None = None, threads: int = 1) -> Served:
    """``path`` opened in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Served(session, preprocess)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ModelServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        model = self.server.models.get(parts[2]) if len(parts) > 2 and parts[1] == "models" else None
        if parts == ["v2"]:
            extensions = ["binary_tensor_data"] if self.server.binary else []
            self._say(200, {"name": "measuring", "version": "1", "extensions": extensions})
        elif parts[:2] == ["v2", "health"] or (model is not None and parts[3:] == ["ready"]):
            self._say(200, {})
        elif model is not None and not parts[3:]:
            sides = {side: model.described(side) for side in ("inputs", "outputs")}
            self._say(200, {"name": parts[2], "platform": "onnxruntime", "versions": ["1"], **sides})
        else:
            self._say(404, {"error": f"nothing is at {self.path}"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(len(body))
        if self.headers.get("Content-Encoding") == "deflate":
            body = zlib.decompress(body)
        parts = self.path.strip("/").split("/")
        model = self.server.models.get(parts[2]) if len(parts) == 4 and parts[3] == "infer" else None
        if model is None:
            self._say(404, {"error": "no such model"})
            return
        size = int(self.headers.get(_LENGTH, len(body)))
        try:
            request = json.loads(body[:size])
            outputs = model.run(_inputs(request, body[size:]))
        except Exception as error:  # a server says what is wrong with a request, whatever it is
            self._say(400, {"error": str(error)})
            return
        asked = {o["name"]: o.get("parameters", {}).get("binary_data") for o in request.get("outputs", [])}
        every = request.get("parameters", {}).get("binary_data_output", False)
        self._give(outputs, {n: asked.get(n, every) for n in asked or outputs})

    def _give(self, outputs: Mapping[str, NDArray[Any]], binary: Mapping[str, bool]) -> None:
        described, blobs = [], []
        for name, as_bytes in binary.items():
            array = outputs[name]
            datatype = next(d for d, c in _CODES.items() if np.dtype(c) == array.dtype)
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            if as_bytes:
                blobs.append(np.ascontiguousarray(array).tobytes())
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = array.tolist()
            described.append(entry)
        head = json.dumps({"model_name": "m", "outputs": described}).encode()
        self._send(200, head + b"".join(blobs), {_LENGTH: str(len(head))} if blobs else {})

    def _say(self, status: int, what: Any) -> None:
        self._send(status, json.dumps(what).encode(), {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)


def _inputs(request: Any, rest: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tensor in request["inputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if tensor["datatype"] == "BYTES":
            (length,) = struct.unpack("<I", rest[:4])
            found[tensor["name"]] = rest[4 : 4 + length]
        elif size is None:
            found[tensor["name"]] = np.array(tensor["data"], _CODES[tensor["datatype"]])
        else:
            found[tensor["name"]] = np.frombuffer(rest[:size], _CODES[tensor["datatype"]])
        rest = rest[size or 0 :]
        if tensor["datatype"] != "BYTES":
            found[tensor["name"]] = found[tensor["name"]].reshape(tensor["shape"])
    return found


class ModelServer(ThreadingHTTPServer):
    """Serves ``models`` on a free port of 127.0.0.1. ``binary`` False: it takes and gives JSON tensors.

    ``received`` are the bytes of each request's body as it came.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, models: Mapping[str, Served], *, binary: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = dict(models)
        self.binary = binary
        self.received: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""


@contextlib.contextmanager
def serving(
    models: Mapping[str, Served], *, binary: bool = True, certificate: Path | None = None
) -> Iterator[ModelServer]:
    """A server in a thread that ends with the block; over TLS where ``certificate`` (PEM with its key) is."""
    server = ModelServer(models, binary=binary)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    server = ModelServer({name: served(Path(path)) for name, path in given.items()})
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
